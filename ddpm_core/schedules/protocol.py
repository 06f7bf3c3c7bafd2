"""What a schedule is: a function from a time to a noise level."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import astype, is_half, on_host, shown, widen
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

        time: a number gives a level of Python floats; a NumPy array, a list or a tuple one of
            float64 arrays; they must lie within `ends`. For an array of another library the level
            has its library and device, and its values are not checked
        dtype: of the level of an array of another library; by default that of time, or float32
            for integers. A level in half precision is computed in float32, cast last, and keeps
            its `time` in float32, since bfloat16 cannot represent 999
        """
        ...

    def at(self, logsnr: Scalar) -> Level:
        """The level with this log-SNR, a number or a NumPy array; the inverse of the schedule."""
        ...


def check_is_schedule(schedule: Any) -> None:
    """TypeError unless the argument has the ends of a `Schedule`."""
    if not hasattr(schedule, "ends"):
        raise TypeError(
            f"schedule must be a schedule, such as linear(1000), but is {shown(schedule)}"
        )


def host_times(time: Any, ends: tuple[float, float]) -> Array | None:
    """Times as a float64 NumPy array, checked to lie within the ends; None for device times."""
    if isinstance(time, Level):
        raise TypeError("time must be a number or an array, but is a Level: it needs no schedule")
    if not (on_host(time) or isinstance(time, (list, tuple))):
        return None
    time = np.asarray(time, dtype=np.float64)
    check_within(time, ends)
    return time


def device_times(time: Array, dtype: Any) -> tuple[Any, Array, Any]:
    """The library of device times; the times as floats, to look levels up; and the level's dtype.

    The floats are in the dtype that was asked for, but in float32 at least.
    """
    xp = array_namespace(time)
    whole = xp.isdtype(time.dtype, "integral")
    if dtype is None:
        dtype = xp.float32 if whole else time.dtype
    dtype = xp.empty(0, dtype=dtype).dtype  # the dtype that a class like numpy.float32 names
    if not is_half(dtype):
        return xp, astype(xp, time, dtype), dtype
    return xp, xp.astype(time, xp.float32) if whole else widen(xp, time), dtype


def cast_last(xp: Any, level: Level, dtype: Any) -> Level:
    """The level in its dtype, but for its time, which half precision does not hold."""
    time, *numbers = level
    return Level(time, *(astype(xp, number, dtype) for number in numbers))


def check_within(time: Array, ends: tuple[float, float]) -> None:
    bad = ~((time >= ends[0]) & (time <= ends[1]))
    if np.any(bad):
        raise ValueError(
            f"time must lie within [{ends[0]:g}, {ends[1]:g}], but is {first_bad(time, bad)}"
        )


def first_bad(values: Array, bad: Array) -> float:
    return float(np.ravel(values)[int(np.argmax(bad))])
