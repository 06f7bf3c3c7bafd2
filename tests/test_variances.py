"""Variances of the reverse process: optimal, learned and the decoder's, against exact kernels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import kernels, schedules
from ddpm_core.levels import from_logsnr
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps

pairs = st.tuples(st.floats(-9, 9), st.floats(0.01, 9)).map(
    lambda p: (from_logsnr(p[0], 1.0), from_logsnr(p[0] + p[1], 0.0))
)  # t, s < t
log_c = st.floats(math.log(1e-6), math.log(1e3))  # the log of a variance
directions = st.lists(log_c, min_size=3, max_size=3).map(np.exp)


def rounding(*levels):
    """1 + Σ |λ|: what the rounding of log-SNR does to α² and σ², in units of EPS."""
    return 1 + sum(abs(t.logsnr) for t in levels)


def exact_variance(c, t, s):
    """Of q(x_s | x_t), along each direction: (D,)."""
    c = np.atleast_1d(c)
    return ddpm.GaussianOracle(np.zeros(len(c)), c).reverse(np.zeros((1, len(c))), t, s).var[0]


@given(pair=pairs, log_c=log_c)
def test_optimal_is_the_exact_variance(pair, log_c):
    """β̃ + (α_s τ)² c σ_t² / V_t = τ σ_t² V_s / V_t, the variance of q(x_s | x_t) of N(0, c)."""
    (t, s), c = pair, math.exp(log_c)
    error = lambda t: c * t.sigma**2 / (t.alpha**2 * c + t.sigma**2)
    variance = ddpm.optimal(error)(t, s)
    rtol = 32 * EPS * rounding(t, s)
    assert variance == pytest.approx(exact_variance(c, t, s)[0], rel=rtol, abs=0)
    most = ddpm.large(t, s) * (s.alpha / t.alpha) ** 2
    assert ddpm.small(t, s) <= variance <= most * (1 + rtol)


@given(pair=pairs, c=directions)
def test_isotropic_optimal_is_the_mean_of_the_exact(pair, c):
    """The best one number for all directions is the mean of their variances (Bao et al. 2022)."""
    t, s = pair
    oracle = ddpm.GaussianOracle(np.zeros(3), c)
    variance = ddpm.optimal(lambda t: oracle.error(t).mean(-1))(t, s)
    rtol = 32 * EPS * rounding(t, s)
    assert variance == pytest.approx(exact_variance(c, t, s).mean(), rel=rtol, abs=0)


@given(pair=pairs, c=directions)
def test_optimal_is_tightest(pair, c):
    """E KL(q(x_s | x_t) ‖ p) over one number for the variance is least there: ∂ = 0, ∂² > 0."""
    t, s = pair
    exact = exact_variance(c, t, s)
    best = ddpm.optimal(lambda t: ddpm.GaussianOracle(np.zeros(3), c).error(t).mean())(t, s)
    x = np.zeros((1, 3))
    at = lambda var: ddpm.kl(ddpm.Gaussian(x, exact[None]), ddpm.Gaussian(x, var))[0]
    d = 1e-3
    # KL = (D / 2) (log v + best / v) + ..., so f(v e^d) - f(v) = (D / 2) (d + e^-d - 1).
    for step in (d, -d):
        rise = 1.5 * (step + math.expm1(-step))
        lost = 64 * EPS * (rounding(t, s) * d + (at(best) + np.abs(np.log(exact)).sum() + 3))
        assert abs(at(best * math.exp(step)) - at(best) - rise) <= lost


@given(betas=strategies.betas(), c=directions, data=st.data())
def test_optimal_is_theorem_1(betas, c, data):
    """σ*² = β̃ + (sqrt(β̄_n / α_n) - sqrt(β̄_{n-1} - β̃))² (1 - β̄_n Γ) (Bao et al. 2022, Eq. 6)."""
    i = data.draw(st.integers(1, len(betas)))
    log_abar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    beta_bar, before = -np.expm1(log_abar[i]), -np.expm1(log_abar[i - 1])
    tilde = before / beta_bar * betas[i - 1]
    gamma = np.mean(1 / (np.exp(log_abar[i]) * c + beta_bar))  # E |score|² / D
    factor = np.sqrt(beta_bar / (1 - betas[i - 1])) - np.sqrt(max(before - tilde, 0.0))
    typed = tilde + factor**2 * (1 - beta_bar * gamma)
    schedule = ddpm.from_betas(betas)
    t, s = schedule(i), schedule(i - 1)
    oracle = ddpm.GaussianOracle(np.zeros(3), c)
    by_error = ddpm.optimal(lambda t: oracle.error(t).mean(-1))(t, s)
    by_score = ddpm.optimal(lambda t: kernels.error_of_score(t, gamma))(t, s)
    # The paper's own form cancels twice: in the factor, and in 1 - β̄ Γ; and τ keeps EPS |log-SNR|.
    wide = 1 + abs(t.logsnr) + (abs(s.logsnr) if i > 1 else 0)
    size = beta_bar / (1 - betas[i - 1])
    atol = 64 * EPS * wide * (size + factor * np.sqrt(size) + factor**2)
    assert abs(by_error - typed) <= atol
    assert abs(by_score - typed) <= atol


@given(logsnr=st.floats(-9, 9), c=directions)
def test_error_of_score(logsnr, c):
    """(σ² / α²) (1 - σ² mean(1 / V)) = mean(c σ² / V), to what 1 - σ² Γ keeps."""
    t = from_logsnr(logsnr, 0.0)
    gamma = np.mean(1 / (t.alpha**2 * c + t.sigma**2))
    wanted = ddpm.GaussianOracle(np.zeros(3), c).error(t).mean()
    kept = t.alpha**2 / t.sigma**2 * wanted  # 1 - σ² Γ, without the cancellation
    rtol = 32 * EPS * rounding(t) * (1 + 1 / kept)
    assert kernels.error_of_score(t, gamma) == pytest.approx(wanted, rel=rtol, abs=0)


@given(
    schedule=strategies.schedules(zero_terminal=True),
    c=directions,
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_ancestral_takes_the_optimal_variance(schedule, c, data, seed):
    """The table's z² is the kernel's variance, and the two samplers give one sample."""
    steps = data.draw(st.integers(1, min(5, getattr(schedule, "T", 5))))
    oracle = ddpm.GaussianOracle(np.array([1.0, -1.0, 0.0]), c)
    variance = ddpm.optimal(lambda t: oracle.error(t).mean(-1))
    sampler = ddpm.ancestral(schedule, steps, variance)
    kernel = ddpm.reverse(oracle, variance)
    x, *z = np.random.default_rng(seed).standard_normal((steps + 1, 2, 3))
    pairs = [ddpm.Level(*(float(a[i]) for a in sampler.levels)) for i in range(steps + 1)]
    for row, t, s in zip(sampler.rows(), pairs[:-1], pairs[1:], strict=True):
        assert row.point[-1] ** 2 == pytest.approx(kernel(x, t, s).var, rel=8 * EPS, abs=0)
    noise = lambda step, shape: z[step - 1]
    by_table = ddpm.sample(oracle, sampler, x, noise)
    by_kernel = ddpm.sample_kernel(kernel, sampler.levels, x, noise)
    # Both combine x_0 and x_t by the same numbers, of sizes up to the data's.
    np.testing.assert_allclose(
        by_table, by_kernel, rtol=0, atol=256 * EPS * (4 + 4 * c.max() ** 0.5)
    )


@given(pair=pairs, c=directions, arrays=strategies.normals((2, 3), count=2))
def test_optimal_per_coordinate(pair, c, arrays):
    """Errors (*D), one per coordinate, make `reverse` the exact kernel of independent ones."""
    (x, z), (t, s) = arrays, pair
    oracle = ddpm.GaussianOracle(np.zeros(3), c)
    kernel = ddpm.reverse(oracle, ddpm.optimal(oracle.error))(x, t, s)
    exact = oracle.reverse(x, t, s)
    rtol = 64 * EPS * rounding(t, s)
    np.testing.assert_allclose(kernel.var, exact.var, rtol=rtol)
    np.testing.assert_allclose(
        kernel.reparameterise(z) - kernel.mean,
        exact.reparameterise(z) - exact.mean,
        rtol=rtol,
        atol=64 * EPS * (np.abs(x).max() + np.sqrt(exact.var.max())) * (1 + s.alpha / t.alpha),
    )
    # The divergence of two kernels a rounding apart: the mean's EPS |x|, squared over the variance.
    size = 64 * EPS * rounding(t, s) * (1 + np.abs(x)) * (1 + s.alpha / t.alpha)
    assert np.all(
        ddpm.kl(exact, kernel) <= (size**2 / exact.var + 64 * EPS * rounding(t, s)).sum(1)
    )


@given(pair=pairs, c=log_c)
def test_into_clean_data_there_is_no_variance(pair, c):
    """E Var[x_0 | x_t] > 0 at clean data, but the kernel lands on the mean: Algorithm 2, z = 0."""
    clean = from_logsnr(math.inf, 0.0)
    variance = ddpm.optimal(lambda t: math.exp(c))
    oracle = ddpm.GaussianOracle([0.5], math.exp(c))
    x = np.ones((1, 1))
    kernel = ddpm.reverse(oracle, variance)(x, pair[0], clean)
    assert kernel.var == 0
    np.testing.assert_array_equal(kernel.reparameterise(x), oracle(x, pair[0]))
    assert variance(pair[0], clean) == pytest.approx(math.exp(c), rel=4 * EPS)


def network(v, schedule):
    """A network that says eps = x / 2, and v of the variance."""
    return ddpm.Predictor(
        lambda x, time: np.concatenate([x / 2, np.broadcast_to(v, x.shape)], axis=1),
        schedule,
        variance=True,
    )


@given(
    betas=strategies.betas().filter(lambda b: len(b) > 1), v=st.floats(-1.5, 1.5), data=st.data()
)
def test_learned_range_is_eq_15(betas, v, data):
    """Σ = exp(w log β + (1 - w) log β̃), w = (v + 1) / 2 (Nichol & Dhariwal 2021, Eq. 15)."""
    i = data.draw(st.integers(1, len(betas)))
    x = data.draw(strategies.normals((2, 3)))
    schedule = ddpm.from_betas(betas)
    t, s = schedule(i), schedule(i - 1)
    tilde = lambda n: np.expm1(log_abar[n - 1]) / np.expm1(log_abar[n]) * betas[n - 1]
    log_abar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    low, high = tilde(max(i, 2)), betas[i - 1]  # at clean data, β̃ of the step before
    kernel = ddpm.learned_range(network(v, schedule), kernels.decoder_variance(schedule))
    w = (v + 1) / 2
    typed = np.exp(w * np.log(high) + (1 - w) * np.log(low))
    # τ of neighbours keeps EPS |log-SNR| / τ; at clean data those of times 2 and 1.
    kept = 1 - np.exp(schedule(max(i, 2)).logsnr - schedule(max(i, 2) - 1).logsnr)
    rtol = (
        128 * EPS * (1 + abs(t.logsnr) + abs(schedule(1).logsnr) + abs(schedule(2).logsnr)) / kept
    )
    actual = kernel(x, t, s)
    assert actual.var.shape == x.shape
    np.testing.assert_allclose(actual.var, typed, rtol=rtol)
    mean = ddpm.q_posterior(network(v, schedule)(x, t), x, t, s).mean
    np.testing.assert_array_equal(actual.mean, mean)


@given(pair=st.tuples(st.integers(2, 1000), st.integers(1, 999)).filter(lambda p: p[0] > p[1]))
def test_learned_range_ends(pair):
    """v = -1 is `small`, v = 1 is `large`, v = 0 their geometric mean, for any s < t."""
    schedule = ddpm.linear()
    t, s = schedule(pair[0]), schedule(pair[1])
    x = np.ones((1, 2))
    var = lambda v: ddpm.learned_range(network(v, schedule), 1.0)(x, t, s).var
    small, large = ddpm.small(t, s), ddpm.large(t, s)
    rtol = 32 * EPS  # of exp(log ...), where the log is down to -10
    np.testing.assert_allclose(var(-1.0), np.full((1, 2), small), rtol=rtol)
    np.testing.assert_allclose(var(1.0), np.full((1, 2), large), rtol=rtol)
    np.testing.assert_allclose(var(0.0), np.full((1, 2), math.sqrt(small * large)), rtol=rtol)


def test_learned_range_at_clean_data():
    """There v = -1 is decoder_var, and v = 1 is β_1."""
    schedule = ddpm.linear()
    x = np.ones((1, 2))
    var = lambda v: ddpm.learned_range(network(v, schedule), 3e-5)(x, schedule(1), schedule(0)).var
    np.testing.assert_allclose(var(-1.0), np.full((1, 2), 3e-5), rtol=32 * EPS)
    np.testing.assert_allclose(var(1.0), np.full((1, 2), 1e-4), rtol=1e-11)  # β_1 of the schedule


@given(
    times=st.lists(st.integers(1, 1000), min_size=3, max_size=3),
    arrays=strategies.normals((3, 4), 2),
)
def test_learned_range_per_sample(times, arrays):
    """Levels (B,), some of them clean data, give each sample what its own level gives it."""
    x, v = arrays
    times[1] = 1  # into clean data
    schedule = ddpm.linear()
    kernel = lambda v: ddpm.learned_range(network(v, schedule), kernels.decoder_variance(schedule))
    t, s = schedule(np.array(times)), schedule(np.array(times) - 1)
    together = kernel(v)(x, t, s)
    for i, time in enumerate(times):
        alone = kernel(v[i : i + 1])(x[i : i + 1], schedule(time), schedule(time - 1))
        np.testing.assert_allclose(together.var[i : i + 1], alone.var, rtol=128 * EPS)
        size = 64 * EPS * (1 + np.abs(x[i]).max()) / schedule(time).alpha
        np.testing.assert_allclose(together.mean[i : i + 1], alone.mean, rtol=0, atol=size)


def test_learned_range_needs_v():
    """A network without variance has no range to choose from."""
    schedule = ddpm.linear()
    for predict in (
        ddpm.Predictor(lambda x, time: x, schedule),
        ddpm.clip(ddpm.Predictor(lambda x, time: x, schedule)),
        ddpm.clip(lambda x, t: x),
    ):
        with pytest.raises(ValueError, match="this network returns no variance"):
            ddpm.learned_range(predict, 1.0)(np.ones((1, 2)), schedule(2), schedule(1))


class Guided:
    """A denoiser of one's own around another, with a method `both`."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, x_t, t, **cond):
        return self.both(x_t, t, **cond)[0]

    def both(self, x_t, t, **cond):
        x_0, v = self.inner.both(x_t, t, **cond)
        return 2 * x_0, v


