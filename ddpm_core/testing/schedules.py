"""`check_schedule`: the laws of a noise schedule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddpm_core.arrays import log_sigmoid
from ddpm_core.levels import Level, steps_of, tau
from ddpm_core.process import posterior_row, small
from ddpm_core.schedules import Discrete, Schedule, from_alpha_bars, from_betas
from ddpm_core.typing import Array

_EPS = float(np.finfo(np.float64).eps)


def check_schedule(
    schedule: Schedule | None = None,
    *,
    betas: Any = None,
    alpha_bars: Any = None,
    terminal_kl: float = 0.01,
) -> None:
    """AssertionError if a noise schedule breaks a law, saying which, at what time, by how much.

    Exactly one of:

    schedule: any object with `ends`, `__call__` and `at`
    betas: β_1 .. β_T
    alpha_bars: ᾱ_1 .. ᾱ_T

    terminal_kl: the most nats per dimension that L_T = KL(q(x_T | x_0) ‖ N(0, I)) may be where
        |x_0| = 1

    >>> check_schedule(betas=np.linspace(1e-4, 0.02, 1000))
    >>> check_schedule(betas=np.linspace(1e-4, 0.02, 100))
    Traceback (most recent call last):
    AssertionError: 1 law of this schedule fails
    - terminal noise: KL(q(x_T | x_0) || N(0, I)) is 0.226 nats per dimension at |x_0| = 1, above \
