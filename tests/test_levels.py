"""Levels: α² + σ² = 1, λ = log(α² / σ²), τ, and the one place that broadcasts."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_core import Level, linear
from ddpm_core.arrays import check_pair, combine, fit, log_sigmoid, logit_of_log, widen
from ddpm_core.levels import from_logsnr, steps_of, tau
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
FLOAT32 = np.finfo(np.float32).eps

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


# fit, combine and the checks of arrays ----------------------------------------------------------


@given(strategies.shapes(), st.sampled_from([np.float32, np.float64]), st.integers(0, 99))
def test_fit_is_per_sample(shape, dtype, seed):
    """A coefficient (B,) times x is each sample times its number, in x's dtype."""
    rng = np.random.default_rng(seed)
    c, x = rng.standard_normal(shape[0]), rng.standard_normal(shape).astype(dtype)
    got = fit(c, x) * x
    assert got.dtype == dtype
    assert got.shape == shape
    for i in range(shape[0]):
        np.testing.assert_array_equal(got[i], fit(float(c[i]), x[i]) * x[i])


@pytest.mark.parametrize("c", [2, 2.0, np.float64(2), np.asarray(2.0), np.asarray(2.0, np.float32)])
def test_numbers_stay_numbers(c):
    """A number of any kind is a Python float, which leaves x's dtype alone."""
    assert type(fit(c, np.ones((2, 3), np.float16))) is float
    assert (fit(c, np.ones((2, 3), np.float16)) * np.ones(1, np.float16)).dtype == np.float16


def test_fit_casts_last():
    """A float64 coefficient meets float32 data as the nearest float32."""
    c = np.asarray([Fraction(1, 3), Fraction(2, 3)], dtype=np.float64)
    got = fit(c, np.ones((2, 5), np.float32))
    np.testing.assert_array_equal(got[:, 0], [np.float32(1 / 3), np.float32(2 / 3)])


@pytest.mark.parametrize("shape", [(3,), (2, 1), (0,)])
def test_fit_names_the_shapes(shape):
    """Coefficients that are neither one value nor one per sample are an error."""
    with pytest.raises(ValueError, match=rf"shape \({shape[0]}.*x of shape \(2, 5, 5\)"):
        fit(np.ones(shape), np.ones((2, 5, 5)))


def test_zero_takes_no_part():
    """A host coefficient of 0 costs nothing: 0 times inf does not appear."""
    bad, good = np.asarray([[math.inf, math.nan]]), np.ones((1, 2))
    np.testing.assert_array_equal(combine((0.0, bad), (2.0, good)), 2 * good)
    np.testing.assert_array_equal(combine((0, good), (0.0, good)), np.zeros((1, 2)))


def test_steps_are_pairs_of_neighbours():
    """`steps_of` is (levels[i], levels[i + 1]) for every i."""
    levels = linear()(np.asarray([1000.0, 400.0, 7.0, 0.0]))
    t, s = steps_of(levels)
    for i in range(3):
        assert t.take(i) == levels.take(i)
        assert s.take(i) == levels.take(i + 1)
    assert len(t.sigma) == len(s.sigma) == 3


def test_pairs_must_match():
    """Arrays that are combined have one shape and one floating-point dtype, or are named."""
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"eps has shape \(3, 2\) but x_0 has shape \(2, 3\)"):
        check_pair(x_0=x, eps=np.ones((3, 2), np.float32))
    with pytest.raises(TypeError, match="eps has dtype float64 but x_0 has dtype float32"):
        check_pair(x_0=x, eps=np.ones((2, 3)))
    with pytest.raises(TypeError, match="x_0 has dtype int64: convert it to floating point"):
        check_pair(x_0=np.ones((2, 3), np.int64))


@pytest.mark.parametrize(
    ("given_", "wide"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_half_precision_is_widened(given_, wide):
    """Half precision is computed in float32, and nothing else changes."""
    assert widen(np, np.ones(2, given_)).dtype == wide
