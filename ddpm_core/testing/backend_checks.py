"""The checks of `check_backend`: each compares a backend with NumPy in float64.

A check is a function (the backend, NumPy) -> `Finding`. It raises `NotApplicable` where it says
nothing of this backend, and any other exception is a failure. A backend that has more to check
gives it as `Backend.checks`, and may use what is here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ddpm_core.arrays import combine, is_half
from ddpm_core.backends import Backend
from ddpm_core.denoisers import Predictor
from ddpm_core.levels import Level
from ddpm_core.losses import loss
from ddpm_core.nn import UNetConfig, parameter_shapes, unet
from ddpm_core.noise import portable_noise
from ddpm_core.oracles import GaussianOracle
from ddpm_core.parameterisations import eps, v
from ddpm_core.process import q_posterior, q_sample, q_step
from ddpm_core.samplers import (
    Row,
    Sampler,
    State,
    advance,
    ancestral,
    ddim,
    dpmpp_2m,
    dpmpp_3m,
    er_sde,
    heun,
    sample,
    sde_dpmpp_2m,
    sde_dpmpp_3m,
    unipc_2,
)
from ddpm_core.schedules import linear
from ddpm_core.typing import Array, Noise

SCHEDULE = linear()
SAMPLERS = (
    ddim, ancestral, heun, dpmpp_2m, dpmpp_3m, unipc_2, sde_dpmpp_2m, sde_dpmpp_3m, er_sde,
)  # fmt: skip

#: Small networks, which differ in every switch: Ho et al. 2020, Nichol & Dhariwal 2021 with a
#: learned variance, a wide one, Dhariwal & Nichol 2021 with classes. The second shows whether eps
#: is used; the third is wide enough for every form of our convolutions, at a SIZE that is no
#: multiple of their tiles.
NETWORKS = (
    UNetConfig(widths=(16, 32), blocks=1, attention=(0,), groups=8),
    UNetConfig(
        out_channels=6, widths=(16, 32), blocks=1, groups=4, heads=2, scale_shift=True,
        symmetric_padding=True, cosine_first=True, endpoint=False, eps=1e-2,
    ),
    UNetConfig(channels=1, out_channels=1, widths=(32, 64), blocks=1, attention=(), groups=4,
        scale_shift=True,
    ),
    UNetConfig(
        channels=1, out_channels=1, widths=(16, 16, 32), blocks=1, attention=(1, 2), groups=4,
        classes=3, head_width=8, scale_shift=True, residual_resampling=True, eps=1e-5,
    ),
)  # fmt: skip
SIZE = (20, 28)
SMALL = UNetConfig(channels=1, out_channels=1, widths=(4, 4), blocks=1, attention=(), groups=2)
SMALLEST = replace(SMALL, widths=(4,))  # a compiler takes some 2 s a layer


class Finding(NamedTuple):
    """What a check found.

    largest, allowed: the largest difference, and how large it may be; None where there is none
    note: what the numbers do not say
    """

    largest: float | None = None
    allowed: float | None = None
    note: str = ""


class NotApplicable(Exception):  # noqa: N818, it is no error
    """A check that says nothing of this backend or device, and why."""


#: (the backend, NumPy) -> what was found; an exception is a failure.
Check: TypeAlias = Callable[[Backend, Backend], Finding]


def both(on: Backend, host: Backend, *shape: int, seed: int = 0) -> tuple[Array, Array]:
    """A normal array on the backend, and the same values, as rounded there, on the host."""
    x = on.asarray(np.random.default_rng(seed).standard_normal(shape))
    return x, host.asarray(on.to_numpy(x).copy())


def as_given(on: Backend, host: Backend, noise: Noise) -> Noise:
    """The backend's noise on the host."""
    return lambda step, shape: host.asarray(on.to_numpy(noise(step, shape)))


def difference(on: Backend, found: Array, wanted: Array) -> float:
    """The largest difference, relative to the largest value.

    TypeError or ValueError if found has another dtype or shape than it must.
    """
    if found.dtype != on.dtype:
        raise TypeError(f"the result is in {found.dtype}, not in {on.dtype}")
    if tuple(found.shape) != wanted.shape:
        raise ValueError(f"the result has shape {tuple(found.shape)}, not {wanted.shape}")
    values = on.to_numpy(found).astype(np.float64)
    return float(np.abs(values - wanted).max() / np.abs(wanted).max())


