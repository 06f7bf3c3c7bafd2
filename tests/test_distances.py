"""Distances between sets of features: closed forms, brute force, and error bars over many draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg, stats

from ddpm_core import distances
from ddpm_core.distances import frechet, frechet_limit, kernel_distance, nearest, precision_recall

EPS = np.finfo(np.float64).eps
DRAWS = 300
#: Four standard errors of a standard deviation of that many normal draws, as a share of it.
SPREAD = 4 / math.sqrt(2 * DRAWS)

seeds = st.integers(0, 2**32 - 1)
dims = st.integers(1, 6)


def exactly(rng, n, mean, root):
    """n samples with exactly that mean, and rootᵀ root as their covariance."""
    z = rng.standard_normal((n, len(mean)))
    q = np.linalg.qr(z - z.mean(axis=0))[0] * math.sqrt(n - 1)
    return q @ root + mean


def rotation(rng, D):
    return np.linalg.qr(rng.standard_normal((D, D)))[0]


def drawn(measure, draw):
    """Value and error of many draws, (DRAWS, 2); draw(rng) gives the sets."""
    rng = np.random.default_rng(0)
    return np.array([measure(*draw(rng)) for _ in range(DRAWS)])


def alike(rng):
    """Two sets of one skewed distribution."""
    return rng.exponential(size=(120, 3)), rng.exponential(size=(80, 3))


def apart(rng):
    """Two sets whose means differ by 0.5 and standard deviations by 0.2, in each of 3 features."""
    a, b = alike(rng)
    return a, 1.2 * b + 0.3


@given(seed=seeds, D=dims)
def test_frechet_of_commuting_covariances(seed, D):
    """‖m_a - m_b‖² + Σ (√c - √e)² of covariances with one basis; variances of 0 are allowed."""
    rng = np.random.default_rng(seed)
    basis, m, n = rotation(rng, D), rng.standard_normal(D), rng.standard_normal(D)
    c, e = rng.exponential(size=(2, D)) * rng.integers(0, 2, (2, D))
    a = exactly(rng, 9, m, np.diag(np.sqrt(c)) @ basis)
    b = exactly(rng, 7, n, np.diag(np.sqrt(e)) @ basis)
    expected = ((m - n) ** 2).sum() + ((np.sqrt(c) - np.sqrt(e)) ** 2).sum()
    assert frechet(a, b).value == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(seed=seeds, D=dims)
def test_frechet_of_any_covariances(seed, D):
    """The formula of Dowson & Landau with SciPy's square roots of matrices."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((20, D)) @ rng.standard_normal((D, D)), rng.uniform(size=(30, D))
    A, B = np.cov(a.T).reshape(D, D), np.cov(b.T).reshape(D, D)
    root = linalg.sqrtm(A)
    cross = np.real(np.trace(linalg.sqrtm(root @ B @ root)))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(A) + np.trace(B) - 2 * cross
    # SciPy's root of a nearly singular matrix has half the digits.
    assert frechet(a, b).value == pytest.approx(expected, rel=1e-7, abs=1e-7 * np.trace(A))


@given(seed=seeds, D=dims, n=st.integers(2, 8), m=st.integers(2, 8))
def test_frechet_of_few_samples(seed, D, n, m):
    """The last trace is the sum of the singular values of all inner products, also if N <= D."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((n, D)), rng.standard_normal((m, D)) + 1
    centred = [(x - x.mean(axis=0)) / math.sqrt(len(x) - 1) for x in (a, b)]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum((x**2).sum() for x in centred) - 2 * cross
    assert frechet(a, b).value == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert math.isfinite(frechet(a, b).error)


@given(seed=seeds, D=dims, n=st.integers(2, 12))
def test_frechet_near_zero(seed, D, n):
    """0 of equal sets, and δ² tr C of sets that differ by a factor of 1 + δ, to many digits."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, D))
    x = x - x.mean(axis=0)
    total = (x**2).sum() / (n - 1)
    # R is right to eps of itself in each of D columns, and F is the square of what is left.
    assert frechet(x, x).value <= (64 * D * EPS) ** 2 * total + EPS**2
    assert frechet(x + 5, x[::-1] + 5).value <= (1e3 * D * EPS) ** 2 * (total + 25 * D)
    assert frechet(x, x * (1 + 1e-7)).value == pytest.approx(1e-14 * total, rel=1e-6)


