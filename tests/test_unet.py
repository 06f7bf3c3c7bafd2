"""The UNet: one network in four executions, and its parts against the papers."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_params
from scipy.signal import correlate2d
from scipy.special import softmax

import ddpm_core as ddpm
from ddpm_core.nn import Ops, UNetConfig, check_inputs, initialise, parameter_shapes, unet
from ddpm_core.nn.network import FREQUENCIES, _sinusoids

REFERENCE, NUMPY = Ops(), ddpm.backend("numpy").ops
#: float32 to 1e-4 and float64 to 1e-10, of an output of about unit size: some 1e3 and 5e5 eps,
#: for sums of up to 9 C terms in another order, through about 20 layers.
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


pytestmark = pytest.mark.usefixtures("one_thread")


def random_inputs(config: UNetConfig, batch: int, height: int, width: int, dtype: str) -> Any:
    rng = np.random.default_rng(1)
    factor = 2 ** (len(config.widths) - 1)
    x = rng.standard_normal((batch, config.channels, height * factor, width * factor))
    timestep = rng.uniform(0, 1000, batch).astype(np.float32)
    y = rng.integers(-1, config.classes, batch) if config.classes else None
    return x.astype(dtype), timestep, y


@st.composite
def configs(draw: st.DrawFn) -> UNetConfig:
    groups = draw(st.integers(1, 3))
    widths = draw(
        st.lists(st.sampled_from([groups, 2 * groups, 3 * groups]), min_size=1, max_size=3)
    )
    attention = draw(st.sets(st.integers(0, len(widths) - 1)))
    return UNetConfig(
        channels=draw(st.integers(1, 3)),
        out_channels=draw(st.integers(1, 3)),
        widths=tuple(widths),
        blocks=draw(st.integers(1, 2)),
        attention=tuple(sorted(attention)),
        groups=groups,
        classes=draw(st.sampled_from([0, 1, 3])),
        scale_shift=draw(st.booleans()),
        residual_resampling=draw(st.booleans()),
        middle_norm=draw(st.booleans()),
        symmetric_padding=draw(st.booleans()),
    )


SMALL = UNetConfig(channels=2, out_channels=2, widths=(6, 12), blocks=1, groups=3, classes=4)


def test_parameters_of_cifar10():
    """Ho et al.'s CIFAR-10 network has 35.7 million parameters (appendix B), exactly 35,746,307:
    the size of diffusers' `google/ddpm-cifar10-32`, which holds their weights.
    """
    shapes = parameter_shapes(UNetConfig())
    assert sum(math.prod(shape) for shape in shapes.values()) == 35_746_307


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=12)
@given(
    config=configs(),
    batch=st.integers(1, 3),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_backends_agree(dtype, config, batch, height, width, seed):
    """The bare standard, NumPy, torch and its module are one function of the parameters."""
    torch = pytest.importorskip("torch")
    from ddpm_core_torch import UNet

    params = random_params(config, seed, dtype)
    x, timestep, y = random_inputs(config, batch, height, width, dtype)
    wanted = unet(params, x, timestep, y, config=config, ops=REFERENCE)
    outputs = {}
    for name in ("numpy", "torch"):
        on = ddpm.backend(name, dtype=dtype)
        cond = None if y is None else on.asarray(y, on.xp.int64)
        net = on.network(params, config)
        outputs[name] = net(on.asarray(x), on.asarray(timestep, on.xp.float32), cond)
        outputs[name] = on.to_numpy(outputs[name])
    module = UNet(config, params)
    given_y = None if y is None else torch.tensor(y)
    with torch.no_grad():
        outputs["module"] = module(torch.tensor(x), torch.tensor(timestep), given_y).numpy()
    scale = max(1.0, np.abs(wanted).max())
    for name, found in outputs.items():
        assert found.dtype == dtype, name
        np.testing.assert_allclose(
            found, wanted, rtol=0, atol=TOLERANCE[dtype] * scale, err_msg=name
        )


@settings(max_examples=12)
@given(config=configs())
def test_reads_every_parameter(config):
    """The network reads the names of `parameter_shapes`, each of them and no other."""

    class Recording(dict):
        read: set[str] = set()  # noqa: RUF012

        def __getitem__(self, name: str) -> Any:
            self.read.add(name)
            return super().__getitem__(name)

    params = Recording(random_params(config, 0))
    params.read = set()
    x, timestep, _ = random_inputs(config, 1, 1, 1, "float64")
    y = np.zeros(1, dtype=np.int64) if config.classes else None
    unet(params, x, timestep, y, config=config, ops=REFERENCE)
    assert params.read == set(parameter_shapes(config))


def test_initial_variance():
    """Weights are uniform of variance 1 / fan_avg, last convolutions 1e-10 of it, biases 0.

    Ho et al.'s code: variance scaling, scale 1 or 1e-10, mode fan_avg, uniform.
    """
    config = dataclasses.replace(UNetConfig(), widths=(64, 128), classes=100)
    for name, p in initialise(config, np.random.default_rng(0)).items():
        if p.ndim == 1:
            assert (p == (1.0 if "norm" in name and name.endswith("weight") else 0.0)).all(), name
            continue
        fan_out, fan_in = p.shape[0] * math.prod(p.shape[2:]), math.prod(p.shape[1:])
        last = any(part in name for part in ("conv2", "proj_out", "conv_out"))
        var = (1e-10 if last else 1.0) / ((fan_in + fan_out) / 2)
        # The variance of n squares of a uniform variable has relative deviation sqrt(0.8 / n).
        assert p.astype(float).var() == pytest.approx(var, rel=5 * math.sqrt(0.8 / p.size)), name
        assert np.abs(p).max() <= math.sqrt(3 * var) * (1 + 1e-6), name
        assert np.abs(p).max() >= math.sqrt(3 * var) * (1 - 20 / p.size), name


def test_starts_at_zero():
    """A fresh network says 0: its last convolution is zero but for a factor of 1e-5."""
    params = initialise(SMALL, np.random.default_rng(0))
    x, timestep, y = random_inputs(SMALL, 2, 3, 4, "float32")
    found = unet(NUMPY.pack(params), x, timestep, y, config=SMALL, ops=NUMPY)
    # 9 widths[0] terms of size about 1e-5 / sqrt(9 widths[0]) each: some standard deviations.
    assert np.abs(found).max() < 1e-4


def test_no_class_is_minus_one():
    """A class of -1 for all is no class, and a class changes the image that it belongs to only."""
    params = random_params(SMALL, 0)
    x, timestep, _ = random_inputs(SMALL, 3, 2, 2, "float64")

    def output(y: Any) -> np.ndarray:
        return unet(params, x, timestep, y, config=SMALL, ops=REFERENCE)

    none = output(None)
    np.testing.assert_array_equal(output(np.full(3, -1)), none)
    changed = np.abs(output(np.array([-1, 2, -1])) - none).max(axis=(1, 2, 3))
    assert (changed[[0, 2]] == 0).all()
    assert changed[1] > 1e-3
    classes = [output(np.full(3, k)) for k in range(4)]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(classes) for b in classes[:i])


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_images_are_independent(name):
    """f(batch) = stack(f(each)): nothing is shared between the images of a batch."""
    on = ddpm.backend(name, dtype="float64")
    net = on.network(random_params(SMALL, 0), SMALL)
    x, timestep, y = random_inputs(SMALL, 3, 2, 3, "float64")
    arrays = on.asarray(x), on.asarray(timestep, on.xp.float32), on.asarray(y, on.xp.int64)
    whole = on.to_numpy(net(*arrays))
    parts = [on.to_numpy(net(*(a[i : i + 1] for a in arrays))) for i in range(3)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-12)


def all_ops() -> list[Any]:
    found = [pytest.param(np.asarray, np.asarray, REFERENCE, id="reference")]
    found.append(pytest.param(np.asarray, np.asarray, NUMPY, id="numpy"))
    if find_spec("torch") is None:
        return found
    on = ddpm.backend("torch", dtype="float64")
    found.append(pytest.param(on.asarray, on.to_numpy, on.ops, id="torch"))
    from ddpm_core_torch.ops import ChannelsLastOps, InferenceOps

    for name, ops in (("channels-last", ChannelsLastOps()), ("inference", InferenceOps())):
        found.append(pytest.param(on.asarray, on.to_numpy, ops, id=f"torch-{name}"))
    return found


@pytest.mark.parametrize(("there", "back", "ops"), all_ops())
@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    channels=st.integers(1, 3),
    kind=st.sampled_from([(1, 1, True), (3, 1, True), (3, 2, False), (3, 2, True)]),
)
def test_convolution(there, back, ops, shape, channels, kind):
    """A convolution is the sum of SciPy's correlations; or of stride 2, padded on either side."""
    k, stride, symmetric = kind
    rng = np.random.default_rng(0)
    batch, fan_in, height, width = (*shape[:2], shape[2] * stride, shape[3] * stride)
    h = rng.standard_normal((batch, fan_in, height, width))
    weight, bias = rng.standard_normal((channels, fan_in, k, k)), rng.standard_normal(channels)

    # Stride 2 sees the pixels of a same-size correlation at 0, 2, 4, ... or, padded by (0, 1), at
    # 1, 3, 5, ...
    wanted = np.empty((batch, channels, height, width))
    for b in range(batch):
        for o in range(channels):
            parts = [correlate2d(h[b, c], weight[o, c], mode="same") for c in range(fan_in)]
            wanted[b, o] = sum(parts) + bias[o]
    if stride == 2:
        first = 0 if symmetric else 1
        wanted = wanted[:, :, first::2, first::2]

    packed = ops.pack({"weight": there(weight), "bias": there(bias)})
    found = ops.conv2d(ops.enter(there(h)), packed["weight"], packed["bias"], stride, symmetric)
    np.testing.assert_allclose(back(ops.leave(found)), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("there", "back", "ops"), all_ops())
