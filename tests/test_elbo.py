"""The variational bound, against closed forms of Gaussian data and the entropy of finite data.

Its terms are quadratic in (x_0, eps) for a Gaussian's denoiser, so three-point Gauss-Hermite
quadrature gives their expectations exactly, with one node for all coordinates: they are
independent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from array_api_extra.testing import lazy_xp_function
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

import ddpm_core as ddpm
from ddpm_core import gaussians, kernels, losses, schedules
from ddpm_core.levels import Level, from_logsnr, steps_of
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
EPS32 = float(np.finfo(np.float32).eps)
CLEAN = from_logsnr(math.inf, 0.0)

_root = math.sqrt(3)
_nodes, _weights = np.array([-_root, 0.0, _root]), np.array([1 / 6, 2 / 3, 1 / 6])
X_0, NOISE = (grid.reshape(-1, 1) for grid in np.meshgrid(_nodes, _nodes))
WEIGHTS = np.outer(_weights, _weights).ravel()

D = 3
SCHEDULE = ddpm.linear(1000)
TIMES = [1000, 700, 450, 200, 60, 5, 0]
GREYS = (np.array([[3, 250, 128], [0, 255, 77], [17, 200, 90], [64, 1, 254]]) / 127.5) - 1


def gaussian(seed: int) -> ddpm.GaussianOracle:
    rng = np.random.default_rng(seed)
    return ddpm.GaussianOracle(rng.uniform(-2, 2, D), np.exp(rng.uniform(-6, 4, D)))


oracles = st.integers(0, 2**32 - 1).map(gaussian)


@st.composite
def subsets(draw, zero_terminal: bool = False) -> Level:
    """Levels of a random schedule: all of them or some, the last clean data or not."""
    schedule = draw(strategies.schedules(60, zero_terminal=zero_terminal))
    times = draw(strategies.grids(schedule, 12))
    return ddpm.levels_of(schedule, len(times) - 1, times=times)


def levels_at(times: list[float], schedule: ddpm.Schedule = SCHEDULE) -> Level:
    return ddpm.levels_of(schedule, len(times) - 1, times=times)


def steps_to_clean(levels: Level) -> tuple[Level, Level]:
    """All t and all s of a bound, clean data appended where it is not the end."""
    if levels.sigma[-1] > 0:
        levels = Level(*(np.append(a, c) for a, c in zip(levels, CLEAN, strict=True)))
    return steps_of(levels)


def noise_of(eps: np.ndarray):
    """The same draw at every term: a number per sample, or an array."""
    return lambda step, shape: np.broadcast_to(eps, shape)


def mean_over_data(kernel, oracle, levels, **kw) -> tuple[float, np.ndarray, float]:
    """Prior, steps and data of the bound, the mean over x_0 ~ N(m, c) and noise, exactly."""
    x_0 = oracle.mean + np.sqrt(oracle.variances) * X_0
    e = ddpm.elbo(kernel, levels, x_0, noise_of(NOISE), bins=None, **kw)
    return WEIGHTS @ e.prior, WEIGHTS @ e.steps, WEIGHTS @ e.data


def scale_of(values: Any) -> float:
    return 1 + float(np.abs(values).sum())


@given(levels=subsets(zero_terminal=True), oracle=oracles, z=strategies.normals((4, D)))
def test_tight_for_exact_kernels(levels, oracle, z):
    """E L = -log N(x_0; m, c) + KL(q(x_T | x_0) ‖ N(0, I)) - KL(q(x_T | x_0) ‖ N(α m, V)).

    For every schedule and every subset of its levels, at every x_0: Eq. 5 of Ho et al. 2020 with
    p(x_s | x_t) = q(x_s | x_t) telescopes to it.
    """
    x_0 = oracle.mean + np.sqrt(oracle.variances) * z
    each, eps = np.repeat(x_0, 3, axis=0), np.tile(_nodes, 4)[:, None]
    e = ddpm.elbo(oracle.reverse, levels, each, noise_of(eps), bins=None)
    actual = e.total.reshape(4, 3) @ _weights
    a, s = levels.alpha[0], levels.sigma[0]
    V = a**2 * oracle.variances + s**2
    ends = -np.log(V) - (a**2 * (x_0 - oracle.mean) ** 2 + s**2) / V + a**2 * x_0**2 + s**2
    expected = 0.5 * ends.sum(1) - stats.norm.logpdf(z).sum(1)
    expected = expected + 0.5 * np.log(oracle.variances).sum()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9 * scale_of(expected))


@given(levels=subsets(), oracle=oracles, log_d=st.floats(-8, 2))
def test_gap_of_a_fixed_variance(levels, oracle, log_d):
    """E L_{t-1} grows by ½ Σ (r - 1 - log r), r = σ*² / variance, over the exact kernel's.

    σ*² = τ σ_t² V_s / V_t, so also at the decoder, where it is c σ_1² / V_1.
    """
    t, s = steps_to_clean(levels)
    c, dec = oracle.variances, math.exp(log_d)
    V = lambda level: level.alpha[:, None] ** 2 * c + level.sigma[:, None] ** 2
    best = (ddpm.levels.tau(t, s) * t.sigma**2)[:, None] * V(s) / V(t)
    exact = mean_over_data(oracle.reverse, oracle, levels)
    for variance in (ddpm.small, ddpm.large):
        actual = mean_over_data(ddpm.reverse(oracle, variance), oracle, levels, decoder_var=dec)
        fixed = np.append(variance(t.take(slice(-1)), s.take(slice(-1))), dec)
        r = best / fixed[:, None]
        gap = 0.5 * (r - 1 - np.log(r)).sum(1)
        expected = np.append(exact[1], exact[2]) + gap
        np.testing.assert_allclose(
            np.append(actual[1], actual[2]), expected, rtol=1e-9, atol=1e-9 * scale_of(exact[2])
        )
        assert actual[0] == exact[0]


@given(levels=subsets())
def test_terms_of_standard_normal_data(levels):
    """For N(0, I), `large` and a decoder of σ_1² every term is a ratio of variances, in the mean.

    L_T = -½ log σ_T², L_{t-1} = ½ log(σ_t² / σ_s²), L_0 = ½ log(2 π e σ_1²), each D times: their
    sum is the entropy of the data.
    """
    oracle = ddpm.GaussianOracle(np.zeros(D), 1.0)
    t, _ = steps_to_clean(levels)
    kernel = ddpm.reverse(oracle, ddpm.large)
    prior, steps, data = mean_over_data(kernel, oracle, levels, decoder_var=t.sigma[-1] ** 2)
    log_var = 2 * np.log(t.sigma)
    atol = 1e-11 * (1 + np.abs(log_var[-1]))
    np.testing.assert_allclose(prior, -0.5 * D * log_var[0], atol=atol)
    np.testing.assert_allclose(steps, -0.5 * D * np.diff(log_var), atol=atol)
    entropy = 0.5 * D * (math.log(2 * math.pi) + 1)
    np.testing.assert_allclose(data, entropy + 0.5 * D * log_var[-1], atol=atol)
    np.testing.assert_allclose(prior + steps.sum() + data, entropy, atol=atol)


@given(data=st.data(), oracle=oracles)
def test_refinement_never_loosens(data, oracle):
    """Σ L_{t-1} = ½ Σ (SNR_s - SNR_t) mmse(t): an upper Riemann sum of ½ ∫ mmse dSNR.

    With `small` and the exact denoiser (Kingma et al. 2021, Eq. 13); the integral is
    ½ Σ log(1 + c SNR) between the ends, and more levels between them never add.
    """
    ends = {0, 1000}
    few = ends | data.draw(st.sets(st.integers(1, 999), max_size=4))
    more = few | data.draw(st.sets(st.integers(1, 999), max_size=6))
    schedule, sums, rest = schedules.LinearLogSNR(8.0, -8.0), [], []
    for marks in (few, more):
        levels = levels_at([k / 1000 for k in sorted(marks, reverse=True)], schedule)
        kernel = ddpm.reverse(oracle, ddpm.small)
        prior, steps, last = mean_over_data(kernel, oracle, levels, decoder_var=0.1)
        snr = np.exp(levels.logsnr)
        mmse = oracle.error(levels.take(slice(-1))).sum(1)
        np.testing.assert_allclose(steps, 0.5 * np.diff(snr) * mmse, rtol=1e-10)
        sums.append(steps.sum())
        rest.append(prior + last)
    growth = 0.5 * np.log1p(oracle.variances * snr[[0, -1], None]).sum(1)
    slack = 1e-10 * sums[0]
    assert rest[0] == rest[1]
    assert sums[0] + slack >= sums[1] >= growth[1] - growth[0] - slack


@pytest.mark.parametrize("points", [[-1.0, 1.0], [-1.0, -0.2, 0.8], [-0.8, -0.4, 0.0, 0.6, 1.0]])
def test_information_of_points(points):
    """½ ∫ mmse dSNR = log N for N points (Guo, Shamai & Verdu 2005), and a bound of greys is above.

    The integral over log-SNR and the mean over noise are trapezia, whose error for such analytic
    functions is far below 1e-8; the bound's own steps are the upper sum, and mmse at s the lower.
    """
    x, (eps, step) = np.array(points), np.linspace(-9, 9, 181, retstep=True)
    x_0 = np.repeat(x, len(eps))[:, None]
    noise = np.tile(eps, len(x))[:, None]
    weights = np.tile(stats.norm.pdf(eps) * step / len(x), len(x))
    logsnr = np.linspace(-25.0, 9.0, 171)
    oracle = ddpm.DatasetOracle(x[:, None])
    levels = from_logsnr(logsnr, np.zeros_like(logsnr))
    bins = 11  # grey values: multiples of 0.2
    kernel = ddpm.reverse(oracle, ddpm.small)
    e = ddpm.elbo(kernel, levels, x_0, noise_of(noise), bins=bins, decoder_var=1e-4)
    mmse, snr = weights @ e.error, np.exp(logsnr)
    integral = 0.5 * (mmse * snr).sum() * (logsnr[1] - logsnr[0])
    assert integral == pytest.approx(math.log(len(x)), abs=1e-8)
    upper, lower = 0.5 * np.diff(snr) @ mmse[:-1], 0.5 * np.diff(snr) @ mmse[1:]
    assert weights @ e.steps.sum(1) == pytest.approx(upper, abs=1e-10)
    bound = weights @ e.total
    # P(x_0) = 1 / N: no bound is below log N, and it is above by its own slack at most.
    assert math.log(len(x)) - 1e-9 < bound
    assert bound < math.log(len(x)) + upper - lower + weights @ (e.prior + e.data) + 1e-9


@given(levels=subsets(), oracle=oracles, arrays=strategies.normals((3, D), count=2))
def test_terms_are_those_of_bound(levels, oracle, arrays):
    """Each term is `bound` at its pair of levels, and the total is their sum with the prior."""
    x_0, eps = arrays
    e = ddpm.elbo(oracle.reverse, levels, x_0, noise_of(eps), bins=None)
    t, s = steps_to_clean(levels)
    pairs = [(Level(*map(float, a)), Level(*map(float, b))) for a, b in zip(zip(*t), zip(*s))]  # noqa: B905
    terms = [losses.bound(oracle.reverse, x_0, eps, a, b, bins=None) for a, b in pairs]
    np.testing.assert_allclose(e.steps, np.reshape(terms[:-1], (-1, 3)).T, rtol=64 * EPS)
    np.testing.assert_allclose(e.data, terms[-1], rtol=64 * EPS)
    alpha, sigma = levels.alpha[0], levels.sigma[0]
    prior = 0.5 * (alpha**2 * x_0**2 + sigma**2 - 1 - 2 * np.log(sigma)).sum(1)
    np.testing.assert_allclose(e.prior, prior, rtol=0, atol=64 * EPS * scale_of(x_0**2))
    parts = np.column_stack([e.prior, e.steps, e.data])
    np.testing.assert_allclose(
        e.total, parts.sum(1), rtol=64 * EPS, atol=64 * EPS * scale_of(parts)
    )


@given(levels=subsets(zero_terminal=True), oracle=oracles, data=st.data())
def test_estimate_is_unbiased(levels, oracle, data):
    """The mean over u, exactly, of one term in each m-th of the log-SNR is the sum of all steps.

    As a function of u a term is constant between the levels, so that a midpoint for each of these
    parts, weighted by its length, is the whole integral. A level without data lies 1 from the next.
    """
    t, s = (all_of.take(slice(-1)) for all_of in steps_to_clean(levels))
    assume(len(t.sigma) > 0)
    gaps = np.where(np.isfinite(t.logsnr), s.logsnr, 1.0) - np.where(
        np.isfinite(t.logsnr), t.logsnr, 0.0
    )
    m = data.draw(st.integers(1, len(gaps)))
    marks = np.unique([*(m * np.cumsum(gaps) / gaps.sum())[:-1], *range(m + 1)])
    lengths, middles = np.diff(marks), (marks[1:] + marks[:-1]) / 2
    part = np.minimum(middles.astype(int), m - 1)
    u = np.full((len(middles), m), 0.5)
    rows = np.arange(len(middles))
    u[rows, part] = middles - part
    x_0, eps = data.draw(strategies.normals((1, D), count=2))
    x_0 = np.repeat(x_0, len(u), axis=0)
    full = ddpm.elbo(oracle.reverse, levels, x_0, noise_of(eps), bins=None)
    e = ddpm.elbo(oracle.reverse, levels, x_0, noise_of(eps), u, bins=None)
    assert e.steps.shape == e.index.shape == (len(u), m)
    np.testing.assert_allclose(lengths @ e.steps[rows, part], full.steps[0].sum(), rtol=1e-9)
    np.testing.assert_allclose(e.data, full.data, rtol=64 * EPS)
    # Each sample's own levels are what these levels are alone, times what the term stands for.
    stands_for = gaps.sum() / (m * gaps[e.index])
    at = rows[:, None]
    np.testing.assert_allclose(e.steps, stands_for * full.steps[at, e.index], rtol=1e-10)
    np.testing.assert_allclose(e.error[:, :-1], full.error[at, e.index], rtol=1e-10)
    np.testing.assert_array_equal(e.error[:, -1], full.error[:, -1])


@given(n=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_as_many_terms_as_steps(n, seed):
    """At levels even in log-SNR, one term a step takes each step once, whatever u: no variance."""
    rng = np.random.default_rng(seed)
    levels = ddpm.levels_of(schedules.LinearLogSNR(), n)
    oracle, x_0 = gaussian(seed), rng.standard_normal((2, D))
    eps = rng.standard_normal((n + 2, 2, D))
    noise = lambda step, shape: eps[step]
    full = ddpm.elbo(oracle.reverse, levels, x_0, noise, bins=None)
    e = ddpm.elbo(oracle.reverse, levels, x_0, noise, rng.uniform(0.001, 0.999, (2, n)), bins=None)
    np.testing.assert_array_equal(full.index, np.tile(np.arange(n), (2, 1)))
    np.testing.assert_array_equal(e.index, full.index)
    np.testing.assert_allclose(e.steps, full.steps, rtol=1e-10)


@given(levels=subsets(), arrays=strategies.normals((3, 2, 2), count=3))
def test_error_is_of_the_denoiser(levels, arrays):
    """error = mean (x_0 - x̂_0)², read off the kernel's mean, is that of `reverse(denoise)`."""
    x_0, eps, off = arrays
    denoise = lambda x_t, t: np.tanh(x_t) + off
    kernel = ddpm.reverse(denoise, ddpm.large)
    e = ddpm.elbo(kernel, levels, x_0, noise_of(eps), bins=None, decoder_var=0.1)
    t, s = steps_to_clean(levels)
    for i in range(len(t.sigma)):
        x_t = t.alpha[i] * x_0 + t.sigma[i] * eps
        expected = ((x_0 - np.tanh(x_t) - off) ** 2).reshape(3, -1).mean(1)
        # x_0's share of the mean, α_s τ, is what is left of it.
        lost = 1e3 * EPS / (s.alpha[i] * -np.expm1(t.logsnr[i] - s.logsnr[i]))
        np.testing.assert_allclose(e.error[:, i], expected, rtol=lost, atol=lost * scale_of(off))


