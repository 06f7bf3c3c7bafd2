"""What a sampler draws from Gaussian data, without drawing."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from solver_paths import (
    COSINE,
    EPS,
    LINEAR,
    OFF,
    SOLVERS,
    Path,
    excess,
    few,
    lost,
    paths,
    solvers,
    variance_of,
)

import ddpm_core as ddpm

#: By steps, variances of DDIM, of eta = 1 and of large, to six decimals: computed apart from this
#: library, from the recursion x_s = g x_t + σ z of a Gaussian's samples, with
#: g = (α_s α_t c + σ_t sqrt(σ_s² - σ²)) / (α_t² c + σ_t²).
GOLDEN = {
    5: (0.068929, 0.061660, 0.129560),
    10: (0.136867, 0.111206, 0.243938),
    50: (0.222220, 0.197225, 0.261857),
    100: (0.235659, 0.219229, 0.256767),
    1000: (0.248498, 0.246125, 0.250752),
}
QUARTER = ddpm.GaussianOracle([0.0], 0.25)


@pytest.mark.parametrize("K", GOLDEN)
def test_golden_variances(K):
    times = np.round(np.linspace(1000, 0, K + 1))
    options = ({}, {"eta": 1.0}, {"variance": ddpm.large})
    for solver, kw, expected in zip(
        (ddpm.ddim, ddpm.ddim, ddpm.ancestral), options, GOLDEN[K], strict=True
    ):
        found = ddpm.law(solver(LINEAR, K, times=times, **kw), QUARTER)
        assert found.variances.shape == (1,)
        assert found.cov.shape == (1, 1)
        assert found.variances[0] == pytest.approx(expected, rel=0, abs=5e-7 + 1e-12)
        ratio = 0.25 / found.variances[0]
        # Three terms of order 1 cancel.
        assert found.kl == pytest.approx((ratio - 1 - math.log(ratio)) / 2, rel=0, abs=8 * EPS)
        apart = 0.5 - math.sqrt(found.variances[0])
        assert found.w2 == pytest.approx(abs(apart), rel=0, abs=8 * EPS)


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (ddpm.ddim, 9.1e-6),
        (ddpm.ancestral, 6.1e-5),
        (partial(ddpm.ancestral, variance=ddpm.large), 2.3e-6),
    ],
)
def test_golden_divergences(solver, expected):
    """Of K = 1000, computed with `GOLDEN`, apart from this library, to two digits."""
    assert ddpm.law(solver(LINEAR, 1000), QUARTER).kl == pytest.approx(expected, abs=5e-8, rel=6e-3)


def pushed(sampler, oracle, start_cov, start_mean):
    """Mean and covariance (D, D) of where a sampler ends, by basis vectors through `sample`."""
    D, n = oracle.mean.size, sampler.nfe
    inputs = np.eye((n + 1) * D).reshape(-1, n + 1, D)
    batch = np.concatenate([np.zeros((1, n + 1, D)), inputs])
    ends = ddpm.sample(oracle, sampler, batch[:, 0] + start_mean, lambda i, _: batch[:, i])
    A = ends[1:] - ends[0]
    on_x, on_z = A[:D], A[D:]
    return ends[0], on_x.T @ start_cov @ on_x + on_z.T @ on_z


LAW_PATHS = {
    "clean": Path(LINEAR, ddpm.grids.trailing(LINEAR, 6)),
    "noisy": Path(COSINE, np.linspace(980, 100, 6)),
    "VP": Path(ddpm.VP(), np.linspace(0.9, 0.01, 7)),
}


@solvers
@pytest.mark.parametrize("path", LAW_PATHS.values(), ids=LAW_PATHS)
@pytest.mark.parametrize("exact", [False, True], ids=["N(0, I)", "exact start"])
def test_law_is_what_samples_do(solver, path, exact):
    """Mean and covariance of samples, without drawing; KL and W2 by the formulas of matrices."""
    mean = np.array([0.5, -1.0, 0.2])
    C = np.array([[1.0, 0.6, 0.2], [0.6, 0.5, 0.0], [0.2, 0.0, 0.8]])
    oracle, sampler = ddpm.GaussianOracle(mean, C), path.build(solver)
    start, end = (sampler.levels.take(i) for i in (0, -1))
    marginal = lambda t: t.alpha**2 * C + t.sigma**2 * np.eye(3)
    m_T, C_T = (start.alpha * mean, marginal(start)) if exact else (np.zeros(3), np.eye(3))
    found = ddpm.law(sampler, oracle, exact_start=exact)
    m, P = pushed(sampler, oracle, C_T, m_T)
    # eps divides by σ what x_0 then gets back, and x / α by α.
    lost_ = OFF * EPS * sampler.nfe / (sampler.levels.sigma[:-1] * sampler.levels.alpha[:-1]).min()
    np.testing.assert_allclose(found.mean, m, rtol=0, atol=lost_)
    np.testing.assert_allclose(found.cov, P, rtol=0, atol=lost_)
    np.testing.assert_allclose(np.sort(found.variances), np.linalg.eigvalsh(P), rtol=0, atol=lost_)

    V, gap, inverse = marginal(end), m - end.alpha * mean, np.linalg.inv(P)
    kl = np.trace(inverse @ V) - 3 + gap @ inverse @ gap
    kl = (kl + np.linalg.slogdet(P)[1] - np.linalg.slogdet(V)[1]) / 2
    least = np.linalg.eigvalsh(P).min()
    assert found.kl == pytest.approx(kl, rel=0, abs=8 * lost_ / least**2)
    root = sqrtm(V)
    w2 = gap @ gap + np.trace(V + P - 2 * sqrtm(root @ P @ root))
    assert found.w2**2 == pytest.approx(w2, rel=0, abs=8 * lost_ / math.sqrt(least))


def test_law_of_shapes():
    """The mean has the data's shape, the covariance its coordinates; an `Unrolled` does as well."""
    mean, c = np.arange(4.0).reshape(2, 2), np.arange(1.0, 5.0).reshape(2, 2)
    sampler = ddpm.ancestral(LINEAR, 5)
    found = ddpm.law(sampler, ddpm.GaussianOracle(mean, c))
    for row, value, mu in zip(found.cov, c.flat, mean.flat, strict=True):
        alone = ddpm.law(sampler.unroll(), ddpm.GaussianOracle([mu], value))
        assert row.sum() == pytest.approx(alone.cov[0, 0], rel=8 * EPS)
        i = np.argmax(row)
        assert (row[i], found.mean.flat[i]) == (found.variances[i], alone.mean[0])
    np.testing.assert_array_equal(found.cov, np.diag(found.variances))


