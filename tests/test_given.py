"""Oracles given a measurement, against conditioning the joint law of (x_0, x_t, y) densely."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import ddpm_core as ddpm
from ddpm_core.levels import from_logsnr
from ddpm_core.measurements import Measurement, average_pool, mask, matrix, measure

EPS = np.finfo(np.float64).eps
SHAPE = (2, 2)

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
levels = st.floats(-6, 6).map(lambda logsnr: from_logsnr(logsnr, 0.0))
variances = st.one_of(st.just(0.0), st.floats(0.01, 2.0))
kinds = st.sampled_from(["mask", "pool", "matrix"])


def operator_of(kind, rng):
    if kind == "mask":
        return mask(rng.permutation([True, True, False, False]).reshape(SHAPE))
    return average_pool(SHAPE, 2) if kind == "pool" else matrix(rng.standard_normal((2, 4)), SHAPE)


def covariance(rng, D=4):
    root = rng.standard_normal((D, D))
    return root @ root.T + 0.1 * np.eye(D)


def joint(m, C, a, var, t):
    """The law of (x_0, x_t, y): mean and covariance."""
    D, M = len(m), len(a)
    stack = np.vstack([np.eye(D), t.alpha * np.eye(D), a])
    noise = np.diag([0.0] * D + [t.sigma**2] * D + [var] * M)
    return stack @ m, stack @ C @ stack.T + noise


def conditioned(m, C, a, var, t, seen):
    """E[x_0 | x_t, y] and log q(x_t, y), for seen (B, D + M)."""
    mean, cov = joint(m, C, a, var, t)
    D = len(m)
    gain = cov[:D, D:] @ np.linalg.inv(cov[D:, D:])
    x_0 = mean[:D] + (seen - mean[D:]) @ gain.T
    return x_0, multivariate_normal(mean[D:], cov[D:, D:], allow_singular=True).logpdf(seen)


def problem(rng, kind, var):
    """A measurement, its rows of A that are not 0, and the same entries of y."""
    operator = operator_of(kind, rng)
    a = operator.matrix()
    eps = rng.standard_normal((1, *operator.y_shape)) if var else None
    measurement = measure(operator, rng.standard_normal((1, *SHAPE)), eps, var)
    rows = np.abs(a).sum(1) > 0
    return measurement, a[rows], measurement.y.reshape(-1)[rows]


@pytest.mark.parametrize("full", [False, True])
@given(rng=seeds, t=levels, kind=kinds, var=variances)
def test_gaussian(full, rng, t, kind, var):
    """E[x_0 | x_t, y] and q(x_t | y) = q(x_t, y) / q(y)."""
    measurement, a, y = problem(rng, kind, var)
    m, C = rng.standard_normal(4), covariance(rng)
    C = C if full else np.diag(np.diag(C))
    oracle = ddpm.GaussianOracle(m.reshape(SHAPE), C if full else np.diag(C).reshape(SHAPE))
    x_t = rng.standard_normal((3, *SHAPE))
    seen = np.hstack([x_t.reshape(3, -1), np.tile(y, (3, 1))])
    expected, log_joint = conditioned(m, C, a, var, t, seen)
    posterior = oracle.given(measurement)
    cond = np.linalg.cond(joint(m, C, a, var, t)[1][4:, 4:])
    atol = 512 * EPS * cond * (1 + np.abs(expected).max())
    np.testing.assert_allclose(posterior(x_t, t).reshape(3, -1), expected, rtol=0, atol=atol)
    log_y = multivariate_normal(a @ m, a @ C @ a.T + var * np.eye(len(a))).logpdf(y)
    wanted = log_joint - log_y
    atol = 512 * EPS * cond * (1 + np.abs(log_joint).max() + abs(log_y))
    np.testing.assert_allclose(posterior.log_prob(x_t, t), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("kind_of_var", ["number", "each", "full"])
@given(rng=seeds, t=levels, kind=kinds, var=variances)
def test_mixture(kind_of_var, rng, t, kind, var):
    """Σ_k q(k | x_t, y) E[x_0 | x_t, y, k], and q(x_t | y)."""
    measurement, a, y = problem(rng, kind, var)
    K = 3
    w, m = rng.uniform(0.1, 1, K), rng.standard_normal((K, 4))
    if kind_of_var == "full":
        table = C = np.stack([covariance(rng) for _ in range(K)])
    else:
        c = rng.uniform(0.1, 2, (K, 4) if kind_of_var == "each" else ())
        C = np.stack([np.diag(row) for row in np.broadcast_to(c, (K, 4))])
        table = c.reshape(K, *SHAPE) if c.ndim else c
    posterior = ddpm.MixtureOracle(w, m.reshape(K, *SHAPE), table).given(measurement)
    x_t = rng.standard_normal((3, *SHAPE))
    seen = np.hstack([x_t.reshape(3, -1), np.tile(y, (3, 1))])
    parts = [conditioned(m[k], C[k], a, var, t, seen) for k in range(K)]
    log_joint = np.log(w / w.sum()) + np.stack([log_p for _, log_p in parts], 1)
    r = np.exp(log_joint - logsumexp(log_joint, 1, keepdims=True))
    expected = np.einsum("bk,kbd->bd", r, np.stack([x_0 for x_0, _ in parts]))
    cond = max(np.linalg.cond(joint(m[k], C[k], a, var, t)[1][4:, 4:]) for k in range(K))
    size = 1 + np.abs(log_joint).max()
    atol = 1024 * EPS * cond * size * (1 + max(np.abs(x_0).max() for x_0, _ in parts))
    np.testing.assert_allclose(posterior(x_t, t).reshape(3, -1), expected, rtol=0, atol=atol)
    log_y = logsumexp(
        [
            np.log(w[k] / w.sum())
            + multivariate_normal(a @ m[k], a @ C[k] @ a.T + var * np.eye(len(a))).logpdf(y)
            for k in range(K)
        ]
    )
    wanted = logsumexp(log_joint, 1) - log_y
    atol = 1024 * EPS * cond * (size + abs(log_y))
    np.testing.assert_allclose(posterior.log_prob(x_t, t), wanted, rtol=0, atol=atol)


@given(rng=seeds, t=levels, kind=kinds, var=st.floats(0.01, 2.0))
def test_dataset(rng, t, kind, var):
    """Weights softmax_i(-‖x_t - α x_i‖² / 2 σ² - ‖y - A x_i‖² / 2 var)."""
    measurement, a, y = problem(rng, kind, var)
    points, x_t = rng.standard_normal((5, 4)), rng.standard_normal((3, 4))
    near = ((x_t[:, None] - t.alpha * points) ** 2).sum(-1) / t.sigma**2
    log_w = -0.5 * (near + ((y - points @ a.T) ** 2).sum(-1) / var)
    w = np.exp(log_w - logsumexp(log_w, 1, keepdims=True))
    posterior = ddpm.DatasetOracle(points.reshape(5, *SHAPE)).given(measurement)
    found = posterior(x_t.reshape(3, *SHAPE), t).reshape(3, -1)
    atol = 256 * EPS * (1 + np.abs(log_w).max()) * np.abs(points).max()
    np.testing.assert_allclose(found, w @ points, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(rng=seeds, t=levels, kind=kinds)
def test_dataset_without_noise(dtype, rng, t, kind):
    """The points that match y to the rounding of its dtype stay, and the others go."""
    operator = operator_of(kind, rng)
    points = rng.standard_normal((5, *SHAPE))
    null = np.linalg.svd(operator.matrix())[2][-1].reshape(SHAPE)
    points[1] = points[0] + 2 * null  # the same y
    y = operator.forward(points[:1]).astype(dtype)
    if kind == "mask":
        y = np.where(operator.singular > 0, y, 7)  # which is not read
    posterior = ddpm.DatasetOracle(points).given(Measurement(operator, y))
    x_t = rng.standard_normal((3, *SHAPE))
    np.testing.assert_array_equal(posterior(x_t, t), ddpm.DatasetOracle(points[:2])(x_t, t))
    with pytest.raises(ValueError, match="never have this y: give the measurement a var"):
        ddpm.DatasetOracle(points[2:]).given(Measurement(operator, y))


def test_certain_components_leave_nothing_to_others():
    """Without noise, a point at y outweighs any density there, which outweighs a point elsewhere.

    It is the limit of a small variance, at which y = 0 has density 1e6 and more under the point.
    """
    one = matrix([[1.0, 0.0]])
    oracle = ddpm.MixtureOracle([0.1, 0.9], np.zeros((2, 2)), [[0.0, 1.0], [1.0, 4.0]])
    exact = oracle.given(Measurement(one, np.zeros((1, 1))))
    nearly = oracle.given(Measurement(one, np.zeros((1, 1)), 1e-20))
    assert exact.weights.tolist() == [1.0]
    np.testing.assert_allclose(nearly.weights, [1.0, 0.0], atol=1e-8)
    other = oracle.given(Measurement(one, np.ones((1, 1))))
    assert other.weights.tolist() == [1.0]
    np.testing.assert_allclose(other.means, [[1.0, 0.0]])
    np.testing.assert_allclose(other.var, [np.diag([0.0, 4.0])])


@given(rng=seeds, t=levels)
def test_one_measurement_after_another(rng, t):
    """Given y and then y' is given both."""
    a, b = rng.standard_normal((2, 1, 4))
    both = matrix(np.vstack([a, b]), SHAPE)
    y = rng.standard_normal((1, 2))
    first, second = matrix(a, SHAPE), matrix(b, SHAPE)
    for oracle in (
        ddpm.GaussianOracle(rng.standard_normal(SHAPE), covariance(rng)),
        ddpm.MixtureOracle([0.3, 0.7], rng.standard_normal((2, *SHAPE)), 0.5),
        ddpm.DatasetOracle(rng.standard_normal((5, *SHAPE))),
    ):
        at_once = oracle.given(Measurement(both, y, 0.5))
        in_turn = oracle.given(Measurement(first, y[:, :1], 0.5))
        in_turn = in_turn.given(Measurement(second, y[:, 1:], 0.5))
        x_t = rng.standard_normal((3, *SHAPE))
        np.testing.assert_allclose(in_turn(x_t, t), at_once(x_t, t), rtol=0, atol=1e6 * EPS)


