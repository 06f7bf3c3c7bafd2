"""Adams-Bashforth methods on the probability flow in x / α over k = σ / α, where its slope is eps.

x_s / α_s = x_t / α_t + (k_s - k_t) Σ_j w_j eps_j

All read eps, are DDIM at order 1, and refuse to start at alpha = 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_core.grids import Grid, trailing
from ddpm_core.levels import Level, steps_of
from ddpm_core.samplers.multistep import (
    integral_dk,
    lags,
    quadrature,
    ratio,
    reads_eps,
    weighted,
)
from ddpm_core.samplers.tables import Sampler, levels_of, table, terms
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.typing import Array


def lms(
    schedule: Schedule, steps: int, order: int = 4, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """Linear multistep: Adams-Bashforth for the grid's own, uneven steps in k.

    order: 1 to 4, the number of readings

    Started by its lower orders (Hairer et al. 1993, section III.5; ρAB of Zhang & Chen 2023).
    """
    levels = levels_of(schedule, steps, grid, times)
    read, k = reads_eps("lms", levels), ratio(levels)
    powers = np.arange(_order(order)) + 1
    moments = np.diff(k)[:, None] ** powers / powers
    return _table("lms", levels, read, quadrature(lags(k, order), moments))


def ipndm(
    schedule: Schedule, steps: int, order: int = 4, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """iPNDM: Adams-Bashforth for equal steps, whatever the grid (Zhang & Chen 2023, appendix).

    eps, (3 eps - eps') / 2, (23 eps - 16 eps' + 5 eps'') / 12, ...,   eps', eps'' the earlier ones

    order: 1 to 4, the number of readings

    Started by its lower orders. On a grid that is not even in k it is of order 2 at most.
    """
    levels = levels_of(schedule, steps, grid, times)
    read = reads_eps("ipndm", levels)
    return _table("ipndm", levels, read, np.diff(ratio(levels))[:, None] * _even(steps, order))


def plms(
    schedule: Schedule, steps: int, order: int = 4, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """PLMS: the coefficients of `ipndm`, started by Heun's method (Liu et al. 2022, PNDM).

    The first step takes the mean of two eps: that of x_T, and that of the point which a DDIM step
    from x_T reaches. So there are steps + 1 calls in all. A single step is DDIM, with one call.

    order: as in `ipndm`
    """
    levels = levels_of(schedule, steps, grid, times)
    if steps == 1:
        return _table("plms", levels, reads_eps("plms", levels), np.diff(ratio(levels))[:, None])
    # The first step has two rows, the others one each: they look at times 0, 1, 1, 2, 3, ...
    at, step = np.arange(steps), np.arange(steps)
    at, step = np.insert(at, 1, 1), np.insert(step, 0, 0)
    rows = Level(*(np.append(field[at], field[-1]) for field in levels))
    read = reads_eps("plms", rows)
    even = _even(steps, order)
    # The reading at the trial point comes into the second row only; later ones pass over it.
    weights = np.zeros((steps + 1, order + 1))
    weights[0, 0], weights[1, :2] = 1.0, 0.5
    for i in range(2, steps + 1):
        past = [j for j in range(i + 1) if j != i - 1][:order]
        weights[i, past] = even[i - 1, : len(past)]
    t, s = (part.take(step) for part in steps_of(levels))
    x, anchor, *m, _ = terms(order + 1)
    again = np.arange(steps + 1) == 1
    start = anchor * again + x * ~again  # both rows of the first step start at x_T
    point = s.alpha * (start / t.alpha + (ratio(s) - ratio(t)) * weighted(weights, m))
    return table("plms", rows, point, anchor=start, read=read)


def deis_2(schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None) -> Sampler:
    """DEIS of order 2: tAB1, the line through two eps (Zhang & Chen 2023).

    The polynomial is in the schedule's time, its weight is dk / dt, and the integral is exact to
    rounding, also over the kinks of a discrete schedule. Started by DDIM.
    """
    return _deis(2, schedule, levels_of(schedule, steps, grid, times))


def deis_3(schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None) -> Sampler:
    """DEIS of order 3: tAB2, the parabola through three eps. See `deis_2`."""
    return _deis(3, schedule, levels_of(schedule, steps, grid, times))


def _deis(order: int, schedule: Schedule, levels: Level) -> Sampler:
    name = f"deis_{order}"
    read, k = reads_eps(name, levels), ratio(levels)

    def power(m: int) -> Array:
        """∫ (time - t)^m dk."""

        def f(logsnr: Array, step: Array) -> Array:
            time = schedule.at(np.maximum(logsnr, levels.logsnr[0])).time
            return (time - levels.time[step]) ** m

        # Between its integer times a discrete schedule is smooth.
        kinks = schedule.logsnr if isinstance(schedule, Discrete) else ()
        return integral_dk(levels, f, kinks)

    moments = np.stack([np.diff(k), *(power(m) for m in range(1, order))], axis=1)
    return _table(name, levels, read, quadrature(lags(levels.time, order), moments))


def _even(steps: int, order: int) -> Array:
    """Adams-Bashforth on equal steps, as shares of the step: (steps, order)."""
    moments = np.broadcast_to(1 / (np.arange(_order(order)) + 1), (steps, order))
    return quadrature(lags(np.arange(steps + 1.0), order), moments)


def _table(name: str, levels: Level, read: tuple[Array, Array], weights: Array) -> Sampler:
    t, s = steps_of(levels)
    x, _, *eps, _ = terms(weights.shape[1])
    return table(name, levels, s.alpha * (x / t.alpha + weighted(weights, eps)), read=read)


def _order(order: int) -> int:
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4, but is {order}")
    return order
