"""The gate: every function of the core, on every array library, equals itself on float64 NumPy.

A case is a function of arrays x, y, z (3, 2, 2) and levels t > s. It runs at levels of the host,
one for all or one per sample, and at levels of the device; with the same numbers the result must
be that of NumPy in float64 to c eps, where c is how far the formula amplifies a rounding of its
inputs. Under JAX every case runs under `jax.jit` and also eagerly, under dask without computing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from array_api_compat import array_namespace, is_numpy_array
from array_api_extra.testing import lazy_xp_function

import ddpm_core as ddpm
from ddpm_core import (
    Level,
    gaussians,
    guidance,
    inverse,
    losses,
    measurements,
    parameterisations,
    process,
    samplers,
    schedules,
)
from ddpm_core.arrays import device_of, fit
from ddpm_core.nn import Ops, UNetConfig, parameter_shapes, unet

SHAPE = (3, 2, 2)
SCHEDULE = ddpm.linear(1000)
TIMES = np.array([700.0, 500.0, 300.0]), np.array([350.0, 100.0, 0.0])
CLEAN = SCHEDULE(0)


class Continuous:
    """The same levels as of a schedule that is not discrete: networks are told their times."""

    ends = SCHEDULE.ends

    def __call__(self, time: Any, dtype: Any = None) -> Level:
        return SCHEDULE(time, dtype)

    def at(self, logsnr: Any) -> Level:
        return SCHEDULE.at(logsnr)


def run(case: Callable[..., Any], *args: Any) -> Any:
    """What `lazy_xp_function` sees: under JAX this call is jitted, under dask it is lazy."""
    return case(*args)


def eager(case: Callable[..., Any], *args: Any) -> Any:
    """The same, untouched."""
    return case(*args)


lazy_xp_function(run)


def inputs(count: int = 3, shape: tuple[int, ...] = SHAPE) -> list[np.ndarray]:
    """Float32 arrays, so that both sides start from the same numbers."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(count)]


def agree(
    lib: Any,
    case: Callable[..., Any],
    arrays: list[np.ndarray],
    c: float,
    dtype: str = "float32",
    levels: tuple[Level, ...] = (),
    on_device: bool = False,
    level_dtype: str | None = None,
    also_eager: bool = True,
    call: Callable[..., Any] | None = None,
) -> None:
    """The case on `lib`, at its own arrays and levels, is the case on float64 NumPy."""
    expected = flat(case(*(a.astype(np.float64) for a in arrays), *levels))
    with lib.precision(dtype):
        wanted = getattr(lib.xp, dtype)
        args = [lib.asarray(a, wanted) for a in arrays]
        dtype_there = getattr(lib.xp, level_dtype or dtype)
        mine = [lib.level(t, dtype_there) for t in levels] if on_device else list(levels)
        both = lib.name == "jax" and also_eager
        for each in [call] if call else [run, eager] if both else [run]:
            for actual, b in zip(flat(each(case, *args, *mine)), expected, strict=True):
                close(lib, actual, b, c, wanted)
        if lib.has_values:  # the arguments are what they were
            for arg, a in zip(args, arrays, strict=True):
                assert (lib.to_numpy(arg) == a).all()


def close(lib: Any, actual: Any, expected: Any, c: float, dtype: Any) -> None:
    """An array of the library, dtype and device asked for, within c eps of the expected."""
    xp = lib.xp
    assert isinstance(actual, type(lib.asarray(np.zeros(1), dtype)))
    assert actual.dtype == dtype
    assert tuple(actual.shape) == expected.shape
    if lib.device is not None:
        assert str(actual.device) == str(lib.device)
    if lib.has_values:
        scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
        eps = float(xp.finfo(dtype).eps)
        np.testing.assert_allclose(lib.to_numpy(actual), expected, rtol=0, atol=c * eps * scale)


def flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


# The cases. -------------------------------------------------------------------------------------

CUSTOM = {"mu": parameterisations.mu(SCHEDULE)}
TARGETS = {f.__name__: f for f in (ddpm.x0, ddpm.eps, ddpm.v, ddpm.score, ddpm.flow)} | CUSTOM


def net(x: Any, timestep: Any, **cond: Any) -> Any:
    return 0.5 * x + 1e-3 * fit(timestep, x)


def net_of_two(x: Any, timestep: Any) -> Any:
    y = net(x, timestep)
    return array_namespace(x).concat([y, 2.0 * y], axis=1)


