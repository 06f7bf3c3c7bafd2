"""BDIA (Zhang et al. 2023): DDIM with steps that can be taken back, whatever the network says."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_core.denoisers import Denoiser
from ddpm_core.grids import Grid, trailing
from ddpm_core.levels import Level, steps_of
from ddpm_core.samplers.tables import (
    Row,
    Sampler,
    State,
    advance,
    levels_of,
    rising_levels_of,
    table,
    terms,
)
from ddpm_core.schedules import Schedule
from ddpm_core.typing import Array


def bdia(
    schedule: Schedule,
    steps: int,
    gamma: float = 1.0,
    *,
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """BDIA-DDIM: DDIM, corrected by where its step back would come to (Zhang et al. 2023).

    x_s = DDIM(x_t, t -> s) + γ (x_r - DDIM(x_t, t -> r)),   r the point before t

    Both steps take the eps that is read at x_t, so that x_r is known from x_t and x_s too.

    gamma: γ in (0, 1]. The error is (1 - γ) / (1 + γ) of DDIM's, and of order 2 at γ = 1

    The first step is DDIM.
    """
    return _bdia("bdia", levels_of(schedule, steps, grid, times), _checked(gamma))


def bdia_inversion(
    schedule: Schedule,
    steps: int,
    gamma: float = 1.0,
    *,
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """BDIA-DDIM from data to noise: the steps of `bdia`, solved for the point before.

    x_r = DDIM(x_t, t -> r) + (x_s - DDIM(x_t, t -> s)) / γ

    gamma: as in `bdia`. Below 1 each step multiplies by 1 / γ what sets its first, a DDIM step,
        apart from the flow, so that many steps end far from it
    times: as in `ddim_inversion`

    For `encode` and `decode`.
    """
    levels = rising_levels_of("bdia_inversion", schedule, steps, grid, times)
    return _bdia("bdia_inversion", levels, 1 / _checked(gamma))


def encode(denoise: Denoiser, sampler: Sampler, x: Array, **cond: Any) -> State:
    """The state in which a sampler such as `bdia_inversion` ends, from which `decode` returns x.

    x: (B, *D), data, taken as a draw at the first of its levels
    cond: passed to the denoiser, such as y

    Its point is x at the noisiest level, its anchor the point before.
    """
    state = sampler.start(x)
    for row in sampler.rows():
        state = advance(row, state, denoise(state.point, row.level, **cond))
    return state


def decode(denoise: Denoiser, sampler: Sampler, state: State, **cond: Any) -> Array:
    """The x (B, *D) that `encode` took to a state: its rows, solved for their anchors, backwards.

    sampler: the one that encoded
    cond: passed to the denoiser; others than encoded make another picture

    With the same denoiser x comes back to rounding, however wrong the steps are. Row 0 is not taken
    back: where it came to is known, and so is x once row 1 is taken back.

    ValueError if a row forgets its anchor, as the one into clean data does.
    """
    state = State(state.anchor, state.point, ())
    for row in reversed(sampler.rows()[1:]):
        on_x, on_anchor, on_x_0, *_ = row.point
        if len(row.point) > 4 or on_anchor == 0:
            raise ValueError(
                f"{sampler.name} at time {row.level.time:g} cannot be taken back: use "
                f"bdia_inversion, or bdia with times that end at a level with noise"
            )
        back = (-on_x / on_anchor, 1 / on_anchor, -on_x_0 / on_anchor, 0.0)
        y = denoise(state.point, row.level, **cond)
        state = advance(Row(row.level, row.read, back, row.anchor), state, y)
    return state.point


def _bdia(name: str, levels: Level, gamma: float) -> Sampler:
    t, s = steps_of(levels)
    steps = np.arange(len(t.sigma))
    before = levels.take(np.maximum(steps - 1, 0))
    x_t, anchor, x_0, _ = terms()
    eps = (x_t - t.alpha * x_0) / t.sigma
    missed = anchor - (before.alpha * x_0 + before.sigma * eps)
    x_s = s.alpha * x_0 + s.sigma * eps + gamma * (steps > 0) * missed
    return table(name, levels, x_s, anchor=x_t)


def _checked(gamma: float) -> float:
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must lie within (0, 1], but is {gamma}")
    return gamma
