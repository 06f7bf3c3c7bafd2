"""Training losses: one squared error, in any coordinates, under any weight.

For a target with determinant D at a level (see `parameterisations`), errors are related by
|Δx_0| = (σ / |D|) |Δy|. So one weight, on x_0, says every loss of the field, whatever the network
predicts; it is applied to the network's own output, where it is finite and does not cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ddpm_core._typing import Array, Scalar
from ddpm_core.denoisers import Denoiser, Predictor
from ddpm_core.gaussians import mean_of_sample
from ddpm_core.levels import Level, astype, check_pair, fit, minimum, same_shape, widen
from ddpm_core.parameterisations import Parameterisation, check_readable, determinant, target, x0
from ddpm_core.process import q_sample

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
