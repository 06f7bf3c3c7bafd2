"""Hypothesis strategies for schedules, levels and data, as this library's own tests use them.

Arrays are NumPy's, drawn from a seed: a failure shrinks to a shape and a seed, and can be
repeated in any array library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ddpm_core.levels import Level
from ddpm_core.schedules import (
    EDM,
    VP,
    Discrete,
    Flow,
    LinearLogSNR,
    Schedule,
    alphabar_sigmoid,
    beta_sigmoid,
    cosine,
    from_betas,
    linear,
    quadratic,
    scaled_linear,
    zero_terminal_snr,
)
from ddpm_core.typing import Array


@st.composite
def betas(draw: st.DrawFn, max_T: int = 200) -> Array:
    """(T,) step variances in (0, 1), 1 <= T <= max_T, with log ᾱ_T of at least -60."""
    T = draw(st.integers(1, max_T))
    lowest = draw(st.sampled_from([1e-6, 1e-4, 1e-2]))
    highest = draw(st.sampled_from([0.02, 0.2, 0.6, 0.999]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = np.exp(rng.uniform(np.log(lowest), np.log(highest), T))
    if draw(st.booleans()):
        values = np.sort(values)
    total = -np.log1p(-values).sum()
    return values if total <= 60 else -np.expm1(np.log1p(-values) * (60 / total))


def discrete_schedules(max_T: int = 200) -> st.SearchStrategy[Discrete]:
    """Discrete schedules: all named ones, and random betas."""
    T = st.integers(2, max_T)
    makers: list[Callable[[int], Discrete]] = [
        quadratic,
        scaled_linear,
        cosine,
        beta_sigmoid,
        alphabar_sigmoid,
        lambda T: linear(T, rescale=T > 20),
    ]
    return st.one_of(betas(max_T).map(from_betas), st.sampled_from(makers).flatmap(T.map))


def schedules(max_T: int = 200, *, zero_terminal: bool = False) -> st.SearchStrategy[Schedule]:
    """Schedules of every kind.

    zero_terminal: also those that end without data, alpha = 0
    """
    kinds: list[st.SearchStrategy[Any]] = [
        discrete_schedules(max_T),
        st.builds(VP, st.floats(0.01, 1.0), st.floats(1.0, 30.0)),
        st.builds(LinearLogSNR, st.floats(4.0, 15.0), st.floats(-15.0, -4.0)),
        st.builds(EDM, st.floats(1e-4, 1e-2), st.floats(20.0, 200.0)),
    ]
    if zero_terminal:
        kinds.append(st.builds(Flow, st.floats(0.2, 8.0)))
        kinds.append(discrete_schedules(max_T).filter(lambda s: s.T > 1).map(zero_terminal_snr))
    return st.one_of(kinds)


@st.composite
def grids(draw: st.DrawFn, schedule: Schedule, max_steps: int = 20) -> Array:
    """Times of a schedule, strictly falling from a noisy one to its clean end: (n + 1,)."""
    clean, noisiest = schedule.ends
    if isinstance(schedule, Discrete):
        count = draw(st.integers(1, min(max_steps, schedule.T)))
        times = draw(st.sets(st.integers(1, schedule.T), min_size=count, max_size=count))
        return np.array([*sorted(times, reverse=True), 0], dtype=np.float64)
    parts = draw(st.sets(st.integers(1, 1000), min_size=1, max_size=max_steps))
    return np.linspace(clean, noisiest, 1001)[[*sorted(parts, reverse=True), 0]]


@st.composite
def levels(draw: st.DrawFn, schedule: Schedule, count: int) -> list[Level]:
    """Distinct levels of a schedule, the noisiest first and none of them clean data."""
    clean, noisiest = schedule.ends
    top = schedule.T if isinstance(schedule, Discrete) else 1000
    marks = draw(st.sets(st.integers(1, top), min_size=count, max_size=count))
    times = np.linspace(clean, noisiest, top + 1)
    return [schedule(float(times[k])) for k in sorted(marks, reverse=True)]


@st.composite
def normals(
    draw: st.DrawFn, shape: tuple[int, ...] | st.SearchStrategy[tuple[int, ...]], count: int = 1
) -> Any:
    """float64 arrays of standard normal numbers, of one shape: one, or a list of `count`."""
    shape = shape if isinstance(shape, tuple) else draw(shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays = [rng.standard_normal(shape) for _ in range(count)]
    return arrays[0] if count == 1 else arrays


def shapes(max_batch: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes (B, *D) of data: vectors, signals and images, and the empty batch."""
    return st.tuples(
        st.integers(0, max_batch), st.sampled_from([(1,), (5,), (2, 3), (1, 4, 4)])
    ).map(lambda pair: (pair[0], *pair[1]))
