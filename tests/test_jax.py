"""The JAX backend: its arrays and noise, its operations, its network and gradients."""

from __future__ import annotations

import math

import jax_network
import numpy as np
import pytest
from jax_network import CONFIG, EPS, PARAMS, SCHEDULE, SHAPE, draws, jnp, noises
from networks import random_params
from scipy.stats import kstest

import ddpm_core as ddpm
from ddpm_core.nn import Ops, UNetConfig, unet

jax = pytest.importorskip("jax")


from ddpm_core_jax import JAX, JAXOps  # noqa: E402

few_optimisations, predict = jax_network.few_optimisations, jax_network.predict


pytestmark = pytest.mark.slow  # JAX compiles, examples train


def test_defaults():
    on = JAX()
    assert (on.xp, on.dtype, on.device) == (jnp, jnp.float32, None)
    assert repr(on) == "JAX(device='cpu:0', dtype=dtype('float32'))"
    assert on.compile(jnp.sin)(0.5) == pytest.approx(math.sin(0.5))


def test_classes_are_integers_of_this_jax():
    """Integers of 64 bits become those that JAX has, without its warning."""
    x = JAX().asarray(np.array([-1, 9]), jnp.int64)
    assert x.dtype == jnp.int32
    np.testing.assert_array_equal(x, [-1, 9])


def test_device_only_where_given():
    """Arrays are committed to a device that was asked for, and to none otherwise."""
    cpu = jax.devices("cpu")[0]
    for device in ("cpu", "cpu:0", cpu):
        on = JAX(device)
        assert on.device == cpu
        assert on.asarray([1.0]).committed
        assert on.noise(0)(1, (2,)).committed
    assert not JAX().asarray([1.0]).committed
    assert not JAX().noise(0)(1, (2,)).committed


def test_noise_of_traced_steps():
    """The same numbers; and those of many steps are standard normal."""
    on = JAX()
    first = np.asarray(on.noise(0)(3, (4, 5)))
    np.testing.assert_array_equal(jax.jit(lambda i: on.noise(0)(i, (4, 5)))(3), first)
    across = jax.vmap(lambda i: on.noise(5)(i, (1,)))(jnp.arange(2000)).ravel()
    # Fixed draws: a correct generator would fail with probability 1e-4 if they were not.
    assert kstest(np.asarray(across), "norm").pvalue > 1e-4


def test_noise_in_bfloat16():
    """That of float32, rounded: normal numbers made of 8 bits would have a mean of their own."""
    found, fine = (JAX(dtype=dtype).noise(5)(3, (64, 65)) for dtype in ("bfloat16", "float32"))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, fine.astype(jnp.bfloat16))


def test_portable_noise_of_traced_steps():
    """Bit for bit that of NumPy, in a scan over the steps."""
    host, device = noises()
    step = lambda _, i: (None, device(i, (2, 5)))
    found = jax.jit(lambda: jax.lax.scan(step, None, jnp.arange(1, 5))[1])()
    np.testing.assert_array_equal(found, [host(i, (2, 5)) for i in range(1, 5)])


H = (2, 12, 4, 6)
OPERATIONS = {
    "conv 1x1": lambda ops, *a: ops.conv2d(*a),
    "conv 3x3": lambda ops, *a: ops.conv2d(*a),
    "halved": lambda ops, *a: ops.conv2d(*a, 2, True),
    "halved as SAME": lambda ops, *a: ops.conv2d(*a, 2, False),
    "group_norm": lambda ops, *a: ops.group_norm(*a, 3, 1e-3),
    "group_norm_silu": lambda ops, *a: ops.group_norm_silu(*a, 3, 1e-3),
    "silu": lambda ops, h: ops.silu(h),
    "attention": lambda ops, *a: ops.attention(*a),
    "heads": lambda ops, *a: ops.attention(*a, 4),
    "downsample": lambda ops, h: ops.downsample(h),
    "upsample": lambda ops, h: ops.upsample(h),
    "add_vector": lambda ops, *a: ops.add_vector(*a),
    "scale_shift": lambda ops, *a: ops.scale_shift(*a),
    "concat": lambda ops, *a: ops.concat(*a),
}
SHAPES = {
    "conv 1x1": [H, (5, 12, 1, 1), (5,)],
    "conv 3x3": [H, (5, 12, 3, 3), (5,)],
    "halved": [H, (5, 12, 3, 3), (5,)],
    "halved as SAME": [H, (5, 12, 3, 3), (5,)],
    "group_norm": [H, (12,), (12,)],
    "group_norm_silu": [H, (12,), (12,)],
    "attention": [H, H, H],
    "heads": [H, H, H],
    "add_vector": [H, (2, 12)],
    "scale_shift": [H, (2, 12), (2, 12)],
    "concat": [H, (2, 3, 4, 6)],
}


