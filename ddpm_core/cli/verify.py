"""`ddpm-core verify`: a backend beside NumPy, on the device that it is for."""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import platform
import tracemalloc
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import ddpm_core
from ddpm_core.arrays import combine, is_half
from ddpm_core.backends import Backend, backend
from ddpm_core.checkpoints.files import write_whole
from ddpm_core.cli.info import version_of
from ddpm_core.cli.models import Device
from ddpm_core.cli.pictures import check_place
from ddpm_core.denoisers import Predictor
from ddpm_core.levels import Level
from ddpm_core.losses import loss
from ddpm_core.nn import Ops, UNetConfig, parameter_shapes, unet
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
    sde_dpmpp_2m,
    sde_dpmpp_3m,
    unipc_2,
)
from ddpm_core.samplers import sample as draw_sample
from ddpm_core.schedules import linear
from ddpm_core.typing import Array, Noise

SCHEDULE = linear()
SAMPLERS = (
    ddim, ancestral, heun, dpmpp_2m, dpmpp_3m, unipc_2, sde_dpmpp_2m, sde_dpmpp_3m, er_sde,
)  # fmt: skip

#: Small networks, which differ in every switch: Ho et al. 2020, Nichol & Dhariwal 2021 with a
#: learned variance, Dhariwal & Nichol 2021 with classes. The second would show a lost eps; the
#: third, at SIZE, is wide enough for every form of our convolutions, and its tiles are cut.
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


class Line(NamedTuple):
    """A finding with its verdict: ok, failed, not applicable, or reported."""

    check: str
    compared: str
    largest: float | None
    allowed: float | None
    verdict: str
    note: str


#: (the backend, NumPy) -> what was found; an exception is a failure.
Check: TypeAlias = Callable[[Backend, Backend], Finding]


def verify(
    backend_name: Annotated[
        str, typer.Option("--backend", help="numpy, torch, or another that `info` lists.")
    ] = "torch",
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(help="float32, float64 or bfloat16, where the backend has it.")
    ] = "float32",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write what was found.")
    ] = None,
) -> int:
    """Check a backend against NumPy on this device; exit status 1 if a check fails.

    Noise, the forward process, samplers and the UNet must give NumPy's numbers to rounding; a
    compiled step those of the plain one; and on CUDA a step must not make the host wait. It takes
    seconds on NumPy, and a minute or two where something is compiled.
    """
    if json_path is not None:
        check_place(json_path, ".json")
    on = backend(backend_name, device=device, dtype=dtype)
    console, about = Console(), environment(on)
    console.print(", ".join(dict.fromkeys(about.values())), highlight=False, soft_wrap=True)
    lines: list[Line] = []
    with Console(stderr=True).status("") as status:
        for line in examined(on, status.update):
            lines.append(line)
    _show(console, lines)
    if json_path is not None:
        checks = [line._asdict() | {"largest": _number(line.largest)} for line in lines]
        text = json.dumps({"environment": about, "checks": checks}, indent=2, allow_nan=False)
        write_whole(json_path, (text + "\n").encode())
    return int(any(line.verdict == "failed" for line in lines))


def _number(x: float | None) -> float | str | None:
    """As JSON has it, where NaN and infinities are words."""
    return x if x is None or math.isfinite(x) else str(x)


def examined(on: Backend, now: Callable[[str], None] = lambda name: None) -> Iterable[Line]:
    """The checks of a backend, one after the other; now is told each one's name before it."""
    host = reference()
    with exact_products(on):
        for name, (compared, check) in CHECKS.items():
            now(name)
            yield _judged(name, compared, check, on, host)


def reference() -> Backend:
    """What a backend is compared with: NumPy in float64, with the operations of the standard."""
    host = backend("numpy", dtype="float64")
    host.ops = Ops()
    return host


def _judged(name: str, compared: str, check: Check, on: Backend, host: Backend) -> Line:
    try:
        largest, allowed, note = check(on, host)
    except NotApplicable as reason:
        return Line(name, compared, None, None, "not applicable", str(reason))
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        return Line(name, compared, None, None, "failed", f"{type(error).__name__}: {first}")
    if largest is None or allowed is None:
        return Line(name, compared, largest, allowed, "reported", note)
    verdict = "ok" if largest <= allowed else "failed"  # a NaN is a failure
    return Line(name, compared, largest, allowed, verdict, note)