@pytest.mark.parametrize("variance", [ddpm.small, ddpm.large])
@pytest.mark.parametrize("bins", [None, 256])
def test_default_decoder_is_the_step_before(variance, bins):
    """Over a whole schedule L_0 has Ho et al.'s variance; over some levels, their own β̃."""
    schedule = ddpm.linear(30, rescale=True)
    kernel = ddpm.reverse(gaussian(1), variance)
    for times, expected in (
        (range(30, -1, -1), kernels.decoder_variance(schedule)),
        ([30, 9, 4, 0], ddpm.small(schedule(9), schedule(4))),
        ([30, 9, 0], ddpm.small(schedule(30), schedule(9))),
    ):
        levels = levels_at(list(times), schedule)
        default, passed = (
            ddpm.elbo(kernel, levels, GREYS, noise_of(0.5), bins=bins, decoder_var=var)
            for var in (None, expected)
        )
        np.testing.assert_allclose(default.total, passed.total, rtol=64 * EPS)
        typed = ddpm.Gaussian(
            kernel(levels.take(-2).alpha * GREYS + 0.5 * levels.take(-2).sigma,
                   schedule(times[-2]), schedule(0)).mean,
            expected,
        )  # fmt: skip
        log_p = (
            gaussians.log_prob(typed, GREYS)
            if bins is None
            else gaussians.discretised_log_prob(typed, GREYS, bins)
        )
        np.testing.assert_allclose(default.data, -log_p, rtol=1e-10)


