"""The bound's weight and its terms, against Ho et al.'s forms and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from array_api_extra.testing import lazy_xp_function
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import ddpm_core as ddpm
from ddpm_core import losses
from ddpm_core.levels import from_logsnr
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
LINEAR = ddpm.linear()

long_betas = strategies.betas().filter(lambda b: len(b) > 1)


def steps(data, schedule, first=1):
    """A step t, s = t - 1, and how far the rounding of log-SNR goes in its τ, in units of EPS.

    log-SNR is log ᾱ - log(1 - ᾱ): what is rounded is the two, 2 log 2 where their difference is 0.
    """
    i = data.draw(st.integers(first, schedule.T))
    t, s = schedule(i), schedule(i - 1)
    sizes = [abs(level.logsnr) + 2 * math.log(2) for level in (t, s)]
    lost = 1 + sum(sizes) / ddpm.levels.tau(t, s) if i > 1 else 1 + abs(t.logsnr)
    return t, s, lost


def squares(x):
    return (x.reshape(len(x), -1) ** 2).sum(1)


@given(betas=long_betas, data=st.data())
def test_weight_of_kingma_et_al(betas, data):
    """(α_s τ)² / (2 β̃) = (SNR_s - SNR_t) / 2, of s = t - 1 (Kingma et al. 2021, Eq. 13)."""
    schedule = ddpm.from_betas(betas)
    t, _, lost = steps(data, schedule, first=2)
    log_abar = np.cumsum(np.log1p(-betas))
    i = int(t.time)
    snr = -np.exp(log_abar) / np.expm1(log_abar)
    wanted = (snr[i - 2] - snr[i - 1]) / 2
    assert losses.vlb(schedule)(t) == pytest.approx(wanted, rel=32 * EPS * lost, abs=0)


@given(betas=long_betas, data=st.data())
def test_weight_is_eq_12(betas, data):
    """β² / (2 σ_t² α_t (1 - ᾱ_t)) of eps (Ho et al. 2020, Eq. 12), times SNR for x_0."""
    schedule = ddpm.from_betas(betas)
    t, _, lost = steps(data, schedule)
    i = int(t.time)
    log_abar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    noise, beta = -np.expm1(log_abar), betas[i - 1]
    tilde = noise[i - 1] / noise[i] * beta
    last = noise[1] / noise[2] * betas[1]
    for variance, sigma2 in ((ddpm.small, tilde), (ddpm.large, beta)):
        sigma2 = sigma2 if i > 1 else last
        eq_12 = beta**2 / (2 * sigma2 * (1 - beta) * noise[i])
        wanted = eq_12 * np.exp(log_abar[i]) / noise[i]
        two = ddpm.levels.tau(schedule(2), schedule(1))
        also = (abs(schedule(1).logsnr) + abs(schedule(2).logsnr)) / two if i == 1 else 0
        actual = losses.vlb(schedule, variance)(t)
        assert actual == pytest.approx(wanted, rel=64 * EPS * (lost + also), abs=0)


def test_weight_per_sample():
    """Levels (B,), at time 1 as well, have the weights of each on its own."""
    times = np.array([1, 2, 500, 1000])
    for weight in (losses.vlb(LINEAR), losses.vlb(LINEAR, ddpm.large, 3e-5)):
        each = [weight(LINEAR(int(time))) for time in times]
        np.testing.assert_allclose(weight(LINEAR(times)), each, rtol=64 * EPS * 1e3)


def test_weight_is_of_integer_times():
    """A continuous schedule has no t - 1; a schedule of one step has no decoder_variance."""
    with pytest.raises(TypeError, match=r"vlb needs a schedule of integer times, .* got a VP"):
        losses.vlb(ddpm.VP())
    one = ddpm.from_betas([0.1])
    with pytest.raises(ValueError, match="pass decoder_var"):
        losses.vlb(one)
    assert losses.vlb(one, decoder_var=0.25)(one(1)) == 2.0  # 1 / (2 decoder_var)


@pytest.mark.parametrize("variance", [ddpm.small, ddpm.large], ids=["small", "large"])
@given(betas=long_betas, data=st.data(), arrays=strategies.normals((2, 2, 3), count=3))
def test_term_is_the_weighted_loss(variance, betas, data, arrays):
    """L_{t-1} = D vlb(t) mean (x_0 - x̂_0)² + (D / 2) (log(v / β̃) + β̃ / v - 1) (Ho, Eq. 8)."""
    x_0, eps, said = arrays
    schedule = ddpm.from_betas(betas)
    t, s, _ = steps(data, schedule, first=2)
    denoise = lambda x_t, t: said
    actual = losses.bound(ddpm.reverse(denoise, variance), x_0, eps, t, s)
    error = 6 * ddpm.loss(denoise, x_0, eps, t, losses.vlb(schedule, variance))
    v, tilde = variance(t, s), ddpm.small(t, s)
    wanted = error + 3 * (math.log(v / tilde) + tilde / v - 1)
    # Two means that lie near x_s cancel, to e of a standard deviation; a square then moves by
    # 2 e sqrt(square) + e². The constant is of logs of numbers down to 1e-12.
    e = 16 * EPS * (np.abs(x_0).max() + np.abs(said).max() + np.abs(eps).max()) / math.sqrt(2 * v)
    e *= 1 + t.alpha / s.alpha
    atol = 2 * e * np.sqrt(6 * error) + 6 * e**2 + 256 * EPS * (1 + abs(math.log(tilde)))
    assert np.all(np.abs(actual - wanted) <= atol + 256 * EPS * wanted)


@given(betas=long_betas, arrays=strategies.normals((2, 2, 3), count=3), log_v=st.floats(-9, 2))
def test_last_term_as_a_density(betas, arrays, log_v):
    """L_0 = D vlb(1) mean (x_0 - x̂_0)² + (D / 2) log 2π v, of the density of x_0."""
    x_0, eps, said = arrays
    schedule, v = ddpm.from_betas(betas), math.exp(log_v)
    t, s = schedule(1), schedule(0)
    denoise = lambda x_t, t: said
    kernel = ddpm.reverse(denoise, ddpm.large)
    actual = losses.bound(kernel, x_0, eps, t, s, bins=None, decoder_var=v)
    wanted = 6 * ddpm.loss(denoise, x_0, eps, t, losses.vlb(schedule, decoder_var=v))
    np.testing.assert_allclose(
        actual, wanted + 3 * math.log(2 * math.pi * v), rtol=64 * EPS, atol=256 * EPS
    )


@given(log_sd=st.floats(-7, 0), seed=st.integers(0, 99), bins=st.sampled_from([2, 16, 256]))
def test_last_term_on_grey_values(log_sd, seed, bins):
    """L_0 = -Σ log of the mass that N(x̂_0, v) has in the bin of x_0, by SciPy's Φ."""
    rng = np.random.default_rng(seed)
    sd, h = math.exp(log_sd), 1 / (bins - 1)
    x_0 = 2 * rng.integers(0, bins, (3, 4)) * h - 1
    said = x_0 + sd * rng.uniform(-2, 2, x_0.shape)
    t, s = LINEAR(1), LINEAR(0)
    options = {"decoder_var": sd**2} | ({} if bins == 256 else {"bins": bins})
    actual = losses.bound(ddpm.reverse(lambda x_t, t: said), x_0, 0 * x_0, t, s, **options)
    above, below = ((x_0 + d - said) / sd for d in (h, -h))
    above[x_0 > 1 - h], below[x_0 < h - 1] = np.inf, -np.inf
    flip = above + below > 0
    above, below = np.where(flip, -below, above), np.where(flip, -above, below)
    mass = stats.norm.cdf(above) - stats.norm.cdf(below)
    # z rounds by EPS |x| / sd and Φ by as much; -log of a mass P takes that by 1 / P.
    lost = ((1 + 2 / sd) / mass).sum(1)
    assert np.all(np.abs(actual + np.log(mass).sum(1)) <= 8 * EPS * lost)


