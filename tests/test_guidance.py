"""Guidance: each method against its limits, the paper's own form, or an exact posterior."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core.arrays import fit
from ddpm_core.guidance import (
    cfg_pp,
    classifier,
    classifier_free,
    dynamic_threshold,
    guided,
    projected,
    within,
)
from ddpm_core.levels import from_logsnr
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
LINEAR = ddpm.linear()
T = LINEAR(500)

logsnrs = st.floats(-6, 6)
scales = st.floats(-2, 8)
shaped = strategies.shapes().filter(lambda shape: shape[0] > 0)


def constant(x_0, calls=None):
    """A denoiser that says x_0 whatever it sees, and counts its calls."""

    def denoise(x_t, t, **cond):
        if calls is not None:
            calls.append(t)
        return x_0

    return denoise


class Learned:
    """A denoiser with a learned variance, whose v is its own."""

    def __init__(self, gain, v):
        self.gain, self.v = gain, v

    def __call__(self, x_t, t, **cond):
        return self.both(x_t, t, **cond)[0]

    def both(self, x_t, t, **cond):
        return self.gain * x_t, self.v + 0 * x_t


# Classifier-free. -------------------------------------------------------------------------------


@given(arrays=strategies.normals(shaped, count=3), w=scales, logsnr=logsnrs)
def test_guided_is_ho_and_salimans(arrays, w, logsnr):
    """eps = (1 + w) eps_c - w eps_∅, the scale being 1 + w (Ho & Salimans 2022, Eq. 6)."""
    x_t, x_c, x_0 = arrays
    t = from_logsnr(logsnr, 0.0)
    eps_c, eps_0 = ((x_t - t.alpha * x) / t.sigma for x in (x_c, x_0))
    eps = (1 + w) * eps_c - w * eps_0
    found = guided(constant(x_c), constant(x_0), 1 + w)(x_t, t)
    size = (1 + abs(w)) * (np.abs(arrays).max() + 1) * (1 + t.sigma / t.alpha) / t.alpha
    np.testing.assert_allclose(
        found, (x_t - t.sigma * eps) / t.alpha, rtol=0, atol=32 * EPS * size / t.sigma
    )


@pytest.mark.parametrize(("scale", "called"), [(1, "c"), (0, "u"), (1.5, "cu")])
@pytest.mark.parametrize("of", [float, np.float32, lambda w: lambda t: w], ids=["", "32", "f"])
def test_scale_1_and_0_call_one_network(scale, called, of):
    """1 is the conditional denoiser and 0 the other, to the bit, and the second is not called."""
    x_t, x_c, x_u = np.random.default_rng(0).standard_normal((3, 2, 3))
    calls = {"c": [], "u": []}
    denoise = guided(constant(x_c, calls["c"]), constant(x_u, calls["u"]), of(scale))
    found = denoise(x_t, T)
    assert "".join(name for name in calls for _ in calls[name]) == called
    if scale in (0, 1):
        np.testing.assert_array_equal(found, x_c if scale else x_u)


@given(arrays=strategies.normals((4, 3), count=3), w=scales)
def test_one_scale_per_sample(arrays, w):
    """Scales (B,), of an array or a function, guide each sample by its own; 0 and 1 are as ever."""
    x_t, x_c, x_u = arrays
    each = np.array([0.0, 1.0, w, 2.0])
    c, u = constant(x_c), constant(x_u)
    found = guided(c, u, each)(x_t, T)
    np.testing.assert_array_equal(found[0], x_u[0])
    np.testing.assert_allclose(found[1], x_c[1], rtol=0, atol=4 * EPS * np.abs(arrays).max())
    for i in (2, 3):
        np.testing.assert_array_equal(found[i], guided(c, u, each[i])(x_t, T)[i])
    np.testing.assert_array_equal(guided(c, u, lambda t: each)(x_t, T), found)


@given(arrays=strategies.normals(shaped, count=2), w=scales, share=st.floats(0, 1))
def test_equal_denoisers_change_nothing(arrays, w, share):
    """Against itself a denoiser is what it was, at any scale and by every method."""
    x_t, x_0 = arrays
    denoise = constant(x_0)
    for same in (
        guided(denoise, denoise, w),
        projected(denoise, denoise, w, parallel=share, norm=0.1),
    ):
        np.testing.assert_array_equal(same(x_t, T), x_0)
    rescaled = guided(denoise, denoise, w, rescale=share)(x_t, T)
    np.testing.assert_allclose(rescaled, x_0, rtol=8 * EPS, atol=0)


def conditional(x_t, t, y, embedding=None, shared=None):
    """A network of classes and an embedding, that sees its levels too."""
    xp = x_t.__array_namespace__() if hasattr(x_t, "__array_namespace__") else np
    known = xp.where(y >= 0, 1.0 * y, -2.5 * xp.ones_like(1.0 * y))
    x_0 = x_t * np.reshape(t.alpha, (-1, 1)) + known[:, None]
    if embedding is not None:
        x_0 = x_0 + embedding
    return x_0 if shared is None else x_0 * shared


@given(
    x_t=strategies.normals((3, 2)),
    w=scales,
    levels=st.sampled_from([500, np.array([500, 20, 999])]),
    seed=st.integers(0, 99),
)
def test_one_call_is_two(x_t, w, levels, seed):
    """The batched call is `guided` of two calls, with levels and conditions each in its place."""
    rng = np.random.default_rng(seed)
    cond = {
        "y": rng.integers(0, 9, 3),
        "embedding": rng.standard_normal((3, 2)),
        "shared": rng.standard_normal(2),
    }
    empty = rng.standard_normal(2)
    t, asked = LINEAR(levels), []

    def network(x_t, t, **cond):
        asked.append(len(x_t))
        return conditional(x_t, t, **cond)

    def without(x_t, t, y, embedding, shared):
        nothing = np.full(3, -1), np.broadcast_to(empty, (3, 2))
        return conditional(x_t, t, *nothing, shared)

    found = classifier_free(network, w, {"y": -1, "embedding": empty})(x_t, t, **cond)
    np.testing.assert_array_equal(found, guided(conditional, without, w)(x_t, t, **cond))
    assert asked == [3 if w in (0, 1) else 6]


@pytest.mark.parametrize("scale", [0, 1])
def test_a_batch_is_not_doubled_in_vain(scale):
    """Where the scale is 0 or 1 the network sees B samples, with the condition or without it."""
    seen = []

    def network(x_t, t, y):
        seen.append(y)
        return x_t

    classifier_free(network, within(scale, -99, 99), {"y": -1})(np.ones((2, 3)), T, y=np.arange(2))
    (y,) = seen
    np.testing.assert_array_equal(y, np.arange(2) if scale else [-1, -1])


def test_one_call_on_every_library(lib):
    """Classes of integers, and levels of the device: classifier_free is that of NumPy."""
    x = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    y, t = np.int32([4, 0, 7]), LINEAR(np.array([900, 500, 20]))

    def network(x_t, t, y):
        return x_t * fit(t.alpha, x_t) + fit(y, x_t)

    denoise = classifier_free(network, 2.5, {"y": -1})
    found = denoise(lib.asarray(x), lib.level(t, lib.xp.float32), y=lib.asarray(y))
    assert tuple(found.shape) == (3, 2)
    if lib.has_values:
        expected = t.alpha[:, None] * x + (-1 + 2.5 * (y + 1))[:, None]
        np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=0, atol=64 * 2**-24 * 20)


# The scale. -------------------------------------------------------------------------------------


def test_within_takes_the_lower_end(lib):
    """The scale from `low` on up to `high`, and 1 elsewhere, for host and device levels alike."""
    logsnr = np.array([-4.5, -4.0, 0.0, 2.0, 2.5, -math.inf, math.inf])
    wanted = [1.0, 3.5, 3.5, 1.0, 1.0, 1.0, 1.0]
    scale = within(3.5, -4, 2)
    levels = from_logsnr(logsnr, np.zeros(7))
    assert [scale(levels.take(i)) for i in range(7)] == wanted
    assert scale(levels).tolist() == wanted
    there = lib.level(levels, lib.xp.float32)
    if lib.has_values:
        assert lib.to_numpy(scale(there)).tolist() == wanted
        each = lib.asarray(np.float32(range(7)))
        found = lib.to_numpy(within(lambda t: each, -4, 2)(there))
        assert found.tolist() == [1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0]


@given(
    schedule=strategies.schedules(zero_terminal=True), data=st.data(), strength=st.floats(0, 1.5)
)
def test_cfg_pp_is_the_papers_loop(schedule, data, strength):
    """DDIM with the scale of cfg_pp is Chung et al. 2024, Algorithm 2, from any grid."""
    times = data.draw(strategies.grids(schedule, max_steps=6))
    sampler = ddpm.ddim(schedule, len(times) - 1, times=times)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x_t = x = rng.standard_normal((2, 3))

    def c(x_t, t):
        return np.tanh(x_t) + 0.5

    def u(x_t, t):
        return 0.3 * x_t

    levels = [sampler.levels.take(i) for i in range(len(times))]
    size = 1.0
    for t, s in pairwise(levels):
        x_empty = u(x, t)
        eps_empty = (x - t.alpha * x_empty) / t.sigma
        x_guided = x_empty + strength * (c(x, t) - x_empty)
        x = s.alpha * x_guided + s.sigma * eps_empty
        # The scale and DDIM's own difference of levels cancel each other to eps / (1 - ratio).
        size += 1 / -math.expm1((t.logsnr - s.logsnr) / 2)
    found = ddpm.sample(guided(c, u, cfg_pp(strength, sampler.levels)), sampler, x_t)
    np.testing.assert_allclose(found, x, rtol=0, atol=256 * EPS * size * (1 + np.abs(x).max()))


# A classifier. ----------------------------------------------------------------------------------


@given(
    x_t=strategies.normals((3, 2)),
    logsnr=logsnrs,
    c=st.floats(0.1, 4),
    r=st.floats(0.1, 4),
    y=st.floats(-3, 3),
)
def test_a_gaussian_classifier_gives_the_posterior(x_t, logsnr, c, r, y):
    """Of y = x_0 + N(0, r), p(y | x_t) is a Gaussian, and scale 1 gives E[x_0 | x_t, y]."""
    t, m = from_logsnr(logsnr, 0.0), np.array([1.0, -0.5])
    prior = ddpm.GaussianOracle(m, c)
    # Bayes' rule for two Gaussians, on clean data.
    given_y = ddpm.GaussianOracle((r * m + c * y) / (r + c), c * r / (r + c))
    spread = t.alpha**2 * c + t.sigma**2

    def log_prob_grad(x_t, t):
        mean = m + t.alpha * c / spread * (x_t - t.alpha * m)
        return t.alpha * c / spread * (y - mean) / (c * t.sigma**2 / spread + r)

    found = classifier(prior, log_prob_grad)(x_t, t)
    size = (1 + abs(y) + np.abs(x_t).max()) * (1 + 1 / t.alpha)
    np.testing.assert_allclose(found, given_y(x_t, t), rtol=0, atol=64 * EPS * size)


def test_a_classifier_is_scaled_and_conditioned():
    """The gradient is multiplied by the scale, at a level too; conditions reach both."""
    x_t, seen = np.ones((2, 3)), []

    def gradient(x_t, t, y):
        seen.append(y)
        return np.full_like(x_t, 2.0)

    def denoise(x_t, t, y):
        seen.append(y)
        return 0 * x_t

    once = classifier(denoise, gradient)(x_t, T, y=7)
    assert seen == [7, 7]
    twice = classifier(denoise, gradient, lambda t: 2.0)(x_t, T, y=7)
    np.testing.assert_array_equal(twice, 2 * once)


# What keeps large scales in bounds. -------------------------------------------------------------


@given(arrays=strategies.normals(shaped, count=3), w=scales, share=st.floats(0, 1))
def test_projected_takes_the_difference_apart(arrays, w, share):
    """d∥ is the least-squares multiple of x_0 nearest to d; only what is across it is scaled."""
    x_t, x_0, other = arrays
    found = projected(constant(x_0), constant(other), w, parallel=share)(x_t, T)
    for i in range(len(x_0)):
        a, d = x_0[i].reshape(-1, 1), (x_0 - other)[i].reshape(-1)
        d_along = a @ np.linalg.lstsq(a, d)[0]
        wanted = a[:, 0] + (w - 1) * ((d - d_along) + share * d_along)
        atol = 64 * EPS * (1 + abs(w)) * (1 + np.abs(arrays).max())
        np.testing.assert_allclose(found[i].reshape(-1), wanted, rtol=0, atol=atol)


@given(arrays=strategies.normals(shaped, count=3), w=scales, norm=st.floats(0.1, 9))
def test_projected_ends_at_guided(arrays, w, norm):
    """With parallel = 1 it is `guided`; a norm shortens d to at most that, and no further."""
    x_t, x_0, other = arrays
    c, u = constant(x_0), constant(other)
    atol = 16 * EPS * (1 + abs(w)) * (1 + np.abs(arrays).max())
    found = projected(c, u, w, parallel=1.0)(x_t, T)
    np.testing.assert_allclose(found, guided(c, u, w)(x_t, T), rtol=0, atol=atol)
    moved = projected(c, u, 2.0, parallel=1.0, norm=norm)(x_t, T) - x_0
    for step, d in zip(moved, x_0 - other, strict=True):
        wanted = d if np.linalg.norm(d) <= norm else norm * d / np.linalg.norm(d)
        np.testing.assert_allclose(step, wanted, rtol=0, atol=atol)


@given(arrays=strategies.normals((3, 2, 4), count=3), w=scales, share=st.floats(0, 1))
def test_rescale_keeps_the_deviation(arrays, w, share):
    """At 1 the std of each sample is that of the conditional x_0; below, a share of the way."""
    x_t, x_0, other = arrays
    c, u = constant(x_0), constant(other)
    plain = guided(c, u, w)(x_t, T)
    full = guided(c, u, w, rescale=1.0)(x_t, T)
    np.testing.assert_allclose(full.std((1, 2)), x_0.std((1, 2)), rtol=64 * EPS)
    part = guided(c, u, w, rescale=share)(x_t, T)
    wanted = share * full + (1 - share) * plain
    np.testing.assert_allclose(part, wanted, rtol=0, atol=64 * EPS * (1 + np.abs(wanted).max()))


def test_samples_without_deviation_or_length_stay_finite():
    """One number per sample has no std, and zeros no direction: nothing is divided by 0."""
    x_t, x_0 = np.zeros((2, 1)), np.array([[0.0], [3.0]])
    c, u = constant(x_0), constant(1 + x_0)
    np.testing.assert_array_equal(guided(c, u, 3.0, rescale=1.0)(x_t, T), x_0 - 2)
    np.testing.assert_array_equal(projected(c, u, 3.0)(x_t, T), [[-2.0], [3.0]])


@given(arrays=strategies.normals(shaped, count=2), share=st.floats(0, 1), size=st.floats(0.1, 5))
def test_dynamic_threshold_is_by_the_quantile(arrays, share, size):
    """s is NumPy's quantile of |x_0|, but at least 1; then clip to ±s, and divide by s."""
    x_t, x_0 = arrays[0], size * arrays[1]
    found = dynamic_threshold(constant(x_0), share)(x_t, T)
    for x, got in zip(x_0, found, strict=True):
        s = max(np.quantile(abs(x), share), 1.0)
        np.testing.assert_allclose(got, np.clip(x, -s, s) / s, rtol=0, atol=16 * EPS * size)


