"""Reverse kernels, against Ho et al.'s beta forms and exact kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import kernels, levels, losses
from ddpm_core.levels import from_logsnr
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps

pairs = st.tuples(st.floats(-9, 9), st.floats(0.01, 9)).map(
    lambda p: (from_logsnr(p[0], 1.0), from_logsnr(p[0] + p[1], 0.0))
)  # t, s < t
log_c = st.floats(-14, 7)  # the log of a variance


@given(betas=strategies.betas(), data=st.data())
def test_mean_is_eq_11(betas, data):
    """μ = (x_t - β_t / sqrt(1 - ᾱ_t) eps) / sqrt(1 - β_t) (Ho et al. 2020, Eq. 11)."""
    i = data.draw(st.integers(1, len(betas)))
    x_t, eps = data.draw(strategies.normals((3, 4), count=2))
    schedule = ddpm.from_betas(betas)
    t, s = schedule(i), schedule(i - 1)
    noise = -np.expm1(np.log1p(-betas[:i]).sum())  # 1 - ᾱ_t
    expected = (x_t - betas[i - 1] / np.sqrt(noise) * eps) / np.sqrt(1 - betas[i - 1])
    predict = ddpm.Predictor(lambda x, time: eps, schedule)
    actual = ddpm.reverse(predict)(x_t, t, s).mean
    # x_0 and x_t's share of it cancel: Eq. 11 is read through (x_t - σ eps) / α, times α_s τ.
    size = (np.abs(x_t) + np.abs(eps)) * (1 + s.alpha / t.alpha)
    assert np.all(np.abs(actual - expected) <= 64 * EPS * size)


@given(betas=strategies.betas(), data=st.data())
def test_variances_are_beta_and_beta_tilde(betas, data):
    """large = β_t, and small = β̃_t = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) β_t (Ho et al. 2020, Eq. 7)."""
    i = data.draw(st.integers(1, len(betas)))
    schedule = ddpm.from_betas(betas)
    t, s = schedule(i), schedule(i - 1)
    log_abar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    small = np.expm1(log_abar[i - 1]) / np.expm1(log_abar[i]) * betas[i - 1]
    # τ = 1 - SNR_t / SNR_s keeps EPS |log-SNR| of the two, and β_t = τ σ_t².
    atol = 8 * EPS * (1 + abs(t.logsnr)) * t.sigma**2
    for variance, expected in ((ddpm.large, betas[i - 1]), (ddpm.small, small)):
        assert abs(variance(t, s) - expected) <= atol
        kernel = ddpm.reverse(lambda x, t: x, variance)(np.zeros((1, 1)), t, s)
        assert kernel.var == (variance(t, s) if i > 1 else 0)  # Algorithm 2's last z is 0


@given(pair=pairs, log_c=log_c)
def test_exact_variance_lies_between(pair, log_c):
    """β̃ <= σ*² <= β / α for Gaussian data of any variance c (Ho et al. 2020, section 3.2)."""
    t, s = pair
    exact = lambda c: float(ddpm.GaussianOracle([0.0], c).reverse(np.zeros((1, 1)), t, s).var[0, 0])
    most = ddpm.large(t, s) * (s.alpha / t.alpha) ** 2
    assert ddpm.small(t, s) * (1 - 32 * EPS) <= exact(np.exp(log_c)) <= most * (1 + 32 * EPS)
    assert exact(np.exp(log_c)) <= exact(2 * np.exp(log_c)) * (1 + 32 * EPS)
    # Equality for points, for N(0, I) and for data without bound.
    np.testing.assert_allclose(exact(0.0), ddpm.small(t, s), rtol=32 * EPS)
    np.testing.assert_allclose(exact(1.0), ddpm.large(t, s), rtol=32 * EPS)
    np.testing.assert_allclose(exact(1e25), most, rtol=32 * EPS)


@given(pair=pairs, log_c=log_c, m=st.floats(-3, 3), x=strategies.normals((3, 1)))
def test_mean_of_exact_denoiser_is_exact(pair, log_c, m, x):
    """E[x_s | x_t] = E[E[x_s | x_t, x_0] | x_t]: the posterior mean is linear in x_0."""
    t, s = pair
    oracle = ddpm.GaussianOracle([m], np.exp(log_c))
    mean = ddpm.reverse(oracle)(x, t, s).mean
    size = (1 + abs(m) + np.abs(x)) * (1 + s.alpha / t.alpha)
    assert np.all(np.abs(mean - oracle.reverse(x, t, s).mean) <= 64 * EPS * size)


@given(pair=pairs, x=strategies.normals((3, 2)))
def test_optimal_for_standard_normal_and_for_a_point(pair, x):
    """For N(0, I) the kernel with `large` is q(x_s | x_t), and for one point that with `small`."""
    t, s = pair
    for c, variance in ((1.0, ddpm.large), (0.0, ddpm.small)):
        oracle = ddpm.GaussianOracle(np.zeros(2), c)
        ours, exact = ddpm.reverse(oracle, variance)(x, t, s), oracle.reverse(x, t, s)
        exact_var = np.broadcast_to(exact.var, x.shape)
        exact = ddpm.Gaussian(exact.mean, exact_var)
        # A mean that is off by EPS |x| costs its square over the variance, at least EPS τ.
        atol = 1e3 * EPS * (1 + (x**2).sum(1)) * (1 + (s.alpha / t.alpha) ** 2)
        assert np.all(np.abs(ddpm.kl(exact, ours)) <= atol / levels.tau(t, s) ** 2)


@given(pair=pairs, x=strategies.normals((2, 3)))
def test_lands_on_clean_data(pair, x):
    """At s = clean data the kernel is the point mass at x_0, as the posterior is."""
    oracle = ddpm.MixtureOracle([1.0, 2.0], np.eye(2, 3), 0.5)
    for variance in (ddpm.small, ddpm.large):
        kernel = ddpm.reverse(oracle, variance)(x, pair[0], from_logsnr(np.inf, 0.0))
        np.testing.assert_array_equal(kernel.mean, oracle(x, pair[0]))
        assert kernel.var == 0


NUMBERS = [int, float, np.int64, np.float32, np.asarray]


@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("variance", [ddpm.large, ddpm.optimal(lambda t: 0.1)])
def test_clean_data_is_recognised_whatever_its_numbers(variance, kind):
    """The last step has variance 0 for times, and for levels, of any kind of host number."""
    schedule = ddpm.linear()
    x, kernel = np.ones((2, 3)), ddpm.reverse(lambda x, t: x, variance)
    t, s = schedule(kind(1)), schedule(kind(0))
    assert all(type(field) is float for field in (*t, *s))
    if kind is not int:  # a level of such numbers, which did not come from a schedule
        t, s = t.map(kind) if kind is np.float32 else t, s.map(np.asarray)
    assert kernel(x, t, s).var == 0
    with pytest.raises(ValueError, match="pass decoder_var"):
        losses.bound(kernel, x, x, t, s)


@pytest.mark.parametrize("variance", [ddpm.large, ddpm.optimal(lambda t: 0.1)])
def test_clean_data_is_recognised_among_others(lib, variance):
    """At levels (B,), of the host or the device, the samples that end at clean data have 0."""
    schedule = ddpm.linear()
    t, s = schedule(np.array([1.0, 500.0, 1.0])), schedule(np.array([0.0, 250.0, 0.0]))
    x = lib.asarray(np.ones((3, 2), np.float32))
    wanted = np.float32([0.0, variance(schedule(500), schedule(250)), 0.0])
    for here in (lambda level: level, lambda level: lib.level(level, lib.xp.float32)):
        var = ddpm.reverse(lambda x, t: x, variance)(x, here(t), here(s)).var
        if lib.has_values or isinstance(var, np.ndarray):
            var = var if isinstance(var, np.ndarray) else lib.to_numpy(var)
            np.testing.assert_allclose(var, wanted, rtol=1e-5)


def test_is_clean():
    """Only one level of the host is known to be clean data."""
    assert kernels.is_clean(from_logsnr(np.inf, 0.0))
    assert not kernels.is_clean(from_logsnr(5.0, 0.0))
    assert not kernels.is_clean(from_logsnr(np.full(2, np.inf), np.zeros(2)))
