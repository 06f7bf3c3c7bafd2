"""Grids: which times of a schedule a sampler visits, (schedule, steps) -> steps + 1 times.

The times fall to the schedule's clean end, from its noisiest time or, in `leading`, from below it.
For a discrete schedule `trailing`, `leading` and `linspace` give integers, each rounded from its
own exact fraction; `quad`, `karras` and `log_snr` give fractional times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ddpm_core.arrays import is_number, shown
from ddpm_core.levels import Level
from ddpm_core.schedules import EDM, Discrete, Schedule
from ddpm_core.typing import Array

Grid: TypeAlias = Callable[[Schedule, int], Array]


def trailing(schedule: Schedule, steps: int) -> Array:
    """Evenly spaced from the noisiest time down to clean data (Lin et al. 2024, section 3.3).

    The default: it starts at the noisiest time, and all its steps are equal.

    >>> from ddpm_core import linear
    >>> trailing(linear(1000), 4)
    array([1000.,  750.,  500.,  250.,    0.])
    """
    check_steps(steps, schedule)
    clean, noisiest = schedule.ends
    left = np.arange(steps, -1, -1, dtype=np.float64)
    if isinstance(schedule, Discrete):
        return np.rint(noisiest * left / steps)
    return clean + (noisiest - clean) * (left / steps)


def leading(schedule: Schedule, steps: int) -> Array:
    """Times 1, 1 + k, 1 + 2 k, ... with k = T // steps, then clean data (Song et al. 2021, DDIM).

    The first time, 1 + (steps - 1) k, is below T unless steps = T. Sampling then starts from pure
    noise at a time where the network was trained on data with noise. One step starts at time 1.

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


def quad(schedule: Schedule, steps: int) -> Array:
    """Times that grow as the square of their number (Song et al. 2021, DDIM, Appendix D.2).

    They run from the noisiest time to the last noisy one; then comes clean data. The last noisy
    time is 1 for a discrete schedule, sigma_min for `EDM`, and for another continuous one 1e-3 of
    the way from clean data, where published samplers stop. Where the clean end itself has noise,
    the grid ends there. `karras` and `log_snr` do the same.

    >>> from ddpm_core import linear
    >>> quad(linear(1000), 4)
    array([1000.,  445.,  112.,    1.,    0.])
    """

    def times(first: Level, last: Level, share: Array) -> Array:
        return last.time + (first.time - last.time) * (1 - share) ** 2

    return _noisy(schedule, steps, times)


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> Array:
    """Evenly spaced in k^(1 / rho), k = σ / α (Karras et al. 2022, Eq. 5), then clean data.

    ValueError if alpha = 0 at the noisiest time, where k is infinite.
    """
    if not rho > 0:
        raise ValueError(f"rho must be above 0, but is {rho}")
    _has_data(karras, schedule)

    def times(first: Level, last: Level, share: Array) -> Array:
        a, b = (np.exp(-t.logsnr / (2 * rho)) for t in (first, last))  # k = exp(-log-SNR / 2)
        logsnr = -2 * rho * np.log(a + (b - a) * share)
        return schedule.at(np.clip(logsnr, first.logsnr, last.logsnr)).time  # not past an end

    return _noisy(schedule, steps, times)


def log_snr(schedule: Schedule, steps: int) -> Array:
    """Evenly spaced in log-SNR (Lu et al. 2022, DPM-Solver), then clean data.

    ValueError if alpha = 0 at the noisiest time, where log-SNR is -inf.
    """
    _has_data(log_snr, schedule)

    def times(first: Level, last: Level, share: Array) -> Array:
        return schedule.at(first.logsnr + (last.logsnr - first.logsnr) * share).time

    return _noisy(schedule, steps, times)


def _noisy(schedule: Schedule, steps: int, times: Callable[[Level, Level, Array], Array]) -> Array:
    """A grid from its noisy times: times(first level, last level, shares from 0 to 1)."""
    check_steps(steps)
    clean, noisiest = schedule.ends
    ends_clean = float(schedule(clean).sigma) == 0
    last = clean
    if isinstance(schedule, EDM):
        last = schedule.sigma_min
    elif ends_clean:
        last = 1.0 if isinstance(schedule, Discrete) else clean + 1e-3 * (noisiest - clean)
    first = schedule(noisiest)
    share = np.linspace(0, 1, steps if ends_clean else steps + 1)
    inner = np.array(times(first, schedule(last), share))
    inner[-1], inner[0] = last, noisiest  # exact ends; a single time is the noisiest
    grid = np.append(inner, clean) if ends_clean else inner
    if not np.all(np.diff(grid) < 0):
        raise ValueError(
            f"{steps} steps are too many: the schedule's times do not fall strictly between "
            f"{noisiest:g} and {last:g}"
        )
    return grid


def _has_data(grid: Grid, schedule: Schedule) -> None:
    if not np.isfinite(schedule(schedule.ends[1]).logsnr):
        raise ValueError(
            f"{grid.__name__} needs a finite log-SNR, but alpha = 0 at the noisiest time; use "
            f"trailing or quad, or pass times="
        )


def _discrete(grid: Grid, schedule: Schedule) -> Discrete:
    if not isinstance(schedule, Discrete):
        raise TypeError(
            f"{grid.__name__} needs a Discrete schedule: use trailing for a "
            f"{type(schedule).__name__}"
        )
    return schedule


def check_steps(steps: int, schedule: Schedule | None = None) -> None:
    """ValueError if steps is no integer of at least 1, or above the T of a discrete schedule."""
    if not (is_number(steps) and hasattr(steps, "__index__") and steps >= 1):
        raise ValueError(f"steps must be an integer of at least 1, but is {shown(steps)}")
    if isinstance(schedule, Discrete) and steps > schedule.T:
        raise ValueError(
            f"steps must lie within [1, {schedule.T}], the integer times of the schedule, but is "
            f"{steps}; pass times= for fractional ones"
        )