@given(seed=seeds, D=dims)
def test_frechet_is_invariant(seed, D):
    """A rotation and a translation of both sets change nothing, nor does their order."""
    rng = np.random.default_rng(seed)
    a, b, shift = rng.uniform(size=(20, D)), rng.exponential(size=(15, D)), rng.normal(size=D)
    turn = rotation(rng, D)
    for other in frechet(a @ turn + shift, b @ turn + shift), frechet(b, a):
        assert other == pytest.approx(frechet(a, b), rel=1e-10, abs=1e-12)


def test_error_of_frechet_is_the_jackknife():
    """The delta method is the limit of leaving out each sample, of many with little weight each."""
    sets = [np.repeat(x[:15], 40, axis=0) for x in apart(np.random.default_rng(0))]
    var = 0.0
    for side in 0, 1:
        left_out = [
            frechet(*(np.delete(x, 40 * i, 0) if s == side else x for s, x in enumerate(sets)))
            for i in range(15)
        ]
        var += 599 * np.var([f.value for f in left_out])  # (N - 1) / N Σ (F_i - mean F)²
    assert frechet(*sets).error == pytest.approx(math.sqrt(var), rel=5 / 600)


def test_error_of_frechet_over_draws():
    """What it says is how much values vary; √2 times that between equal distributions."""
    far, near = drawn(frechet, apart), drawn(frechet, alike)
    assert far[:, 1].mean() == pytest.approx(far[:, 0].std(), rel=SPREAD)
    assert near[:, 1].mean() == pytest.approx(math.sqrt(2) * near[:, 0].std(), rel=SPREAD)


@pytest.mark.parametrize(("draw", "limit"), [(alike, 0), (apart, 3 * (0.5**2 + 0.2**2))])
def test_frechet_limit_over_draws(draw, limit):
    """It is nearly unbiased where `frechet` is biased, and varies as its error says."""
    plain, limits = drawn(frechet, draw), drawn(frechet_limit, draw)
    bias = plain[:, 0].mean() - limit
    assert bias > 10 * plain[:, 0].std() / math.sqrt(DRAWS)
    # What is left falls as 1 / N².
    assert limits[:, 0].mean() == pytest.approx(limit, abs=bias / 5)
    assert limits[:, 1].mean() == pytest.approx(limits[:, 0].std(), rel=SPREAD)


def test_frechet_limit_shuffles():
    """Samples sorted by class do not become halves of different classes."""
    x = np.random.default_rng(0).standard_normal((200, 1)) + np.repeat([0, 9], 100)[:, None]
    assert abs(frechet_limit(x, x[::-1]).value) < 1
    assert frechet_limit(x, x + 1, seed=3) == frechet_limit(x, x + 1, seed=3)
    assert frechet_limit(x, x + 1, seed=3) != frechet_limit(x, x + 1)
    assert frechet_limit(x, x + 1, seed=0) == frechet_limit(x, x + 1)
    assert np.isfinite(frechet_limit(x[:4], x[-4:])).all()


def k(x, y):
    return (float(x @ y) / len(x) + 1) ** 3