@pytest.mark.parametrize("number", [float, np.float32, np.asarray])
def test_default_decoder_whatever_the_point_is_written_in(number):
    """A kernel of one's own that lands on a point gets Ho et al.'s variance there, too."""
    plain = ddpm.reverse(gaussian(1))

    def kernel(x_t, t, s):
        p = plain(x_t, t, s)
        return ddpm.Gaussian(p.mean, number(p.var))

    levels = levels_at([30, 9, 4, 0], ddpm.linear(30, rescale=True))
    own, wanted = (ddpm.elbo(k, levels, GREYS, noise_of(0.5)).data for k in (kernel, plain))
    np.testing.assert_array_equal(own, wanted)


def test_learned_range_has_its_own_decoder():
    """log variance of L_0 = w log β_1 + (1 - w) log decoder_var (Nichol & Dhariwal 2021)."""
    schedule = ddpm.linear(30, rescale=True)
    v = np.linspace(-1, 1, 12).reshape(4, 3)
    net = lambda x, time: np.concatenate([0.3 * x, v], axis=1)
    predict = ddpm.Predictor(net, schedule, variance=True)
    kernel = ddpm.learned_range(predict, 0.004)
    e = ddpm.elbo(kernel, ddpm.levels_of(schedule, 30), GREYS, noise_of(0.5), bins=None)
    t = schedule(1)
    x_t = t.alpha * GREYS + t.sigma * 0.5
    w = (v + 1) / 2
    var = np.exp(w * np.log(t.sigma**2) + (1 - w) * np.log(0.004))  # β_1 = σ_1²
    mean = (x_t - t.sigma * 0.3 * x_t) / t.alpha
    expected = -stats.norm.logpdf(GREYS, mean, np.sqrt(var)).sum(1)
    np.testing.assert_allclose(e.data, expected, rtol=1e-10)
    # It may still be overridden, for all coordinates.
    e = ddpm.elbo(
        kernel, ddpm.levels_of(schedule, 30), GREYS, noise_of(0.5), bins=None, decoder_var=0.02
    )
    expected = -stats.norm.logpdf(GREYS, mean, math.sqrt(0.02)).sum(1)
    np.testing.assert_allclose(e.data, expected, rtol=1e-10)


