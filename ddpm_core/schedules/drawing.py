"""Training levels: drawn uniformly, or in proportion to their losses."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from array_api_compat import is_numpy_array

from ddpm_core.arrays import same_library, widen
from ddpm_core.levels import Level
from ddpm_core.schedules.discrete import Discrete
from ddpm_core.schedules.protocol import Schedule, check_is_schedule, first_bad
from ddpm_core.typing import Array


def draw(schedule: Schedule, u: Array) -> Level:
    """Training levels for uniform numbers: t ~ Uniform{1 .. T}, or uniform over (clean, noisiest].

    u: (B,), uniform in [0, 1), of any library; the level has its library, device and dtype, but is
        float32 for half precision, and float64 for a NumPy array

    Clean data is never drawn. ValueError if a NumPy u lies outside.

    >>> from ddpm_core import linear
    >>> draw(linear(1000), np.array([0.0, 0.5, 0.999])).time
    array([1000.,  500.,    1.])
    """
    check_is_schedule(schedule)
    xp = same_library(u=u)
    if is_numpy_array(u):
        _check_uniform(u)
        u = u.astype(np.float64)
    u = widen(xp, u)  # of 1000 times, bfloat16 would reach about 250
    clean, noisiest = schedule.ends
    # A u below 1 that was cast to a narrower dtype may be 1, and its product with T may be T.
    if isinstance(schedule, Discrete):
        back = xp.minimum(xp.floor(u * noisiest), xp.full_like(u, noisiest - 1))
        return schedule(noisiest - back)
    below_1 = 1 - float(xp.finfo(u.dtype).eps) / 2
    return schedule(noisiest - xp.minimum(u, xp.full_like(u, below_1)) * (noisiest - clean))


def _check_uniform(u: Array) -> None:
    bad = ~((u >= 0) & (u <= 1))
    if np.any(bad):
        raise ValueError(f"u must lie within [0, 1), but is {first_bad(u, bad):g}")


class Losses(NamedTuple):
    """The last K losses at each of the times 1 .. T: the state of importance sampling.

    The bound's terms differ by orders of magnitude over t. Drawing t in proportion to the root mean
    square of its last losses, and dividing the loss by that probability, keeps its mean and lowers
    its variance (Nichol & Dhariwal 2021, section 3.3). Every function of the state is pure:
    processes that record the same gathered losses in the same order hold the same state.

    values: (T, K) float64, as a ring
    count: (T,) integers, how many were ever recorded
    """

    values: Array
    count: Array


def no_losses(T: int, K: int = 10) -> Losses:
    """The state before training, which is to keep K losses of each of the times 1 .. T."""
    if T < 1 or K < 1:
        raise ValueError(f"T and K must be at least 1, but are {T} and {K}")
    return Losses(np.zeros((T, K)), np.zeros(T, dtype=np.int64))


def recorded(state: Losses, times: Any, losses: Any) -> Losses:
    """The state after losses (N,) at integer times (N,) within 1 .. T, recorded in their order.

    Several processes gather their times and losses first, and each records all of them.
    """
    times, losses = np.asarray(times), np.asarray(losses, dtype=np.float64)
    values, count = state.values.copy(), state.count.copy()
    T, K = values.shape
    if times.ndim != 1 or times.shape != losses.shape:
        raise ValueError(f"times {times.shape} and losses {losses.shape} must both be (N,)")
    bad = ~((times >= 1) & (times <= T) & (times == np.floor(times)))
    if bad.any():
        raise ValueError(
            f"times must be integers within 1 .. {T}, but one is {first_bad(times, bad):g}"
        )
    if not np.isfinite(losses).all():
        raise ValueError(
            f"losses must be finite, but one is {first_bad(losses, ~np.isfinite(losses)):g}"
        )
    for time, loss in zip(times.astype(int) - 1, losses, strict=True):
        values[time, count[time] % K] = loss
        count[time] += 1
    return Losses(values, count)


def probabilities(state: Losses, uniform: float = 1e-3) -> Array:
    """The probability of each of the times 1 .. T: (T,), positive.

    p_t = (1 - uniform) r_t / Σ r + uniform / T,   r_t the root mean square of the losses at t

    uniform: the share of times that are drawn uniformly, in (0, 1], so that none is forgotten

    Without that share it is Eq. 18 of Nichol & Dhariwal 2021. p_t is 1 / T until every time has K
    losses, and where all losses are 0.
    """
    if not 0 < uniform <= 1:
        raise ValueError(f"uniform must lie within (0, 1], but is {uniform}")
    T, K = state.values.shape
    size = np.sqrt(np.mean(state.values**2, axis=1))
    if np.any(state.count < K) or size.sum() == 0:
        return np.full(T, 1 / T)
    return (1 - uniform) * size / size.sum() + uniform / T


def draw_important(state: Losses, u: Any, uniform: float = 1e-3) -> tuple[Array, Array]:
    """Times (B,) within 1 .. T, and weights (B,) of their losses, 1 / (T p_t), that keep the mean.

    u: (B,), uniform in [0, 1)
    uniform: as in `probabilities`
    """
    share = cast(Array, np.asarray(u, dtype=np.float64))
    _check_uniform(share)
    p = probabilities(state, uniform)
    edges = np.cumsum(p)
    index = cast(Array, np.searchsorted(edges / edges[-1], share, side="right"))
    index = np.minimum(index, len(p) - 1)
    return index + 1, 1 / (len(p) * p[index])
