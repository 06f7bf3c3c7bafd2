"""`check_noise`: the laws of a source of normal noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np

from ddpm_core.testing.cases import Sides, tried
from ddpm_core.testing.report import Report, raising
from ddpm_core.typing import Array, Noise

_EPS, _COUNTER = "Ho et al. 2020, Eq. 4", "Salmon et al. 2011, section 2"
_ERRORS = 6.0  #: standard errors
_LEAST = 2000  #: numbers: of fewer, chance alone takes right moments over 6 standard errors
_P = 1e-6  #: of Kolmogorov's test: of a million right draws one is called wrong


def examine_noise(
    noise: Noise,
    shape: tuple[int, ...] = (4, 4096),
    *,
    to_numpy: Callable[[Any], Array] = np.asarray,
) -> Report:
    """Which laws a source of noise obeys, and which it breaks.

    noise: (step, shape) -> a standard normal array
    shape: (B, *D), B at least 2, of what is drawn, in all 2000 numbers or more
    to_numpy: from the library of the noise

    That a batch begins with the samples of a smaller one is a law of `portable_noise`, which keeps
    sample 17 the same picture in any batch; a generator with one stream breaks it.

    >>> from ddpm_core import portable_noise
    >>> check_noise(portable_noise(0)).broken
    ()
    >>> rng = np.random.default_rng(0)
    >>> broken = examine_noise(lambda step, shape: rng.standard_normal(shape)).broken
    >>> [finding.law for finding in broken]
    ['a pure function of the step', 'a batch begins with the samples of a smaller one']
    """
    if len(shape) < 2 or shape[0] < 2 or math.prod(shape) < _LEAST:
        raise ValueError(
            f"shape must be (B, *D) with B at least 2, and {_LEAST} numbers or more in all, but is "
            f"{shape}"
        )
    steps = (0, 1, 2, 7)

    def draw(step: int, shape: tuple[int, ...] = shape) -> Array:
        return np.array(to_numpy(noise(step, shape)))

    def wide(step: int) -> Array:
        return draw(step).astype(np.float64).reshape(shape[0], -1)

    def form(step: int) -> Sides | str:
        x = draw(step)
        if x.shape != shape:
            return f"shape {x.shape}, where {shape} was asked for"
        if not np.issubdtype(x.dtype, np.floating):
            return f"dtype {x.dtype}, which is no floating-point number"
        return Sides(np.isfinite(x), True)

    def pure(step: int) -> Sides:
        first = draw(step)
        draw(step + 1)
        return Sides(draw(step), first)

    def begins(step: int) -> Sides:
        return Sides(draw(step, (shape[0] // 2, *shape[1:])), draw(step)[: shape[0] // 2])

    def moments(step: int) -> Sides:
        x = wide(step).ravel()
        found = np.array([x.mean(), (x**2).mean() - 1, (x**3).mean(), (x**4).mean() - 3])
        return Sides(found * np.sqrt(x.size / np.array([1, 2, 15, 96])), 0.0, _ERRORS)

    def distance(step: int) -> Sides:
        x = np.sort(wide(step).ravel())
        below = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in x])
        rank = np.arange(x.size + 1) / x.size
        largest = max(np.abs(below - rank[1:]).max(), np.abs(below - rank[:-1]).max())
        return Sides(largest * math.sqrt(x.size), 0.0, math.sqrt(math.log(2 / _P) / 2))

    def correlation(a: Array, b: Array) -> Sides:
        return Sides((a * b).mean() * math.sqrt(a.size), 0.0, _ERRORS)

    def beside(pair: tuple[int, int]) -> Sides:
        return correlation(wide(pair[0]), wide(pair[1]))

    def within(step: int) -> Sides:
        x = wide(step)
        found = [correlation(x[1:], x[:-1]).found]
        if x.shape[1] > 1:
            a, b = x[:, 1:], x[:, :-1]
            found += [correlation(a, b).found, correlation(a**2 - 1, b**2 - 1).found / 2]
        return Sides(np.array(found), 0.0, _ERRORS)

    two = list(combinations(steps, 2))
    findings = (
        tried("of the shape asked for, finite, in floating point", _EPS, steps, form, at=_step),
        tried("a pure function of the step", _COUNTER, steps, pure, at=_step),
        tried("a batch begins with the samples of a smaller one", _COUNTER, steps, begins,
              at=_step),
        tried("moments 1 to 4 of N(0, 1), in standard errors", _EPS, steps, moments, at=_step),
        tried(f"Kolmogorov's distance from N(0, 1), at p = {_P:g}", "Kolmogorov 1933", steps,
              distance, at=_step),
        tried("steps are independent: their correlation, in standard errors", _EPS, two, beside,
              at=lambda pair: f"steps {pair[0]} and {pair[1]}"),
        tried("samples and neighbours are independent, in standard errors", _EPS, steps, within,
              at=_step),
    )  # fmt: skip
    return Report("this noise", findings)


check_noise = raising(examine_noise)


def _step(step: int) -> str:
    return f"step {step}"