@given(seed=seeds, D=dims, n=st.integers(2, 5), m=st.integers(2, 5))
def test_kernel_distance_is_the_double_sum(seed, D, n, m):
    """Gretton et al. 2012, Lemma 6, pair by pair."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((n, D)), rng.standard_normal((m, D))
    within = [
        np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j])
        for s in (a, b)
    ]
    between = np.mean([k(x, y) for x in a for y in b])
    size = max(k(x, x) for x in (*a, *b))
    expected = within[0] + within[1] - 2 * between
    assert kernel_distance(a, b).value == pytest.approx(expected, abs=256 * EPS * size)


@pytest.mark.parametrize("apart", [0.0, 2.0])
def test_error_of_kernel_distance_is_its_formula(apart):
    """Of equal distributions it is q, and of others the larger part: pair by pair."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((7, 3)), rng.standard_normal((5, 3)) + apart
    n, m = len(a), len(b)
    among_a, among_b, between = (
        np.array([[k(x, y) for y in t] for x in s]) for s, t in ((a, a), (b, b), (a, b))
    )
    w = (among_a.sum(axis=1) - np.diag(among_a)) / (n - 1) - between.mean(axis=1)
    u = (among_b.sum(axis=1) - np.diag(among_b)) / (m - 1) - between.mean(axis=0)
    centred = between - between.mean(axis=1)[:, None] - between.mean(axis=0) + between.mean()
    q = 2 * (centred**2).sum() / ((n - 1) * (m - 1)) * (1 / n + 1 / m) ** 2
    var = 4 * w.var(ddof=1) / n + 4 * u.var(ddof=1) / m - q
    assert (var > q) == (apart > 0)
    assert kernel_distance(a, b).error ** 2 == pytest.approx(max(var, q), rel=1e-9)


def test_kernel_distance_is_unbiased():
    """Its mean is 0 between equal distributions, and else E k + E k - 2 E k of the moments."""
    near, far = drawn(kernel_distance, alike), drawn(kernel_distance, shifted)
    assert abs(stats.ttest_1samp(near[:, 0], 0).statistic) < 4
    # With x of moments 0, 1, 0 and y of 1, 2, 4: Σ binom(3, i) (E xⁱ - E yⁱ)².
    assert abs(stats.ttest_1samp(far[:, 0], 3 * 1 + 3 * 1 + 16).statistic) < 4


def shifted(rng):
    """N(0, 1) and N(1, 1)."""
    return rng.standard_normal((120, 1)), rng.standard_normal((80, 1)) + 1


def test_error_of_kernel_distance_over_draws():
    """What it says is how much values vary, and intervals of 2 errors hold 95 % of them."""
    shape = (2, 100, 16)
    far = drawn(kernel_distance, lambda rng: rng.uniform(size=shape) * [[[1.0]], [[1.2]]] + 0.1)
    near = drawn(kernel_distance, lambda rng: rng.standard_normal(shape))
    uneven = drawn(kernel_distance, lambda rng: np.split(rng.standard_normal((160, 16)), [120]))
    for values, errors in far.T, near.T, uneven.T:
        # At distance 0 the least error makes it a tenth larger; without q it would be 1.4 times.
        assert math.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=SPREAD + 0.1)
    values, errors = far.T
    inside = np.abs(values - values.mean()) < 2 * errors
    assert inside.mean() == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / DRAWS))


def shares(real, samples, k):
    """Whether each sample lies among the real ones, by Kynkäänniemi et al. 2019, Eq. 1."""
    among = []
    for x in samples:
        balls = [sorted(np.linalg.norm(real - y, axis=1))[k] for y in real]  # [0] is y itself
        among.append(any(np.linalg.norm(x - y) <= r for y, r in zip(real, balls, strict=True)))
    return np.array(among)


@given(seed=seeds, D=st.integers(1, 3), k=st.integers(1, 3), spread=st.integers(1, 6))
def test_precision_recall_by_brute_force(seed, D, k, spread):
    """Both shares, on a grid where many samples are equal and many lie on borders."""
    rng = np.random.default_rng(seed)
    real = rng.integers(0, spread, (9, D)).astype(float)
    samples = rng.integers(0, spread, (7, D)) + float(rng.integers(0, 3))
    found = precision_recall(real, samples, k)
    among = shares(real, samples, k), shares(samples, real, k)
    assert [m.value for m in found] == pytest.approx([a.mean() for a in among], rel=4 * EPS)
    expected = [a.std() / math.sqrt(len(a)) for a in among]
    assert [m.error for m in found] == pytest.approx(expected, rel=1e-12)


