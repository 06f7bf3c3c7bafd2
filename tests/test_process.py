"""The forward process and its posterior: Chapman-Kolmogorov, Bayes, and Ho et al.'s β-forms."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ddpm_core import (
    Gaussian,
    GaussianOracle,
    Level,
    from_betas,
    large,
    linear,
    q_posterior,
    q_sample,
    q_step,
    small,
    to_x0,
)
from ddpm_core.gaussians import log_prob, sum_of_sample
from ddpm_core.levels import from_logsnr, tau
from ddpm_core.parameterisations import mu
from ddpm_core.process import posterior_row, q_marginal
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
CLEAN = from_logsnr(math.inf, 0.0)
ONE, ZERO = np.ones((1, 1)), np.zeros((1, 1))

levels = st.floats(-20, 20).map(lambda x: from_logsnr(x, -x))


@st.composite
def noisier(draw, count):
    """Levels t, s, ..., each noisier than the next, from neighbours to almost independent."""
    logsnr = draw(st.floats(-20, 15))
    out = [from_logsnr(logsnr, -logsnr)]
    for _ in range(count - 1):
        logsnr += draw(st.floats(1e-4, 10))
        out.append(from_logsnr(logsnr, -logsnr))
    return out


def rounding(*levels):
    """1 + Σ |λ|: what the rounding of log-SNR does to τ and σ², in units of EPS."""
    return 1 + sum(abs(t.logsnr) for t in levels if math.isfinite(t.logsnr))


def step_kernel(x_s, s, t):
    """q(x_t | x_s), probed: the mean is the step without noise, the deviation that without data."""
    deviation = q_step(ZERO, ONE, t, s)[0, 0]
    return Gaussian(q_step(x_s, 0 * x_s, t, s), deviation**2)


@given(levels, st.integers(0, 99))
def test_a_draw_is_of_the_marginal(t, seed):
    """`q_sample` is a draw of `q_marginal`: N(α x_0, σ² I) (Ho et al. 2020, Eq. 4)."""
    x_0, eps = np.random.default_rng(seed).standard_normal((2, 3, 4))
    np.testing.assert_allclose(
        q_sample(x_0, eps, t), q_marginal(x_0, t).reparameterise(eps), rtol=0, atol=16 * EPS
    )


@given(levels)
def test_unit_variance_is_kept(t):
    """Data of unit variance keeps it: α² + σ² = 1, probed through `q_sample`."""
    total = q_sample(ONE, ZERO, t) ** 2 + q_sample(ZERO, ONE, t) ** 2
    assert abs(total[0, 0] - 1) <= 4 * EPS


@given(levels, st.integers(0, 99), st.floats(-3, 3), st.floats(-3, 3))
def test_q_sample_is_linear(t, seed, a, b):
    """`q_sample` is linear in (x_0, eps), jointly."""
    x_0, eps, y_0, e = np.random.default_rng(seed).standard_normal((4, 2, 3))
    joint = q_sample(a * x_0 + b * y_0, a * eps + b * e, t)
    apart = a * q_sample(x_0, eps, t) + b * q_sample(y_0, e, t)
    np.testing.assert_allclose(joint, apart, rtol=0, atol=16 * EPS * 24)  # of sums of up to 24


def test_clean_data_is_clean():
    """At clean data x_t is x_0 bit for bit, whatever the noise."""
    x_0, eps = np.random.default_rng(0).standard_normal((2, 3, 4))
    np.testing.assert_array_equal(q_sample(x_0, eps * math.inf, CLEAN), x_0)


@given(noisier(3))
def test_chapman_kolmogorov(triple):
    """q(x_t | x_s) ∘ q(x_s | x_r) = q(x_t | x_r): means multiply, variances add up."""
    t, s, first = triple
    for r in (first, CLEAN):
        mean = q_step(q_step(ONE, ZERO, s, r), ZERO, t, s)
        np.testing.assert_allclose(mean, q_step(ONE, ZERO, t, r), rtol=8 * EPS * rounding(t, s, r))
        early = q_step(q_step(ZERO, ONE, s, r), ZERO, t, s)[0, 0]
        late = q_step(ZERO, ONE, t, s)[0, 0]
        whole = q_step(ZERO, ONE, t, r)[0, 0]
        assert abs(early**2 + late**2 - whole**2) <= 8 * EPS * rounding(t, s, r)


@given(levels, st.integers(0, 99))
def test_step_from_clean_data(t, seed):
    """From clean data `q_step` is `q_sample`."""
    x_0, eps = np.random.default_rng(seed).standard_normal((2, 3, 4))
    np.testing.assert_array_equal(q_step(x_0, eps, t, CLEAN), q_sample(x_0, eps, t))


@given(strategies.betas(max_T=40), st.data())
def test_step_is_of_ho_et_al(betas, data):
    """q(x_t | x_{t-1}) = N(sqrt(1 - β_t) x_{t-1}, β_t I) (Ho et al. 2020, Eq. 2)."""
    schedule = from_betas(betas)
    k = data.draw(st.integers(1, len(betas)))
    s, t = schedule(k - 1), schedule(k)
    kernel = step_kernel(ONE, s, t)
    atol = 8 * EPS * rounding(t, s)
    assert abs(kernel.mean[0, 0] - math.sqrt(1 - betas[k - 1])) <= atol
    assert abs(kernel.var - betas[k - 1]) <= atol
    assert abs(large(t, s) - betas[k - 1]) <= atol


@given(noisier(2), st.integers(0, 2**32 - 1))
def test_bayes(pair, seed):
    """q(x_s | x_t, x_0) q(x_t | x_0) = q(x_t | x_s) q(x_s | x_0), as log densities."""
    t, s = pair
    x_0, eps, z = np.random.default_rng(seed).standard_normal((3, 2, 3))
    x_s = q_sample(x_0, eps, s)
    x_t = q_step(x_s, z, t, s)
    backward = log_prob(q_posterior(x_0, x_t, t, s), x_s) + log_prob(q_marginal(x_0, t), x_t)
    forward = log_prob(step_kernel(x_s, s, t), x_t) + log_prob(q_marginal(x_0, s), x_s)
    # A residual is off by roundings of x over its own deviation, a variance by those of λ over τ.
    deviation = math.sqrt(tau(t, s)) * s.sigma
    size = 1 + sum_of_sample(np.abs(x_0) + eps**2 + z**2)
    tolerance = 16 * EPS * size * (1 / deviation + rounding(t, s) / tau(t, s))
    assert np.all(np.abs(backward - forward) <= tolerance)


@given(noisier(2))
def test_precisions_add(pair):
    """1/β̃ = 1/σ_s² + r²/β and mean = β̃ (α_s x_0 / σ_s² + r x_t / β), r = α_t / α_s (Bayes)."""
    t, s = pair
    beta, r = large(t, s), t.alpha / s.alpha
    var = 1 / (1 / s.sigma**2 + r**2 / beta)
    rtol = 8 * EPS * rounding(t, s) / tau(t, s)
    assert math.isclose(small(t, s), var, rel_tol=rtol)
    on_x_0 = q_posterior(ONE, ZERO, t, s).mean[0, 0]
    on_x_t = q_posterior(ZERO, ONE, t, s).mean[0, 0]
    assert math.isclose(on_x_0, var * s.alpha / s.sigma**2, rel_tol=rtol)
    assert math.isclose(on_x_t, var * r / beta, rel_tol=rtol)


@given(noisier(2))
def test_posterior_agrees_with_the_marginal(pair):
    """c_0 + c_t α_t = α_s and c_t² σ_t² + β̃ = σ_s²: averaged over x_t it is q(x_s | x_0)."""
    t, s = pair
    on_x_0, on_x_t = posterior_row(t, s)
    tolerance = 8 * EPS * rounding(t, s)
    assert abs(on_x_0 + on_x_t * t.alpha - s.alpha) <= tolerance
    assert abs(on_x_t**2 * t.sigma**2 + small(t, s) - s.sigma**2) <= tolerance


@given(strategies.betas(max_T=40), st.data())
def test_posterior_is_of_ho_et_al(betas, data):
    """μ̃ and β̃ in β, α and ᾱ (Ho et al. 2020, Eqs. 6-7), from exact rationals, s = t - 1."""
    k = data.draw(st.integers(1, len(betas)))
    beta = Fraction(betas[k - 1])
    abar_s = Fraction(1)
    for b in betas[: k - 1].tolist():
        abar_s *= 1 - Fraction(b)
    abar_t = abar_s * (1 - beta)
    on_x_0 = math.sqrt(abar_s) * float(beta / (1 - abar_t))
    on_x_t = math.sqrt(1 - beta) * float((1 - abar_s) / (1 - abar_t))
    tilde = float((1 - abar_s) / (1 - abar_t) * beta)

    schedule = from_betas(betas)
    t, s = schedule(k), schedule(k - 1)
    got = q_posterior(ONE, ZERO, t, s), q_posterior(ZERO, ONE, t, s)
    tolerance = (8 + k) * EPS * rounding(t, s)  # log ᾱ is a sum of k roundings
    assert abs(got[0].mean[0, 0] - on_x_0) <= tolerance
    assert abs(got[1].mean[0, 0] - on_x_t) <= tolerance
    assert abs(got[0].var - tilde) <= tolerance
    assert small(t, s) == got[0].var


@given(strategies.betas(max_T=40), st.integers(0, 99), st.data())
def test_mean_from_eps_is_of_ho_et_al(betas, seed, data):
    """μ̃ = (x_t - β_t / sqrt(1 - ᾱ_t) eps) / sqrt(α_t) (Ho et al. 2020, Eq. 11)."""
    k = data.draw(st.integers(1, len(betas)))
    schedule, beta = from_betas(betas), betas[k - 1]
    t, s = schedule(k), schedule(k - 1)
    x_0, eps = np.random.default_rng(seed).standard_normal((2, 3, 4))
    x_t = q_sample(x_0, eps, t)
    noise = -math.expm1(np.log1p(-betas[:k]).sum())
    wanted = (x_t - beta / math.sqrt(noise) * eps) / math.sqrt(1 - beta)
    # Eq. 11 subtracts before it divides by sqrt(α_t), which may be small.
    atol = 32 * EPS * rounding(t, s) / math.sqrt(1 - beta)
    np.testing.assert_allclose(q_posterior(x_0, x_t, t, s).mean, wanted, rtol=0, atol=atol)


@given(strategies.discrete_schedules(max_T=40), st.integers(0, 99), st.data())
def test_mean_from_predicted_mean(schedule, seed, data):
    """The posterior mean, read as the prediction `mu`, gives back x_0 (Eq. 7 solved for x_0)."""
    k = data.draw(st.integers(2, max(2, schedule.T)))
    assume(k <= schedule.T)
    t, s = schedule(k), schedule(k - 1)
    x_0, eps = np.random.default_rng(seed).standard_normal((2, 3, 4))
    x_t = q_sample(x_0, eps, t)
    back = to_x0(q_posterior(x_0, x_t, t, s).mean, x_t, t, mu(schedule))
    # x_0's own coefficient, α_s τ, divides every rounding.
    atol = 32 * EPS * rounding(t, s) / (s.alpha * tau(t, s)) ** 2
    np.testing.assert_allclose(back, x_0, rtol=0, atol=atol)


@given(levels, st.integers(0, 99))
def test_posterior_at_clean_data(t, seed):
    """At s = clean data the posterior is the point mass at x_0; with it β̃_1 = 0, also at T = 1."""
    x_0, x_t = np.random.default_rng(seed).standard_normal((2, 3, 4))
    posterior = q_posterior(x_0, x_t, t, CLEAN)
    np.testing.assert_array_equal(posterior.mean, x_0)
    assert posterior.var == 0
    one = from_betas([0.3])
    assert small(one(1), one(0)) == 0


@given(noisier(2), st.floats(-12, 12))
def test_small_and_large_are_the_extremes(pair, log_c):
    """β̃ <= σ*² <= β for data of variance c <= 1, and β <= σ*² <= β / r² above (section 3.2)."""
    t, s = pair
    c = math.exp(log_c)
    oracle = GaussianOracle(np.zeros(1), np.asarray([c]))
    optimal = np.ravel(oracle.reverse(ONE, t, s).var)[0]
    slack = 1 + 16 * EPS * rounding(t, s)
    low, middle, high = small(t, s), large(t, s), large(t, s) * (s.alpha / t.alpha) ** 2
    below, above = (low, middle) if c <= 1 else (middle, high)
    assert below <= optimal * slack
    assert optimal <= above * slack


@given(noisier(2))
def test_small_and_large_are_optimal(pair):
    """β̃ is the exact variance for a point mass and β for N(0, I) (Ho et al. 2020, section 3.2)."""
    t, s = pair
    rtol = 8 * EPS * rounding(t, s)
    for c, variance in ((0.0, small), (1.0, large)):
        oracle = GaussianOracle(np.zeros(1), np.asarray([c]))
        optimal = np.ravel(oracle.reverse(ONE, t, s).var)[0]
        assert math.isclose(variance(t, s), optimal, rel_tol=rtol)


@given(noisier(2), st.lists(st.floats(-12, 12), min_size=1, max_size=5))
def test_optimal_variance_is_of_analytic_dpm(pair, log_c):
    """σ*² from E‖score‖² is the mean of β V_s / V_t (Bao et al. 2022, Theorem 1)."""
    t, s = pair
    c = np.exp(np.sort(log_c))
    optimal = np.ravel(GaussianOracle(np.zeros(len(c)), c).reverse(np.ones((1, len(c))), t, s).var)
    assert np.all(np.diff(optimal) >= -8 * EPS * optimal[1:] * rounding(t, s))
    r, tilde = t.alpha / s.alpha, small(t, s)
    # σ_t² E‖score‖² / D = mean(σ_t² / V_t), here as 1 - α_t² c / V_t.
    unexplained = np.mean(t.alpha**2 * c / (t.alpha**2 * c + t.sigma**2))
    gap = t.sigma / r - math.sqrt(s.sigma**2 - tilde)
    # The gap cancels; the theorem is a sum of terms of up to σ_t² / r².
    atol = 64 * EPS * rounding(t, s) * (t.sigma / r) ** 2
    assert abs(tilde + gap**2 * unexplained - optimal.mean()) <= atol


@given(strategies.discrete_schedules(max_T=40), strategies.shapes(), st.integers(0, 99))
def test_a_level_per_sample(schedule, shape, seed):
    """Levels (B,) do to each sample what its own level does to it."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, *shape))
    T = schedule.T
    times = rng.integers(1, T + 1, shape[0])
    t, s = schedule(times), schedule(times - 1)
    posterior = q_posterior(x, y, t, s)
    kernels = [
        (q_sample(x, y, t), lambda a, b, t, s: q_sample(a, b, t)),
        (q_step(x, y, t, s), lambda a, b, t, s: q_step(a, b, t, s)),
        (posterior.mean, lambda a, b, t, s: q_posterior(a, b, t, s).mean),
        (posterior.reparameterise(x), lambda a, b, t, s: q_posterior(a, b, t, s).reparameterise(a)),
        (q_marginal(x, t).mean, lambda a, b, t, s: q_marginal(a, t).mean),
    ]
    for got, kernel in kernels:
        assert got.shape == shape
        for i, time in enumerate(times.tolist()):
            one = slice(i, i + 1)
            wanted = kernel(x[one], y[one], schedule(time), schedule(time - 1))
            # math against NumPy: exponents of up to 60 are turned into relative errors.
            np.testing.assert_allclose(got[one], wanted, rtol=0, atol=1000 * EPS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_variance_in_every_dtype(dtype):
    """α_t and σ_t reach x rounded once, at every t: 1 - ᾱ_t is never taken in x's precision."""
    schedule = linear()
    ones, zeros = np.ones((1, 1), dtype), np.zeros((1, 1), dtype)
    for time in range(1, 1001):
        t = schedule(time)
        assert q_sample(zeros, ones, t)[0, 0] == dtype(t.sigma)
        assert q_sample(ones, zeros, t)[0, 0] == dtype(t.alpha)
        assert q_sample(ones, zeros, t).dtype == dtype


@pytest.mark.parametrize("f", [q_sample, lambda x, y, t: q_posterior(x, y, t, CLEAN)])
def test_arrays_must_match(f):
    """Two arrays of different shapes are refused, not broadcast."""
    with pytest.raises(ValueError, match=r"has shape \(2, 1\) but x_0 has shape \(2, 3\)"):
        f(np.ones((2, 3)), np.ones((2, 1)), Level(1.0, 0.0, 0.5**0.5, 0.5**0.5))
