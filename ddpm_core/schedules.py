"""Noise schedules: functions from a time to a noise level.

A schedule is an immutable, hashable object. Its tables are float64 on the host and are finished
there; arrays of the device are made from them last, in the dtype that was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from ddpm_core._typing import Array, Scalar
from ddpm_core.levels import (
    Level,
    astype,
    device_of,
    expm1,
    from_logsnr,
    log,
    log_sigmoid,
    logit_of_log,
    widen,
)


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


@dataclass(frozen=True)
class Discrete:
    """A schedule over the integer times 0 .. T of Ho et al. 2020, where 0 is clean data.

    logsnr: T + 1 values, +inf first, strictly falling; the last may be -inf (no data is left)

    A fractional time means what it means for a constant rate of noise inside each step: log ᾱ is
    linear in time between two integers. It is finite on (0, T] and has a closed-form inverse.

    >>> schedule = linear(1000)
    >>> schedule.T, round(schedule(1000).alpha ** 2, 9)
    (1000, 4.0358e-05)
    >>> schedule(700.5).time
    700.5
    """

    logsnr: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.asarray(self.logsnr, dtype=np.float64)
        if values.ndim != 1 or values.size < 2:
            raise ValueError(f"logsnr must be T + 1 >= 2 numbers, but has shape {values.shape}")
        if values[0] != math.inf:
            raise ValueError(f"logsnr[0] is clean data and must be inf, but is {values[0]}")
        fall = values[1:] < values[:-1]
        if not fall.all():
            i = int(np.argmin(fall)) + 1
            raise ValueError(
                f"log-SNR must fall at every step, but logsnr[{i}] = {values[i]} is not below "
                f"logsnr[{i - 1}] = {values[i - 1]}"
            )
        low = (values < -700) & (values > -math.inf)
        if low.any():
            i = int(np.argmax(low))
            raise ValueError(
                f"logsnr[{i}] = {values[i]} is below -700, where alpha underflows; "
                f"use -inf for a level without data"
            )
        object.__setattr__(self, "logsnr", tuple(values.tolist()))

    def __repr__(self) -> str:
        return f"Discrete(T={self.T}, log-SNR from {self.logsnr[1]:g} to {self.logsnr[-1]:g})"

    @property
    def T(self) -> int:
        """The number of noisy levels."""
        return len(self.logsnr) - 1

    @property
    def ends(self) -> tuple[float, float]:
        return 0.0, float(self.T)

    def __call__(self, time: Scalar, dtype: Any = None) -> Level:
        if isinstance(time, (int, float)):
            if 0 <= time <= self.T and time == int(time):
                return from_logsnr(self.logsnr[int(time)], float(time))
            level = self._host(np.asarray(time, dtype=np.float64))
            return Level(*(float(field) for field in level))
        if is_numpy_array(time) or isinstance(time, (list, tuple)):
            return self._host(np.asarray(time, dtype=np.float64))
        return self._device(time, dtype)

    def _host(self, time: Array) -> Level:
        _check_within(time, self.ends)
        table = np.asarray(self.logsnr)
        below = np.minimum(np.floor(time).astype(np.int64), self.T - 1)
        part = time - below
        if self.logsnr[-1] == -math.inf and np.any((below == self.T - 1) & (part > 0) & (part < 1)):
            raise ValueError(
                f"no level lies between times {self.T - 1} and {self.T}: "
                f"alpha at {self.T} is 0, and log alpha cannot be interpolated to it"
            )
        log_abar = log_sigmoid(table)
        with np.errstate(invalid="ignore"):  # 0 * inf at a last level without data, not selected
            between = log_abar[below] + part * (log_abar[below + 1] - log_abar[below])
        exact = np.where(part == 1, table[below + 1], table[below])
        logsnr = np.where((part == 0) | (part == 1), exact, logit_of_log(between))
        return from_logsnr(logsnr, time)

    def _device(self, time: Array, dtype: Any) -> Level:
        xp = array_namespace(time)
        place = device_of(xp, time)
        if xp.isdtype(time.dtype, "integral"):
            dtype = xp.float32 if dtype is None else dtype
            index = xp.reshape(time, (-1,))
            logsnr = xp.take(xp.asarray(self.logsnr, dtype=dtype, **place), index, axis=0)
            logsnr = xp.reshape(logsnr, time.shape)
            return from_logsnr(logsnr, xp.astype(time, dtype))
        dtype = time.dtype if dtype is None else dtype
        time = astype(xp, time, dtype)
        index = xp.clip(xp.floor(time), 0.0, float(self.T - 1))
        part = time - index
        index = xp.reshape(xp.astype(index, xp.int32), (-1,))
        host = np.asarray(self.logsnr)

        def take(values: Any) -> Array:
            table = xp.asarray(values.tolist(), dtype=dtype, **place)
            return xp.reshape(xp.take(table, index, axis=0), time.shape)

        below, above = take(host[:-1]), take(host[1:])
        log_abar = take(log_sigmoid(host)[:-1])
        slope = take(np.diff(log_sigmoid(host)))
        # At an integer time the middle is not used, but must not be 0 times inf or log 0 either.
        inside = xp.where((part == 0) | (part == 1), xp.full_like(part, 0.5), part)
        between = logit_of_log(log_abar + inside * slope)
        logsnr = xp.where(part == 0, below, xp.where(part == 1, above, between))
        return from_logsnr(logsnr, time)

    def at(self, logsnr: Scalar) -> Level:
        scalar = isinstance(logsnr, (int, float))
        wanted = np.asarray(logsnr, dtype=np.float64)
        last = self.logsnr[-1]
        bad = ~(wanted >= last)
        if np.any(bad):
            raise ValueError(f"logsnr must lie within [{last}, inf], but is {_first(wanted, bad)}")
        if last == -math.inf and np.any((wanted < self.logsnr[-2]) & (wanted > last)):
            raise ValueError(
                f"no level lies between log-SNR {self.logsnr[-2]} and -inf: alpha at {self.T} is 0"
            )
        noise = -log_sigmoid(np.asarray(self.logsnr))
        time: Array = np.asarray(
            np.interp(-log_sigmoid(wanted), noise, np.arange(self.T + 1.0)), dtype=np.float64
        )
        time = np.where(wanted == last, float(self.T), time)
        level = from_logsnr(wanted, time)
        return Level(*(float(field) for field in level)) if scalar else level


class _Continuous:
    """What the continuous schedules share: log-SNR in closed form, and its inverse."""

    @property
    def ends(self) -> tuple[float, float]:
        return 0.0, 1.0

    def _logsnr(self, time: Scalar) -> Scalar:
        raise NotImplementedError

    def _time(self, logsnr: Scalar) -> Scalar:
        raise NotImplementedError

    def __call__(self, time: Scalar, dtype: Any = None) -> Level:
        if isinstance(time, (int, float)):
            _check_within(np.asarray(float(time)), self.ends)
            time = float(time)
        elif is_numpy_array(time) or isinstance(time, (list, tuple)):
            time = np.asarray(time, dtype=np.float64)
            _check_within(time, self.ends)
        elif dtype is not None:
            time = array_namespace(time).astype(time, dtype)
        return from_logsnr(self._logsnr(time), time)

    def at(self, logsnr: Scalar) -> Level:
        wanted = np.asarray(logsnr, dtype=np.float64)
        lowest = float(self._logsnr(self.ends[1]))
        highest = float(self._logsnr(self.ends[0]))
        # One rounding of the round trip logsnr -> time -> logsnr, at either end.
        slack = 1e-12 * max(1.0, abs(lowest))
        bad = ~((wanted >= lowest - slack) & (wanted <= highest + slack))
        if np.any(bad):
            raise ValueError(
                f"logsnr must lie within [{lowest}, {highest}], but is {_first(wanted, bad)}"
            )
        time = np.clip(self._time(wanted), *self.ends)
        if isinstance(logsnr, (int, float)):
            return from_logsnr(float(logsnr), float(time))
        return from_logsnr(wanted, time)


@dataclass(frozen=True)
class VP(_Continuous):
    """The variance-preserving SDE over times 0 .. 1 (Song et al. 2021, Eq. 33).

    log ᾱ(t) = -β_min t - (β_max - β_min) t² / 2, so that log-SNR = -log(exp(-log ᾱ) - 1)

    The limit of `linear` for many steps. Time 0 is clean data.

    >>> VP()(0.0).logsnr, round(VP()(1.0).alpha, 6)
    (inf, 0.006572)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"0 < beta_min <= beta_max must hold, but they are {self.beta_min} and "
                f"{self.beta_max}"
            )
        if self.beta_min + self.beta_max > 1400:
            raise ValueError(
                f"log alpha_bar at time 1 is {-(self.beta_min + self.beta_max) / 2:g}, below -700, "
                f"where alpha underflows"
            )

    def _logsnr(self, time: Scalar) -> Scalar:
        noise = time * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * time)
        if isinstance(time, float):
            return math.inf if time <= 0 else -log(expm1(noise))
        if is_numpy_array(time):
            with np.errstate(divide="ignore"):
                return -np.log(np.expm1(noise))
        return -log(expm1(noise))

    def _time(self, logsnr: Scalar) -> Scalar:
        # The positive root of (β_max - β_min) t² / 2 + β_min t = -log ᾱ, in its stable form.
        noise = -log_sigmoid(logsnr)
        root = np.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * noise)
        return 2 * noise / (self.beta_min + root)


