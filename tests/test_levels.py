"""Levels: α² + σ² = 1, λ = log(α² / σ²), τ, and what a level must be."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import Level, linear
from ddpm_core.arrays import log_sigmoid, logit_of_log
from ddpm_core.levels import from_logsnr, is_without_data, steps_of, tau
from ddpm_core.process import q_marginal

EPS = np.finfo(np.float64).eps
FLOAT32 = float(np.finfo(np.float32).eps)

log_snrs = st.floats(-700, 700) | st.sampled_from([-math.inf, math.inf])


@given(log_snrs)
def test_variance_is_preserved(logsnr):
    """α² + σ² = 1, also at both ends (Ho et al. 2020, Eq. 4)."""
    t = from_logsnr(logsnr, 0.0)
    assert abs(t.alpha**2 + t.sigma**2 - 1) <= 4 * EPS


@given(st.floats(-700, 700))
def test_log_snr_is_of_alpha_and_sigma(logsnr):
    """λ = log(α² / σ²) (Kingma et al. 2021, Eq. 3)."""
    t = from_logsnr(logsnr, 0.0)
    # log(α / σ) turns the few roundings of either into absolute ones, and rounds to λ's own size.
    assert abs(2 * math.log(t.alpha / t.sigma) - logsnr) <= 4 * EPS * (4 + abs(logsnr))


@pytest.mark.parametrize(("logsnr", "alpha", "sigma"), [(math.inf, 1, 0), (-math.inf, 0, 1)])
def test_ends_are_exact(logsnr, alpha, sigma):
    """λ = +inf is clean data and -inf is noise, without a warning, as a number and an array."""
    assert from_logsnr(logsnr, 0.0)[2:] == (alpha, sigma)
    t = from_logsnr(np.asarray([logsnr, 0.0]), 0.0)
    assert (t.alpha[0], t.sigma[0]) == (alpha, sigma)


@given(log_snrs)
def test_numbers_equal_arrays(logsnr):
    """A level of Python floats and one of arrays are the same level: math against NumPy."""
    one, many = from_logsnr(logsnr, 0.0), from_logsnr(np.asarray([logsnr]), 0.0)
    # Two libraries of elementary functions, each within a unit in the last place or so; the
    # exponent λ / 2 carries its own rounding.
    rtol = EPS * (4 + min(abs(logsnr), 700))
    np.testing.assert_allclose([one.alpha, one.sigma], [many.alpha[0], many.sigma[0]], rtol=rtol)


@given(st.floats(-1e300, 1e300))
def test_sigmoids_of_both_signs(c):
    """log sigmoid(c) - log sigmoid(-c) = c, for any finite c: nothing overflows."""
    difference = log_sigmoid(c) - log_sigmoid(-c)
    assert abs(difference - c) <= 2 * EPS * (1 + abs(c))


@given(st.floats(-600, 36))
def test_logit_inverts_log_sigmoid(c):
    """log(p / (1 - p)) at log p = log sigmoid(c) is c, until sigmoid(c) is 1 in float64."""
    # Near p = 1 the rounding of log p ~ -exp(-c) is relative, and c takes it as absolute.
    for value in (c, np.asarray([c])):
        back = logit_of_log(log_sigmoid(value))
        assert abs(float(np.ravel(back)[0]) - c) <= 4 * EPS * (2 + abs(c))


def test_logit_of_certainty():
    """log(p / (1 - p)) is +inf at p = 1 and -inf at p = 0, without a warning."""
    assert logit_of_log(0.0) == math.inf
    np.testing.assert_array_equal(logit_of_log(np.asarray([0.0, -math.inf])), [math.inf, -math.inf])


@given(st.floats(-30, 30), st.floats(1e-6, 30), st.floats(1e-6, 30))
def test_tau_composes(logsnr, first, second):
    """1 - τ(t, r) = (1 - τ(t, s)) (1 - τ(s, r)): a ratio of SNRs is a product of ratios."""
    r, s, t = (from_logsnr(x, 0.0) for x in (logsnr + first + second, logsnr + first, logsnr))
    # Each difference of two λ of up to 90 is off by their roundings.
    assert abs((1 - tau(t, r)) - (1 - tau(t, s)) * (1 - tau(s, r))) <= 4 * EPS * 90


@given(st.floats(-30, 30), st.floats(1e-6, 30))
def test_tau_is_the_added_share(logsnr, rise):
    """τ σ_t² = σ_t² - (α_t / α_s)² σ_s², the variance that is added from s to t."""
    t, s = from_logsnr(logsnr, 0.0), from_logsnr(logsnr + rise, 0.0)
    added = t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2  # cancels: an absolute tolerance
    assert abs(tau(t, s) * t.sigma**2 - added) <= 8 * EPS * (1 + abs(logsnr) + rise)
    assert 0 < tau(t, s) <= 1


def test_tau_of_clean_data():
    """τ(t, s) = 1 where s is clean data: all noise was added after it."""
    assert tau(from_logsnr(3.0, 1.0), from_logsnr(math.inf, 0.0)) == 1


@pytest.mark.parametrize("h", [2.0**-20, 2.0**-30, 2.0**-40])
def test_tau_of_neighbours(h):
    """τ = h - h² / 2 + h³ / 6 for a small step h of log-SNR: to rounding, with no digit lost."""
    got = tau(from_logsnr(0.0, 1.0), from_logsnr(h, 0.0))
    assert math.isclose(got, h - h**2 / 2 + h**3 / 6, rel_tol=2 * EPS)


def test_tau_in_float32():
    """From float32 levels τ of neighbours is within 2e-4 at T = 1000, as its docstring says."""
    levels = linear()(np.arange(1000, 0, -1))
    exact = tau(*steps_of(levels))
    rounded = tau(*steps_of(Level(*(np.asarray(f, np.float32) for f in levels))))
    error = np.max(np.abs(rounded / exact - 1))
    assert FLOAT32 < error <= 2e-4  # more than one rounding: λ does cancel


def test_steps_are_pairs_of_neighbours():
    """`steps_of` is (levels[i], levels[i + 1]) for every i."""
    levels = linear()(np.asarray([1000.0, 400.0, 7.0, 0.0]))
    t, s = steps_of(levels)
    for i in range(3):
        assert t.take(i) == levels.take(i)
        assert s.take(i) == levels.take(i + 1)
    assert len(t.sigma) == len(s.sigma) == 3


KINDS = [np.float64, np.float32, np.asarray]  # one number, of NumPy


@pytest.mark.parametrize("kind", KINDS)
def test_swapped_levels_are_named_whatever_their_numbers(kind):
    """τ(t, s) of an s that is noisier than t is an error for every kind of host level."""
    t, s = from_logsnr(0.0, 1.0), from_logsnr(2.0, 0.0)
    with pytest.raises(ValueError, match="s must be cleaner than t, but log-SNR is 0 at s and 2"):
        tau(s.map(kind), t.map(kind))
    assert tau(t.map(kind), s.map(kind)) == pytest.approx(tau(t, s), rel=2 * FLOAT32)


def test_no_noise_lies_between_a_level_and_itself():
    """τ(t, t) = 0, which is no error; the swapped pair beside it is the one that is named."""
    t = from_logsnr(2.0, 0.0)
    assert tau(t, t) == 0
    grid = from_logsnr(np.array([2.0, 1.0]), np.zeros(2))
    assert np.array_equal(tau(grid, grid), [0, 0])
    with pytest.raises(ValueError, match="log-SNR is 0 at s and 1 at t"):
        tau(grid, from_logsnr(np.array([2.0, 0.0]), np.zeros(2)))


def test_a_level_of_the_host_beside_one_per_sample():
    """Of a number and an array the order is checked; values of the device are never looked at."""
    t, s = from_logsnr(0.0, 1.0), from_logsnr(np.array([2.0, 1.0]), np.zeros(2))
    assert tau(t, s) == pytest.approx([tau(t, s.take(i)) for i in range(2)], rel=4 * EPS)
    with pytest.raises(ValueError, match="log-SNR is 0 at s and 2 at t"):
        tau(s, t)


def test_the_order_on_the_device_is_not_looked_at(lib):
    """A swapped pair is an error only where both are of the host, as NumPy's arrays are."""
    t, s = linear()(500), linear()(250)
    for pair in ((lib.level(s, lib.xp.float32), t), (s, lib.level(t, lib.xp.float32))):
        with pytest.raises(ValueError, match="swapped") if lib.name == "numpy" else nullcontext():
            tau(*pair)


