"""Backends: one door for all, and what each supplies."""

from __future__ import annotations

import importlib
import pickle
import sys
from contextlib import nullcontext
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from scipy.stats import kstest

import ddpm_core as ddpm
from ddpm_core import backends
from ddpm_core.nn import UNetConfig, initialise
from ddpm_core.nn.network import FREQUENCIES
from ddpm_core_numpy import NumPy


@pytest.fixture(params=["numpy", "torch", pytest.param("jax", marks=pytest.mark.slow)])
def name(request):
    """The backends that a CPU runs. JAX has numbers of 64 bits where it was told so."""
    library = pytest.importorskip(request.param)
    with library.enable_x64(True) if request.param == "jax" else nullcontext():
        yield request.param


class Mine(ddpm.backends.Backend):
    """A third party's backend: the reference operations, on NumPy."""

    name = "mine"

    def __init__(self, device=None, dtype="float32"):
        self.xp, self.device, self.dtype = np, "cpu", np.dtype(dtype)


@pytest.fixture
def register(monkeypatch):
    """Adds entry points to those that are installed."""
    found = backends.discover()

    def add(name: str, value: str) -> None:
        found[name] = EntryPoint(name, value, backends.GROUP)
        monkeypatch.setattr(backends, "discover", lambda: found)

    return add


def test_by_entry_point(name):
    """The built-in backends come through the door that is open to everyone."""
    assert name in backends.discover()
    on = ddpm.backend(name)
    assert isinstance(on, ddpm.backends.Backend)
    assert on.name == name
    assert type(on) is backends.discover()[name].load()


def test_third_party(register):
    """A registered subclass that gives only arrays and operations samples like a built-in one."""
    register("mine", f"{__name__}:Mine")
    sys.modules.setdefault(__name__, sys.modules[Mine.__module__])
    on = ddpm.backend("mine", dtype="float64")
    assert isinstance(on, Mine)
    config = UNetConfig(channels=1, out_channels=1, widths=(4,), attention=(), groups=2)
    params = initialise(config, np.random.default_rng(0))
    x, t = np.random.default_rng(1).standard_normal((2, 1, 3, 3)), np.array([3.0, 999.0])
    found = on.network(params, config)(x, t)
    wanted = NumPy(dtype="float64").network(params, config)(x, t)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    assert on.compile(found.sum) == found.sum


def test_what_a_backend_has_by_default():
    """Σ c x, portable noise in its dtype, frequencies in float64 if that is it, and no checks."""
    on, x = Mine(dtype="float64"), np.ones((2, 3))
    assert not on.measure
    np.testing.assert_array_equal(on.lincomb((2.0, x), (0.5, x)), 2.5 * x)
    noise = ddpm.portable_noise(3, dtype=np.float64)
    np.testing.assert_array_equal(on.portable_noise(3)(1, (2, 3)), noise(1, (2, 3)), strict=True)
    with on.exact_products():
        assert on.checks() == {}
    config = UNetConfig(channels=1, out_channels=1, widths=(4,), attention=(), groups=2)
    net = on.network(initialise(config, np.random.default_rng(0)), config)
    assert net.packed[FREQUENCIES].dtype == np.float64


def test_unknown_name(register):
    """An unknown name is answered with the names that there are, and the way to add one."""
    register("mine", f"{__name__}:Mine")
    with pytest.raises(LookupError, match="no backend 'tf'") as caught:
        ddpm.backend("tf")
    assert all(name in str(caught.value) for name in ("mine, numpy", "torch", backends.GROUP))


def test_missing_library(monkeypatch):
    """Without its library a backend is an ImportError with the line that installs it."""
    for module in [m for m in sys.modules if m.split(".")[0] == "ddpm_core_torch"]:
        monkeypatch.delitem(sys.modules, module)
    for module in [m for m in sys.modules if m.startswith("array_api_compat.torch")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"needs torch: pip install 'ddpm-core\[torch\]'"):
        ddpm.backend("torch")


def test_missing_module_of_third_party(register):
    """The module that is missing is named; what another package needs, ours does not bring."""
    register("other", "a_module_that_is_not_there:Other")
    with pytest.raises(
        ImportError, match="backend 'other' needs a_module_that_is_not_there, which is not"
    ):
        ddpm.backend("other")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("numpy", {"device": "cuda"}, "NumPy has no device 'cuda'"),
        ("numpy", {"dtype": "bfloat16"}, "float32 or float64, not bfloat16"),
        ("torch", {"device": "nowhere"}, "torch cannot use device 'nowhere'"),
        ("torch", {"dtype": "float31"}, "no floating-point dtype 'float31'"),
        ("torch", {"dtype": "float8_e4m3fn"}, "no floating-point dtype 'float8_e4m3fn'"),
        ("torch", {"dtype": "int32"}, "no floating-point dtype 'int32'"),
        ("torch", {"dtype": "nn"}, "no floating-point dtype 'nn'"),
        ("jax", {"device": "nowhere"}, "JAX cannot use device 'nowhere'"),
        ("jax", {"device": "cpu:99"}, "JAX cannot use device 'cpu:99'"),
        ("jax", {"device": "cpu:x"}, "JAX cannot use device 'cpu:x'"),
        ("jax", {"device": 3}, "JAX has no device 3"),
        ("jax", {"dtype": "int32"}, "float32, bfloat16 or float64, not int32"),
        ("jax", {"dtype": "float64"}, r'until jax.config.update\("jax_enable_x64", True\)'),
    ],
)
def test_wrong_device_or_dtype(name, wrong, message):
    """A device or dtype that the library lacks is a ValueError of one line."""
    pytest.importorskip(name)
    with pytest.raises(ValueError, match=message) as caught:
        ddpm.backend(name, **wrong)
    assert "\n" not in str(caught.value)


