"""What a schedule is: a function from a time to a noise level."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.typing import Array, Scalar


class Schedule(Protocol):
    """A map from times to noise levels, log-SNR falling as time rises."""

    @property
    def ends(self) -> tuple[float, float]:
        """The clean time and the noisiest time."""
        ...

    def __call__(self, time: Scalar, dtype: Any = None) -> Level:
        """The level at a time.

        time: a number of the host gives Python floats, a NumPy array or a sequence float64 arrays;
            both are checked to lie within `ends`. An array of another library keeps its library,
            device and dtype and is not checked.
        dtype: of the level, where time is an array of another library; by default that of time,
            or float32 where time is of integers
        """
        ...

    def at(self, logsnr: Scalar) -> Level:
        """The level of a log-SNR of the host; the inverse of the schedule."""
        ...


def check_within(time: Array, ends: tuple[float, float]) -> None:
    bad = ~((time >= ends[0]) & (time <= ends[1]))
    if np.any(bad):
        raise ValueError(
            f"time must lie within [{ends[0]:g}, {ends[1]:g}], but is {first_bad(time, bad)}"
        )


def first_bad(values: Array, bad: Array) -> float:
    return float(np.ravel(values)[int(np.argmax(bad))])