def test_dynamic_threshold_by_default():
    """Within [-1, 1] nothing changes; of 1000 numbers beyond it, five are clipped."""
    inside = np.linspace(-1, 1, 1000).reshape(1, -1)
    beyond = np.linspace(0, 8, 1000).reshape(1, -1)
    np.testing.assert_array_equal(dynamic_threshold(constant(inside))(inside, T), inside)
    assert (dynamic_threshold(constant(beyond))(beyond, T) == 1).sum() == 5


# All of them are denoisers. ---------------------------------------------------------------------

MADE = {
    "guided": lambda d: guided(d, Learned(0.1, 0.9), 3.0),
    "guided 1": lambda d: guided(d, Learned(0.1, 0.9), 1.0),
    "guided rescale": lambda d: guided(d, Learned(0.1, 0.9), 3.0, rescale=0.5),
    "classifier_free": lambda d: classifier_free(d, 3.0, {"y": -1}),
    "classifier_free 1": lambda d: classifier_free(d, 1.0, {"y": -1}),
    "classifier": lambda d: classifier(d, lambda x, t, **cond: x),
    "projected": lambda d: projected(d, Learned(0.1, 0.9), 3.0),
    "projected 1": lambda d: projected(d, Learned(0.1, 0.9), 1.0),
    "dynamic_threshold": dynamic_threshold,
}


