"""What a network predicts: a row (a, b) at a level, meaning the target a x_0 + b eps.

With x_t = α x_0 + σ eps, a target y is two equations for x_0 and eps. Every conversion and every
loss scale of the field is this one 2x2 system, with determinant D = α b - σ a:

    x_0 = (b x_t - σ y) / D,   eps = (α y - a x_t) / D

A parameterisation of your own is a function from a level to such a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ddpm_core.arrays import check_pair, combine
from ddpm_core.levels import Level
from ddpm_core.process import posterior_row
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.typing import Array, Scalar

Pair: TypeAlias = tuple[Scalar, Scalar]
Parameterisation: TypeAlias = Callable[[Level], Pair]


def x0(t: Level) -> Pair:
    """The data x_0."""
    return 1.0, 0.0


def eps(t: Level) -> Pair:
    """The noise eps (Ho et al. 2020, section 3.2). It says nothing of x_0 where α = 0."""
    return 0.0, 1.0


def v(t: Level) -> Pair:
    """The velocity v = α eps - σ x_0 (Salimans & Ho 2022, appendix D)."""
    return -t.sigma, t.alpha


def score(t: Level) -> Pair:
    """The score ∇ log q(x_t | x_0) = -eps / σ (Song et al. 2021)."""
    return 0.0, -1.0 / t.sigma


def flow(t: Level) -> Pair:
    """The velocity eps - x_0 of a straight path (Liu et al. 2023; Lipman et al. 2023).

    The levels here have α² + σ² = 1, and a straight path (1 - t) x_0 + t eps has not: a network
    trained on one expects x_t / (α + σ), at t = σ / (α + σ).
    """
    return -1.0, 1.0


def mu(schedule: Schedule) -> Parameterisation:
    """The posterior mean μ̃ one time unit earlier, x_0's and x_t's of Ho et al. 2020, Eq. 7.

    schedule: discrete; s = schedule(t.time - 1), for times of at least 1

    With α_s τ + (α_t / α_s) (σ_s / σ_t)² α_t = α_s its row is (α_s, (α_t / α_s) σ_s² / σ_t).
    """
    if not isinstance(schedule, Discrete):
        raise TypeError(f"mu is for integer times, which a {type(schedule).__name__} has not")

    def row(t: Level) -> Pair:
        s = schedule(t.time - 1)
        return s.alpha, posterior_row(t, s)[1] * t.sigma

    return row


def determinant(predicts: Parameterisation, t: Level) -> Scalar:
    """D = α b - σ a; where it is 0, the target says nothing that x_t does not say."""
    a, b = predicts(t)
    return t.alpha * b - t.sigma * a


def check_readable(predicts: Parameterisation, t: Level) -> None:
    """ValueError if, at a level of the host, a prediction of this target says nothing of x_0."""
    d = determinant(predicts, t)
    # Not np.any of a number, which torch.compile does not trace.
    if d == 0.0 if isinstance(d, float) else isinstance(d, np.ndarray) and np.any(d == 0):
        name = getattr(predicts, "__name__", repr(predicts))
        raise ValueError(
            f"a prediction of {name} says nothing of x_0 where alpha = {np.min(t.alpha):g}, "
            f"sigma = {np.max(t.sigma):g}; predict v or x0 for alpha = 0, read nothing at sigma = 0"
        )


def target(x_0: Array, eps: Array, t: Level, predicts: Parameterisation) -> Array:
    """What the network should say: a x_0 + b eps.

    x_0, eps: (B, *D)
    t: a level of shape () or (B,)
    """
    check_pair(x_0=x_0, eps=eps)
    a, b = predicts(t)
    return combine((a, x_0), (b, eps))


def to_x0(y: Array, x_t: Array, t: Level, predicts: Parameterisation) -> Array:
    """The x_0 that a prediction means: (b x_t - σ y) / D.

    y, x_t: (B, *D)
    t: a level of shape () or (B,)

    From eps, an error of y grows by σ / α: up to 157 times at the end of `linear`.
    """
    return convert(y, x_t, t, predicts, x0)


def to_eps(y: Array, x_t: Array, t: Level, predicts: Parameterisation) -> Array:
    """The eps that a prediction means: (α y - a x_t) / D.

    y, x_t: (B, *D)
    t: a level of shape () or (B,)

    From x_0, an error of y grows by α / σ: up to 100 times at the start of `linear`.
    """
    return convert(y, x_t, t, predicts, eps)


def convert(
    y: Array, x_t: Array, t: Level, predicts: Parameterisation, wanted: Parameterisation
) -> Array:
    """A prediction of one target, said as another: c x_0 + d eps from a x_0 + b eps.

    y, x_t: (B, *D)
    t: a level of shape () or (B,)
    """
    check_pair(x_t=x_t, y=y)
    on_x_t, on_y = reading(predicts, wanted, t)
    return combine((on_y, y), (on_x_t, x_t))


def reading(predicts: Parameterisation, wanted: Parameterisation, t: Level) -> Pair:
    """The coefficients over (x_t, y) that read `wanted` from a prediction y of `predicts`.

    With rows (a, b) and (c, d):  ((c b - d a) / D, (d α - c σ) / D)

    ValueError, at levels of the host, where D = 0.
    """
    check_readable(predicts, t)
    (a, b), (c, d) = predicts(t), wanted(t)
    det = determinant(predicts, t)
    return (c * b - d * a) / det, (d * t.alpha - c * t.sigma) / det


#: By the name that a checkpoint stores.
NAMED: dict[str, Parameterisation] = {f.__name__: f for f in (x0, eps, v, score, flow)}
