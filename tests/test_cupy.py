"""The CuPy backend without a GPU: its kernels compiled for four architectures, the same sources
run on the CPU, and all that is around them on a stand-in for CuPy (`fakecupy`).

What this cannot show: speed, memory, and what real warps and streams do at the same time.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import math
import os
import shutil
from typing import Any

import numpy as np
import pytest
import readme
from fakecupy import CUDARuntimeError, RawKernel, gpu, installed
from hypothesis import given, settings
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import Level, samplers
from ddpm_core.nn import Ops, UNetConfig, parameter_shapes, unet
from ddpm_core.testing import backends as suite
from ddpm_core.testing.backend_checks import CHECKS
from ddpm_core_numpy import convolution

REAL = pytest.importorskip("cupy", reason="its names are the stand-in's; no GPU is needed")
NVRTC = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
if shutil.which("g++") is None and not os.environ.get("CI"):
    pytest.skip("g++ runs the kernels on the CPU", allow_module_level=True)

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_120"]
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
dtypes = pytest.mark.parametrize("dtype", list(EPS))


@pytest.fixture(scope="module", autouse=True)
def cp(tmp_path_factory):
    """The stand-in, as `cupy`."""
    with installed(tmp_path_factory.mktemp("kernels")) as cp:
        yield cp


@pytest.fixture
def on(cp):
    return backend()


def backend(**kwargs: Any) -> Any:
    return importlib.import_module("ddpm_core_cupy").CuPy(**kwargs)


def kernels() -> Any:
    return importlib.import_module("ddpm_core_cupy.kernels")


def values(x: Any) -> np.ndarray:
    """What an array of the stand-in holds, with nothing counted."""
    return x._a.copy()


# (a) The sources compile. -----------------------------------------------------------------------


def has_nvrtc() -> bool:
    try:
        NVRTC.getVersion()
    except Exception:  # of the package that looks for libraries, whatever its name is
        return bool(os.environ.get("CI"))  # where it must be
    return True


@pytest.mark.skipif(not has_nvrtc(), reason="pip install nvidia-cuda-nvrtc compiles without a GPU")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sources_compile(architecture):
    """Every kernel for every architecture, without a warning."""
    k = kernels()
    before = len(gpu.kernels)
    for make in (k.group_norm, k.portable_noise, k.silu, k.lincomb):
        make.cache_clear()
    k.portable_noise()
    for dtype in EPS:
        k.group_norm(dtype), k.silu(dtype), k.lincomb(1, dtype), k.lincomb(6, dtype)
    made = gpu.kernels[before:]
    assert len(made) == 9
    for kernel in made:
        program = NVRTC.createProgram(kernel.code, f"{kernel.name}.cu", (), ())
        NVRTC.compileProgram(program, (f"--gpu-architecture={architecture}", "--std=c++17"))
        assert "warning" not in NVRTC.getProgramLog(program)
        assert kernel.name.encode() in NVRTC.getCUBIN(program)
        NVRTC.destroyProgram(program)


# (b) The same sources, run on the CPU. ----------------------------------------------------------


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**31 - 1),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    data=st.data(),
)
def test_noise_bit_for_bit(cp, seed, step, shape, data):
    """One kernel draws what `portable_noise` draws: odd sizes, any ids, a step for each sample."""
    on, wanted = backend(), ddpm.portable_noise(seed)
    drawn = on.portable_noise(seed)
    np.testing.assert_array_equal(values(drawn(step, shape)), wanted(step, shape), strict=True)
    several = st.lists(st.integers(0, 2**31 - 1), min_size=shape[0], max_size=shape[0])
    ids, steps = np.array(data.draw(several)), np.array(data.draw(several))
    np.testing.assert_array_equal(
        values(drawn(cp.asarray(steps), shape, cp.asarray(ids))), wanted(steps, shape, ids)
    )
    np.testing.assert_array_equal(values(drawn(step, shape, ids)), wanted(step, shape, ids))


def test_noise_of_many_blocks(on):
    """Sizes beyond one block of threads; in float64 the same values; a step on the GPU for all."""
    shape = (3, 3, 17, 11)
    wanted = ddpm.portable_noise(5)(9, shape)
    for gpu.backwards in (True, False):  # no thread writes what is another's
        np.testing.assert_array_equal(values(on.portable_noise(5)(9, shape)), wanted)
    found = values(backend(dtype="float64").portable_noise(5)(on.asarray(9, np.int64), shape))
    np.testing.assert_array_equal(found, wanted.astype(np.float64), strict=True)
    assert values(on.portable_noise(5)(9, (0, 4))).shape == (0, 4)


def test_noise_by_the_standard(on):
    """`portable_noise` itself, on CuPy's namespace, draws the same."""
    wanted = ddpm.portable_noise(5)(9, (3, 5))
    drawn = ddpm.portable_noise(5, on.xp, on.device)(9, (3, 5))
    np.testing.assert_array_equal(values(drawn), wanted, strict=True)