rng = np.random.default_rng(1)
MEAN, VAR = rng.standard_normal(SHAPE[1:]), rng.uniform(0.1, 2.0, SHAPE[1:])
FACTOR = rng.standard_normal((4, 4))
GAUSSIAN = ddpm.GaussianOracle(MEAN, VAR)
FULL = ddpm.GaussianOracle(MEAN, FACTOR @ FACTOR.T)
MIXTURE = ddpm.MixtureOracle([0.3, 0.7], rng.standard_normal((2, *SHAPE[1:])), [0.5, 0.1])
BLOCKS = np.stack([FACTOR @ FACTOR.T, FACTOR.T @ FACTOR + np.eye(4)])
FULL_MIXTURE = ddpm.MixtureOracle([0.3, 0.7], MIXTURE.means, BLOCKS)
DATASET = ddpm.DatasetOracle(rng.standard_normal((5, *SHAPE[1:])))
PREDICT = ddpm.Predictor(net, SCHEDULE)
STEP = ddpm.ancestral(SCHEDULE, 4, variance=ddpm.large).rows()[1]
PLUS = guidance.cfg_pp(0.6, ddpm.levels_of(SCHEDULE, 3, times=[700, 500, 300, 0]))


def of_class(x_t: Any, t: Level, y: Any) -> Any:
    return DATASET(x_t, t) + fit(y, x_t)


def guided(scale: Any, **options: Any) -> Any:
    return guidance.guided(DATASET, GAUSSIAN, scale, **options)


POOLED = measurements.along_axes([np.full((1, 2), 0.5), [[0.8, -0.2], [0.3, 0.6]]])
SEEN = measurements.Measurement(POOLED, rng.standard_normal((1, 1, 2)))
NOISY = measurements.Measurement(POOLED, SEEN.y, 0.25)


def drawn(kernel: Any, *args: Any) -> tuple[Any, Any]:
    """A kernel's mean and draw."""
    x, z, t, s = args
    step = kernel(x, t, s)
    return step.mean, step.reparameterise(z)


def fitted(g: ddpm.Gaussian) -> tuple[Any, Any]:
    """A Gaussian's mean and variance as arrays: a variance of the host stays there."""
    return g.mean, fit(g.var, g.mean) + 0.0 * g.mean


def on_batch(c: Any, x: Any) -> Any:
    return fit(c, x) + 0.0 * x


class Case(NamedTuple):
    f: Callable[..., Any]
    c: float