def test_refusals():
    """Several y, and a y that singular data never have."""
    operator = matrix([[1.0, 0.0]])
    certain = ddpm.GaussianOracle(np.zeros(2), [0.0, 1.0])
    with pytest.raises(ValueError, match=r"given one y, of shape \(1, \*M\), but y has \(2, 1\)"):
        certain.given(Measurement(operator, np.zeros((2, 1))))
    with pytest.raises(ValueError, match="never have this y"):
        certain.given(Measurement(operator, np.ones((1, 1))))
    certain.given(Measurement(operator, np.zeros((1, 1))))
    certain.given(Measurement(mask(np.array([True, False])), np.array([[0.0, 7.0]])))
    blocks = ddpm.MixtureOracle([1.0], np.zeros((1, 2)), np.eye(2)[None])
    t, s = from_logsnr(0.0, 1.0), from_logsnr(1.0, 0.0)
    with pytest.raises(ValueError, match="dependent coordinates"):
        blocks.reverse_mixture(np.zeros((1, 2)), t, s)
    with pytest.raises(ValueError, match=r"var\[1\] must be symmetric, but var\[1\]\[0, 1\]"):
        ddpm.MixtureOracle(
            [1.0, 1.0], np.zeros((2, 3)), np.stack([np.eye(3), np.triu(np.ones((3, 3)))])
        )


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_scales_do_not_matter(scale):
    """Data and matrices of any size: the coordinate that is seen is y's, the other is untouched."""
    for a, data in ((1.0, scale), (scale, 1.0), (1 / scale, scale)):
        oracle = ddpm.GaussianOracle(np.zeros(2), data**2)
        posterior = oracle.given(Measurement(matrix([[a, 0.0]]), np.full((1, 1), a * data)))
        np.testing.assert_allclose(posterior.mean, [data, 0], rtol=1e-12)
        np.testing.assert_allclose(posterior.cov, np.diag([0, data**2]), rtol=1e-12)


def test_nothing_seen():
    """A matrix of 0 says nothing, and 0 is what it measures."""
    nothing = Measurement(matrix(np.zeros((1, 2))), np.zeros((1, 1)))
    oracle = ddpm.GaussianOracle([1.0, 2.0], [3.0, 4.0])
    np.testing.assert_array_equal(oracle.given(nothing).mean, oracle.mean)
    points = ddpm.DatasetOracle([[0.0, 0.0], [1.0, 2.0]])
    np.testing.assert_array_equal(points.given(nothing).means, points.means)


def test_points_that_are_close():
    """Two small points are told apart, and a y far from all leaves the nearest."""
    one = matrix([[1.0]])
    points = ddpm.DatasetOracle([[1e-6], [1.001e-6]])
    assert points.given(Measurement(one, np.full((1, 1), 1e-6))).means.tolist() == [[1e-6]]
    far = points.given(Measurement(one, np.full((1, 1), 1e3), 1e-6))
    np.testing.assert_allclose(far.weights.sum(), 1)