def test_noise_says_what_is_wrong(on):
    with pytest.raises(ValueError, match="seed must lie within"):
        on.portable_noise(-1)
    with pytest.raises(ValueError, match="2 ids do not go with shape"):
        on.portable_noise(0)(1, (3, 2), ids=[0, 1])


ORDERS = ["rows", "wide", "neither"]


def laid(a: np.ndarray, order: str, turned: bool, cp: Any) -> Any:
    """The same numbers, in memory by rows or columns, with room between those or between all."""
    if turned:
        return laid(a.swapaxes(-1, -2), order, False, cp).swapaxes(a.ndim - 2, a.ndim - 1)
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan, a.dtype)
    kept = {"rows": None, "wide": slice(a.shape[-1]), "neither": slice(None, None, 2)}[order]
    if kept is None:
        return cp.asarray(np.ascontiguousarray(a))
    wide[..., kept] = a
    return cp.asarray(wide)[..., kept]


LAID = list(itertools.product(ORDERS, [False, True]))


@dtypes
@pytest.mark.parametrize("a_laid", LAID, ids=str)
@pytest.mark.parametrize("b_laid", LAID, ids=str)
def test_matmul(dtype, a_laid, b_laid, cp):
    """Of matrices however they lie in memory, with a result that was there, and without."""
    rng = np.random.default_rng(0)
    matmul = importlib.import_module("ddpm_core_cupy").matmul
    sizes = [(2, 3, 4), (1, 3, 4), (2, 1, 4), (2, 3, 1), (1, 1, 1), (3, 5, 7)]
    for (rows, inner, columns), count in itertools.product(sizes, [(), (1,), (3,)]):
        a = rng.standard_normal((*count, rows, inner)).astype(dtype)
        b = rng.standard_normal((*count, inner, columns)).astype(dtype)
        out = cp.asarray(np.full((*count, rows, columns), np.nan, dtype))
        first, second = laid(a, *a_laid, cp), laid(b, *b_laid, cp)
        np.testing.assert_array_equal(values(first), a)
        wide_a, wide_b = a.astype(float), b.astype(float)
        wanted, size = wide_a @ wide_b, np.abs(wide_a) @ np.abs(wide_b)
        for found in (matmul(first, second), matmul(first, second, out=out), out):
            assert (np.abs(values(found) - wanted) <= inner * EPS[dtype] * size).all()
            assert found.dtype == dtype


def test_matmul_of_a_row_for_all(cp):
    """Rows, or columns, that are one in memory are no matrix to cuBLAS."""
    matmul = importlib.import_module("ddpm_core_cupy").matmul
    row, b = np.arange(1.0, 4.0), np.arange(12.0).reshape(3, 4)
    rows = cp.broadcast_to(cp.asarray(row), (5, 3))
    np.testing.assert_array_equal(values(matmul(rows, cp.asarray(b))), [row @ b] * 5)
    turned = matmul(cp.asarray(b.T), rows.T)
    np.testing.assert_array_equal(values(turned), np.transpose([row @ b] * 5))


