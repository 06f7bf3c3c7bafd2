"""Grids: exhaustive over (T, steps), and the lists that the papers print."""

from __future__ import annotations

import numpy as np
import pytest

from ddpm_core import VP, LinearLogSNR, leading, linear, linspace, trailing

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


@pytest.mark.parametrize("schedule", [VP(), LinearLogSNR()])
@pytest.mark.parametrize("steps", [1, 2, 7, 61, 1000])
def test_trailing_in_continuous_time(schedule, steps):
    """On a continuous schedule the times are evenly spaced between its ends, which are exact."""
    times = trailing(schedule, steps)
    assert (times[0], times[-1]) == (schedule.ends[1], schedule.ends[0])
    np.testing.assert_allclose(-np.diff(times), 1 / steps, rtol=0, atol=2 * np.finfo(float).eps)


@pytest.mark.parametrize("grid", [leading, linspace])
def test_integer_grids_refuse_continuous_time(grid):
    """`leading` and `linspace` are for integer times, and say what to use."""
    with pytest.raises(TypeError, match=f"{grid.__name__} is for integer times; use trailing with"):
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
