"""`check_sampler`: the laws of a sampler's table, and of what makes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from ddpm_core.arrays import kind
from ddpm_core.certificates import Solver, convergence, law
from ddpm_core.levels import Level
from ddpm_core.oracles import GaussianOracle
from ddpm_core.samplers import Sampler, Unrolled
from ddpm_core.schedules import Discrete, Schedule, linear
from ddpm_core.testing.cases import EPS, Sides, tried
from ddpm_core.testing.report import Finding, Report, raising
from ddpm_core.typing import Array

_MARGINAL, _DDIM = "Ho et al. 2020, Eq. 4", "Song et al. 2021, DDIM, Eq. 12"
_ALGORITHM_2 = "Ho et al. 2020, Algorithm 2"
_RESPACED = "Nichol & Dhariwal 2021, section 4"


def examine_sampler(
    sampler: Sampler | Unrolled | Solver,
    order: float | None = None,
    *,
    schedule: Schedule | None = None,
    steps: Sequence[int] | None = None,
    calls: Callable[[int], int] | None = None,
    threads: bool = True,
    precision: float = EPS,
) -> Report:
    """Which laws a sampler obeys, and which it breaks.

    sampler: a table, as `Sampler` or `Unrolled`; or what makes one, (schedule, steps, *, times=),
        of which the simplest table that breaks a law is told
    order: of convergence, that it is said to have; needs a maker which takes times=, and scipy, and
        is measured between 160 and 320 steps
    schedule: of a table, whose times its levels have, for the law of what the network is told; of a
        maker, by default `linear`, of T = 1 .. 16 and 1000, and `VP` for the order
    steps: of a maker; by default all counts up to 16, then 30 and 61, and T/100, T/50 and T/4, with
        T = 1000 where it has none, for the variance that is drawn. That needs a count and two of at
        most a twelfth of it
    calls: of a maker, steps -> network calls; by default each step after the second is as many
    threads: whether a maker is also run in several at once
    precision: of the numbers of its tables; 1e-7 for what is made in float32

    The point at each level is alpha x_0 + sigma eps where x_0 is known: this finds wrong previous
    timesteps, also where samples look right. A variance between the two of Ho et al. 2020, section
    3.2, is a choice, and is noted.

    >>> from ddpm_core import ancestral, ddim, linear
    >>> check_sampler(ddim, order=1).broken
    ()
    >>> twice = lambda schedule, steps: ancestral(schedule, steps, lambda t, s: 2 * t.sigma**2)
    >>> check_sampler(twice(linear(), 3))
    Traceback (most recent call last):
    AssertionError: 1 law of ancestral, 3 calls fails
    - x_0 known: the variance at each level is sigma² (Ho et al. 2020, Eq. 4): at point 1: 2.00351 \
