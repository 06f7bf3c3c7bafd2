"""Training levels: uniform draws against exact grids of u, importance sampling against its law."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_core import VP, draw, linear, schedules
from ddpm_core.schedules import Discrete, LinearLogSNR, Losses, probabilities

EPS = np.finfo(np.float64).eps
uniforms = st.sampled_from([1e-6, 1e-3, 0.1, 1.0])


def test_draws_are_uniform_over_the_times():
    """Every t of 1 .. T has the same share of [0, 1): midpoints of T cells hit each once."""
    for T in [*range(1, 65), 127, 999, 1000, 1024, 4000, 5000]:
        schedule = linear(T, rescale=False)
        for dtype in (np.float64, np.float32):
            u = ((np.arange(T) + 0.5) / T).astype(dtype)
            np.testing.assert_array_equal(draw(schedule, u).time, np.arange(T, 0, -1))


def test_draws_at_the_borders_of_cells():
    """u = k / T is T - k, or its neighbour where the quotient was rounded down."""
    for T in (1, 2, 3, 10, 49, 1000, 5000):
        k = np.arange(T)
        over = draw(linear(T, rescale=False), k / T).time - (T - k)
        assert np.all((over == 0) | ((over == 1) & (k > 0)))
        if T & (T - 1) == 0:
            assert not over.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clean_data_is_never_drawn(dtype):
    """The largest u below 1 is time 1, and so is one that was rounded to 1; for T up to 5000."""
    u = np.asarray([0.0, np.nextafter(dtype(1), dtype(0)), 1.0], dtype)
    for T in range(1, 5001):
        # A schedule of T levels whose table costs nothing to make.
        schedule = object.__new__(Discrete)
        object.__setattr__(schedule, "logsnr", _Falling(T))
        assert np.array_equal(_times(schedule, u), [T, 1, 1]), T
    for schedule in (VP(), LinearLogSNR()):
        time = draw(schedule, u[:2]).time
        assert time[0] == 1
        assert 0 < time[1] <= EPS + np.finfo(dtype).eps


def test_draws_lie_between_the_ends():
    """Time falls from the noisiest to the cleanest at one rate in u, whatever the two are."""

    class Part(LinearLogSNR):
        ends = (0.25, 0.75)

    np.testing.assert_array_equal(draw(Part(), np.array([0.0, 0.5])).time, [0.75, 0.5])


@pytest.mark.parametrize("schedule", [VP(), LinearLogSNR(), linear()], ids=str)
def test_no_u_of_any_library_draws_clean_data(lib, schedule):
    """A u that was rounded to 1 is drawn at a noisy time: log-SNR is finite, and below its end."""
    level = draw(schedule, lib.asarray(np.float32([0.5, 1.0])))
    if lib.has_values:
        time, logsnr = (lib.to_numpy(field) for field in level[:2])
        nearest = 1 if schedule == linear() else np.finfo(np.float32).eps / 2
        assert schedule.ends[0] < time[1] <= nearest
        assert np.isfinite(logsnr).all()


@pytest.mark.lanes("torch", "jax")
def test_a_draw_in_half_precision_is_float32(lib):
    """Products of u in bfloat16 would reach some 250 of 1000 times, and 497 is none of them."""
    u = lib.asarray(np.float32([1 / 4, 129 / 256]), lib.xp.bfloat16)
    level = draw(linear(), u)
    assert all(field.dtype == lib.xp.float32 for field in level)
    np.testing.assert_array_equal(lib.to_numpy(level.time), [750, 497])


@pytest.mark.parametrize("bad", [1.2, -0.1, math.nan])
@pytest.mark.parametrize("schedule", [VP(), linear()], ids=str)
def test_u_outside_is_named(schedule, bad):
    """A u of the host that is not uniform in [0, 1) is refused."""
    with pytest.raises(ValueError, match=rf"u must lie within \[0, 1\), but is {bad}"):
        draw(schedule, np.asarray([0.5, bad]))


class _Falling:
    """A table of T + 1 log-SNRs of which only the length is asked."""

    def __init__(self, T):
        self.T = T

    def __len__(self):
        return self.T + 1


def _times(schedule, u):
    """What `draw` asks a schedule for."""
    asked = []

    class Recorder(Discrete):
        def __call__(self, time, dtype=None):
            asked.append(time)

    recorder = object.__new__(Recorder)
    object.__setattr__(recorder, "logsnr", schedule.logsnr)
    draw(recorder, u)
    return asked[0]


@st.composite
def histories(draw, warm: bool | None = None):
    """T, K, and times (N,) and losses (N,) in the order that they came.

    warm: whether every time has K losses or more; None for either
    """
    T, K = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    times = rng.integers(1, T + 1, draw(st.integers(0, 30)))
    if warm:
        times = rng.permutation([*times, *np.repeat(np.arange(1, T + 1), K)])
    elif warm is False:
        missing = int(rng.integers(1, T + 1))
        times = np.concatenate([times[times != missing], np.full(K - 1, missing)])
    return T, K, times.astype(int), np.exp(rng.uniform(-8, 8, len(times)))


def state_of(history) -> Losses:
    T, K, times, losses = history
    return schedules.recorded(schedules.no_losses(T, K), times, losses)


def rms_of_last(history) -> np.ndarray:
    """sqrt(mean of the last K squares) at each time, from the whole history."""
    T, K, times, losses = history
    return np.array([np.sqrt((losses[times == t][-K:] ** 2).mean()) for t in range(1, T + 1)])


@given(history=histories(warm=True), uniform=uniforms)
def test_proportional_to_the_last_losses(history, uniform):
    """p_t ∝ sqrt(E L_t²) over the last K alone (Nichol & Dhariwal 2021, Eq. 18)."""
    size = rms_of_last(history)
    expected = (1 - uniform) * size / size.sum() + uniform / len(size)
    actual = probabilities(state_of(history), uniform)
    np.testing.assert_allclose(actual, expected, rtol=64 * EPS)
    assert actual.sum() == pytest.approx(1, rel=64 * EPS)


@given(history=histories(warm=False), uniform=uniforms)
def test_uniform_until_each_time_has_its_losses(history, uniform):
    """One time that lacks one loss keeps every probability at 1 / T; recording it ends that."""
    T, K, times, losses = history
    state = state_of(history)
    np.testing.assert_array_equal(probabilities(state, uniform), np.full(T, 1 / T))
    short = [t for t in range(1, T + 1) for _ in range(max(0, K - (times == t).sum()))]
    assert short
    full = (T, K, np.append(times, short), np.append(losses, np.arange(1.0, len(short) + 1)))
    size = rms_of_last(full)
    expected = (1 - uniform) * size / size.sum() + uniform / T
    state = schedules.recorded(state, short, np.arange(1.0, len(short) + 1))
    np.testing.assert_allclose(probabilities(state, uniform), expected, rtol=64 * EPS)


def test_ten_losses_are_kept():
    """The last 10 losses of each time (Nichol & Dhariwal 2021, section 3.3)."""
    assert schedules.no_losses(3).values.shape == (3, 10)


def test_no_loss_at_all():
    """Losses that are all 0 say nothing of where to look: every time is as likely."""
    state = schedules.recorded(schedules.no_losses(3, 1), [1, 2, 3], [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(probabilities(state), np.full(3, 1 / 3))
    # One time's own 0 leaves it its share of the uniform part, by the default of 0.001.
    state = schedules.recorded(state, [2], [5.0])
    times, weights = schedules.draw_important(state, [0.0, 0.5, 1 - EPS])
    np.testing.assert_array_equal(times, [1, 2, 3])
    np.testing.assert_allclose(weights, [1e3, 1 / (3 * (1 - 2e-3 / 3)), 1e3], rtol=64 * EPS)


@given(history=histories(), uniform=uniforms)
def test_weighted_mean_is_the_mean(history, uniform):
    """E_p[w_t L_t] = mean of L_t: exactly, with u the middle of each time's share."""
    state = state_of(history)
    p = probabilities(state, uniform)
    middles = np.cumsum(p) - p / 2
    times, weights = schedules.draw_important(state, middles, uniform)
    np.testing.assert_array_equal(times, np.arange(1, len(p) + 1))
    np.testing.assert_allclose(weights * p, 1 / len(p), rtol=64 * EPS)
    losses = np.arange(1.0, len(p) + 1) ** 2
    assert p @ (weights * losses[times - 1]) == pytest.approx(losses.mean(), rel=64 * EPS)


