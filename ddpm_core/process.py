"""The forward process q, between any two levels s < t (Ho et al. 2020, section 2).

The variance added from s to t is σ²_{t|s} = τ σ_t², with τ = tau(t, s). For s = t - 1 it is the
paper's β_t, and the posterior's variance is its β̃_t, but s may be any cleaner level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ddpm_core.arrays import check_pair, combine, fit, sqrt
from ddpm_core.gaussians import Gaussian
from ddpm_core.levels import Level, check_levels, tau
from ddpm_core.typing import Array, Scalar

#: The variance of a reverse step from t to s < t: (t, s) -> a coefficient.
Variance: TypeAlias = Callable[[Level, Level], Scalar]


def q_sample(x_0: Array, eps: Array, t: Level) -> Array:
    """A draw from q(x_t | x_0) = N(α_t x_0, σ_t² I) (Ho et al. 2020, Eq. 4).

    x_t = α_t x_0 + σ_t eps

    x_0, eps: (B, *D), eps standard normal
    t: a level of shape () or (B,)

    At t = clean data this is x_0.

    >>> from ddpm_core import linear
    >>> import numpy as np
    >>> q_sample(np.ones((2, 3)), np.zeros((2, 3)), linear()(1000)).round(4)[0]
    array([0.0064, 0.0064, 0.0064])
    """
    check_pair(x_0=x_0, eps=eps)
    check_levels(t=t)
    return combine((t.alpha, x_0), (t.sigma, eps))


def q_marginal(x_0: Array, t: Level) -> Gaussian:
    """q(x_t | x_0) = N(α_t x_0, σ_t² I) (Ho et al. 2020, Eq. 4).

    x_0: (B, *D)
    t: a level of shape () or (B,)
    """
    check_pair(x_0=x_0)
    check_levels(t=t)
    return Gaussian(fit(t.alpha, x_0) * x_0, t.sigma**2)


def q_step(x_s: Array, eps: Array, t: Level, s: Level) -> Array:
    """A draw from q(x_t | x_s) for any s < t: forward from one level to a noisier one.

    x_t = (α_t / α_s) x_s + sqrt(τ) σ_t eps,   τ = 1 - SNR_t / SNR_s

    x_s, eps: (B, *D), eps standard normal
    t, s: levels of shape () or (B,)

    From s = clean data this is `q_sample`; from t - 1 to t it is Eq. 2 of Ho et al. 2020.
    """
    check_pair(x_s=x_s, eps=eps)
    check_levels(t=t, s=s)
    return combine((t.alpha / s.alpha, x_s), (sqrt(tau(t, s)) * t.sigma, eps))


def q_posterior(x_0: Array, x_t: Array, t: Level, s: Level) -> Gaussian:
    """q(x_s | x_t, x_0) for any s < t (Ho et al. 2020, Eqs. 6-7).

    mean = α_s τ x_0 + (α_t / α_s) (σ_s / σ_t)² x_t,   var = τ σ_s²,   τ = 1 - SNR_t / SNR_s

    x_0, x_t: (B, *D)
    t, s: levels of shape () or (B,)

    At s = clean data this is the point mass at x_0.
    """
    check_pair(x_0=x_0, x_t=x_t)
    check_levels(t=t, s=s)
    on_x_0, on_x_t = posterior_row(t, s)
    return Gaussian(combine((on_x_0, x_0), (on_x_t, x_t)), small(t, s))


def posterior_row(t: Level, s: Level) -> tuple[Scalar, Scalar]:
    """The coefficients of the posterior mean over (x_0, x_t) (Ho et al. 2020, Eq. 7)."""
    return s.alpha * tau(t, s), (t.alpha / s.alpha) * (s.sigma / t.sigma) ** 2


def small(t: Level, s: Level) -> Scalar:
    """The posterior's variance β̃ = τ σ_s² (Ho et al. 2020, Eq. 7): optimal if x_0 is one point."""
    return tau(t, s) * s.sigma**2


def large(t: Level, s: Level) -> Scalar:
    """The forward step's variance β = τ σ_t² (Ho et al. 2020, Eq. 2): optimal if x_0 ~ N(0, I)."""
    return tau(t, s) * t.sigma**2
