"""Training losses: one squared error, in any coordinates, under any weight.

For a target with determinant D at a level (see `parameterisations`), errors are related by
|Δx_0| = (σ / |D|) |Δy|. So one weight, on x_0, says every loss of the field, whatever the network
predicts; it is applied to the network's own output, where it is finite and does not cancel.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_jax_array, is_numpy_array, is_torch_array

from ddpm_core.arrays import astype, check_pair, fit, minimum, same_shape, widen
from ddpm_core.denoisers import Denoiser, Predictor
from ddpm_core.gaussians import (
    Gaussian,
    discretised_log_prob,
    kl,
    log_prob,
    mean_of_sample,
)
from ddpm_core.kernels import Reverse, decoder_variance, learned_range, where_clean
from ddpm_core.levels import Level, tau
from ddpm_core.parameterisations import (
    Parameterisation,
    check_readable,
    determinant,
    target,
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

    Under it the loss is L_{t-1} in nats per coordinate, less what does not depend on the network;
    T times its mean over uniform t is that part of the bound.
    """
    if not isinstance(schedule, Discrete):
        raise TypeError(f"vlb is for integer times, which a {type(schedule).__name__} has not")
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

    For a `Predictor` it is taken in the network's own output y, as weight (σ / D)² (y - ŷ)² with
    the target's determinant D; for `simple` and eps, that is the plain squared error of eps.
    """
    xp = check_pair(x_0=x_0, eps=eps)
    x_t = q_sample(x_0, eps, t)
    if isinstance(predict, Predictor):
        predicts, y = predict.predicts, predict.output(x_t, t, **cond)[0]
    else:
        predicts, y = x0, predict(x_t, t, **cond)
        same_shape(x_t=x_t, y=y)
    check_readable(predicts, t)
    scale = weight(t) * (t.sigma / determinant(predicts, t)) ** 2
    wanted = target(widen(xp, x_0), widen(xp, eps), t, predicts)
    error = wanted - widen(xp, y)
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
    decoder_var: the variance of p(x_0 | x_t); by default the kernel's own. `reverse` has none (it
        lands on a point there), and needs this

    cond: passed to the kernel
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
    """The term of `bound` for a kernel's p(x_s | x_t) at a given x_t."""
    q = q_posterior(x_0, x_t, t, s)
    on_host = isinstance(s.sigma, (int, float)) or is_numpy_array(s.sigma)
    if on_host and np.all(np.asarray(s.sigma) > 0):
        return kl(q, p)
    # A variance of the levels alone, as `reverse` has, is no decoder's.
    fixed = isinstance(p.var, (int, float)) or (is_numpy_array(p.var) and p.var.ndim < x_0.ndim)
    if on_host and fixed and decoder_var is None and not _decodes(p.var, s):
        raise ValueError(
            "p(x_0 | x_t) is a point, without a density: pass decoder_var, such as "
            "decoder_variance(schedule)"
        )
    if on_host and np.ndim(s.sigma) == 0:
        return _decode(p if decoder_var is None else Gaussian(p.mean, decoder_var), x_0, bins)
    # Some samples at clean data, some not: both, the one not chosen kept finite.
    xp = array_namespace(x_0)
    ones = xp.ones_like(x_0)
    clean = fit(s.sigma, x_0) * ones == 0
    var = fit(p.var, x_0) * ones
    if decoder_var is not None:
        var = xp.where(clean, fit(decoder_var, x_0) * ones, var)
    q = Gaussian(q.mean, xp.where(clean, ones, fit(q.var, x_0) * ones))
    p = Gaussian(p.mean, var)
    first = xp.reshape(clean, (x_0.shape[0], -1))[:, 0]
    return xp.where(first, _decode(p, x_0, bins), kl(q, p))


def _decodes(var: Scalar, s: Level) -> bool:
    """Whether a variance of the host, of one level, is one that a density can have."""
    return np.ndim(s.sigma) == 0 and bool(np.all(np.asarray(var) > 0))


def _decode(p: Gaussian, x_0: Array, bins: int | None) -> Array:
    return -(log_prob(p, x_0) if bins is None else discretised_log_prob(p, x_0, bins))


def hybrid(
    predict: Predictor,
    x_0: Array,
    eps: Array,
    t: Level,
    weight: Weight = simple,
    *,
    lam: float = 1e-3,
    bins: int | None = 256,
    **cond: Any,
) -> Array:
    """L_simple + λ L_vlb, the latter for the learned variance alone: (B,) (Nichol & Dhariwal 2021).

    L_vlb = T L_{t-1} in bits per coordinate, unbiased for the bound under uniform t (Eqs. 4, 16)

    predict: with variance=True, of a discrete schedule
    x_0, eps, t, weight, cond: as of `loss`; t of integer times
    lam: λ, 0.001 in the paper
    bins: grey values of x_0, or None

    The gradient of L_vlb stops at the mean, on torch and JAX, so that λ cannot spoil it.
    """
    schedule = predict.schedule
    if not predict.variance or not isinstance(schedule, Discrete):
        raise ValueError("hybrid needs a Predictor with variance=True and a discrete schedule")
    xp = check_pair(x_0=x_0, eps=eps)
    x_t = q_sample(x_0, eps, t)
    raw = predict.net(x_t, predict.timestep(x_t, t), **cond)  # once, for both parts
    said = replace(predict, net=_constant(raw))
    y, v = said.output(x_t, t)
    stopped = replace(predict, net=_constant(xp.concat([stop_gradient(y), v], axis=1)))
    kernel = learned_range(stopped, decoder_variance(schedule))
    nats = bound(kernel, x_0, eps, t, schedule(t.time - 1), bins=bins)
    bits = nats / (math.log(2) * math.prod(x_0.shape[1:]))
    return loss(said, x_0, eps, t, weight) + lam * schedule.T * bits


def _constant(raw: Array) -> Callable[..., Array]:
    return lambda *_: raw


def stop_gradient(x: Array) -> Array:
    """x as a constant, where its library has gradients."""
    if is_torch_array(x):
        return x.detach()
    if is_jax_array(x):
        return sys.modules["jax"].lax.stop_gradient(x)
    return x
