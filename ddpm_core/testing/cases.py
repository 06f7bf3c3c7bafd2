"""A law tried case by case, the simplest first, so that what is told is the simplest failure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from ddpm_core.testing.report import Finding
from ddpm_core.typing import Array

T = TypeVar("T")

EPS = float(np.finfo(np.float64).eps)


class Sides(NamedTuple):
    """Both sides of a law at a case; arrays broadcast.

    found: what the object says
    wanted: what it must be, or the bound on it
    allowed: how far rounding may put them apart
    how: found must be equal to wanted, at most it, or at least it; the same in all cases of a law
    """

    found: Any
    wanted: Any
    allowed: Any = 0.0
    how: Literal["", "at most", "at least"] = ""


def tried(
    law: str,
    source: str,
    cases: Iterable[T],
    sides: Callable[[T], Sides | str | None],
    *,
    at: Callable[[T], str] = str,
    note: str = "",
) -> Finding:
    """A law over cases, the simplest first.

    sides: case -> its `Sides`; what is wrong, in words; or None where the law says nothing. An
        exception breaks the law
    at: case -> where that is, in words
    note: why, where the law says nothing of any case
    """
    kept: list[T] = []
    worst: list[tuple[float, float, float]] = []
    how: Any = ""
    for case in cases:
        try:
            with np.errstate(all="ignore"):
                both = sides(case)
                if both is None:
                    continue
                if isinstance(both, str):
                    return Finding(law, source, len(kept) + 1, failure=f"at {at(case)}: {both}")
                worst.append(_worst_of(both))
                how = both.how
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            failure = f"at {at(case)}: it raises {type(error).__name__}: {first}"
            return Finding(law, source, len(kept) + 1, failure=failure)
        kept.append(case)
    if not kept:
        return Finding(law, source, note=note or "there is no case to try")
    found, wanted, allowed = (np.array(part, dtype=np.float64) for part in zip(*worst, strict=True))
    return compared(law, source, Sides(found, wanted, allowed, how), lambda i: at(kept[i]))


def compared(law: str, source: str, both: Sides, at: Callable[[int], str]) -> Finding:
    """A law over cases that lie along one axis, the simplest first: of arrays (n,).

    at: the number of a case -> where that is, in words
    """
    with np.errstate(all="ignore"):
        error, allowed = (np.atleast_1d(a) for a in _error(both))
        bad, size = ~(error <= allowed), _size(error, allowed)
    found, wanted = (np.broadcast_to(a, error.shape) for a in both[:2])
    j, n = int(np.argmax(size)), len(error)
    if not bad.any():
        return Finding(law, source, n, float(error[j]), float(allowed[j]))
    i = int(np.argmax(bad))
    ours, theirs = _told(found[i], wanted[i])
    bound = f"{both.how} {theirs}" if both.how else theirs
    failure = f"at {at(i)}: {ours} and not {bound}"
    if n > 1:
        failure += f"; {np.count_nonzero(bad)} of {n} cases break it, the worst"
    failure += f"{',' if n == 1 else ''} off by {error[j]:.3g}"
    if n > 1:
        failure += f" at {at(j)}"
    if allowed[j] > 0:
        failure += f", where {allowed[j]:.3g} is rounding"
    return Finding(law, source, n, float(error[j]), float(allowed[j]), failure)


def _told(found: float, wanted: float) -> tuple[str, str]:
    """Two numbers with so many digits that they differ."""
    for digits in (6, 9, 12):
        if f"{found:.{digits}g}" != f"{wanted:.{digits}g}":
            return f"{found:.{digits}g}", f"{wanted:.{digits}g}"
    return repr(float(found)), repr(float(wanted))


def _error(both: Sides) -> tuple[Array, Array]:
    """How far the sides are apart, and may be."""
    found, wanted, allowed = (np.asarray(a, dtype=np.float64) for a in both[:3])
    if both.how == "at most":
        error = np.where(found <= wanted, 0.0, found - wanted)
    elif both.how == "at least":
        error = np.where(found >= wanted, 0.0, wanted - found)
    else:
        error = np.where(found == wanted, 0.0, np.abs(found - wanted))
    error, allowed, _ = np.broadcast_arrays(error, allowed, found)
    return error, allowed


def _size(error: Array, allowed: Array) -> Array:
    """The error in units of what is allowed; a NaN is the largest."""
    ratio = error / np.where(allowed == 0, np.finfo(np.float64).tiny, allowed)
    return np.nan_to_num(ratio, nan=math.inf, posinf=math.inf)


def _worst_of(both: Sides) -> tuple[float, float, float]:
    """(found, wanted, allowed) of the element that is furthest off."""
    if all(isinstance(number, (int, float)) for number in both[:3]):
        return float(both.found), float(both.wanted), float(both.allowed)
    error, allowed = _error(both)
    if not error.size:
        return 0.0, 0.0, 0.0
    i = int(np.argmax(_size(error, allowed)))
    found, wanted = (float(np.broadcast_to(a, error.shape).flat[i]) for a in both[:2])
    return found, wanted, float(allowed.flat[i])