def through(ops: Ops, name: str, *a):
    """An operation on maps (B, C, H, W), of any layout inside."""
    inside = [ops.enter(x) if x.ndim == 4 and x.shape[0] == 2 else x for x in a]
    return ops.leave(OPERATIONS[name](ops, *inside))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    """Values and derivatives of the reference: plain, under jit, under vmap."""
    rng = np.random.default_rng(0)
    a = [rng.standard_normal(s) for s in SHAPES.get(name, [H])]
    da = [rng.standard_normal(x.shape) for x in a]
    wanted = through(Ops(), name, *a)
    step = 1e-6
    ahead, behind = (
        through(Ops(), name, *(x + s * dx for x, dx in zip(a, da, strict=True)))
        for s in (step, -step)
    )
    single = jax.tree.map(lambda x: np.asarray(x, np.float32), a)
    found = jax.jit(lambda *a: through(JAXOps(), name, *a))(*single)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())

    @jax.jit
    def run(x, dx):
        f = lambda *a: through(JAXOps(), name, *a)
        slope = jax.jvp(f, x, dx)[1]
        stacked = jax.vmap(f)(*(jnp.stack([2 * v, v]) for v in x))
        return f(*x), stacked[1], slope, jax.vjp(f, *x)[1](slope)

    with jax.enable_x64(True):
        plain, mapped, slope, back = run(tuple(a), tuple(da))
        np.testing.assert_allclose(plain, wanted, rtol=0, atol=1e-12)
        np.testing.assert_allclose(mapped, wanted, rtol=0, atol=1e-12)
        # A central difference errs by step² and by eps / step.
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=0, atol=1e-7)
        turned = sum(float((g * v).sum()) for g, v in zip(back, da, strict=True))
        assert turned == pytest.approx(float((slope**2).sum()), rel=1e-10)


def test_norm_of_large_means():
    """The squares are about the mean: their difference in one pass would cancel."""
    h = (draws(2, 6, 8, 8) + 1000).astype(np.float32)
    one = np.ones(6, np.float32)
    found = through(JAXOps(), "group_norm", *map(jnp.asarray, (h, one, one)))
    wanted = through(Ops(), "group_norm", *(a.astype(float) for a in (h, one, one)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1000 * 4 * EPS)


def test_attention_in_bfloat16():
    """Its softmax is of float32, so that logits of some hundred keep their differences."""
    q, k, v = draws(3, 2, 8, 4, 4)
    low = [jnp.asarray(a, jnp.bfloat16) for a in (8 * q, 8 * k, v)]
    found = through(JAXOps(), "attention", *low)
    wanted = through(Ops(), "attention", *(np.asarray(a, float) for a in low))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, float), wanted, rtol=0, atol=2**-6)


def test_statistics_are_float32():
    """Group norm in bfloat16 keeps the digits that a mean of 16 would take from its sums."""
    h = (draws(2, 6, 8, 8) + 16).astype(jnp.bfloat16)
    found = through(JAXOps(), "group_norm", jnp.asarray(h), *map(jnp.asarray, (h[0, :, 0, 0],) * 2))
    assert found.dtype == jnp.bfloat16
    exact = through(Ops(), "group_norm", *(a.astype(float) for a in (h, *(h[0, :, 0, 0],) * 2)))
    np.testing.assert_allclose(np.asarray(found, float), exact, rtol=2**-8, atol=2**-8)


