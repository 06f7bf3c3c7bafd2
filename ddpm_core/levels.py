"""Noise levels: how much of x_t is data, and how much is noise.

Every formula of the library is in terms of levels, most of them between two levels s < t. An
integer index, a continuous time or a sigma are ways to make one (see `schedules`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_core.arrays import exp, expm1, is_number, kind, log_sigmoid, on_host
from ddpm_core.typing import Array, Scalar


class Level(NamedTuple):
    """A noise level t: q(x_t | x_0) = N(α x_0, σ² I), with α² + σ² = 1.

    The fields are numbers, or arrays of one shape: (), (B,) for one level per sample, or (n,) for
    a grid. Those of a host level are Python floats or NumPy arrays.

    Clean data is the level with log-SNR +inf, α = 1, σ = 0. A sampler may end there, but no network
    is called there.

    >>> from_logsnr(0.0, time=500).alpha  # as much data as noise
    0.7071067811865476
    """

    time: Scalar  #: a label for networks and people; the mathematics never reads it
    logsnr: Scalar  #: λ = log(α² / σ²), falling as time rises (Kingma et al. 2021)
    alpha: Scalar  #: α = sqrt(ᾱ), the scale of the data (Ho et al. 2020)
    sigma: Scalar  #: σ = sqrt(1 - ᾱ), the scale of the noise

    def take(self, index: Any) -> Level:
        """The levels at an index, a slice or an array of indices of a grid of levels.

        One level of a NumPy grid has Python floats.
        """

        def chosen(field: Array) -> Scalar:
            value: Any = field[index]
            return float(value) if is_number(value) else value

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

    In (0, 1], and 1 at s = clean data. From device levels in float32, τ of neighbours of a schedule
    of 1000 steps has a relative error of up to 2e-4; host levels are float64.

    ValueError if t is cleaner than s, for host levels.
    """
    check_levels(t=t, s=s)
    _check_order(t, s)
    return -expm1(t.logsnr - s.logsnr)


def check_levels(**levels: Level) -> None:
    """TypeError unless each argument is a `Level`.

    >>> check_levels(t=500)
    Traceback (most recent call last):
    TypeError: t must be a Level, but is 500: pass schedule(500)
    """
    for name, t in levels.items():
        if not isinstance(t, Level):  # pyright: ignore[reportUnnecessaryIsInstance]
            what = f"{t!r}: pass schedule({t!r})" if is_number(t) else kind(t)
            if getattr(t, "ndim", 0) == 1:
                what += f": pass schedule({name}) if these are times"
            raise TypeError(f"{name} must be a Level, but is {what}")


def is_without_data(t: Level) -> bool:
    """Whether a host level, or any of several, has α = 0. A device level is not looked at."""
    if is_number(t.alpha):
        return t.alpha == 0
    return on_host(t.alpha) and bool(np.any(t.alpha == 0))


def _check_order(t: Level, s: Level) -> None:
    if is_number(t.logsnr) and is_number(s.logsnr):
        swapped = t.logsnr > s.logsnr
    elif on_host(t.logsnr) and on_host(s.logsnr):
        swapped = bool(np.any(t.logsnr > s.logsnr))
    else:
        return
    if swapped:
        at_t, at_s = (np.ravel(a) for a in np.broadcast_arrays(t.logsnr, s.logsnr))
        i = int(np.argmax(at_t > at_s))
        raise ValueError(
            f"s must be cleaner than t, but log-SNR is {at_s[i]:.6g} at s and {at_t[i]:.6g} at t; "
            f"are they swapped?"
        )


def steps_of(levels: Level) -> tuple[Level, Level]:
    """The n steps of a grid of n + 1 levels: their noisier ends t (n,), and their ends s (n,)."""
    return levels.take(slice(None, -1)), levels.take(slice(1, None))