@given(oracle=oracles, n=st.integers(2, 6))
def test_clean_data_is_appended(oracle, n):
    """Levels that end with noise are as if clean data followed: L_0 is the step into it."""
    asked = []
    kernel = lambda x_t, t, s: asked.append(s) or ddpm.reverse(oracle)(x_t, t, s)
    levels = ddpm.levels_of(schedules.LinearLogSNR(), n)
    longer = Level(*(np.append(a, c) for a, c in zip(levels, CLEAN, strict=True)))
    ends = [ddpm.elbo(kernel, some, GREYS, noise_of(0.3), bins=None) for some in (levels, longer)]
    assert asked[n] == asked[-1] == CLEAN
    assert ends[0].steps.shape == (4, n)
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_noise_once_a_term():
    """Noise is asked for once a term, at steps from 1 that never repeat, in x_0's shape."""
    asked = []

    def noise(step, shape):
        asked.append((step, shape))
        return np.full(shape, 0.1 * step)

    oracle, levels = gaussian(3), levels_at(TIMES)
    e = ddpm.elbo(oracle.reverse, levels, GREYS, noise)
    assert asked == [(k, (4, 3)) for k in range(1, len(TIMES))]
    one = losses.bound(oracle.reverse, GREYS, np.full((4, 3), 0.2), SCHEDULE(700), SCHEDULE(450))
    np.testing.assert_allclose(e.steps[:, 1], one, rtol=64 * EPS)
    asked.clear()
    ddpm.elbo(oracle.reverse, levels, GREYS, noise, np.full((4, 2), 0.5))
    assert asked == [(k, (4, 3)) for k in (1, 2, 3)]


