"""Parameterisations: round trips between all pairs, and the papers' other forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ddpm_core import (
    clip,
    convert,
    eps,
    flow,
    linear,
    parameterisations,
    q_posterior,
    q_sample,
    score,
    simple,
    target,
    to_eps,
    to_x0,
    v,
    x0,
)
from ddpm_core.gaussians import log_prob
from ddpm_core.levels import from_logsnr
from ddpm_core.losses import native
from ddpm_core.parameterisations import NAMED, determinant, mu, reading
from ddpm_core.process import q_marginal

EPS = np.finfo(np.float64).eps
SCHEDULE = linear()


@st.composite
def rows(draw):
    """A parameterisation: a named one, `mu`, or a random row."""
    a, b = draw(st.floats(-3, 3)), draw(st.floats(-3, 3))
    return draw(st.sampled_from([*NAMED.values(), mu(SCHEDULE), lambda t: (a, b)]))


levels = st.integers(2, 1000).map(SCHEDULE)


def condition(predicts, t):
    """How much the 2x2 system of a target amplifies errors: its size over its determinant.

    The determinant is a difference of α b and σ a, so it may cancel before it divides.
    """
    size = 1 + sum(map(abs, predicts(t)))
    return (size / abs(determinant(predicts, t))) ** 2


@given(rows(), levels, st.integers(0, 99))
def test_targets_round_trip(predicts, t, seed):
    """x_0 and eps -> target -> x_0 and eps, for every parameterisation and random rows."""
    assume(abs(determinant(predicts, t)) > 1e-6)
    x_0, noise = np.random.default_rng(seed).standard_normal((2, 3, 4))
    x_t, y = q_sample(x_0, noise, t), target(x_0, noise, t, predicts)
    atol = 64 * EPS * condition(predicts, t)
    np.testing.assert_allclose(to_x0(y, x_t, t, predicts), x_0, rtol=0, atol=atol)
    np.testing.assert_allclose(to_eps(y, x_t, t, predicts), noise, rtol=0, atol=atol)


@given(rows(), rows(), levels, st.integers(0, 99))
def test_conversions_round_trip(first, second, t, seed):
    """Any target -> any other -> itself, and the other is the target it should be."""
    assume(min(abs(determinant(first, t)), abs(determinant(second, t))) > 1e-6)
    x_0, noise = np.random.default_rng(seed).standard_normal((2, 3, 4))
    x_t, y = q_sample(x_0, noise, t), target(x_0, noise, t, first)
    other = convert(y, x_t, t, first, second)
    size = 1 + sum(map(abs, second(t)))
    atol = 64 * EPS * condition(first, t) * size
    np.testing.assert_allclose(other, target(x_0, noise, t, second), rtol=0, atol=atol)
    back = convert(other, x_t, t, second, first)
    atol *= condition(second, t) * (1 + sum(map(abs, first(t))))
    np.testing.assert_allclose(back, y, rtol=0, atol=atol)


@given(rows(), levels, st.integers(0, 99))
def test_any_prediction_explains_x_t(predicts, t, seed):
    """x_t = α x_0 + σ eps for what is read from *any* y, not only from a true target."""
    assume(abs(determinant(predicts, t)) > 1e-6)
    y, x_t = np.random.default_rng(seed).standard_normal((2, 3, 4))
    again = q_sample(to_x0(y, x_t, t, predicts), to_eps(y, x_t, t, predicts), t)
    np.testing.assert_allclose(again, x_t, rtol=0, atol=64 * EPS * condition(predicts, t))


@given(rows(), levels)
def test_a_reading_of_itself_is_itself(predicts, t):
    """The coefficients that read a target from itself are (0, 1) over (x_t, y)."""
    assume(abs(determinant(predicts, t)) > 1e-6)
    on_x_t, on_y = reading(predicts, predicts, t)
    assert on_x_t == 0
    assert math.isclose(on_y, 1, rel_tol=4 * EPS)


@given(rows(), levels, st.integers(0, 99))
def test_scales_of_the_losses(predicts, t, seed):
    """‖Δeps‖² = (α / D)² ‖Δy‖² and ‖Δx_0‖² = (σ / D)² ‖Δy‖²: one loss, in other units."""
    assume(abs(determinant(predicts, t)) > 1e-6)
    y, change, x_t = np.random.default_rng(seed).standard_normal((3, 3, 4))
    d = determinant(predicts, t)
    for read, scale in ((to_eps, t.alpha / d), (to_x0, t.sigma / d)):
        difference = read(y + change, x_t, t, predicts) - read(y, x_t, t, predicts)
        lost = 64 * EPS * condition(predicts, t)
        np.testing.assert_allclose(np.abs(difference), np.abs(scale * change), rtol=0, atol=lost)


@given(levels)
def test_weights_of_the_targets(t):
    """On x_0: eps-loss is SNR, v-loss 1 + SNR (Salimans & Ho 2022, appendix D), flow (α+σ)²/σ²."""
    snr = math.exp(t.logsnr)
    rtol = 8 * EPS * (1 + abs(t.logsnr))
    assert native(x0)(t) == 1
    assert math.isclose(native(eps)(t), snr, rel_tol=rtol)
    assert math.isclose(simple(t), snr, rel_tol=rtol)
    assert math.isclose(native(v)(t), 1 + snr, rel_tol=rtol)
    assert math.isclose(native(flow)(t), (1 + math.sqrt(snr)) ** 2, rel_tol=rtol)
    assert math.isclose(native(score)(t), snr / t.sigma**2, rel_tol=rtol)


@given(st.floats(-20, 20), st.integers(0, 99))
@example(-math.inf, 0)
@example(math.inf, 0)
def test_v_is_a_rotation(logsnr, seed):
    """x_0 = α x_t - σ v and eps = σ x_t + α v, also at both ends (Salimans & Ho 2022, app. D)."""
    t = from_logsnr(logsnr, 0.0)
    x_0, noise = np.random.default_rng(seed).standard_normal((2, 3, 4))
    x_t, y = q_sample(x_0, noise, t), target(x_0, noise, t, v)
    for got in (t.alpha * x_t - t.sigma * y, to_x0(y, x_t, t, v)):
        np.testing.assert_allclose(got, x_0, rtol=0, atol=32 * EPS)
    for got in (t.sigma * x_t + t.alpha * y, to_eps(y, x_t, t, v)):
        np.testing.assert_allclose(got, noise, rtol=0, atol=32 * EPS)
    phi = math.atan2(t.sigma, t.alpha)  # v = dx / dφ, appendix D's angle
    np.testing.assert_allclose(
        y, math.cos(phi) * noise - math.sin(phi) * x_0, rtol=0, atol=32 * EPS
    )


@given(st.floats(-8, 8), st.integers(0, 99))
def test_score_is_the_gradient(logsnr, seed):
    """The target `score` is ∇ log q(x_t | x_0), by central differences (Vincent 2011)."""
    t = from_logsnr(logsnr, 0.0)
    x_0, noise = np.random.default_rng(seed).standard_normal((2, 1, 4))
    x_t, h = q_sample(x_0, noise, t), 2.0**-10 * t.sigma
    got = target(x_0, noise, t, score)
    for i, step in enumerate(h * np.eye(4)[:, None, :]):
        q = q_marginal(x_0, t)
        slope = (log_prob(q, x_t + step) - log_prob(q, x_t - step)) / (2 * h)
        # A central difference of a quadratic is exact; log_prob's roundings are over 2 h, and
        # those of x_t over σ.
        atol = 2.0**10 * 64 * EPS * (1 + 1 / t.sigma) / t.sigma
        assert abs(slope[0] - got[0, i]) <= atol


@given(st.floats(-20, 20), st.integers(0, 99))
def test_flow_is_of_a_straight_path(logsnr, seed):
    """x_t / (α + σ) = (1 - u) x_0 + u eps, and `flow` is its slope (Lipman et al. 2023)."""
    t = from_logsnr(logsnr, 0.0)
    x_0, noise = np.random.default_rng(seed).standard_normal((2, 3, 4))
    u = t.sigma / (t.alpha + t.sigma)
    z, y = q_sample(x_0, noise, t) / (t.alpha + t.sigma), target(x_0, noise, t, flow)
    # Along the straight line the data is where u = 0 and the noise where u = 1.
    np.testing.assert_allclose(z - u * y, x_0, rtol=0, atol=64 * EPS)
    np.testing.assert_allclose(z + (1 - u) * y, noise, rtol=0, atol=64 * EPS)


@given(st.integers(2, 1000), st.integers(0, 99))
def test_mu_is_the_posterior_mean(time, seed):
    """The target `mu` is the mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eq. 7)."""
    t, s = SCHEDULE(time), SCHEDULE(time - 1)
    x_0, noise = np.random.default_rng(seed).standard_normal((2, 3, 4))
    wanted = q_posterior(x_0, q_sample(x_0, noise, t), t, s).mean
    got = target(x_0, noise, t, mu(SCHEDULE))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=32 * EPS * 12)  # |λ| <= 12 rounds τ


def test_eps_amplifies_as_documented():
    """From eps an error grows 157 times at the end of `linear`; from x_0, 100 at its start."""
    last, first = SCHEDULE(1000), SCHEDULE(1)
    # 1 / sqrt(ᾱ_T) and 1 / sqrt(β_1): Ho et al.'s schedule, as Lin et al. 2024 print 0.006353.
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    assert abs(to_x0(one, zero, last, eps)[0, 0]) == pytest.approx(1 / 0.006353, rel=1e-4)
    assert abs(to_eps(one, zero, first, x0)[0, 0]) == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("predicts", [eps, score])
def test_eps_says_nothing_without_data(predicts):
    """Where α = 0, x_t is the noise: the determinant of a target without x_0 is 0."""
    assert determinant(predicts, from_logsnr(-math.inf, 1.0)) == 0


@pytest.mark.parametrize("read", [to_x0, to_eps, lambda *a: convert(*a, v)])
def test_predictions_have_the_shape_of_x_t(read):
    """A prediction of another shape is refused by name, not broadcast."""
    with pytest.raises(ValueError, match=r"y has shape \(2, 1\) but x_t has shape \(2, 3\)"):
        read(np.ones((2, 1)), np.ones((2, 3)), SCHEDULE(5), eps)


@given(levels, st.integers(0, 99))
def test_clipping(t, seed):
    """`clip` is idempotent, changes nothing within [-1, 1], and its x_0 still explains x_t."""
    x_t, wild = np.random.default_rng(seed).standard_normal((2, 3, 4)) * 2
    denoise = lambda x, t: wild
    once = clip(denoise)(x_t, t)
    np.testing.assert_array_equal(once, clip(clip(denoise))(x_t, t))
    inside = np.abs(wild) <= 1
    np.testing.assert_array_equal(once[inside], wild[inside])
    np.testing.assert_array_equal(once[~inside], np.sign(wild[~inside]))
    noise = to_eps(once, x_t, t, x0)
    atol = 16 * EPS * (1 + 1 / t.sigma) * np.abs(x_t).max()
    np.testing.assert_allclose(q_sample(once, noise, t), x_t, rtol=0, atol=atol)


@pytest.mark.parametrize("name", parameterisations.TARGETS)
def test_named(name):
    """Each target by its name, and mu as the one of the schedule."""
    schedule, t = linear(), linear()(700)
    wanted = mu(schedule) if name == "mu" else getattr(parameterisations, name)
    assert parameterisations.named(name, schedule)(t) == wanted(t)