def test_device_of_another_build():
    """A device that torch knows but this build lacks is refused at once, not in the first step."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this torch has CUDA")
    with pytest.raises(ValueError, match="torch cannot use device 'cuda'"):
        ddpm.backend("torch", device="cuda")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_there_and_back(name, dtype):
    """`to_numpy` undoes `asarray`, to the bit, in the backend's dtype or one asked for."""
    on = ddpm.backend(name, dtype=dtype)
    a = np.random.default_rng(0).standard_normal((3, 4)).astype(dtype)
    assert on.asarray(a).dtype == on.dtype
    np.testing.assert_array_equal(on.to_numpy(on.asarray(a)), a, strict=True)
    whole = np.array([-1, 0, 2**40])
    np.testing.assert_array_equal(on.to_numpy(on.asarray(whole, on.xp.int64)), whole, strict=True)


@pytest.mark.parametrize("name", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_bfloat16_on_the_host(name):
    """NumPy has no bfloat16: such values come back as float32, unchanged."""
    pytest.importorskip(name)
    on = ddpm.backend(name, dtype="bfloat16")
    a = np.array([1.0, -0.5, 2.0**20], dtype=np.float32)  # exact in 8 bits
    np.testing.assert_array_equal(on.to_numpy(on.asarray(a)), a, strict=True)
    assert on.noise(0)(1, (3,)).dtype == on.dtype


def test_noise_is_a_function(name):
    """Noise is a pure function of (seed, step): the same again, and another for another."""
    on = ddpm.backend(name)

    def drawn(seed: int, step: int) -> np.ndarray:
        return on.to_numpy(on.noise(seed)(step, (4, 5)))

    first = drawn(0, 3)
    assert first.dtype == np.float32
    drawn(1, 7)
    np.testing.assert_array_equal(drawn(0, 3), first)
    others = [drawn(0, 0), drawn(0, 2), drawn(0, 4), drawn(1, 3), drawn(3, 0), drawn(2**40, 3)]
    assert all((first != other).mean() > 0.9 for other in others)


def test_noise_is_normal(name):
    """Noise is standard normal, within a step and across steps and seeds (Kolmogorov-Smirnov)."""
    on = ddpm.backend(name)
    within = on.to_numpy(on.noise(5)(2, (20_000,)))
    across = np.concatenate(
        [on.to_numpy(on.noise(s)(i, (1,))) for s in range(25) for i in range(80)]
    )
    # Fixed draws: a correct generator would fail with probability 1e-4 if they were not.
    assert kstest(within, "norm").pvalue > 1e-4
    assert kstest(across, "norm").pvalue > 1e-4


def test_network_leaves_params_alone(name):
    """Packing copies: the host's parameters, also read-only ones, are what they were."""
    config = UNetConfig(channels=1, out_channels=1, widths=(4, 4), groups=2)
    params = initialise(config, np.random.default_rng(0))
    before = {key: p.copy() for key, p in params.items()}
    on = ddpm.backend(name)
    net = on.network(params, config)
    net(on.asarray(np.ones((1, 1, 4, 4))), on.asarray(np.ones(1)))
    assert all((params[key] == before[key]).all() for key in before)


def test_repr_says_where(name):
    """A backend prints as its class, device and dtype."""
    text = repr(ddpm.backend(name, dtype="float64"))
    assert all(part in text for part in ("device=", "cpu", "dtype=", "float64"))


def test_pickles(name):
    """A backend, its noise and a network that has been called: the same arrays from the copies."""
    config = UNetConfig(channels=1, out_channels=1, widths=(4,), attention=(), groups=2, classes=3)
    params = initialise(config, np.random.default_rng(0))
    on = ddpm.backend(name, device="cpu")
    net, noise = on.network(params, config), on.noise(3)
    x, t, y = noise(1, (2, 1, 4, 4)), on.asarray(np.ones(2)), on.asarray([0, -1], on.xp.int32)
    wanted = on.to_numpy(net(x, t, y))
    again, net, noise = pickle.loads(pickle.dumps((on, net, noise)))
    assert (repr(again), again.xp) == (repr(on), on.xp)
    found = again.to_numpy(net(noise(1, (2, 1, 4, 4)), t, y))
    np.testing.assert_array_equal(found, wanted)


def test_describes_itself(name):
    """Its device and its library with the version, in words."""
    about = ddpm.backend(name).describe()
    assert name in about["library"]
    assert importlib.import_module(name).__version__ in about["library"]
    assert "cpu" in about["device"]


def test_the_fastest(monkeypatch):
    """It is the one whose better time of two is the least; the first call of each is not timed."""
    clock, shapes = [0.0], []
    monkeypatch.setattr(backends.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(backends.os, "cpu_count", lambda: 2)

    def net(*seconds: float):
        left = list(seconds)

        def call(*given):
            shapes.append([a.shape for a in given])
            clock[0] += left.pop(0)

        return call

    networks = [net(0, 5, 5), net(90, 4, 9), net(0, 6, 4.5)]
    assert backends.fastest(networks, np.zeros((3, 1, 4, 4)), np.zeros(3)) == 1
    assert shapes == [[(2, 1, 4, 4), (2,)]] * 9