def test_conditions_and_progress():
    """cond goes to the kernel untouched; progress wraps the terms but L_0."""
    y, seen, wrapped = object(), [], []
    kernel = lambda x_t, t, s, y: seen.append(y) or gaussian(4).reverse(x_t, t, s)

    def progress(terms):
        wrapped.extend(terms)
        return terms

    ddpm.elbo(kernel, levels_at(TIMES), GREYS, noise_of(0.1), progress=progress, y=y)
    assert len(seen) == len(TIMES) - 1
    assert all(one is y for one in seen)
    assert wrapped == list(range(len(TIMES) - 2))


def run(terms, *arrays):
    """What `lazy_xp_function` sees: under JAX this call is jitted, under dask it is lazy."""
    return terms(*arrays)


lazy_xp_function(run)

_net = lambda x, time: ddpm.arrays.fit(0.5, x) * x
U = np.array([[0.1, 0.9], [0.5, 0.2], [0.99, 0.0], [0.3, 0.6]])
CASES = {
    "all-greys": (gaussian(5).reverse, None, 256),
    "some-greys": (ddpm.reverse(gaussian(5), ddpm.large), U, 256),
    "some-density": (ddpm.reverse(ddpm.Predictor(_net, SCHEDULE)), U, None),
}


@pytest.mark.parametrize("name", CASES)
def test_on_every_library(lib, name):
    """float32 on every array library is float64 on NumPy, to roundings and what 1 / σ_1 adds."""
    kernel, u, bins = CASES[name]

    def terms(x_0, *eps):
        noise = lambda step, shape: eps[step % 2]
        e = ddpm.elbo(kernel, levels_at(TIMES), x_0, noise, u, bins=bins)
        return e.prior, e.steps, e.data, e.error, e.total

    rng = np.random.default_rng(0)
    arrays = [a.astype(np.float32) for a in (GREYS, *rng.standard_normal((2, 4, 3)))]
    expected = terms(*(a.astype(np.float64) for a in arrays))
    actual = run(terms, *map(lib.asarray, arrays))
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == lib.xp.float32
        assert tuple(a.shape) == b.shape
        if lib.has_values:
            np.testing.assert_allclose(lib.to_numpy(a), b, rtol=4e3 * EPS32, atol=1e3 * EPS32)