0.01, since alpha is 0.603 at time 100
    """
    given = {"schedule": schedule, "betas": betas, "alpha_bars": alpha_bars}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise TypeError(f"pass one of {', '.join(given)}, not {' and '.join(names) or 'none'}")
    if schedule is None:
        try:
            schedule = from_alpha_bars(alpha_bars) if betas is None else from_betas(betas)
        except ValueError as error:
            _report([f"form: {error}"])
            return
    levels = _levels(schedule)
    failures = [
        *_variance_preserved(levels),
        *_logsnr_agrees(levels),
        *_inverse(schedule, levels),
        *_clean_end(schedule, levels),
        *_terminal_noise(schedule, terminal_kl),
    ]
    rises = _snr_falls(levels)
    failures += rises or _posterior(levels)  # which needs a cleaner level
    if betas is not None and not rises:
        failures += _betas_recovered(levels, np.asarray(betas, dtype=np.float64))
    _report(failures)


def _levels(schedule: Schedule) -> Level:
    """The noisy levels, cleanest first: all of a discrete schedule, 1000 of any other."""
    clean, noisiest = schedule.ends
    count = int(noisiest) if isinstance(schedule, Discrete) else 1000
    return schedule(np.linspace(clean, noisiest, count + 1)[1:])  # whose end is exact


def _variance_preserved(levels: Level) -> list[str]:
    error = np.abs(levels.alpha**2 + levels.sigma**2 - 1)
    return _worst("alpha² + sigma² = 1", error, 4 * _EPS, levels)


def _snr_falls(levels: Level) -> list[str]:
    rise = np.diff(levels.logsnr)
    bad = ~(rise < 0)
    if not bad.any():
        return []
    i = int(np.argmax(bad))
    return [
        f"log-SNR falls: at {np.count_nonzero(bad)} steps it does not, first from "
        f"{levels.logsnr[i]:.6g} at time {levels.time[i]:g} to {levels.logsnr[i + 1]:.6g} at time "
        f"{levels.time[i + 1]:g}"
    ]


def _logsnr_agrees(levels: Level) -> list[str]:
    """alpha² = sigmoid(logsnr) and sigma² = sigmoid(-logsnr), relatively."""
    # log-SNR is rounded, and its exponential has that as a relative error.
    allowed = 8 * _EPS * (1 + np.abs(np.where(np.isinf(levels.logsnr), 0, levels.logsnr)))
    failures: list[str] = []
    for name, value, sign in (("alpha", levels.alpha, 1), ("sigma", levels.sigma, -1)):
        expected = np.exp(0.5 * log_sigmoid(sign * levels.logsnr))
        error = np.abs(value - expected) / np.maximum(expected, np.finfo(np.float64).tiny)
        failures += _worst(f"{name}² = sigmoid({'-' * (sign < 0)}logsnr)", error, allowed, levels)
    return failures


def _inverse(schedule: Schedule, levels: Level) -> list[str]:
    """at(logsnr) is the level that the log-SNR came from."""
    found = schedule.at(levels.logsnr)
    span = abs(schedule.ends[1] - schedule.ends[0])
    # A time found from a log-SNR is off by the rounding of that log-SNR, divided by the slope.
    slope = np.abs(np.gradient(levels.logsnr, levels.time)) if len(levels.time) > 1 else 1.0
    slope = np.where(np.isfinite(slope) & (slope > 0), slope, 1.0)
    allowed = 64 * _EPS * (span + (1 + np.abs(levels.logsnr)) / slope)
    return _worst("at() inverts the schedule", np.abs(found.time - levels.time), allowed, levels)


def _clean_end(schedule: Schedule, levels: Level) -> list[str]:
    clean = schedule(float(schedule.ends[0]))
    if clean.logsnr > levels.logsnr[0]:
        return []
    return [
        f"clean end: log-SNR is {clean.logsnr:.6g} at the clean time {clean.time:g}, no more than "
        f"{levels.logsnr[0]:.6g} at time {levels.time[0]:g}"
    ]


def _terminal_noise(schedule: Schedule, terminal_kl: float) -> list[str]:
    end = schedule(float(schedule.ends[1]))
    # ½ (α² x² + σ² - 1 - log σ²) at |x| = 1, where the first three terms cancel.
    kl = -0.5 * float(log_sigmoid(-end.logsnr))
    if kl <= terminal_kl:
        return []
    return [
        f"terminal noise: KL(q(x_T | x_0) || N(0, I)) is {kl:.3g} nats per dimension at "
        f"|x_0| = 1, above {terminal_kl:g}, since alpha is {end.alpha:.3g} at time {end.time:g}"
    ]


def _posterior(levels: Level) -> list[str]:
    """q(x_s | x_t, x_0) q(x_t | x_0) has the marginal q(x_s | x_0): its mean and its variance."""
    if len(levels.time) < 2:
        return []
    s, t = steps_of(levels)
    on_x_0, on_x_t = posterior_row(t, s)
    mean = np.abs(on_x_0 + on_x_t * t.alpha - s.alpha)
    var = np.abs(on_x_t**2 * t.sigma**2 + small(t, s) - s.sigma**2)
    # Each factor is an exponential of log-SNR, and has its rounding as a relative error.
    allowed = 16 * _EPS * (1 + np.abs(np.where(np.isinf(t.logsnr), 0, t.logsnr)))
    return [
        *_worst("posterior mean: a + b alpha_t = alpha_s", mean, allowed, t),
        *_worst("posterior variance: b² sigma_t² + var = sigma_s²", var, allowed, t),
    ]


def _betas_recovered(levels: Level, betas: Array) -> list[str]:
    s, t = steps_of(levels)
    beta = np.append(levels.sigma[0] ** 2, tau(t, s) * t.sigma**2)
    allowed = 8 * _EPS * np.maximum(1, np.abs(levels.logsnr))
    return _worst("1 - alpha_bar_t / alpha_bar_s = beta_t", np.abs(beta - betas), allowed, levels)


def _worst(law: str, error: Array, allowed: Any, levels: Level) -> list[str]:
    allowed = np.broadcast_to(allowed, error.shape)
    bad = ~(error <= allowed)
    if not bad.any():
        return []
    i = int(np.argmax(np.where(bad, np.nan_to_num(error / allowed, nan=math.inf), -1.0)))
    at = levels.take(i)
    return [
        f"{law}: at {np.count_nonzero(bad)} of {len(error)} levels it does not hold; the worst is "
        f"off by {error[i]:.3g} at time {at.time:g}, where {allowed[i]:.3g} is rounding"
    ]


def _report(failures: list[str]) -> None:
    if failures:
        count = "1 law" if len(failures) == 1 else f"{len(failures)} laws"
        verb = "fails" if len(failures) == 1 else "fail"
        lines = "".join(f"\n- {failure}" for failure in failures)
        raise AssertionError(f"{count} of this schedule {verb}{lines}")