def test_matmul_says_what_is_wrong(cp):
    matmul = importlib.import_module("ddpm_core_cupy").matmul
    for a, b in [((2, 3), (2, 3)), ((2, 2, 3), (3, 2)), ((1, 1, 2, 3), (1, 1, 3, 2))]:
        with pytest.raises(ValueError, match="no product of shapes"):
            matmul(cp.zeros(a), cp.zeros(b))
    with pytest.raises(ValueError, match="float64 and float32"):
        matmul(cp.zeros((2, 2)), cp.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="both in float32 or float64"):
        matmul(cp.zeros((2, 2), np.float16), cp.zeros((2, 2), np.float16))
    for a, b, c in [((2, 3), (3, 0), (2, 0)), ((0, 3), (3, 2), (0, 2))]:
        assert values(matmul(cp.zeros(a), cp.zeros(b))).shape == c


def test_attention_of_large_values(cp):
    """A softmax of logits whose exponentials are beyond float32."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 3, 4, 6))
    found = backend(dtype="float64").ops.attention(*map(cp.asarray, (100 * q, 100 * k, v)), 2)
    there = [a.transpose(0, 3, 1, 2) for a in (100 * q, 100 * k, v)]
    wanted = Ops().attention(*there, 2).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(values(found), wanted, rtol=0, atol=1e-10)


@dtypes
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 3, 3), (1, 3, 5, 8, 2), (2, 8, 8, 12, 3), (1, 17, 9, 10, 1)]
)
def test_group_norm(dtype, silu, shape, cp):
    """Against the reference in float64: fewer values than threads, and more; far from 0 too."""
    *shape, groups = shape
    rng = np.random.default_rng(0)
    h = (rng.standard_normal(shape) + 30).astype(dtype)
    weight, bias = rng.standard_normal((2, shape[-1])).astype(dtype)
    ops = backend(dtype=dtype).ops
    norm = ops.group_norm_silu if silu else ops.group_norm
    args = [cp.asarray(a) for a in (h, weight, bias)]
    found = values(norm(*args, groups, 1e-3))
    reference = Ops().group_norm_silu if silu else Ops().group_norm
    wide = [a.astype(np.float64) for a in (h.transpose(0, 3, 1, 2), weight, bias)]
    wanted = reference(*wide, groups, 1e-3).transpose(0, 2, 3, 1)
    # h - mean carries some roundings of h, up to 34, times scale, up to 1 / sqrt(1e-3).
    assert np.abs(found - wanted).max() <= 4 * 34 * 32 * EPS[dtype]
    assert found.dtype == dtype
    gpu.backwards = True
    try:
        np.testing.assert_array_equal(values(norm(*args, groups, 1e-3)), found)
    finally:
        gpu.backwards = False


@dtypes
def test_silu(dtype, on, cp):
    """Of large numbers too, where exp(-x) is inf, and of views."""
    x = np.concatenate([np.linspace(-20, 20, 40), [-1e4, 1e4, 0.0, -0.0]]).astype(dtype)
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        wanted = wide / (1 + np.exp(-wide))
    np.testing.assert_allclose(values(on.ops.silu(cp.asarray(x))), wanted, rtol=8 * EPS[dtype])
    np.testing.assert_array_equal(
        values(on.ops.silu(cp.asarray(x).reshape(4, 11).T)),
        values(on.ops.silu(cp.asarray(x))).reshape(4, 11).T,
    )


coefficients = st.floats(-2, 2) | st.sampled_from(["0-d", "per sample", "of the host"])


@dtypes
@settings(max_examples=20)
@given(st.lists(coefficients, min_size=1, max_size=4), st.integers(0, 99))
def test_lincomb(cp, dtype, kinds, seed):
    """Numbers, arrays () and arrays (B,), to the roundings of n products and sums."""
    rng = np.random.default_rng(seed)
    terms, exact = [], []
    for kind in kinds:
        x = rng.standard_normal((3, 2, 4)).astype(dtype)
        c: Any = kind
        if isinstance(kind, str):
            c = np.asarray(rng.standard_normal(() if kind == "0-d" else 3), dtype)
        factor = np.asarray(c, dtype).astype(np.float64)
        exact.append(factor.reshape(-1, 1, 1) * x.astype(np.float64))
        terms.append((cp.asarray(c) if kind in ("0-d", "per sample") else c, cp.asarray(x)))
    found = values(backend().lincomb(*terms))
    bound = len(kinds) * EPS[dtype] * np.sum(np.abs(exact), axis=0)
    assert (np.abs(found - np.sum(exact, axis=0)) <= bound).all()
    assert found.dtype == dtype
    assert found.shape == (3, 2, 4)


def test_lincomb_of_nothing(on):
    """A coefficient of 0 hides what it multiplies, inf too; all of them leave zeros."""
    x, nothing = on.asarray(np.ones(3)), on.asarray(np.full(3, np.inf))
    np.testing.assert_array_equal(values(on.lincomb((0.0, nothing), (2.0, x))), [2, 2, 2])
    np.testing.assert_array_equal(values(on.lincomb((0.0, nothing), (0, x))), [0, 0, 0])
    half = x.astype(np.float16)  # which is not `advance`'s to give, but a user's
    np.testing.assert_array_equal(values(on.lincomb((2.0, half))), [2, 2, 2])


# (c) All the rest, on the stand-in. -------------------------------------------------------------

CONFIGS = {
    "winograd": UNetConfig(1, 1, (32, 64), blocks=1, attention=(0,), groups=4, classes=3),
    "uneven": UNetConfig(*(1, 1, (32, 64)), blocks=1, attention=(), groups=4, scale_shift=True),
    "switches": UNetConfig(
        *(2, 4, (6, 12)),
        blocks=1,
        groups=3,
        heads=3,
        scale_shift=True,
        residual_resampling=True,
        symmetric_padding=True,
        cosine_first=True,
        endpoint=False,
        eps=1e-5,
    ),
    "ho": UNetConfig(3, 3, (4, 8), blocks=2, groups=2),
}


def random_params(config: UNetConfig) -> dict[str, np.ndarray]:
    """Every parameter random, also those that start at 0 or 1, which would hide a defect."""
    rng, params = np.random.default_rng(0), {}
    for name, shape in parameter_shapes(config).items():
        scale = 1 / math.sqrt(math.prod(shape[1:]) if len(shape) > 1 else 25)
        params[name] = rng.standard_normal(shape) * scale + (shape[1:] == () and "norm" in name)
    return params


@pytest.mark.parametrize("name", CONFIGS)
def test_unet(name, cp):
    """The reference's output in float64, of every switch and every form of convolution."""
    config = CONFIGS[name]
    size = {"winograd": (16, 16), "uneven": (10, 26)}.get(name, (4, 4))
    params, rng = random_params(config), np.random.default_rng(1)
    x = rng.standard_normal((3, config.channels, *size))
    time, y = np.array([0.0, 500.0, 999.0], np.float32), np.array([-1, 0, 2])
    if name == "winograd":
        assert convolution.tile((3, 16, 16, 32), 32) == 4
        assert convolution.tile((3, 8, 8, 64), 64) == 2
    if name == "uneven":  # whose last tiles are cut, so that what follows is given a view
        assert convolution.tile((3, 10, 26, 32), 32) == 4
        assert convolution.tile((3, 5, 13, 64), 64) == 2
    cond = y if config.classes else None
    wanted = unet(params, x, time, cond, config=config, ops=Ops())
    net = backend(dtype="float64").network(params, config)
    found = net(*(None if a is None else cp.asarray(a) for a in (x, time, cond)))
    np.testing.assert_allclose(values(found), wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())


