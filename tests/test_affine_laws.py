"""What a sampler or a loop draws with any affine denoiser, found by probing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm
from solver_paths import LINEAR, SOLVERS, variance_of

import ddpm_core as ddpm
from ddpm_core.certificates import law_of

CLOSE = 1e-10  # rounding, times what solvers of ten steps and covariances near singular magnify
MEAN = np.array([0.5, -1.0, 0.2])
FULL = np.array([[1.0, 0.6, 0.2], [0.6, 0.5, 0.0], [0.2, 0.0, 0.8]])
COVS = {"number": 0.25, "diagonal": [0.1, 1.0, 0.5], "full": FULL}
covs = pytest.mark.parametrize("cov", COVS.values(), ids=COVS)
DATA = ddpm.GaussianOracle(MEAN, FULL)


def plain(denoise):
    """A denoiser that does not say what it is."""
    return lambda x_t, t: denoise(x_t, t)


def kl_of(m, V, mean, P):
    """KL(N(m, V) ‖ N(mean, P)), by the formula of dense matrices."""
    off, inverse = mean - m, np.linalg.inv(P)
    logs = np.linalg.slogdet(P)[1] - np.linalg.slogdet(V)[1]
    return (np.trace(inverse @ V) - len(V) + off @ inverse @ off + logs) / 2


def w2_of(m, V, mean, P):
    """|m - mean|² + tr(V + P - 2 (V^½ P V^½)^½), and its root."""
    root, off = sqrtm(V), mean - m
    return math.sqrt(off @ off + np.trace(V + P - 2 * sqrtm(root @ P @ root)).real)


def check_same_law(found, expected):
    for name in found._fields:
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=CLOSE, atol=CLOSE, err_msg=name)


@covs
@pytest.mark.parametrize("end", [0, 100], ids=["clean", "noisy"])
@pytest.mark.parametrize("exact", [False, True], ids=["N(0, I)", "exact start"])
@pytest.mark.parametrize(
    "solver", ["ddim", "ancestral large", "dpmpp_2m", "sde_dpmpp_2m", "unipc_3", "heun", "restart"]
)
def test_probing_finds_what_the_oracle_knows(solver, cov, end, exact):
    """The law of a Gaussian's exact denoiser, by probing and along its basis."""
    oracle = ddpm.GaussianOracle(MEAN, cov)
    sampler = SOLVERS[solver](LINEAR, 6, times=np.linspace(1000, end, 7))
    found = ddpm.law(sampler, plain(oracle), oracle, exact_start=exact)
    check_same_law(found, ddpm.law(sampler, oracle, exact_start=exact))


def random_denoiser(D, seed=0):
    """x_0 = G x_t + g, with another G, which is not symmetric, and another g at each level."""

    def at(t):
        rng = np.random.default_rng((seed, round(t.time)))
        return rng.standard_normal((D, D)) / 2, rng.standard_normal(D)

    def denoise(x_t, t):
        G, g = at(t)
        return x_t @ G.T + g

    return at, denoise


@pytest.mark.parametrize("end", [0, 50])
@pytest.mark.parametrize("name", ["ddim", "ancestral"])
def test_any_affine_denoiser(name, end):
    """The recursion of mean and covariance, step by step, and the formulas of matrices."""
    at, denoise = random_denoiser(3)
    sampler = getattr(ddpm, name)(LINEAR, 5, times=np.linspace(1000, end, 6))
    mean, P = np.zeros(3), np.eye(3)
    for i in range(5):
        t, s = (sampler.levels.take(j) for j in (i, i + 1))
        beta = 1 - (t.alpha / s.alpha) ** 2
        if name == "ddim":  # Song et al. 2021, Eq. 12
            on_x = s.sigma / t.sigma
            on_x_0, var = s.alpha - t.alpha * on_x, 0.0
        else:  # Ho et al. 2020, Eq. 7
            on_x = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2
            on_x_0, var = s.alpha * beta / t.sigma**2, beta * (s.sigma / t.sigma) ** 2
        G, g = at(t)
        step = on_x * np.eye(3) + on_x_0 * G
        mean, P = step @ mean + on_x_0 * g, step @ P @ step.T + var * np.eye(3)
    found = ddpm.law(sampler, denoise, DATA)
    np.testing.assert_allclose(found.mean, mean, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found.cov, P, rtol=0, atol=CLOSE)
    along = np.diag(DATA.basis.T @ P @ DATA.basis)
    np.testing.assert_allclose(found.variances, along, rtol=0, atol=CLOSE)
    t = sampler.levels.take(-1)
    m, V = t.alpha * MEAN, t.alpha**2 * FULL + t.sigma**2 * np.eye(3)
    assert found.kl == pytest.approx(kl_of(m, V, mean, P), rel=1e-8)
    assert found.w2 == pytest.approx(w2_of(m, V, mean, P), rel=1e-8)


