"""`check_schedule`: it passes what obeys the laws, and names the law that is broken, and where."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given

from ddpm_core import VP, Level, cosine, from_betas, linear, zero_terminal_snr
from ddpm_core.schedules import Discrete, LinearLogSNR, scaled_linear
from ddpm_core.testing import check_schedule, examine_schedule, strategies


@given(strategies.schedules(zero_terminal=True))
def test_schedules_of_the_library_pass(schedule):
    """Every schedule obeys every law, whatever is left of the data at its end."""
    check_schedule(schedule, terminal_kl=math.inf)


@given(strategies.betas())
def test_betas_pass(betas):
    """Any β in (0, 1) make a schedule, and are recovered from it."""
    check_schedule(betas=betas, terminal_kl=math.inf)


@pytest.mark.parametrize("schedule", [linear(), cosine(4000), scaled_linear(), VP()])
def test_published_schedules_end_in_noise(schedule):
    """At the default, schedules that models were trained with pass (Lin et al. 2024: none is 0)."""
    check_schedule(schedule)


class Broken:
    """A schedule that is VP but for one change of its levels."""

    ends = (0.0, 1.0)

    def __init__(self, change=lambda level: level, at=lambda level: level):
        self.change, self.change_at = change, at

    def __call__(self, time, dtype=None):
        return self.change(VP()(time))

    def at(self, logsnr):
        return self.change_at(VP().at(logsnr))


def off_by(field, factor):
    return lambda level: level._replace(**{field: getattr(level, field) * factor})


def rising(level):
    """Log-SNR rises again after half of the time."""
    return Level(level.time, *VP()(0.5 - 0.9 * np.abs(np.asarray(level.time) - 0.5))[1:])


def noisy_start(level):
    """The clean time has the noise of time 0.3."""
    return Level(0.0, *VP()(0.3)[1:]) if np.ndim(level.time) == 0 and level.time == 0 else level


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (
            Broken(off_by("alpha", 1 + 1e-6)),
            r"alpha² \+ sigma² = 1 \(.*at time 0.001: 1.000002 and not 1; \d+ of 1000 cases",
        ),
        (Broken(off_by("alpha", 1 + 1e-6)), r"alpha² = sigmoid\(logsnr\)"),
        (Broken(off_by("sigma", 1 + 1e-6)), r"sigma² = sigmoid\(-logsnr\)"),
        (
            Broken(rising),
            r"log-SNR falls \(.*\): at 500 steps it does not, first from .* at time 0.5 ",
        ),
        (Broken(noisy_start), r"clean end: .*: log-SNR is -0.4\d+ at the clean time 0"),
        (
            Broken(at=off_by("time", 1.001)),
            r"at\(\) inverts the schedule .* at time 0.001: .* off by 0.001 at time 1,",
        ),
        (
            LinearLogSNR(13.3, -2.0),
            r"terminal noise: .*: 0.063464 and not at most 0.01, off by 0.0535$",
        ),
    ],
)
def test_broken_law_is_named(schedule, says):
    """The law that is broken is in the message, with where and how much."""
    with pytest.raises(AssertionError, match=says):
        check_schedule(schedule)


def test_the_report_has_every_law():
    """Each with its paper and the cases that were tried; one of a broken schedule has the rest."""
    report = check_schedule(betas=np.linspace(1e-4, 0.02, 1000))
    assert len(report.findings) == 10
    assert all(finding.source and finding.verdict == "holds" for finding in report.findings)
    broken = examine_schedule(Broken(off_by("alpha", 1 + 1e-6)))
    assert [f.law for f in broken.broken][:2] == ["alpha² + sigma² = 1", "alpha² = sigmoid(logsnr)"]
    assert {"holds", "broken"} == {finding.verdict for finding in broken.findings}


def test_terminal_noise_is_the_prior_term():
    """KL(N(α, σ²) ‖ N(0, 1)) = ½ (α² + σ² - 1 - log σ²) = -½ log(1 - ᾱ_T) (Ho et al. 2020, L_T)."""
    betas = np.linspace(1e-4, 0.02, 100)
    kl = -0.5 * math.log1p(-np.prod(1 - betas))
    check_schedule(betas=betas, terminal_kl=kl * (1 + 1e-9))
    with pytest.raises(
        AssertionError, match=rf"at time 100.*: {kl:.6g}\d* and not at most {kl:.6g}"
    ):
        check_schedule(betas=betas, terminal_kl=kl * (1 - 1e-9))


class Beta:
    """Betas that are not those of the levels that they make."""

    def __init__(self, betas):
        self.betas = betas

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.betas.pop(0), dtype=dtype)


def test_betas_that_are_not_recovered_are_named():
    """β_t = 1 - ᾱ_t / ᾱ_{t-1}, or the step of the largest difference is named."""
    right, wrong = np.full(300, 0.05), np.full(300, 0.05)
    wrong[41] = 0.051
    with pytest.raises(
        AssertionError,
        match=r"= beta_t .* at time 42: 0.05 and not 0.051; 1 of 300 cases .* off by 0.001",
    ):
        check_schedule(betas=Beta([right, wrong]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"betas": [0.1, 1.2]}, r"betas must lie in \(0, 1\), but betas\[1\] = 1.2"),
        ({"betas": [0.1, math.nan]}, r"betas\[1\] = nan"),
        ({"alpha_bars": [1.0, 0.5]}, r"leave out alpha_bar_0 = 1"),
        ({"alpha_bars": [0.5, 0.6]}, r"alpha_bars\[1\] = 0.6 is not below"),
    ],
)
def test_bad_numbers_are_failures(given, says):
    """Numbers that are no schedule at all fail the check like any other law."""
    with pytest.raises(AssertionError, match=says):
        check_schedule(**given)


@pytest.mark.parametrize("given", [{}, {"betas": [0.1], "alpha_bars": [0.9]}])
def test_one_thing_is_checked(given):
    """A bare array would be ambiguous: one keyword says what it is."""
    with pytest.raises(TypeError, match="pass one of schedule, betas, alpha_bars"):
        check_schedule(**given)


def test_zero_terminal_and_one_step_pass():
    """The ends of what a schedule can be: no data left, and a single step."""
    check_schedule(zero_terminal_snr(cosine()))
    check_schedule(from_betas([0.999]))
    check_schedule(Discrete((math.inf, -math.inf)))
