"""Laws of solvers that were unrolled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from ddpm_core.arrays import log_sigmoid
from ddpm_core.certificates import Convergence, convergence, law
from ddpm_core.levels import Level
from ddpm_core.oracles import GaussianOracle
from ddpm_core.samplers import Unrolled
from ddpm_core.schedules import EDM, Schedule, linear
from ddpm_core.testing.cases import Sides, compared
from ddpm_core.testing.report import Finding
from ddpm_core.testing.samplers import examine_sampler

LINEAR = linear()
STEPS = 20
COUNTS = (42, 84, 168)  #: multiples of 2 and 3, for single-step solvers
NORMAL = GaussianOracle([0.0], 0.25)
ANY = EDM(1e-7, 1e7)  #: a schedule that has every level

#: How laws of `check_sampler` begin.
MEAN, LAST = "x_0 known: the mean", "at clean data the sample"


def on_levels(
    schedule: Schedule, solver: Callable[..., Any], levels: Level, **options: Any
) -> Unrolled:
    """Our solver on levels that a foreign one visits."""
    noisiest = schedule(schedule.ends[1]).logsnr  # theirs may round past it
    times = np.array(schedule.at(np.maximum(levels.logsnr, noisiest)).time)
    return solver(schedule, len(times) - 1, times=times, **options).unroll()


def same(
    theirs: Unrolled, ours: Unrolled, name: str, *, points: Any = None, allowed: float = 1e-9
) -> Finding:
    """Its matrices are those of ours: relative to their largest entry, or to 1."""
    label = f"it is {name}"
    source = "this library's tables"
    if theirs.nfe != ours.nfe:
        failure = f"{theirs.nfe} network calls and not {ours.nfe}"
        return Finding(label, source, 1, failure=failure)
    points = slice(None) if points is None else points
    pairs = ((theirs.x, ours.x), (theirs.y, ours.y), (theirs.z, ours.z))
    off = np.stack(
        [
            np.abs(a - b).reshape(len(a), -1).max(axis=1) / max(1.0, np.abs(b).max())
            for a, b in pairs
        ]
    ).max(axis=0)[points]
    numbers = np.arange(len(theirs.x))[points]
    bad = ~(off <= allowed)
    worst = float(off.max())
    if not bad.any():
        return Finding(label, source, len(off), worst, allowed)
    first = int(np.argmax(bad))
    failure = (
        f"point {numbers[first]} is a combination that is off by {off[first]:.3g}; "
        f"{np.count_nonzero(bad)} of {len(off)} points differ, by {worst:.3g} at most"
    )
    return Finding(label, source, len(off), worst, allowed, failure)


def solver_laws(
    unrolled_on: Callable[[Level], Unrolled],
    levels: Level,
    ours: Callable[..., Any] | None = None,
    name: str = "",
    *,
    p: float | None = None,
    at: Any = None,
    points: Any = None,
    allowed: float = 1e-9,
    counts: Iterable[int] = COUNTS,
) -> Iterable[Finding]:
    """What is asked of a foreign solver on any levels.

    unrolled_on: (n + 1 levels, the noisiest first) -> that solver there
    levels: where it is compared with ours
    ours, name: the solver that it must be, if there is one
    p: its order, if it is measured
    at: which of its points are those of ours; points: which are compared
    """
    u = unrolled_on(levels)
    if ours is not None:
        mine = on_levels(ANY, ours, u.levels.take(slice(None) if at is None else at))
        yield same(u, mine, name, points=points, allowed=allowed)
    yield from table_laws(u)
    if p is not None:

        def solver(schedule: Schedule, n: int, times: Any) -> Unrolled:
            return unrolled_on(schedule(times))

        yield order(solver, p, counts)


def table_laws(u: Unrolled, *laws: str, precision: float = 1e-9) -> list[Finding]:
    """The laws of `check_sampler` that a table has, or those whose names begin so."""
    found = examine_sampler(u, precision=precision).findings
    return [f for f in found if not laws or f.law.startswith(laws)]


def order(solver: Callable[..., Any], p: float, counts: Iterable[int] = COUNTS) -> Finding:
    """The order of convergence that its name or its paper gives it."""
    return order_of(convergence(solver, list(counts)), p)


def order_of(found: Convergence, p: float) -> Finding:
    a, b = (int(n) for n in found.steps[-2:])
    slope, (before, after) = float(found.slopes[-1]), found.errors[-2:]
    finding = compared(
        f"its order of convergence is at least {p:g}",
        "measured on exact denoisers",
        Sides(np.array([slope]), np.array([float(p)]), 0.25, "at least"),
        lambda i: f"{a} to {b} steps, where the error falls from {before:.2g} to {after:.2g}",
    )
    return finding._replace(note=f"measured {slope:.1f}")


def labels(u: Unrolled, schedule: Schedule, allowed: float = 0.01) -> Finding:
    """The network is told the level at which x is."""
    told = schedule(np.minimum(u.levels.time[:-1], schedule.ends[1])).logsnr
    distinct = len(set(u.levels.time[:-1]))
    return compared(
        "the network is told the log-SNR of its input",
        "its own training",
        Sides(told, u.levels.logsnr[:-1], allowed),
        lambda i: f"call {i}, told time {u.levels.time[i]:g}, {distinct} times for {u.nfe} calls",
    )


def drawn(u: Unrolled, wanted: float, allowed: float) -> Finding:
    """The variance that it draws with the exact denoiser of N(0, 1/4)."""
    found = np.array([float(law(u, NORMAL).variances[0])])
    return compared(
        "the variance drawn of N(0, 1/4)",
        "exact, by its matrices",
        Sides(found, np.array([wanted]), allowed),
        lambda i: f"{u.nfe} steps",
    )


def betas_of(levels: Level) -> list[float]:
    """The betas of training levels, given the noisiest first."""
    log_abar = log_sigmoid(np.asarray(levels.logsnr))[::-1]
    return (-np.expm1(np.diff(log_abar, prepend=0.0))).tolist()


def without_last(u: Unrolled) -> Unrolled:
    """Without the step into clean data."""
    return Unrolled(u.levels.take(slice(None, -1)), u.x[:-1], u.y[:-1, :-1], u.z[:-1, :-1])


def numbers(
    label: str,
    source: str,
    found: Any,
    wanted: Any,
    allowed: Any,
    at: Callable[[int], str] = lambda i: f"case {i}",
    how: Literal["", "at most", "at least"] = "",
) -> Finding:
    """Arrays that must agree, element by element."""
    found, wanted = (np.atleast_1d(np.asarray(a, dtype=np.float64)) for a in (found, wanted))
    return compared(label, source, Sides(found, wanted, allowed, how), at)


def process_laws(
    scales: Callable[[Any], tuple[Any, Any]],
    source: str,
    t: Any,
    wanted: tuple[Any, Any] | None = None,
    sde: tuple[Any, Any] | None = None,
    *,
    allowed: float = 1e-9,
) -> Iterable[Finding]:
    """Of x_t = α x_0 + σ eps, and of an SDE dx = f x dt + g dw that has it.

    scales: times -> α, σ
    wanted: those of its paper, at t
    sde: f and g² at t
    """
    at: Callable[[int], str] = lambda i: f"t = {t[i]:g}"
    found = np.log(scales(t))
    if wanted is not None:
        for name, a, b in zip(("alpha", "sigma"), found, np.log(wanted), strict=True):
            yield numbers(f"log {name} of q(x_t | x_0)", source, a, b, allowed, at)
    if sde is not None:
        h, (f, g2) = 1e-6, sde
        rates = (np.log(scales(t + h)) - np.log(scales(t - h))) / (2 * h)
        slack = np.abs(rates) * 1e-5 + allowed / h
        law = "its SDE has that mean: f is the rate of log alpha"
        yield numbers(law, source, f, rates[0], slack[0], at)
        law = "its SDE has that variance: f + g² / 2σ² is the rate of log sigma"
        yield numbers(law, source, f + g2 / 2 / np.exp(found[1]) ** 2, rates[1], slack[1], at)


def fails_for(
    law: str, source: str, cases: Iterable[Any], wrong: Callable[[Any], str | None]
) -> Finding:
    """A law that a case keeps or breaks: `wrong` says how, or None."""
    said = [(case, wrong(case)) for case in cases]
    broken = [(case, words) for case, words in said if words is not None]
    if not broken:
        return Finding(law, source, len(said))
    case, words = broken[0]
    names = ", ".join(str(case) for case, _ in broken[:6]) + (", ..." if len(broken) > 6 else "")
    failure = f"{case}: {words}"
    if len(said) > 1:
        failure += f"; {len(broken)} of {len(said)} cases fail ({names})"
    return Finding(law, source, len(said), failure=failure)


def named(value: Any) -> str:
    """An option's value in words."""
    return f"{value:g}" if isinstance(value, float) else getattr(value, "__name__", str(value))
