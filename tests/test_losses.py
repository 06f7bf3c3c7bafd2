"""The losses, against the papers' per-target forms and Gaussian quadrature."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import losses, parameterisations
from ddpm_core.levels import from_logsnr
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
TARGETS = [ddpm.x0, ddpm.eps, ddpm.v, ddpm.score, ddpm.flow]

schedule = ddpm.VP()
levels = st.floats(-9, 9).map(schedule.at)

# A product rule of two by two nodes and more is exact for squares of what is linear in (x_0, eps).
_nodes, _weights = np.polynomial.hermite_e.hermegauss(3)
X_0, NOISE = (grid.reshape(-1, 1) for grid in np.meshgrid(_nodes, _nodes))
WEIGHTS = np.outer(_weights, _weights).ravel() / (2 * np.pi)


def network(y: np.ndarray, predicts: parameterisations.Parameterisation) -> ddpm.Predictor:
    """A network that says y, whatever it is asked."""
    return ddpm.Predictor(lambda x, time: y, schedule, predicts)


def mean_square(x: np.ndarray) -> np.ndarray:
    return (x.reshape(len(x), -1) ** 2).mean(1)


@given(t=levels, log_c=st.floats(-7, 5), m=st.floats(-2, 2))
def test_simple_of_gaussian_data(t, log_c, m):
    """min L_simple = ᾱ c / (ᾱ c + σ²) for data N(m, c), and the mean x_0 error is c σ² / V."""
    c = np.exp(log_c)
    oracle, x_0 = ddpm.GaussianOracle([m], c), m + np.sqrt(c) * X_0
    V = t.alpha**2 * c + t.sigma**2
    for weight, expected in (
        (ddpm.simple, t.alpha**2 * c / V),
        (lambda t: 1.0, c * t.sigma**2 / V),
    ):
        risk = WEIGHTS @ ddpm.loss(oracle, x_0, NOISE, t, weight)
        # The error of x_0 keeps EPS of x_0 = m + ..., and the weight multiplies its square.
        lost = 256 * EPS * weight(t) * np.sqrt(c * t.sigma**2 / V) * (1 + abs(m) + np.sqrt(c))
        assert abs(risk - expected) <= lost + 64 * EPS * expected


@given(t=levels, c=st.floats(0.01, 4), k=st.floats(-2, 2), b=st.floats(-2, 2))
def test_orthogonality(t, c, k, b):
    """A denoiser that is off by k x_t + b loses E(k x_t + b)² more than E[x_0 | x_t] does."""
    oracle = ddpm.GaussianOracle([0.5], c)
    x_0, flat = 0.5 + np.sqrt(c) * X_0, lambda t: 1.0
    worse = lambda x_t, t: oracle(x_t, t) + k * x_t + b
    added = WEIGHTS @ (
        ddpm.loss(worse, x_0, NOISE, t, flat) - ddpm.loss(oracle, x_0, NOISE, t, flat)
    )
    second_moment = k**2 * (t.alpha**2 * c + t.sigma**2) + (k * t.alpha * 0.5 + b) ** 2
    assert added == pytest.approx(
        second_moment, rel=0, abs=1e3 * EPS * (1 + c) * (1 + second_moment)
    )


@pytest.mark.parametrize(
    "weight",
    [ddpm.simple, ddpm.min_snr(), ddpm.min_snr(1.0), losses.p2(), losses.native(ddpm.v)],
)
@given(t=levels, arrays=strategies.normals((3, 2, 4), count=3))
def test_weights_do_not_depend_on_the_target(weight, t, arrays):
    """One x_0 prediction, said as x_0, eps, v, score or flow, has one loss under each weight."""
    x_0, eps, said = arrays
    x_t = ddpm.q_sample(x_0, eps, t)
    expected = weight(t) * mean_square(x_0 - said)
    for predicts in TARGETS:
        y = ddpm.convert(said, x_t, t, ddpm.x0, predicts)
        # y and the target round at their own size, and σ / D takes that to x_0.
        amplified = (1 + t.sigma / t.alpha) * (1 + 1 / t.sigma)
        actual = ddpm.loss(network(y, predicts), x_0, eps, t, weight)
        atol = 256 * EPS * weight(t) * amplified * (1 + (arrays[0] ** 2).max())
        np.testing.assert_allclose(actual, expected, rtol=256 * EPS * amplified, atol=atol)


@given(t=levels, g=st.floats(0.1, 20), arrays=strategies.normals((3, 5), count=3))
def test_min_snr_per_target(t, g, arrays):
    """min(SNR, γ) / {1, SNR, SNR + 1} of the squared error of x_0, eps, v (Hang et al. 2023)."""
    x_0, eps, y = arrays
    snr = np.exp(t.logsnr)
    forms = {
        ddpm.x0: (1.0, x_0),
        ddpm.eps: (snr, eps),
        ddpm.v: (snr + 1, t.alpha * eps - t.sigma * x_0),
    }
    for predicts, (divisor, aim) in forms.items():
        expected = min(snr, g) / divisor * mean_square(aim - y)
        actual = ddpm.loss(network(y, predicts), x_0, eps, t, ddpm.min_snr(g))
        np.testing.assert_allclose(actual, expected, rtol=64 * EPS * (1 + abs(t.logsnr)))


@given(t=levels, g=st.floats(0, 2), k=st.floats(0.1, 3), arrays=strategies.normals((3, 5), count=3))
def test_p2_per_target(t, g, k, arrays):
    """1 / (k + SNR)^γ of the squared error of eps (Choi et al. 2022, Eq. 8)."""
    x_0, eps, y = arrays
    expected = (k + np.exp(t.logsnr)) ** -g * mean_square(eps - y)
    actual = ddpm.loss(network(y, ddpm.eps), x_0, eps, t, losses.p2(g, k))
    np.testing.assert_allclose(actual, expected, rtol=64 * EPS * (1 + abs(t.logsnr)))


@pytest.mark.parametrize("predicts", TARGETS)
@given(t=levels, arrays=strategies.normals((3, 5), count=3))
def test_native_is_plain(predicts, t, arrays):
    """native(target) is the mean squared error of the network's own output."""
    x_0, eps, y = arrays
    typed = {
        ddpm.x0: x_0,
        ddpm.eps: eps,
        ddpm.v: t.alpha * eps - t.sigma * x_0,
        ddpm.score: -(ddpm.q_sample(x_0, eps, t) - t.alpha * x_0) / t.sigma**2,
        ddpm.flow: eps - x_0,
    }[predicts]
    actual = ddpm.loss(network(y, predicts), x_0, eps, t, losses.native(predicts))
    # The typed score takes x_t apart again, losing α |x_0| / σ of eps.
    size = (1 + np.abs(typed).max() + np.abs(y).max()) ** 2 * (1 + t.alpha / t.sigma)
    rtol = 128 * EPS * (1 + t.alpha / t.sigma)
    np.testing.assert_allclose(
        actual, mean_square(typed - y), rtol=rtol, atol=64 * EPS * size / t.sigma**2
    )