def worst(differences: Iterable[float]) -> float:
    return float(np.max(list(differences)))  # not max, which passes over a NaN


def allowed(on: Backend, roundings: float, half: float) -> float:
    """So many roundings of the dtype, or of a half precision, whose sums are float32's."""
    return (half if is_half(on.dtype) else roundings) * float(on.xp.finfo(on.dtype).eps)


def random_params(on: Backend, config: UNetConfig) -> dict[str, Array]:
    """Host parameters, exact in the dtype; all random, so that each has its effect."""
    rng = np.random.default_rng(0)
    params: dict[str, Array] = {}
    for name, shape in parameter_shapes(config).items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 25
        value = rng.standard_normal(shape) / math.sqrt(fan_in)
        if "norm" in name and name.endswith("weight"):
            value += 1
        params[name] = on.to_numpy(on.asarray(value))
    return params


def networks(on: Backend, host: Backend, config: UNetConfig) -> tuple[Any, Any]:
    params = random_params(on, config)
    return on.network(params, config), host.network(params, config)


def transfers(on: Backend, host: Backend) -> Finding:
    """Host arrays there and back, exactly: values of 8 bits, integers, and a transposed view."""
    rng = np.random.default_rng(0)
    wanted = rng.integers(-128, 128, (4, 6)) / 8
    views = (wanted.astype(np.float32), wanted.T[:, ::2], wanted[:0])
    found = [on.to_numpy(on.asarray(a)) for a in views]
    if (dtype := on.asarray(wanted).dtype) != on.dtype:
        raise TypeError(f"asarray makes {dtype}, not {on.dtype}")
    whole = np.array([-1, 0, 2**31 - 1])
    found.append(on.to_numpy(on.asarray(whole, on.xp.int32)))
    fine = rng.standard_normal(100)
    rounding = np.abs(on.to_numpy(on.asarray(fine)) - fine).max() / np.abs(fine).max()
    for a, b in zip(found, (*views, whole), strict=True):
        if not np.array_equal(a, b):
            raise ValueError(f"an array of shape {b.shape} comes back otherwise")
    return Finding(float(rounding), float(on.xp.finfo(on.dtype).eps))


def portable(on: Backend, host: Backend) -> Finding:
    """Values of portable noise that are not those of NumPy, bit for bit."""
    seed, shape = 2**40 + 7, (3, 5, 33)
    here: Any = portable_noise(seed)
    there: list[Any] = [portable_noise(seed, on.xp, on.device, on.dtype), on.portable_noise(seed)]
    steps, ids = np.array([0, 999, 3]), np.array([17, 2**31 - 1, 0])
    wanted = [here(4, shape), here(4, shape, ids), here(steps, shape)]
    differ = 0
    for noise in there:
        indices = (on.asarray(a, on.xp.int32) for a in (ids, steps))
        found = [noise(4, shape), noise(4, shape, next(indices)), noise(next(indices), shape)]
        for a, b in zip(found, wanted, strict=True):
            differ += int((on.to_numpy(a) != on.to_numpy(on.asarray(b))).sum())
    return Finding(differ, 0)


def native(on: Backend, host: Backend) -> Finding:
    """The backend's own noise: moments and correlations, in standard errors.

    ValueError if a (seed, step) does not give the same numbers again.
    """
    shape, keys = (4, 1 << 14), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2**40, 1)]
    draws = {key: on.to_numpy(on.noise(key[0])(key[1], shape)) for key in keys}
    again = on.noise(0)
    for step in (2, 0):
        x = again(step, shape)
        if x.dtype != on.dtype or tuple(x.shape) != shape:
            raise ValueError(f"noise of shape {shape} comes as {tuple(x.shape)} in {x.dtype}")
        if not np.array_equal(on.to_numpy(x), draws[0, step], equal_nan=True):
            raise ValueError(f"seed 0 and step {step} give other numbers the second time")
    x = np.stack([draw.astype(np.float64).ravel() for draw in draws.values()])
    n = x.shape[1]
    moments = np.stack([x.mean(1), (x**2).mean(1) - 1, (x**3).mean(1), (x**4).mean(1) - 3])
    errors = np.abs(moments) / np.sqrt(np.array([1, 2, 15, 96]) / n)[:, None]
    # Of two steps or seeds, and of neighbours within one.
    between = np.abs(np.triu(x @ x.T / n, 1)) * math.sqrt(n)
    within = np.abs((x[:, 1:] * x[:, :-1]).mean(1)) * math.sqrt(n)
    return Finding(worst([errors.max(), between.max(), within.max()]), 5)


