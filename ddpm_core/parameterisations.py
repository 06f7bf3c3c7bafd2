"""What a network predicts: a pair (a, b) at a level, meaning the target y = a x_0 + b eps.

Together with x_t = α x_0 + σ eps that is two equations for x_0 and eps, with determinant
D = α b - σ a. Every conversion, and every scale of a loss, is the solution of this 2x2 system:

    x_0 = (b x_t - σ y) / D,   eps = (α y - a x_t) / D

A parameterisation of your own is a function from a level to such a pair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np

from ddpm_core.arrays import check_function, check_pair, combine, is_number, on_host, sqrt
from ddpm_core.levels import Level, check_levels
from ddpm_core.process import posterior_row
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.typing import Array, Scalar

Pair: TypeAlias = tuple[Scalar, Scalar]
Parameterisation: TypeAlias = Callable[[Level], Pair]


def x0(t: Level) -> Pair:
    """The data x_0."""
    return 1.0, 0.0


def eps(t: Level) -> Pair:
    """The noise eps (Ho et al. 2020, section 3.2). Where α = 0 it says nothing of x_0."""
    return 0.0, 1.0


def v(t: Level) -> Pair:
    """The velocity v = α eps - σ x_0 (Salimans & Ho 2022, appendix D)."""
    return -t.sigma, t.alpha


def score(t: Level) -> Pair:
    """The score ∇ log q(x_t | x_0) = -eps / σ (Song et al. 2021)."""
    return 0.0, -1.0 / t.sigma


def flow(t: Level) -> Pair:
    """The velocity eps - x_0 of a straight path (Liu et al. 2023; Lipman et al. 2023).

    A network trained on one is shown the path's own x and time by `denoisers.straight`.
    """
    return -1.0, 1.0


def edm(sigma_data: float = 0.5) -> Parameterisation:
    """The raw output F of EDM's network (Karras et al. 2022, Eq. 7).

    x_0 = c_skip x + c_out F at x = x_t / α = x_0 + k eps,
    c_skip = d² / (k² + d²),   c_out = k d / sqrt(k² + d²),   d = sigma_data, k = σ / α

    so that F = ((σ / d) x_0 - d α eps) / sqrt(σ² + d² α²), which is -v where d = 1. The network is
    shown its own x and label by `denoisers.preconditioned`.
    """
    if not 0 < sigma_data < np.inf:
        raise ValueError(f"sigma_data must be positive and finite, but is {sigma_data}")
    return partial(_edm, sigma_data)


def _edm(d: float, t: Level) -> Pair:
    norm = sqrt(t.sigma**2 + (d * t.alpha) ** 2)
    return t.sigma / (d * norm), -d * t.alpha / norm


def mu(schedule: Schedule) -> Parameterisation:
    """The posterior mean μ̃(x_t, x_0) at the time t - 1 (Ho et al. 2020, Eq. 7).

    schedule: discrete; s = schedule(t.time - 1), for times of at least 1

    Since α_s τ + (α_t / α_s) (σ_s / σ_t)² α_t = α_s, its pair is (α_s, (α_t / α_s) σ_s² / σ_t).
    """
    if not isinstance(schedule, Discrete):
        raise TypeError(f"mu needs a Discrete schedule, but a {type(schedule).__name__} was passed")
    return partial(_mu, schedule)  # which pickles, where a function made here would not


def _mu(schedule: Discrete, t: Level) -> Pair:
    s = schedule(t.time - 1)
    return s.alpha, posterior_row(t, s)[1] * t.sigma


def determinant(predicts: Parameterisation, t: Level) -> Scalar:
    """D = α b - σ a; where it is 0, the target is a multiple of x_t and adds nothing to it."""
    a, b = predicts(t)
    return t.alpha * b - t.sigma * a


def check_readable(predicts: Parameterisation, t: Level) -> None:
    """ValueError if, at a host level, a prediction of this target does not determine x_0."""
    check_levels(t=t)
    check_function("eps", predicts=predicts)
    d = determinant(predicts, t)
    # Not np.any of a number, which torch.compile does not trace.
    if d == 0 if is_number(d) else on_host(d) and np.any(d == 0):
        name = getattr(predicts, "__name__", repr(predicts))
        raise ValueError(
            f"a prediction of {name} says nothing of x_0 where alpha = {np.min(t.alpha):g}, "
            f"sigma = {np.max(t.sigma):g}; predict v or x0 for alpha = 0, and call no network at "
            f"sigma = 0"
        )


def target(x_0: Array, eps: Array, t: Level, predicts: Parameterisation) -> Array:
    """What the network should return: a x_0 + b eps.

    x_0, eps: (B, *D)
    t: a level of shape () or (B,)
    """
    check_pair(x_0=x_0, eps=eps)
    check_levels(t=t)
    check_function("eps", predicts=predicts)
    a, b = predicts(t)
    return combine((a, x_0), (b, eps))


def to_x0(y: Array, x_t: Array, t: Level, predicts: Parameterisation) -> Array:
    """The x_0 that a prediction y implies: (b x_t - σ y) / D.

    y, x_t: (B, *D)
    t: a level of shape () or (B,)

    From eps, an error of y grows by σ / α: 157 times at time 1000 of `linear`.
    """
    return convert(y, x_t, t, predicts, x0)


def to_eps(y: Array, x_t: Array, t: Level, predicts: Parameterisation) -> Array:
    """The eps that a prediction y implies: (α y - a x_t) / D.

    y, x_t: (B, *D)
    t: a level of shape () or (B,)

    From x_0, an error of y grows by α / σ: 100 times at time 1 of `linear`.
    """
    return convert(y, x_t, t, predicts, eps)


def convert(
    y: Array, x_t: Array, t: Level, predicts: Parameterisation, wanted: Parameterisation
) -> Array:
    """A prediction of one target, converted to another: c x_0 + d eps from a x_0 + b eps.

    y, x_t: (B, *D)
    t: a level of shape () or (B,)
    """
    check_pair(x_t=x_t, y=y)
    on_x_t, on_y = reading(predicts, wanted, t)
    return combine((on_y, y), (on_x_t, x_t))


def reading(predicts: Parameterisation, wanted: Parameterisation, t: Level) -> Pair:
    """The coefficients of (x_t, y) that give `wanted`, (c, d), from a prediction y of (a, b).

    ((c b - d a) / D, (d α - c σ) / D)

    ValueError where D = 0, for host levels.
    """
    check_readable(predicts, t)
    (a, b), (c, d) = predicts(t), wanted(t)
    det = determinant(predicts, t)
    return (c * b - d * a) / det, (d * t.alpha - c * t.sigma) / det


#: The parameterisations, by the names that checkpoints store.
NAMED: dict[str, Parameterisation] = {f.__name__: f for f in (x0, eps, v, score, flow)}

#: The names that `named` knows: those, and "mu".
TARGETS = (*NAMED, mu.__name__)


def named(name: str, schedule: Schedule) -> Parameterisation:
    """The parameterisation of a name in `TARGETS`; of mu, the one of a schedule."""
    return mu(schedule) if name == mu.__name__ else NAMED[name]