def test_clip_passes_on_the_variance_of_any_denoiser():
    """clip(clip(P)) and clip(an object with `both`) have the v of the network."""
    schedule = ddpm.linear()
    x, t, s = np.ones((2, 3)), schedule(700), schedule(350)
    predict = network(0.3, schedule)
    wanted = ddpm.learned_range(predict, 1.0)(x, t, s).var
    for wrapped in (ddpm.clip(ddpm.clip(predict), -2, 2), ddpm.clip(Guided(predict), -2, 2)):
        assert np.all(wrapped.both(x, t)[0] == wrapped(x, t))
        np.testing.assert_array_equal(ddpm.learned_range(wrapped, 1.0)(x, t, s).var, wanted)


def test_learned_range_names_what_has_no_variance():
    """A function has no method `both`."""
    with pytest.raises(TypeError, match=r"a Predictor with variance=True, .* is a Python function"):
        ddpm.learned_range(lambda x, t: x, 1.0)


@given(x=strategies.normals((2, 3)), v=st.floats(-1, 1), time=st.integers(2, 1000))
def test_clip_keeps_v(x, v, time):
    """clip(predict) has the mean of the clipped x_0 and the variance of the network."""
    schedule = ddpm.linear()
    t, s = schedule(time), schedule(time - 1)
    predict = network(v, schedule)
    plain = ddpm.learned_range(predict, 1.0)(x, t, s)
    clipped = ddpm.learned_range(ddpm.clip(predict, -0.5, 0.25), 1.0)(x, t, s)
    np.testing.assert_array_equal(clipped.var, plain.var)
    x_0 = np.minimum(np.maximum(predict(x, t), -0.5), 0.25)
    np.testing.assert_array_equal(clipped.mean, ddpm.q_posterior(x_0, x, t, s).mean)