CASES: dict[str, Case] = {
    "q_sample": Case(lambda x, y, z, t, s: ddpm.q_sample(x, y, t), 4),
    "q_sample clean": Case(lambda x, y, z, t, s: ddpm.q_sample(x, y, CLEAN), 4),
    "q_marginal": Case(lambda x, y, z, t, s: fitted(process.q_marginal(x, t)), 4),
    "q_step": Case(lambda x, y, z, t, s: ddpm.q_step(x, y, t, s), 8),
    "q_posterior": Case(lambda x, y, z, t, s: fitted(ddpm.q_posterior(x, y, t, s)), 8),
    "q_posterior clean": Case(lambda x, y, z, t, s: fitted(ddpm.q_posterior(x, y, t, CLEAN)), 8),
    "small": Case(lambda x, y, z, t, s: on_batch(ddpm.small(t, s), x), 8),
    "large": Case(lambda x, y, z, t, s: on_batch(ddpm.large(t, s), x), 8),
    "tau": Case(lambda x, y, z, t, s: on_batch(ddpm.levels.tau(t, s), x), 8),
    "log_prob": Case(lambda x, y, z, t, s: gaussians.log_prob(process.q_marginal(x, t), y), 8),
    "kl": Case(
        lambda x, y, z, t, s: ddpm.kl(process.q_marginal(x, t), process.q_marginal(y, t)),
        8,
    ),
    "predictor": Case(lambda x, y, z, t, s: PREDICT(x, t), 8),
    "predictor learned": Case(
        lambda x, y, z, t, s: ddpm.Predictor(net_of_two, SCHEDULE, variance=True).both(x, t), 8
    ),
    "predictor continuous": Case(
        lambda x, y, z, t, s: ddpm.Predictor(net, Continuous(), predicts=ddpm.v)(x, t), 8
    ),
    "clip": Case(lambda x, y, z, t, s: ddpm.clip(PREDICT)(x, t), 32),  # σ / α is 12 at 700
    "guided": Case(lambda x, y, z, t, s: guided(3.0)(x, t), 32),
    "guided rescale": Case(lambda x, y, z, t, s: guided(3.0, rescale=0.7)(x, t), 32),
    "guided within": Case(lambda x, y, z, t, s: guided(guidance.within(3.0, -4, 0))(x, t), 32),
    "guided cfg_pp": Case(lambda x, y, z, t, s: guided(PLUS)(x, t), 32),
    "classifier_free": Case(
        lambda x, y, z, t, s: guidance.classifier_free(of_class, 3.0, {"y": -1})(
            x, t, y=y[:, 0, 0]
        ),
        32,
    ),
    "classifier": Case(
        lambda x, y, z, t, s: guidance.classifier(DATASET, lambda x, t: 0.1 * x, 2.0)(x, t), 64
    ),  # σ² / α is 12 at 700
    "projected": Case(
        lambda x, y, z, t, s: guidance.projected(DATASET, GAUSSIAN, 3.0, norm=0.5)(x, t), 32
    ),
    "dynamic_threshold": Case(
        lambda x, y, z, t, s: guidance.dynamic_threshold(guided(3.0), 0.8)(x, t), 32
    ),
    "reverse": Case(lambda x, y, z, t, s: fitted(ddpm.reverse(GAUSSIAN)(x, t, s)), 8),
    "reverse large": Case(
        lambda x, y, z, t, s: fitted(ddpm.reverse(GAUSSIAN, ddpm.large)(x, t, s)), 8
    ),
    "gaussian": Case(lambda x, y, z, t, s: GAUSSIAN(x, t), 8),
    "gaussian log_prob": Case(lambda x, y, z, t, s: GAUSSIAN.log_prob(x, t), 8),
    "gaussian reverse": Case(lambda x, y, z, t, s: fitted(GAUSSIAN.reverse(x, t, s)), 8),
    "gaussian reverse clean": Case(lambda x, y, z, t, s: fitted(GAUSSIAN.reverse(x, t, CLEAN)), 8),
    "gaussian reverse_sample": Case(lambda x, y, z, t, s: GAUSSIAN.reverse_sample(x, z, t, s), 8),
    "full": Case(lambda x, y, z, t, s: FULL(x, t), 8),
    "full log_prob": Case(lambda x, y, z, t, s: FULL.log_prob(x, t), 8),
    "full reverse_sample": Case(lambda x, y, z, t, s: FULL.reverse_sample(x, z, t, s), 8),
    "mixture": Case(lambda x, y, z, t, s: MIXTURE(x, t), 8),
    "full mixture": Case(lambda x, y, z, t, s: FULL_MIXTURE(x, t), 8),
    "full mixture log_prob": Case(lambda x, y, z, t, s: FULL_MIXTURE.log_prob(x, t), 8),
    "mixture log_prob": Case(lambda x, y, z, t, s: MIXTURE.log_prob(x, t), 8),
    "mixture reverse": Case(
        lambda x, y, z, t, s: (lambda w, g: (w, g.mean, g.var + 0.0 * g.mean))(
            *MIXTURE.reverse_mixture(x, t, s)
        ),
        8,
    ),
    "mixture log_prob of data": Case(lambda x, y, z, t, s: MIXTURE.log_prob(x), 8),
    "dataset": Case(lambda x, y, z, t, s: DATASET(x, t), 8),
    "dataset log_prob": Case(lambda x, y, z, t, s: DATASET.log_prob(x, t), 8),
    "log_prob_of_step": Case(
        lambda x, y, z, t, s: samplers.log_prob_of_step(STEP, samplers.State(x, x, ()), y, z), 8
    ),
    "ddnm": Case(lambda x, y, z, t, s: inverse.ddnm(MIXTURE, SEEN)(x, t), 64),
    "diffpir": Case(lambda x, y, z, t, s: inverse.diffpir(MIXTURE, NOISY)(x, t), 64),
    "replaced": Case(
        lambda x, y, z, t, s: drawn(inverse.replaced(ddpm.reverse(MIXTURE), SEEN), x, z, t, s), 64
    ),
    "ddrm": Case(lambda x, y, z, t, s: drawn(inverse.ddrm(MIXTURE, NOISY), x, z, t, s), 64),
    "ddrm noiseless": Case(
        lambda x, y, z, t, s: drawn(inverse.ddrm(MIXTURE, SEEN), x, z, t, s), 64
    ),
    "interpolate": Case(lambda x, y, z, t, s: inverse.interpolate(x, y, z, x, 0.3, t), 8),
    "loss denoiser": Case(lambda x, y, z, t, s: ddpm.loss(DATASET, x, y, t), 8),
    "loss p2": Case(lambda x, y, z, t, s: ddpm.loss(PREDICT, x, y, t, losses.p2()), 8),
    "loss min_snr": Case(lambda x, y, z, t, s: ddpm.loss(PREDICT, x, y, t, ddpm.min_snr()), 8),
    "loss native": Case(
        lambda x, y, z, t, s: ddpm.loss(PREDICT, x, y, t, losses.native(ddpm.eps)), 8
    ),
}
for name, predicts in TARGETS.items():
    # mu reads tau of neighbours, whose log-SNRs differ by 0.01: from float32 levels, 1e-4 of it.
    c = 2000 if name == "mu" else 8
    CASES |= {
        f"target {name}": Case(lambda x, y, z, t, s, p=predicts: ddpm.target(x, y, t, p), c),
        f"to_x0 {name}": Case(lambda x, y, z, t, s, p=predicts: ddpm.to_x0(x, y, t, p), c),
        f"to_eps {name}": Case(lambda x, y, z, t, s, p=predicts: ddpm.to_eps(x, y, t, p), c),
        f"convert {name}": Case(
            lambda x, y, z, t, s, p=predicts: ddpm.convert(x, y, t, ddpm.v, p), c
        ),
        f"loss {name}": Case(
            lambda x, y, z, t, s, p=predicts: ddpm.loss(
                ddpm.Predictor(net, SCHEDULE, predicts=p), x, y, t
            ),
            c,
        ),
    }

