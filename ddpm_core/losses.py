"""Training losses: one squared error, in any coordinates, under any weight.

For a target y with determinant D at a level (see `parameterisations`), |Δx_0| = (σ / |D|) |Δy|. So
a weight on the squared error of x_0 states every loss of the field, whatever the network predicts.
The error itself is taken in the network's own output, where it is finite and does not cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import (
    astype,
    check_pair,
    fit,
    is_number,
    minimum,
    on_host,
    same_shape,
    stop_gradient,
    widen,
)
from ddpm_core.denoisers import Denoiser, Predictor
from ddpm_core.gaussians import (
    Gaussian,
    discretised_log_prob,
    kl,
    log_prob,
    mean_of_sample,
)
from ddpm_core.kernels import Reverse, decoder_variance, in_range, where_clean
from ddpm_core.levels import Level, tau
from ddpm_core.parameterisations import (
    Parameterisation,
    check_readable,
    determinant,
    target,
    to_x0,
    x0,
)
from ddpm_core.process import Variance, q_posterior, q_sample, small
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.typing import Array, Scalar

#: The weight of the squared error of x_0 at a level.
Weight: TypeAlias = Callable[[Level], Scalar]


def native(predicts: Parameterisation) -> Weight:
    """The plain squared error of a target: D² / σ² on x_0.

    >>> from ddpm_core import linear, v
    >>> t = linear()(500)
    >>> round(native(v)(t) / (1 + simple(t)), 12)  # v-loss = (1 + SNR) x_0-loss
    1.0
    """
    return lambda t: (determinant(predicts, t) / t.sigma) ** 2


def simple(t: Level) -> Scalar:
    """L_simple, the squared error of eps (Ho et al. 2020, Eq. 14): SNR on x_0."""
    return (t.alpha / t.sigma) ** 2


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, γ) on x_0 (Hang et al. 2023), whatever the network predicts. Finite at SNR = 0."""
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, but is {gamma}")
    return lambda t: minimum(simple(t), gamma)


def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
    """L_simple divided by (k + SNR)^γ (Choi et al. 2022, Eq. 8): SNR / (k + SNR)^γ on x_0."""
    if gamma < 0 or k <= 0:
        raise ValueError(f"gamma >= 0 and k > 0 must hold, but they are {gamma} and {k}")
    return lambda t: simple(t) / (k + simple(t)) ** gamma


def vlb(
    schedule: Schedule, variance: Variance = small, decoder_var: Scalar | None = None
) -> Weight:
    """The bound's own weight (Ho et al. 2020, Eq. 12): (α_s τ)² / (2 variance) on x_0, s = t - 1.

    With `small` it is (SNR_s - SNR_t) / 2 (Kingma et al. 2021, Eq. 13).

    schedule: discrete
    decoder_var: the variance of L_0, at time 1; by default Ho et al.'s, `decoder_variance`

    The loss is then L_{t-1} in nats per coordinate, but for what does not depend on the network. T
    times its mean over uniform t is what of the bound, per coordinate, depends on the network.
    """
    if not isinstance(schedule, Discrete):
        raise TypeError(
            f"vlb needs a schedule of integer times, such as linear(), but got a "
            f"{type(schedule).__name__}"
        )
    last = decoder_variance(schedule) if decoder_var is None else decoder_var

    def weight(t: Level) -> Scalar:
        s = schedule(t.time - 1)
        return 0.5 * (s.alpha * tau(t, s)) ** 2 / where_clean(s, last, variance(t, s))

    return weight


def loss(
    predict: Predictor | Denoiser,
    x_0: Array,
    eps: Array,
    t: Level,
    weight: Weight = simple,
    **cond: Any,
) -> Array:
    """weight(t) (x_0 - x̂_0)² at x_t = α x_0 + σ eps, the mean over coordinates: (B,).

    x_0, eps: (B, *D), eps standard normal
    t: a level of shape () or (B,), as from `draw`
    weight: `simple`, `native(target)`, `min_snr()`, `p2()`, or any function of a level
    cond: passed to the network

    The error of a `Predictor` is taken in its network's own output ŷ, as weight (σ / D)² (y - ŷ)²
    with D the target's determinant; for `simple` and eps that is the plain squared error of eps.
    """
    check_pair(x_0=x_0, eps=eps)
    x_t = q_sample(x_0, eps, t)
    if isinstance(predict, Predictor):
        y, _ = predict.output(x_t, t, **cond)
        return _loss_of(y, predict.predicts, x_0, eps, t, weight)
    y = predict(x_t, t, **cond)
    same_shape(x_t=x_t, y=y)
    return _loss_of(y, x0, x_0, eps, t, weight)


def _loss_of(
    y: Array, predicts: Parameterisation, x_0: Array, eps: Array, t: Level, weight: Weight
) -> Array:
    """The loss of a prediction y: (B,)."""
    check_readable(predicts, t)
    xp = array_namespace(x_0)
    scale = weight(t) * (t.sigma / determinant(predicts, t)) ** 2
    error = target(widen(xp, x_0), widen(xp, eps), t, predicts) - widen(xp, y)
    squared = mean_of_sample(error**2)
    return astype(xp, fit(scale, squared) * squared, x_0.dtype)


