"""Reverse kernels p(x_s | x_t), made from a denoiser (Ho et al. 2020, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from array_api_compat import array_namespace

from ddpm_core.arrays import check_function, exp, fit, is_number, kind, log, where
from ddpm_core.denoisers import Denoiser, VarianceDenoiser
from ddpm_core.gaussians import Gaussian
from ddpm_core.levels import Level, tau
from ddpm_core.process import Variance, large, q_posterior, small
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.typing import Array, Scalar


class Step(Protocol):
    """p(x_s | x_t) as samplers need it, such as a `Gaussian`: its mean, and its draws."""

    @property
    def mean(self) -> Array: ...

    def reparameterise(self, z: Array) -> Array:
        """A draw, for z standard normal of the mean's shape."""
        ...


class Kernel(Protocol):
    """A reverse kernel that can be drawn from; it need not have independent coordinates."""

    def __call__(self, x_t: Array, t: Level, s: Level, **cond: Any) -> Step: ...


class Reverse(Protocol):
    """A reverse kernel: p(x_s | x_t) for any s < t."""

    def __call__(self, x_t: Array, t: Level, s: Level, **cond: Any) -> Gaussian: ...


def reverse(denoise: Denoiser, variance: Variance = small) -> Reverse:
    """p(x_s | x_t) = N(μ̃(x_t, x_0), variance), with x_0 = denoise(x_t, t) (Ho et al. 2020, Eq. 11).

    variance: `small`, `large`, `optimal(...)`, or any function (t, s) -> coefficient

    In terms of eps the mean is (α_s / α_t) (x_t - τ σ_t eps), as in Eq. 11. Where s is clean data
    the variance is 0, whatever `variance` is: Algorithm 2 adds no noise in its last step. (The
    bound needs a variance there: see `decoder_var` of `bound` and `elbo`.)
    """
    check_function("a Predictor", denoise=denoise)
    check_function("large", variance=variance)

    def kernel(x_t: Array, t: Level, s: Level, **cond: Any) -> Gaussian:
        mean = q_posterior(denoise(x_t, t, **cond), x_t, t, s).mean
        return Gaussian(mean, where_clean(s, 0.0, variance(t, s)))

    return kernel


def optimal(error: Callable[[Level], Scalar]) -> Variance:
    """The variance that makes the bound tightest, from the denoiser's error (Bao et al. 2022).

    variance = β̃ + (α_s τ)² error(t),   τ = 1 - SNR_t / SNR_s

    error: t -> E (x_0 - x̂_0)², the mean over data, noise and coordinates: a number, or (B,) at
        levels (B,). For kernels it may have one value per coordinate: (*D), or (B, *D)

    For an exact denoiser this is the moment-matching variance of Theorem 1, in a form that does not
    cancel. For any other it is the best variance for its mean, provided that error is its own,
    measured error (`likelihood.errors_at`). `error_of_score` is the error in the paper's terms.
    """

    def variance(t: Level, s: Level) -> Scalar:
        least, on_x_0, off = small(t, s), s.alpha * tau(t, s), error(t)
        axes = getattr(least, "ndim", 0)
        if is_number(off) or off.ndim <= axes:
            return least + on_x_0**2 * off
        if axes == 0:  # one error per coordinate, at one level for all samples
            return (least + on_x_0**2 * off)[None, ...]
        shape = (-1,) + (1,) * (off.ndim - 1)
        least, on_x_0 = (array_namespace(c).reshape(c, shape) for c in (least, on_x_0))
        return least + on_x_0**2 * off

    return variance


def error_of_score(t: Level, squared_score: Scalar) -> Scalar:
    """E (x_0 - x̂_0)² of the exact denoiser, from Γ = E |∇ log q(x_t)|² / D (Bao et al. 2022).

    error = (σ² / α²) (1 - σ² Γ)

    squared_score: Γ, the mean over the D coordinates

    The difference cancels where little data is left, as σ² Γ is near 1 there: measure the error
    itself (`likelihood.errors_at`).
    """
    return (t.sigma / t.alpha) ** 2 * (1 - t.sigma**2 * squared_score)


def learned_range(predict: VarianceDenoiser, decoder_var: Scalar) -> Reverse:
    """p(x_s | x_t) with the network's own variance (Nichol & Dhariwal 2021, Eq. 15).

    log variance = w log β + (1 - w) log β̃,   w = (v + 1) / 2, v the network's

    decoder_var: replaces β̃ where s is clean data and β̃ = 0. Published networks were trained with
        `decoder_variance(schedule)`; on a subset of levels it is `small` of the step before

    TypeError if predict has no method `both`; ValueError if the network returns no v.
    """
    if not hasattr(predict, "both"):
        raise TypeError(
            f"learned_range needs a Predictor with variance=True, or another object with a method "
            f"both, but predict is {kind(predict)}"
        )

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
    """Ho et al.'s variance for L_0: β̃_2, that of the step before it, since β̃_1 = 0.

    ValueError if the schedule is not discrete or has one step only.
    """
    if not isinstance(schedule, Discrete) or schedule.T < 2:
        raise ValueError(f"{schedule!r} has no step from 2 to 1: pass decoder_var")
    return float(small(schedule(2), schedule(1)))


def is_clean(s: Level) -> bool:
    """Whether s is one host level, and clean data."""
    return is_number(s.logsnr) and s.logsnr == math.inf


def where_clean(s: Level, at_clean: Scalar, elsewhere: Scalar) -> Scalar:
    """One coefficient where s is clean data, the other elsewhere."""
    return where(s.sigma == 0, at_clean, elsewhere)
