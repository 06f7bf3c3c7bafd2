"""Predictors and wrappers of denoisers."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

import ddpm_core as ddpm
from ddpm_core.levels import from_logsnr
from ddpm_core.parameterisations import mu
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
LINEAR = ddpm.linear()


def asked(schedule: ddpm.Schedule, x_t, t: ddpm.Level):
    """What the network is told of the level."""
    seen = []
    ddpm.Predictor(lambda x, time: seen.append(time) or x, schedule)(x_t, t)
    return seen[0]


@given(time=st.integers(0, 1000), B=st.integers(1, 3))
def test_timestep_of_discrete(time, B):
    """Ho et al.'s networks count from 0: the level of time t is timestep t - 1, (B,), float32."""
    told = asked(LINEAR, np.zeros((B, 2)), LINEAR(time) if time else LINEAR(0.4))
    assert told.dtype == np.float32
    np.testing.assert_array_equal(told, np.full(B, max(time - 1, 0)))


@given(time=st.floats(0.01, 1.0))
def test_timestep_of_continuous(time):
    """A continuous time is passed as it is, in float32."""
    told = asked(ddpm.VP(), np.zeros((2, 3)), ddpm.VP()(time))
    np.testing.assert_array_equal(told, np.full(2, time, dtype=np.float32), strict=True)


def test_timestep_per_sample():
    """Levels (B,) give each sample its own timestep, also of a half-precision torch batch."""
    told = asked(LINEAR, np.zeros((3, 2)), LINEAR(np.array([1000, 1, 500])))
    np.testing.assert_array_equal(told, np.array([999, 0, 499], dtype=np.float32), strict=True)
    torch = pytest.importorskip("torch")
    x_t = torch.zeros(3, 2, dtype=torch.bfloat16)
    for t in (LINEAR(1000), LINEAR(torch.tensor([1000, 1, 500]), dtype=torch.float32)):
        told = asked(LINEAR, x_t, t)
        # 999 is no bfloat16: it rounds to 1000.
        assert told.dtype == torch.float32
        assert told[0] == 999


@pytest.mark.parametrize("predicts", [ddpm.x0, ddpm.eps, ddpm.v, ddpm.score, ddpm.flow])
@given(logsnr=st.floats(-6, 6), arrays=strategies.normals((3, 2, 4), count=2))
def test_predictor_reads_its_target(predicts, logsnr, arrays):
    """A network that says the target of x_0 and eps is read as x_0."""
    x_0, eps = arrays
    t = ddpm.VP().at(logsnr)
    x_t, y = ddpm.q_sample(x_0, eps, t), ddpm.target(x_0, eps, t, predicts)
    predict = ddpm.Predictor(lambda x, time: y, ddpm.VP(), predicts)
    size = (1 + np.abs(x_0) + np.abs(eps)) * (1 + t.sigma / t.alpha)
    assert np.all(np.abs(predict(x_t, t) - x_0) <= 16 * EPS * size)


def test_predictor_splits_the_variance():
    """With variance=True the first C channels are the target, the other C the variance's v."""
    y = np.random.default_rng(0).standard_normal((2, 6, 4, 4))
    predict = ddpm.Predictor(lambda x, time: y, LINEAR, ddpm.x0, variance=True)
    x_0, v = predict.both(np.zeros((2, 3, 4, 4)), LINEAR(500))
    np.testing.assert_array_equal(x_0, y[:, :3])
    np.testing.assert_array_equal(v, y[:, 3:])
    _, v = predict.interpret(y[:, :, 0, 0], np.zeros((2, 3)))  # of channels alone
    np.testing.assert_array_equal(v, y[:, 3:, 0, 0])
    fixed = ddpm.Predictor(lambda x, time: y, LINEAR, ddpm.x0)
    assert fixed.both(np.zeros((2, 6, 4, 4)), LINEAR(500))[1] is None