def test_a_point_has_no_density():
    """`reverse` lands on a point at clean data: its L_0 needs a decoder_var."""
    x = np.zeros((1, 2))
    for variance in (ddpm.small, ddpm.large):
        kernel = ddpm.reverse(lambda x_t, t: x_t, variance)
        with pytest.raises(ValueError, match=r"a point, without a density: pass decoder_var"):
            losses.bound(kernel, x, x, LINEAR(1), LINEAR(0))


HOST = {
    "int64": np.int64,
    "float64": np.float64,
    "0-d": np.array,
    "(1,)": lambda time: np.array([time]),
    "(B,)": lambda time: np.array([time] * 3),
}


@pytest.mark.parametrize("variance", [ddpm.small, ddpm.large], ids=["small", "large"])
@pytest.mark.parametrize("form", HOST)
def test_bound_in_any_form_of_host_level(form, variance):
    """NumPy scalars, arrays () and arrays (B,) of times say the same as Python's numbers."""
    x_0 = 2 * np.random.default_rng(0).integers(0, 256, (3, 2)) / 255 - 1
    kernel, made = ddpm.reverse(lambda x_t, t: 0.9 * x_t, variance), HOST[form]
    for time in (1, 2):
        t, s = LINEAR(made(time)), LINEAR(made(time - 1))
        actual = losses.bound(kernel, x_0, 0.1 * x_0, t, s, decoder_var=1e-3)
        t, s = LINEAR(time), LINEAR(time - 1)
        wanted = losses.bound(kernel, x_0, 0.1 * x_0, t, s, decoder_var=1e-3)
        np.testing.assert_allclose(actual, wanted, rtol=1e5 * EPS)  # τ keeps EPS |log-SNR| / τ
    with pytest.raises(ValueError, match=r"a point, without a density: pass decoder_var"):
        losses.bound(kernel, x_0, x_0, LINEAR(made(1)), LINEAR(made(0)))