and not 0.989016; 2 of 2 cases break it, the worst off by 1.33 at point 2, where 5.39e-13 is \
rounding
    """
    if isinstance(sampler, (Sampler, Unrolled)):
        if order is not None:
            raise ValueError(
                "an order is of what makes tables, not of one table: pass the maker, such as ddim"
            )
        table = sampler.unroll() if isinstance(sampler, Sampler) else sampler
        name = sampler.name if isinstance(sampler, Sampler) else "this sampler"
        made = [_Table("", table, schedule)]
        findings = _of_tables(made, precision)
        if schedule is not None:
            findings.append(_told(made, precision))
        return Report(f"{name}, {table.nfe} calls", tuple(findings))
    if not callable(sampler):
        raise TypeError(
            f"sampler must be a Sampler, an Unrolled, or a function (schedule, steps) that makes "
            f"one, such as ddim, but is {kind(sampler)}"
        )
    made, failed = _make(sampler, list(_cases(schedule, steps)))
    long = linear() if schedule is None else schedule
    few = _taken(long, (2, 3, 5) if steps is None else steps)[:3]
    findings = [failed, *_of_tables(made, precision), _told(made, precision)]
    findings += [_counts(made, calls), _pure(sampler, long, few)]
    if threads:
        findings.append(_in_threads(sampler, long, few))
    findings.append(_spread(sampler, long, steps))
    if order is not None:
        findings.append(_order(sampler, order, schedule))
    return Report(getattr(sampler, "__name__", "this sampler"), tuple(findings))


check_sampler = raising(examine_sampler)


class _Table(NamedTuple):
    """An unrolled table, what it is of, and the counts that it was made of."""

    where: str
    table: Unrolled
    of: Schedule | None
    steps: int = 0


def _cases(
    schedule: Schedule | None, steps: Sequence[int] | None
) -> Iterator[tuple[str, Schedule, int]]:
    """What a maker is tried on, the simplest first."""
    few = range(1, 17)
    if schedule is None and steps is None:
        for T in few:
            for n in range(1, T + 1):
                yield f"T = {T}, {_steps(n)}", linear(T, rescale=False), n
    long = linear() if schedule is None else schedule
    counts = [1, 2, 30, 61] if schedule is None else [*few, 30, 61]
    for n in counts if steps is None else steps:
        if not isinstance(long, Discrete):
            yield _steps(n), long, n
        elif n <= long.T:
            yield f"T = {long.T}, {_steps(n)}", long, n


def _steps(n: int) -> str:
    return "1 step" if n == 1 else f"{n} steps"


def _unrolled(sampler: Sampler | Unrolled) -> Unrolled:
    return sampler.unroll() if isinstance(sampler, Sampler) else sampler


def _make(maker: Solver, cases: list[tuple[str, Schedule, int]]) -> tuple[list[_Table], Finding]:
    """The tables that could be made, and whether all could."""
    made: list[_Table] = []

    def sides(case: tuple[str, Schedule, int]) -> Sides:
        where, schedule, n = case
        made.append(_Table(f"{where}, ", _unrolled(maker(schedule, n)), schedule, n))
        return Sides(0, 0)

    law = "every count of steps makes a table of finite numbers"
    finding = tried(law, _RESPACED, cases, sides, at=lambda case: case[0])
    if finding.failure:  # the rest, for the other laws
        for case in cases[len(made) + 1 :]:
            try:
                sides(case)
            except Exception:
                continue
    return made, finding._replace(error=None, allowed=None)


class _Point(NamedTuple):
    """A point of a table, with what the laws of it compare."""

    where: str
    stochastic: bool
    mean: float
    noise: float  # with its sign
    var: float  # if x_0 is known
    normal: float  # if x_0 is N(0, 1)
    alpha: float
    sigma: float
    slack: float


def _points(made: list[_Table], precision: float) -> list[_Point]:
    points: list[_Point] = []
    for where, u, _, _ in made:
        first, alpha, sigma = u.levels.take(0), u.levels.alpha, u.levels.sigma
        moved = np.column_stack([u.x, u.z])
        for i in range(1, u.nfe + 1):  # the reading of N(0, 1) is alpha times the point
            moved[i] += (u.y[i, :i] * alpha[:i]) @ moved[:i]
        size = 1 + np.abs(u.x) + np.abs(u.y).sum(1) + np.abs(u.z).sum(1)
        slack = 256 * precision * u.nfe * np.maximum.accumulate(size)
        mean = u.x * first.alpha + u.y.sum(1)
        noise = u.x * first.sigma
        var, normal = noise**2 + (u.z**2).sum(1), (moved**2).sum(1)
        for i in range(u.nfe + 1):
            numbers = [float(a[i]) for a in (mean, noise, var, normal, alpha, sigma, slack)]
            points.append(_Point(f"{where}point {i}", bool(u.z[i].any()), *numbers))
    return points


def _of_tables(made: list[_Table], precision: float) -> list[Finding]:
    points = _points(made, precision)
    chosen: list[str] = []

    def mean(p: _Point) -> Sides:
        return Sides(p.mean, p.alpha, p.slack)

    def noise(p: _Point) -> Sides | None:
        return None if p.stochastic else Sides(p.noise, p.sigma, p.slack)

    def var(p: _Point) -> Sides | None:
        if not p.stochastic:
            return None
        within = p.var >= p.sigma**2 - p.slack and p.normal <= 1 + p.slack
        if within and p.var > p.sigma**2 + p.slack:
            chosen.append(p.where)
            return Sides(0, 0)
        return Sides(p.var, p.sigma**2, p.slack)

    def lands(case: tuple[str, Unrolled]) -> Sides | None:
        _, u = case
        if u.levels.sigma[-1] > 0:
            return None
        wanted = np.zeros(1 + 2 * u.nfe)
        wanted[u.nfe] = 1.0
        return Sides(np.concatenate([u.x[-1:], u.y[-1], u.z[-1]]), wanted, 256 * precision)

    calls = [(f"{u.where}call {i}", u.table, i) for u in made for i in range(u.table.nfe)]
    ends = [(f"{u.where}last row", u.table) for u in made]
    at = itemgetter(0)
    findings = [
        tried("no network is called at clean data", _ALGORITHM_2, calls, _noisy, at=at),
        tried("noise falls, but where noise is added", _ALGORITHM_2, calls, _falls, at=at),
        tried("x_0 known: the mean at each level is alpha x_0", _MARGINAL, points, mean, at=at),
        tried("x_0 known: without fresh noise, each level has sigma eps", _DDIM, points, noise,
              at=at, note="every point takes noise"),
        tried("x_0 known: the variance at each level is sigma²", _MARGINAL, points, var,
              at=at, note="no point takes noise"),
        tried("at clean data the sample is the last x_0 as read, without noise", _ALGORITHM_2,
              ends, lands, at=at, note="it does not end at clean data"),
    ]  # fmt: skip
    if chosen:
        said = f"above sigma² at {len(chosen)} points, and at most what N(0, I) needs: a choice"
        findings[4] = findings[4]._replace(note=said)
    return findings


def _noisy(case: tuple[str, Unrolled, int]) -> Sides:
    _, u, i = case
    return Sides(u.levels.sigma[i], np.finfo(np.float64).tiny, how="at least")


def _falls(case: tuple[str, Unrolled, int]) -> Sides | None:
    """log-SNR at the end of a call beside that at its start; the other way for inversions."""
    _, u, i = case
    here, there = float(u.levels.logsnr[i]), float(u.levels.logsnr[i + 1])
    if u.levels.logsnr[-1] < u.levels.logsnr[0]:
        here, there = there, here
    if there < here and u.z[i + 1, i]:
        return Sides(0, 0, how="at least")
    return Sides(there, here, 64 * EPS * (1 + min(abs(here), abs(there))), "at least")


def _told(made: list[_Table], precision: float) -> Finding:
    """Each level beside the schedule's at the time that it has, which the network is told."""

    def sides(case: tuple[str, Schedule, Level]) -> Sides:
        _, schedule, t = case
        wanted, allowed = schedule(t.time), 256 * precision
        if np.isfinite(wanted.logsnr):  # both it and the time are rounded
            clean, noisiest = schedule.ends
            before = schedule(max(clean, t.time - allowed * (noisiest - clean)))
            moved = abs(before.logsnr - wanted.logsnr)
            allowed = allowed * (1 + abs(wanted.logsnr)) + (moved if np.isfinite(moved) else 0)
        return Sides(np.array(t[1:]), np.array(wanted[1:]), allowed)

    cases = [
        (f"{u.where}point {i}, time {t.time:g}", u.of, t)
        for u in made
        if u.of is not None
        for i, t in enumerate(map(u.table.levels.take, range(u.table.nfe + 1)))
    ]
    law = "each level has the log-SNR, alpha and sigma of the schedule at its time"
    return tried(law, _MARGINAL, cases, sides, at=itemgetter(0))