@given(history=histories(), uniform=uniforms)
def test_draws_follow_p(history, uniform):
    """Of n even u, each time takes its share of n, to one; u = 0 and the last u have a time."""
    state, n = state_of(history), 500
    p = probabilities(state, uniform)
    times, weights = schedules.draw_important(state, (np.arange(n) + 0.5) / n, uniform)
    counts = np.bincount(times, minlength=len(p) + 1)[1:]
    assert np.all(np.abs(counts - n * p) <= 1)
    np.testing.assert_allclose(weights, 1 / (len(p) * p[times - 1]), rtol=64 * EPS)
    ends, _ = schedules.draw_important(state, [0.0, 1 - EPS / 2], uniform)
    np.testing.assert_array_equal(ends, [1, len(p)])


def test_shares_are_half_open():
    """u at the very end of one time's share is the next time's; one rounded to 1 is the last's."""
    times, _ = schedules.draw_important(schedules.no_losses(4), [0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(times, [1, 2, 3, 4, 4])


@given(history=histories(), part=st.floats(0, 1))
def test_batches_do_not_matter(history, part):
    """Two recordings of the parts of a batch are one of the whole, and leave no trace behind."""
    T, K, times, losses = history
    i = round(part * len(times))
    start = schedules.no_losses(T, K)
    first = schedules.recorded(start, times[:i], losses[:i])
    kept = first.values.copy(), first.count.copy()
    second = schedules.recorded(first, times[i:], losses[i:])
    whole, again = state_of(history), state_of(history)
    for a, b, c in zip(second, whole, again, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(b, c)
    np.testing.assert_array_equal(whole.count, np.bincount(times, minlength=T + 1)[1:])
    # A state is a value: what was recorded later is not in it.
    assert not start.values.any()
    assert not start.count.any()
    np.testing.assert_array_equal(first.values, kept[0])
    np.testing.assert_array_equal(first.count, kept[1])


def test_recorded_takes_read_only_arrays():
    """Neither the state nor what is recorded is written to."""
    state = schedules.no_losses(2, 2)
    times, losses = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    for a in (*state, times, losses):
        a.flags.writeable = False
    later = schedules.recorded(state, times, losses)
    np.testing.assert_array_equal(later.values, [[3.0, 0.0], [4.0, 0.0]])


@pytest.mark.parametrize(
    ("times", "losses", "message"),
    [
        ([0], [1.0], r"integers within 1 \.\. 3, but one is 0"),
        ([4], [1.0], r"integers within 1 \.\. 3, but one is 4"),
        ([1.5], [1.0], "integers within .* but one is 1.5"),
        ([np.nan], [1.0], "integers within .* but one is nan"),
        ([1, 2], [1.0], r"times \(2,\) and losses \(1,\) must both be \(N,\)"),
        ([[1]], [[1.0]], r"must both be \(N,\)"),
        ([1], [np.nan], "losses must be finite, but one is nan"),
        ([1], [np.inf], "losses must be finite, but one is inf"),
    ],
)
def test_recorded_refuses(times, losses, message):
    with pytest.raises(ValueError, match=message):
        schedules.recorded(schedules.no_losses(3), times, losses)


@pytest.mark.parametrize("uniform", [0, -0.1, 1.1, np.nan])
def test_uniform_refused(uniform):
    """Without a uniform part a time could have probability 0, and its weight no value."""
    with pytest.raises(ValueError, match=r"uniform must lie within \(0, 1\]"):
        schedules.draw_important(schedules.no_losses(3), [0.5], uniform)


@pytest.mark.parametrize(("T", "K"), [(0, 1), (1, 0)])
def test_no_losses_refuses(T, K):
    with pytest.raises(ValueError, match=f"T and K must be at least 1, but are {T} and {K}"):
        schedules.no_losses(T, K)


@pytest.mark.parametrize("u", [1.2, -0.1, np.nan])
def test_u_refused(u):
    """A u outside [0, 1) would be drawn at the last time."""
    with pytest.raises(ValueError, match=r"u must lie within \[0, 1\), but is"):
        schedules.draw_important(schedules.no_losses(3), [0.5, u])
