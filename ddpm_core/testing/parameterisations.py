"""`check_parameterisation`: the laws of what a network may predict."""

from __future__ import annotations

import numpy as np

from ddpm_core.levels import Level, from_logsnr
from ddpm_core.parameterisations import (
    Parameterisation,
    determinant,
    eps,
    reading,
    target,
    to_eps,
    to_x0,
    x0,
)
from ddpm_core.schedules import Schedule, linear
from ddpm_core.testing.cases import EPS, Sides, tried
from ddpm_core.testing.probes import some_levels, time_of
from ddpm_core.testing.report import Finding, Report, raising
from ddpm_core.typing import Array

_PAIR = "Salimans & Ho 2022, section 4"
_X_0: Array = np.array([[1.0, 0.0, -0.5, 0.3]])
_EPS: Array = np.array([[0.0, 1.0, 2.0, -0.7]])


def examine_parameterisation(
    predicts: Parameterisation, schedule: Schedule | None = None
) -> Report:
    """Which laws a parameterisation obeys, and which it breaks.

    predicts: level -> (a, b), the target being a x_0 + b eps
    schedule: the levels of a network that predicts it; by default `linear`

    How much a rounding of the target grows in x_0 and in eps is noted.

    >>> from ddpm_core import linear, zero_terminal_snr
    >>> from ddpm_core.parameterisations import eps, v
    >>> check_parameterisation(v, zero_terminal_snr(linear())).broken
    ()
    >>> check_parameterisation(eps, zero_terminal_snr(linear()))
    Traceback (most recent call last):
    AssertionError: 2 laws of eps fail
    - the target and x_t determine x_0: alpha b - sigma a is not 0 (Salimans & Ho 2022, section \
4): at time 1000: it is 0, at alpha = 0, sigma = 1
    - x_0, eps -> target -> x_0, eps comes back (Salimans & Ho 2022, section 4): at time 1000: it \
raises ValueError: a prediction of eps says nothing of x_0 where alpha = 0, sigma = 1; predict v \
or x0 for alpha = 0, and call no network at sigma = 0
    """
    schedule = linear() if schedule is None else schedule
    levels = some_levels(schedule)

    def finite(t: Level) -> Sides:
        return Sides(np.isfinite(np.array(predicts(t), dtype=np.float64)), True)

    def determined(t: Level) -> Sides | str:
        return Sides(1, 1) if determinant(predicts, t) != 0 else f"it is 0, at {_scales(t)}"

    def comes_back(t: Level) -> Sides:
        x_t = t.alpha * _X_0 + t.sigma * _EPS
        y = target(_X_0, _EPS, t, predicts)
        found = np.stack([to_x0(y, x_t, t, predicts), to_eps(y, x_t, t, predicts)])
        return Sides(found, np.stack([_X_0, _EPS]), 16 * EPS * _lost(predicts, t))

    def along(t: Level) -> Sides:
        """A level beside others in an array."""
        both = Level(*(np.array([a, b]) for a, b in zip(t, levels[0], strict=True)))
        found = np.stack([np.broadcast_to(c, 2) for c in predicts(both)])
        wanted = np.array([predicts(t), predicts(levels[0])], dtype=np.float64).T
        return Sides(found, wanted, 4 * EPS * np.abs(wanted))

    laws = (
        ("a and b are finite", levels, finite),
        ("the target and x_t determine x_0: alpha b - sigma a is not 0", levels, determined),
        ("x_0, eps -> target -> x_0, eps comes back", levels, comes_back),
        ("at an array of levels it is what it is at each", levels, along),
    )
    findings = [tried(law, _PAIR, cases, sides, at=time_of) for law, cases, sides in laws]
    if not findings[1].failure:
        growth, at = max((max(map(abs, _on_target(predicts, t))), t.time) for t in levels)
        note = f"an error of the target grows up to {growth:.3g} times, at time {at:g}"
        findings[2] = findings[2]._replace(note=note)
    findings.append(_precise(predicts, levels))
    return Report(getattr(predicts, "__name__", "this parameterisation"), tuple(findings))


check_parameterisation = raising(examine_parameterisation)


def _scales(t: Level) -> str:
    return f"alpha = {t.alpha:.3g}, sigma = {t.sigma:.3g}"


def _on_target(predicts: Parameterisation, t: Level) -> list[float]:
    """The coefficients of the target in x_0 and in eps."""
    return [float(reading(predicts, wanted, t)[1]) for wanted in (x0, eps)]


def _lost(predicts: Parameterisation, t: Level) -> float:
    """How many roundings reading x_0 and eps may lose, with numbers of at most 3."""
    a, b = predicts(t)
    of_det = (abs(t.alpha * b) + abs(t.sigma * a)) / abs(float(determinant(predicts, t)))
    rows = [reading(predicts, wanted, t) for wanted in (x0, eps)]
    return max((2 + of_det) * 3 * (abs(u) + abs(v) * (abs(a) + abs(b))) for u, v in rows)


def _precise(predicts: Parameterisation, levels: list[Level]) -> Finding:
    """a and b beside those of a level with more digits, to which nothing cancels."""
    law, source = "a and b keep their digits near both ends", "Higham 2002, section 1.7"
    if np.finfo(np.longdouble).eps > EPS / 100:
        return Finding(law, source, note="this machine has no numbers of more digits than float64")

    def sides(t: Level) -> Sides:
        fine = from_logsnr(np.array([t.logsnr], dtype=np.longdouble), np.array([t.time]))
        wanted = np.array([float(np.ravel(c)[0]) for c in predicts(fine)])
        # log-SNR, of which alpha and sigma are exponentials, is rounded too.
        digits = 16 * EPS * (1 + abs(t.logsnr)) if np.isfinite(t.logsnr) else 16 * EPS
        return Sides(np.array(predicts(t), dtype=np.float64), wanted, digits * np.abs(wanted))

    return tried(law, source, [t for t in levels if np.isfinite(t.logsnr)], sides, at=time_of)
