"""Gaussians: densities and divergences against SciPy, quadrature and the paper's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ddpm_core import Gaussian, kl, linear, small
from ddpm_core.arrays import fit
from ddpm_core.gaussians import log_prob, mean_of_sample, sum_of_sample
from ddpm_core.process import q_marginal
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps

variances = st.floats(1e-6, 1e3)
means = st.floats(-10, 10)


def as_array(value):
    return np.full((1, 1), float(value))


@st.composite
def gaussians(draw, count=1):
    """Gaussians of one shape, their variances a number, (B,), or of the mean's shape."""
    shape = draw(strategies.shapes())
    out = []
    for _ in range(count):
        mean = draw(strategies.normals(shape))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        size = draw(st.sampled_from([(), shape[:1], shape]))
        var = np.exp(rng.uniform(-6, 6, size))
        out.append(Gaussian(mean, float(var) if size == () else var))
    return out[0] if count == 1 else out


@given(gaussians(2))
def test_log_prob_is_scipys(pair):
    """log N(x; mean, var) is the sum of SciPy's log densities over each sample."""
    gaussian, other = pair
    x = other.mean
    var = np.broadcast_to(fit(gaussian.var, x), x.shape)
    wanted = stats.norm(gaussian.mean, np.sqrt(var)).logpdf(x)
    axes = tuple(range(1, x.ndim))
    # z² / 2 against (z²) / 2 by way of sqrt(var): a few roundings of the largest term.
    atol = 8 * EPS * np.abs(wanted).sum(axes) + 8 * EPS * x[0:1].size
    assert np.all(np.abs(log_prob(gaussian, x) - wanted.sum(axes)) <= atol)


@given(gaussians(), st.integers(0, 99))
def test_density_of_a_draw(gaussian, seed):
    """log N(mean + sqrt(var) z) = -½ Σ (z² + log 2π var): a draw is of what `log_prob` says."""
    z = np.random.default_rng(seed).standard_normal(gaussian.mean.shape)
    x = gaussian.reparameterise(z)
    var = np.broadcast_to(fit(gaussian.var, x), x.shape)
    axes = tuple(range(1, x.ndim))
    wanted = -0.5 * (z**2 + np.log(2 * np.pi * var)).sum(axes)
    # x - mean gives back sqrt(var) z to a rounding of x, which may be 20 times sqrt(var).
    lost = EPS * (np.abs(x) / np.sqrt(var) + 8) * (1 + z**2)
    assert np.all(np.abs(log_prob(gaussian, x) - wanted) <= 8 * lost.sum(axes))


def test_a_draw_is_z_scaled_and_shifted():
    """mean + sqrt(var) z, with one variance for all samples or one for each."""
    mean, z = np.array([[1.0], [2.0]]), np.array([[3.0], [-1.0]])
    assert np.array_equal(Gaussian(mean, 4.0).reparameterise(z), [[7.0], [0.0]])
    assert np.array_equal(Gaussian(mean, np.array([4.0, 9.0])).reparameterise(z), [[7.0], [-1.0]])


@given(means, variances)
def test_density_sums_to_one(mean, var):
    """∫ N(x; mean, var) dx = 1, by the trapezoid rule, which is exact here to rounding."""
    z = np.linspace(-12, 12, 241)
    x = mean + math.sqrt(var) * z
    density = np.exp(log_prob(Gaussian(np.full((241, 1), mean), var), x[:, None]))
    # Each term loses |x| / sd roundings; the rule itself is exact beyond exp(-2 π² / 0.1²).
    tolerance = 64 * EPS * (12 + abs(mean) / math.sqrt(var))
    assert abs(density.sum() * 0.1 * math.sqrt(var) - 1) <= tolerance


@given(means, variances, means, variances)
def test_kl_is_the_expected_log_ratio(m, v, n, w):
    """KL(q ‖ p) = E_q[log q - log p], by Gauss-Hermite quadrature, exact for quadratics."""
    q, p = Gaussian(as_array(m), v), Gaussian(as_array(n), w)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    x = (m + math.sqrt(v) * nodes)[:, None]
    many = lambda g: Gaussian(np.broadcast_to(g.mean, x.shape), g.var)
    terms = log_prob(many(q), x) - log_prob(many(p), x)
    wanted = (weights * terms).sum() / weights.sum()
    scale = 30 * (1 + abs(m) / math.sqrt(v)) + (np.abs(x - n).max() ** 2 + 20) / w
    assert abs(kl(q, p)[0] - wanted) <= 16 * EPS * scale


@given(means, variances, means, variances)
def test_kl_is_not_negative(m, v, n, w):
    """KL(q ‖ p) >= 0, and 0 only where q = p (Gibbs)."""
    q, p = Gaussian(as_array(m), v), Gaussian(as_array(n), w)
    assert kl(q, p)[0] >= 0
    assert kl(q, q)[0] == 0
    if abs(m - n) > 1e-3 * math.sqrt(w) or abs(math.log(v / w)) > 1e-3:
        assert kl(q, p)[0] > 1e-7  # half of 1e-3², less the cubic terms


