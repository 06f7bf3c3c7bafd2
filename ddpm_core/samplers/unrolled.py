"""A sampler unrolled: each point as a linear combination of x_T, the readings and the noises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_core.levels import Level, check_levels
from ddpm_core.noise import portable_noise
from ddpm_core.parameterisations import Parameterisation, check_readable, reading, x0
from ddpm_core.typing import Array


@dataclass(frozen=True, eq=False)
class Unrolled:
    """What a sampler computes, whatever its memory, its coordinates and its code look like.

    point_i = x[i] x_T + Σ_{j < i} y[i, j] x̂_0(point_j, levels[j]) + Σ_{j < i} z[i, j] z_j

    levels: (n + 1,), of each point; the last is where the sampler ends
    x: (n + 1,)
    y, z: (n + 1, n), of the readings, each the x̂_0 of a point, and of the noises z_j

    Two samplers are the same exactly if these are equal.
    """

    levels: Level
    x: Array
    y: Array
    z: Array

    def __post_init__(self) -> None:
        n = len(self.levels.sigma) - 1
        for name, shape in (("x", (n + 1,)), ("y", (n + 1, n)), ("z", (n + 1, n))):
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}, but {n + 1} levels need {shape}"
                )
        check_numbers(self.levels, x=self.x, y=self.y, z=self.z)
        ahead = np.triu(np.abs(self.y) + np.abs(self.z))
        if ahead.any():
            i, j = np.argwhere(ahead)[0]
            raise ValueError(f"point {i} depends on reading or noise {j}, which comes after it")

    @property
    def nfe(self) -> int:
        """The number of network calls."""
        return len(self.x) - 1

    @property
    def stochastic(self) -> bool:
        """Whether any point depends on noise."""
        return bool(self.z.any())


def check_numbers(levels: Level, **tables: Array) -> None:
    """ValueError if a table or a level has a number that is not finite; a log-SNR may be infinite.

    A level's time is a label, and is not looked at.
    """
    numbers = {f"levels.{name}": getattr(levels, name) for name in ("alpha", "sigma")}
    for name, values in (numbers | tables).items():
        finite = np.isfinite(values)
        if not finite.all():
            at = [int(k) for k in np.argwhere(~finite)[0]]
            raise ValueError(f"a table must be finite, but {name}{at} is {values[tuple(at)]}")
    if np.isnan(levels.logsnr).any():
        raise ValueError(f"levels.logsnr[{int(np.argmax(np.isnan(levels.logsnr)))}] is nan")


def check_calls(levels: Level) -> None:
    """ValueError if a level before the last, where the network is called, is clean data."""
    if not np.all(levels.sigma[:-1] > 0):
        raise ValueError(
            "only the last level may be clean data: no network is called where sigma = 0"
        )


def mixed_signs(size: int) -> Array:
    """The numbers -1 and 1 in a fixed, irregular order, (size,): for a probe of all inputs at once.

    That a function is not linear shows where its value there is not the sum of those for the parts.
    """
    return np.where(portable_noise(0)(0, (1, size))[0] < 0, -1.0, 1.0)


def _probes(count: int) -> tuple[Array, Array]:
    """Inputs (count, count + 1): each alone, and a mix of all, whose weights follow (count,)."""
    # More than 1 in size, so that a clip to [-1, 1], which leaves the others as they are, shows.
    mix = mixed_signs(count) * np.linspace(2, 3, count)
    return np.concatenate([np.eye(count), mix[:, None]], axis=1), mix


def _check_linear(found: Array, mix: Array, what: str) -> None:
    together, apart = found[-1], found[:-1] @ mix
    if not abs(together - apart) <= 1e-3 * (np.abs(found[:-1]) @ np.abs(mix)):
        raise ValueError(
            f"{what}: of a sum of inputs it makes {together:.6g}, but its results for the parts "
            f"sum to {apart:.6g}; turn off what clips, thresholds or squares"
        )


def from_step(
    step: Callable[[int, Any, Any, Any], Any],
    levels: Level,
    predicts: Parameterisation = x0,
    *,
    asarray: Callable[[Array], Any] = np.asarray,
    to_numpy: Callable[[Any], Array] = np.asarray,
) -> Unrolled:
    """What a foreign solver computes, found by probing it with basis vectors.

    step: (i, x, y, z) -> the next x; x, y, z are (2 + 2 n,), y the network's output and z what
        stands for the normal draw of call i. It acts on each element alone. Called with
        i = 0 .. n - 1, once and in order, so that it may keep a state
    levels: (n + 1,) of the host, where the network is called, and last where the solver ends
    predicts: what the step takes y for
    asarray, to_numpy: to and from the solver's library, in float64

    The elements are x_T, the readings and the noises, each alone and once together, so that a step
    which is not linear in them is noticed.

    ValueError if a step is not linear, such as one that clips or thresholds; and if a level of a
    call is clean data, or the output there does not determine x_0.
    """
    check_levels(levels=levels)
    check_calls(levels)
    check_readable(predicts, levels.take(slice(None, -1)))
    n = len(levels.sigma) - 1
    basis, mix = _probes(1 + 2 * n)
    points = [basis[0]]
    for i in range(n):
        t = levels.take(i)
        on_x_t, on_y = reading(predicts, x0, t)
        y = (basis[1 + i] - on_x_t * points[-1]) / on_y
        found = step(i, *map(asarray, (points[-1], y, basis[1 + n + i])))
        point = np.asarray(to_numpy(found), dtype=np.float64)
        _check_linear(point, mix, f"step {i} is not linear in (x, y, z)")
        points.append(point)
    table = np.stack(points)[:, :-1]
    return Unrolled(levels, table[:, 0], table[:, 1 : 1 + n], table[:, 1 + n :])


def from_loop(
    loop: Callable[[Callable[..., Any], Any, Callable[[], Any]], Any],
    level_of: Callable[..., Level],
    end: Level,
    predicts: Parameterisation = x0,
    *,
    scale: Callable[[Level], Any] = lambda t: 1.0,
    size: float = 1.0,
    asarray: Callable[[Array], Any] = np.asarray,
    to_numpy: Callable[[Any], Array] = np.asarray,
) -> Unrolled:
    """What a foreign loop from noise to data computes, found by running it whole.

    loop: (network, x, draw) -> x. It calls network(x, ...) -> y and draw() -> a standard normal of
        the shape of x, as often as it likes, and acts on each element alone
    level_of: what the loop says to the network after x -> the level, of the host, of that call
    end: the level where the loop ends
    predicts: what the loop takes y for
    scale: the loop's x at a level is this times a variance-preserving x; sqrt(1 + (σ/α)²) for one
        that keeps α = 1
    size: of the probes. Small ones pass beneath a clip, of which they then tell nothing
    asarray, to_numpy: to and from the loop's library, in float64

    It is run on zeros to count its calls and draws, and then once on basis vectors: x_T, the
    readings and the noises, each alone and once together. A draw that reaches no x is left out.

    ValueError if the loop is not linear; if how often it calls or draws depends on x, as with a
    step size that adapts itself; if x takes noise before the first call; and if two noises between
    two calls act apart, for which the form has no place.
    """
    check_levels(end=end)
    said: list[Level] = []
    drawn = 0
    nothing = asarray(np.zeros(1))

    def count_call(x: Any, *label: Any, **_: Any) -> Any:
        said.append(level_of(*label).map(float))
        return nothing

    def count_draw() -> Any:
        nonlocal drawn
        drawn += 1
        return nothing

    loop(count_call, nothing, count_draw)
    n, m = len(said), drawn
    levels = Level(*(np.array(field) for field in zip(*said, end.map(float), strict=True)))
    check_calls(levels)
    check_readable(predicts, levels.take(slice(None, -1)))
    basis, mix = _probes(1 + n + m)
    basis *= size
    points: list[Array] = []
    draws = iter(basis[1 + n :])

    def record(x: Any) -> Array:
        i = len(points)
        point = np.asarray(to_numpy(x), dtype=np.float64) / scale(levels.take(i))
        _check_linear(point, mix, f"the loop is not linear up to call {i}")
        points.append(point)
        return point

    def network(x: Any, *label: Any, **_: Any) -> Any:
        i = len(points)
        if i == n or level_of(*label).map(float) != said[i]:
            raise ValueError(f"what the loop does at call {i} depends on x: fix its steps")
        on_x_t, on_y = reading(predicts, x0, said[i])
        return asarray((basis[1 + i] - on_x_t * record(x)) / on_y)

    def draw() -> Any:
        row = next(draws, None)
        if row is None:
            raise ValueError(f"the loop draws noise {m} times for x = 0, and more often otherwise")
        return asarray(row)

    record(loop(network, asarray(basis[0] * scale(said[0])), draw))
    if len(points) <= n:
        raise ValueError(f"the loop makes {n} calls for x = 0, and {len(points) - 1} otherwise")
    table = np.stack(points)[:, :-1] / size
    return Unrolled(levels, table[:, 0], table[:, 1 : 1 + n], _in_places(table[:, 1 + n :]))


def _in_places(z: Array) -> Array:
    """Noises (n + 1, m) as z of an `Unrolled`: column j reaches no point before j + 1."""
    n = len(z) - 1
    placed = np.zeros((n + 1, n))
    for column in z.T[z.any(axis=0)]:
        j = int(np.flatnonzero(column)[0]) - 1
        if j < 0:
            raise ValueError("x takes noise before the first call: let the loop begin without it")
        other = placed[:, j]
        along = column @ other
        if along**2 >= (1 - 1e-12) * (column @ column) * (other @ other):  # also where other = 0
            placed[:, j] = np.hypot(column, other) * np.sign(column)
            continue
        free = np.flatnonzero(~placed[:, :j].any(axis=0))
        if not len(free):
            raise ValueError(f"between calls {j} and {j + 1} x takes noises that act apart")
        placed[:, free[-1]] = column
    return placed
