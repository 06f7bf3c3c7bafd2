"""The discretised decoder, against SciPy's tails, Mills' ratio and Ho et al.'s code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from array_api_extra.testing import lazy_xp_function
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from ddpm_core import Gaussian
from ddpm_core.gaussians import _scaled_upper_tail, discretised_log_prob

EPS = np.finfo(np.float64).eps

all_bins = st.sampled_from([2, 3, 17, 256])
means = st.floats(-2, 2)
log_sds = st.floats(math.log(1e-3), math.log(3))


def centres(bins):
    """The grey values, scaled to [-1, 1]: (bins, 1), a batch of samples of one coordinate."""
    return (2 * np.arange(bins) / (bins - 1) - 1)[:, None]


def log_masses(mean, sd, bins):
    """Of every bin, under one Gaussian: (bins,)."""
    x = centres(bins)
    return discretised_log_prob(Gaussian(np.full_like(x, mean), sd**2), x, bins)


def edges(x, mean, sd, bins):
    """The standardised edges of the bins of x, flipped so that more of the bin is below 0."""
    h = 1 / (bins - 1)
    below = np.where(x < h - 1, -np.inf, (x - h - mean) / sd)
    above = np.where(x > 1 - h, np.inf, (x + h - mean) / sd)
    flip = below + above > 0
    return np.where(flip, -above, below), np.where(flip, -below, above), flip


def reference(x, mean, sd, bins):
    """log(Φ(b) - Φ(a)) by SciPy's log Φ, and how far its rounding and that of the edges goes."""
    a, b, _ = edges(x, mean, sd, bins)
    log_a, log_b = special.log_ndtr(a), special.log_ndtr(b)
    with np.errstate(divide="ignore"):
        value = log_b + np.log1p(-np.exp(log_a - log_b))
    lost = (np.abs(x) + np.abs(mean) + 1) / sd * (1 + np.abs(b))  # z moves by EPS |x| / sd
    with np.errstate(over="ignore"):
        share = np.exp(np.minimum(log_b - value, 700))  # Φ(b) of which a mass P is left
    return value, (1 + np.abs(log_b) + lost) * share


@given(z=st.one_of(st.floats(0, 1e6), st.floats(0, 60)))
def test_scaled_upper_tail_is_erfcx(z):
    """exp(z² / 2) (1 - Φ(z)) = erfcx(z / sqrt(2)) / 2, by SciPy, either sign of z."""
    wanted = 0.5 * special.erfcx(z / math.sqrt(2))
    for signed in (z, -z):
        actual = _scaled_upper_tail(np, np.array([signed]))[0]
        assert actual == pytest.approx(wanted, rel=1e-14, abs=0)


def test_scaled_upper_tail_where_its_terms_change():
    """No jump where the pole's share of the midpoint rule is left out, nor at 0 or far out."""
    seam = 2 * math.pi * math.sqrt(2)  # y = period / 2
    near, around = np.linspace(seam - 1e-6, seam + 1e-6, 201), np.linspace(0, 2 * seam, 401)
    z = np.concatenate([near, around, np.logspace(-12, 6, 500)])
    wanted = 0.5 * special.erfcx(z / math.sqrt(2))
    np.testing.assert_allclose(_scaled_upper_tail(np, z), wanted, rtol=16 * EPS)
    # The share that is left out, 7e-18 at the seam, would be 3 EPS of the tail at four times that.
    far = np.linspace(3.8 * seam, 4 * seam, 2000)
    wanted = 0.5 * special.erfcx(far / math.sqrt(2))
    assert abs(np.mean(_scaled_upper_tail(np, far) / wanted - 1)) < EPS  # its roundings cancel


@given(mean=means, log_sd=log_sds, bins=st.sampled_from([2, 17, 256]))
def test_masses_sum_to_one(mean, log_sd, bins):
    """Σ_k P(k) = 1, the mean within [-1, 1] or not: the outer bins reach to infinity."""
    assert abs(np.exp(log_masses(mean, math.exp(log_sd), bins)).sum() - 1) <= 1e-12


@given(mean=means, log_sd=log_sds, bins=all_bins)
def test_mass_is_a_difference_of_cdfs(mean, log_sd, bins):
    """P(k) = Φ((x + h - mean) / sd) - Φ((x - h - mean) / sd) (Ho et al. 2020, Eq. 13), by SciPy."""
    x, sd, h = centres(bins)[:, 0], math.exp(log_sd), 1 / (bins - 1)
    above, below = (stats.norm.cdf(x + d, mean, sd) for d in (h, -h))
    above[-1], below[0] = 1.0, 0.0
    # Absolute: the difference keeps no small mass. z rounds by EPS |x| / sd, the density is 0.4.
    atol = 8 * EPS * (1 + (1 + abs(mean)) / sd)
    np.testing.assert_allclose(
        np.exp(log_masses(mean, sd, bins)), above - below, rtol=16 * EPS, atol=atol
    )


