"""Schedules over continuous times: 0 .. 1, and those of EDM, which are k = σ / α."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import is_numpy_array

from ddpm_core.arrays import exp, expm1, is_number, log, log_sigmoid
from ddpm_core.levels import Level, from_logsnr
from ddpm_core.schedules.protocol import cast_last, device_times, first_bad, host_times
from ddpm_core.typing import Scalar


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
        times = host_times(time, self.ends)
        if times is None:
            xp, times, dtype = device_times(time, dtype)
            return cast_last(xp, from_logsnr(self._logsnr(times), times), dtype)
        if is_number(time):
            times = float(time)
        return from_logsnr(self._logsnr(times), times)

    def at(self, logsnr: Scalar) -> Level:
        wanted = np.asarray(logsnr, dtype=np.float64)
        lowest = float(self._logsnr(self.ends[1]))
        highest = float(self._logsnr(self.ends[0]))
        # What the round trip logsnr -> time -> logsnr may round past an end.
        slack = 1e-12 * max(1.0, abs(lowest))
        bad = ~((wanted >= lowest - slack) & (wanted <= highest + slack))
        if np.any(bad):
            raise ValueError(
                f"logsnr must lie within [{lowest}, {highest}], but is {first_bad(wanted, bad)}"
            )
        time = np.clip(self._time(wanted), *self.ends)
        if is_number(logsnr):
            return from_logsnr(float(logsnr), float(time))
        return from_logsnr(wanted, time)


@dataclass(frozen=True)
class VP(_Continuous):
    """The variance-preserving SDE over times 0 .. 1 (Song et al. 2021, Eq. 33).

    log ᾱ(t) = -β_min t - (β_max - β_min) t² / 2, so that log-SNR = -log(exp(-log ᾱ) - 1)

    It is the limit of linear(T, rescale=True) for large T. Time 0 is clean data.

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
        return -_log(expm1(time * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * time)))

    def _time(self, logsnr: Scalar) -> Scalar:
        # The positive root of (β_max - β_min) t² / 2 + β_min t = -log ᾱ, in its stable form.
        noise = -log_sigmoid(logsnr)
        root = np.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * noise)
        return 2 * noise / (self.beta_min + root)


@dataclass(frozen=True)
class LinearLogSNR(_Continuous):
    """Log-SNR linear in time 0 .. 1 (Kingma et al. 2021, "fixed linear").

    λ(t) = clean + (noisy - clean) t

    Time 0 is not clean data: its log-SNR is `clean`, and the data is decoded from that level.

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


@dataclass(frozen=True)
class Flow(_Continuous):
    """Rectified flow: x = (1 - u) x_0 + u eps on a straight path (Liu et al. 2023).

    α / σ = (1 - u) / u,   u = s t / (1 + (s - 1) t),   s the shift (Esser et al. 2024)

    so that log-SNR = 2 log((1 - t) / (s t)) at the time t. A shift of a shift is their product.
    Time 0 is clean data, and at time 1 no data is left. A level has α² + σ² = 1: it is the flow's
    x, divided by sqrt((1 - u)² + u²), that is at it. `denoisers.straight` gives a network the
    flow's own x and u.

    >>> Flow(shift=3.0)(0.5).logsnr == Flow()(0.75).logsnr
    True
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be positive and finite, but is {self.shift}")

    def _logsnr(self, time: Scalar) -> Scalar:
        return 2 * (_log(1 - time) - _log(self.shift * time))

    def _time(self, logsnr: Scalar) -> Scalar:
        return exp(log_sigmoid(-(logsnr / 2 + math.log(self.shift))))


@dataclass(frozen=True)
class EDM(_Continuous):
    """The time is k = σ / α, the noise of x_0 + k eps (Karras et al. 2022, where it is σ).

    log-SNR = -2 log k

    sigma_min: the last noisy time of the grids `karras`, `log_snr` and `quad`
    sigma_max: the noisiest time

    Time 0 is clean data. A level has α² + σ² = 1: it is EDM's x, divided by sqrt(1 + k²), that is
    at it. `denoisers.unscaled` and `denoisers.preconditioned` give a network what it expects.

    >>> round(EDM()(80.0).alpha, 6)
    0.012499
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"0 < sigma_min < sigma_max must hold, both finite, but they are {self.sigma_min} "
                f"and {self.sigma_max}"
            )

    @property
    def ends(self) -> tuple[float, float]:
        return 0.0, self.sigma_max

    def _logsnr(self, time: Scalar) -> Scalar:
        return -2 * _log(time)

    def _time(self, logsnr: Scalar) -> Scalar:
        return exp(-logsnr / 2)


def _log(c: Scalar) -> Scalar:
    """log c, and -inf where c is 0, of which NumPy would warn."""
    if not is_numpy_array(c):
        return log(c)
    with np.errstate(divide="ignore"):
        return log(c)
