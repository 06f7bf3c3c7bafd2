"""Training levels: drawn evenly, or as often as their losses matter."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import widen
from ddpm_core.levels import Level
from ddpm_core.schedules.discrete import Discrete
from ddpm_core.schedules.protocol import Schedule
from ddpm_core.typing import Array


def draw(schedule: Schedule, u: Array) -> Level:
    """Training levels for uniform numbers: t ~ Uniform{1 .. T}, or uniform over (clean, noisiest].

    u: (B,), uniform in [0, 1); the level has its library, device and dtype, or is float64 on the
        host where u is a NumPy array

    Clean data is never drawn.

    >>> from ddpm_core import linear
    >>> draw(linear(1000), np.array([0.0, 0.5, 0.999])).time
    array([1000.,  500.,    1.])
    """
    xp = array_namespace(u)
    u = widen(xp, u)  # in bfloat16, 1000 levels would be about 250
    clean, noisiest = schedule.ends
    if isinstance(schedule, Discrete):
        # A u that was cast down to float32 may be 1: hence the minimum.
        back = xp.minimum(xp.floor(u * noisiest), xp.full_like(u, noisiest - 1))
        return schedule(noisiest - back)
    return schedule(noisiest - u * (noisiest - clean))


# Importance sampling (Nichol & Dhariwal 2021, section 3.3). --------------------------------------
#
# The bound's terms differ by orders of magnitude over t. Drawing t in proportion to the root mean
# square of its last losses, and dividing by that probability, leaves the mean what it was and
# lowers its variance. The state is two arrays of the host and every function is pure: processes
# that record the same gathered losses in the same order hold the same state.


class Losses(NamedTuple):
    """The last K losses at each of the times 1 .. T.

    values: (T, K) float64, as a ring
    count: (T,) integers, how many were ever recorded
    """

    values: Array
    count: Array


def no_losses(T: int, K: int = 10) -> Losses:
    """The state before training."""
    if T < 1 or K < 1:
        raise ValueError(f"T and K must be at least 1, but are {T} and {K}")
    return Losses(np.zeros((T, K)), np.zeros(T, dtype=np.int64))


def recorded(state: Losses, times: Any, losses: Any) -> Losses:
    """The state after the losses (N,) at integer times (N,) within 1 .. T, in their order.

    Under several processes, gather times and losses first, and record them all in each.
    """
    times, losses = np.asarray(times), np.asarray(losses, dtype=np.float64)
    values, count = state.values.copy(), state.count.copy()
    T, K = values.shape
    if times.ndim != 1 or times.shape != losses.shape:
        raise ValueError(f"times {times.shape} and losses {losses.shape} must be (N,), one a time")
    if not np.all((times >= 1) & (times <= T) & (times == np.floor(times))):
        raise ValueError(f"times must be integers within 1 .. {T}")
    if not np.isfinite(losses).all():
        raise ValueError("losses must be finite")
    for time, loss in zip(times.astype(int) - 1, losses, strict=True):
        values[time, count[time] % K] = loss
        count[time] += 1
    return Losses(values, count)


def probabilities(state: Losses, uniform: float = 1e-3) -> Array:
    """How often each of the times 1 .. T is drawn: (T,), positive, of sum 1.

    p_t = (1 - uniform) sqrt(mean of loss²) / Σ + uniform / T, and 1 / T until every time has K
    losses (their Eq. 18).
    """
    if not 0 < uniform <= 1:
        raise ValueError(f"uniform must lie within (0, 1], but is {uniform}")
    T, K = state.values.shape
    size = np.sqrt(np.mean(state.values**2, axis=1))
    if np.any(state.count < K) or size.sum() == 0:
        return np.full(T, 1 / T)
    return (1 - uniform) * size / size.sum() + uniform / T


def draw_important(state: Losses, u: Any, uniform: float = 1e-3) -> tuple[Array, Array]:
    """Times (B,) of 1 .. T, and the weights (B,) that keep the mean loss what it is: 1 / (T p_t).

    u: (B,), uniform in [0, 1)
    """
    p = probabilities(state, uniform)
    edges = np.cumsum(p)
    index = np.searchsorted(edges / edges[-1], np.asarray(u, dtype=np.float64), side="right")
    index = np.minimum(index, len(p) - 1)
    return index + 1, 1 / (len(p) * p[index])