def bound_of(x_0=GREYS, times=TIMES, u=None, **kw):
    return ddpm.elbo(ddpm.reverse(gaussian(6)), levels_at(times), x_0, noise_of(0.0), u, **kw)


@pytest.mark.parametrize(
    ("value", "bins"),
    [(0.0, 256), (257 / 127.5 - 1, 256), (0.5, 4), (1 / 3 + 0.01, 4), (2.0, 3), (-2.0, 3)],
)
def test_grey_values(value, bins):
    """NumPy data off its grey values is refused with the value; a density takes anything."""
    x_0 = np.full((2, 3), -1.0)
    x_0[1, 2] = value
    with pytest.raises(ValueError, match=rf"x_0 = {value:g} is none of {bins} grey values"):
        bound_of(x_0, bins=bins)
    bound_of(x_0, bins=None)
    greys = np.linspace(-1, 1, bins, dtype=np.float32).reshape(1, -1)
    oracle = ddpm.GaussianOracle(np.zeros(bins), 1.0)
    ddpm.elbo(oracle.reverse, levels_at(TIMES), greys, noise_of(np.float32(0)), bins=bins)


@pytest.mark.parametrize(
    ("u", "message"),
    [
        (np.zeros(4), r"u must be \(4, m\), m within 1 \.\. 5, but is \(4,\)"),
        (np.zeros((3, 2)), r"but is \(3, 2\)"),
        (np.zeros((4, 6)), r"but is \(4, 6\)"),
        (np.zeros((4, 0)), r"but is \(4, 0\)"),
        (np.ones((4, 2)), r"u must lie within \[0, 1\), but is 1"),
        (np.full((4, 2), -0.1), r"u must lie within \[0, 1\), but is -0\.1"),
        (np.full((4, 2), np.nan), r"u must lie within \[0, 1\), but is nan"),
    ],
)
def test_u_refused(u, message):
    """u of a wrong shape or range is an error with what it must be."""
    with pytest.raises(ValueError, match=message):
        bound_of(u=u)


def test_u_just_below_1():
    """Where u rounds up to the last edge, the last term is the one before it."""
    u = np.full((4, 3), np.nextafter(1, 0))
    assert bound_of(u=u).index[:, -1].tolist() == [4] * 4


def test_other_refusals():
    """Half precision, and a decoder that is a point with no step before it."""
    with pytest.raises(TypeError, match="x_0 is float16"):
        bound_of(GREYS.astype(np.float16))
    with pytest.raises(ValueError, match="pass decoder_var"):
        bound_of(times=[1000, 0])
    one = bound_of(times=[1000, 0], decoder_var=0.1)
    assert one.steps.shape == one.index.shape == (4, 0)
    np.testing.assert_array_equal(one.total, one.prior + one.data)