def test_start_is_the_data_s():
    """From an exact start it is q(x_T) that goes through the solver: one step of DDIM to clean."""
    at, denoise = random_denoiser(3)
    sampler = ddpm.ddim(LINEAR, 1, times=[500, 0])
    t = sampler.levels.take(0)
    G, g = at(t)
    found = ddpm.law(sampler, denoise, DATA, exact_start=True)
    np.testing.assert_allclose(found.mean, t.alpha * G @ MEAN + g, rtol=0, atol=CLOSE)
    P = G @ (t.alpha**2 * FULL + t.sigma**2 * np.eye(3)) @ G.T
    np.testing.assert_allclose(found.cov, P, rtol=0, atol=CLOSE)


def test_other_data_than_the_oracle_s():
    """An oracle's law may be compared with other data, of another basis."""
    other = ddpm.GaussianOracle([0.0, 0.3, 1.0], [[1, 0.1, 0], [0.1, 0.3, 0], [0, 0, 2]])
    sampler = ddpm.ancestral(LINEAR, 20)
    own, found = ddpm.law(sampler, DATA), ddpm.law(sampler, DATA, other)
    np.testing.assert_allclose(found.mean, own.mean, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found.cov, own.cov, rtol=0, atol=CLOSE)
    gaussians = other.mean, other.cov, own.mean, own.cov
    assert found.kl == pytest.approx(kl_of(*gaussians), rel=1e-8)
    assert found.w2 == pytest.approx(w2_of(*gaussians), rel=1e-8)
    # The data themselves, named, are the default.
    assert ddpm.law(sampler, DATA, DATA).kl == own.kl
    with pytest.raises(TypeError, match=r"data must be the GaussianOracle .* Python NoneType"):
        ddpm.law(sampler, plain(DATA))


def test_distances_of_equal_laws_are_rounding():
    """KL and W2 near 0 lose no digits: W2 is no root of a difference, which would leave 1e-8."""
    oracle = ddpm.GaussianOracle(MEAN, 0.5)
    sampler = ddpm.ancestral(LINEAR, 6, times=np.linspace(1000, 100, 7), variance=variance_of(0.5))
    found = ddpm.law(sampler, plain(oracle), oracle, exact_start=True)
    assert found.w2 < 1e-14
    assert 0 <= found.kl < 1e-14


def test_shapes():
    """Data of two axes: a denoiser sees them, and the law's mean has them."""
    data = ddpm.GaussianOracle(np.arange(6.0).reshape(2, 3), 0.5)
    sampler = ddpm.ancestral(LINEAR, 4)
    check_same_law(ddpm.law(sampler, plain(data), data), ddpm.law(sampler, data))
    assert ddpm.law(sampler, plain(data), data).mean.shape == (2, 3)
    with pytest.raises(ValueError, match=r"returned shape \(2, 6\).* \(2, 3\) need \(2, 2, 3\)"):
        ddpm.law(sampler, lambda x, t: x.reshape(len(x), -1), data)


def test_loop_of_a_kernel():
    """`sample_kernel` with `reverse` is `ancestral`, whose table says what it draws."""
    levels = ddpm.levels_of(LINEAR, 8)
    kernel = ddpm.reverse(plain(DATA), ddpm.large)
    found = law_of(lambda x, noise: ddpm.sample_kernel(kernel, levels, x, noise), DATA)
    check_same_law(found, ddpm.law(ddpm.ancestral(LINEAR, 8, variance=ddpm.large), DATA))


@pytest.mark.parametrize("steps", [1, 10])
def test_loop_of_langevin(steps):
    """x <- x + h ∇log p(x) + sqrt(2 h) z for p = N(m, c): a geometric sequence in closed form."""
    m, c, h = 0.7, np.array([0.5, 2.0]), 0.3
    data = ddpm.GaussianOracle([m, m], c)

    def langevin(x, noise):
        for i in range(steps):
            x = x + h * (m - x) / c + math.sqrt(2 * h) * noise(i, x.shape)
        return x

    found, r = law_of(langevin, data), (1 - h / c) ** steps
    var = r**2 + 2 * h * (1 - r**2) / (1 - (1 - h / c) ** 2)
    np.testing.assert_allclose(found.mean, m - r * m, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found.cov, np.diag(var), rtol=0, atol=CLOSE)
    assert found.kl == pytest.approx(((c + (r * m) ** 2) / var - 1 - np.log(c / var)).sum() / 2)
    w2 = ((r * m) ** 2 + (np.sqrt(c) - np.sqrt(var)) ** 2).sum()
    assert found.w2 == pytest.approx(math.sqrt(w2))


