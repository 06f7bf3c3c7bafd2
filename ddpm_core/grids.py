"""Grids: which times of a schedule a sampler visits, (schedule, steps) -> steps + 1 times.

The first is the noisiest, the last is the schedule's clean end. Over a discrete schedule they are
integers, found by rounding exact fractions, never by accumulating floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ddpm_core._typing import Array
from ddpm_core.schedules import Discrete, Schedule

Grid: TypeAlias = Callable[[Schedule, int], Array]


def trailing(schedule: Schedule, steps: int) -> Array:
    """Evenly spaced from the noisiest time down to clean data (Lin et al. 2024, section 3.3).

    The default: it starts where the noise does, and its steps are even down to clean data.

    >>> from ddpm_core import linear
    >>> trailing(linear(1000), 4)
    array([1000.,  750.,  500.,  250.,    0.])
    """
    check_steps(steps, schedule)
    clean, noisiest = schedule.ends
    left = np.arange(steps, -1, -1, dtype=np.float64)
    if isinstance(schedule, Discrete):
        return np.rint(noisiest * left / steps)
    return clean + (noisiest - clean) * left / steps


def leading(schedule: Schedule, steps: int) -> Array:
    """Times 1, 1 + k, 1 + 2 k, ... with k = T // steps, then clean data (Song et al. 2021, DDIM).

    Its first time, 1 + (steps - 1) k, is below T unless steps = T: sampling then starts from noise
    that the network never saw at that time. One step starts at time 1.

    >>> from ddpm_core import linear
    >>> leading(linear(1000), 4)
    array([751., 501., 251.,   1.,   0.])
    """
    schedule = _discrete(leading, schedule)
    check_steps(steps, schedule)
    stride = schedule.T // steps
    return np.append(1.0 + stride * np.arange(steps - 1, -1, -1), 0.0)


def linspace(schedule: Schedule, steps: int) -> Array:
    """Evenly spaced from T down to 1, then clean data (Nichol & Dhariwal 2021).

    >>> from ddpm_core import linear
    >>> linspace(linear(1000), 4)
    array([1000.,  667.,  334.,    1.,    0.])
    """
    schedule = _discrete(linspace, schedule)
    check_steps(steps, schedule)
    left = np.arange(steps - 1, -1, -1, dtype=np.float64)
    times = 1 + np.rint((schedule.T - 1) * left / (steps - 1)) if steps > 1 else left + schedule.T
    return np.append(times, 0.0)


def _discrete(grid: Grid, schedule: Schedule) -> Discrete:
    if not isinstance(schedule, Discrete):
        raise TypeError(
            f"{grid.__name__} is for integer times; use trailing with a {type(schedule).__name__}"
        )
    return schedule


def check_steps(steps: int, schedule: Schedule | None = None) -> None:
    """ValueError unless there can be so many steps, on integer times if the schedule has them."""
    if not hasattr(steps, "__index__") or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, but is {steps}")
    if isinstance(schedule, Discrete) and steps > schedule.T:
        raise ValueError(
            f"steps must lie within [1, {schedule.T}], the integer times of the schedule, but is "
            f"{steps}; pass times= for fractional ones"
        )