@given(mean=st.floats(-100, 100), log_sd=st.floats(math.log(1e-4), math.log(3)), bins=all_bins)
def test_log_mass_far_out(mean, log_sd, bins):
    """log P = log Φ(b) + log(1 - Φ(a) / Φ(b)), by SciPy's log Φ, down to log P = -1e12."""
    sd = math.exp(log_sd)
    wanted, lost = reference(centres(bins)[:, 0], mean, sd, bins)
    actual = log_masses(mean, sd, bins)
    assert np.all(np.abs(actual - wanted) <= 16 * EPS * lost + 16 * EPS * np.abs(wanted))


@given(mean=means, log_sd=log_sds, bins=all_bins)
def test_mirror(mean, log_sd, bins):
    """P(k | mean) = P(L - 1 - k | -mean)."""
    sd = math.exp(log_sd)
    here, there = log_masses(mean, sd, bins), log_masses(-mean, sd, bins)[::-1]
    x = np.abs(centres(bins)[:, 0])
    _, lost = reference(x, abs(mean), sd, bins)
    _, lost_there = reference(-x, abs(mean), sd, bins)
    atol = 16 * EPS * (np.maximum(lost, lost_there) + np.abs(here))
    assert np.all(np.abs(here - there) <= atol)


@given(mean=means, log_sd=log_sds, bins=all_bins)
def test_near_the_code_of_ho_et_al(mean, log_sd, bins):
    """Their code takes Φ(z) for ½ (1 + tanh(sqrt(2 / π) (z + 0.044715 z³))): 1.8e-4 off."""
    x, sd, h = centres(bins)[:, 0], math.exp(log_sd), 1 / (bins - 1)
    cdf = lambda z: 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    above, below = cdf((x + h - mean) / sd), cdf((x - h - mean) / sd)
    above[-1], below[0] = 1.0, 0.0
    gap = np.abs(np.exp(log_masses(mean, sd, bins)) - (above - below)).max()
    assert gap <= 1.8e-4 * (1 if bins == 2 else 2)  # at z = ±2.6; an inner bin has two edges


