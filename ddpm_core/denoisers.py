"""Denoisers: callables (x_t, level) -> x_0, the one thing that samplers and losses ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from array_api_compat import (
    array_namespace,
    is_cupy_namespace,
    is_dask_namespace,
    is_numpy_array,
    is_numpy_namespace,
)

from ddpm_core.arrays import astype, device_of, same_library
from ddpm_core.levels import Level
from ddpm_core.parameterisations import Parameterisation, check_readable, eps, to_x0
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.typing import Array


class Denoiser(Protocol):
    """E[x_0 | x_t], or an estimate of it."""

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        """x_0 of shape (B, *D) from x_t of that shape, at a level of shape () or (B,).

        cond: whatever the network is conditioned on, such as classes y
        """
        ...


@dataclass(frozen=True)
class Predictor:
    """A network, the schedule it was trained on, and how its output is read.

    The object that trains is the object that samples, so the two cannot disagree.

    net: (x_t, timestep, **cond) -> (B, *D), or (B, 2 C, ...) if variance. timestep is (B,) in
        float32, whatever x_t's dtype, since bfloat16 has no 999
    schedule: gives the timestep. A `Discrete` one gives time - 1, as published checkpoints were
        trained, and at least 0; a continuous one gives the time, which a network that is made for
        0 .. 999 must scale
    predicts: what the output is; `eps` as in Ho et al. 2020 by default
    variance: the network also returns the v of a learned variance (Nichol & Dhariwal 2021)

    ValueError if the target says nothing of x_0 at the schedule's noisiest level.
    """

    net: Callable[..., Array]
    schedule: Schedule
    predicts: Parameterisation = eps
    variance: bool = False

    def __post_init__(self) -> None:
        check_readable(self.predicts, self.schedule(self.schedule.ends[1]))

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        return self.both(x_t, t, **cond)[0]

    def both(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        """x_0, and the network's v of the variance, or None."""
        y, v = self.output(x_t, t, **cond)
        return to_x0(y, x_t, t, self.predicts), v

    def output(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        """The network's own output y in x_t's dtype, and its v of the variance, or None."""
        y = self.net(x_t, self.timestep(x_t, t), **cond)
        xp = same_library(x_t=x_t, y=y)
        channels = x_t.shape[1] if x_t.ndim > 1 else 1
        expected = tuple(x_t.shape)
        if self.variance:
            expected = (expected[0], 2 * channels, *expected[2:])
        if tuple(y.shape) != expected:
            raise ValueError(
                f"the network returned shape {tuple(y.shape)} for x_t of shape "
                f"{tuple(x_t.shape)}; with variance={self.variance} it must return {expected}"
            )
        y = astype(xp, y, x_t.dtype)
        return (y[:, :channels, ...], y[:, channels:, ...]) if self.variance else (y, None)

    def timestep(self, x_t: Array, t: Level) -> Array:
        """What the network is told of the level: (B,), float32.

        ValueError if a level of the host is not one of the network's schedule.
        """
        xp = array_namespace(x_t)
        if isinstance(t.time, (int, float)) or is_numpy_array(t.time):
            self._check_level(t)
        shift = 1.0 if isinstance(self.schedule, Discrete) else 0.0
        place = device_of(xp, x_t)
        if isinstance(t.time, (int, float)):
            label = max(t.time - shift, 0.0) if shift else t.time
            return xp.full((x_t.shape[0],), label, dtype=xp.float32, **place)
        time = xp.asarray(t.time, dtype=xp.float32, **place)
        if shift:
            time = xp.maximum(time - shift, xp.zeros_like(time))
        return xp.broadcast_to(xp.reshape(time, (-1,)), (x_t.shape[0],))

    def _check_level(self, t: Level) -> None:
        known = self.schedule(t.time).logsnr
        numbers = isinstance(known, float) and isinstance(t.logsnr, float)
        if numbers and math.isclose(known, t.logsnr, rel_tol=1e-4, abs_tol=1e-4):
            return  # without NumPy, which torch.compile does not trace
        known = np.asarray(known)
        # Levels of the device that came back to the host are only as sharp as float32.
        close = np.isclose(known, t.logsnr, rtol=1e-4, atol=1e-4)
        if not close.all():
            i = int(np.argmin(close))
            raise ValueError(
                f"the level at time {np.ravel(t.time)[i]:g} has log-SNR "
                f"{np.ravel(t.logsnr)[i]:.6g}, but on the network's schedule it has "
                f"{np.ravel(known)[i]:.6g}: make levels and samplers with that schedule"
            )


def clip(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Clipped:
    """The denoiser with its x_0 clipped to the range of the data.

    Samplers take eps from this x_0, so (x_0, eps) always explains x_t = α x_0 + σ eps. Where the
    data lies within [low, high], an exact denoiser is not changed by it.
    """
    return Clipped(denoise, low, high)


@dataclass(frozen=True)
class Clipped:
    """What `clip` returns: a denoiser, and, of a `Predictor`, its v of the variance as well."""

    denoise: Denoiser
    low: float
    high: float

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        return self._clipped(self.denoise(x_t, t, **cond))

    def both(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        """The clipped x_0, and the v of the variance that a `Predictor` gives, or None."""
        if not isinstance(self.denoise, Predictor):
            return self(x_t, t, **cond), None
        x_0, v = self.denoise.both(x_t, t, **cond)
        return self._clipped(x_0), v

    def _clipped(self, x_0: Array) -> Array:
        xp = array_namespace(x_0)
        # compat's clip synchronises on CuPy and goes through float64 on dask; theirs does not.
        if is_numpy_namespace(xp) or is_cupy_namespace(xp) or is_dask_namespace(xp):
            return x_0.clip(self.low, self.high)
        return xp.clip(x_0, self.low, self.high)