@dataclass(frozen=True)
class LinearLogSNR(_Continuous):
    """Log-SNR linear in time 0 .. 1 (Kingma et al. 2021, "fixed linear").

    λ(t) = clean + (noisy - clean) t

    Time 0 is not clean data but the level `clean`, on which such a model's decoder stands.

    >>> LinearLogSNR()(0.5).logsnr
    4.15
    """

    clean: float = 13.3
    noisy: float = -5.0

    def __post_init__(self) -> None:
        if not -math.inf < self.noisy < self.clean < math.inf:
            raise ValueError(
                f"noisy must be below clean, both finite, but they are {self.noisy} and "
                f"{self.clean}"
            )

    def _logsnr(self, time: Scalar) -> Scalar:
        return self.clean + (self.noisy - self.clean) * time

    def _time(self, logsnr: Scalar) -> Scalar:
        return (self.clean - logsnr) / (self.clean - self.noisy)


# Discrete schedules, each from its paper. -------------------------------------------------------


def from_betas(betas: Any) -> Discrete:
    """The schedule of the step variances β_1 .. β_T (Ho et al. 2020): ᾱ_t = Π (1 - β_i).

    betas: T numbers in (0, 1)

    log ᾱ is a sum of log1p(-β), and 1 - ᾱ is never a subtraction.

    >>> from_betas([0.1, 0.5])(2).alpha ** 2
    0.45
    """
    values = _host_table("betas", betas)
    bad = ~((values > 0) & (values < 1))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(f"betas must lie in (0, 1), but betas[{i}] = {values[i]}")
    return Discrete((math.inf, *logit_of_log(np.cumsum(np.log1p(-values))).tolist()))