@pytest.mark.parametrize("name", MADE)
def test_learned_variances_pass_through(name):
    """v is that of the first denoiser, also through `clip`; its kernel has that variance."""
    x_t, y = np.random.default_rng(0).standard_normal((2, 3)), np.arange(2)
    denoise = ddpm.clip(MADE[name](Learned(0.5, -0.3)))
    x_0, v = denoise.both(x_t, T, y=y)
    np.testing.assert_array_equal(v, np.full((2, 3), -0.3))
    np.testing.assert_array_equal(x_0, denoise(x_t, T, y=y))
    s = LINEAR(400)
    kernel = ddpm.learned_range(denoise, 1.0)(x_t, T, s, y=y)
    plain = ddpm.learned_range(Learned(0.5, -0.3), 1.0)(x_t, T, s)
    np.testing.assert_array_equal(kernel.var, plain.var)
    np.testing.assert_array_equal(kernel.mean, ddpm.reverse(denoise)(x_t, T, s, y=y).mean)
    assert MADE[name](lambda x_t, t, **cond: x_t).both(x_t, T, y=y)[1] is None


@pytest.mark.lanes("jax")
@pytest.mark.slow
@pytest.mark.parametrize("of", ["number", "within", "cfg_pp"])
def test_one_program_of_jax(lib, of):
    """`ddpm_core_jax.sample` scans over guided rows, whose levels are of the device."""
    import ddpm_core_jax

    sampler = ddpm.ddim(LINEAR, 5)
    scale = {"number": 2.0, "within": within(2.0, -4, 2), "cfg_pp": cfg_pp(0.6, sampler.levels)}[of]
    denoise = guided(ddpm.GaussianOracle([0.5], 0.1), ddpm.GaussianOracle([0.0], 1.0), scale)
    x = np.random.default_rng(0).standard_normal((3, 1)).astype(np.float32)
    found = ddpm_core_jax.sample(denoise, sampler, lib.asarray(x))
    wanted = ddpm.sample(denoise, sampler, x.astype(np.float64))
    np.testing.assert_allclose(lib.to_numpy(found), wanted, rtol=0, atol=64 * 2**-23)


