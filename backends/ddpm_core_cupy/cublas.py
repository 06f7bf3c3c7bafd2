"""Matrix products by cuBLAS on the current stream, also while a graph captures it.

CuPy 14's own raise there, though cuBLAS supports it (its manual, "CUDA Graphs Support").
"""

from __future__ import annotations

import ctypes
import math
import os
from ctypes import c_int, c_longlong, c_void_p
from functools import cache
from typing import Any

from ddpm_core.typing import Array
from ddpm_core_cupy._cupy import cupy

#: By dtype: a number of it in C, cudaDataType, cublasComputeType_t.
TYPES = {"float32": (ctypes.c_float, 0, 68), "float64": (ctypes.c_double, 1, 70)}
DEFAULT = -1  # cublasGemmAlgo_t


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """a b: (M, K) and (K, N), or n of each, (n, M, K) and (n, K, N); in float32 or float64.

    a, b: a matrix that is neither in order in memory nor the transpose of one that is, is copied
    out: (M, N) or (n, M, N), in order in memory
    """
    *count, rows, inner = a.shape
    alike = a.dtype == b.dtype and a.dtype.name in TYPES
    if len(count) > 1 or (*count, inner) != b.shape[:-1] or not alike:
        raise ValueError(
            f"no product of shapes {a.shape} and {b.shape}, {a.dtype} and {b.dtype}: they must be "
            f"(M, K) and (K, N), or n of each, both in {' or '.join(TYPES)}"
        )
    columns = b.shape[-1]
    made: Array = cupy.empty((*count, rows, columns), a.dtype) if out is None else out
    if not made.size:
        return made  # cuBLAS refuses it
    number, kind, compute = TYPES[a.dtype.name]
    (a, turned_a, step_a, each_a), (b, turned_b, step_b, each_b) = _in_memory(a), _in_memory(b)
    handle, library = cupy.cuda.device.get_cublas_handle(), _library()
    _check(library.cublasSetStream_v2(handle, cupy.cuda.get_current_stream().ptr))
    # cuBLAS reads memory by columns, as the transposes: (a b)ᵀ = bᵀ aᵀ.
    _check(
        library.cublasGemmStridedBatchedEx(
            *(handle, turned_b, turned_a, columns, rows, inner),
            ctypes.byref(number(1)),
            *(b.data.ptr, kind, step_b, each_b),
            *(a.data.ptr, kind, step_a, each_a),
            ctypes.byref(number(0)),
            *(made.data.ptr, kind, columns, rows * columns),
            *(math.prod(count), compute, DEFAULT),
        )
    )
    return made


def _in_memory(x: Array) -> tuple[Array, int, int, int]:
    """The array or a contiguous copy; whether it lies by columns (1) or by rows (0); and how many
    elements from one column or row, and from one matrix, to the next.
    """
    rows, columns = x.shape[-2:]
    *each, down, across = (stride // x.dtype.itemsize for stride in x.strides)
    if columns == 1 or across == 1:
        if rows == 1 or down >= columns:
            return x, 0, down if rows > 1 else columns, sum(each)
    elif (rows == 1 or down == 1) and across >= rows:
        return x, 1, across, sum(each)
    return cupy.ascontiguousarray(x), 0, columns, rows * columns


@cache
def _library() -> Any:
    """The one that CuPy has loaded, which the system then knows by its name."""
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    name = f"cublas64_{major}.dll" if os.name == "nt" else f"libcublas.so.{major}"
    library = ctypes.CDLL(name)
    library.cublasSetStream_v2.argtypes = c_void_p, c_void_p
    matrix = c_void_p, c_int, c_int, c_longlong
    library.cublasGemmStridedBatchedEx.argtypes = (
        *(c_void_p, c_int, c_int, c_int, c_int, c_int),
        *(c_void_p, *matrix, *matrix),
        *(c_void_p, *matrix),
        *(c_int, c_int, c_int),
    )
    return library


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS failed with status {status}")