def from_alpha_bars(alpha_bars: Any) -> Discrete:
    """The schedule of the products ᾱ_1 .. ᾱ_T (Ho et al. 2020).

    alpha_bars: T numbers in (0, 1), strictly falling, without ᾱ_0 = 1; the last may be 0

    >>> from_alpha_bars([0.9, 0.0])(2).logsnr
    -inf
    """
    values = _host_table("alpha_bars", alpha_bars)
    good = (values > 0) & (values < 1)
    good[-1] |= values[-1] == 0
    if not good.all():
        i = int(np.argmin(good))
        hint = "; leave out alpha_bar_0 = 1" if i == 0 and values[0] == 1 else ""
        raise ValueError(f"alpha_bars must lie in (0, 1), but alpha_bars[{i}] = {values[i]}{hint}")
    fall = values[1:] < values[:-1]
    if not fall.all():
        i = int(np.argmin(fall)) + 1
        raise ValueError(
            f"alpha_bars must fall at every step, but alpha_bars[{i}] = {values[i]} is not below "
            f"alpha_bars[{i - 1}] = {values[i - 1]}"
        )
    with np.errstate(divide="ignore"):
        return Discrete((math.inf, *(np.log(values) - np.log1p(-values)).tolist()))


def linear(
    T: int = 1000, *, rescale: bool | None = None, beta_1: float = 1e-4, beta_T: float = 0.02
) -> Discrete:
    """β linear in time from 1e-4 to 0.02, at T = 1000 (Ho et al. 2020, section 4).

    rescale: for any other T, True multiplies β by 1000 / T, so that ᾱ_T stays about the same (the
        code of Nichol & Dhariwal 2021; needs T > 20), and False keeps the betas as they are. The
        two are different processes under one name, so there is no default.
    """
    _check_T(T)
    if T != 1000 and rescale is None:
        raise ValueError(
            f"linear(T={T}) is ambiguous: pass rescale=True to multiply beta by 1000 / T, or "
            f"rescale=False to run from {beta_1} to {beta_T} in {T} steps"
        )
    _check_ends(beta_1, beta_T)
    factor = 1000 / T if rescale else 1.0
    if beta_T * factor >= 1:
        raise ValueError(
            f"linear(T={T}, rescale=True) would end at beta = {beta_T * factor:g}: T must be above "
            f"{1000 * beta_T:g}"
        )
    return from_betas(np.linspace(beta_1, beta_T, T) * factor)


