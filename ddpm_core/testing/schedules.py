"""`check_schedule`: the laws of a noise schedule."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_core.arrays import log_sigmoid
from ddpm_core.levels import Level, steps_of, tau
from ddpm_core.process import posterior_row, small
from ddpm_core.schedules import Discrete, Schedule, from_alpha_bars, from_betas
from ddpm_core.testing.cases import EPS, Sides, compared
from ddpm_core.testing.report import Finding, Report, raising
from ddpm_core.typing import Array

_MARGINAL, _POSTERIOR = "Ho et al. 2020, Eq. 4", "Ho et al. 2020, Eq. 7"
_SNR = "Kingma et al. 2021, section 3.1"


def examine_schedule(
    schedule: Schedule | None = None,
    *,
    betas: Any = None,
    alpha_bars: Any = None,
    terminal_kl: float = 0.01,
) -> Report:
    """Which laws a noise schedule obeys, and which it breaks.

    Exactly one of:

    schedule: any object with `ends`, `__call__` and `at`
    betas: β_1 .. β_T
    alpha_bars: ᾱ_1 .. ᾱ_T

    terminal_kl: the most nats per dimension that L_T = KL(q(x_T | x_0) ‖ N(0, I)) may be where
        |x_0| = 1

    >>> len(check_schedule(betas=np.linspace(1e-4, 0.02, 1000)).findings)
    10
    >>> check_schedule(betas=np.linspace(1e-4, 0.02, 100))
    Traceback (most recent call last):
    AssertionError: 1 law of this schedule fails
    - terminal noise: KL(q(x_T | x_0) || N(0, I)) in nats per dimension at |x_0| = 1 (Ho et al. \
2020, Eq. 5, L_T): at time 100, where alpha is 0.603: 0.225935 and not at most 0.01, off by 0.216
    """
    given = {"schedule": schedule, "betas": betas, "alpha_bars": alpha_bars}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise TypeError(f"pass one of {', '.join(given)}, not {' and '.join(names) or 'none'}")
    if schedule is None:
        try:
            schedule = from_alpha_bars(alpha_bars) if betas is None else from_betas(betas)
        except ValueError as error:
            form = Finding("these numbers are a schedule", _MARGINAL, failure=str(error))
            return Report("this schedule", (form,))
    with np.errstate(all="ignore"):  # of numbers that a law then finds
        return Report("this schedule", tuple(_findings(schedule, betas, terminal_kl)))


check_schedule = raising(examine_schedule)


def _findings(schedule: Schedule, betas: Any, terminal_kl: float) -> list[Finding]:
    levels = _levels(schedule)
    falls = _snr_falls(levels)
    findings = [
        _variance_preserved(levels),
        falls,
        *_logsnr_agrees(levels),
        _inverse(schedule, levels),
        _clean_end(schedule, levels),
        _terminal_noise(schedule, terminal_kl),
    ]
    if not falls.failure:  # what follows needs a cleaner level
        findings += _posterior(levels)
        if betas is not None:
            findings.append(_betas_recovered(levels, np.asarray(betas, dtype=np.float64)))
    return findings


def _levels(schedule: Schedule) -> Level:
    """The noisy levels, cleanest first: all of a discrete schedule, 1000 of any other."""
    clean, noisiest = schedule.ends
    count = int(noisiest) if isinstance(schedule, Discrete) else 1000
    return schedule(np.linspace(clean, noisiest, count + 1)[1:])  # whose end is exact


def _over(law: str, source: str, levels: Level, *sides: Any) -> Finding:
    return compared(law, source, Sides(*sides), lambda i: f"time {levels.time[i]:g}")


def _variance_preserved(levels: Level) -> Finding:
    found = levels.alpha**2 + levels.sigma**2
    return _over("alpha² + sigma² = 1", _MARGINAL, levels, found, 1.0, 4 * EPS)


def _snr_falls(levels: Level) -> Finding:
    law = "log-SNR falls"
    if len(levels.time) < 2:
        return Finding(law, _SNR, note="the schedule has one noisy level")
    bad = ~(np.diff(levels.logsnr) < 0)
    failure = ""
    if bad.any():
        i = int(np.argmax(bad))
        failure = (
            f"at {np.count_nonzero(bad)} steps it does not, first from {levels.logsnr[i]:.6g} at "
            f"time {levels.time[i]:g} to {levels.logsnr[i + 1]:.6g} at time {levels.time[i + 1]:g}"
        )
    return Finding(law, _SNR, len(bad), failure=failure)


def _logsnr_agrees(levels: Level) -> list[Finding]:
    """alpha² = sigmoid(logsnr) and sigma² = sigmoid(-logsnr), relatively."""
    # log-SNR is rounded, and its exponential has that as a relative error.
    relative = 8 * EPS * (1 + np.abs(np.where(np.isinf(levels.logsnr), 0, levels.logsnr)))
    findings: list[Finding] = []
    for name, value, sign in (("alpha", levels.alpha, 1), ("sigma", levels.sigma, -1)):
        expected = np.exp(0.5 * log_sigmoid(sign * levels.logsnr))
        law = f"{name}² = sigmoid({'-' * (sign < 0)}logsnr)"
        findings.append(_over(law, _SNR, levels, value, expected, relative * expected))
    return findings


def _inverse(schedule: Schedule, levels: Level) -> Finding:
    """at(logsnr) is the level that the log-SNR came from."""
    found = schedule.at(levels.logsnr)
    span = abs(schedule.ends[1] - schedule.ends[0])
    # A time found from a log-SNR is off by the rounding of that log-SNR, divided by the slope.
    slope = np.abs(np.gradient(levels.logsnr, levels.time)) if len(levels.time) > 1 else 1.0
    slope = np.where(np.isfinite(slope) & (slope > 0), slope, 1.0)
    allowed = 64 * EPS * (span + (1 + np.abs(levels.logsnr)) / slope)
    return _over("at() inverts the schedule", _SNR, levels, found.time, levels.time, allowed)


def _clean_end(schedule: Schedule, levels: Level) -> Finding:
    clean, failure = schedule(float(schedule.ends[0])), ""
    if not clean.logsnr > levels.logsnr[0]:
        failure = (
            f"log-SNR is {clean.logsnr:.6g} at the clean time {clean.time:g}, no more than "
            f"{levels.logsnr[0]:.6g} at time {levels.time[0]:g}"
        )
    return Finding("clean end: the clean time is the cleanest", _SNR, 1, failure=failure)


def _terminal_noise(schedule: Schedule, terminal_kl: float) -> Finding:
    end = schedule(float(schedule.ends[1]))
    # ½ (α² x² + σ² - 1 - log σ²) at |x| = 1, where the first three terms cancel.
    kl = -0.5 * float(log_sigmoid(-end.logsnr))
    return compared(
        "terminal noise: KL(q(x_T | x_0) || N(0, I)) in nats per dimension at |x_0| = 1",
        "Ho et al. 2020, Eq. 5, L_T",
        Sides(kl, terminal_kl, how="at most"),
        lambda _: f"time {end.time:g}, where alpha is {end.alpha:.3g}",
    )


def _posterior(levels: Level) -> list[Finding]:
    """q(x_s | x_t, x_0) q(x_t | x_0) has the marginal q(x_s | x_0): its mean and its variance."""
    laws = (
        "posterior mean: a + b alpha_t = alpha_s",
        "posterior variance: b² sigma_t² + var = sigma_s²",
    )
    if len(levels.time) < 2:
        return [Finding(law, _POSTERIOR, note="the schedule has one noisy level") for law in laws]
    s, t = steps_of(levels)
    on_x_0, on_x_t = posterior_row(t, s)
    # Each factor is an exponential of log-SNR, and has its rounding as a relative error.
    allowed = 16 * EPS * (1 + np.abs(np.where(np.isinf(t.logsnr), 0, t.logsnr)))
    mean, var = on_x_0 + on_x_t * t.alpha, on_x_t**2 * t.sigma**2 + small(t, s)
    return [
        _over(laws[0], _POSTERIOR, t, mean, s.alpha, allowed),
        _over(laws[1], _POSTERIOR, t, var, s.sigma**2, allowed),
    ]


def _betas_recovered(levels: Level, betas: Array) -> Finding:
    beta = np.array([levels.sigma[0] ** 2])
    if len(levels.time) > 1:
        s, t = steps_of(levels)
        beta = np.append(beta, tau(t, s) * t.sigma**2)
    allowed = 8 * EPS * np.maximum(1, np.abs(levels.logsnr))
    law = "1 - alpha_bar_t / alpha_bar_s = beta_t"
    return _over(law, "Ho et al. 2020, Eq. 2", levels, beta, betas, allowed)
