"""Denoisers: callables (x_t, level) -> x_0, which samplers, kernels and losses call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace

from ddpm_core import arrays
from ddpm_core.arrays import astype, check_function, device_of, is_number, on_host, same_library
from ddpm_core.levels import Level, check_levels
from ddpm_core.parameterisations import Parameterisation, check_readable, eps, to_x0
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.schedules.protocol import check_is_schedule
from ddpm_core.typing import Array


class Denoiser(Protocol):
    """E[x_0 | x_t], or an estimate of it."""

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        """x_0 of shape (B, *D) from x_t of that shape, at a level of shape () or (B,).

        cond: what the network is conditioned on, such as classes y
        """
        ...


class VarianceDenoiser(Denoiser, Protocol):
    """A denoiser that also returns the v of a learned variance, such as a `Predictor`."""

    def both(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        """x_0 and v, each (B, *D); v is None if the network returns none."""
        ...


@dataclass(frozen=True)
class Predictor:
    """A network, the schedule it was trained on, and what its output means: a denoiser.

    One object both trains and samples, so that the two cannot disagree.

    net: (x_t, timestep, **cond) -> (B, *D), or (B, 2 C, ...) if variance. timestep is (B,), in
        float32 whatever x_t's dtype, since bfloat16 cannot represent 999
    schedule: gives the timestep. On a `Discrete` schedule it is time - 1, but at least 0, as
        published checkpoints were trained. On a continuous one it is the time itself, which a
        network made for 0 .. 999 must scale
    predicts: what the output is; by default `eps`, as in Ho et al. 2020
    variance: the network also returns the v of a learned variance (Nichol & Dhariwal 2021)

    ValueError if the target does not determine x_0 at the schedule's noisiest level.
    """

    net: Callable[..., Array]
    schedule: Schedule
    predicts: Parameterisation = eps
    variance: bool = False

    def __post_init__(self) -> None:
        check_is_schedule(self.schedule)
        check_readable(self.predicts, self.schedule(self.schedule.ends[1]))

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        return self.both(x_t, t, **cond)[0]

    def both(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        """x_0, and the network's v of the variance, or None."""
        y, v = self.output(x_t, t, **cond)
        return to_x0(y, x_t, t, self.predicts), v

    def output(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        """The prediction y of the network, and the v of its variance or None: see `interpret`."""
        return self.interpret(self.net(x_t, self.timestep(x_t, t), **cond), x_t)

    def interpret(self, raw: Array, x_t: Array) -> tuple[Array, Array | None]:
        """The network's raw output for x_t as its prediction y, and the v of its variance or None.

        Both are (B, *D), in x_t's dtype.

        ValueError if the output has another shape than x_t calls for.
        """
        xp = same_library(x_t=x_t, y=raw)
        shape = tuple(x_t.shape)
        if self.variance and len(shape) < 2:
            raise ValueError(
                f"a learned variance needs x_t of shape (B, C, ...), but it is {shape}"
            )
        expected = (shape[0], 2 * shape[1], *shape[2:]) if self.variance else shape
        if tuple(raw.shape) != expected:
            raise ValueError(
                f"the network returned shape {tuple(raw.shape)} for x_t of shape {shape}; with "
                f"variance={self.variance} it must return {expected}"
            )
        y = astype(xp, raw, x_t.dtype)
        return (y[:, : shape[1], ...], y[:, shape[1] :, ...]) if self.variance else (y, None)

    def timestep(self, x_t: Array, t: Level) -> Array:
        """The timestep that the network is given at a level: (B,), float32.

        ValueError if a host level is not on the network's schedule.
        """
        check_levels(t=t)
        xp = array_namespace(x_t)
        if on_host(t.time):
            self._check_level(t)
        shift = 1.0 if isinstance(self.schedule, Discrete) else 0.0
        place = device_of(xp, x_t)
        if is_number(t.time):
            label = max(float(t.time) - shift, 0.0) if shift else float(t.time)
            return xp.full((x_t.shape[0],), label, dtype=xp.float32, **place)
        time = xp.asarray(t.time, dtype=xp.float32, **place)
        if shift:
            time = xp.maximum(time - shift, xp.zeros_like(time))
        return xp.broadcast_to(xp.reshape(time, (-1,)), (x_t.shape[0],))

    def _check_level(self, t: Level) -> None:
        known = self.schedule(t.time).logsnr
        numbers = is_number(known) and is_number(t.logsnr)
        if numbers and math.isclose(known, t.logsnr, rel_tol=1e-4, abs_tol=1e-4):
            return  # without NumPy, which torch.compile does not trace
        # A level that was computed on the device is only as accurate as float32.
        close = np.isclose(known, t.logsnr, rtol=1e-4, atol=1e-4)
        if not close.all():
            each = np.broadcast_arrays(t.time, t.logsnr, known)
            time, logsnr, known = (np.ravel(a)[int(np.argmin(close))] for a in each)
            raise ValueError(
                f"the level at time {time:g} has log-SNR {logsnr:.6g}, but on the network's "
                f"schedule it has {known:.6g}: make levels and samplers with that schedule"
            )


def clip(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Clipped:
    """The denoiser with its x_0 clipped to the range of the data.

    Samplers compute eps from the clipped x_0, so that x_t = α x_0 + σ eps still holds. An exact
    denoiser of data within [low, high] is not changed.
    """
    check_function("a Predictor", denoise=denoise)
    return Clipped(denoise, low, high)


@dataclass(frozen=True)
class Clipped:
    """What `clip` returns: a denoiser, which passes on the v of a learned variance."""

    denoise: Denoiser
    low: float
    high: float

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        return arrays.clip(self.denoise(x_t, t, **cond), self.low, self.high)

    def both(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        """The clipped x_0, and the wrapped denoiser's v; None if it has no method `both`."""
        both = getattr(self.denoise, "both", None)
        x_0, v = (self.denoise(x_t, t, **cond), None) if both is None else both(x_t, t, **cond)
        return arrays.clip(x_0, self.low, self.high), v