@pytest.mark.parametrize("made", [int, np.int64, np.array], ids=["int", "int64", "0-d"])
def test_a_kernel_with_a_decoder_keeps_it(made):
    """A kernel whose own variance is a positive number at clean data needs no decoder_var."""
    x_0 = np.full((3, 2), 1 / 255)
    kernel = lambda x_t, t, s: ddpm.Gaussian(x_t, 0.01)
    actual = losses.bound(kernel, x_0, 0 * x_0, LINEAR(made(1)), LINEAR(made(0)), bins=None)
    wanted = -stats.norm.logpdf(x_0, LINEAR(1).alpha * x_0, 0.1).sum(1)
    np.testing.assert_allclose(actual, wanted, rtol=1e-12)


def test_exact_kernel_of_a_point():
    """Data that is one point has L_{t-1} = 0 under its own denoiser, with `small`."""
    x_0 = np.array([[1.0, -0.5, 0.25]])
    eps = np.random.default_rng(0).standard_normal(x_0.shape)
    kernel = ddpm.reverse(ddpm.DatasetOracle(x_0))
    for time in (2, 30, 1000):
        assert losses.bound(kernel, x_0, eps, LINEAR(time), LINEAR(time - 1))[0] <= 64 * EPS


def learned(torch):
    """A network that says eps and v, on torch or NumPy alike."""

    def net(x, time):
        on_time = (time / 1000).reshape(-1, 1, 1)
        parts = [0.9 * x * on_time**0.5 + 0.1, 0.3 * x - on_time]
        return np.concatenate(parts, 1) if isinstance(x, np.ndarray) else torch.cat(parts, 1)

    return ddpm.Predictor(net, LINEAR, variance=True)


def kernels(torch):
    var = ddpm.kernels.decoder_variance(LINEAR)
    predict = learned(torch)
    return {
        "learned": (ddpm.learned_range(predict, var), None),
        "small": (ddpm.reverse(predict), var),
        "large": (ddpm.reverse(predict, ddpm.large), var),
    }


TIMES = np.array([1, 700, 2, 1, 31])