SAMPLERS = {"ancestral": ddpm.ancestral, "dpmpp_2m": ddpm.dpmpp_2m, "unipc_2": ddpm.unipc_2}


def picture(on: Any, noise: Any, solver: Any, steps: int = 4) -> Any:
    """Schedule, network, sampler: all of it, as (array, what was counted after each step)."""
    schedule, config = ddpm.linear(1000), CONFIGS["winograd"]
    net = on.network(random_params(config), config)
    predict = ddpm.clip(ddpm.Predictor(net, schedule, ddpm.x0))
    y = on.asarray(np.array([-1, 0, 2]), on.xp.int64)
    x, counts = noise(0, (3, 1, 16, 16)), [(gpu.synchronisations, gpu.uploads)]
    sampler = solver(schedule, steps)
    for step in ddpm.trajectory(predict, sampler, x, noise, lincomb=on.lincomb, y=y):
        x = step.x
        counts.append((gpu.synchronisations, gpu.uploads))
    return x, counts


@pytest.mark.parametrize("name", SAMPLERS)
def test_whole_path(name, on):
    """From the schedule to the picture: NumPy's, and no step waits for the GPU.

    The first step copies what it needs to the GPU, such as a convolution's transforms; no other
    step copies anything.
    """
    found, counts = picture(on, on.portable_noise(3), SAMPLERS[name])
    wanted, _ = picture(ddpm.backend("numpy"), ddpm.portable_noise(3), SAMPLERS[name])
    np.testing.assert_allclose(values(found), wanted, rtol=0, atol=1e-5)
    waits, uploads = (np.diff(column) for column in zip(*counts, strict=True))
    assert waits.tolist() == [0] * len(waits)
    assert uploads[1:].tolist() == [0] * (len(uploads) - 1)
    assert uploads[0] > 0  # so it is counted