ONE = SCHEDULE(700), SCHEDULE(350)
EACH = tuple(SCHEDULE(time) for time in TIMES)
LEVELS = {
    "host": (ONE, False),
    "host each": (EACH, False),
    "device": (ONE, True),
    "device each": (EACH, True),
}


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("name", CASES)
def test_is_float64_numpy(lib: Any, name: str, kind: str) -> None:
    """f of any library = f of NumPy in float64, to c eps; dtype, device and arguments are kept."""
    levels, on_device = LEVELS[kind]
    f, c = CASES[name]
    agree(lib, f, inputs(), c, levels=levels, on_device=on_device, also_eager=kind == "host")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.lanes(
    "strict", "strict-oldest", "strict-device1", "torch", "torch-meta", "jax", "dask"
)
def test_is_float64_everywhere(lib: Any, name: str) -> None:
    """The same to c eps of float64: nothing on the way is float32. MLX has none on its devices."""
    f, c = CASES[name]
    agree(lib, f, inputs(), c, "float64", EACH, on_device=True, also_eager=False)


DERIVATIVES: dict[str, Callable[..., Any]] = {
    "pigdm": lambda x, y, z, t, s: inverse.pigdm(MIXTURE, NOISY)(x, t),
    "pigdm spread": lambda x, y, z, t, s: inverse.pigdm(MIXTURE, SEEN, lambda t: t.sigma)(x, t),
    "mmps": lambda x, y, z, t, s: inverse.mmps(MIXTURE, NOISY, 3)(x, t),
    "dps": lambda x, y, z, t, s: fitted(inverse.dps(MIXTURE, NOISY)(x, t, s)),
}


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_are_float64_numpy(lib: Any, name: str, kind: str) -> None:
    """The same to c eps^(2/3), for what differentiates the denoiser: by differences, or not."""
    levels, on_device = LEVELS[kind]
    c = 64 * float(np.finfo(np.float32).eps) ** (-1 / 3)
    agree(lib, DERIVATIVES[name], inputs(), c, levels=levels, on_device=on_device, also_eager=False)


# Schedules at times of the device. --------------------------------------------------------------

SCHEDULES = {
    "linear": SCHEDULE,
    "cosine": ddpm.cosine(50),
    "zero-terminal": ddpm.zero_terminal_snr(SCHEDULE),
    "vp": ddpm.VP(),
    "linear log-SNR": schedules.LinearLogSNR(),
    "flow": schedules.Flow(3.0),
    "edm": schedules.EDM(),
}


def levels_close(lib: Any, actual: Level, expected: Level, c: float) -> None:
    # Times of NumPy are times of the host, whose levels are float64.
    dtype = lib.xp.float64 if lib.name == "numpy" else lib.xp.float32
    for a, b in zip(actual, expected, strict=True):
        close(lib, a, b, c, dtype)


@pytest.mark.filterwarnings("ignore:divide by zero enc:RuntimeWarning")  # strict, dask: VP at 0
@pytest.mark.parametrize("name", SCHEDULES)
def test_level_of_a_device_time(lib: Any, name: str) -> None:
    """schedule(times of the device) = schedule(the same times of the host)."""
    schedule = SCHEDULES[name]
    times = np.float32([0.0, 1 / 64, 0.25, 0.5, 0.75, 1.0]) * np.float32(schedule.ends[1])
    if name == "zero-terminal":
        times = np.float32([0.0, 0.5, 1.0, 500.25, 999.0, 1000.0])
    level = run(schedule, lib.asarray(times))
    levels_close(lib, level, schedule(times.astype(np.float64)), c=16)


