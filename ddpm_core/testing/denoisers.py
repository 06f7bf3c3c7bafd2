"""`check_denoiser`: the laws of a denoiser, beside an exact one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_core.denoisers import Denoiser
from ddpm_core.levels import Level
from ddpm_core.schedules import Schedule, linear
from ddpm_core.testing.cases import Sides, tried
from ddpm_core.testing.probes import data_of, noisy, roundings, some_levels, time_of
from ddpm_core.testing.report import Report, raising
from ddpm_core.typing import Array

_TWEEDIE = "Efron 2011, Tweedie's formula"
_ALGORITHM_2 = "Ho et al. 2020, Algorithm 2"


def examine_denoiser(
    denoise: Denoiser,
    oracle: Denoiser,
    schedule: Schedule | None = None,
    *,
    x_0: Any = None,
    asarray: Callable[[Array], Any] = np.asarray,
    to_numpy: Callable[[Any], Array] = np.asarray,
) -> Report:
    """Which laws a denoiser obeys, and which it breaks.

    denoise: (x_t, level) -> x_0
    oracle: the exact denoiser of the same data
    schedule: by default `linear`, of whose levels some are tried, both ends among them
    x_0: samples of the data (B, *D); by default the means of the oracle
    asarray, to_numpy: to and from the library of the denoiser; the dtype that asarray makes says
        how exact it must be

    >>> from ddpm_core import GaussianOracle, Predictor, linear
    >>> schedule, data = linear(), GaussianOracle([0.0, 0.0], 1.0)
    >>> check_denoiser(Predictor(lambda x, _: 0 * x, schedule), data, schedule)
    Traceback (most recent call last):
    AssertionError: 1 law of this denoiser fails
    - x_0 is E[x_0 | x_t] (Efron 2011, Tweedie's formula): at time 251: 1.53221 and not 0.798927; \
11 of 11 cases break it, the worst off by 252 at time 1000, where 3.62e-12 is rounding
    """
    schedule = linear() if schedule is None else schedule
    data, levels = data_of(oracle, x_0), some_levels(schedule)
    clean = [t for t in levels if t.sigma < 0.3 * t.alpha]
    precision = float(np.finfo(to_numpy(asarray(np.zeros(1))).dtype).eps)

    def points(t: Level) -> Array:
        """x_t of the host, as rounded there."""
        return np.asarray(to_numpy(asarray(noisy(data, t))), dtype=np.float64)

    def call(x: Array, t: Level) -> Array:
        return np.asarray(to_numpy(denoise(asarray(x), t)), dtype=np.float64)

    def slack(t: Level, *arrays: Array) -> float:
        return precision * roundings(t) * max(1.0, *(float(np.abs(a).max()) for a in arrays))

    def exact(t: Level) -> Sides:
        wanted = np.asarray(oracle(points(t), t))
        return Sides(call(points(t), t), wanted, slack(t, wanted, points(t)))

    def limit(t: Level) -> Sides:
        x = points(t)
        return Sides(call(x, t), x / t.alpha, 8 * t.sigma / t.alpha)

    def finite(t: Level) -> Sides:
        x = points(t)
        found = np.stack([call(factor * x, t) for factor in (1.0, 0.0, 100.0)])
        return Sides(np.isfinite(found), True)

    def alone(t: Level) -> Sides:
        x = points(t)
        wanted = np.concatenate([call(x[i : i + 1], t) for i in range(len(x))])
        found = np.concatenate([call(x[:2], t), call(x, t)])  # by two, where pairs are unpacked
        return Sides(found, np.concatenate([wanted[:2], wanted]), slack(t, wanted, x))

    def mixed(t: Level) -> Sides:
        x = points(t)[:2] if len(data) > 1 else points(t)[::2][:2]
        both = Level(*(np.array([a, b]) for a, b in zip(t, levels[0], strict=True)))
        wanted = np.concatenate([call(x[:1], t), call(x[1:], levels[0])])
        return Sides(call(x, both), wanted, slack(t, wanted, x) + slack(levels[0], wanted, x))

    def pure(t: Level) -> Sides:
        x = asarray(points(t))
        first, before = np.array(to_numpy(denoise(x, t))), np.array(to_numpy(x))
        again = np.array(to_numpy(denoise(x, t)))
        return Sides(np.stack([again, to_numpy(x)]), np.stack([first, before]))

    def form(t: Level) -> Sides | str:
        x = asarray(points(t))
        found = denoise(x, t)
        if found.dtype != x.dtype:
            return f"x_t of {x.dtype} gives x_0 of {found.dtype}"
        if tuple(found.shape) != tuple(x.shape):
            return f"x_t of shape {tuple(x.shape)} gives x_0 of {tuple(found.shape)}"
        return Sides(0, 0)

    laws = (
        ("x_0 has the shape and the dtype of x_t", _ALGORITHM_2, levels, form),
        ("x_0 is finite, for x_t of any size", _ALGORITHM_2, levels, finite),
        ("x_0 is E[x_0 | x_t]", _TWEEDIE, levels, exact),
        ("at little noise x_0 is x_t / alpha, within 8 sigma / alpha", _TWEEDIE, clean, limit),
        ("a sample does not depend on those beside it", _ALGORITHM_2, levels, alone),
        ("levels (B,) are those of each sample", _ALGORITHM_2, levels, mixed),
        ("a pure function: twice the same, and x_t is not changed", _ALGORITHM_2, levels, pure),
    )
    findings = [tried(law, source, cases, sides, at=time_of) for law, source, cases, sides in laws]
    return Report("this denoiser", tuple(findings))


check_denoiser = raising(examine_denoiser)
