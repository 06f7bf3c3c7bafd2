"""A sampler is a table of numbers.

Every solver of the field is linear in the state, the network's outputs and fresh noise. So a
sampler is a float64 table that is made on the host, once, from its paper's coefficients; what
executes it (`advance`) knows nothing of any paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_jax_namespace

from ddpm_core.arrays import (
    astype,
    check_function,
    check_pair,
    combine,
    is_half,
    is_number,
    same_shape,
    widen,
)
from ddpm_core.gaussians import Gaussian, log_prob
from ddpm_core.grids import Grid, check_steps, trailing
from ddpm_core.levels import Level
from ddpm_core.parameterisations import Parameterisation, reading, x0
from ddpm_core.samplers.unrolled import Unrolled, check_calls, check_numbers
from ddpm_core.schedules import Schedule
from ddpm_core.schedules.protocol import check_is_schedule
from ddpm_core.typing import Array, Lincomb, Scalar


class State(NamedTuple):
    """What a sampler carries from row to row.

    point: (B, *D), where the network is called next, and the sample after the last row
    anchor: (B, *D), a second array that rows may use: for solvers with several calls a step, where
        the step began; for those with a corrector, the point less the readings that predicted it
    memory: the last K - 1 readings, the newest first
    """

    point: Array
    anchor: Array
    memory: tuple[Array, ...]


class Row(NamedTuple):
    """One network call of a sampler and what is done with it.

    m_0 <- u point + v y,   y the network's output at `level`
    point, anchor <- linear combinations of (point, anchor, m_0 .. m_{K-1}, z)

    The numbers are Python floats (`Sampler.rows`), arrays with a leading axis of steps
    (`Sampler.rows_as`), or arrays (B,) with each sample at its own step.
    """

    level: Level
    read: tuple[Scalar, ...]  #: (u, v)
    point: tuple[Scalar, ...]  #: K + 3 coefficients
    anchor: tuple[Scalar, ...]  #: K + 3 coefficients


@dataclass(frozen=True, eq=False)
class Sampler:
    """A solver on a grid of levels, as float64 arrays of the host.

    name: of the solver
    levels: (n + 1,); row i calls the network at levels[i], where sigma > 0; the sample is at
        levels[n]
    read: (n, 2), (u, v) of each row; (0, 1) takes the output as it comes: x_0 from a denoiser
    point, anchor: (n, K + 3), over (point, anchor, m_0 .. m_{K-1}, z)
    """

    name: str
    levels: Level
    read: Array
    point: Array
    anchor: Array

    def __post_init__(self) -> None:
        n = len(self.read)
        shapes = {"levels": (n + 1,), "read": (n, 2), "point": (n, self.point.shape[-1])}
        shapes["anchor"] = shapes["point"]
        for name, shape in shapes.items():
            value = self.levels.sigma if name == "levels" else getattr(self, name)
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, but {n} rows need {shape}")
        if self.point.shape[-1] < 4:
            raise ValueError(
                f"point has shape {self.point.shape}, but a row has at least 4 coefficients, over "
                f"(point, anchor, m_0, z)"
            )
        check_numbers(self.levels, read=self.read, point=self.point, anchor=self.anchor)
        check_calls(self.levels)

    @property
    def nfe(self) -> int:
        """The number of network calls."""
        return len(self.read)

    @property
    def stochastic(self) -> bool:
        """Whether any row takes noise."""
        return bool(np.any(self.point[:, -1]) or np.any(self.anchor[:, -1]))

    def start(self, x: Array) -> State:
        """The state at levels[0], where x is a draw of q(x_t), or noise if that is near enough."""
        # Zeros, not empty: a row multiplies what is not there yet by 0, and 0 times inf is not 0.
        nothing = array_namespace(x).zeros_like(x)
        return State(x, x, (nothing,) * (self.point.shape[-1] - 4))

    def rows(self) -> list[Row]:
        """The table as Python floats: for loops on the host, where nothing is uploaded."""
        return list(self._rows)

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        levels = zip(*(list(map(float, field[:-1])) for field in self.levels), strict=True)
        tables = (map(tuple, table.tolist()) for table in (self.read, self.point, self.anchor))
        return tuple(Row(Level(*level), *row) for level, *row in zip(levels, *tables, strict=True))

    def rows_as(self, xp: Any, dtype: Any, device: Any = None) -> Row:
        """The table as arrays whose first axis is the row: for `lax.scan`, CUDA graphs, export."""
        place = {} if device is None or is_jax_namespace(xp) else {"device": device}

        def array(column: Array) -> Array:
            return xp.asarray(column.tolist(), dtype=dtype, **place)

        return Row(
            Level(*(array(field[:-1]) for field in self.levels)),
            *(tuple(array(c) for c in table.T) for table in (self.read, self.point, self.anchor)),
        )

    def given(self, predicts: Parameterisation) -> Sampler:
        """The same sampler for the raw output of a network that predicts this target.

        It is for a loop of your own, or for `sample` with a function (x_t, level) -> that output.
        A `Predictor` returns x_0: with it, use the sampler as it is.
        """
        t = self.levels.take(slice(None, -1))
        on_x_t, on_y = reading(predicts, x0, t)
        u, v = self.read.T
        u, v = u + v * on_x_t, v * on_y
        if self.point.shape[-1] > 4:
            return replace(self, read=np.stack([u, v], axis=-1))
        # Nothing is remembered: u point + v y need not be made on the way.
        point, anchor = (
            np.stack([on_x + m * u, on_anchor, m * v, z], axis=-1)
            for on_x, on_anchor, m, z in (self.point.T, self.anchor.T)
        )
        return replace(self, read=_as_it_comes(len(u)), point=point, anchor=anchor)

    def to_json(self) -> str:
        """The table as JSON, every number to the bit, for a loop in another language.

        `docs/golden.md` has the format.

        >>> from ddpm_core import ddim, linear
        >>> sampler = Sampler.from_json(ddim(linear(), 10).to_json())
        >>> sampler.name, sampler.nfe
        ('ddim', 10)
        """
        from ddpm_core.samplers.interchange import written

        return written(self.name, self.levels, self.read, self.point, self.anchor)

    @classmethod
    def from_json(cls, text: str) -> Sampler:
        """The sampler that `to_json` wrote; ValueError if the text is not that of one."""
        from ddpm_core.samplers.interchange import parsed

        return cls(*parsed(text))

    def unroll(self) -> Unrolled:
        """Each point as a combination of x_T, the denoiser's x_0 and the noises."""
        n = self.nfe
        basis = np.eye(1 + 2 * n)
        state = self.start(basis[0])
        points = [state.point]
        for i, row in enumerate(self.rows()):
            state = advance(row, state, basis[1 + i], basis[1 + n + i])
            points.append(state.point)
        table = np.stack(points)
        return Unrolled(self.levels, table[:, 0], table[:, 1 : 1 + n], table[:, 1 + n :])