def test_page(on, monkeypatch):
    """The code of docs/cupy.md, with a small model: NumPy's picture."""
    config = UNetConfig(1, 1, (4, 8), blocks=1, attention=(), groups=2, classes=10)
    model = ddpm.Checkpoint(random_params(config), config, ddpm.linear(1000), (8, 4), "x0")
    monkeypatch.setattr(ddpm, "load", lambda path: model)
    (block,) = readme.blocks("python", readme.ROOT / "docs" / "cupy.md")
    names: dict[str, Any] = {}
    exec(compile(block, "docs/cupy.md", "exec"), names)
    denoise = ddpm.clip(model.predictor(ddpm.backend("numpy").network))
    x, y = ddpm.portable_noise(0)(0, (4, 1, 8, 4)), np.array([0, 1, 7, 9])
    wanted = ddpm.sample(denoise, ddpm.dpmpp_2m(model.schedule, 10), x, y=y)
    np.testing.assert_allclose(values(names["x"]), wanted, rtol=0, atol=1e-5)
    net = ddpm.backend("numpy").network(dict(model.params), config)
    wanted = net(wanted, np.full(4, 3.0), y)
    atol = 1e-4 * np.abs(wanted).max()
    np.testing.assert_allclose(values(names["eps"]), wanted, rtol=0, atol=atol)


@dtypes
def test_native_noise(dtype):
    """A function of (seed, step) in the backend's dtype, and drawn without a wait."""
    on, before = backend(dtype=dtype), gpu.synchronisations
    first = on.noise(1)(2, (4, 5))
    assert first.dtype == dtype
    assert gpu.synchronisations == before
    np.testing.assert_array_equal(values(on.noise(1)(2, (4, 5))), values(first))
    for other in (on.noise(1)(3, (4, 5)), on.noise(2)(1, (4, 5)), on.noise(2**40)(2, (4, 5))):
        assert (values(other) != values(first)).all()


@dtypes
def test_there_and_back(dtype):
    """`to_numpy` undoes `asarray`, and is what waits."""
    on, before = backend(dtype=dtype), gpu.synchronisations
    a = np.random.default_rng(0).standard_normal((3, 4)).astype(dtype)
    there = on.asarray(a)
    assert gpu.synchronisations == before
    np.testing.assert_array_equal(on.to_numpy(there), a, strict=True)
    assert gpu.synchronisations == before + 1


# CUDA graphs. -----------------------------------------------------------------------------------