def test_noises_are_those_of_their_steps():
    """One step gives one noise, however often and in whichever shape it is asked for."""
    data = ddpm.GaussianOracle(np.zeros(2), 1.0)
    twice = law_of(lambda x, noise: noise(3, x.shape) + noise(3, x.shape), data)
    np.testing.assert_allclose(twice.cov, 4 * np.eye(2), atol=CLOSE)
    other = law_of(lambda x, noise: noise(3, x.shape) + noise(2, x.shape), data)
    np.testing.assert_allclose(other.cov, 2 * np.eye(2), atol=CLOSE)

    def shared(x, noise):
        one, zero = noise(1, (len(x), 1)), 0 * noise(0, x.shape)
        return 3 * x + 2 * noise(1, x.shape) + zero + (one + noise(1, (len(x), 1))) / 2

    # x, one number for both coordinates, and that same number again in the first.
    rows = np.array([[3, 0], [0, 3], [3, 1], [0, 2]])
    np.testing.assert_allclose(law_of(shared, data).cov, rows.T @ rows, atol=CLOSE)


def test_probes_come_in_bounded_batches(monkeypatch):
    """However large the loop, no batch has more numbers than allowed, and the law is the same."""
    largest = []

    def loop(x, noise):
        largest.append(len(x))
        return x @ FULL + 1 + noise(1, x.shape) @ FULL**2

    expected = law_of(loop, DATA)
    assert max(largest) == 6
    monkeypatch.setattr("ddpm_core.certificates.laws._AT_ONCE", 25)
    largest.clear()
    check_same_law(law_of(loop, DATA), expected)
    assert max(largest) == 4
    monkeypatch.setattr("ddpm_core.certificates.laws._AT_ONCE", 5)  # less than one probe has
    largest.clear()
    check_same_law(law_of(loop, DATA), expected)
    assert largest == [1, 2, 1, 1, 1, 1, 1, 1]


NOT_AFFINE = {
    "clipped": ddpm.clip(ddpm.GaussianOracle(np.zeros(3), 0.25)),
    "thresholded": lambda x, t: x / np.maximum(1, np.quantile(abs(x), 0.9, 1, keepdims=True)),
    "dataset": ddpm.DatasetOracle(np.eye(3)),
    "mixture": ddpm.MixtureOracle([0.5, 0.5], np.eye(3)[:2], 0.1),
    "a little": lambda x, t: DATA(x, t) + 1e-3 * np.tanh(x),
    "not a number": lambda x, t: x * np.nan,
    "in one coordinate": lambda x, t: x * [10.0, 1.0, 1.0] + x**2 * [0.0, 0.1, 0.0],
}


@pytest.mark.parametrize("denoise", NOT_AFFINE.values(), ids=NOT_AFFINE)
def test_what_is_not_affine_is_refused(denoise):
    with pytest.raises(ValueError, match=r"the denoiser at log-SNR .* is not affine"):
        ddpm.law(ddpm.ddim(LINEAR, 4), denoise, DATA)
    levels = ddpm.levels_of(LINEAR, 4)
    loop = lambda x, noise: ddpm.sample_kernel(ddpm.reverse(denoise), levels, x, noise)
    with pytest.raises(ValueError, match="the loop is not affine"):
        law_of(loop, DATA)


def test_the_message_says_by_how_much():
    """x² is 0 at 0 and 1 at 1: of the one probe beyond, 8, it makes 64 where the parts sum to 8."""
    one = ddpm.GaussianOracle([0.0], 1.0)
    said = r"at log-SNR -10.12 is not affine: of a sum of inputs it makes 64, but .* sum to -?8;"
    with pytest.raises(ValueError, match=said):
        ddpm.law(ddpm.ddim(LINEAR, 4), lambda x, t: x**2, one)


@pytest.mark.parametrize(("at_zero", "then"), [(0, 3), (0, 1), (1, 3)])
def test_a_loop_that_asks_for_noise_as_it_likes(at_zero, then):
    """More of it where x is not 0 than the run at 0 showed: of no step, or of fewer elements."""

    def loop(x, noise):
        count = then if x.any() else at_zero
        return x + (noise(1, (len(x), count)) if count else 0)

    with pytest.raises(ValueError, match="not affine: what it asks of the noise of step 1"):
        law_of(loop, DATA)


