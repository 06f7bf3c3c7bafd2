"""`ddpm_core_jax.sample`: every sampler as one program, over one device and over many."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax_network
import numpy as np
import pytest
from jax_network import CONFIG, EPS, PARAMS, SCHEDULE, SHAPE, TOY, draws, jnp, noises, predictor

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.cli.drawing import SAMPLERS

jax = pytest.importorskip("jax")

from jax.tree_util import Partial  # noqa: E402

import ddpm_core_jax  # noqa: E402
from ddpm_core_jax import JAX  # noqa: E402

few_optimisations, predict = jax_network.few_optimisations, jax_network.predict


pytestmark = pytest.mark.slow  # JAX compiles, examples train

#: One of each kind runs in the quick tests: deterministic, stochastic, of several readings.
QUICK = {"ddim", "sde_dpmpp_2m"}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SAMPLERS]
)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
from jax_network import CONFIG, PARAMS, SCHEDULE

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


@pytest.mark.slow
def test_eight_devices():
    """A batch over 8 devices: no collective in the sampler's program, and the same samples."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", DEVICES.format(tests=str(Path(__file__).parent))],
        capture_output=True, text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