def bound(
    kernel: Reverse,
    x_0: Array,
    eps: Array,
    t: Level,
    s: Level,
    *,
    bins: int | None = 256,
    decoder_var: Scalar | None = None,
    **cond: Any,
) -> Array:
    """One term of the variational bound, in nats, per sample: (B,) (Ho et al. 2020, Eq. 5).

    L_{t-1} = KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)),   L_0 = -log p(x_0 | x_t) where s is clean data,
    at the draw x_t = α x_0 + σ eps

    x_0, eps: (B, *D), eps standard normal
    t, s: levels of shape () or (B,), s < t
    bins: how many grey values x_0 has; None takes the decoder as a density
    decoder_var: the variance of p(x_0 | x_t); by default the kernel's own. `reverse` has none, for
        it lands on a point there, and needs this
    cond: passed to the kernel

    ValueError if s is a host level of clean data, where the kernel is a point, without decoder_var.
    """
    x_t = q_sample(x_0, eps, t)
    return divergence(kernel(x_t, t, s, **cond), x_0, x_t, t, s, bins, decoder_var)


def divergence(
    p: Gaussian,
    x_0: Array,
    x_t: Array,
    t: Level,
    s: Level,
    bins: int | None,
    decoder_var: Scalar | None,
) -> Array:
    """The term of `bound` for a kernel's p(x_s | x_t) at a given x_t.

    Host levels say where s is clean data; values of device levels are not looked at.
    """
    q = q_posterior(x_0, x_t, t, s)
    decoder = p if decoder_var is None else Gaussian(p.mean, decoder_var)
    if not on_host(s.sigma):
        return _either(q, p, decoder, x_0, s, bins)
    clean = np.asarray(s.sigma) == 0
    if not clean.any():
        return kl(q, p)
    if decoder_var is None and _is_point(p.var, clean):
        raise ValueError(
            "p(x_0 | x_t) is a point, without a density: pass decoder_var, such as "
            "decoder_variance(schedule)"
        )
    return _decode(decoder, x_0, bins) if clean.all() else _either(q, p, decoder, x_0, s, bins)


def _is_point(var: Scalar, clean: Array) -> bool:
    """Whether a kernel's variance is 0 at clean data, as that of `reverse` is."""
    one_each = is_number(var) or (on_host(var) and var.ndim == 1)
    return one_each and bool(np.any(clean & (np.asarray(var) <= 0)))


def _decode(p: Gaussian, x_0: Array, bins: int | None) -> Array:
    """L_0 = -log p(x_0 | x_t): (B,)."""
    return -(log_prob(p, x_0) if bins is None else discretised_log_prob(p, x_0, bins))


def _either(
    q: Gaussian, p: Gaussian, decoder: Gaussian, x_0: Array, s: Level, bins: int | None
) -> Array:
    """L_0 for the samples whose s is clean data and L_{t-1} for the others: (B,).

    Both are computed for all samples. Where s is clean data the variances of L_{t-1} are replaced
    by 1, for a NaN there would spoil the gradient of L_0.
    """
    xp = array_namespace(x_0)
    ones = xp.ones_like(x_0)
    clean = fit(s.sigma, x_0) * ones == 0
    q, p = (Gaussian(g.mean, xp.where(clean, ones, fit(g.var, x_0) * ones)) for g in (q, p))
    one_each = xp.reshape(clean, (x_0.shape[0], -1))[:, 0]
    return xp.where(one_each, _decode(decoder, x_0, bins), kl(q, p))


def hybrid(
    predict: Predictor,
    x_0: Array,
    eps: Array,
    t: Level,
    weight: Weight = simple,
    *,
    lam: float = 1e-3,
    bins: int | None = 256,
    decoder_var: Scalar | None = None,
    **cond: Any,
) -> Array:
    """L_simple + λ L_vlb, the latter for the learned variance alone: (B,) (Nichol & Dhariwal 2021).

    L_vlb = T L_{t-1} in bits per coordinate (Eqs. 4, 16)

    Its mean over uniform t is the bound but for L_T, on which the network has no influence.

    predict: with variance=True and a discrete schedule
    x_0, eps, t, weight, cond: as in `loss`; t at integer times
    lam: λ, 0.001 in the paper
    bins: how many grey values x_0 has; None takes the decoder as a density
    decoder_var: what stands for β̃ at clean data, as in `learned_range`; by default Ho et al.'s,
        `decoder_variance`, which a schedule of one step does not have

    On torch and JAX no gradient of L_vlb reaches the mean, so that λ cannot spoil it.
    """
    schedule = predict.schedule
    if not predict.variance or not isinstance(schedule, Discrete):
        raise ValueError(
            f"hybrid needs a Predictor with variance=True and a discrete schedule, but it has "
            f"variance={predict.variance} and {schedule!r}"
        )
    check_pair(x_0=x_0, eps=eps)
    x_t, s = q_sample(x_0, eps, t), schedule(t.time - 1)
    y, v = predict.output(x_t, t, **cond)
    fixed = to_x0(stop_gradient(y), x_t, t, predict.predicts)
    last = decoder_variance(schedule) if decoder_var is None else decoder_var
    p = in_range(fixed, v, x_t, t, s, last)
    bits = divergence(p, x_0, x_t, t, s, bins, None) / (math.log(2) * math.prod(x_0.shape[1:]))
    return _loss_of(y, predict.predicts, x_0, eps, t, weight) + lam * schedule.T * bits
