"""The JAX backend: its operations, noise, samplers by `lax.scan`, gradients, many devices."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.cli.sample import SAMPLERS
from ddpm_core.nn import Ops, UNetConfig, parameter_shapes, unet

jax = pytest.importorskip("jax")

from jax.tree_util import Partial  # noqa: E402

import ddpm_core_jax  # noqa: E402
from ddpm_core_jax import JAX, JAXOps  # noqa: E402

jnp = jax.numpy
EPS = float(np.finfo(np.float32).eps)
SCHEDULE = ddpm.linear(1000)
SHAPE = (3, 1, 8, 4)
CONFIG = UNetConfig(
    channels=1, out_channels=1, widths=(8, 16), blocks=1, attention=(), groups=4, classes=3
)


@pytest.fixture(scope="module", autouse=True)
def few_optimisations():
    """Most of the time here goes to XLA's compiler; `test_eight_devices` has all of it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


TOY = ddpm.MixtureOracle([0.3, 0.7], [[-1.0, 0.2], [0.5, -0.4]], 0.2)


def random_params(config: UNetConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Every parameter random, also those that start at 0 or 1, which would hide a defect."""
    rng = np.random.default_rng(0)
    params = {}
    for name, shape in parameter_shapes(config).items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 25
        params[name] = (rng.standard_normal(shape) / math.sqrt(fan_in)).astype(dtype)
        params[name] += "norm" in name and name.endswith("weight")
    return params


PARAMS = random_params(CONFIG)


def predictor(name: str) -> ddpm.Predictor:
    """The same network on a backend, of v: x_0 is of unit size whatever the weights."""
    return ddpm.Predictor(ddpm.backend(name).network(PARAMS, CONFIG), SCHEDULE, ddpm.v)


@pytest.fixture(scope="module")
def predict():
    return predictor("jax")


def noises():
    return ddpm.portable_noise(7), ddpm.portable_noise(7, jnp)


def draws(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *shape))


# The backend. -----------------------------------------------------------------------------------


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


# Operations. ------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("name", CONFIGS)
def test_network(name):
    """The UNet of the reference, in float64."""
    config = CONFIGS[name]
    params = random_params(config, "float64")
    x, timestep = draws(2, 2, 8, 4), np.array([3.0, 999.0], np.float32)
    y = np.array([-1, 2]) if config.classes else None
    wanted = unet(params, x, timestep, y, config=config, ops=Ops())
    with jax.enable_x64(True):
        on = JAX(dtype="float64")
        found = on.network(params, config)(on.asarray(x), timestep, y)
        # As tests/test_unet.py has it, of the other backends.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())


def test_network_in_bfloat16(predict):
    """A network of bfloat16 takes a state of float32, which a Predictor's x_0 then keeps."""
    x, t, y = jnp.asarray(draws(*SHAPE), jnp.float32), SCHEDULE(600), jnp.asarray([0, -1, 2])
    low = ddpm.Predictor(JAX(dtype="bfloat16").network(PARAMS, CONFIG), SCHEDULE, ddpm.v)
    found, wanted = low(x, t, y=y), predict(x, t, y=y)
    assert found.dtype == jnp.float32
    assert low.net(x, low.timestep(x, t), y).dtype == jnp.bfloat16
    error = np.abs(np.asarray(found - wanted)).max() / np.abs(np.asarray(wanted)).max()
    assert 2**-14 < error < 2**-4  # some roundings of 2^-9 each


# Samplers. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_solver(name):
    """By `lax.scan` in float64: NumPy's sample, to roundings, of an exact denoiser."""
    sampler = SAMPLERS[name](SCHEDULE, 7)
    x, *z = draws(1 + 3 * sampler.nfe, 4, 2)
    wanted = ddpm.sample(TOY, sampler, x, lambda i, shape: z[i])
    with jax.enable_x64(True):
        table = jnp.asarray(np.stack(z))
        found = ddpm_core_jax.sample(TOY, sampler, jnp.asarray(x), lambda i, shape: table[i])
        # A mixture's reading turns by (α / σ)² of what it is given.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "ancestral", "unipc_2"])
def test_sample_of_a_network(name, predict):
    """The same seed is the same sample: NumPy, torch, JAX step by step, and JAX by `lax.scan`."""
    sampler = SAMPLERS[name](SCHEDULE, 6)
    y = np.array([0, -1, 2])
    host, device = noises()
    wanted = ddpm.sample(predictor("numpy"), sampler, host(0, SHAPE), host, y=y)
    x, cond = device(0, SHAPE), {"y": JAX().asarray(y, jnp.int32)}
    found = {
        "loop": ddpm.sample(predict, sampler, x, device, **cond),
        "scan": ddpm_core_jax.sample(predict, sampler, x, device, **cond),
    }
    if name == "ancestral":
        torch = pytest.importorskip("torch")
        noise = ddpm.portable_noise(7, torch)
        start = noise(0, SHAPE)
        on_torch = ddpm.sample(predictor("torch"), sampler, start, noise, y=torch.as_tensor(y))
        found["torch"] = on_torch.numpy()
    assert np.abs(wanted).max() < 100
    for way, end in found.items():
        np.testing.assert_allclose(end, wanted, rtol=0, atol=1e-4, err_msg=way)


def test_clipped_and_half():
    """A clipped Predictor is read as it clips, and a bfloat16 state ends in bfloat16."""
    sampler, x = ddpm.ddim(SCHEDULE, 3), noises()[1](0, (48, 2))
    clipped = ddpm.clip(ddpm.Predictor(lambda x, timestep: 0.3 * x, SCHEDULE))
    found, wanted = (f(clipped, sampler, x) for f in (ddpm_core_jax.sample, ddpm.sample))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert 0.1 < (np.abs(np.asarray(wanted)) == 1).mean() < 1
    half = ddpm_core_jax.sample(TOY, sampler, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    # Of bfloat16 only the state: the table, whose numbers have 24 bits, is as in the loop.
    sampler = ddpm.ddim(SCHEDULE, 100)
    found, wanted = (
        f(TOY, sampler, x.astype(jnp.bfloat16)) for f in (ddpm_core_jax.sample, ddpm.sample)
    )
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(wanted, float), atol=0.02)
    single = ddpm_core_jax.sample(TOY, ddpm.ddim(SCHEDULE, 3), x)
    assert np.median(np.abs(np.asarray(half, np.float32) - np.asarray(single))) < 2**-7


@dataclass(frozen=True)
class Counted:
    """What a network of one weight calls, which counts how often it is traced."""

    traced: list[int]

    def __call__(self, weight, x, timestep):
        self.traced.append(1)
        return weight * x

    def __hash__(self) -> int:
        return id(self.traced)


def test_networks_of_one_shape_are_one_program():
    """A second network of the same configuration compiles nothing; nor does a second seed."""
    x, count = noises()[1](0, SHAPE), ddpm_core_jax.sampling._compiled._cache_size
    sizes = []
    for seed in (0, 1):
        predict = predictor("jax")
        noise = ddpm.portable_noise(seed, jnp)
        found = ddpm_core_jax.sample(predict, ddpm.ancestral(SCHEDULE, 3), x, noise, y=np.arange(3))
        sizes.append(count())
    assert sizes[0] == sizes[1] > 0
    wanted = ddpm.sample(predict, ddpm.ancestral(SCHEDULE, 3), x, noise, y=jnp.arange(3))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_numbers_are_arguments():
    """A guidance weight is no constant of the program, and 0.0 is not -0.0."""
    count = []

    def denoise(x, t, w):
        count.append(1)
        return jnp.copysign(0.1 * x + 1, w)

    x, sampler = jnp.asarray(draws(4, 2), jnp.float32), ddpm.ddim(SCHEDULE, 3)
    ends = [ddpm_core_jax.sample(denoise, sampler, x, w=w) for w in (0.0, -0.0, 0.5)]
    assert len(count) == 1
    ddpm_core_jax.sample(denoise, sampler, x, w=np.float32(0.5))
    np.testing.assert_array_equal(ends[0], ends[2])
    np.testing.assert_array_equal(ends[0] > 0, ends[1] < 0)


@pytest.mark.parametrize("constant", ["a", np.str_("a"), True, np.True_, 2**40, None])
def test_what_is_no_number_is_a_constant(constant):
    """A condition that the denoiser branches on, say."""

    def denoise(x, t, c):
        assert c is constant or c == constant
        return x if c else -x

    x, sampler = jnp.asarray(draws(4, 2), jnp.float32), ddpm.ddim(SCHEDULE, 3)
    found = ddpm_core_jax.sample(denoise, sampler, x, c=constant)
    np.testing.assert_allclose(found, ddpm.sample(denoise, sampler, x, c=constant), rtol=1e-5)


def test_noise_that_is_not_needed():
    """Is not drawn, nor traced."""

    def never(step, shape):
        raise AssertionError(step)

    x = jnp.asarray(draws(4, 2), jnp.float32)
    ddpm_core_jax.sample(TOY, ddpm.ddim(SCHEDULE, 3), x, never)


def test_no_tracer_is_kept():
    """Within another's trace a closure may hold its tracers."""
    x, sampler = jnp.asarray(draws(4, 2), jnp.float32), ddpm.ddim(SCHEDULE, 3)

    @jax.jit
    def end(w):
        return ddpm_core_jax.sample(ddpm.Predictor(lambda x, t: w * x, SCHEDULE), sampler, x)

    with jax.checking_leaks():
        found = end(0.3)
    wanted = ddpm.sample(ddpm.Predictor(lambda x, t: 0.3 * x, SCHEDULE), sampler, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_compiled_once():
    """Other weights, another seed and another sampler of one shape are the same program."""
    net, on = Counted([]), JAX()
    x = jnp.asarray(draws(4, 2), jnp.float32)
    made = []
    for weight, seed, solver, last in [
        (0.1, 0, ddpm.ancestral, 900),
        (0.5, 0, ddpm.ancestral, 900),
        (0.5, 1, ddpm.ancestral, 900),
        (0.5, 1, ddpm.ancestral, 800),
        (0.5, 1, lambda *a, **kw: ddpm.ddim(*a, eta=0.5, **kw), 800),
    ]:
        sampler = solver(SCHEDULE, 3, times=[last, 500, 100, 0])
        predict = ddpm.Predictor(Partial(net, jnp.asarray(weight)), SCHEDULE)
        found = ddpm_core_jax.sample(predict, sampler, x, on.noise(seed))
        made.append(len(net.traced))
        wanted = ddpm.sample(predict, sampler, x, on.noise(seed))
        net.traced[made[-1] :] = []
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e3 * EPS)
    assert made[0] >= 1
    assert set(made) == {made[0]}
    ddpm_core_jax.sample(predict, sampler, x[:2], on.noise(0))
    assert len(net.traced) > made[0]  # it does count


@pytest.mark.parametrize("solver", [ddpm.ancestral, samplers.dpmpp_3m])
def test_program_does_not_grow(solver, predict):
    """10 and 100 steps are programs of one length; what differs is the length of the table."""
    noise = noises()[1]
    lengths = []
    for steps in (10, 100):
        sampler = solver(SCHEDULE, steps)
        run = jax.jit(lambda x, s=sampler: ddpm_core_jax.sample(predict, s, x, noise))
        text = run.lower(noise(0, SHAPE)).as_text()
        lengths.append(len(text.splitlines()))
    assert lengths[0] == lengths[1]
    assert lengths[0] > 500  # the network is in it


def test_weights_are_arguments(predict):
    """Not constants of the program, which compilers fold and every copy holds."""
    x = noises()[1](0, SHAPE)
    run = jax.jit(lambda predict, x: ddpm_core_jax.sample(predict, ddpm.ddim(SCHEDULE, 3), x))
    arguments = run.lower(predict, x).args_info[0]
    assert len(jax.tree.leaves(arguments)) == len(PARAMS) + 1
    arguments = run.lower(ddpm.clip(predict), x).args_info[0]
    assert len(jax.tree.leaves(arguments)) == len(PARAMS) + 1


def test_weights_of_a_checkpoint_are_arguments():
    """As above, of what `Checkpoint.predictor` makes."""
    for scale in (1.0, 0.25):
        checkpoint = ddpm.Checkpoint(PARAMS, CONFIG, SCHEDULE, SHAPE[2:], timestep_scale=scale)
        leaves = jax.tree.leaves(ddpm.clip(checkpoint.predictor(JAX().network)))
        assert {leaf.shape for leaf in leaves} == {p.shape for p in PARAMS.values()}
        assert len(leaves) == len(PARAMS)


def test_gradient_through_a_sampler():
    """A sample's derivative in the weights is that of central differences."""
    with jax.enable_x64(True):
        x = jnp.asarray(draws(3, 2))
        sampler = ddpm.dpmpp_2m(SCHEDULE, 5)

        def end(weight):
            net = Partial(lambda w, x, timestep: jnp.tanh(w * x), weight)
            return ddpm_core_jax.sample(ddpm.Predictor(net, SCHEDULE), sampler, x).sum()

        slope, step = float(jax.grad(end)(0.9)), 1e-6
        wanted = float(end(0.9 + step) - end(0.9 - step)) / (2 * step)
        assert slope == pytest.approx(wanted, rel=1e-7)


def test_wrong_samplers(predict):
    """A sampler of another schedule, and one whose noise is missing, are refused as by the loop."""
    x = noises()[1](0, SHAPE)
    for denoise in (predict, ddpm.clip(predict)):
        with pytest.raises(ValueError, match="make levels and samplers with that schedule"):
            ddpm_core_jax.sample(denoise, ddpm.ddim(ddpm.cosine(), 3), x)
    with pytest.raises(ValueError, match="ancestral takes noise"):
        ddpm_core_jax.sample(predict, ddpm.ancestral(SCHEDULE, 3), x)


def test_wrong_denoiser():
    """One with arrays that is no pytree could be no constant of a program."""

    @dataclass
    class Held:
        weight: np.ndarray

        def __call__(self, x, t):
            return self.weight * x

    with pytest.raises(TypeError, match=r"Held in the denoiser .* register it as a pytree"):
        ddpm_core_jax.sample(Held(np.ones(2)), ddpm.ddim(SCHEDULE, 3), jnp.ones((4, 2)))


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, sys
import ddpm_core as ddpm, ddpm_core_jax
sys.path.insert(0, {tests!r})
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_jax import CONFIG, PARAMS, SCHEDULE

assert jax.device_count() == 8
assert repr(ddpm.backend("jax", device="cpu:3")).startswith("JAX(device='cpu:3'")
kinds = AxisType.Auto, AxisType.Explicit
auto, explicit = (jax.make_mesh((8,), ("batch",), (kind,)) for kind in kinds)
split, typed = (NamedSharding(mesh, PartitionSpec("batch")) for mesh in (auto, explicit))
noise = ddpm.portable_noise(0, jnp)
predict = ddpm.Predictor(ddpm.backend("jax").network(PARAMS, CONFIG), SCHEDULE, ddpm.v)
sampler = ddpm.ancestral(SCHEDULE, 4)
x, y = noise(0, (16, 1, 8, 4)), jnp.arange(16) % 3
COLLECTIVES = ["all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"]

def run(denoise):
    f = lambda x, y: ddpm_core_jax.sample(denoise, sampler, x, noise, y=y)
    return jax.jit(f, in_shardings=(split, split), out_shardings=split)

def collectives(compiled):
    text = compiled.as_text()
    assert "num_partitions=8" in text
    return [name for name in COLLECTIVES if name in text]

compiled = run(predict).lower(x, y).compile()
assert collectives(compiled) == [], collectives(compiled)
# A denoiser that looks at the whole batch: so the search does find collectives.
assert collectives(run(lambda x, t, y: x - x.mean(axis=0)).lower(x, y).compile()) != []

whole = ddpm_core_jax.sample(predict, sampler, x, noise, y=y)
sharded = jax.device_put(x, split)
direct = ddpm_core_jax.sample(predict, sampler, sharded, noise, y=y)
# With the batch in the array's type, as `jax.make_mesh` has it by default.
with jax.set_mesh(explicit):
    x, y = jax.device_put((x, y), typed)
    of_type = ddpm_core_jax.sample(predict, ddpm.ddim(SCHEDULE, 4), x, y=y)
    assert of_type.sharding.is_equivalent_to(typed, 4), of_type.sharding
# And where each device has its own part, whatever the mesh.
net, batch = predict.net, PartitionSpec("batch")
t = jnp.full(16, 500.0)
plain = net(sharded, t)
for mesh in (auto, explicit):
    place = NamedSharding(mesh, batch)
    mapped = jax.shard_map(net, mesh=mesh, in_specs=(batch, batch), out_specs=batch)
    found = mapped(*(jax.device_put(a, place) for a in (x, t)))
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5)
wanted = ddpm_core_jax.sample(predict, ddpm.ddim(SCHEDULE, 4), sharded, y=jax.device_put(y, split))
np.testing.assert_allclose(of_type, wanted, rtol=0, atol=1e-5)
assert direct.sharding.is_equivalent_to(split, 4), direct.sharding
for found in (compiled(*(jax.device_put(a, split) for a in (x, y))), direct):
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)
    assert len(found.addressable_shards) == 8
    assert found.addressable_shards[3].data.shape == (2, 1, 8, 4)
"""


def test_eight_devices():
    """A batch over 8 devices: no collective in the sampler's program, and the same samples."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", DEVICES.format(tests=str(Path(__file__).parent))],
        capture_output=True, text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


# Training. --------------------------------------------------------------------------------------


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