def test_interpret_reads_a_raw_output(lib):
    """`interpret` is what `output` makes of the network's answer: checked, cast to x_t, split."""
    raw = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    x_t = np.zeros((2, 3, 4), np.float32)
    predict = ddpm.Predictor(lambda x, time: lib.asarray(raw), LINEAR, variance=True)
    for got in (
        predict.interpret(lib.asarray(raw), lib.asarray(x_t)),
        predict.output(lib.asarray(x_t), LINEAR(500)),
    ):
        for part, wanted in zip(got, (raw[:, :3], raw[:, 3:]), strict=True):
            assert part.dtype == lib.xp.float32
            assert tuple(part.shape) == (2, 3, 4)
            if lib.has_values:
                np.testing.assert_array_equal(lib.to_numpy(part), wanted)
    plain = ddpm.Predictor(lambda x, time: x, LINEAR)
    y, v = plain.interpret(raw, np.zeros(raw.shape, np.float64))
    assert (y.dtype, v) == (np.float64, None)
    with pytest.raises(
        ValueError, match=r"returned shape \(2, 6, 4\) for x_t of shape \(2, 3, 4\)"
    ):
        plain.interpret(raw, x_t)
    with pytest.raises(TypeError, match="pass arrays of one library"):
        plain.interpret(raw, pytest.importorskip("torch").asarray(x_t))


def test_x_without_data_axes():
    """x of shape (B,), one number per sample, is data; it has no channels for a variance."""
    x_t = np.linspace(-1, 1, 3)
    predict = ddpm.Predictor(lambda x, time: 2 * x, LINEAR, ddpm.x0)
    np.testing.assert_array_equal(predict(x_t, LINEAR(500)), 2 * x_t)
    learned = ddpm.Predictor(lambda x, time: x, LINEAR, variance=True)
    with pytest.raises(ValueError, match=r"needs x_t of shape \(B, C, ...\), but it is \(3,\)"):
        learned(x_t, LINEAR(500))


@pytest.mark.parametrize("kind", [float, np.float64, np.asarray, lambda f: np.asarray([f, f])])
def test_levels_of_another_schedule_are_refused(kind):
    """One level or one per sample, host levels of any kind must be on the network's schedule."""
    predict, x_t = ddpm.Predictor(lambda x, time: x, LINEAR), np.zeros((2, 3))
    predict(x_t, LINEAR(500).map(kind))
    t = ddpm.cosine()(500)
    match = r"time 500 has log-SNR -0\.\d+, but on the network's schedule it has -2"
    with pytest.raises(ValueError, match=match):
        predict(x_t, t.map(kind))
    mixed = LINEAR(500)._replace(logsnr=np.asarray([LINEAR(500).logsnr, t.logsnr]))
    with pytest.raises(ValueError, match=match):
        predict(x_t, mixed)
    with pytest.raises(ValueError, match=match):  # a number against an array
        predict(x_t, t._replace(time=np.asarray([500.0, 500.0])))
    near = LINEAR(500)._replace(logsnr=LINEAR(500).logsnr + 0.01)
    with pytest.raises(ValueError, match=r"time 500 has log-SNR -2"):
        predict(x_t, near.map(kind))


def net(x, timestep):
    return x / 2


@pytest.mark.parametrize("predicts", [ddpm.eps, ddpm.v, mu(LINEAR)], ids=["eps", "v", "mu"])
def test_denoisers_pickle(predicts):
    """A Predictor whose network pickles, clipped or not, stays the same denoiser."""
    predict = ddpm.Predictor(net, LINEAR, predicts)
    x_t, t = np.ones((2, 3)), LINEAR(500)
    for denoise in (predict, ddpm.clip(predict)):
        again = pickle.loads(pickle.dumps(denoise))
        np.testing.assert_array_equal(again(x_t, t), denoise(x_t, t))


@pytest.mark.parametrize(("variance", "wanted"), [(False, (2, 3, 4)), (True, (2, 6, 4))])
def test_predictor_refuses_other_shapes(variance, wanted):
    """A network whose output has another shape is named with both shapes, and what is wanted."""
    predict = ddpm.Predictor(lambda x, time: np.zeros((2, 5, 4)), LINEAR, variance=variance)
    message = "returned shape (2, 5, 4) for x_t of shape (2, 3, 4); with variance="
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        predict(np.zeros((2, 3, 4)), LINEAR(500))
    assert str(wanted) in str(error.value)