def forward(on: Backend, host: Backend) -> Finding:
    """q(x_t | x_0), q(x_t | x_s) and q(x_s | x_t, x_0), at one level and at one per sample."""
    x, wide_x = both(on, host, 3, 2, 5)
    z, wide_z = both(on, host, 3, 2, 5, seed=1)
    found: list[float] = []
    for low, high in ((350, 700), (0, 1), (np.array([1, 250, 0]), np.array([2, 999, 1000]))):
        s, t = SCHEDULE(low), SCHEDULE(high)
        pairs = (
            (q_sample(x, z, t), q_sample(wide_x, wide_z, t)),
            (q_step(x, z, t, s), q_step(wide_x, wide_z, t, s)),
            (q_posterior(x, z, t, s).mean, q_posterior(wide_x, wide_z, t, s).mean),
        )
        found += [difference(on, *pair) for pair in pairs]
    return Finding(worst(found), allowed(on, 4, 4))


def lincomb(on: Backend, host: Backend) -> Finding:
    """The backend's Σ c x of one to six terms, whose arguments it must leave as they are."""
    dtype = on.xp.float32 if is_half(on.dtype) else on.dtype  # as `advance` asks for it
    rng = np.random.default_rng(0)
    arrays = list(rng.standard_normal((6, 3, 4, 5)).astype(np.float32))
    each = on.asarray(np.array([0.5, -2.0, 0.0]), dtype)
    one = on.asarray(np.array(0.75), dtype)
    coefficients: list[tuple[Any, ...]] = [
        (0.0,), (1.0,), (-0.3,), (0.7, -1.1), (0.0, 2.0, 0.0, -1e-3), (1.0, 1.0, 1.0),
        (0.3, -0.2, 0.9, -1.4, 1e-4, 3.0), (one, -0.5), (each, one, 0.25), (0.5, each, each),
    ]  # fmt: skip
    found: list[float] = []
    for row in coefficients:
        terms = [on.asarray(a.copy(), dtype) for a in arrays[: len(row)]]
        result = on.lincomb(*zip(row, terms, strict=True))
        if result.dtype != dtype:
            raise TypeError(f"the result is in {result.dtype}, not in {dtype}")
        numbers = [c if isinstance(c, float) else on.to_numpy(c) for c in row]
        wide = [host.asarray(a) for a in arrays[: len(row)]]
        wanted = combine(*zip(numbers, wide, strict=True))
        size = max(np.abs(wanted).max(), np.abs(wide[0]).max())
        found.append(float(np.abs(on.to_numpy(result) - wanted).max() / size))
        for kept, a in zip(terms, arrays, strict=False):
            if not np.array_equal(on.to_numpy(kept), a):
                raise ValueError(f"the sum of {len(row)} terms changes one of them")
    return Finding(worst(found), 4 * float(on.xp.finfo(dtype).eps))


def samplers(on: Backend, host: Backend) -> Finding:
    """Whole tables on the exact denoiser of a Gaussian; one of them also as arrays."""
    rng = np.random.default_rng(0)
    shape = (2, 3, 4)
    denoise = GaussianOracle(rng.standard_normal(shape), rng.uniform(0.1, 1, shape))
    noise = on.portable_noise(1)
    known = as_given(on, host, noise)
    batch = (3, *shape)
    found: list[float] = []
    for solver in SAMPLERS:
        table = solver(SCHEDULE, 12)
        wanted = sample(denoise, table, known(0, batch), known)
        result = sample(denoise, table, noise(0, batch), noise, lincomb=on.lincomb)
        found.append(difference(on, result, wanted))
    table = sde_dpmpp_2m(SCHEDULE, 12)
    wanted = sample(denoise, table, known(0, batch), known)
    found.append(difference(on, _by_arrays(on, table, denoise, noise, batch), wanted))
    return Finding(worst(found), allowed(on, 40, 4))