def test_without_data(lib):
    """α = 0, at one host level or at any of several; of the device, nothing is said."""
    for alphas, wanted in ((0.0, True), (0.5, False), ([0.5, 0.0], True), ([0.5, 0.25], False)):
        alpha = np.asarray(alphas)
        t = Level(alpha, alpha, alpha, alpha)
        assert is_without_data(t) == wanted
        assert is_without_data(t.map(float) if alpha.ndim == 0 else t) == wanted
        assert is_without_data(lib.level(t, lib.xp.float32)) == (wanted and lib.name == "numpy")


X = np.ones((2, 3))
TIME = linear()(500)
DENOISE = ddpm.DatasetOracle(np.eye(3))


@pytest.mark.parametrize(
    "call",
    [
        lambda t: ddpm.q_sample(X, X, t),
        lambda t: q_marginal(X, t),
        lambda t: ddpm.q_step(X, X, t, linear()(1)),
        lambda t: ddpm.q_step(X, X, TIME, t),
        lambda t: ddpm.q_posterior(X, X, t, linear()(1)),
        lambda t: ddpm.q_posterior(X, X, TIME, t),
        lambda t: tau(TIME, t),
        lambda t: ddpm.target(X, X, t, ddpm.v),
        lambda t: ddpm.to_x0(X, X, t, ddpm.v),
        lambda t: ddpm.loss(DENOISE, X, X, t),
        lambda t: ddpm.Predictor(lambda x, time: x, linear())(X, t),
        lambda t: ddpm.reverse(DENOISE)(X, TIME, t),
        lambda t: DENOISE(X, t),
        lambda t: ddpm.GaussianOracle(np.zeros(3), 1.0)(X, t),
        lambda t: ddpm.GaussianOracle(np.zeros(3), 1.0).log_prob(X, t),
    ],
)
def test_what_is_no_level_is_named(call):
    """A time or an array where a level is expected is a TypeError that says what to do."""
    for number in (500, np.int64(500)):
        match = r"must be a Level, but is .*500\)?: pass schedule\(.*500\)"
        with pytest.raises(TypeError, match=match):
            call(number)
    with pytest.raises(TypeError, match=r"must be a Level, but is a numpy ndarray\Z"):
        call(X)
    with pytest.raises(
        TypeError, match=r"a numpy ndarray: pass schedule\([ts]\) if these are times"
    ):
        call(X[:, 0])


def test_a_level_is_no_array_and_no_time():
    """Levels and arrays in the wrong order are named, and a schedule takes no level."""
    with pytest.raises(TypeError, match=r"x_0 must be an array, but is a ddpm_core Level\Z"):
        ddpm.q_posterior(TIME, linear()(1), X, X)
    for schedule in (linear(), ddpm.VP()):
        with pytest.raises(TypeError, match="time must be a number or an array, but is a Level"):
            schedule(linear()(0))