def _counts(made: list[_Table], calls: Callable[[int], int] | None) -> Finding:
    law = "one step more is as many network calls more"
    if calls is not None:
        return tried(
            "so many steps are the network calls that are claimed", _RESPACED, made,
            lambda u: Sides(u.table.nfe, calls(u.steps)), at=lambda u: u.where.rstrip(", "),
        )  # fmt: skip
    later = [u for u in made if u.steps >= 2]
    more = [
        (b.table.nfe - a.table.nfe) / (b.steps - a.steps)
        for a, b in pairwise(later)
        if a.of is b.of or getattr(a.of, "T", 0) == getattr(b.of, "T", 1)
    ]
    if not more:
        return Finding(law, _RESPACED, note="there are too few tables to compare")
    each = float(np.median(more))
    extra = float(np.median([u.table.nfe - each * u.steps for u in later]))
    return tried(
        law, _RESPACED, later, lambda u: Sides(u.table.nfe, each * u.steps + extra),
        at=lambda u: u.where.rstrip(", "),
    )  # fmt: skip


def _numbers(sampler: Sampler | Unrolled) -> Array:
    u = _unrolled(sampler)
    return np.concatenate([a.reshape(-1) for a in (*u.levels, u.x, u.y, u.z)])


def _equal(found: Array, wanted: Array) -> Sides:
    if found.shape != wanted.shape:
        raise ValueError(f"{len(found)} numbers are made, and then {len(wanted)}")
    return Sides(found, wanted)