def _by_arrays(
    on: Backend, table: Sampler, denoise: GaussianOracle, noise: Noise, shape: tuple[int, ...]
) -> Array:
    """What `sample` draws, with the table on the device."""
    dtype = on.xp.float32 if is_half(on.dtype) else on.dtype
    rows, state = table.rows_as(on.xp, dtype, on.device), table.start(noise(0, shape))
    for i, host_row in enumerate(table.rows()):
        row = Row(
            Level(*(field[i] for field in rows.level)),
            *(tuple(c[i] for c in part) for part in (rows.read, rows.point, rows.anchor)),
        )
        y = denoise(state.point, host_row.level)
        state = advance(row, state, y, noise(i + 1, shape), lincomb=on.lincomb)
    return state.point


def network(on: Backend, host: Backend) -> Finding:
    """The UNet with random weights, in settings of all its switches, at batch 1 and 3."""
    found: list[float] = []
    for config in NETWORKS:
        ours, theirs = networks(on, host, config)
        for batch in (1, 3):
            size = SIZE if config.widths[0] == 32 else (8, 12)
            x, wide = both(on, host, batch, config.channels, *size)
            t = np.array([999.0, 0.0, 421.5])[:batch]
            cond, wide_cond = (), ()
            if config.classes:
                y = np.array([2, -1, 0])[:batch]
                cond, wide_cond = (on.asarray(y, on.xp.int32),), (y,)
            result = ours(x, on.asarray(t, on.xp.float32), *cond)
            found.append(difference(on, result, theirs(wide, t, *wide_cond)))
    return Finding(worst(found), allowed(on, 84, 8))  # 1e-5 in float32


def sampling(on: Backend, host: Backend) -> Finding:
    """Whole samples of a UNet, with and without noise."""
    return sampled(on, host, lambda *args: sample(*args, lincomb=on.lincomb))


def sampled(on: Backend, host: Backend, draw: Callable[..., Array]) -> Finding:
    """As `sampling`, by draw(denoise, table, x, noise) on the backend."""
    config = NETWORKS[0]
    ours, theirs = (Predictor(net, SCHEDULE, v) for net in networks(on, host, config))
    noise = on.portable_noise(2)
    known = as_given(on, host, noise)
    shape = (2, config.channels, 8, 8)
    found: list[float] = []
    for solver in (ancestral, dpmpp_2m):
        table = solver(SCHEDULE, 6)
        wanted = sample(theirs, table, known(0, shape), known)
        found.append(difference(on, draw(ours, table, noise(0, shape), noise), wanted))
    return Finding(worst(found), allowed(on, 250, 16))


def gradients(on: Backend, host: Backend) -> Finding:
    """The loss's derivative along a direction of each parameter, by central differences there."""
    if is_half(on.dtype):
        raise NotApplicable("parameters train in float32")
    config = SMALL
    params = random_params(on, config)
    x, wide_x = both(on, host, 2, 1, 4, 6)
    z, wide_z = both(on, host, 2, 1, 4, 6, seed=1)
    t = SCHEDULE(np.array([10, 600]))

    def value(on: Backend, params: dict[str, Array], x: Array, z: Array) -> Array:
        def net(x_t: Array, time: Array) -> Array:
            return unet(params, x_t, time, config=config, ops=on.ops)

        return on.xp.mean(loss(Predictor(net, SCHEDULE, eps), x, z, t))

    slopes_of = on.grad(lambda params: value(on, params, x, z))
    if slopes_of is None:
        raise NotApplicable(f"{on.name} has no gradients")
    there = {name: on.asarray(p) for name, p in params.items()}
    slopes = {name: on.to_numpy(slope) for name, slope in slopes_of(there).items()}

    rng: Any = np.random.default_rng(1)
    step = 1e-5
    here = {name: host.asarray(p) for name, p in params.items()}
    found, wanted = np.zeros(len(here)), np.zeros(len(here))
    for i, (name, p) in enumerate(here.items()):
        along = rng.standard_normal(p.shape)
        along /= math.sqrt((along**2).sum())
        ends = [value(host, here | {name: p + h * along}, wide_x, wide_z) for h in (step, -step)]
        wanted[i] = (ends[0] - ends[1]) / (2 * step)
        found[i] = (slopes[name] * along).sum()
    largest = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    return Finding(largest, 1e-4 if on.dtype == on.xp.float32 else 1e-7)