@given(t=levels, arrays=strategies.normals((3, 5), count=2))
def test_simple_is_eq_14(t, arrays):
    """L_simple = mean (eps - eps_θ(α x_0 + σ eps, t))² (Ho et al. 2020, Eq. 14)."""
    x_0, eps = arrays
    net = lambda x_t, time: np.tanh(x_t) * time[:, None]
    said = net(t.alpha * x_0 + t.sigma * eps, np.full(3, np.float32(t.time)))
    actual = ddpm.loss(ddpm.Predictor(net, schedule), x_0, eps, t)
    np.testing.assert_allclose(actual, mean_square(eps - said), rtol=64 * EPS, atol=64 * EPS)


@given(arrays=strategies.normals((3, 5), count=3))
def test_without_signal(arrays):
    """At SNR = 0 v is -x_0: native is its squared error, and weights of SNR are 0, not 0 / 0."""
    x_0, eps, y = arrays
    zero = ddpm.zero_terminal_snr(ddpm.linear())
    predict = ddpm.Predictor(lambda x, time: y, zero, ddpm.v)
    t = zero(1000)
    native = ddpm.loss(predict, x_0, eps, t, losses.native(ddpm.v))
    np.testing.assert_allclose(native, mean_square(x_0 + y), rtol=16 * EPS)
    for weight in (ddpm.simple, ddpm.min_snr(), losses.p2()):
        np.testing.assert_array_equal(ddpm.loss(predict, x_0, eps, t, weight), np.zeros(3))