@given(betas=strategies.betas().filter(lambda b: len(b) > 1))
@example(betas=np.array([0.1, 0.2]))
def test_decoder_variance_is_that_of_the_step_before(betas):
    """β̃_2 = β_1 β_2 / (1 - ᾱ_2), with 1 - ᾱ_2 = β_1 + β_2 - β_1 β_2."""
    one, two = betas[:2]
    schedule = ddpm.from_betas(betas)
    lost = (1 + abs(schedule(1).logsnr) + abs(schedule(2).logsnr)) / ddpm.levels.tau(
        schedule(2), schedule(1)
    )
    assert kernels.decoder_variance(schedule) == pytest.approx(
        one * two / (one + two - one * two), rel=32 * EPS * lost, abs=0
    )


def test_decoder_variance_of_ho_et_al():
    """An RMSE of 0.95136 (Table 4) costs 1.975 bits, with the rate 3.75 in all (Table 1)."""
    sd = math.sqrt(kernels.decoder_variance(ddpm.linear(1000)))
    assert sd == pytest.approx(0.0073846, abs=5e-8)
    grey = 127.5 * sd
    assert grey == pytest.approx(0.94153, abs=5e-6)
    bits = 0.5 * math.log2(2 * math.pi * grey**2) + 0.95136**2 / (2 * grey**2) * math.log2(math.e)
    assert bits == pytest.approx(1.975, abs=5e-4)
    assert round(bits + 1.77581, 2) == 3.75