@pytest.mark.parametrize("bins", [None, 256])
@pytest.mark.parametrize("name", ["learned", "small", "large"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_bound_per_sample(where, name, bins):
    """Levels (B,), clean data among them, of host or device: each sample's own term; finite ∂."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x_0 = 2 * rng.integers(0, 256, (5, 2, 3)) / 255 - 1
    eps = rng.standard_normal(x_0.shape)
    kernel, var = kernels(torch)[name]
    each = [
        losses.bound(
            kernel, x_0[i : i + 1], eps[i : i + 1], LINEAR(int(time)), LINEAR(int(time) - 1),
            bins=bins, decoder_var=var,
        )[0]
        for i, time in enumerate(TIMES)
    ]  # fmt: skip
    x, z = torch.tensor(x_0, requires_grad=True), torch.tensor(eps, requires_grad=True)
    times = torch.asarray(TIMES, dtype=torch.float64) if where == "device" else TIMES
    actual = losses.bound(
        kernel, x, z, LINEAR(times), LINEAR(times - 1), bins=bins, decoder_var=var
    )
    # τ of neighbours keeps EPS |log-SNR| / τ, and x_0 from eps is 12 times that at time 700.
    np.testing.assert_allclose(actual.detach().numpy(), each, rtol=1e5 * EPS)
    for wrt in torch.autograd.grad(actual.sum(), (x, z)):
        assert torch.isfinite(wrt).all()


@pytest.mark.parametrize("bins", [None, 256])
def test_gradient_per_sample(bins):
    """The gradient of terms together is that of each alone: no sample sees the other's branch."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x_0 = torch.tensor(2 * rng.integers(0, 256, (5, 2, 3)) / 255 - 1)
    eps = torch.tensor(rng.standard_normal((5, 2, 3)))
    raw = torch.tensor(rng.standard_normal((5, 4, 3)), requires_grad=True)

    def kernel(rows):
        predict = ddpm.Predictor(lambda *_: raw[rows], LINEAR, variance=True)
        return ddpm.learned_range(predict, ddpm.kernels.decoder_variance(LINEAR))

    times = torch.asarray(TIMES, dtype=torch.float64)
    together = losses.bound(
        kernel(slice(None)), x_0, eps, LINEAR(times), LINEAR(times - 1), bins=bins
    )
    (actual,) = torch.autograd.grad(together.sum(), raw)
    for i, time in enumerate(TIMES.tolist()):
        row = slice(i, i + 1)
        alone = losses.bound(
            kernel(row), x_0[row], eps[row], LINEAR(time), LINEAR(time - 1), bins=bins
        )
        (wanted,) = torch.autograd.grad(alone.sum(), raw)
        torch.testing.assert_close(actual[row], wanted[row], rtol=1e5 * EPS, atol=1e5 * EPS)


def term_of(x, eps, t, s):
    """A term of the bound, of levels per sample, some of them clean data."""
    kernel = ddpm.reverse(lambda x_t, t: 0.5 * x_t, ddpm.large)
    return losses.bound(kernel, x, eps, t, s, decoder_var=0.01)


def run(case, *args):
    """What `lazy_xp_function` sees: under JAX this call is jitted, under dask it is lazy."""
    return case(*args)


lazy_xp_function(run)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bound_on_every_library(lib, dtype, on_device):
    """A term of any library is that of NumPy in float64, to c eps."""
    if dtype == "float64" and lib.name == "mlx":
        pytest.skip("MLX has no float64 on its devices")
    rng = np.random.default_rng(0)
    x = (2 * rng.integers(0, 256, (3, 2, 2)) / 255 - 1).astype(np.float32)
    eps = rng.standard_normal(x.shape).astype(np.float32)
    levels = LINEAR(np.array([700, 100, 1])), LINEAR(np.array([350, 20, 0]))
    expected = term_of(x.astype(np.float64), eps.astype(np.float64), *levels)
    with lib.precision(dtype):
        wanted = getattr(lib.xp, dtype)
        there = [lib.level(t, wanted) for t in levels] if on_device else levels
        actual = run(term_of, lib.asarray(x, wanted), lib.asarray(eps, wanted), *there)
        assert actual.dtype == wanted
        if lib.has_values:
            # τ of neighbours from levels in this dtype keeps eps |log-SNR| / τ, 1e3 eps.
            rtol = 1e3 * float(lib.xp.finfo(wanted).eps)
            np.testing.assert_allclose(lib.to_numpy(actual), expected, rtol=rtol)


@given(logsnr=st.floats(-8, 8), gap=st.floats(0.01, 5), c=st.floats(0.01, 4), m=st.floats(-1, 1))
def test_mean_term_of_gaussian_data(logsnr, gap, c, m):
    """E L_{t-1} = ½ log(Σ / β̃), Σ = β̃ + (α_s τ)² Var[x_0 | x_t], at the best mean and variance."""
    t, s = from_logsnr(logsnr, 1.0), from_logsnr(logsnr + gap, 0.0)
    oracle = ddpm.GaussianOracle([m], c)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    a, b = (grid.reshape(-1, 1) for grid in np.meshgrid(nodes, nodes))
    share = np.outer(weights, weights).ravel() / (2 * np.pi)
    kernel = ddpm.reverse(oracle, ddpm.optimal(lambda t: oracle.error(t).mean(-1)))
    actual = share @ losses.bound(kernel, m + np.sqrt(c) * a, b, t, s)
    exact = oracle.reverse(np.zeros((1, 1)), t, s).var[0, 0]
    wanted = 0.5 * math.log(exact / ddpm.small(t, s))
    lost = (1 + np.sqrt(c) * 2) * (1 + t.alpha / s.alpha) / math.sqrt(ddpm.small(t, s))
    assert abs(actual - wanted) <= 256 * EPS * (1 + abs(logsnr) + gap + lost)


@pytest.mark.parametrize("variance", [ddpm.small, ddpm.large])
def test_a_fixed_variance_decodes_no_sample_of_a_batch(variance):
    """Levels (B,) of the host with clean data among them need decoder_var, as one level does."""
    schedule = ddpm.linear()
    x_0 = np.zeros((2, 1))
    t, s = schedule(np.array([1, 2])), schedule(np.array([0, 1]))
    kernel = ddpm.reverse(lambda x, t: x, variance)
    with pytest.raises(ValueError, match="pass decoder_var"):
        losses.bound(kernel, x_0, x_0 + 0.1, t, s)
    var = ddpm.kernels.decoder_variance(schedule)
    both = losses.bound(kernel, x_0, x_0 + 0.1, t, s, decoder_var=var)
    for i in range(2):
        alone = losses.bound(
            kernel, x_0[:1], x_0[:1] + 0.1, schedule(i + 1), schedule(i), decoder_var=var
        )
        np.testing.assert_allclose(both[i], alone[0], rtol=1e-12)