def advance(
    row: Row, state: State, y: Array, z: Array | None = None, *, lincomb: Lincomb = combine
) -> State:
    """The state after a row. Pure: traces under jit, and changes none of its arguments.

    row: of the sampler; Python floats, arrays (), or arrays (B,)
    y: (B, *D), the network's output at (state.point, row.level)
    z: (B, *D), fresh standard normal, where the row takes noise
    lincomb: a `Backend`'s, to be faster than plain operators

    Half-precision states are combined in float32 and cast back.
    """
    point, anchor, memory = state
    if len(row.point) != 4 + len(memory):
        raise ValueError(
            f"a row of {len(row.point)} coefficients does not go with a memory of "
            f"{len(memory)}: row and state must be of one sampler"
        )
    host = is_number(row.point[-1])
    if z is None and host and (row.point[-1] != 0 or row.anchor[-1] != 0):
        raise ValueError("this row takes noise: pass z, or noise to sample")

    dtype, half = point.dtype, is_half(point.dtype)
    if half or not (_alike(y, point) and (z is None or _alike(z, point))):
        xp = same_shape(x=point, y=y, **({} if z is None else {"z": z}))
        wide = xp.float32 if half else dtype
        point, anchor, y, *memory = (astype(xp, a, wide) for a in (point, anchor, y, *memory))
        z = None if z is None else astype(xp, z, wide)

    u, v = row.read
    m_0 = y if host and u == 0 and v == 1 else lincomb((u, point), (v, y))
    terms = [point, anchor, m_0, *memory]
    if z is not None:
        terms.append(z)
    new_point = lincomb(*zip(row.point, terms, strict=False))
    # Mostly the anchor stays what it is, or becomes x: nothing to compute.
    if host and row.anchor.count(0) == len(row.anchor) - 1 and 1 in row.anchor:
        new_anchor = terms[row.anchor.index(1)]
    else:
        new_anchor = lincomb(*zip(row.anchor, terms, strict=False))
    kept = (m_0, *memory)[: len(memory)]
    if half:
        xp = array_namespace(new_point)
        new_point, new_anchor, *kept = (xp.astype(a, dtype) for a in (new_point, new_anchor, *kept))
    return State(new_point, new_anchor, tuple(kept))