def test_rounding_is_affine():
    """What an iteration leaves, far below any number in the law, is not refused."""
    nearly = lambda x, t: DATA(x, t) + 1e-9 * np.tanh(x)
    sampler = ddpm.ancestral(LINEAR, 4)
    found, expected = ddpm.law(sampler, nearly, DATA), ddpm.law(sampler, DATA)
    np.testing.assert_allclose(found.cov, expected.cov, rtol=0, atol=1e-8)
    found = law_of(lambda x, noise: 1e6 * (x @ FULL), DATA)
    np.testing.assert_allclose(found.cov, 1e12 * FULL @ FULL, rtol=CLOSE)


def test_nothing_at_all_is_affine():
    """A denoiser that says 0, of which a last step makes 0."""
    found = ddpm.law(ddpm.ancestral(LINEAR, 4), lambda x, t: 0 * x, DATA)
    np.testing.assert_array_equal(found.cov, np.zeros((3, 3)))


TURN = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]


def fixed(mean, std, turn=TURN):
    """A loop that draws N(mean, ·), with these standard deviations along the columns of turn."""
    return lambda x, noise: np.asarray(mean) + (x * np.asarray(std)) @ turn.T


def spread(mean, std):
    return ddpm.GaussianOracle(mean, TURN @ np.diag(np.square(std)) @ TURN.T)


def test_points():
    """Along a direction without variance in both, KL counts nothing; in one of them, it is inf."""
    data = spread(MEAN, [0.0, 2.0, 0.5])
    found = law_of(fixed(MEAN, [0.0, 1.0, 0.5]), data)
    assert found.kl == pytest.approx((4 - 1 - math.log(4)) / 2, rel=CLOSE)
    assert found.w2 == pytest.approx(1, rel=CLOSE)
    along = TURN[:, 1] + TURN[:, 2]
    found = law_of(fixed(MEAN + along, [0.0, 1.0, 0.5]), data)
    assert found.kl == pytest.approx((4 - 1 - math.log(4) + 1 + 4) / 2, rel=CLOSE)
    assert found.w2 == pytest.approx(math.sqrt(1 + 2), rel=CLOSE)
    apart = {
        "spread where the data have none": fixed(MEAN, [0.1, 1.0, 0.5]),
        "none where the data have it": fixed(MEAN, [0.0, 1.0, 0.0]),
        "none along another direction": fixed(MEAN, [0.5, 0.0, 1.0], DATA.basis),
        "spread along all others": fixed(MEAN, [0.5, 0.7, 1.0], DATA.basis),
        "a mean off along the point": fixed(MEAN + 1e-3 * TURN[:, 0], [0.0, 1.0, 0.5]),
    }
    for what, loop in apart.items():
        assert law_of(loop, data).kl == math.inf, what
    assert law_of(apart["a mean off along the point"], data).w2 == pytest.approx(
        math.sqrt(1 + 1e-6)
    )


def test_points_alone():
    point = spread(MEAN, [0.0, 0.0, 0.0])
    found = law_of(fixed(MEAN, [0.0, 0.0, 0.0]), point)
    assert (found.kl, found.w2) == (0.0, 0.0)
    assert law_of(fixed(MEAN * (1 + 1e-15), [0.0, 0.0, 0.0]), point).kl == 0  # to rounding
    found = law_of(fixed(MEAN + 2 * np.eye(3)[1], [0.0, 0.0, 0.0]), point)
    assert (found.kl, found.w2) == (math.inf, 2.0)
    # A standard deviation of 1e-11 beside 1 counts as none.
    nearly = ddpm.GaussianOracle(np.zeros(2), [1e-22, 1.0])
    assert law_of(lambda x, noise: x, nearly).kl == math.inf
    assert law_of(lambda x, noise: x * [0.0, 1.0], nearly).kl == pytest.approx(0, abs=CLOSE)
    # The scale is that of the law: a standard deviation of 1e-9 beside 1e-3 counts.
    small = ddpm.GaussianOracle(np.zeros(2), [1e-18, 1e-6])
    assert law_of(lambda x, noise: x * [0.0, 1e-3], small).kl == math.inf
    # All of it at the origin, where there is no scale to compare with.
    nothing = law_of(fixed(np.zeros(3), [0.0, 0.0, 0.0]), spread(np.zeros(3), [0.0] * 3))
    assert (nothing.kl, nothing.w2) == (0.0, 0.0)