@few
@given(path=paths(), log_c=st.floats(-6, 6), m=st.floats(-2, 2))
def test_law_of_ddim_is_a_product_of_cosines(path, log_c, m):
    """P = (V_s / V_T) Π cos²(φ_s - φ_t), and the mean is off by as much as that of the start."""
    c = math.exp(log_c)
    V = path.a**2 * c + path.s**2
    cos = np.cos(np.diff(np.arctan2(path.s, path.a * math.sqrt(c))))
    gain = math.sqrt(V[-1] / V[0]) * cos.prod()
    found, off = ddpm.law(path.build(ddpm.ddim), ddpm.GaussianOracle([m], c)), gain * path.a[0] * m
    # All terms of the gain are positive; a weight of x_0 cancels as a step of λ, cos at π / 2.
    P, lost_ = gain**2, OFF * path.n * EPS / cos.min()
    assert found.variances[0] == pytest.approx(P, rel=lost_)
    assert found.mean[0] == pytest.approx(path.a[-1] * m - off, rel=0, abs=lost_ * (1 + abs(m)))
    kl = (V[-1] / P - 1 - math.log(V[-1] / P) + off**2 / P) / 2
    wrong = lost_ * (1 + abs(m))
    worst = lost_ * (1 + (V[-1] + off**2) / P) + (2 * abs(off) + wrong) * wrong / P
    assert found.kl == pytest.approx(kl, rel=8 * EPS, abs=worst)
    w2 = off**2 + (gain - math.sqrt(V[-1])) ** 2
    assert found.w2**2 == pytest.approx(w2, rel=0, abs=8 * lost_ * (1 + m**2 + c))


@few
@given(path=paths(clean=[False]), log_c=st.floats(-6, 6), m=st.floats(-2, 2))
def test_exact_variance_is_exact(path, log_c, m):
    """From an exact start the kernels of q(x_s | x_t) draw q(x_s), whatever the grid: KL is 0."""
    c = math.exp(log_c)
    sampler = path.build(ddpm.ancestral, variance=variance_of(c))
    found = ddpm.law(sampler, ddpm.GaussianOracle([m], c), exact_start=True)
    V = path.a[-1] ** 2 * c + path.s[-1] ** 2
    lost_ = 64 * path.n * EPS * (1 + c) / V
    assert found.variances[0] == pytest.approx(V, rel=lost_)
    assert found.mean[0] == pytest.approx(path.a[-1] * m, abs=lost_ * (1 + abs(m)))
    assert 0 <= found.kl + 4 * EPS <= 8 * EPS + lost_
    assert found.w2 <= lost_ * (1 + abs(m)) * math.sqrt(V) + lost_ * (1 + abs(m))
    # N(0, I) in place of the start is another law.
    other = ddpm.law(sampler, ddpm.GaussianOracle([m + 3], c))
    assert other.kl > found.kl


@solvers
def test_law_of_a_point(solver):
    """All samples are the point: two equal point masses, KL 0 and W2 0; spread or shift is inf."""
    point = ddpm.GaussianOracle([0.3, -2.0], 0.0)
    found = ddpm.law(solver(LINEAR, 6), point)
    np.testing.assert_array_equal(found.mean, [0.3, -2.0])
    np.testing.assert_array_equal(found.cov, np.zeros((2, 2)))
    assert (found.kl, found.w2) == (0.0, 0.0)
    noisy = solver(LINEAR, 6, times=np.linspace(1000, 100, 7))
    found = ddpm.law(noisy, point, exact_start=True)
    end = noisy.levels.take(-1)
    more = excess(Path(LINEAR, np.linspace(1000, 100, 7)), ddpm.large)[-1]
    more = more if solver is SOLVERS["ancestral large"] else 0.0
    np.testing.assert_allclose(
        found.cov, (end.sigma**2 + more) * np.eye(2), rtol=0, atol=OFF * lost(noisy)
    )
    np.testing.assert_allclose(found.mean, end.alpha * point.mean, atol=OFF * lost(noisy), rtol=0)


def test_law_of_points_apart():
    """A solver that ends at a point which is not the data's."""
    good = ddpm.ddim(LINEAR, 3).unroll()
    y = good.y.copy()
    y[-1, -1] = 2.0
    found = ddpm.law(replace(good, y=y), ddpm.GaussianOracle([1.0], 0.0))
    assert (found.mean[0], found.kl, found.w2) == (2.0, math.inf, 1.0)
    spread = ddpm.law(good, ddpm.GaussianOracle([1.0, 1.0], [0.0, 1.0]))
    assert np.isfinite(spread.kl)
