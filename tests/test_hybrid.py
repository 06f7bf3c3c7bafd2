"""The hybrid loss and its gradients, against its two parts and Nichol & Dhariwal's equations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from array_api_extra.testing import lazy_xp_function
from scipy import stats

import ddpm_core as ddpm
from ddpm_core import losses

EPS = np.finfo(np.float64).eps
LINEAR = ddpm.linear()
TIMES = np.array([1, 700, 2, 1, 31])


class Torch:
    """What the tests of `hybrid` ask of torch, in float64."""

    def __init__(self) -> None:
        self.torch = pytest.importorskip("torch")

    def asarray(self, a: Any) -> Any:
        return self.torch.tensor(np.asarray(a, dtype=np.float64))

    def gradient(self, f: Any, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f's values, and the gradient of their sum."""
        leaf = self.asarray(raw).requires_grad_()
        value = f(leaf)
        (wrt,) = self.torch.autograd.grad(value.sum(), leaf)
        return value.detach().numpy(), wrt.numpy()


class Jax:
    """The same of JAX."""

    def __init__(self) -> None:
        self.jax = pytest.importorskip("jax")

    def asarray(self, a: Any) -> Any:
        return self.jax.numpy.asarray(np.asarray(a, dtype=np.float64))

    def gradient(self, f: Any, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        leaf = self.asarray(raw)
        wrt = self.jax.grad(lambda leaf: f(leaf).sum())(leaf)
        return np.asarray(f(leaf)), np.asarray(wrt)


@pytest.fixture(params=[Torch, pytest.param(Jax, marks=pytest.mark.slow)])
def grads(request):
    made = request.param()
    if request.param is Jax:
        with made.jax.enable_x64(True):
            yield made
    else:
        yield made


def predictor(raw, predicts=ddpm.eps, seen=None):
    """A network whose whole output is a constant."""

    def net(x, time, **cond):
        if seen is not None:
            seen.append(cond)
        return raw

    return ddpm.Predictor(net, LINEAR, predicts, variance=True)


@pytest.mark.parametrize("predicts", [ddpm.eps, ddpm.x0, ddpm.v], ids=["eps", "x0", "v"])
@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("bins", [None, 256])
def test_hybrid(grads, predicts, where, bins):
    """L_simple + λ T L_{t-1} bits per coordinate; ∂ of the one on the mean, of the other on v."""
    rng = np.random.default_rng(0)
    x_0 = grads.asarray(2 * rng.integers(0, 256, (5, 2, 3)) / 255 - 1)
    eps = grads.asarray(rng.standard_normal((5, 2, 3)))
    raw = rng.standard_normal((5, 4, 3))
    lam, options = (1e-3, {}) if bins else (0.37, {"lam": 0.37, "bins": None})
    t = LINEAR(grads.asarray(TIMES) if where == "device" else TIMES)
    s = LINEAR(grads.asarray(TIMES - 1) if where == "device" else TIMES - 1)

    def term(raw):
        kernel = ddpm.learned_range(predictor(raw, predicts), ddpm.kernels.decoder_variance(LINEAR))
        return lam * 1000 * losses.bound(kernel, x_0, eps, t, s, bins=bins) / (6 * math.log(2))

    simple = lambda raw: ddpm.loss(predictor(raw, predicts), x_0, eps, t)
    hybrid = lambda raw: ddpm.hybrid(predictor(raw, predicts), x_0, eps, t, **options)
    both, on_both = grads.gradient(hybrid, raw)
    first, on_first = grads.gradient(simple, raw)
    second, on_second = grads.gradient(term, raw)
    np.testing.assert_allclose(both, first + second, rtol=16 * EPS)
    np.testing.assert_array_equal(on_both[:, :2], on_first[:, :2])  # nothing of λ
    np.testing.assert_allclose(on_both[:, 2:], on_second[:, 2:], rtol=64 * EPS)
    # What was stopped is something.
    assert np.all(on_second[:, :2] != 0)
    assert np.all(on_first[:, 2:] == 0)


def test_gradient_on_v():
    """∂L_{t-1} / ∂v = ¼ log(β / β̃) Σ (1 - (β̃ + (μ̃ - μ)²) / Σ_θ), by hand."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    x_0, eps, y, v = rng.standard_normal((4, 2, 3))
    t, s = LINEAR(400), LINEAR(399)
    said = torch.tensor(np.concatenate([y, v], 1), requires_grad=True)
    value = ddpm.hybrid(predictor(said), torch.tensor(x_0), torch.tensor(eps), t, lam=1.0)
    (on_raw,) = torch.autograd.grad(value.sum(), said)
    beta, tilde = ddpm.large(t, s), ddpm.small(t, s)
    var = np.exp((v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(tilde))
    off = (
        s.alpha * ddpm.levels.tau(t, s) * t.sigma / t.alpha * (y - eps)
    )  # of x_0, σ / α times eps'
    wanted = 0.25 * np.log(beta / tilde) * (1 - (tilde + off**2) / var)
    wanted *= 1000 / (3 * math.log(2))
    # β / β̃ is 1.001 here, so that its log keeps EPS 1e3.
    size = np.abs(0.25 * np.log(beta / tilde) * 1000 / (3 * math.log(2))) * (1 + off**2 / var)
    assert np.all(np.abs(on_raw[:, 3:].numpy() - wanted) <= 1e5 * EPS * size)


def test_hybrid_asks_the_network_once():
    """One call, with the conditions, serves both losses; L_simple takes its weight."""
    rng = np.random.default_rng(0)
    x_0, eps = rng.standard_normal((2, 2, 3))
    raw, seen, y = rng.standard_normal((2, 6)), [], object()
    t = LINEAR(30)  # where SNR is past min_snr's 5
    for weight in (ddpm.simple, ddpm.min_snr()):
        seen.clear()
        value = ddpm.hybrid(predictor(raw, seen=seen), x_0, eps, t, weight, lam=0.0, bins=None, y=y)
        assert len(seen) == 1
        assert list(seen[0]) == ["y"]
        assert seen[0]["y"] is y
        wanted = ddpm.loss(predictor(raw), x_0, eps, t, weight)
        np.testing.assert_allclose(value, wanted, rtol=4 * EPS)


def test_hybrid_needs_a_learned_variance():
    """Without v, or without a step t - 1, there is no L_vlb to add."""
    x = np.ones((1, 2))
    net = lambda x, time: np.concatenate([x, x], axis=1)
    for predict, said in (
        (ddpm.Predictor(lambda x, time: x, LINEAR), "variance=False"),
        (ddpm.Predictor(net, ddpm.VP(), variance=True), "VP"),
    ):
        with pytest.raises(ValueError, match=f"and a discrete schedule, but it has .*{said}"):
            ddpm.hybrid(predict, x, x, LINEAR(1))


def test_hybrid_of_one_step():
    """A schedule of one step has no β̃ of a step before: decoder_var stands for it."""
    one, v = ddpm.from_betas([0.1]), np.array([[-1.0, 0.0], [0.5, 1.0]])
    net = lambda x, time: np.concatenate([0 * x, v], axis=1)
    predict = ddpm.Predictor(net, one, variance=True)
    x_0, eps = np.array([[[0.5, -1.0], [0.0, 1.0]], np.full((2, 2), 0.1)])
    with pytest.raises(ValueError, match="no step from 2 to 1: pass decoder_var"):
        ddpm.hybrid(predict, x_0, eps, one(1))
    actual = ddpm.hybrid(predict, x_0, eps, one(1), lam=0.5, bins=None, decoder_var=0.01)
    var = 0.1 ** ((v + 1) / 2) * 0.01 ** ((1 - v) / 2)  # β_1 = 0.1
    mean = x_0 + np.sqrt(0.1 / 0.9) * eps  # x_t / α
    nats = -stats.norm.logpdf(x_0, mean, np.sqrt(var)).sum(1)
    wanted = (eps**2).mean(1) + 0.5 * nats / (2 * math.log(2))
    np.testing.assert_allclose(actual, wanted, rtol=1e-12)


def hybrid_of(x, eps, t):
    """The hybrid loss of a network of two outputs."""
    net = lambda x_t, time: array_namespace(x_t).concat([0.5 * x_t, 0.25 * x_t], axis=1)
    return ddpm.hybrid(ddpm.Predictor(net, LINEAR, variance=True), x, eps, t, lam=1e-3)


def run(case, *args):
    """What `lazy_xp_function` sees: under JAX this call is jitted, under dask it is lazy."""
    return case(*args)


lazy_xp_function(run)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hybrid_on_every_library(lib, dtype, on_device):
    """The loss of any library is that of NumPy in float64, to c eps."""
    if dtype == "float64" and lib.name == "mlx":
        pytest.skip("MLX has no float64 on its devices")
    rng = np.random.default_rng(0)
    x = (2 * rng.integers(0, 256, (3, 2, 2)) / 255 - 1).astype(np.float32)
    eps = rng.standard_normal(x.shape).astype(np.float32)
    t = LINEAR(np.array([700, 100, 1]))
    expected = hybrid_of(x.astype(np.float64), eps.astype(np.float64), t)
    with lib.precision(dtype):
        wanted = getattr(lib.xp, dtype)
        there = lib.level(t, wanted) if on_device else t
        actual = run(hybrid_of, lib.asarray(x, wanted), lib.asarray(eps, wanted), there)
        assert actual.dtype == wanted
        if lib.has_values:
            # τ of the neighbours t and t - 1, from levels in this dtype: eps |log-SNR| / τ.
            rtol = 1e4 * float(lib.xp.finfo(wanted).eps)
            np.testing.assert_allclose(lib.to_numpy(actual), expected, rtol=rtol)
