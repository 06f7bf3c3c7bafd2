"""Denoisers: callables (x_t, level) -> x_0, which samplers, kernels and losses call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace

from ddpm_core import arrays
from ddpm_core.arrays import (
    astype,
    check_function,
    check_pair,
    combine,
    device_of,
    is_number,
    on_host,
    same_library,
    shown,
    sqrt,
)
from ddpm_core.levels import Level, check_levels, is_without_data
from ddpm_core.parameterisations import Parameterisation, check_readable, eps, to_x0
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.schedules.protocol import check_is_schedule
from ddpm_core.typing import Array, Scalar


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
class Coordinates:
    """What a network trained in other coordinates is shown of x_t and of its level.

    scale: level -> what multiplies x_t
    label: level -> the timestep

    A process x = a x_0 + s eps is at the level where α / σ = a / s, and there it is sqrt(a² + s²)
    x_t: that is the scale. What is predicted is a combination of x_0 and eps in all coordinates.
    """

    scale: Callable[[Level], Scalar]
    label: Callable[[Level], Scalar]


def straight(factor: float = 1.0) -> Coordinates:
    """Of a rectified flow, x = (1 - u) x_0 + u eps: shown x = x_t / (α + σ) at u = σ / (α + σ).

    factor: multiplies u in the label; 1000 for the flow networks of diffusers
    """
    return Coordinates(_straight_scale, partial(_straight_label, factor))


def unscaled() -> Coordinates:
    """Of EDM's D(x; k), x = x_0 + k eps: shown x = x_t / α at k = σ / α (Karras et al. 2022).

    It predicts `x0`. ValueError at a host level without data, where k is infinite.
    """
    return Coordinates(_unscaled_scale, _ratio)


def preconditioned(sigma_data: float = 0.5) -> Coordinates:
    """Of EDM's raw network F: shown c_in x at c_noise (Karras et al. 2022, Table 1).

    x = x_t / α,   c_in = 1 / sqrt(k² + sigma_data²),   c_noise = log(k) / 4,   k = σ / α

    It predicts `parameterisations.edm(sigma_data)`. ValueError as in `unscaled`.
    """
    return Coordinates(partial(_input_scale, sigma_data), _noise_label)


def _straight_scale(t: Level) -> Scalar:
    return 1 / (t.alpha + t.sigma)


def _straight_label(factor: float, t: Level) -> Scalar:
    return factor * t.sigma / (t.alpha + t.sigma)


def _unscaled_scale(t: Level) -> Scalar:
    return 1 / _with_data(t).alpha


def _ratio(t: Level) -> Scalar:
    return t.sigma / _with_data(t).alpha


def _input_scale(d: float, t: Level) -> Scalar:
    return 1 / sqrt(t.sigma**2 + (d * t.alpha) ** 2)


def _noise_label(t: Level) -> Scalar:
    return -_with_data(t).logsnr / 8


def _with_data(t: Level) -> Level:
    if is_without_data(t):
        raise ValueError(
            "sigma / alpha is infinite where alpha = 0, and no label for a network: use a schedule "
            "that keeps some data, such as EDM()"
        )
    return t


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
    coordinates: of the network, where they are not x_t and the schedule's time, such as
        `straight()`. They need a level and not its time: levels of any schedule are read

    ValueError if the target does not determine x_0 at the schedule's noisiest level.
    """

    net: Callable[..., Array]
    schedule: Schedule
    predicts: Parameterisation = eps
    variance: bool = False
    coordinates: Coordinates | None = None

    def __post_init__(self) -> None:
        check_is_schedule(self.schedule)
        noisiest = self.schedule(self.schedule.ends[1])
        check_readable(self.predicts, noisiest)
        if self.coordinates is not None:
            if not isinstance(self.coordinates, Coordinates):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"coordinates must be Coordinates, such as straight(), but is "
                    f"{shown(self.coordinates)}"
                )
            self.coordinates.label(noisiest)

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        return self.both(x_t, t, **cond)[0]

    def both(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        """x_0, and the network's v of the variance, or None."""
        y, v = self.output(x_t, t, **cond)
        return to_x0(y, x_t, t, self.predicts), v

    def output(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        """The prediction y of the network, and the v of its variance or None: see `interpret`."""
        time, x = self.timestep(x_t, t), x_t
        if self.coordinates is not None:
            x = combine((self.coordinates.scale(t), x_t))
        return self.interpret(self.net(x, time, **cond), x_t)

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

        ValueError if a host level is not on the network's schedule, and no coordinates say what
        the network is told of it.
        """
        check_levels(t=t)
        xp = array_namespace(x_t)
        label, shift = t.time, 0.0
        if self.coordinates is not None:
            label = self.coordinates.label(t)
        else:
            shift = 1.0 if isinstance(self.schedule, Discrete) else 0.0
            if on_host(t.time):
                self._check_level(t)
        place = device_of(xp, x_t)
        if is_number(label):
            label = max(float(label) - shift, 0.0) if shift else float(label)
            return xp.full((x_t.shape[0],), label, dtype=xp.float32, **place)
        time = xp.asarray(label, dtype=xp.float32, **place)
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


def both(denoise: Denoiser, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
    """x_0, and the v of a learned variance; None of a denoiser that has no method `both`."""
    method = getattr(denoise, "both", None)
    return (denoise(x_t, t, **cond), None) if method is None else method(x_t, t, **cond)


@dataclass(frozen=True)
class Wrapped:
    """A denoiser around others, made of a function (x_t, t, **cond) -> (x_0, v or None)."""

    of: Callable[..., tuple[Array, Array | None]]

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        return self.both(x_t, t, **cond)[0]

    def both(self, x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        """x_0, and the v of a learned variance, or None."""
        check_pair(x_t=x_t)
        check_levels(t=t)
        return self.of(x_t, t, **cond)


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
        x_0, v = both(self.denoise, x_t, t, **cond)
        return arrays.clip(x_0, self.low, self.high), v