def quadratic(T: int = 1000, *, beta_1: float = 1e-4, beta_T: float = 0.02) -> Discrete:
    """sqrt(β) linear in time (the "quad" schedule of the code of Ho et al. 2020).

    The betas are not rescaled: with fewer steps than 1000, more of the data is left at the end.
    """
    _check_T(T)
    _check_ends(beta_1, beta_T)
    return from_betas(np.linspace(math.sqrt(beta_1), math.sqrt(beta_T), T) ** 2)


def scaled_linear(T: int = 1000, *, beta_1: float = 0.00085, beta_T: float = 0.012) -> Discrete:
    """`quadratic` from 0.00085 to 0.012 (the schedule of the code of Rombach et al. 2022)."""
    return quadratic(T, beta_1=beta_1, beta_T=beta_T)


def cosine(T: int = 1000, *, s: float = 0.008, max_beta: float = 0.999) -> Discrete:
    """ᾱ(t) ∝ cos²((t/T + s) / (1 + s) · π/2), β at most 0.999 (Nichol & Dhariwal 2021, Eq. 17).

    1 - cos² b / cos² a is taken as sin(b - a) sin(b + a) / cos² a, which does not cancel.
    """
    _check_T(T)
    if s < 0:
        raise ValueError(f"s must not be negative, but is {s}")
    angle = (np.arange(T + 1) / T + s) / (1 + s) * (math.pi / 2)
    a, b = angle[:-1], angle[1:]
    beta = np.sin(b - a) * np.sin(b + a) / np.cos(a) ** 2
    return from_betas(np.minimum(beta, max_beta))


def beta_sigmoid(T: int = 1000, *, beta_1: float = 1e-4, beta_T: float = 0.02) -> Discrete:
    """β = β_1 + (β_T - β_1) sigmoid(u), u linear from -6 to 6 (the form of Xu et al. 2022).

    The ends are those of `linear`, and are not rescaled with T; GeoDiff itself has others.
    """
    _check_T(T)
    _check_ends(beta_1, beta_T)
    share = np.exp(log_sigmoid(np.linspace(-6.0, 6.0, T)))
    return from_betas(beta_1 + (beta_T - beta_1) * share)


def alphabar_sigmoid(
    T: int = 1000, *, start: float = -3.0, end: float = 3.0, width: float = 1.0
) -> Discrete:
    """ᾱ a falling sigmoid in time, scaled to run from 1 to 0 (Chen 2023; Jabri et al. 2023).

    ᾱ(t) = (σ(end/w) - σ((start + (end - start) t/T) / w)) / (σ(end/w) - σ(start/w)), at least 1e-9

    start, end: start < end
    width: w > 0, the paper's temperature; the schedule is steeper where it is small
    """
    _check_T(T)
    if not start < end or width <= 0:
        raise ValueError(f"start < end and width > 0 must hold, got {start}, {end} and {width}")
    a, b = start / width, end / width
    u = np.linspace(a, b, T + 1)[1:]
    # σ(p) - σ(q) = sinh((p - q) / 2) / (2 cosh(p / 2) cosh(q / 2)), so that cosh(u / 2) cancels
    # between ᾱ and 1 - ᾱ, and neither is a subtraction.
    with np.errstate(divide="ignore"):
        falling = _log_sinh((b - u) / 2) - _log_sinh((u - a) / 2)
    logsnr = falling + _log_cosh(a / 2) - _log_cosh(b / 2)
    floor = math.log(1e-9) - math.log1p(-1e-9)
    if np.count_nonzero(logsnr <= floor) > 1:
        raise ValueError(
            f"alphabar_sigmoid(T={T}, start={start}, end={end}, width={width}) falls below 1e-9 "
            f"before its end; use a larger width"
        )
    return Discrete((math.inf, *np.maximum(logsnr, floor).tolist()))