CONFIGS = {
    "ho": UNetConfig(
        channels=2, out_channels=2, widths=(6, 12), blocks=1, attention=(0,), groups=3
    ),
    "dhariwal": UNetConfig(
        channels=2, out_channels=4, widths=(4, 8, 8), blocks=1, groups=2, classes=3, head_width=4,
        scale_shift=True, residual_resampling=True, symmetric_padding=True, cosine_first=True,
        endpoint=False, eps=1e-5,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_network(name):
    """The UNet of the reference, in float64."""
    config = CONFIGS[name]
    params = random_params(config)
    x, timestep = draws(2, 2, 8, 4), np.array([3.0, 999.0], np.float32)
    y = np.array([-1, 2]) if config.classes else None
    wanted = unet(params, x, timestep, y, config=config, ops=Ops())
    with jax.enable_x64(True):
        on = JAX(dtype="float64")
        found = on.network(params, config)(on.asarray(x), timestep, y)
        # As tests/test_unet.py has it, of the other backends.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())


@pytest.mark.slow
def test_network_in_bfloat16(predict):
    """A network of bfloat16 takes a state of float32, which a Predictor's x_0 then keeps."""
    x, t, y = jnp.asarray(draws(*SHAPE), jnp.float32), SCHEDULE(600), jnp.asarray([0, -1, 2])
    low = ddpm.Predictor(JAX(dtype="bfloat16").network(PARAMS, CONFIG), SCHEDULE, ddpm.v)
    found, wanted = low(x, t, y=y), predict(x, t, y=y)
    assert found.dtype == jnp.float32
    assert low.net(x, low.timestep(x, t), y).dtype == jnp.bfloat16
    error = np.abs(np.asarray(found - wanted)).max() / np.abs(np.asarray(wanted)).max()
    assert 2**-14 < error < 2**-4  # some roundings of 2^-9 each


@pytest.mark.slow
def test_gradients_are_those_of_torch():
    """Of the loss, in every parameter, to 1e-4 of its size."""
    torch = pytest.importorskip("torch")
    from ddpm_core_torch import UNet

    x_0, eps = draws(2, *SHAPE).astype(np.float32)
    u, y = np.array([0.05, 0.5, 0.95], np.float32), np.array([0, -1, 2])
    net = UNet(CONFIG, PARAMS)
    t = ddpm.draw(SCHEDULE, torch.as_tensor(u))
    predict = ddpm.Predictor(net, SCHEDULE)
    a, b, c = (torch.as_tensor(v) for v in (x_0, eps, y))
    value = ddpm.loss(predict, a, b, t, y=c).mean()
    value.backward()

    @jax.jit
    def objective(params):
        predict = ddpm.Predictor(JAX().network(params, CONFIG), SCHEDULE)
        t = ddpm.draw(SCHEDULE, jnp.asarray(u))
        return ddpm.loss(predict, jnp.asarray(x_0), jnp.asarray(eps), t, y=jnp.asarray(y)).mean()

    found, slopes = jax.value_and_grad(objective)({n: jnp.asarray(p) for n, p in PARAMS.items()})
    assert float(found) == pytest.approx(value.item(), rel=1e-5)
    for name, p in net.named_parameters():
        wanted = p.grad.numpy()
        size = np.abs(wanted).max()
        # A softmax does not see what is added to every key: that derivative is 0, less roundings.
        assert (size < 1e-7) if name.endswith(".k.bias") else (size > 1e-3), name
        atol = 1e-4 * max(size, 1e-3)
        np.testing.assert_allclose(slopes[name], wanted, rtol=0, atol=atol, err_msg=name)


def test_classes_of_the_host_are_checked(predict):
    """Those in a NumPy array; of a JAX array a class that there is not shows as NaN."""
    x, t = jnp.zeros(SHAPE), jnp.zeros(3)
    for wrong in ([-2, 0, 0], [0, 0, 3]):
        with pytest.raises(ValueError, match=r"y must lie within \[-1, 2\]"):
            predict.net(x, t, np.array(wrong))
    with pytest.raises(ValueError, match=r"y must be \(3,\), one class per image"):
        predict.net(x, t, np.array([0, 1]))
    found = np.asarray(predict.net(x, t, jnp.array([-7, 3, 0])))
    np.testing.assert_array_equal(found[0], predict.net(x, t, jnp.array([-1, 0, 0]))[0])
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()