X = np.ones((2, 3))
GRID = ddpm.levels_of(LINEAR, 3)
BAD = {
    "nan": (lambda: guided(X, X, math.nan), ValueError, "scale must be finite, but is nan"),
    "text": (lambda: guided(constant(X), constant(X), "2")(X, T), TypeError, "a Python str"),
    "rescale": (
        lambda: guided(X, X, 2, rescale=7),
        ValueError,
        r"rescale must lie within 0 \.\. 1, but is 7",
    ),
    "shapes": (
        lambda: guided(constant(X), constant(X[:, :1]), 2)(X, T),
        ValueError,
        r"against has shape \(2, 1\) but denoise has shape \(2, 3\)",
    ),
    "shapes of projected": (
        lambda: projected(constant(X), constant(X[:, :1]), 2)(X, T),
        ValueError,
        r"against has shape \(2, 1\) but denoise has shape \(2, 3\)",
    ),
    "level": (lambda: guided(constant(X), constant(X), 2)(X, 500), TypeError, r"schedule\(500\)"),
    "no array": (
        lambda: guided(constant(X), constant(X), 2)(3, T),
        TypeError,
        "x_t must be an arr",
    ),
    "norm": (lambda: projected(X, X, 2, norm=0), ValueError, "norm must be positive, but is 0"),
    "share": (lambda: dynamic_threshold(X, 99.5), ValueError, "share must lie within 0 .* is 99.5"),
    "half a batch": (
        lambda: classifier_free(constant(X), 2, {"y": -1})(X, T, y=np.arange(2)),
        ValueError,
        r"x_0 has shape \(2, 3\) but x_t has shape \(4, 3\)",
    ),
    "null": (lambda: classifier_free(X, 2, -1), TypeError, "null must map names .* but is -1"),
    "null of nothing": (lambda: classifier_free(X, 2, {}), TypeError, "null must map names"),
    "no condition": (
        lambda: classifier_free(conditional, 2, {"y": -1})(X, T),
        ValueError,
        "null says what stands for no y: pass y= as well",
    ),
    "another condition": (
        lambda: classifier_free(conditional, 1, {"y": -1})(X, T, label=X),
        ValueError,
        "null says what stands for no y: pass y= as well",
    ),
    "a condition for all": (
        lambda: classifier_free(conditional, 2, {"y": -1})(X, T, y=np.arange(1)),
        ValueError,
        r"y has shape \(1,\), but x_t has 2 samples: pass one entry for each",
    ),
    "a condition that is no array": (
        lambda: classifier_free(conditional, 2, {"y": -1})(X, T, y=3),
        TypeError,
        "y must be an array, but is a Python int",
    ),
    "alpha": (
        lambda: classifier(constant(X), constant(X))(X, from_logsnr(-math.inf, 0.0)),
        ValueError,
        "a classifier cannot guide where alpha = 0",
    ),
    "one alpha": (
        lambda: classifier(constant(X), constant(X))(
            X, from_logsnr(np.array([0.0, -math.inf]), np.zeros(2))
        ),
        ValueError,
        "a classifier cannot guide where alpha = 0",
    ),
    "gradient": (
        lambda: classifier(constant(X), constant(X[0]))(X, T),
        ValueError,
        r"log_prob_grad has shape \(3,\) but denoise has shape \(2, 3\)",
    ),
    "interval": (lambda: within(2, 3, -3), ValueError, "low < high must hold, but they are 3 and"),
    "no interval": (
        lambda: within(2, 3, 3),
        ValueError,
        "low < high must hold, but they are 3 and 3",
    ),
    "interval of nan": (lambda: within(2, math.nan, 3), ValueError, "low < high must hold"),
    "time within": (lambda: within(2, -3, 3)(500), TypeError, r"schedule\(500\)"),
    "grid": (lambda: cfg_pp(0.5, LINEAR(500)), ValueError, "levels must be a sampler's"),
    "rising": (
        lambda: cfg_pp(0.5, GRID.take(slice(None, None, -1))),
        ValueError,
        "levels must be a sampler's: of the host, and the noisiest first",
    ),
    "repeated": (
        lambda: cfg_pp(0.5, GRID.take(np.array([0, 1, 1, 2]))),
        ValueError,
        "levels must be a sampler's: of the host, and the noisiest first",
    ),
    "sampler": (lambda: cfg_pp(0.5, ddpm.ddim(LINEAR, 3)), TypeError, "levels must be a Level"),
    "off the grid": (
        lambda: cfg_pp(0.5, GRID)(LINEAR(500)),
        ValueError,
        "the level of log-SNR -2.46.* is not of this grid of 3 steps: make cfg_pp with the levels",
    ),
    "near the grid": (
        lambda: cfg_pp(0.5, GRID)(from_logsnr(GRID.logsnr[1] + 0.01, 0.0)),
        ValueError,
        "is not of this grid of 3 steps",
    ),
    "some off the grid": (
        lambda: cfg_pp(0.5, GRID)(LINEAR(np.array([1000, 500]))),
        ValueError,
        "log-SNR -2.46.* is not of this grid",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, error, message):
    """Each mistake is one line that names it."""
    with pytest.raises(error, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        call()
