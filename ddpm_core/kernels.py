"""The reverse process p(x_s | x_t), learned by way of x_0 (Ho et al. 2020, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from array_api_compat import array_namespace

from ddpm_core.arrays import exp, fit, log
from ddpm_core.denoisers import Denoiser
from ddpm_core.gaussians import Gaussian
from ddpm_core.levels import Level, tau
from ddpm_core.process import Variance, large, q_posterior, small
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.typing import Array, Scalar


class Reverse(Protocol):
    """A reverse kernel: p(x_s | x_t) for any s < t."""

    def __call__(self, x_t: Array, t: Level, s: Level, **cond: Any) -> Gaussian: ...


def reverse(denoise: Denoiser, variance: Variance = small) -> Reverse:
    """p(x_s | x_t) = N(μ̃(x_t, x_0), variance), with x_0 = denoise(x_t, t) (Ho et al. 2020, Eq. 11).

    variance: `small`, `large`, `optimal(...)`, or any function (t, s) -> coefficient

    With the eps of the network in place of x_0, the mean is Eq. 11's
    (α_s / α_t) (x_t - τ σ_t eps). Into clean data, a level of the host, the variance is 0 whatever
    it is elsewhere: Algorithm 2 takes no noise there, and the bound brings a decoder of its own.
    """

    def kernel(x_t: Array, t: Level, s: Level, **cond: Any) -> Gaussian:
        mean = q_posterior(denoise(x_t, t, **cond), x_t, t, s).mean
        return Gaussian(mean, 0.0 if is_clean(s) else variance(t, s))

    return kernel


def optimal(error: Callable[[Level], Scalar]) -> Variance:
    """The variance of the tightest bound, given how far the denoiser is off (Bao et al. 2022).

    variance = β̃ + (α_s τ)² error(t),   τ = 1 - SNR_t / SNR_s

    error: t -> E (x_0 - x̂_0)², the mean over data, noise and coordinates: a coefficient; or, for
        kernels, an array that broadcasts to x, one error per coordinate

    For an exact denoiser it is the moment-matching variance of Theorem 1 there, in a form that
    does not cancel; for one that is not, it is still the best variance for its mean, if error is
    its own, measured error (`likelihood.errors_at`). `error_of_score` takes the paper's quantity.
    """

    def variance(t: Level, s: Level) -> Scalar:
        least, on_x_0, off = small(t, s), s.alpha * tau(t, s), error(t)
        if getattr(least, "ndim", 0) == 1 and getattr(off, "ndim", 0) > 1:  # one level per sample
            shape = (-1,) + (1,) * (off.ndim - 1)
            least, on_x_0 = (array_namespace(c).reshape(c, shape) for c in (least, on_x_0))
        return least + on_x_0**2 * off

    return variance


def error_of_score(t: Level, squared_score: Scalar) -> Scalar:
    """E (x_0 - x̂_0)² of the exact denoiser, by Γ = E |∇ log q(x_t)|² / D (Bao et al. 2022).

    error = (σ² / α²) (1 - σ² Γ)

    Cancels where little data is left, at σ² Γ near 1: measure the error itself where you can.
    """
    return (t.sigma / t.alpha) ** 2 * (1 - t.sigma**2 * squared_score)


class Both(Protocol):
    """A denoiser whose network also speaks of the variance; a `Predictor` with variance=True."""

    def both(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]: ...


def learned_range(predict: Both, decoder_var: Scalar) -> Reverse:
    """p(x_s | x_t) with the variance that the network chose (Nichol & Dhariwal 2021, Eq. 15).

    log variance = w log β + (1 - w) log β̃,   w = (v + 1) / 2, v the network's

    decoder_var: what stands for β̃ at clean data, where β̃ = 0; published networks were trained with
        Ho et al.'s, `decoder_variance(schedule)`; on a subset of levels, `small` of the step before

    ValueError if the network returns no v.
    """

    def kernel(x_t: Array, t: Level, s: Level, **cond: Any) -> Gaussian:
        x_0, v = predict.both(x_t, t, **cond)
        if v is None:
            raise ValueError(
                "this network returns no variance: give it 2 C channels and variance=True"
            )
        return in_range(x_0, v, x_t, t, s, decoder_var)

    return kernel


def in_range(x_0: Array, v: Array, x_t: Array, t: Level, s: Level, decoder_var: Scalar) -> Gaussian:
    """The p(x_s | x_t) of `learned_range`, from what the network says of x_0 and the variance."""
    mean = q_posterior(x_0, x_t, t, s).mean
    low = log(where_clean(s, decoder_var, small(t, s)))
    width = log(large(t, s)) - low
    return Gaussian(mean, exp(fit(low, x_t) + fit(width, x_t) * (0.5 * (v + 1))))


def decoder_variance(schedule: Schedule) -> float:
    """Ho et al.'s variance for L_0: β̃_2, that of the step before, since β̃_1 = 0.

    ValueError if the schedule has no such step.
    """
    if not isinstance(schedule, Discrete) or schedule.T < 2:
        raise ValueError(f"{schedule!r} has no step from 2 to 1: pass decoder_var")
    return float(small(schedule(2), schedule(1)))


def is_clean(s: Level) -> bool:
    """Whether s is, on the host, one level of clean data."""
    return isinstance(s.logsnr, float) and s.logsnr == math.inf


def where_clean(s: Level, at_clean: Scalar, elsewhere: Scalar) -> Scalar:
    """The one coefficient where s is clean data, the other where it is not."""
    if isinstance(s.sigma, (int, float)):
        return at_clean if s.sigma == 0 else elsewhere
    xp = array_namespace(s.sigma)
    if isinstance(at_clean, (int, float)):
        at_clean = xp.full_like(s.sigma, at_clean)
    return xp.where(s.sigma == 0, at_clean, elsewhere)