@given(seed=seeds, D=dims)
def test_precision_recall_of_equal_and_far_sets(seed, D):
    x = np.random.default_rng(seed).standard_normal((12, D))
    assert precision_recall(x, x[::-1]) == ((1, 0), (1, 0))
    assert precision_recall(x, x + 100) == ((0, 0), (0, 0))


def test_precision_recall_of_copies():
    """A copy lies within a ball of radius 0, however its distance is rounded."""
    for D in range(1, 300):
        rng = np.random.default_rng(D)
        points = rng.standard_normal((2, D))
        a, b = (np.repeat(points, rng.integers(2, 9, 2), axis=0) for _ in "ab")
        assert precision_recall(a, b, k=1) == ((1, 0), (1, 0))


@given(seed=seeds, D=dims, offset=st.sampled_from([0.0, 1e7]))
def test_nearest_by_brute_force(seed, D, offset):
    rng = np.random.default_rng(seed)
    real, samples = rng.standard_normal((11, D)) + offset, rng.standard_normal((8, D)) + offset
    every = np.linalg.norm(samples[:, None] - real, axis=2)
    found = nearest(samples, real)
    assert (found.index == every.argmin(axis=1)).all()
    np.testing.assert_allclose(found.distance, every.min(axis=1), rtol=8 * EPS)


def test_nearest_of_copies():
    """0 of a copy, and all digits of a distance far below what the samples have."""
    real = np.random.default_rng(0).standard_normal((5, 4)) + 1e3
    found = nearest(np.stack([real[3], real[1] + [2**-30, 0, 0, 0]]), real)
    assert found.index.tolist() == [3, 1]
    assert found.distance.tolist() == [0, 2**-30]


def everything(a, b):
    yield from (frechet(a, b), frechet_limit(a, b), kernel_distance(a, b))
    yield from precision_recall(a, b)
    yield from nearest(a, b)


def test_blocks_change_nothing(monkeypatch):
    a, b = apart(np.random.default_rng(0))
    whole = list(everything(a, b))
    for size in (1, 700):
        monkeypatch.setattr(distances, "_AT_ONCE", size)
        for one, other in zip(whole, everything(a, b), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)


def test_float32_is_computed_in_float64():
    a, b = (x.astype(np.float32) for x in apart(np.random.default_rng(0)))
    exact = everything(a.astype(np.float64), b.astype(np.float64))
    for one, other in zip(everything(a, b), exact, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: frechet(x[0], x), r"a has shape \(2,\), but features are \(N, D\), a row a"),
        (lambda x: frechet(x[:, :0], x), r"a has shape \(9, 0\), but"),
        (lambda x: frechet(x, x[:1]), "b has 1 samples, but at least 2 are needed"),
        (lambda x: frechet_limit(x[:3], x), "a has 3 samples, but at least 4 are"),
        (lambda x: kernel_distance(x, x[:1]), "b has 1 samples, but at least 2 are"),
        (lambda x: kernel_distance(x, x[:, :1]), "a has 2 and b has 1 features a sample: take"),
        (lambda x: precision_recall(x, x[:3]), "drawn has 3 samples, but at least 4 are"),
        (lambda x: precision_recall(x, x, k=0), "k must be at least 1, but is 0"),
        (lambda x: nearest(x, x[:0]), "real has 0 samples, but at least 1 are"),
        (lambda x: nearest(x, np.where(x == 7, np.nan, x)), r"real\[3\] is not finite: leave"),
        (lambda x: frechet(np.where(x == 4, np.inf, x), x), r"a\[2\] is not finite"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.arange(18.0).reshape(9, 2))