@given(gaussians(2))
def test_kl_is_a_sum_over_coordinates(pair):
    """Coordinates are independent: the KL of a sample is the sum of the KLs of its numbers."""
    q, p = pair
    v, w = (np.broadcast_to(fit(g.var, g.mean), g.mean.shape).ravel() for g in pair)
    column = lambda g: g.mean.reshape(-1, 1)
    each = kl(Gaussian(column(q), v), Gaussian(column(p), w)).reshape(q.mean.shape)
    total = each.sum(tuple(range(1, each.ndim)))
    np.testing.assert_allclose(kl(q, p), total, rtol=64 * EPS)  # 16 terms at most, all positive


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 5), (0, 4)])
def test_reductions_keep_the_batch(shape):
    """Sum and mean are over every axis but the first: (B, *D) -> (B,), and (B,) stays."""
    x = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    rows = [math.fsum(row.ravel()) for row in x]
    np.testing.assert_array_equal(sum_of_sample(x), rows)
    count = math.prod(shape[1:])
    np.testing.assert_allclose(mean_of_sample(x), np.asarray(rows) / count, rtol=2 * EPS)


def test_prior_of_ho_et_al():
    """KL(q(x_T | x_0) ‖ N(0, I)) is "≈ 10^-5 bits per dimension" (Ho et al. 2020, section 4)."""
    x_0 = np.random.default_rng(0).uniform(-1, 1, (1, 3072))  # their data is scaled to [-1, 1]
    prior = kl(q_marginal(x_0, linear()(1000)), Gaussian(0 * x_0, 1.0))
    bits = prior[0] / 3072 / math.log(2)
    assert 0.5e-5 < bits < 2e-5


def test_distortion_of_ho_et_al():
    """An RMSE of 0.95136 on 0..255 is L_0 = 1.97 bits/dim (Ho et al. 2020, section 4.3)."""
    # Table 4 prints the RMSE after the last step, section 4.3 the distortion and the rate, 1.78;
    # Table 1 says <= 3.75. sigma_1 is their clipped "fixedsmall", the posterior's at t = 2.
    schedule = linear()
    var = small(schedule(2), schedule(1)) * 127.5**2
    assert round(math.sqrt(var), 5) == 0.94153  # sqrt(β̃_2), in pixel values, from β_1 and β_2:
    beta_1, beta_2 = 1e-4, 1e-4 + 0.0199 / 999
    tilde = beta_1 / (1 - (1 - beta_1) * (1 - beta_2)) * beta_2
    assert math.isclose(var, tilde * 127.5**2, rel_tol=1e-11)  # 1 - ᾱ_2 cancels 3 digits
    gaussian = Gaussian(np.zeros((1, 1)), var)
    nats = -log_prob(gaussian, as_array(0.95136))[0]
    # The paper integrates over a pixel's bin and does not say its errors are Gaussian: 0.01 more.
    assert abs(nats / math.log(2) - 1.97) < 0.01
    assert abs(nats / math.log(2) + 1.77581 - 3.75) < 0.005


def zero(shape, kind):
    """A variance of 0, as a number, per sample or per coordinate."""
    return {"number": 0.0, "sample": np.zeros(shape[0]), "coordinate": np.zeros(shape)}[kind]


@pytest.mark.parametrize("p_var", ["number", "sample", "coordinate"])
@pytest.mark.parametrize("q_var", ["number", "sample", "coordinate"])
def test_kl_of_points(lib, q_var, p_var):
    """KL is 0 of two equal points, inf of two others, and inf of a point and a density."""
    host = np.float32([[1, 2], [3, 4], [5, 6]])
    moved = host + np.float32([[0, 0], [0, 1], [0, 0]])
    x, y = lib.asarray(host), lib.asarray(moved)

    def var(value):
        return value if isinstance(value, float) else lib.asarray(value, lib.xp.float32)

    v_q, v_p = var(zero(host.shape, q_var)), var(zero(host.shape, p_var))
    cases = {
        "points": (kl(Gaussian(x, v_q), Gaussian(y, v_p)), [0, np.inf, 0]),
        "q is a point": (kl(Gaussian(x, v_q), Gaussian(y, 2.0)), [np.inf] * 3),
        "p is a point": (kl(Gaussian(x, 2.0), Gaussian(y, v_p)), [np.inf] * 3),
        "densities": (kl(Gaussian(x, v_q + 2.0), Gaussian(y, v_p + 2.0)), [0, 0.25, 0]),
    }
    for name, (got, wanted) in cases.items():
        assert got.dtype == x.dtype
        if lib.has_values:
            np.testing.assert_allclose(lib.to_numpy(got), wanted, rtol=1e-6, err_msg=name)


def test_kl_of_some_points():
    """Each coordinate and each sample is taken by itself: points beside densities."""
    q = Gaussian(np.zeros((2, 2)), np.array([[0.0, 1.0], [0.0, 1.0]]))
    p = Gaussian(np.zeros((2, 2)), np.array([[0.0, 2.0], [1.0, 2.0]]))
    wanted = 0.5 * (np.log(2.0) + 0.5 - 1)
    np.testing.assert_allclose(kl(q, p), [wanted, np.inf], rtol=8 * EPS)


def test_kl_of_points_has_finite_gradients_elsewhere():
    """Where a sample has points, the gradient of the others is what it is without them."""
    torch = pytest.importorskip("torch")
    x = torch.tensor([[1.0], [2.0]], requires_grad=True)
    var = torch.tensor([[0.0], [2.0]])
    kl(Gaussian(x, var), Gaussian(torch.zeros(2, 1), var)).sum().backward()
    assert x.grad[1] == 1.0
