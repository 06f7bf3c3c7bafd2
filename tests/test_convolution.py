"""Convolutions: Winograd's tiles against SciPy's, and what they lose on trained weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate2d

import ddpm_core as ddpm
from ddpm_core.models import bundled
from ddpm_core.nn.winograd import Kernel
from ddpm_core_numpy import convolution
from ddpm_core_numpy.convolution import convolve, tile

tiles = pytest.mark.parametrize("m", [2, 4])


@tiles
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (2, 9, 9, 3))),
    out=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_winograd_is_the_correlation(m, shape, out, seed):
    """Of maps of any size, whole tiles or not: the sum of SciPy's correlations, to roundings."""
    rng = np.random.default_rng(seed)
    h, bias = rng.standard_normal(shape), rng.standard_normal(out)
    weight = rng.standard_normal((out, shape[3], 3, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "tile", lambda shape, out: m)
        ways = [convolve(h, Kernel(weight), bias, 1, True, apart=apart) for apart in (True, False)]
    for b, image in enumerate(h):
        for o in range(out):
            parts = [
                correlate2d(image[:, :, c], weight[o, c], mode="same") for c in range(shape[3])
            ]
            for found in ways:
                # F(4, 3) multiplies by 5 and 8 twice over before it cancels.
                np.testing.assert_allclose(found[b, :, :, o], sum(parts) + bias[o], atol=1e-12)


def test_stride_2_has_no_tiles(monkeypatch):
    """Nor has a convolution that pads on one side."""
    monkeypatch.setattr(convolution, "tile", lambda shape, out: 4)
    monkeypatch.setattr(convolution, "_winograd", None)
    h, kernel = np.ones((1, 8, 8, 2)), Kernel(np.ones((2, 2, 3, 3)))
    for symmetric in (True, False):
        assert convolve(h, kernel, np.zeros(2), 2, symmetric).shape == (1, 4, 4, 2)


def test_rule():
    """Large maps of many channels have large tiles, small ones none."""
    assert tile((32, 32, 128), 128) == 4
    assert tile((4, 4, 256), 256) == 0
    assert tile((8, 32, 32, 128), 128) == 4
    assert tile((8, 4, 4, 256), 256) == 2
    assert tile((1, 4, 4, 256), 256) == 0
    assert tile((8, 32, 32, 3), 128) == 0
    assert tile((8, 6, 6, 64), 64) == 2


def test_kernels_are_transformed_once():
    kernel = Kernel(np.ones((2, 3, 3, 3), np.float32))
    assert kernel.form(4) is kernel.form(4)
    assert kernel.form(4).shape == (36, 3, 2)
    assert kernel.form(2).dtype == np.float32
    assert kernel.form(0).shape == (27, 2)


@pytest.fixture(scope="module")
def trained():
    return ddpm.load(bundled()["fashion-mnist"])


@pytest.mark.parametrize("time", [999.0, 500.0, 0.0])
def test_winograd_on_trained_weights(trained, time):
    """The bundled network in float32, with tiles of both sizes: 1e-5 from float64."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 1, 28, 28)), np.arange(2)
    assert tile((28, 28, 32), 32) == 4
    assert tile((14, 14, 64), 64) == 2
    outputs = []
    for dtype in ("float32", "float64"):
        on = ddpm.backend("numpy", dtype=dtype)
        net = on.network(dict(trained.params), trained.config)
        outputs.append(net(on.asarray(x), np.full(2, time, np.float32), y))
    found, exact = outputs
    assert np.abs(found - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "out", "kind"),
    [
        ((2, 128, 16, 16), 128, (3, 1, True)),  # Winograd's tiles
        ((5, 128, 9, 13), 160, (3, 1, True)),  # tiles that do not divide the map
        ((40, 128, 32, 32), 128, (3, 1, True)),  # more maps than the buffers hold at once
        ((2, 128, 4, 4), 128, (3, 1, True)),
        ((2, 32, 16, 16), 64, (3, 1, True)),
        ((2, 128, 16, 16), 128, (3, 2, False)),
        ((2, 128, 16, 16), 128, (3, 2, True)),
        ((2, 128, 5, 6), 256, (1, 1, True)),
    ],
)
@pytest.mark.parametrize("reorders", [True, False])
def test_torch_convolutions(shape, out, kind, reorders, monkeypatch):
    """In float32, with oneDNN's reordered weights and without, as torch's own in float64."""
    torch = pytest.importorskip("torch")
    from ddpm_core_torch import TorchOps, convolution
    from ddpm_core_torch.ops import InferenceOps

    if not reorders:
        monkeypatch.setattr(convolution.Packed, "reordered", lambda *_: None)
    k, stride, symmetric = kind
    rng = np.random.default_rng(0)
    h = torch.tensor(rng.standard_normal(shape))
    weight = torch.tensor(rng.standard_normal((out, shape[1], k, k)) / (k * shape[1] ** 0.5))
    bias = torch.tensor(rng.standard_normal(out))
    exact = TorchOps().conv2d(h, weight, bias, stride, symmetric)
    ops = InferenceOps()
    packed = ops.pack({"weight": weight.float()})["weight"]
    tiled = packed.winograd(shape) is not None
    if stride == 1:
        assert tiled == (k == 3 and shape[1] >= 128 and shape[2] >= 8)
    atol = 1e-4 if tiled and stride == 1 else 1e-5
    for _ in range(2):  # the second time on buffers that hold the first
        found = ops.leave(ops.conv2d(ops.enter(h.float()), packed, bias.float(), stride, symmetric))
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=atol)


def test_torch_tiles_are_of_float32_only():
    """bfloat16 cannot bear their cancellation, and float64 is asked for to be exact."""
    torch = pytest.importorskip("torch")
    from ddpm_core_torch.convolution import Packed

    shape = (8, 256, 16, 16)
    weight = torch.ones(256, 256, 3, 3)
    assert Packed(weight).winograd(shape) is not None
    assert Packed(weight.double()).winograd(shape) is None
    assert Packed(weight.bfloat16()).winograd(shape) is None
    assert Packed(weight.double()).reordered(shape, 1, 1) is None  # and oneDNN has no float64


def test_torch_networks_of_wide_maps_have_channels_last():
    pytest.importorskip("torch")
    from ddpm_core.nn import UNetConfig
    from ddpm_core_torch.ops import InferenceOps

    on = ddpm.backend("torch")
    assert isinstance(on.inference_ops(UNetConfig()), InferenceOps)
    assert on.inference_ops(UNetConfig(widths=(64, 128))) is on.ops