def _pure(maker: Solver, schedule: Schedule, few: list[int]) -> Finding:
    """Made again, at once and after a table of another count, a table is the same."""

    def sides(n: int) -> Sides:
        first, again = (_numbers(maker(schedule, n)) for _ in range(2))
        maker(schedule, few[-1] if n != few[-1] else few[0])
        return _equal(np.append(again, _numbers(maker(schedule, n))), np.append(first, first))

    law = "a pure function: the same arguments give the same table again"
    return tried(law, _RESPACED, few, sides, at=_steps)


def _in_threads(maker: Solver, schedule: Schedule, few: list[int]) -> Finding:
    counts = few * 3
    law = "a pure function: tables that are made at once in threads are those made in turn"

    def numbers(n: int) -> Array:
        return _numbers(maker(schedule, n))

    try:
        alone = {n: numbers(n) for n in set(counts)}
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(numbers, counts))
    except Exception as error:
        return Finding(law, _RESPACED, 1, failure=f"it raises {type(error).__name__}: {error}")
    pairs = list(zip(counts, together, strict=True))
    return tried(
        law, _RESPACED, pairs, lambda pair: _equal(pair[1], alone[pair[0]]),
        at=lambda pair: _steps(pair[0]),
    )  # fmt: skip


def _taken(schedule: Schedule, steps: Sequence[int]) -> list[int]:
    """Those counts of steps for which a schedule has times, the least first."""
    return [n for n in sorted(set(steps)) if not isinstance(schedule, Discrete) or n <= schedule.T]


def _spread(maker: Solver, schedule: Schedule, steps: Sequence[int] | None) -> Finding:
    """The variance drawn of N(0, 1/4) from the exact q(x_T), beside that of the data."""
    data = GaussianOracle([0.0], 0.25)
    top = schedule.T if isinstance(schedule, Discrete) else 1000
    usual = (top // 100, 2 * (top // 100), top // 4)
    counts = _taken(schedule, usual if steps is None else steps)
    # Of first order an error falls to a twelfth; to a quarter, if the few steps are too few.
    few = [n for n in counts if 12 * n <= counts[-1]][-2:]

    def off(n: int) -> float:
        table = _unrolled(maker(schedule, n))
        end, drawn = table.levels.take(-1), law(table, data, exact_start=True).variances[0]
        return abs(float(np.log(drawn / (end.alpha**2 * 0.25 + end.sigma**2))))

    return tried(
        "of N(0, 1/4) the log of the variance drawn tends to the data's as the steps grow",
        "Ho et al. 2020, section 2",
        counts[-1:] if len(few) == 2 else [],
        lambda n: Sides(off(n), max(map(off, few)) / 4 + 1e-8, how="at most"),
        at=lambda n: f"{n} steps, beside a quarter of what it is off after {few[0]} or {few[1]}",
        note="it needs a count of steps, and two of at most a twelfth of it",
    )


def _order(maker: Solver, order: float, schedule: Schedule | None) -> Finding:
    name = f"the measured order of convergence is at least {order:g}, rounded to a whole number"
    source = "Hairer et al. 1993, II.3"
    if find_spec("scipy") is None:
        return Finding(name, source, note="scipy is missing")

    def sides(steps: tuple[int, ...]) -> Sides:
        # So many steps do not show the order itself, but a number nearer to it than to another.
        return Sides(convergence(maker, steps, schedule).slopes[-1], order - 0.5, how="at least")

    return tried(name, source, [(80, 160, 320)], sides, at=lambda steps: f"{steps[-1]} steps")