@given(logsnrs=st.lists(st.floats(-9, 9), min_size=3, max_size=3), x=strategies.normals((3, 4), 3))
def test_levels_per_sample(logsnrs, x):
    """A level per sample weighs each sample as that level alone does."""
    x_0, eps, y = x
    t = schedule.at(np.array(logsnrs))
    for weight in (
        ddpm.simple,
        ddpm.min_snr(),
        losses.p2(0.5, 2.0),
        losses.native(ddpm.v),
    ):
        together = ddpm.loss(network(y, ddpm.v), x_0, eps, t, weight)
        for i, logsnr in enumerate(logsnrs):
            one = [a[i : i + 1] for a in (x_0, eps)]
            alone = ddpm.loss(network(y[i : i + 1], ddpm.v), *one, schedule.at(logsnr), weight)
            np.testing.assert_allclose(together[i : i + 1], alone, rtol=256 * EPS)


def test_conditions_reach_the_network():
    """cond goes to the network untouched, through `loss` and through `sample`."""
    seen = []
    predict = ddpm.Predictor(lambda x, time, y: seen.append(y) or x, ddpm.linear())
    y, x = object(), np.zeros((2, 3))
    ddpm.loss(predict, x, x, ddpm.linear()(500), y=y)
    ddpm.sample(predict, ddpm.ddim(ddpm.linear(), 1), x, y=y)
    assert len(seen) == 2
    assert all(one is y for one in seen)


def test_constants_of_the_weights():
    """γ = 5 (Hang et al. 2023, section 4.1); γ = k = 1 (Choi et al. 2022, section 4)."""
    t = from_logsnr(np.log([3.0, 4.0, 6.0]), 0.5)
    np.testing.assert_allclose(ddpm.min_snr()(t), [3, 4, 5], rtol=8 * EPS)
    np.testing.assert_allclose(losses.p2()(t), [3 / 4, 4 / 5, 6 / 7], rtol=8 * EPS)


def test_weights_refuse():
    """A γ or k that makes no weight is an error with its value."""
    with pytest.raises(ValueError, match="gamma must be positive, but is 0"):
        ddpm.min_snr(0)
    with pytest.raises(ValueError, match=r"they are 1\.0 and 0"):
        losses.p2(k=0)


def test_a_time_is_no_level():
    """`loss` of a time says which call makes a level of it."""
    x = np.zeros((2, 3))
    with pytest.raises(TypeError, match=r"t must be a Level, but is 500: pass schedule\(500\)"):
        ddpm.loss(ddpm.Predictor(lambda x, time: x, schedule), x, x, 500)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_sums_in_float32(dtype):
    """2^14 squares of 300: past the range of float16, and past what a bfloat16 sum can count."""
    torch = pytest.importorskip("torch")
    half = getattr(torch, dtype)
    x_0, eps = torch.full((1, 1 << 14), 300.0, dtype=half), torch.zeros(1, 1 << 14, dtype=half)
    t = from_logsnr(0.0, 0.5)
    value = ddpm.loss(lambda x_t, t: 0 * x_t, x_0, eps, t, lambda t: 1e-3)
    assert value.dtype == half
    assert float(value) == pytest.approx(90.0, rel=torch.finfo(half).eps)


def test_gradient():
    """∂/∂k mean (eps - k x_t)² = -2 mean (eps - k x_t) x_t, through torch."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x_0, eps = (torch.asarray(rng.standard_normal((4, 3))) for _ in range(2))
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    predict = ddpm.Predictor(lambda x_t, time: k * x_t, ddpm.linear())
    t = ddpm.draw(ddpm.linear(), torch.asarray(rng.random(4)))
    ddpm.loss(predict, x_0, eps, t).mean().backward()
    x_t = t.alpha[:, None] * x_0 + t.sigma[:, None] * eps
    expected = (-2 * (eps - 0.7 * x_t) * x_t).mean()
    assert float(k.grad) == pytest.approx(float(expected), rel=64 * EPS)
