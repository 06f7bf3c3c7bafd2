"""The exact denoisers, against Bayes' rule, finite differences and quadrature."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, special_ortho_group

import ddpm_core as ddpm
from ddpm_core import gaussians, process
from ddpm_core.levels import Level, from_logsnr

EPS = np.finfo(np.float64).eps
STEP = EPS ** (1 / 3)  # of a central difference, whose error is then of order EPS^(2/3)

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
levels = st.floats(-9, 9).map(lambda logsnr: from_logsnr(logsnr, 0.0))
pairs = st.tuples(st.floats(-9, 9), st.floats(0.01, 9)).map(
    lambda p: (from_logsnr(p[0], 1.0), from_logsnr(p[0] + p[1], 0.0))
)  # t, s < t


def full(rng: np.random.Generator, D: int = 3) -> ddpm.GaussianOracle:
    root = rng.standard_normal((D, D))
    return ddpm.GaussianOracle(rng.standard_normal(D), root @ root.T + 0.05 * np.eye(D))


def diagonal(rng: np.random.Generator, D: int = 3) -> ddpm.GaussianOracle:
    return ddpm.GaussianOracle(rng.standard_normal(D), np.exp(rng.uniform(-3, 2, D)))


def mixture(rng: np.random.Generator, D: int = 3, K: int = 4) -> ddpm.MixtureOracle:
    return ddpm.MixtureOracle(
        rng.uniform(0.1, 1, K), rng.standard_normal((K, D)), np.exp(rng.uniform(-3, 1, (K, D)))
    )


def dataset(rng: np.random.Generator, D: int = 3, N: int = 5) -> ddpm.DatasetOracle:
    return ddpm.DatasetOracle(rng.standard_normal((N, D)))


def covariance(oracle: ddpm.GaussianOracle) -> np.ndarray:
    cov = np.asarray(oracle.cov)
    return cov if cov.ndim == 2 else np.diag(cov)


def jacobian(f, x: np.ndarray) -> np.ndarray:
    """Of f: (B, D) -> (B, D) at x: (D,), by central differences."""
    steps = STEP * np.eye(x.size)
    return ((f(x + steps) - f(x - steps)) / (2 * STEP)).T


@pytest.mark.parametrize("make", [diagonal, full])
@given(rng=seeds, t=levels)
def test_gaussian_is_linear_regression(make, rng, t):
    """E[x_0 | x_t] = S (C⁻¹ m + α x_t / σ²), S = (C⁻¹ + α²/σ² I)⁻¹ (Bishop 2006, Eqs. 2.116-7)."""
    oracle, x_t = make(rng), rng.standard_normal((2, 3))
    precision = np.linalg.inv(covariance(oracle))
    posterior = np.linalg.inv(precision + (t.alpha / t.sigma) ** 2 * np.eye(3))
    expected = (precision @ oracle.mean + t.alpha * x_t / t.sigma**2) @ posterior
    # Two inversions, of condition up to (SNR + 1/0.05), lose as many roundings.
    atol = 64 * EPS * np.linalg.cond(precision) * (1 + (t.alpha / t.sigma) ** 2)
    np.testing.assert_allclose(oracle(x_t, t), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("make", [diagonal, full])
@given(rng=seeds, t=levels)
def test_gaussian_marginal(make, rng, t):
    """log q(x_t) = log N(x_t; α m, α² C + σ² I), by SciPy."""
    oracle, x_t = make(rng), rng.standard_normal((4, 3))
    cov = t.alpha**2 * covariance(oracle) + t.sigma**2 * np.eye(3)
    expected = multivariate_normal(t.alpha * oracle.mean, cov).logpdf(x_t)
    rtol = 32 * EPS * np.linalg.cond(cov)
    np.testing.assert_allclose(oracle.log_prob(x_t, t), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("make", [diagonal, full])
@given(rng=seeds, t=levels)
def test_gaussian_second_tweedie(make, rng, t):
    """(σ²/α) ∂E[x_0 | x_t]/∂x_t = Cov[x_0 | x_t] = C - α² C (α² C + σ² I)⁻¹ C."""
    oracle, x_t = make(rng), rng.standard_normal(3)
    C = covariance(oracle)
    marginal = t.alpha**2 * C + t.sigma**2 * np.eye(3)
    expected = C - t.alpha**2 * C @ np.linalg.solve(marginal, C)
    actual = t.sigma**2 / t.alpha * jacobian(lambda x: oracle(x, t), x_t)
    # The difference quotient of a linear function only rounds: EPS / STEP = EPS^(2/3).
    size = np.abs(oracle(x_t[None], t)).max() + 1
    atol = 16 * EPS ** (2 / 3) * t.sigma**2 / t.alpha * size + 64 * EPS * np.abs(C).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@given(rng=seeds, logsnrs=st.lists(st.floats(-9, 9), min_size=3, max_size=6, unique=True))
def test_gaussian_reverse_composes(rng, logsnrs):
    """q(x_r | x_t) = ∫ q(x_r | x_s) q(x_s | x_t) dx_s, and it carries q(x_t) to q(x_s)."""
    assume(np.diff(sorted(logsnrs)).min() > 1e-3)
    oracle, x_t = diagonal(rng), rng.standard_normal((1, 3))
    path = [from_logsnr(logsnr, 0.0) for logsnr in sorted(logsnrs)]
    t = path[0]
    mean, var = x_t, np.zeros(3)  # of a chain that starts at x_t
    law, spread = t.alpha * oracle.mean[None], t.alpha**2 * oracle.cov + t.sigma**2  # of q(x_t)
    for t, s in pairwise(path):
        gain = (oracle.reverse(mean + 1.0, t, s).mean - oracle.reverse(mean, t, s).mean)[0]
        step = np.broadcast_to(oracle.reverse(mean, t, s).var, mean.shape)[0]
        mean, var = oracle.reverse(mean, t, s).mean, gain**2 * var + step
        law, spread = oracle.reverse(law, t, s).mean, gain**2 * spread + step
    direct = oracle.reverse(x_t, path[0], path[-1])
    # gain comes from a difference of order-10 means: a few EPS each, times the steps.
    np.testing.assert_allclose(mean, direct.mean, rtol=0, atol=512 * EPS)
    np.testing.assert_allclose(var, np.broadcast_to(direct.var, mean.shape)[0], rtol=2e4 * EPS)
    s = path[-1]
    np.testing.assert_allclose(law, s.alpha * oracle.mean[None], rtol=0, atol=512 * EPS)
    np.testing.assert_allclose(spread, s.alpha**2 * oracle.cov + s.sigma**2, rtol=2e4 * EPS)


@given(rng=seeds, pair=pairs)
def test_gaussian_reverse_is_bayes(rng, pair):
    """log q(x_s | x_t) + log q(x_t) = log q(x_t | x_s) + log q(x_s)."""
    (t, s), oracle = pair, diagonal(rng)
    x_t, x_s = rng.standard_normal((2, 4, 3))
    forward = ddpm.Gaussian(t.alpha / s.alpha * x_s, ddpm.large(t, s))
    left = gaussians.log_prob(oracle.reverse(x_t, t, s), x_s) + oracle.log_prob(x_t, t)
    right = gaussians.log_prob(forward, x_t) + oracle.log_prob(x_s, s)
    # Squares over variances of τ cancel on both sides; each term rounds to EPS of its size.
    scale = np.abs(left) + np.abs(right) + 1
    assert np.all(np.abs(left - right) <= 256 * EPS * scale / ddpm.levels.tau(t, s))


@given(rng=seeds, pair=pairs)
def test_gaussian_reverse_sample(rng, pair):
    """A draw is mean + sqrt(var) z of `reverse`, and exact at s = clean data too."""
    (t, s), oracle = pair, diagonal(rng)
    x_t, z = rng.standard_normal((2, 4, 3))
    for end in (s, from_logsnr(np.inf, 0.0)):
        kernel = oracle.reverse(x_t, t, end)
        expected = kernel.mean + np.sqrt(kernel.var) * z
        drawn = oracle.reverse_sample(x_t, z, t, end)
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=32 * EPS)


@given(rng=seeds, pair=pairs)
def test_gaussian_full_is_rotated_diagonal(rng, pair):
    """Data R x_0 with cov R C Rᵀ: everything at R x_t is R times everything at x_t."""
    (t, s), axes = pair, diagonal(rng)
    R = special_ortho_group(3, seed=rng).rvs()
    turned = ddpm.GaussianOracle(R @ axes.mean, R @ np.diag(axes.cov) @ R.T)
    x_t, z = rng.standard_normal((2, 4, 3))
    # eigh of a condition number of up to exp(5) is backward stable in the largest variance.
    close = {"rtol": 0, "atol": 4096 * EPS * np.max(axes.cov) / np.min(axes.cov)}
    np.testing.assert_allclose(turned(x_t @ R.T, t), axes(x_t, t) @ R.T, **close)
    drawn = turned.reverse_sample(x_t @ R.T, z @ R.T, t, s)
    np.testing.assert_allclose(drawn, axes.reverse_sample(x_t, z, t, s) @ R.T, **close)
    size = np.abs(axes.log_prob(x_t, t)) + 1
    np.testing.assert_allclose(
        turned.log_prob(x_t @ R.T, t) / size, axes.log_prob(x_t, t) / size, **close
    )


def test_gaussian_singular_covariance():
    """Directions without variance, as of images with constant pixels, keep their mean exactly."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((6, 2)))[0]
    oracle = ddpm.GaussianOracle(np.ones(6), basis @ basis.T)
    x_0 = oracle(rng.standard_normal((5, 6)), from_logsnr(0.0, 0.0)) - 1.0
    np.testing.assert_allclose(x_0, x_0 @ basis @ basis.T, rtol=0, atol=64 * EPS)