@pytest.mark.parametrize(
    "schedule", [ddpm.from_betas([0.1]), ddpm.VP(), schedules.LinearLogSNR()], ids=str
)
def test_decoder_variance_needs_a_second_step(schedule):
    """One step, or a continuous schedule, has no step from 2 to 1."""
    with pytest.raises(ValueError, match="has no step from 2 to 1: pass decoder_var"):
        kernels.decoder_variance(schedule)


@pytest.mark.parametrize("shape", [(2,), (3,), (2, 3), (1, 2, 2)])
@pytest.mark.parametrize("B", [1, 2, 3])
def test_optimal_errors_are_per_coordinate_never_per_sample(shape, B):
    """As many coordinates as samples, fewer or more, of vectors or images: the exact kernel."""
    rng = np.random.default_rng(B)
    oracle = ddpm.GaussianOracle(rng.standard_normal(shape), np.exp(rng.uniform(-3, 3, shape)))
    kernel = ddpm.reverse(oracle, ddpm.optimal(oracle.error))
    x, schedule = rng.standard_normal((B, *shape)), ddpm.linear()
    assert oracle.error(schedule(500)).shape == shape
    assert oracle.error(schedule(np.arange(1, 5))).shape == (4, *shape)
    times = np.arange(B) + 500
    for t, s in ((schedule(500), schedule(250)), (schedule(times), schedule(times // 2))):
        divergence = ddpm.kl(oracle.reverse(x, t, s), kernel(x, t, s))
        np.testing.assert_allclose(divergence, np.zeros(B), rtol=0, atol=1e-12)


def test_optimal_errors_of_a_level_per_sample():
    """Per-coordinate errors (B, *D) at levels (B,) give each sample the variance it has alone."""
    schedule = ddpm.linear()
    oracle = ddpm.GaussianOracle(np.zeros(3), np.array([0.1, 1.0, 9.0]))
    kernel = ddpm.reverse(lambda x, t: x, ddpm.optimal(oracle.error))
    for times in ([500, 100, 2], [500, 100]):  # as many samples as coordinates, and fewer
        x, earlier = np.ones((len(times), 3)), np.array(times) // 2
        var = kernel(x, schedule(np.array(times)), schedule(earlier)).var
        for i, (time, before) in enumerate(zip(times, earlier, strict=True)):
            alone = kernel(x[:1], schedule(time), schedule(int(before))).var
            np.testing.assert_allclose(var[i : i + 1], alone, rtol=64 * EPS)


def test_optimal_of_one_error_is_one_variance(lib):
    """An error that is an array of no axes gives a variance of none, at a level of the host."""
    t, s = ddpm.linear()(500), ddpm.linear()(250)
    assert ddpm.optimal(lambda t: lib.asarray(np.float32(0.25)))(t, s).shape == ()


def test_optimal_takes_the_error_of_a_torch_batch():
    """An error per coordinate is of the host, and meets x of another library."""
    torch = pytest.importorskip("torch")
    oracle = ddpm.GaussianOracle(np.zeros(2), np.array([0.01, 4.0]))
    x, t, s = np.ones((2, 2), np.float32), ddpm.linear()(500), ddpm.linear()(250)
    kernel = ddpm.reverse(oracle, ddpm.optimal(oracle.error))
    z = np.float32([[1, -1], [0.5, 2]])
    drawn = kernel(torch.asarray(x), t, s).reparameterise(torch.asarray(z))
    wanted = oracle.reverse_sample(x, z, t, s)
    np.testing.assert_allclose(drawn, wanted, rtol=0, atol=1e-6)