def test_graph_of_a_network(on, cp):
    """Captured once for a shape, and right for arguments it has not seen."""
    config = CONFIGS["ho"]
    net = on.network(random_params(config), config)
    fast = on.compile(net)
    rng, kept = np.random.default_rng(0), []
    for batch in (2, 2, 1, 2):
        x = cp.asarray(rng.standard_normal((batch, 3, 4, 4)).astype(np.float32))
        time = cp.asarray(rng.uniform(0, 1000, batch).astype(np.float32))
        kept.append((fast(x, time), net(x, time)))
    for found, wanted in kept:  # also those before: a launch leaves earlier results alone
        np.testing.assert_array_equal(values(found), values(wanted))


def test_graph_of_a_sampler(on):
    """A whole sampler with its noise is one graph; so is a row whose numbers are arrays."""
    schedule = ddpm.linear(1000)
    noise, table = on.portable_noise(1), samplers.sde_dpmpp_2m(schedule, 4)
    x = noise(0, (3, 5))

    def oracle(x: Any, t: Level) -> Any:  # of N(0, 1 / 2)
        return x * (t.alpha / (t.alpha**2 + 2 * t.sigma**2))

    def drawn(x: Any) -> Any:
        return ddpm.sample(oracle, table, x, noise, lincomb=on.lincomb)

    wanted = values(drawn(x))
    fast = on.compile(drawn)
    for given_x in (x, x + 1.0):
        np.testing.assert_array_equal(values(fast(given_x)), values(drawn(given_x)))

    calls: list[int] = []

    @on.compile
    def advanced(row: samplers.Row, state: samplers.State, step: Any) -> samplers.State:
        calls.append(1)
        y = oracle(state.point, row.level)
        return ddpm.advance(row, state, y, noise(step, (3, 5)), lincomb=on.lincomb)

    rows, state = table.rows_as(on.xp, on.dtype), table.start(x)
    for i in range(table.nfe):
        at = Level(*(a[i] for a in rows.level))
        row = samplers.Row(at, *(tuple(a[i] for a in part) for part in rows[1:]))
        state = advanced(row, state, on.asarray(i + 1, np.int64))
    assert len(calls) == 2  # to warm up, and to capture
    assert isinstance(state, samplers.State)
    # Coefficients and levels in float32 now, where they were in float64.
    np.testing.assert_allclose(values(state.point), wanted, rtol=0, atol=1e-4)


def test_graph_within_a_graph(on):
    """A compiled function within another is a part of its graph."""
    inner = on.compile(lambda x: x * 2.0)
    x = on.asarray(np.arange(3.0))
    np.testing.assert_array_equal(values(inner(x)), [0, 2, 4])
    outer, before = on.compile(lambda x: inner(x + 1.0) - 1.0), len(gpu.events)
    np.testing.assert_array_equal(values(outer(x)), [1, 3, 5])
    captured = gpu.events[gpu.events.index("begin", before) : gpu.events.index("end", before)]
    assert captured == ["begin"]
    np.testing.assert_array_equal(values(outer(x + 1.0)), [3, 5, 7])


def test_graph_for_each_number(on):
    """A number is baked in, so another one is another graph; 1 and 1.0 and True are three."""
    calls = []

    def scaled(x: Any, by: Any, *, and_so: Any = ()) -> Any:
        calls.append(by)
        return {"scaled": x * float(by), "what": [by, x]}

    fast, x = on.compile(scaled), on.asarray(np.arange(3.0))

    @on.compile
    def named(**parts: Any) -> Any:
        return parts["x"] - parts["y"]

    three, x = on.asarray(np.full(3, 3.0)), on.asarray(np.arange(3.0))
    np.testing.assert_array_equal(values(named(x=x, y=three)), [-3, -2, -1])
    np.testing.assert_array_equal(values(named(y=x, x=three)), [3, 2, 1])
    for by in (2.0, 3.0, 2.0, 1, 1.0, True, 1):
        found = fast(x, by, and_so=(x, x))
        np.testing.assert_array_equal(values(found["scaled"]), np.arange(3.0) * float(by))
        assert type(found["what"][0]) is type(by)
        np.testing.assert_array_equal(values(found["what"][1]), np.arange(3.0))
    assert len(calls) == 2 * 5
    fast(x, 2.0, and_so=((x,), x))  # the same arrays in another nest
    fast(x, 2.0, and_so=[x, x])
    fast(on.asarray(np.arange(3.0), np.float64), 2.0, and_so=(x, x))
    assert len(calls) == 2 * 8
    fast(on.asarray(np.arange(6.0)).reshape(3, 2).T, 2.0, and_so=(x, x))
    assert len(calls) == 2 * 9
    found = fast(on.asarray(np.arange(10.0, 16.0)).reshape(3, 2).T, 2.0, and_so=(x, x))
    assert len(calls) == 2 * 9
    np.testing.assert_array_equal(values(found["scaled"]), np.arange(20.0, 32.0, 2).reshape(3, 2).T)


