"""Schedules over the integer times of Ho et al. 2020."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import device_of, is_number, log_sigmoid, logit_of_log, take
from ddpm_core.levels import Level, from_logsnr
from ddpm_core.schedules.protocol import cast_last, device_times, first_bad, host_times
from ddpm_core.typing import Array, Scalar

#: The most noisy levels of a schedule: a thousand times those of any published model.
MAX_T = 10**6


@dataclass(frozen=True)
class Discrete:
    """A schedule over the integer times 0 .. T of Ho et al. 2020, where 0 is clean data.

    logsnr: T + 1 numbers, T at most 10^6, +inf first, strictly falling; the last may be -inf (no
        data is left)

    Between two integer times log ᾱ is linear in time, as for a constant rate of noise. So log-SNR
    is finite on (0, T) and has a closed-form inverse. If log-SNR is -inf at T, no level lies
    between T - 1 and T: ValueError for a time of the host.

    >>> from ddpm_core import linear
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
        check_T(values.size - 1)
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
        if is_number(time) and 0 <= time <= self.T and time == int(time):
            return from_logsnr(self.logsnr[int(time)], float(time))
        times = host_times(time, self.ends)
        if times is None:
            return self._device(time, dtype)
        level = self._host(times)
        return level.map(float) if is_number(time) else level

    def _host(self, time: Array) -> Level:
        table = np.asarray(self.logsnr)
        below = np.minimum(np.floor(time).astype(np.int64), self.T - 1)
        part = time - below
        if self.logsnr[-1] == -math.inf and np.any((below == self.T - 1) & (part > 0) & (part < 1)):
            raise ValueError(
                f"no level lies between times {self.T - 1} and {self.T}: "
                f"alpha at {self.T} is 0, and log alpha cannot be interpolated to it"
            )
        log_abar = log_sigmoid(table)
        with np.errstate(invalid="ignore"):  # 0 times inf at a last level without data; not used
            between = log_abar[below] + part * (log_abar[below + 1] - log_abar[below])
        exact = np.where(part == 1, table[below + 1], table[below])
        logsnr = np.where((part == 0) | (part == 1), exact, logit_of_log(between))
        return from_logsnr(logsnr, time)

    def _device(self, time: Array, dtype: Any) -> Level:
        whole = array_namespace(time).isdtype(time.dtype, "integral")
        xp, label, dtype = device_times(time, dtype)
        place = device_of(xp, time)
        floor = time if whole else xp.clip(xp.floor(label), 0.0, float(self.T - 1))
        index = xp.reshape(xp.astype(floor, xp.int32), (-1,))
        host = np.asarray(self.logsnr)

        def found(values: Any) -> Array:
            table = xp.asarray(values.tolist(), dtype=label.dtype, **place)
            return xp.reshape(take(xp, table, index), time.shape)

        if whole:
            return cast_last(xp, from_logsnr(found(host), label), dtype)
        part = label - floor
        below, above = found(host[:-1]), found(host[1:])
        log_abar = found(log_sigmoid(host)[:-1])
        slope = found(np.diff(log_sigmoid(host)))
        # At an integer time `between` is not used, but must be neither 0 times inf nor log 0.
        inside = xp.where((part == 0) | (part == 1), xp.full_like(part, 0.5), part)
        between = logit_of_log(log_abar + inside * slope)
        logsnr = xp.where(part == 0, below, xp.where(part == 1, above, between))
        return cast_last(xp, from_logsnr(logsnr, label), dtype)

    def at(self, logsnr: Scalar) -> Level:
        scalar = is_number(logsnr)
        wanted = np.asarray(logsnr, dtype=np.float64)
        last = self.logsnr[-1]
        bad = ~(wanted >= last)
        if np.any(bad):
            raise ValueError(
                f"logsnr must lie within [{last}, inf], but is {first_bad(wanted, bad)}"
            )
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
        return level.map(float) if scalar else level


def from_betas(betas: Any) -> Discrete:
    """The schedule of the step variances β_1 .. β_T (Ho et al. 2020): ᾱ_t = Π (1 - β_i).

    betas: T numbers in (0, 1)

    log ᾱ is a sum of log1p(-β), and 1 - ᾱ is computed without a subtraction.

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


def check_T(T: Any) -> None:
    """ValueError above 10^6 levels: such a T is a mistake, and its table would fill the memory."""
    if T > MAX_T:
        raise ValueError(f"T must be at most {MAX_T}, but is {T}")


def _host_table(name: str, values: Any) -> Array:
    table = np.array(values, dtype=np.float64)
    if table.ndim != 1 or table.size == 0:
        raise ValueError(f"{name} must be T >= 1 numbers, but has shape {table.shape}")
    check_T(table.size)
    return table