@pytest.mark.parametrize("name", ["linear", "cosine", "zero-terminal"])
def test_level_of_an_integer_device_time(lib: Any, name: str) -> None:
    """An integer time is the same level as the float; its dtype is float32, or what is asked."""
    schedule = SCHEDULES[name]
    times = np.int32([0, 1, schedule.T // 2, schedule.T])
    level = run(schedule, lib.asarray(times))
    levels_close(lib, level, schedule(times.astype(np.float64)), c=8)


@pytest.mark.filterwarnings("ignore:divide by zero enc:RuntimeWarning")  # strict: the flow at 1
@pytest.mark.parametrize("name", SCHEDULES)
def test_draw_of_device_numbers(lib: Any, name: str) -> None:
    """draw(u of the device) = draw(the same u of the host)."""
    u = np.float32([0.0, 0.25, 0.5005, 0.9985])
    level = run(draw, SCHEDULES[name], lib.asarray(u))
    levels_close(lib, level, ddpm.draw(SCHEDULES[name], u.astype(np.float64)), c=64)


def draw(schedule: Any, u: Any) -> Level:
    return ddpm.draw(schedule, u)


# Samplers. --------------------------------------------------------------------------------------

SAMPLERS = {
    "ancestral": ddpm.ancestral(SCHEDULE, 4),
    "ddim": ddpm.ddim(SCHEDULE, 4),
    "ddim noisy": ddpm.ddim(SCHEDULE, 4, eta=0.5),
    "dpmpp_2m": ddpm.dpmpp_2m(SCHEDULE, 4),
}
KERNEL_LEVELS = ddpm.levels_of(SCHEDULE, 4)


def thunk(z: tuple[Any, ...]) -> Callable[[int, tuple[int, ...]], Any]:
    return lambda step, shape: z[step - 1]


def rows_on_device(sampler: ddpm.Sampler, x: Any, index: Callable[[Any], Any]) -> samplers.Row:
    """Rows of a sampler beside x, each number c of them as index(c)."""
    xp = array_namespace(x)
    rows = sampler.rows_as(xp, x.dtype, device_of(xp, x).get("device"))
    return samplers.Row(
        Level(*map(index, rows.level)), *(tuple(map(index, part)) for part in rows[1:])
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample(lib: Any, name: str) -> None:
    """`sample` is that of float64 NumPy."""
    sampler = SAMPLERS[name]
    agree(lib, lambda x, *z: ddpm.sample(GAUSSIAN, sampler, x, thunk(z)), inputs(5), c=16)


@pytest.mark.parametrize("name", SAMPLERS)
def test_trajectory(lib: Any, name: str) -> None:
    """Every step of `trajectory` is that of float64 NumPy."""
    sampler = SAMPLERS[name]

    def case(x: Any, *z: Any) -> list[Any]:
        return [a for i in ddpm.trajectory(DATASET, sampler, x, thunk(z)) for a in (i.x, i.x_0)]

    agree(lib, case, inputs(5), c=64)


def test_sample_kernel(lib: Any) -> None:
    """`sample_kernel` is that of float64 NumPy."""
    kernel = ddpm.reverse(GAUSSIAN, ddpm.large)
    agree(
        lib, lambda x, *z: ddpm.sample_kernel(kernel, KERNEL_LEVELS, x, thunk(z)), inputs(5), c=16
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_rows_of_the_device(lib: Any, name: str) -> None:
    """`advance` by the arrays of `rows_as` = by the numbers of `rows`."""
    sampler = SAMPLERS[name]

    def case(x: Any, *z: Any) -> Any:
        state = sampler.start(x)
        for i, host in enumerate(sampler.rows()):
            # float64 NumPy, the expected side, goes by the rows of the host.
            there = not (is_numpy_array(x) and x.dtype == np.float64)
            row = rows_on_device(sampler, x, lambda c, i=i: c[i]) if there else host
            state = ddpm.advance(row, state, GAUSSIAN(state.point, row.level), z[i])
        return state.point

    agree(lib, case, inputs(5), c=32)


def test_each_sample_at_its_own_row(lib: Any) -> None:
    """`advance` by rows (B,) = each sample by its own row of the host."""
    sampler, steps = SAMPLERS["dpmpp_2m"], [2, 0, 1]

    def case(x: Any, y: Any, m: Any, z: Any) -> Any:
        if is_numpy_array(x) and x.dtype == np.float64:
            rows = [sampler.rows()[i] for i in steps]
            states = [
                samplers.State(a, a, (b,)) for a, b in zip(x[:, None], m[:, None], strict=True)
            ]
            ends = [ddpm.advance(*args) for args in zip(rows, states, y[:, None], strict=True)]
            return np.concatenate([end.point for end in ends])

        def index(c: Any) -> Any:
            xp = array_namespace(c)
            return xp.take(c, xp.asarray(steps, **device_of(xp, c)), axis=0)

        return ddpm.advance(
            rows_on_device(sampler, x, index), samplers.State(x, x, (m,)), y, z
        ).point

    agree(lib, case, inputs(4), c=8)


def test_given_reads_the_network_itself(lib: Any) -> None:
    """A loop over `given(eps)` and the raw network = `sample` with its Predictor."""
    sampler = SAMPLERS["ddim"]

    def case(x: Any) -> Any:
        if is_numpy_array(x) and x.dtype == np.float64:
            return ddpm.sample(PREDICT, sampler, x)
        state = sampler.given(ddpm.eps).start(x)
        for row in sampler.given(ddpm.eps).rows():
            state = ddpm.advance(row, state, net(state.point, PREDICT.timestep(x, row.level)))
        return state.point

    agree(lib, case, inputs(1), c=512)  # sigma / alpha is 157 at the first level


# Noise. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [None, [5, 2**31 - 1, 0]], ids=["", "ids"])
@pytest.mark.parametrize("step", [0, 12, [3, 0, 999]], ids=["first", "one", "each"])
def test_portable_noise_is_the_same_bits(lib: Any, step: Any, ids: Any) -> None:
    """portable_noise of any library, eager or traced, is that of NumPy, bit for bit."""

    def drawn(call: Callable[..., Any], noise: Any, asarray: Callable[[Any], Any]) -> Any:
        return call(noise, *(asarray(a) for a in (step, (3, 5), ids)))

    expected = drawn(eager, ddpm.portable_noise(SEED), lambda a: a)
    noise = ddpm.portable_noise(SEED, lib.xp, lib.device)
    for call in (run, eager):
        z = drawn(call, noise, lambda a: lib.asarray(np.int32(a)) if isinstance(a, list) else a)
        close(lib, z, expected, 0, lib.xp.float32)


SEED = 2**40 + 7  # both words of the key


# Half precision. --------------------------------------------------------------------------------

HALVES = ["float16", "bfloat16"]
DYADIC = [np.round(a * 16) / 16 for a in inputs()]  # exact in bfloat16


@pytest.fixture(params=HALVES)
def half(lib: Any, request: pytest.FixtureRequest) -> str:
    if not hasattr(lib.xp, request.param):
        pytest.skip(f"{lib.name} has no {request.param}")
    return request.param


@pytest.mark.parametrize("kind", ["host each", "device each"])
@pytest.mark.parametrize("name", ["q_sample", "q_posterior", "predictor", "clip", "loss eps"])
def test_half(lib: Any, half: str, name: str, kind: str) -> None:
    """In half precision, f is float64 NumPy's to c eps: coefficients of float32 are cast last."""
    f, c = CASES[name]
    levels, on_device = LEVELS[kind]
    agree(lib, f, DYADIC, c, half, levels, on_device, level_dtype="float32")


def test_advance_of_halves_is_in_float32(lib: Any, half: str) -> None:
    """1000 x - 999 y = 100 at x = y = 100, though 1000 x is no float16."""
    level = SCHEDULE(500)
    row = samplers.Row(level, (1000.0, -999.0), (0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0))
    agree(
        lib,
        lambda x: ddpm.advance(row, samplers.State(x, x, ()), x).point,
        [np.full(SHAPE, 100.0)],
        c=0,
        dtype=half,
    )


def test_loss_of_halves_is_in_float32(lib: Any, half: str) -> None:
    """0.001 ‖300‖² / D = 90, though 300² is no float16."""
    agree(
        lib,
        lambda x: ddpm.loss(lambda x_t, t: 0.0 * x_t, x, x, SCHEDULE(500), lambda t: 1e-3),
        [np.full(SHAPE, 300.0)],
        c=1,
        dtype=half,
    )


def test_guidance_of_halves_is_in_float32(lib: Any, half: str) -> None:
    """From ±300 and half of it one comes back to ±300, though 300² is no float16."""
    for guide in (guidance.projected, partial(guidance.guided, rescale=1.0)):
        agree(
            lib,
            lambda x, guide=guide: guide(lambda *_: x, lambda *_: 0.5 * x, 2.0)(x, T),
            [np.where(np.arange(12) % 3, 300.0, -300.0).reshape(SHAPE)],
            c=1,
            dtype=half,
        )


# The UNet. --------------------------------------------------------------------------------------

CONFIG = UNetConfig(
    channels=1, out_channels=1, widths=(4, 8), blocks=1, attention=(0,), groups=2, classes=3
)


@pytest.mark.slow
def test_unet(lib: Any) -> None:
    """The UNet on the reference operations is that of float64 NumPy."""
    shapes = parameter_shapes(CONFIG)
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(s).astype(np.float32) * 0.3 for s in shapes.values()]

    def case(x: Any, timestep: Any, *params: Any) -> Any:
        xp = array_namespace(x)
        y = xp.asarray([2, -1], dtype=xp.int32, **device_of(xp, x))
        named = dict(zip(shapes, params, strict=True))
        return unet(named, x, timestep, y, config=CONFIG, ops=Ops())

    agree(
        lib, case, [*inputs(1, (2, 1, 4, 4)), np.float32([0, 12]), *params], c=64, also_eager=False
    )


# Two libraries. ---------------------------------------------------------------------------------


def foreign(lib: Any, *, host: bool) -> Any:
    """A namespace that is not the library's; NumPy, if host, since its levels are welcome."""
    if host and lib.name != "numpy":
        return np
    return pytest.importorskip("dask.array" if "strict" in lib.name else "array_api_strict")


T, S = ONE
MIXED: dict[str, Callable[[Any, Any], Any]] = {
    "q_sample": lambda x, y: ddpm.q_sample(x, y, T),
    "q_step": lambda x, y: ddpm.q_step(x, y, T, S),
    "q_posterior": lambda x, y: ddpm.q_posterior(x, y, T, S),
    "target": lambda x, y: ddpm.target(x, y, T, ddpm.v),
    "to_x0": lambda x, y: ddpm.to_x0(x, y, T, ddpm.v),
    "to_eps": lambda x, y: ddpm.to_eps(x, y, T, ddpm.v),
    "convert": lambda x, y: ddpm.convert(x, y, T, ddpm.v, ddpm.eps),
    "log_prob": lambda x, y: gaussians.log_prob(ddpm.Gaussian(x, 1.0), y),
    "kl": lambda x, y: ddpm.kl(ddpm.Gaussian(x, 1.0), ddpm.Gaussian(y, 1.0)),
    "loss": lambda x, y: ddpm.loss(DATASET, x, y, T),
    "loss of a network": lambda x, y: ddpm.loss(ddpm.Predictor(lambda *_: y, SCHEDULE), x, x, T),
    "loss of a denoiser": lambda x, y: ddpm.loss(lambda *_: y, x, x, T),
    "predictor": lambda x, y: ddpm.Predictor(lambda *_: y, SCHEDULE)(x, T),
    "guided": lambda x, y: guidance.guided(lambda *_: x, lambda *_: y, 2.0)(x, T),
    "reverse": lambda x, y: ddpm.reverse(lambda *_: y)(x, T, S),
    "reverse_sample": lambda x, y: GAUSSIAN.reverse_sample(x, y, T, S),
    "sample": lambda x, y: ddpm.sample(lambda *_: y, SAMPLERS["ddim"], x),
    "sample noise": lambda x, y: ddpm.sample(GAUSSIAN, SAMPLERS["ancestral"], x, lambda *_: y),
    "sample_kernel": lambda x, y: ddpm.sample_kernel(
        ddpm.reverse(GAUSSIAN), KERNEL_LEVELS, x, lambda *_: y
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_arrays_of_two_libraries_are_refused(lib: Any, name: str) -> None:
    """An array of each of two libraries: TypeError, in one line."""
    x = lib.asarray(inputs()[0])
    other = foreign(lib, host=True)
    y = other.asarray(inputs()[1].tolist(), dtype=other.float32)
    with pytest.raises(TypeError, match=r"\A.+pass arrays of one library\Z"):
        MIXED[name](x, y)


def test_a_level_of_another_library_is_refused(lib: Any) -> None:
    """A level of another library's device: TypeError, in one line. NumPy's levels are welcome."""
    x = lib.asarray(inputs()[0])
    other = foreign(lib, host=False)
    t = Level(*(other.asarray(field.tolist(), dtype=other.float32) for field in EACH[0]))
    for call in (lambda: ddpm.q_sample(x, x, t), lambda: GAUSSIAN(x, t), lambda: DATASET(x, t)):
        with pytest.raises(TypeError, match=r"\A.+pass arrays of one library\Z"):
            call()


# ONNX graphs. -----------------------------------------------------------------------------------


def graph(case: Callable[..., Any], *args: Any) -> Any:
    """The case, traced by ndonnx on arrays without values, and then run by onnxruntime."""
    import ndonnx
    import onnxruntime

    given: dict[str, Any] = {}

    def argument(x: Any) -> Any:
        given[f"i{len(given)}"] = x.unwrap_numpy()
        return ndonnx.argument(shape=tuple(x.shape), dtype=x.dtype)

    inputs = [a.map(argument) if isinstance(a, Level) else argument(a) for a in args]
    names = iter(given)
    named = {next(names): x for a in inputs for x in (a if isinstance(a, Level) else [a])}
    result = case(*inputs)
    outputs = {f"o{i}": x for i, x in enumerate(flat(result))}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = ndonnx.build(named, outputs).SerializeToString()
    found = onnxruntime.InferenceSession(model, options).run(list(outputs), given)
    arrays = [ndonnx.asarray(x) for x in found]
    return arrays if isinstance(result, (tuple, list)) else arrays[0]


@pytest.mark.slow
@pytest.mark.lanes("ndonnx")
@pytest.mark.parametrize("name", CASES)
def test_graph(lib: Any, name: str) -> None:
    """A case as an ONNX graph of x, y, z and levels is float64 NumPy's, to c eps."""
    f, c = CASES[name]
    agree(lib, f, inputs(), c, levels=EACH, on_device=True, call=graph)


@pytest.mark.slow
@pytest.mark.lanes("ndonnx")
@pytest.mark.parametrize("name", SAMPLERS)
def test_graph_of_a_sampler(lib: Any, name: str) -> None:
    """A whole `sample`, as an ONNX graph of x and the noises."""
    sampler = SAMPLERS[name]
    agree(
        lib, lambda x, *z: ddpm.sample(GAUSSIAN, sampler, x, thunk(z)), inputs(5), c=16, call=graph
    )


@pytest.mark.slow
@pytest.mark.lanes("ndonnx")
@pytest.mark.parametrize("name", SCHEDULES)
def test_graph_of_a_schedule(lib: Any, name: str) -> None:
    """schedule(times), as an ONNX graph of the times."""
    schedule = SCHEDULES[name]
    times = np.float32([1 / 64, 0.25, 0.5, 0.75]) * np.float32(schedule.ends[1])
    level = graph(lambda time: tuple(schedule(time)), lib.asarray(times))
    levels_close(lib, level, schedule(times.astype(np.float64)), c=16)


@pytest.mark.slow
@pytest.mark.lanes("ndonnx")
def test_graph_of_the_noise(lib: Any) -> None:
    """portable_noise, as an ONNX graph of ids and steps, is NumPy's bit for bit."""
    ids, step = np.int32([5, 2**31 - 1, 0]), np.int32([3, 0, 999])
    noise = ddpm.portable_noise(SEED, lib.xp)
    z = graph(lambda ids, step: noise(step, (3, 5), ids), *map(lib.asarray, (ids, step)))
    close(lib, z, ddpm.portable_noise(SEED)(step, (3, 5), ids), 0, lib.xp.float32)


# Compilers. -------------------------------------------------------------------------------------


@pytest.mark.lanes("jax")
@pytest.mark.parametrize("name", ["ancestral", "dpmpp_2m"])
def test_scan_is_the_loop(lib: Any, name: str) -> None:
    """`lax.scan` of `advance` over `rows_as` = `sample`."""
    import jax

    sampler = SAMPLERS[name]
    x, *z = inputs(5)

    def step(state: Any, row_and_z: Any) -> Any:
        row, z = row_and_z
        return ddpm.advance(row, state, GAUSSIAN(state.point, row.level), z), None

    rows = sampler.rows_as(lib.xp, lib.xp.float32)
    stacked = lib.asarray(np.stack(z))
    state, _ = jax.jit(lambda x, z: jax.lax.scan(step, sampler.start(x), (rows, z)))(
        lib.asarray(x), stacked
    )
    wide = [a.astype(np.float64) for a in (x, *z)]
    expected = ddpm.sample(GAUSSIAN, sampler, wide[0], thunk(tuple(wide[1:])))
    close(lib, state.point, expected, 32, lib.xp.float32)


@pytest.mark.slow
@pytest.mark.lanes("torch")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_torch_compiles_one_graph(lib: Any) -> None:
    """The functions trace under torch.compile(fullgraph=True): no break, same numbers."""
    import torch

    row = SAMPLERS["dpmpp_2m"].rows()[1]
    cases = {
        "advance": lambda x, y, m: ddpm.advance(row, samplers.State(x, x, (m,)), y).point,
        "q_posterior": lambda x, y, m: fitted(ddpm.q_posterior(x, y, T, S)),
        "guided": lambda x, y, m: guidance.guided(
            lambda x, t: 0.5 * x, lambda x, t: y, guidance.within(3.0, -4, 0), rescale=0.7
        )(x, T),
        "cfg_pp": lambda x, y, m: guidance.guided(lambda x, t: 0.5 * x, lambda x, t: y, PLUS)(x, T),
        "projected": lambda x, y, m: guidance.projected(
            lambda x, t: 0.5 * x, lambda x, t: y, 3.0, norm=0.5
        )(x, T),
    }
    for case in cases.values():
        compiled = torch.compile(case, fullgraph=True, backend="eager")
        args = [lib.asarray(a) for a in inputs()]
        expected = flat(case(*(a.astype(np.float64) for a in inputs())))
        for actual, b in zip(flat(compiled(*args)), expected, strict=True):
            close(lib, actual, b, 8, torch.float32)