def compiled(on: Backend, host: Backend) -> Finding:
    """A step of a sampler with a UNet, by the backend's `compile` and plainly, on two inputs."""
    step, inputs = step_with_network(on, host)
    quick = on.compile(step)
    if quick is step:
        raise NotApplicable(f"{on.name} compiles nothing")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lru_cache")  # of array_api_compat's
        # Twice: a call may first be warmed up, then captured, then replayed. And all before the
        # first is looked at, which no later one may write over.
        results = [(quick(x), x) for x in inputs * 2]
    pairs = ((result, on.to_numpy(step(x)).astype(np.float64)) for result, x in results)
    return Finding(worst(difference(on, *pair) for pair in pairs), allowed(on, 84, 8))


def step_with_network(on: Backend, host: Backend) -> tuple[Callable[[Array], Array], list[Array]]:
    """A step of DPM-Solver++(2M) with the smallest network, and two points to take it from."""
    predict = Predictor(networks(on, host, SMALLEST)[0], SCHEDULE, v)
    row = dpmpp_2m(SCHEDULE, 4).rows()[1]

    def step(x: Array) -> Array:
        x_0 = predict(x, row.level)
        return advance(row, State(x, x, (0.5 * x,)), x_0, lincomb=on.lincomb).point

    return step, [both(on, host, 2, 1, 8, 8, seed=seed)[0] for seed in (0, 1)]


def halved(x_t: Array, t: Level, **cond: Any) -> Array:
    """A denoiser that is no network."""
    return 0.5 * x_t


def sampler_without_network(
    on: Backend, host: Backend
) -> tuple[Callable[[Array], Array], list[Array]]:
    """DPM-Solver++(2M) of `halved`, and two points to start from."""
    table = dpmpp_2m(SCHEDULE, 8)

    def draw(x: Array) -> Array:
        return sample(halved, table, x, lincomb=on.lincomb)

    return draw, [both(on, host, 2, 3, 8, 8, seed=seed)[0] for seed in (0, 1)]


def leak(on: Backend, host: Backend) -> Finding:
    """KiB that are alive after 20 calls of the UNet and were not after 2."""
    counting = on.live_bytes()
    if counting is None:
        raise NotApplicable(f"{on.name} does not count what it holds")
    net = networks(on, host, NETWORKS[0])[0]
    x, t = both(on, host, 8, 3, 16, 16)[0], on.asarray(np.zeros(8), on.xp.float32)
    with counting as alive:
        for _ in range(2):
            net(x, t)
        before = alive()
        for _ in range(18):
            net(x, t)
        after = alive()
    # Small objects of Python's may be counted too; one output is 24 KiB, kept 18 times.
    return Finding((after - before) / 1024, 128)


#: By name: what is compared, and how.
CHECKS: dict[str, tuple[str, Check]] = {
    "transfers": ("arrays, there and back", transfers),
    "portable noise": ("values that are not NumPy's", portable),
    "native noise": ("moments, in standard errors", native),
    "forward process": ("q, between any two levels", forward),
    "lincomb": ("one to six terms", lincomb),
    "samplers": (f"{len(SAMPLERS)} tables, exact denoiser", samplers),
    "UNet": (f"{len(NETWORKS)} networks, batch 1 and 3", network),
    "sampling": ("2 whole samples of a UNet", sampling),
    "gradients": ("along each parameter", gradients),
    "compiled step": ("compiled and plain", compiled),
    "memory kept": ("KiB, after 20 calls and 2", leak),
}