def _show(console: Console, lines: list[Line]) -> None:
    colours = {"ok": "green", "failed": "bold red", "not applicable": "dim", "reported": "cyan"}
    table = Table("check", "what was compared", box=None, pad_edge=False)
    for name in ("largest", "allowed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for line in lines:
        numbers = ("" if n is None else f"{n:.2g}" for n in (line.largest, line.allowed))
        colour = colours[line.verdict]
        compared = Text("" if line.verdict in ("not applicable", "reported") else line.compared)
        if line.note:
            compared.append(f"\n{line.note}" if compared else line.note, colour)
        table.add_row(line.check, compared, *numbers, Text(line.verdict, colour))
    console.print(table)
    failed = [line.check for line in lines if line.verdict == "failed"]
    counts = {verdict: sum(line.verdict == verdict for line in lines) for verdict in colours}
    words = {verdict: f"{count} {verdict}" for verdict, count in counts.items() if count}
    if failed:
        words["failed"] += f" ({', '.join(failed)})"
    console.print(
        ", ".join(words.values()),
        style="bold red" if failed else "green",
        highlight=False,
    )


# The device. --------------------------------------------------------------------------------------


def environment(on: Backend) -> dict[str, str]:
    """What the numbers are of: device, dtype and versions, in words."""
    about = {
        "device": f"{on.device} ({platform.machine()}, {os.cpu_count()} processors)",
        "dtype": str(on.dtype).rpartition(".")[2],
        "ddpm-core": f"ddpm-core {ddpm_core.__version__}",
        "library": f"{on.name} {version_of(on)}",
        "numpy": f"numpy {np.__version__}",
        "python": f"Python {platform.python_version()}",
    }
    if _on_cuda(on):
        import torch

        major, minor = torch.cuda.get_device_capability(on.device)
        about["device"] = f"{torch.cuda.get_device_name(on.device)} ({on.device}, {major}.{minor})"
        about["cuda"] = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    elif on.name == "cupy":
        runtime: Any = importlib.import_module("cupy").cuda.runtime
        name = runtime.getDeviceProperties(on.device.id)["name"].decode()
        about["device"] = f"{name} (cuda:{on.device.id})"
        about["cuda"] = f"CUDA {runtime.runtimeGetVersion()}"
    elif on.name == "jax":
        device: Any = on.device or importlib.import_module("jax").devices()[0]
        about["device"] = f"{device.device_kind} ({device.platform})"
    return about


def _on_cuda(on: Backend) -> bool:
    return on.name == "torch" and on.device.type == "cuda"


@contextmanager
def exact_products(on: Backend) -> Generator[None]:
    """Where products of float32 are float32's, and not those of TensorFloat-32."""
    if on.name == "jax":
        with importlib.import_module("jax").default_matmul_precision("highest"):
            yield
        return
    if not _on_cuda(on):
        yield
        return
    with _tf32(False):
        yield


@contextmanager
def _tf32(wanted: bool) -> Generator[None]:
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.allow_tf32 = wanted
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


# What checks are made of. -------------------------------------------------------------------------


def _both(on: Backend, host: Backend, *shape: int, seed: int = 0) -> tuple[Array, Array]:
    """A normal array on the backend, and the same values, as rounded there, on the host."""
    x = on.asarray(np.random.default_rng(seed).standard_normal(shape))
    return x, host.asarray(on.to_numpy(x).copy())


def _as_given(on: Backend, host: Backend, noise: Noise) -> Noise:
    """The backend's noise on the host."""
    return lambda step, shape: host.asarray(on.to_numpy(noise(step, shape)))


def _difference(on: Backend, found: Array, wanted: Array) -> float:
    """The largest difference, relative to the largest value.

    TypeError or ValueError if found has another dtype or shape than it must.
    """
    if found.dtype != on.dtype:
        raise TypeError(f"the result is in {found.dtype}, not in {on.dtype}")
    if tuple(found.shape) != wanted.shape:
        raise ValueError(f"the result has shape {tuple(found.shape)}, not {wanted.shape}")
    values = on.to_numpy(found).astype(np.float64)
    return float(np.abs(values - wanted).max() / np.abs(wanted).max())


def _worst(differences: Iterable[float]) -> float:
    return float(np.max(list(differences)))  # not max, which passes over a NaN


def _allowed(on: Backend, roundings: float, half: float) -> float:
    """So many roundings of the dtype, or of a half precision, whose sums are float32's."""
    return (half if is_half(on.dtype) else roundings) * float(on.xp.finfo(on.dtype).eps)


def _random_params(on: Backend, config: UNetConfig) -> dict[str, Array]:
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


def _networks(on: Backend, host: Backend, config: UNetConfig) -> tuple[Any, Any]:
    params = _random_params(on, config)
    return on.network(params, config), host.network(params, config)


# The checks. --------------------------------------------------------------------------------------


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
    return Finding(_worst([errors.max(), between.max(), within.max()]), 5)


def forward(on: Backend, host: Backend) -> Finding:
    """q(x_t | x_0), q(x_t | x_s) and q(x_s | x_t, x_0), at one level and at one per sample."""
    x, wide_x = _both(on, host, 3, 2, 5)
    z, wide_z = _both(on, host, 3, 2, 5, seed=1)
    found: list[float] = []
    for low, high in ((350, 700), (0, 1), (np.array([1, 250, 0]), np.array([2, 999, 1000]))):
        s, t = SCHEDULE(low), SCHEDULE(high)
        pairs = (
            (q_sample(x, z, t), q_sample(wide_x, wide_z, t)),
            (q_step(x, z, t, s), q_step(wide_x, wide_z, t, s)),
            (q_posterior(x, z, t, s).mean, q_posterior(wide_x, wide_z, t, s).mean),
        )
        found += [_difference(on, *pair) for pair in pairs]
    return Finding(_worst(found), _allowed(on, 4, 4))


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
    return Finding(_worst(found), 4 * float(on.xp.finfo(dtype).eps))


def samplers(on: Backend, host: Backend) -> Finding:
    """Whole tables on the exact denoiser of a Gaussian; one of them also as arrays."""
    rng = np.random.default_rng(0)
    shape = (2, 3, 4)
    denoise = GaussianOracle(rng.standard_normal(shape), rng.uniform(0.1, 1, shape))
    noise = on.portable_noise(1)
    known = _as_given(on, host, noise)
    batch = (3, *shape)
    found: list[float] = []
    for solver in SAMPLERS:
        table = solver(SCHEDULE, 12)
        wanted = draw_sample(denoise, table, known(0, batch), known)
        result = draw_sample(denoise, table, noise(0, batch), noise, lincomb=on.lincomb)
        found.append(_difference(on, result, wanted))
    table = sde_dpmpp_2m(SCHEDULE, 12)
    wanted = draw_sample(denoise, table, known(0, batch), known)
    found.append(_difference(on, _by_arrays(on, table, denoise, noise, batch), wanted))
    return Finding(_worst(found), _allowed(on, 40, 4))


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
        ours, theirs = _networks(on, host, config)
        for batch in (1, 3):
            size = SIZE if config.widths[0] == 32 else (8, 12)
            x, wide = _both(on, host, batch, config.channels, *size)
            t = np.array([999.0, 0.0, 421.5])[:batch]
            cond, wide_cond = (), ()
            if config.classes:
                y = np.array([2, -1, 0])[:batch]
                cond, wide_cond = (on.asarray(y, on.xp.int32),), (y,)
            result = ours(x, on.asarray(t, on.xp.float32), *cond)
            found.append(_difference(on, result, theirs(wide, t, *wide_cond)))
    return Finding(_worst(found), _allowed(on, 84, 8))  # 1e-5 in float32


def tensor_float(on: Backend, host: Backend) -> Finding:
    """The UNet as before, with products of 11 bits."""
    if not _on_cuda(on) or on.dtype != on.xp.float32:
        raise NotApplicable("of float32, by torch on CUDA")
    with _tf32(True):
        return Finding(network(on, host).largest, 1e-2)


def sampling(on: Backend, host: Backend) -> Finding:
    """A whole sample of a UNet, with and without noise; on JAX by `lax.scan` too."""
    config = NETWORKS[0]
    ours, theirs = (Predictor(net, SCHEDULE, v) for net in _networks(on, host, config))
    noise = on.portable_noise(2)
    known = _as_given(on, host, noise)
    shape = (2, config.channels, 8, 8)
    found: list[float] = []
    for solver in (ancestral, dpmpp_2m):
        table = solver(SCHEDULE, 6)
        result = draw_sample(ours, table, noise(0, shape), noise, lincomb=on.lincomb)
        wanted = draw_sample(theirs, table, known(0, shape), known)
        found.append(_difference(on, result, wanted))
        if on.name == "jax":
            scan: Any = importlib.import_module("ddpm_core_jax").sample
            found.append(_difference(on, scan(ours, table, noise(0, shape), noise), wanted))
    return Finding(_worst(found), _allowed(on, 250, 16))


def gradients(on: Backend, host: Backend) -> Finding:
    """The loss's derivative along a direction of each parameter, by central differences there."""
    if on.name not in ("torch", "jax"):
        raise NotApplicable(f"{on.name} has no gradients")
    if is_half(on.dtype):
        raise NotApplicable("parameters train in float32")
    config = SMALL
    params = _random_params(on, config)
    x, wide_x = _both(on, host, 2, 1, 4, 6)
    z, wide_z = _both(on, host, 2, 1, 4, 6, seed=1)
    t = SCHEDULE(np.array([10, 600]))

    def value(on: Backend, params: dict[str, Array], x: Array, z: Array) -> Array:
        def net(x_t: Array, time: Array) -> Array:
            return unet(params, x_t, time, config=config, ops=on.ops)

        return on.xp.mean(loss(Predictor(net, SCHEDULE, eps), x, z, t))

    there = {name: on.asarray(p) for name, p in params.items()}
    if on.name == "torch":
        for p in there.values():
            p.requires_grad_()
        value(on, there, x, z).backward()
        slopes = {name: on.to_numpy(p.grad) for name, p in there.items()}
    else:
        grad: Any = importlib.import_module("jax").grad(value, argnums=1)
        slopes = {name: on.to_numpy(g) for name, g in grad(on, there, x, z).items()}

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
    step, inputs = _step(on, host)
    quick = on.compile(step)
    if quick is step:
        raise NotApplicable(f"{on.name} compiles nothing")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lru_cache")  # of array_api_compat's
        # Twice: a call may first be warmed up, then captured, then replayed. And all before the
        # first is looked at, which no later one may write over.
        results = [(quick(x), x) for x in inputs * 2]
    pairs = ((result, on.to_numpy(step(x)).astype(np.float64)) for result, x in results)
    return Finding(_worst(_difference(on, *pair) for pair in pairs), _allowed(on, 84, 8))


def _step(on: Backend, host: Backend) -> tuple[Callable[[Array], Array], list[Array]]:
    """A step of DPM-Solver++(2M) with the smallest network, and two points to take it from."""
    predict = Predictor(_networks(on, host, SMALLEST)[0], SCHEDULE, v)
    row = dpmpp_2m(SCHEDULE, 4).rows()[1]

    def step(x: Array) -> Array:
        x_0 = predict(x, row.level)
        return advance(row, State(x, x, (0.5 * x,)), x_0, lincomb=on.lincomb).point

    return step, [_both(on, host, 2, 1, 8, 8, seed=seed)[0] for seed in (0, 1)]


def no_wait_of_samplers(on: Backend, host: Backend) -> Finding:
    """A sampler without a network as a CUDA graph, and with noise where a wait is an error."""
    if on.name != "cupy":
        _cuda_or_not_applicable(on)
    noise = on.noise(0)

    def net(x_t: Array, t: Level, **cond: Any) -> Array:
        return 0.5 * x_t

    def draw(x: Array) -> Array:
        return draw_sample(net, dpmpp_2m(SCHEDULE, 8).given(eps), x, lincomb=on.lincomb)

    def draw_with_noise(x: Array) -> Array:
        table = ancestral(SCHEDULE, 8).given(eps)
        return draw_sample(net, table, x, noise, lincomb=on.lincomb)

    inputs = [_both(on, host, 2, 3, 8, 8, seed=seed)[0] for seed in (0, 1)]
    if on.name == "cupy":  # which captures no wait, and draws noise of its own only outside
        captured = on.compile(draw)
        pairs = [(captured(x), on.to_numpy(draw(x)).astype(np.float64)) for x in inputs]
        return Finding(_worst(_difference(on, *pair) for pair in pairs), _allowed(on, 84, 8))
    _unwaited(draw_with_noise, inputs[0])
    return _replayed(on, draw, inputs)


def no_wait_of_network(on: Backend, host: Backend) -> Finding:
    """A step with a UNet, likewise."""
    _cuda_or_not_applicable(on)
    step, inputs = _step(on, host)
    _unwaited(step, inputs[0])
    return _replayed(on, step, inputs)


def _cuda_or_not_applicable(on: Backend) -> None:
    if on.name == "cupy":
        raise NotApplicable("on CuPy the compiled step is one")
    if not _on_cuda(on):
        raise NotApplicable("no device to synchronise with")


def _unwaited(f: Callable[[Array], Array], x: Array) -> None:
    """Calls f(x); RuntimeError where the host would wait for the device."""
    import torch

    f(x)  # what is made once may wait
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        f(x)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _replayed(on: Backend, f: Callable[[Array], Array], inputs: list[Array]) -> Finding:
    """f captured as a CUDA graph at the first input and replayed on each, beside plain calls."""
    import torch

    x = inputs[0].clone()
    stream: Any = torch.cuda.Stream(on.device)
    stream.wait_stream(torch.cuda.current_stream(on.device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            f(x)
    torch.cuda.current_stream(on.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = f(x)
    found: list[float] = []
    for value in inputs:
        x.copy_(value)
        graph.replay()
        found.append(_difference(on, out, on.to_numpy(f(value)).astype(np.float64)))
    return Finding(_worst(found), _allowed(on, 84, 8))


def leak(on: Backend, host: Backend) -> Finding:
    """KiB that are alive after 20 calls of the UNet and were not after 2."""
    net = _networks(on, host, NETWORKS[0])[0]
    x, t = _both(on, host, 8, 3, 16, 16)[0], on.asarray(np.zeros(8), on.xp.float32)
    with _alive(on) as alive:
        for _ in range(2):
            net(x, t)
        before = alive()
        for _ in range(18):
            net(x, t)
        after = alive()
    # Python's own small objects are counted there too; one output is 24 KiB, kept 18 times.
    slack = 128 if on.xp is np else 0
    return Finding((after - before) / 1024, slack)


@contextmanager
def _alive(on: Backend) -> Generator[Callable[[], int]]:
    """What counts the bytes of arrays that are alive."""
    if _on_cuda(on):
        import torch

        yield lambda: int(torch.cuda.memory_allocated(on.device))
    elif on.name == "torch":
        import torch

        def tensors() -> int:
            gc.collect()
            found = [a for a in gc.get_objects() if type(a) is torch.Tensor]
            return sum(a.numel() * a.element_size() for a in found)

        yield tensors
    elif on.name == "jax":
        jax: Any = importlib.import_module("jax")
        platform = on.device and on.device.platform
        yield lambda: sum(int(a.nbytes) for a in jax.live_arrays(platform))
    elif on.name == "cupy":
        pool: Any = importlib.import_module("cupy").get_default_memory_pool()
        yield lambda: int(pool.used_bytes())
    elif on.xp is np:
        tracemalloc.start()
        try:
            yield lambda: tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    else:
        raise NotApplicable(f"{on.name} does not say what it holds")


def peak(on: Backend, host: Backend) -> Finding:
    """The most memory of a UNet call at batch 8, beside the module's."""
    if not _on_cuda(on):
        raise NotApplicable("counted by torch on CUDA")
    import torch

    from ddpm_core_torch import UNet

    config = UNetConfig(widths=(64, 128, 128), blocks=2)
    params = _random_params(on, config)
    x, t = _both(on, host, 8, 3, 32, 32)[0], on.asarray(np.zeros(8), on.xp.float32)

    def megabytes(net: Callable[..., Any]) -> float:
        net(x, t)
        torch.cuda.reset_peak_memory_stats(on.device)
        before = torch.cuda.memory_allocated(on.device)
        net(x, t)
        return (torch.cuda.max_memory_allocated(on.device) - before) / 2**20

    ours = megabytes(on.network(params, config))
    module = UNet(config, params).to(on.device, on.dtype)
    weights = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20
    with torch.no_grad():
        theirs = megabytes(module)
    note = f"{ours:.1f} MiB above {weights:.1f} of weights; the module {theirs:.1f}"
    return Finding(note=note)


#: By name: what is compared, and how.
CHECKS: dict[str, tuple[str, Check]] = {
    "transfers": ("arrays, there and back", transfers),
    "portable noise": ("values that are not NumPy's", portable),
    "native noise": ("moments, in standard errors", native),
    "forward process": ("q, between any two levels", forward),
    "lincomb": ("one to six terms", lincomb),
    "samplers": (f"{len(SAMPLERS)} tables, exact denoiser", samplers),
    "UNet": (f"{len(NETWORKS)} networks, batch 1 and 3", network),
    "UNet in TF32": ("the same", tensor_float),
    "sampling": ("2 whole samples of a UNet", sampling),
    "gradients": ("along each parameter", gradients),
    "compiled step": ("compiled and plain", compiled),
    "sampler's graph": ("captured, and plain", no_wait_of_samplers),
    "UNet's graph": ("captured, and plain", no_wait_of_network),
    "memory kept": ("KiB, after 20 calls and 2", leak),
    "memory peak": ("of a UNet call, batch 8", peak),
}