def test_graph_and_streams(on):
    """The capture waits for the caller's stream and is waited for; one launch a call."""
    fast, x = on.compile(lambda x: x + 1.0), on.asarray(np.ones(2))
    gpu.events.clear()
    fast(x)
    before, after = ["null recorded", "stream waits for null"], ["stream recorded"]
    captured = [*before, "begin", "end", *after, "null waits for stream"]
    wait, launched = "null waits for the event", ["launch", "null records the event"]
    assert gpu.events == [wait, *captured, *launched]
    waits = gpu.synchronisations
    fast(x)
    assert gpu.events == [wait, *captured, *launched, wait, *launched]
    assert gpu.synchronisations == waits
    del fast
    gc.collect()
    assert gpu.events[-1] == "memory is free"


@pytest.mark.parametrize(
    ("what", "message"),
    [(lambda x: float(x[0]), "synchronous API calls"), (lambda x: x * x + 1.0, None)],
)
def test_graph_of_what_waits(on, what, message):
    """It is refused by its own error, and the stream captures no more; without a wait it is not."""
    fast, x = on.compile(what), on.asarray(np.ones(2))
    if message is None:
        fast(x)
    else:
        with pytest.raises(RuntimeError, match=message):
            fast(x)
    assert gpu.recorded is None
    np.testing.assert_array_equal(values(on.compile(lambda x: x + 1.0)(x)), [2, 2])


def test_graph_of_cupys_own_product(on):
    """CuPy refuses it, as the real one does: the backend's is another."""
    fast, x = on.compile(lambda x: x @ x), on.asarray(np.ones((2, 2)))
    with pytest.raises(NotImplementedError, match="cuBLAS"):
        fast(x)


