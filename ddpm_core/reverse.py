"""The reverse process p(x_s | x_t), learned by way of x_0 (Ho et al. 2020, section 3.2)."""

from __future__ import annotations

from typing import Any, Protocol

from ddpm_core._typing import Array
from ddpm_core.denoisers import Denoiser
from ddpm_core.gaussians import Gaussian
from ddpm_core.levels import Level
from ddpm_core.process import Variance, q_posterior, small


class Reverse(Protocol):
    """A reverse kernel: p(x_s | x_t) for any s < t."""

    def __call__(self, x_t: Array, t: Level, s: Level, **cond: Any) -> Gaussian: ...


def reverse(denoise: Denoiser, variance: Variance = small) -> Reverse:
    """p(x_s | x_t) = N(μ̃(x_t, x_0), variance), with x_0 = denoise(x_t, t) (Ho et al. 2020, Eq. 11).

    variance: `small`, `large`, or any function (t, s) -> coefficient

    With the eps of the network in place of x_0, the mean is Eq. 11's
    (α_s / α_t) (x_t - τ σ_t eps).
    """

    def kernel(x_t: Array, t: Level, s: Level, **cond: Any) -> Gaussian:
        mean = q_posterior(denoise(x_t, t, **cond), x_t, t, s).mean
        return Gaussian(mean, variance(t, s))

    return kernel
