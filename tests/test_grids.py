"""Grids: exhaustive over (T, steps), and the lists that the papers print."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ddpm_core import VP, from_betas, linear, zero_terminal_snr
from ddpm_core.grids import karras, leading, linspace, log_snr, quad, trailing
from ddpm_core.schedules import EDM, Discrete, LinearLogSNR
from ddpm_core.testing import strategies

#: (schedule, every number of steps): all small ones, and the T of the papers.
ALL = [(linear(T, rescale=False), range(1, T + 1)) for T in [*range(1, 41), 97, 1000]]


@pytest.mark.parametrize("grid", [trailing, leading, linspace])
def test_grids_are_strictly_falling_integers_to_zero(grid):
    """steps + 1 integer times, strictly falling, within 1 .. T, then 0: for every (T, steps)."""
    for schedule, counts in ALL:
        for steps in counts:
            times = grid(schedule, steps)
            assert times.shape == (steps + 1,)
            assert times.dtype == np.float64
            assert np.all(times == np.rint(times))
            assert np.all(np.diff(times) < 0)
            assert times[-1] == 0 < times[-2]
            assert times[0] <= schedule.T


@pytest.mark.parametrize("grid", [trailing, linspace])
def test_grids_start_where_the_noise_does(grid):
    """The first time is T (Lin et al. 2024, section 3.3)."""
    for schedule, counts in ALL:
        assert all(grid(schedule, steps)[0] == schedule.T for steps in counts)


@pytest.mark.parametrize("grid", [trailing, leading, linspace])
def test_all_steps_are_all_times(grid):
    """With steps = T a grid is T, T - 1, ..., 0."""
    for schedule, _ in ALL:
        np.testing.assert_array_equal(grid(schedule, schedule.T), np.arange(schedule.T, -1, -1))


def test_trailing_is_evenly_spaced():
    """Time i is within half of T (steps - i) / steps, in integer arithmetic."""
    for schedule, counts in ALL:
        for steps in counts:
            times = trailing(schedule, steps).astype(np.int64)
            assert np.all(
                2 * np.abs(steps * times - schedule.T * np.arange(steps, -1, -1)) <= steps
            )


def test_linspace_is_evenly_spaced():
    """Time i is within half of 1 + (T - 1) (steps - 1 - i) / (steps - 1), in integers."""
    for schedule, counts in ALL:
        for n in counts[1:]:
            times = linspace(schedule, n).astype(np.int64)[:-1]
            exact = (schedule.T - 1) * np.arange(n - 1, -1, -1)
            assert np.all(2 * np.abs((n - 1) * (times - 1) - exact) <= n - 1)


# Lin et al. 2024 (arXiv 2305.08891), Table 2: the times of 10 steps of T = 1000.
@pytest.mark.parametrize(
    ("grid", "wanted"),
    [
        (leading, [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]),
        (linspace, [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]),
        (trailing, [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]),
    ],
)
def test_ten_steps_of_lin_et_al(grid, wanted):
    """The three grids are those of Lin et al. 2024, Table 2."""
    np.testing.assert_array_equal(grid(linear(), 10), [*reversed(wanted), 0])


def test_leading_is_the_list_of_ddim():
    """range(0, T, T // steps), in times from 1 (the "uniform" of the code of Song et al. 2021)."""
    for T, steps in [(1000, 10), (1000, 20), (1000, 50), (1000, 100), (1000, 250), (1000, 1000)]:
        seq = [i + 1 for i in range(0, T, T // steps)]
        np.testing.assert_array_equal(leading(linear(T), steps), [*reversed(seq), 0])


def test_trailing_where_accumulated_floats_fail():
    """round(arange(T, 0, -T / steps)) is a time too long for 62 of 1000 counts; ours is not."""
    # The idiom of diffusers 0.42's schedulers (scheduling_ddpm.py:339), at T = 1000.
    bad = [n for n in range(1, 1001) if len(np.round(np.arange(1000, 0, -1000 / n))) != n]
    assert bad[:5] == [61, 103, 121, 122, 201]
    assert len(bad) == 62
    for steps in bad:
        times = trailing(linear(), steps)
        assert len(times) == steps + 1
        assert times[-2] == round(1000 / steps) > 0


@pytest.mark.parametrize("schedule", [VP(), LinearLogSNR(), EDM(sigma_max=65.6132546548788)])
@pytest.mark.parametrize("steps", [1, 2, 7, 61, 1000])
def test_trailing_in_continuous_time(schedule, steps):
    """On a continuous schedule the times are evenly spaced between its ends, which are exact."""
    times = trailing(schedule, steps)
    assert (times[0], times[-1]) == (schedule.ends[1], schedule.ends[0])
    end = schedule.ends[1]
    atol = 2 * np.finfo(float).eps * end
    np.testing.assert_allclose(-np.diff(times), end / steps, rtol=0, atol=atol)


@pytest.mark.parametrize("grid", [leading, linspace])
def test_integer_grids_refuse_continuous_time(grid):
    """`leading` and `linspace` are for integer times, and say what to use."""
    with pytest.raises(
        TypeError, match=f"{grid.__name__} needs a Discrete schedule: use trailing for"
    ):
        grid(VP(), 10)


@pytest.mark.parametrize("grid", [trailing, leading, linspace])
def test_too_many_steps_are_named(grid):
    """There are at most T steps of integer times."""
    with pytest.raises(ValueError, match=r"steps must lie within \[1, 100\].* but is 101"):
        grid(linear(100, rescale=False), 101)


@pytest.mark.parametrize("grid", [trailing, leading, linspace])
@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_steps_that_are_none_are_named(grid, steps):
    """Steps are counted: 1, 2, 3, ..."""
    with pytest.raises(ValueError, match=f"an integer of at least 1, but is {steps}"):
        grid(linear(100, rescale=False), steps)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_of_continuous_time(steps):
    """A continuous schedule has at least one step, too."""
    with pytest.raises(ValueError, match=f"an integer of at least 1, but is {steps}"):
        trailing(VP(), steps)


FRACTIONAL = [quad, karras, log_snr]
fractional = pytest.mark.parametrize("grid", FRACTIONAL)


@fractional
def test_fractional_grids_fall_strictly_from_the_noisiest_to_clean_data(grid):
    """steps + 1 times from T through ... > 1 to 0, for every (T, steps) with T above 1."""
    for schedule, counts in ALL:
        for steps in counts if schedule.T > 1 else [1]:
            times = grid(schedule, steps)
            assert times.shape == (steps + 1,)
            assert times.dtype == np.float64
            assert np.all(np.diff(times) < 0)
            assert (times[0], times[-1]) == (schedule.T, 0)
            assert steps == 1 or times[-2] == 1


@fractional
@given(schedule=strategies.schedules(60), steps=st.integers(1, 300))
@example(schedule=from_betas([0.5]), steps=2)
def test_fractional_grids_on_any_schedule(grid, schedule, steps):
    """More steps than T, continuous times, a clean end that has noise: the same properties."""
    if isinstance(schedule, Discrete) and schedule.T == 1 and steps > 1:
        with pytest.raises(ValueError, match=r"steps are too many: .* between 1 and 1"):
            grid(schedule, steps)
        return
    times = grid(schedule, steps)
    clean, noisiest = schedule.ends
    assert times.shape == (steps + 1,)
    assert np.all(np.diff(times) < 0)
    assert (times[0], times[-1]) == (noisiest, clean)
    assert np.all(np.diff(schedule(times).logsnr) > 0)  # the levels of `levels_of`


@pytest.mark.parametrize("schedule", [linear(), VP(), LinearLogSNR(), EDM()])
def test_fractional_grids_are_even_in_their_coordinate(schedule):
    """sqrt(t), k^(1/ρ) and log-SNR have equal steps, down to the last noisy time."""
    k = lambda level, rho: (level.sigma / level.alpha) ** (1 / rho)
    last = {"Discrete": 1.0, "VP": 1e-3, "LinearLogSNR": 0.0, "EDM": 0.002}[type(schedule).__name__]
    for steps in (2, 5, 40):
        for grid, coordinate in [
            (quad, lambda t: np.sqrt(t.time - last)),
            (log_snr, lambda t: t.logsnr),
            (karras, lambda t: k(t, 7)),
            (lambda *a: karras(*a, rho=2.5), lambda t: k(t, 2.5)),
            (lambda *a: karras(*a, rho=1), lambda t: k(t, 1)),
        ]:
            times = grid(schedule, steps)
            noisy = times if last == 0 else times[:-1]
            assert noisy[-1] == last
            found = coordinate(schedule(noisy))
            even = np.linspace(found[0], found[-1], len(noisy))
            np.testing.assert_allclose(found, even, rtol=1e-9, atol=1e-9 * np.abs(even).max())


def test_karras_is_equation_5():
    """EDM's sigmas from 80 to 0.002 of rho = 7, and then 0 (Karras et al. 2022, Eq. 5)."""
    levels = EDM()(karras(EDM(), 18))
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(levels.sigma / levels.alpha, [*expected, 0.0], rtol=1e-12)


def test_no_log_snr_without_data():
    """At alpha = 0 k is infinite: an error that says so; quad does without."""
    schedule = zero_terminal_snr(linear())
    for grid in (karras, log_snr):
        with pytest.raises(ValueError, match=rf"{grid.__name__} needs a finite log-SNR"):
            grid(schedule, 10)
    assert quad(schedule, 10)[0] == 1000
    with pytest.raises(ValueError, match="rho must be above 0, but is 0"):
        karras(linear(), 10, rho=0)


@fractional
def test_fractional_grids_need_steps(grid):
    for steps in (0, 2.5):
        with pytest.raises(ValueError, match="steps must be an integer of at least 1"):
            grid(linear(), steps)


class Later:
    """VP at the times 3 .. 5, of which 3 is clean data."""

    ends = (3.0, 5.0)

    def __call__(self, time, dtype=None):
        return VP()((time - 3) / 2)._replace(time=time)

    def at(self, logsnr):
        t = VP().at(logsnr)
        return t._replace(time=3 + 2 * t.time)


@pytest.mark.parametrize("grid", [trailing, *FRACTIONAL])
def test_grids_of_shifted_times(grid):
    """Of a schedule whose times are others, a grid has the same levels."""
    for steps in (1, 2, 7):
        np.testing.assert_allclose(grid(Later(), steps), 3 + 2 * grid(VP(), steps), rtol=1e-9)