def test_group_norm(there, back, ops):
    """(x - mean) / sqrt(var + eps) over each group of channels (Wu & He 2018, Eqs. 1-2, 6).

    Rows that lie apart in memory give the same, and so does the map with SiLU after it.
    """
    rng = np.random.default_rng(0)
    h = rng.standard_normal((2, 6, 5, 4)) * 3 + 7
    weight, bias = rng.standard_normal(6), rng.standard_normal(6)
    wanted = np.empty_like(h)
    for image, result in zip(h, wanted, strict=True):
        for first in (0, 3):
            part = image[first : first + 3]
            result[first : first + 3] = (part - np.mean(part)) / np.sqrt(np.var(part) + 1e-6)
    wanted = wanted * weight[:, None, None] + bias[:, None, None]

    w, b = there(weight), there(bias)
    entered = ops.enter(there(h))
    apart = there(np.swapaxes(np.ascontiguousarray(np.swapaxes(h, 0, 3)), 0, 3))
    apart = ops.enter(apart) if ops is not NUMPY else np.moveaxis(apart, 1, 3)
    for given_map in (entered, apart):
        found = back(ops.leave(ops.group_norm(given_map, w, b, 2, 1e-6)))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
        found = back(ops.leave(ops.group_norm_silu(given_map, w, b, 2, 1e-6)))
        np.testing.assert_allclose(found, wanted / (1 + np.exp(-wanted)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("there", "back", "ops"), all_ops())
@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_attention(there, back, ops, heads):
    """softmax(Q Kᵀ / sqrt(d)) V over all pixels, head by head (Vaswani et al. 2017, Eq. 1)."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 6, 3, 4))
    wanted = []
    for parts in zip(*(np.split(a, heads, axis=1) for a in (q, k, v)), strict=True):
        d = 6 // heads
        Q, K, V = (np.moveaxis(a, 1, 3).reshape(2, 12, d) for a in parts)
        attended = softmax(np.einsum("bid,bjd->bij", Q, K) / math.sqrt(d), axis=-1)
        out = np.einsum("bij,bjd->bid", attended, V).reshape(2, 3, 4, d)
        wanted.append(np.moveaxis(out, 3, 1))
    found = ops.leave(ops.attention(*(ops.enter(there(a)) for a in (q, k, v)), heads))
    np.testing.assert_allclose(back(found), np.concatenate(wanted, axis=1), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("there", "back", "ops"), all_ops())
def test_downsample_and_scale_shift(there, back, ops):
    """Means of 2x2 pixels; h (1 + scale) + shift, of each channel of each image."""
    rng = np.random.default_rng(0)
    h = rng.standard_normal((2, 3, 4, 6))
    wanted = (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4
    found = ops.leave(ops.downsample(ops.enter(there(h))))
    np.testing.assert_allclose(back(found), wanted, rtol=0, atol=1e-15)
    scale, shift = rng.standard_normal((2, 2, 3))
    found = ops.leave(ops.scale_shift(ops.enter(there(h)), there(scale), there(shift)))
    wanted = h * (1 + scale[..., None, None]) + shift[..., None, None]
    np.testing.assert_allclose(back(found), wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("there", "back", "ops"), all_ops())
def test_attention_of_large_logits(there, back, ops):
    """Logits of 1e6 do not overflow: attention becomes the choice of the largest."""
    q = np.full((1, 1, 1, 2), 1e3)
    k = np.array([1e3, -1e3]).reshape(1, 1, 1, 2)
    v = np.array([3.0, 5.0]).reshape(1, 1, 1, 2)
    found = ops.leave(ops.attention(*(ops.enter(there(a)) for a in (q, k, v))))
    np.testing.assert_array_equal(back(found), np.full((1, 1, 1, 2), 3.0))


@pytest.mark.parametrize(("there", "back", "ops"), all_ops())
def test_silu_at_both_ends(there, back, ops):
    """x sigmoid(x) is 0 far below and x far above, without overflow (a warning is an error)."""
    x = np.array([[-1e4, -800.0, 0.0, 800.0, 1e4]])
    np.testing.assert_array_equal(back(ops.silu(there(x))), [[0, 0, 0, 800, 1e4]])
    h = np.array([-1.0, 1.0]).reshape(1, 1, 1, 2)  # normalised to itself, then times 1e4
    one, zero = there(np.array([1e4])), there(np.array([0.0]))
    found = back(ops.leave(ops.group_norm_silu(ops.enter(there(h)), one, zero, 1, 0.0)))
    np.testing.assert_array_equal(found.ravel(), [0, 1e4])


@pytest.mark.parametrize("width", [2, 4, 7, 128])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("endpoint", [True, False])
@pytest.mark.parametrize("cosine_first", [False, True])
def test_sinusoids(width, dtype, endpoint, cosine_first):
    """[sin, cos] of t 10000^(-i / (half - 1)), a 0 where the width is odd (Ho et al.'s code).

    Vaswani et al. 2017, section 3.5, with half - 1 for half, so that the last is 1 / 10000; or
    with half, and the cosines first (Nichol & Dhariwal 2021's code).
    """
    half = width // 2
    t = np.array([0.0, 1.0, 17.5, 999.0])
    wanted = np.zeros((4, width))
    for row, time in zip(wanted, t, strict=True):
        for i in range(half):
            angle = time / 10000 ** (i / max(half - 1 if endpoint else half, 1))
            pair = math.sin(angle), math.cos(angle)
            row[i], row[half + i] = reversed(pair) if cosine_first else pair
    config = UNetConfig(
        widths=(width,), attention=(), groups=1, endpoint=endpoint, cosine_first=cosine_first
    )
    found = _sinusoids(t.astype(np.float32), config, np.zeros(1, dtype=dtype))
    assert found.dtype == dtype
    # The angle is at most 999 and rounded twice, its rate and itself.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2 * 999 * np.finfo(dtype).eps)


def test_batch_of_none():
    """No images give no outputs, of the right shape."""
    for config in (SMALL, dataclasses.replace(SMALL, scale_shift=True, residual_resampling=True)):
        params = random_params(config, 0)
        x, timestep, y = (a[:0] for a in random_inputs(config, 1, 2, 3, "float64"))
        found = unet(params, x, timestep, y, config=config, ops=REFERENCE)
        assert found.shape == (0, 2, 4, 6)


X, TIME, Y = np.zeros((2, 2, 4, 4)), np.zeros(2), np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": np.zeros((2, 3, 4, 4))}, r"x must be \(B, 2, H, W\).*has shape \(2, 3, 4, 4\)$"),
        ({"x": np.zeros((2, 4, 4, 2))}, r"\(2, 4, 4, 2\); are its channels last\?"),
        ({"x": np.zeros((2, 2, 5, 4))}, "H and W divisible by 2"),
        ({"x": np.zeros((2, 2, 4, 7))}, "H and W divisible by 2"),
        ({"x": np.zeros((2, 4, 4))}, r"x must be .* but has shape \(2, 4, 4\)$"),
        ({"timestep": np.zeros(3)}, r"timestep must be \(2,\), one per image, but is \(3,\)"),
        ({"timestep": np.zeros(())}, r"timestep must be \(2,\), one per image, but is \(\)"),
        ({"y": Y[:1]}, r"y must be \(2,\), one class per image, but is \(1,\)"),
        ({"y": np.zeros(3, np.int64)}, r"y must be \(2,\), one class per image, but is \(3,\)"),
        ({"y": np.array([0, 4])}, r"y must lie within \[-1, 3\], but has 0 to 4"),
        ({"y": np.array([-2, 0])}, r"y must lie within \[-1, 3\], but has -2 to 0"),
    ],
)
def test_wrong_inputs(wrong, message):
    """A wrong shape is a ValueError that says which is right."""
    inputs = {"x": X, "timestep": TIME, "y": Y} | wrong
    check_inputs(X, TIME, Y, SMALL)
    with pytest.raises(ValueError, match=message):
        check_inputs(**inputs, config=SMALL)
    with pytest.raises(ValueError, match=message):
        unet({}, **inputs, config=SMALL, ops=REFERENCE)


def test_inputs_of_wrong_types():
    """Lists, numbers, and arrays of another library than the rest are a TypeError with the name."""
    torch = pytest.importorskip("torch")
    there = torch.zeros(X.shape, dtype=torch.float64)
    for inputs, like, message in [
        ((X, TIME, [0, 1]), None, "y must be an array, but is a Python list"),
        ((X, 3.0, None), None, "timestep must be an array, but is a Python float"),
        ((X.tolist(), TIME, None), None, "x must be an array, but is a Python list"),
        ((there, TIME, None), None, "x is a torch Tensor, timestep is a numpy ndarray"),
        ((X, TIME, torch.tensor(Y)), None, "y is a torch Tensor: pass arrays of one library"),
        ((X, TIME, Y), there, "the network is a torch Tensor: pass arrays of one library"),
    ]:
        with pytest.raises(TypeError, match=message):
            check_inputs(*inputs, SMALL, like)
    params = {FREQUENCIES: there}
    with pytest.raises(TypeError, match="the network is a torch Tensor"):
        unet(params, X, TIME, config=SMALL, ops=REFERENCE)


def test_class_for_unconditional_network():
    """A class for a network without classes is refused, not ignored."""
    config = dataclasses.replace(SMALL, classes=0)
    with pytest.raises(ValueError, match="this network has no classes"):
        unet({}, np.zeros((1, 2, 4, 4)), np.zeros(1), np.zeros(1), config=config, ops=REFERENCE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"widths": ()}, "widths must be 1 to 16 multiples of groups = 32, but are 0"),
        ({"widths": (32,) * 17}, "widths must be 1 to 16 .* but are 17"),
        ({"widths": (48,)}, r"multiples of groups = 32, at most 65536, but are \(48,\)"),
        ({"widths": (2**17,)}, r"at most 65536, but are \(131072,\)"),
        ({"widths": (32 * 10**400,)}, r"at most 65536, but are \(32000"),
        ({"attention": (0,) * 5}, r"indices into the 4 widths, but is \(0, 0, 0, 0, 0\)"),
        ({"attention": (4,)}, r"indices into the 4 widths, but is \(4,\)"),
        ({"attention": (-1,)}, "indices into the 4 widths"),
        ({"blocks": 0}, "blocks must be at least 1, but is 0"),
        ({"blocks": 101}, "blocks must be at most 100, but is 101"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"classes": -1}, "classes must be at least 0, but is -1"),
        ({"head_width": 64, "heads": 2}, "give heads or head_width"),
        ({"heads": 3}, r"heads = 3 does not divide the widths that have attention, \[256, 256\]"),
        ({"widths": (2**16,) * 4}, r"the network would have .*e\+\d+ parameters, more than 1e\+10"),
        ({"eps": -1e-6}, "eps must not be negative"),
        ({"eps": math.nan}, "eps must not be negative and must be finite, but is nan"),
        ({"eps": math.inf}, "must be finite, but is inf"),
        ({"eps": 10**400}, "eps must be a number, but is 1000"),
        ({"eps": "1e-6"}, "eps must be a number, but is '1e-6'"),
        ({"eps": True}, "eps must be a number, but is True"),
        ({"blocks": 1.5}, "blocks must be an integer, but is 1.5"),
        ({"blocks": 2.0}, "blocks must be an integer, but is 2.0"),
        ({"blocks": True}, "blocks must be an integer, but is True"),
        ({"widths": [64.0]}, r"widths must be integers, but is \[64.0\]"),
        ({"widths": [True]}, "widths must be integers"),
        ({"widths": "88"}, "widths must be integers, but is '88'"),
        ({"widths": 64}, "widths must be integers, but is 64"),
        ({"attention": None}, "attention must be integers, but is None"),
        ({"scale_shift": 1}, "scale_shift must be True or False, but is 1"),
    ],
    ids=str,
)
def test_wrong_config(wrong, message):
    """A configuration that makes no network is refused, with the field and its value."""
    with pytest.raises(ValueError, match=message):
        UNetConfig(**wrong)


def test_config_of_numpy_integers():
    """Integers of NumPy, such as shapes and labels give, are Python's once in a configuration."""
    config = UNetConfig(blocks=np.int64(2), widths=np.array([32, 64]), attention=np.array([1]))
    assert config == UNetConfig(widths=(32, 64))
    assert json.loads(json.dumps(dataclasses.asdict(config)))["widths"] == [32, 64]


@pytest.fixture
def module():
    pytest.importorskip("torch")
    from ddpm_core_torch import UNet

    return lambda **kw: UNet(SMALL, random_params(SMALL, 0, "float32"), **kw)


@pytest.fixture
def inputs():
    import torch

    x, timestep, y = random_inputs(SMALL, 2, 2, 2, "float32")
    return torch.tensor(x), torch.tensor(timestep), torch.tensor(np.abs(y))


def test_gradients(module, inputs):
    """The derivative of every parameter is that of a central difference along its direction."""
    import torch

    x, timestep, y = inputs
    net = module().double()
    cotangent = torch.randn(x.shape, dtype=torch.float64, generator=torch.manual_seed(0))

    def value() -> torch.Tensor:
        return (net(x.double(), timestep, y) * cotangent).sum()

    value().backward()
    step = 1e-6
    for name, p in net.named_parameters():
        direction = torch.randn(p.shape, dtype=torch.float64, generator=torch.manual_seed(1))
        with torch.no_grad():
            p += step * direction
            above = value()
            p -= 2 * step * direction
            below = value()
            p += step * direction
        slope, wanted = (above - below) / (2 * step), (p.grad * direction).sum()
        # Central differences err by step² and by eps / step, of sums of size about 100.
        torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: n + m)
        assert p.grad.abs().max() > 0, name


def test_module_names(module):
    """The module's state has the names and shapes of the flat dict."""
    found = {name: tuple(p.shape) for name, p in module().state_dict().items()}
    assert found == parameter_shapes(SMALL)


def test_dropout_in_training_only(module, inputs):
    """Dropout changes the output in training mode, and neither in evaluation nor at rate 0."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        net, dropping = module(), module(dropout=0.5)
        wanted = net(*inputs)
        assert torch.equal(wanted, net(*inputs))
        assert not torch.allclose(dropping(*inputs), wanted, atol=1e-2)
        assert torch.equal(dropping.eval()(*inputs), wanted)