def test_graph_of_what_is_copied(on, cp):
    """Copies from the host are refused in a capture, so nothing in a network makes one there."""
    fast = on.compile(lambda x: x + cp.asarray([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="H2D transfers"):
        fast(on.asarray(np.ones(2)))


def test_graph_takes_no_arrays_of_the_host(on):
    with pytest.raises(TypeError, match=r"what is hashable, not numpy\.ndarray"):
        on.compile(lambda x: x)(np.ones(2))


@pytest.mark.slow
def test_verify(on):
    """What `ddpm-core verify --backend cupy` says on a right GPU, but for its larger networks."""
    about = suite.environment(backend(device="cuda:1"))
    assert about["device"] == "stand-in 1 (cuda:1)"
    assert about["library"] == f"cupy {REAL.__version__}"
    long = {"UNet", "sampling", "memory kept"}  # minutes on the stand-in
    names = [name for name in (*CHECKS, "sampler's graph") if name not in long]
    found = {line.check: line for line in suite.examined(on, names=names)}
    wanted = {name: "not applicable" if name == "gradients" else "ok" for name in names}
    assert {name: line.verdict for name, line in found.items()} == wanted, found


# The door. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "number"), [(None, 0), (0, 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), (1, 1)]
)
def test_devices(device, number):
    """The device is made the current one, where CuPy's own arrays are too."""
    on = backend(device=device)
    assert on.device.id == number
    assert gpu.events[-1] == f"device {number} is current"
    assert backend(device=on.device).device == on.device


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "cuda:2"}, "CuPy has no device 'cuda:2', but 2"),
        ({"device": -1}, "CuPy has no device -1"),
        ({"device": "cpu"}, "CuPy has no device 'cpu'"),
        ({"device": "0"}, "CuPy has no device '0'"),
        ({"dtype": "float16"}, "float32 or float64, not float16"),
        ({"dtype": "int32"}, "float32 or float64, not int32"),
    ],
)
def test_wrong_device_or_dtype(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        backend(**wrong)
    assert "\n" not in str(caught.value)


def test_no_driver(cp, monkeypatch):
    """What CUDA says, in one line, also by the real CuPy, where there is none."""

    def fails() -> int:
        raise CUDARuntimeError("cudaErrorInsufficientDriver: version is insufficient")

    monkeypatch.setattr(cp.cuda.runtime, "getDeviceCount", fails)
    with pytest.raises(ValueError, match=r"finds no GPU.*\(cudaErrorInsufficientDriver"):
        backend()
    if not REAL.cuda.is_available():
        monkeypatch.setattr(cp.cuda, "runtime", REAL.cuda.runtime)
        with pytest.raises(
            ValueError, match="finds no GPU: the NVIDIA driver is missing"
        ) as caught:
            backend(device="cuda")
        assert "\n" not in str(caught.value)


# The stand-in is as strict as it must be. -------------------------------------------------------


def test_stand_in(cp):
    """What would pass on NumPy and fail on CuPy, or wait for it, is seen."""
    x, a = cp.asarray([1.0, 2.0]), np.ones(2)
    for mixed in (lambda: x + a, lambda: a + x, lambda: cp.add(x, a), lambda: np.asarray(x)):
        with pytest.raises(TypeError):
            mixed()
    before = gpu.synchronisations
    float(x[0]), bool(x[0] > 0), x[x > 0], x.get(), cp.asnumpy(x)
    assert gpu.synchronisations == before + 5
    assert values(cp.take(x, cp.asarray([2, 3]))).tolist() == [1, 2]  # it wraps
    assert not hasattr(cp, "bitwise_count_of_nothing")
    assert not hasattr(cp, "strings")  # NumPy's, and not CuPy's
    with pytest.raises(TypeError, match="writeable"):
        cp.lib.stride_tricks.as_strided(x, (1,), (8,), writeable=False)
    before = gpu.uploads
    cp.zeros(3), cp.full((2,), 7.0), cp.arange(4), cp.asarray(2.0)
    assert gpu.uploads == before
    cp.asarray(a), cp.asarray([1, 2])
    assert gpu.uploads == before + 2


NEXT = """
extern "C" __global__ void next(const float* x, float* y)
{
    __shared__ float all[8];
    all[threadIdx.x] = x[threadIdx.x];
    %s
    y[threadIdx.x] = all[(threadIdx.x + 1) %% blockDim.x];
}
"""


def test_shim(cp):
    """Barriers hold every thread of a block; threads that do not meet are an error, as are
    arguments of another type than the parameters.
    """
    x, y = cp.asarray(np.arange(1, 6, dtype=np.float32)), cp.zeros(5, np.float32)
    kernel = RawKernel(NEXT % "__syncthreads();", "next")
    for gpu.backwards in (True, False):
        kernel((1,), (5,), (x, y))
        assert values(y).tolist() == [2, 3, 4, 5, 1]
    RawKernel(NEXT % "", "next")((1,), (5,), (x, y))
    assert values(y).tolist() == [0, 0, 0, 0, 1]  # a missing barrier shows
    split = RawKernel(NEXT % "if (threadIdx.x > 2) __syncthreads();", "next")
    with pytest.raises(RuntimeError, match="different barriers"):
        split((1,), (5,), (x, y))
    for wrong in ((x.astype(np.float64), y), (x, 1.0), (x, values(y))):
        with pytest.raises(TypeError, match="next: "):
            kernel((1,), (5,), wrong)
    with pytest.raises(ValueError, match="strides"):
        kernel((1,), (5,), (cp.zeros((5, 2), np.float32)[:, 0], y))