def test_predictor_refuses_eps_without_signal():
    """Where alpha_T = 0, eps and the score say nothing of x_0 and are refused; v, x0, flow do."""
    zero = ddpm.zero_terminal_snr(LINEAR)
    for predicts in (ddpm.eps, ddpm.score):
        with pytest.raises(ValueError, match=f"a prediction of {predicts.__name__} says nothing"):
            ddpm.Predictor(lambda x, time: x, zero, predicts)
    x_t, x_0 = np.random.default_rng(0).standard_normal((2, 2, 3))
    t = zero(1000)
    for predicts in (ddpm.v, ddpm.x0, ddpm.flow):
        y = ddpm.target(x_0, x_t, t, predicts)  # there, x_t is eps
        read = ddpm.Predictor(lambda x, time, y=y: y, zero, predicts)(x_t, t)
        np.testing.assert_allclose(read, x_0, rtol=0, atol=8 * EPS)


@given(logsnr=st.floats(-6, 6), arrays=strategies.normals((4, 3), count=2), ends=st.floats(0.2, 2))
def test_clip_projects(logsnr, arrays, ends):
    """A projection onto [-k, k]: inside nothing changes, twice is once, and none is nearer."""
    x_t, x_0 = arrays
    t, denoise = from_logsnr(logsnr, 0.0), lambda x, t: x_0
    once = ddpm.clip(denoise, -ends, ends)
    clipped = once(x_t, t)
    inside = np.abs(x_0) <= ends
    np.testing.assert_array_equal(clipped[inside], x_0[inside])
    np.testing.assert_array_equal(clipped[~inside], np.sign(x_0[~inside]) * ends)
    np.testing.assert_array_equal(ddpm.clip(once, -ends, ends)(x_t, t), clipped)


@given(x=st.floats(-40, 40), logsnr=st.floats(-4, 4))
def test_clip_leaves_exact_denoisers(x, logsnr):
    """Data uniform on [-1, 1]: x_0 = (x + σ² ∇ log q) / α lies inside, and clip changes nothing."""
    t = from_logsnr(logsnr, 0.0)

    def uniform(x_t, t):
        # q(x_t) = (Φ(u) - Φ(w)) / 2α with u, w = (x_t ± α) / σ, and its score, for x_t <= 0: there
        # both tails are the small ones. The law is odd.
        y = -np.abs(x_t)
        u, w = (y + t.alpha) / t.sigma, (y - t.alpha) / t.sigma
        log_mass = norm.logcdf(u) + np.log(-np.expm1(norm.logcdf(w) - norm.logcdf(u)))
        score = (np.exp(norm.logpdf(u) - log_mass) - np.exp(norm.logpdf(w) - log_mass)) / t.sigma
        return -np.sign(x_t) * (y + t.sigma**2 * score) / t.alpha

    x_t = np.array([[x]])
    exact = uniform(x_t, t)
    # The sum y + σ² score cancels to α x_0, and log_mass is of order (y / σ)².
    atol = 64 * EPS * (1 + (x / t.sigma) ** 2) * (1 + abs(x) / t.alpha)
    np.testing.assert_allclose(ddpm.clip(uniform)(x_t, t), exact, rtol=0, atol=atol)


@given(data=st.data(), arrays=strategies.normals((4, 3), count=2))
def test_clip_keeps_x_t_explained(data, arrays):
    """DDIM goes on with the eps of the clipped x_0, x_s = α_s x_0 + σ_s eps (Song et al. 2021)."""
    i, j = sorted(data.draw(st.sets(st.integers(1, 1000), min_size=2, max_size=2)))
    x_t, x_0 = arrays
    denoise = ddpm.clip(lambda x, t: 3 * x_0)
    t, s = LINEAR(j), LINEAR(i)
    clipped = np.clip(3 * x_0, -1, 1)
    eps = (x_t - t.alpha * clipped) / t.sigma
    x_s = ddpm.sample(denoise, ddpm.ddim(LINEAR, 1, times=[j, i]), x_t)
    np.testing.assert_allclose(x_s, s.alpha * clipped + s.sigma * eps, rtol=0, atol=64 * EPS)