def _log_sinh(x: Array) -> Array:
    return x + np.log(-np.expm1(-2 * x)) - math.log(2)


def _log_cosh(x: float) -> float:
    return abs(x) + math.log1p(math.exp(-2 * abs(x))) - math.log(2)


def zero_terminal_snr(schedule: Discrete) -> Discrete:
    """sqrt(ᾱ) shifted and scaled so that ᾱ_T = 0 and ᾱ_1 stays (Lin et al. 2024, Algorithm 1).

    A network that predicts eps cannot be read where alpha = 0; use v.

    >>> zero_terminal_snr(linear(1000))(1000).alpha
    0.0
    """
    if schedule.T == 1:
        raise ValueError("a schedule of one step cannot both keep alpha_1 and end at alpha = 0")
    t = schedule(np.arange(1, schedule.T + 1))
    first, last = t.alpha[0], t.alpha[-1]
    alpha = (t.alpha - last) * (first / (first - last))
    # 1 - alpha, from 1 - t.alpha = t.sigma² / (1 + t.alpha), which does not cancel near clean data.
    gap = t.sigma**2 / (1 + t.alpha)
    gap = (first * gap - last * gap[0]) / (first - last)
    with np.errstate(divide="ignore"):
        logsnr = 2 * np.log(alpha) - np.log(gap) - np.log1p(alpha)
    return Discrete((math.inf, schedule.logsnr[1], *logsnr[1:].tolist()))


def draw(schedule: Schedule, u: Array) -> Level:
    """Training levels for uniform numbers: t ~ Uniform{1 .. T}, or uniform over (clean, noisiest].

    u: (B,), uniform in [0, 1); the level has its library, device and dtype, or is float64 on the
        host where u is a NumPy array

    Clean data is never drawn.

    >>> draw(linear(1000), np.array([0.0, 0.5, 0.999])).time
    array([1000.,  500.,    1.])
    """
    xp = array_namespace(u)
    u = widen(xp, u)  # in bfloat16, 1000 levels would be about 250
    clean, noisiest = schedule.ends
    if isinstance(schedule, Discrete):
        # A u that was cast down to float32 may be 1: hence the minimum.
        back = xp.minimum(xp.floor(u * noisiest), xp.full_like(u, noisiest - 1))
        return schedule(noisiest - back)
    return schedule(noisiest - u * (noisiest - clean))


def _check_T(T: int) -> None:
    if not hasattr(T, "__index__") or T < 1:
        raise ValueError(f"T must be an integer of at least 1, but is {T}")


def _check_ends(beta_1: float, beta_T: float) -> None:
    if not 0 < beta_1 <= beta_T < 1:
        raise ValueError(f"0 < beta_1 <= beta_T < 1 must hold, but they are {beta_1} and {beta_T}")


def _check_within(time: Array, ends: tuple[float, float]) -> None:
    bad = ~((time >= ends[0]) & (time <= ends[1]))
    if np.any(bad):
        raise ValueError(
            f"time must lie within [{ends[0]:g}, {ends[1]:g}], but is {_first(time, bad)}"
        )


def _first(values: Array, bad: Array) -> float:
    return float(np.ravel(values)[int(np.argmax(bad))])


def _host_table(name: str, values: Any) -> Array:
    table = np.array(values, dtype=np.float64)
    if table.ndim != 1 or table.size == 0:
        raise ValueError(f"{name} must be T >= 1 numbers, but has shape {table.shape}")
    return table
