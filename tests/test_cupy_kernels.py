"""The CuPy backend's kernels: compiled for four architectures, and the same sources on the CPU.

What this cannot show: what real warps do at the same time.
"""

from __future__ import annotations

import importlib
import itertools
import os
from typing import Any

import cupy_standin
import numpy as np
import pytest
from cupy_standin import EPS, NVRTC, backend, dtypes, kernels, values
from fakecupy import RawKernel, gpu
from hypothesis import given, settings
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core.nn import Ops

cp, on = cupy_standin.cp, cupy_standin.on

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_120"]


def has_nvrtc() -> bool:
    try:
        NVRTC.getVersion()
    except Exception:  # of the package that looks for libraries, whatever its name is
        return bool(os.environ.get("CI"))  # where it must be
    return True


@pytest.mark.slow
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
    # Among subnormal numbers a rounding is absolute.
    rounding = EPS[dtype] * np.sum(np.abs(exact), axis=0) + np.finfo(dtype).smallest_subnormal
    bound = len(kinds) * rounding
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