def log_prob_of_step(row: Row, state: State, y: Array, x_next: Array) -> Array:
    """log p(x_next | state): how likely a row was to draw its next point (B,).

    log N(x_next; mean, c²), the mean what `advance` makes of z = 0, c the row's coefficient of z

    row, state, y: as `advance` took them
    x_next: (B, *D), the point of the state that `advance` returned

    The sum over a sampler's rows is the log density of the whole path given x_T. It is what policy
    gradients need (Black et al. 2024, DDPO), differentiable in y on torch and JAX. Half-precision
    states give a float32 result.

    ValueError if the row takes no noise, as none does that ends at clean data: leave it out, since
    its point is no random choice.
    """
    on_z = row.point[-1]
    if is_number(on_z) and on_z == 0:
        raise ValueError(
            "this row takes no noise, so that its point has no density: leave it out of the sum, "
            "as the row into clean data"
        )
    xp = check_pair(point=state.point, x_next=x_next)
    point, anchor, *memory = (widen(xp, a) for a in (state.point, state.anchor, *state.memory))
    x_next = widen(xp, x_next)
    mean = advance(row, State(point, anchor, tuple(memory)), y, xp.zeros_like(x_next)).point
    return log_prob(Gaussian(mean, on_z**2), x_next)


def _alike(a: Array, x: Array) -> bool:
    return type(a) is type(x) and a.dtype == x.dtype and a.shape == x.shape


def _as_it_comes(n: int) -> Array:
    """The reading (0, 1) of n rows."""
    return np.tile([0.0, 1.0], (n, 1))


def levels_of(schedule: Schedule, steps: int, grid: Grid = trailing, times: Any = None) -> Level:
    """The levels (steps + 1,) of a sampler, the noisiest first.

    grid: a function of `grids`, used where times is None
    times: steps + 1 times of the schedule, strictly falling
    """
    check_is_schedule(schedule)
    check_function("trailing", grid=grid)
    check_steps(steps)
    if times is None:
        times = grid(schedule, steps)
    times = np.asarray(times, dtype=np.float64)
    if times.shape != (steps + 1,):
        raise ValueError(
            f"steps = {steps} needs {steps + 1} times, the last where the sample ends, but times "
            f"has shape {times.shape}"
        )
    levels = schedule(times)
    fall = levels.logsnr[1:] > levels.logsnr[:-1]  # no difference: inf - inf at two clean times
    if not fall.all():
        i = int(np.argmin(fall)) + 1
        raise ValueError(
            f"times must fall, but times[{i}] = {times[i]:g} is not cleaner than "
            f"times[{i - 1}] = {times[i - 1]:g}"
        )
    return levels


def rising_levels_of(
    name: str, schedule: Schedule, steps: int, grid: Grid = trailing, times: Any = None
) -> Level:
    """The levels (steps + 1,) of a sampler from data to noise, the cleanest, with noise, first.

    name: of the sampler
    grid: where times is None, those of grid(schedule, steps + 1) but the clean one
    times: steps + 1 times of the schedule, strictly rising
    """
    if times is None:
        times = grid(schedule, steps + 1)[-2::-1]
    times = np.asarray(times, dtype=np.float64)
    if not np.all(np.diff(times) > 0):
        raise ValueError(f"times must rise, from a level with noise, but are {times}")
    levels = levels_of(schedule, steps, times=times[::-1]).take(slice(None, None, -1))
    if levels.sigma[0] == 0:
        raise ValueError(
            f"{name} cannot start at clean data, time {levels.time[0]:g}, which has no eps; start "
            f"at a level with a little noise, as which the data may be taken"
        )
    return levels


def terms(readings: int = 1) -> tuple[Array, ...]:
    """(x, anchor, m_0, m_1, ..., z) as unit vectors, in which a solver's equation can be written.

    Each is (K + 3, 1), K the number of readings. Times a coefficient (n,), one for each step, it is
    (K + 3, n), and a sum of such products is what `table` takes:

    >>> x, anchor, m_0, m_1, z = terms(2)
    >>> h = np.array([0.5, 1.0])
    >>> (np.exp(-h) * x + h * (m_0 - m_1)).shape
    (5, 2)
    """
    return tuple(np.eye(readings + 3)[:, :, None])


def table(
    name: str,
    levels: Level,
    point: Array,
    *,
    anchor: Array | None = None,
    read: tuple[Array, Array] | None = None,
) -> Sampler:
    """A sampler from its equation, written in `terms`.

    point: (K + 3, n), what each row makes of (point, anchor, m_0 .. m_{K-1}, z)
    anchor: (K + 3, n); by default the anchor stays what it is
    read: (u, v), (n,) each, as in `Row`; by default a reading is x_0

    The row into clean data is the same in every sampler, whatever its equation says there: x_0 as
    it is read, without noise. There log-SNR is infinite and no step has an order above 1.
    """
    n, width = len(levels.sigma) - 1, len(point)
    stays, m_0 = np.eye(width)[1:3]
    read_table = _as_it_comes(n) if read is None else np.stack(read, axis=-1)
    point_table, anchor_table = (
        np.zeros((n, width)) + columns.T
        for columns in (point, stays[:, None] if anchor is None else anchor)
    )
    if levels.sigma[-1] == 0:
        read_table[-1], point_table[-1], anchor_table[-1] = (0.0, 1.0), m_0, stays
    return Sampler(name, levels, read_table, point_table, anchor_table)