@given(
    mean=st.floats(-1.5, 1.5),
    log_vars=st.lists(st.floats(-12, 1), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_variance_per_sample_and_per_coordinate(mean, log_vars, seed):
    """A variance (B,), or of mean's shape, is that of each number on its own; samples are sums."""
    rng = np.random.default_rng(seed)
    x = rng.choice(centres(256)[:, 0], (2, 2, 3))
    m, var = np.full_like(x, mean), np.exp(log_vars)
    each = np.exp(rng.uniform(-12, 1, x.shape))
    alone = lambda v: np.array(
        [
            [discretised_log_prob(Gaussian(np.full((1, 1), mean), c), np.full((1, 1), a))[0]]
            for a, c in zip(x.ravel(), np.broadcast_to(v, x.shape).ravel(), strict=True)
        ]
    )
    for given_var, typed in ((var, var[:, None, None]), (each, each), (each[:1], each[:1])):
        expected = alone(typed).reshape(2, 6).sum(1)
        actual = discretised_log_prob(Gaussian(m, given_var), x)
        np.testing.assert_allclose(actual, expected, rtol=16 * EPS)


def test_needs_two_bins():
    """One grey value has no width h = 1 / (bins - 1)."""
    x = np.zeros((1, 1))
    for bins in (1, 0):
        with pytest.raises(ValueError, match=f"bins must be at least 2, but is {bins}"):
            discretised_log_prob(Gaussian(x, 1.0), x, bins)


# Gradients. -------------------------------------------------------------------------------------


def gradients(x, mean, sd, dtype, bins=256):
    """∂ log P / ∂ mean and ∂ / ∂ var, by torch, of each of x (n,)."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    m = torch.full((len(x), 1), mean, dtype=kind, requires_grad=True)
    var = torch.full((len(x), 1), sd**2, dtype=kind, requires_grad=True)
    value = discretised_log_prob(Gaussian(m, var), torch.asarray(x[:, None], dtype=kind), bins)
    value.sum().backward()
    return (a.numpy().astype(np.float64)[:, 0] for a in (value.detach()[:, None], m.grad, var.grad))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sd", [1e-4, 1e-3, 0.03, 1.0, 3.0])
@pytest.mark.parametrize("mean", [-100.0, -2.0, -1.0, -0.3, 0.0, 0.5, 1.0, 1.7, 100.0])
def test_gradients_far_out(dtype, sd, mean):
    """Finite wherever the mean is; far out, Mills: ∂_mean = ±z / sd, ∂_var = (z² + 1) / 2 var."""
    x = centres(256)[:, 0]
    value, on_mean, on_var = gradients(x, mean, sd, dtype)
    assert np.isfinite([value, on_mean, on_var]).all()
    _, b, flip = edges(x, mean, sd, 256)
    # Where one edge is z > 100 away, and the other so much more that its tail is nothing.
    far = (b < -100) & (2 / 255 / sd * -b > 60)
    assert far.any() or sd > 0.01
    z = -b[far]
    # z² moves by 2 z EPS (|x| + |mean|) / sd.
    rtol = 2 / z**2 + 32 * float(np.finfo(dtype).eps) * (1 + (1 + abs(mean)) / sd / z)
    towards = np.where(flip[far], 1.0, -1.0)
    assert np.all(np.abs(on_mean[far] * sd / (towards * z) - 1) <= rtol)
    assert np.all(np.abs(on_var[far] * 2 * sd**2 / (z**2 + 1) - 1) <= 2 * rtol)


@given(mean=st.floats(-1.2, 1.2), log_sd=st.floats(math.log(0.01), 0), k=st.integers(0, 255))
def test_gradients_are_central_differences(mean, log_sd, k):
    """∂ log P of float64 = [log P(· + d) - log P(· - d)] / 2d, within a few sd of the mean."""
    sd, x = math.exp(log_sd), centres(256)[k : k + 1]
    value, on_mean, on_var = (float(a[0]) for a in gradients(x[:, 0], mean, sd, "float64"))
    f = lambda m, v: float(discretised_log_prob(Gaussian(np.full((1, 1), m), v), x)[0])
    var, step = sd**2, 1e-4
    by_mean = (f(mean + step * sd, var) - f(mean - step * sd, var)) / (2 * step * sd)
    by_var = (f(mean, var * (1 + step)) - f(mean, var * (1 - step))) / (2 * step * var)
    z = 1 + abs(x[0, 0] - mean) / sd + 1 / 255 / sd
    # step² of a third derivative, and the value's rounding over the step.
    _, lost = reference(x[:, 0], mean, sd, 256)
    relative = 8 * step**2 * z**3 + 64 * EPS * (lost[0] + abs(value)) / step
    assert abs(on_mean - by_mean) * sd <= relative
    assert abs(on_var - by_var) * var <= relative * z


# Lanes. -----------------------------------------------------------------------------------------


def run(mean, var, x, bins):
    """What `lazy_xp_function` sees: under JAX this call is jitted, under dask it is lazy."""
    return discretised_log_prob(Gaussian(mean, var), x, bins)


lazy_xp_function(run)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bins", [2, 256])
@pytest.mark.parametrize("kind", ["one", "per sample", "per coordinate"])
def test_every_library(lib, dtype, bins, kind):
    """log P of any library = that of NumPy in float64, to c eps of how far it amplifies z."""
    if dtype == "float64" and lib.name == "mlx":
        pytest.skip("MLX has no float64 on its devices")
    rng = np.random.default_rng(bins)
    x = rng.choice(centres(bins)[:, 0], (4, 3, 2)).astype(np.float32)
    mean = (x + rng.normal(0, [[[0.01]], [[0.3]], [[3.0]], [[0.0]]], x.shape)).astype(np.float32)
    size = {"one": (), "per sample": (4,), "per coordinate": x.shape}[kind]
    var = np.exp(rng.uniform(-8, 0, size)).astype(np.float32)
    wide = [a.astype(np.float64) for a in (mean, var, x)]
    expected = discretised_log_prob(Gaussian(wide[0], wide[1]), wide[2], bins)
    sd = np.sqrt(wide[1]).reshape((-1, 1, 1) if kind == "per sample" else size)
    value, lost = reference(wide[2], wide[0], sd, bins)
    with lib.precision(dtype):
        wanted = getattr(lib.xp, dtype)
        there = float(var) if kind == "one" else lib.asarray(var, wanted)
        actual = run(lib.asarray(mean, wanted), there, lib.asarray(x, wanted), bins)
        assert actual.dtype == wanted
        assert tuple(actual.shape) == (4,)
        if lib.has_values:
            eps = float(lib.xp.finfo(wanted).eps)
            atol = 8 * eps * (lost + np.abs(value)).sum((1, 2))
            assert np.all(np.abs(lib.to_numpy(actual) - expected) <= atol)


def test_half_precision_is_computed_in_float32():
    """bfloat16 goes in and comes out; the edges of 256 bins, which it has not, are float32."""
    torch = pytest.importorskip("torch")
    k = np.array([3, 64, 192, 250])
    x = torch.asarray(centres(256)[k], dtype=torch.bfloat16)
    mean = (x.float() + 0.01).to(torch.bfloat16)
    actual = discretised_log_prob(Gaussian(mean, 0.01), x)
    wide = [a.double().numpy() for a in (mean, x)]
    assert actual.dtype == torch.bfloat16
    np.testing.assert_allclose(
        actual.float().numpy(),
        discretised_log_prob(Gaussian(wide[0], 0.01), wide[1]),
        rtol=torch.finfo(torch.bfloat16).eps,
    )
