"""Noise levels: the only notion of time that the mathematics knows.

A level says how much of x_t is data and how much is noise. Integer index, continuous time and
sigma are ways to make one (see `schedules`); every formula of the library is between two levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_core.arrays import exp, expm1, log_sigmoid
from ddpm_core.typing import Array, Scalar


class Level(NamedTuple):
    """A noise level t: q(x_t | x_0) = N(α x_0, σ² I), with α² + σ² = 1.

    The fields share one shape: Python floats for a level of the host, or arrays of shape (),
    (B,) for one level per sample, or (n,) for a grid.

    Clean data is an ordinary level: log-SNR +inf, α = 1, σ = 0. It is where a sampler ends;
    nothing is ever read there.

    >>> from_logsnr(0.0, time=500).alpha  # as much data as noise
    0.7071067811865476
    """

    time: Scalar  #: a label for networks and people; the mathematics never reads it
    logsnr: Scalar  #: λ = log(α² / σ²), falling as time rises (Kingma et al. 2021)
    alpha: Scalar  #: α = sqrt(ᾱ), the scale of the data (Ho et al. 2020)
    sigma: Scalar  #: σ = sqrt(1 - ᾱ), the scale of the noise

    def take(self, index: Any) -> Level:
        """The levels at an index, a slice or an array of indices of a grid of levels.

        One level of a grid of the host has Python floats.
        """

        def chosen(field: Array) -> Scalar:
            value: Any = field[index]
            return float(value) if isinstance(value, np.float64) else value

        return self.map(chosen)

    def map(self, function: Callable[[Scalar], Scalar]) -> Level:
        """The level with a function applied to each of its four fields, such as `float`."""
        return Level(*map(function, self))


def from_logsnr(logsnr: Scalar, time: Scalar) -> Level:
    """The level of a given log-SNR λ: α² = sigmoid(λ), σ² = sigmoid(-λ).

    logsnr: float or array, -inf and +inf included
    """
    alpha = exp(0.5 * log_sigmoid(logsnr))
    sigma = exp(0.5 * log_sigmoid(-logsnr))
    return Level(time, logsnr, alpha, sigma)


def tau(t: Level, s: Level) -> Scalar:
    """The share of x_t's noise that was added after s < t: τ = 1 - SNR_t / SNR_s = σ²_{t|s} / σ²_t.

    In (0, 1], and 1 at s = clean data. From levels of the device in float32, τ of neighbours of a
    schedule of 1000 steps carries a relative error of up to 2e-4; levels of the host are float64.

    ValueError if t is cleaner than s, where they are of the host.
    """
    _check_order(t, s)
    return -expm1(t.logsnr - s.logsnr)


def _check_order(t: Level, s: Level) -> None:
    if isinstance(t.logsnr, float) and isinstance(s.logsnr, float):
        swapped = t.logsnr > s.logsnr
    elif all(isinstance(level.logsnr, (float, np.ndarray)) for level in (t, s)):
        swapped = bool(np.any(t.logsnr > s.logsnr))
    else:
        return  # of the device
    if swapped:
        at_t, at_s = (np.ravel(a) for a in np.broadcast_arrays(t.logsnr, s.logsnr))
        i = int(np.argmax(at_t > at_s))
        raise ValueError(
            f"s must be cleaner than t, but log-SNR is {at_s[i]:.6g} at s and {at_t[i]:.6g} at t; "
            f"are they swapped?"
        )


def steps_of(levels: Level) -> tuple[Level, Level]:
    """The levels (n + 1,) of a grid as the pairs of its steps: all t (n,), and all s < t (n,)."""
    return levels.take(slice(None, -1)), levels.take(slice(1, None))
