"""Hypothesis strategies for what the library has, as its own tests use them.

Each begins with the plainest example and with the edges, and shrinks to them: a failure is told of
one step of T = 1 if it is there too. Arrays are NumPy's, drawn from a seed, so that a failure
shrinks to a shape and a seed, and can be repeated in any array library; `images` are of the one
that is asked for.

>>> from hypothesis import find, settings
>>> few = settings(max_examples=20, database=None)
>>> [level.time for level in find(pairs(linear()), lambda pair: True, settings=few)]
[1.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ddpm_core import parameterisations as targets
from ddpm_core.levels import Level
from ddpm_core.oracles import DatasetOracle, GaussianOracle, MixtureOracle
from ddpm_core.parameterisations import Pair, Parameterisation
from ddpm_core.samplers import Sampler
from ddpm_core.samplers.registry import ENTRIES
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
def pairs(draw: st.DrawFn, schedule: Schedule, *, clean: bool = True) -> tuple[Level, Level]:
    """Levels (t, s) of a schedule, s the cleaner, and clean data itself unless clean is False.

    The first is the least noisy step there is, and the ends and neighbours come often.
    """
    lowest, noisiest = schedule.ends
    top = schedule.T if isinstance(schedule, Discrete) else 1000
    times, least = np.linspace(lowest, noisiest, top + 1), 0 if clean else 1
    if top == least:
        raise ValueError(f"{schedule!r} has no two such levels")
    s = draw(st.sampled_from([least, top - 1]) | st.integers(least, top - 1))
    t = draw(st.sampled_from([s + 1, top]) | st.integers(s + 1, top))
    return schedule(float(times[t])), schedule(float(times[s]))


@st.composite
def samplers(
    draw: st.DrawFn, schedules: st.SearchStrategy[Any] | None = None, max_steps: int = 20
) -> Sampler:
    """Tables of every solver from noise to data, on `grids` of its schedule; `ddim` first.

    schedules: that keep some data at their noisiest level; by default `schedules()`
    """
    schedule = draw(_plain_schedules() if schedules is None else schedules)
    times = draw(grids(schedule, max_steps))
    entries = sorted(
        (entry for entry in ENTRIES if entry.from_noise and (entry.name != "restart")),
        key=lambda entry: (entry.takes_noise, entry.calls, entry.order),
    )
    entry = draw(st.sampled_from(entries))
    return entry.solver(schedule, len(times) - 1, times=times)


def _plain_schedules() -> st.SearchStrategy[Schedule]:
    return st.one_of(st.integers(1, 20).map(lambda T: linear(T, rescale=False)), schedules())


@dataclass(frozen=True)
class Turned:
    """The target cos(angle) v + sin(angle) x_t; its determinant α b - σ a is cos(angle)."""

    angle: float

    def __call__(self, t: Level) -> Pair:
        c, s = float(np.cos(self.angle)), float(np.sin(self.angle))
        return s * t.alpha - c * t.sigma, s * t.sigma + c * t.alpha


def parameterisations(schedule: Schedule) -> st.SearchStrategy[Parameterisation]:
    """What a network of this schedule may predict: those with a name, and `Turned` ones.

    None of them says nothing of x_0 at the noisiest level: not eps where alpha = 0 there.
    """
    named: list[Parameterisation] = [targets.x0, targets.v, targets.flow, targets.edm()]
    if schedule(schedule.ends[1]).alpha > 0:
        named[1:1] = [targets.eps, targets.score]
    if isinstance(schedule, Discrete):
        named.append(targets.mu(schedule))
    return st.sampled_from(named) | st.builds(Turned, st.floats(-1.0, 1.0))


@st.composite
def oracles(draw: st.DrawFn, shape: tuple[int, ...] = (2,)) -> GaussianOracle | MixtureOracle:
    """Exact denoisers of data of a shape: N(0, I) first, then a point, other normals, mixtures."""
    size = int(np.prod(shape))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "point", "apart", "dependent", "mixture", "points"]))
    mean = rng.uniform(-1, 1, shape)
    if kind == "normal":
        return GaussianOracle(np.zeros(shape), 1.0)
    if kind == "point":
        return GaussianOracle(mean, 0.0)
    if kind == "apart":
        return GaussianOracle(mean, rng.uniform(0, 2, shape))
    if kind == "dependent":
        root = rng.standard_normal((size, size))
        return GaussianOracle(mean, root @ root.T / size)
    count = draw(st.integers(1, 4))
    means = rng.uniform(-1, 1, (count, *shape))
    if kind == "points":
        return DatasetOracle(means)
    return MixtureOracle(rng.uniform(0.1, 1, count), means, rng.uniform(0.01, 1, count))


@st.composite
def images(
    draw: st.DrawFn,
    xp: Any = np,
    *,
    channels: st.SearchStrategy[int] | None = None,
    max_size: int = 8,
    dtype: Any = None,
    device: Any = None,
) -> Any:
    """Images (B, C, H, W) within [-1, 1], of an array namespace: flat ones first.

    xp: such as numpy, array_api_strict, or array_api_compat.torch
    channels: by default 1 or 3
    max_size: of either side
    dtype: of xp; float32 by default
    """
    count = st.sampled_from([1, 3]) if channels is None else channels
    shape = (draw(st.integers(1, 3)), draw(count), *(draw(st.integers(1, max_size)) for _ in "HW"))
    kind = draw(st.sampled_from(["grey", "black", "white", "checks", "noise", "bytes"]))
    flat = {"grey": 0.0, "black": -1.0, "white": 1.0}
    if kind in flat:
        pixels = np.full(shape, flat[kind])
    elif kind == "checks":
        pixels = np.broadcast_to(1.0 - 2.0 * (np.indices(shape[2:]).sum(axis=0) % 2), shape)
    else:
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        pixels = rng.uniform(-1, 1, shape)
        if kind == "bytes":
            pixels = np.round((pixels + 1) * 127.5) / 127.5 - 1
    place = {} if device is None else {"device": device}
    return xp.asarray(pixels.tolist(), dtype=xp.float32 if dtype is None else dtype, **place)


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