def test_gaussian_refuses():
    """A covariance that is none, and a matrix where coordinates must be independent, are errors."""
    with pytest.raises(ValueError, match=r"but cov\[0, 1\] = 0\.5 and cov\[1, 0\] = 0\.0"):
        ddpm.GaussianOracle(np.zeros(2), [[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match="no variance may be negative, but one is -1"):
        ddpm.GaussianOracle(np.zeros(2), [[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match=r"has shape \(3,\)"):
        ddpm.GaussianOracle(np.zeros(2), np.ones(3))
    for mean, cov in (([np.nan, 0.0], 1.0), ([0.0, 0.0], np.inf), ([0.0, 0.0], [1.0, np.nan])):
        with pytest.raises(ValueError, match="mean and cov must be finite"):
            ddpm.GaussianOracle(mean, cov)
    t, s = from_logsnr(0.0, 1.0), from_logsnr(1.0, 0.0)
    with pytest.raises(ValueError, match="draw from it with reverse_sample"):
        ddpm.GaussianOracle(np.zeros(2), np.eye(2)).reverse(np.zeros((1, 2)), t, s)


@pytest.mark.parametrize("make", [diagonal, full, mixture, dataset])
@given(rng=seeds, t=levels)
def test_tweedie(make, rng, t):
    """E[x_0 | x_t] = (x_t + σ² ∇ log q(x_t)) / α, the gradient by central difference."""
    oracle, x_0, eps = make(rng), *rng.standard_normal((2, 3))
    x_t = t.alpha * x_0 + t.sigma * eps  # where q has mass and log q is of order 10
    h = STEP * t.sigma  # log q varies over lengths of σ
    steps = h * np.eye(3)
    gradient = (oracle.log_prob(x_t + steps, t) - oracle.log_prob(x_t - steps, t)) / (2 * h)
    expected = (x_t + t.sigma**2 * gradient) / t.alpha
    # log q rounds by EPS |log q|, which σ² / (α h) amplifies; beyond it, h² times a third
    # derivative: that of a softmax over points is bounded by (spread / σ)³.
    size = np.abs(oracle.log_prob(x_t[None], t))[0] + 10
    spread = 1 + (8 * t.alpha / t.sigma) ** 3
    atol = (8 * size + spread) * EPS ** (2 / 3) * t.sigma / t.alpha
    np.testing.assert_allclose(oracle(x_t[None], t)[0], expected, rtol=0, atol=atol)


@given(rng=seeds, t=st.floats(-4, 4).map(lambda logsnr: from_logsnr(logsnr, 0.0)))
def test_mixture_second_tweedie(rng, t):
    """σ²/α ∂E[x_0 | x_t]/∂x_t = Σ r_k (S_k + μ_k²) - (Σ r_k μ_k)², the law of total variance."""
    oracle, x_t = mixture(rng, D=1), rng.standard_normal(1)
    c, m = oracle.var[:, 0], oracle.means[:, 0]
    V = t.alpha**2 * c + t.sigma**2
    r = oracle.weights * np.exp(-((x_t - t.alpha * m) ** 2) / (2 * V)) / np.sqrt(V)
    r = r / r.sum()
    mu, S = m + t.alpha * c / V * (x_t - t.alpha * m), c * t.sigma**2 / V
    expected = (r * (S + mu**2)).sum() - (r * mu).sum() ** 2
    actual = t.sigma**2 / t.alpha * jacobian(lambda x: oracle(x, t), x_t)[0, 0]
    # h² f''' / 6, with x_0 a function of x_t / σ whose derivatives are powers of α / σ.
    atol = 100 * EPS ** (2 / 3) * (1 + t.sigma**2 / t.alpha * (1 + t.alpha / t.sigma) ** 3) ** 2
    assert actual == pytest.approx(expected, rel=0, abs=atol)


@given(rng=seeds, pair=pairs)
def test_mixture_reverse_is_bayes(rng, pair):
    """log q(x_s | x_t) + log q(x_t) = log q(x_t | x_s) + log q(x_s)."""
    (t, s), oracle = pair, mixture(rng)
    x_t, x_s = rng.standard_normal((2, 4, 3))
    log_w, kernel = oracle.reverse_mixture(x_t, t, s)
    z = (x_s[:, None, :] - kernel.mean) ** 2 / kernel.var + np.log(2 * np.pi * kernel.var)
    backward = logsumexp(log_w - 0.5 * z.sum(-1), axis=1)
    forward = ddpm.Gaussian(t.alpha / s.alpha * x_s, ddpm.large(t, s))
    left = backward + oracle.log_prob(x_t, t)
    right = gaussians.log_prob(forward, x_t) + oracle.log_prob(x_s, s)
    scale = np.abs(left) + np.abs(right) + 1
    assert np.all(np.abs(left - right) <= 256 * EPS * scale / ddpm.levels.tau(t, s))


@given(rng=seeds, t=levels)
def test_mixture_density_has_mass_one(rng, t):
    """∫ q(x_t) dx_t = 1 and ∫ x_t q(x_t) dx_t = α E[x_0], by the trapezoidal rule."""
    oracle = mixture(rng, D=1)
    # Analytic and decayed at the ends, with 30 nodes per narrowest width: converged to rounding.
    x, dx = np.linspace(-18, 18, 60_001, retstep=True)
    assume(np.sqrt((t.alpha**2 * oracle.var + t.sigma**2).min()) > 30 * dx)
    q = np.exp(oracle.log_prob(x[:, None], t))
    assert q.sum() * dx == pytest.approx(1.0, rel=1e3 * EPS)
    mean = t.alpha * (oracle.weights @ oracle.means)[0]
    assert (q * x).sum() * dx == pytest.approx(mean, rel=0, abs=1e4 * EPS)


@given(rng=seeds, pair=pairs, K=st.integers(1, 4))
def test_mixture_of_equals_is_gaussian(rng, pair, K):
    """K components that are one Gaussian, under any weights, are that Gaussian."""
    (t, s), one = pair, diagonal(rng)
    many = ddpm.MixtureOracle(
        rng.uniform(0.1, 1, K), np.tile(one.mean, (K, 1)), np.tile(one.cov, (K, 1))
    )
    x_t = rng.standard_normal((4, 3))
    np.testing.assert_allclose(many(x_t, t), one(x_t, t), rtol=0, atol=64 * EPS)
    size = np.abs(one.log_prob(x_t, t)) + 1
    assert np.all(np.abs(many.log_prob(x_t, t) - one.log_prob(x_t, t)) <= 64 * EPS * size)
    log_w, kernel = many.reverse_mixture(x_t, t, s)
    expected = one.reverse(x_t, t, s)
    np.testing.assert_allclose(np.exp(log_w), many.weights + 0 * log_w, rtol=256 * EPS)
    np.testing.assert_allclose(kernel.mean, expected.mean[:, None] + 0 * kernel.mean, atol=64 * EPS)
    np.testing.assert_allclose(kernel.var[:, 0], expected.var + 0 * kernel.var[:, 0])


@given(rng=seeds, t=levels, c=st.floats(0.0, 4.0))
def test_mixture_variance_forms(rng, t, c):
    """var as a number, (K,) and (K, *D) is one mixture; *D may be an image's."""
    weights, means = rng.uniform(0.1, 1, 3), rng.standard_normal((3, 1, 2, 2))
    forms = [c, np.full(3, c), np.full((3, 1, 2, 2), c)]
    oracles = [ddpm.MixtureOracle(weights, means, form) for form in forms]
    x_t = rng.standard_normal((4, 1, 2, 2))
    for other in oracles[1:]:
        np.testing.assert_allclose(other(x_t, t), oracles[0](x_t, t), rtol=0, atol=64 * EPS)
        expected = oracles[0].log_prob(x_t, t)
        np.testing.assert_allclose(other.log_prob(x_t, t), expected, rtol=64 * EPS, atol=64 * EPS)


def test_mixture_refuses():
    """Shapes that disagree and weights that are none are errors that name them."""
    with pytest.raises(ValueError, match=r"are \(2,\) and \(2,\)"):
        ddpm.MixtureOracle([1.0, 1.0], [0.0, 1.0], 1.0)
    with pytest.raises(ValueError, match="weights must be positive"):
        ddpm.MixtureOracle([1.0, 0.0], [[0.0], [1.0]], 1.0)
    with pytest.raises(ValueError, match=r"has shape \(3,\)"):
        ddpm.MixtureOracle([1.0, 1.0], [[0.0], [1.0]], np.ones(3))


@given(rng=seeds, t=st.floats(-9, 3).map(lambda logsnr: from_logsnr(logsnr, 0.0)))
def test_dataset_edm_form(rng, t):
    """D(x; σ) = Σ N(x; y_i, σ²) y_i / Σ N(x; y_i, σ²), in x/α, σ/α (Karras et al. 2022, Eq. 57)."""
    y, x_t = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    x, sigma = x_t / t.alpha, t.sigma / t.alpha
    density = np.exp(-((x[:, None] - y) ** 2).sum(-1) / (2 * sigma**2))
    assume(density.sum(1).min() > 1e-200)  # this form underflows where the library's does not
    expected = density @ y / density.sum(1, keepdims=True)
    # The exponent, of order (x / σ)², is rounded and then exponentiated.
    atol = 64 * EPS * (1 + ((np.abs(x).max() + 3) / sigma) ** 2)
    np.testing.assert_allclose(ddpm.DatasetOracle(y)(x_t, t), expected, rtol=0, atol=atol)


@given(rng=seeds, t=levels)
def test_dataset_minimises_the_risk(rng, t):
    """Σ p(x_i | x_t) ‖x_i - d‖² = its value at the oracle + ‖d - oracle‖², for every d."""
    oracle, x_t, d = dataset(rng), *rng.standard_normal((2, 1, 3))
    points = oracle.means
    evidence = gaussians.log_prob(process.q_marginal(points, t), np.broadcast_to(x_t, points.shape))
    p = np.exp(evidence - logsumexp(evidence))
    risk = lambda d: p @ ((points - d) ** 2).sum(-1)
    best = oracle(x_t, t)
    assert risk(best) <= risk(d)
    # p is the exponential of a rounded number of order SNR.
    atol = 256 * EPS * (1 + np.abs(evidence).max()) * (1 + (d**2).sum() + (points**2).max())
    assert risk(d) - risk(best) == pytest.approx(((d - best) ** 2).sum(), rel=0, abs=atol)


@given(rng=seeds, t=levels)
def test_dataset_inside_hull(rng, t):
    """E[x_0 | x_t] lies in the convex hull: no direction sees it beyond every point."""
    oracle, x_t = dataset(rng), 10 * rng.standard_normal((4, 3))
    directions = rng.standard_normal((3, 20))
    seen, points = oracle(x_t, t) @ directions, oracle.means @ directions
    slack = 64 * EPS * np.abs(points).max()
    assert np.all(seen <= points.max(0) + slack)
    assert np.all(seen >= points.min(0) - slack)


@given(rng=seeds)
def test_dataset_limits(rng):
    """The mean of the data as α -> 0; the nearest point as σ -> 0, without overflow."""
    oracle, x_t = dataset(rng), rng.standard_normal((4, 3))
    t = from_logsnr(-60.0, 1.0)
    # The exponents differ by α x_t (x_i - x_j).
    expected = np.broadcast_to(oracle.means.mean(0), x_t.shape)
    np.testing.assert_allclose(oracle(x_t, t), expected, rtol=0, atol=1e3 * t.alpha + 16 * EPS)
    for logsnr in (60.0, 600.0):
        t = from_logsnr(logsnr, 0.0)
        distance = ((x_t[:, None] - t.alpha * oracle.means) ** 2).sum(-1)
        first, second = np.sort(distance, axis=1)[:, :2].T
        assume((second - first).min() > 1e-6)
        np.testing.assert_array_equal(oracle(x_t, t), oracle.means[distance.argmin(1)])


def test_dataset_smallest_sigma_in_float32():
    """At σ = 1e-15 float32 distances over σ² stay finite, and so does the reading."""
    points = np.array([[-1.0, 1.0], [1.0, 1.0], [0.0, -1.0]])
    x_t = np.array([[0.9, 0.8], [3.0, -50.0]], dtype=np.float32)
    x_0 = ddpm.DatasetOracle(points)(x_t, from_logsnr(69.0, 0.0))
    assert x_0.dtype == np.float32
    np.testing.assert_array_equal(x_0, points[[1, 2]])


def test_dataset_weights_sum_to_one_in_float32():
    """What all points share is read exactly, however far from them x_t is: Σ r = 1."""
    points = np.array([[-1.0, 1.0], [0.5, 1.0], [1.0, 1.0]])
    x_t = np.array([[0.1, 1e2], [0.2, -1e3], [0.0, 1e4]], dtype=np.float32)
    for logsnr in (0.0, 5.0, 9.0):
        x_0 = ddpm.DatasetOracle(points)(x_t, from_logsnr(logsnr, 0.0))
        np.testing.assert_allclose(x_0[:, 1], 1.0, rtol=4 * float(np.finfo(np.float32).eps))


@given(rng=seeds, logsnr=st.floats(-6, 6), k=st.floats(0.2, 5.0), shift=st.floats(-2, 2))
def test_dataset_equivariance(rng, logsnr, k, shift):
    """Data k x_0 + b at log-SNR λ - 2 log k: D(k x + b; k σ) = k D(x; σ) + b, in x/α and σ/α."""
    points, x = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    t, scaled = from_logsnr(logsnr, 0.0), from_logsnr(logsnr - 2 * np.log(k), 0.0)
    order = rng.permutation(5)
    x_0 = ddpm.DatasetOracle(points)(t.alpha * x, t)
    moved = ddpm.DatasetOracle((k * points + shift)[order])(scaled.alpha * (k * x + shift), scaled)
    atol = 256 * EPS * (1 + k + abs(shift)) ** 2 * (10 + (10 * t.alpha / t.sigma) ** 2)
    np.testing.assert_allclose(moved, k * x_0 + shift, rtol=0, atol=atol)


@pytest.mark.parametrize("make", [diagonal, full, mixture, dataset])
@given(rng=seeds, logsnrs=st.lists(st.floats(-9, 9), min_size=3, max_size=3))
def test_levels_per_sample(make, rng, logsnrs):
    """At levels (B,), each sample is read as it is alone at its own level."""
    oracle = make(rng)
    x_t, z = rng.standard_normal((2, 3, 3))
    t, s = (from_logsnr(np.array(logsnrs) + d, np.zeros(3)) for d in (0.0, 1.5))

    def everything(x: np.ndarray, z: np.ndarray, t: Level, s: Level) -> list[np.ndarray]:
        found = [oracle(x, t), oracle.log_prob(x, t)]
        if make is full or make is diagonal:
            return [*found, oracle.reverse_sample(x, z, t, s)]
        log_w, kernel = oracle.reverse_mixture(x, t, s)
        return [*found, log_w, kernel.mean, np.broadcast_to(kernel.var, kernel.mean.shape)]

    together = everything(x_t, z, t, s)
    for i in range(3):
        at = [Level(*(float(field[i]) for field in level)) for level in (t, s)]
        for one, all_ in zip(everything(x_t[i : i + 1], z[i : i + 1], *at), together, strict=True):
            # exp on arrays and on Python floats may differ by a rounding, which 1/σ² amplifies.
            size = 1 + np.abs(one) + (t.alpha[i] / t.sigma[i]) ** 2
            assert np.all(np.abs(all_[i : i + 1] - one) <= 256 * EPS * size)


@pytest.mark.parametrize("make", [diagonal, full, mixture, dataset])
def test_other_shapes_are_refused(make):
    """Data of other shapes, such as channels last, are named, also where the count is right."""
    oracle, t, s = make(np.random.default_rng(0)), from_logsnr(0.0, 1.0), from_logsnr(1.0, 0.0)
    gaussian = isinstance(oracle, ddpm.GaussianOracle)
    kernel = oracle.reverse_mixture if not gaussian else oracle.reverse
    calls = [lambda x: oracle(x, t), lambda x: oracle.log_prob(x, t)]
    if make is not full:
        calls.append(lambda x: kernel(x, t, s))
    if gaussian:
        calls.append(lambda x: oracle.reverse_sample(x, x, t, s))
    for shape in ((4, 2), (4, 3, 1), (4, 1, 3), (3,)):
        for call in calls:
            with pytest.raises(
                ValueError, match=r"the data of this oracle have shape \(3,\): pass"
            ):
                call(np.ones(shape))


def test_images_with_channels_last_are_refused():
    """(B, H, W, C) has as many numbers as (B, C, H, W)."""
    oracle = ddpm.GaussianOracle(np.zeros((2, 3)), 1.0)
    with pytest.raises(ValueError, match=r"x has shape \(4, 3, 2\), .* \(2, 3\): pass \(B, 2, 3\)"):
        oracle(np.ones((4, 3, 2)), from_logsnr(0.0, 1.0))


SINGULAR = {
    "gaussian": ddpm.GaussianOracle(np.zeros(2), np.array([1.0, 0.0])),
    "mixture": ddpm.MixtureOracle([0.5, 0.5], np.eye(2), np.array([1.0, 0.0])),
    "dataset": ddpm.DatasetOracle(np.eye(2)),
}


@pytest.mark.parametrize("kind", [float, np.float64, np.asarray, lambda f: np.asarray([f, f])])
@pytest.mark.parametrize("name", SINGULAR)
def test_points_have_no_density_of_their_own(name, kind):
    """log q at clean data of data without variance is refused at host levels of any kind."""
    oracle, x = SINGULAR[name], np.zeros((2, 2))
    clean = from_logsnr(np.inf, 0.0).map(kind)
    for call in (lambda: oracle.log_prob(x), lambda: oracle.log_prob(x, clean)):
        with pytest.raises(ValueError, match="data without variance has no density of its own"):
            call()
    assert np.isfinite(oracle.log_prob(x, from_logsnr(5.0, 1.0))).all()
    assert np.isfinite(ddpm.GaussianOracle(np.zeros(2), 1.0).log_prob(x, clean)).all()


@pytest.mark.parametrize("make", [diagonal, full, mixture, dataset])
def test_oracles_pickle(make):
    """An oracle that was pickled, as for another process, is the same denoiser."""
    oracle, x, t = make(np.random.default_rng(0)), np.ones((2, 3)), from_logsnr(0.0, 1.0)
    again = pickle.loads(pickle.dumps(oracle))
    np.testing.assert_array_equal(again(x, t), oracle(x, t))
    np.testing.assert_array_equal(again.log_prob(x, t), oracle.log_prob(x, t))


@pytest.mark.parametrize("make", [diagonal, full, mixture, dataset])
def test_repr_is_what_was_given(make):
    """What is computed from it is not shown."""
    shown = repr(make(np.random.default_rng(0)))
    assert "variances" not in shown
    assert "basis" not in shown


def test_levels_of_the_device(lib):
    """At levels (B,) of the device an oracle is what it is at those of the host."""
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((3, 2)).astype(np.float32)
    t, s = (from_logsnr(np.asarray(logsnr), np.zeros(3)) for logsnr in ([-1, 0, 2], [0, 1, 5.0]))
    gaussian = ddpm.GaussianOracle([0.3, -1.0], [0.5, 2.0])
    mixed = ddpm.MixtureOracle([0.3, 0.7], rng.standard_normal((2, 2)), [[0.1, 1.0], [0.5, 0.2]])

    def everything(x, t, s):
        _, kernel = mixed.reverse_mixture(x, t, s)
        one = gaussian.reverse(x, t, s)
        return gaussian(x, t), one.mean, one.var, mixed(x, t), kernel.mean, kernel.var

    there = (lib.level(level, lib.xp.float32) for level in (t, s))
    for found, expected in zip(
        everything(lib.asarray(x_t), *there), everything(x_t.astype(np.float64), t, s), strict=True
    ):
        assert tuple(found.shape) == expected.shape
        if lib.has_values:
            np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_symmetry_and_variances_at_any_scale():
    """What is rounding is so beside the largest entry, and nothing else is."""
    with pytest.raises(ValueError, match="cov must be symmetric"):
        ddpm.GaussianOracle(np.zeros(2), [[1.0, 0.5], [0.5 + 1e-6, 1.0]])
    ddpm.GaussianOracle(np.zeros(2), [[1e6, 0.0], [1e-7, 1e6]])
    tiny = ddpm.GaussianOracle(np.zeros(2), 1e-20 * np.eye(2))
    np.testing.assert_array_equal(tiny.variances, 1e-20)


@pytest.mark.parametrize("D", [(4,), (2, 2)])
def test_error_is_the_conditional_variance(D):
    """C - α² C V⁻¹ C of independent coordinates or along the basis, at one level or at several."""
    rng = np.random.default_rng(0)
    c, t = rng.uniform(0.1, 2, D), from_logsnr(np.asarray([-1.0, 0.5, 3.0]), np.zeros(3))
    root = rng.standard_normal((4, 4))
    for oracle in (
        ddpm.GaussianOracle(np.zeros(D), c),
        ddpm.GaussianOracle(np.zeros(D), root @ root.T),
    ):
        C = np.diag(c.reshape(-1)) if oracle.basis is None else root @ root.T
        basis = np.eye(4) if oracle.basis is None else oracle.basis
        shape = D if oracle.basis is None else (4,)
        every = oracle.error(t)
        for i in range(3):
            alpha, sigma = t.alpha[i], t.sigma[i]
            left = C - alpha**2 * C @ np.linalg.inv(alpha**2 * C + sigma**2 * np.eye(4)) @ C
            wanted = np.diag(basis.T @ left @ basis).reshape(shape)
            for found in (oracle.error(t.take(i)), every[i]):
                np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12, strict=True)
