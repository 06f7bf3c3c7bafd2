"""What CuPy supplies: arrays on a GPU, noise, and operations on maps with channels last.

Nothing here waits for the GPU but `to_numpy` and `pack`, and matrix products are by our own call of
cuBLAS, so a step of a sampler can be captured as a CUDA graph. No gradients: CuPy samples and
evaluates; torch and JAX train.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import array_api_compat.cupy as xp
import numpy as np

from ddpm_core.arrays import fit
from ddpm_core.backends import Backend
from ddpm_core.nn.winograd import Kernel
from ddpm_core.noise import normal_tables, portable_noise
from ddpm_core.typing import Array
from ddpm_core_cupy import kernels
from ddpm_core_cupy._cupy import cupy
from ddpm_core_cupy.cublas import matmul
from ddpm_core_cupy.graphs import graphed
from ddpm_core_numpy import NumPyOps

if TYPE_CHECKING:
    from ddpm_core.testing.backend_checks import Check


class CuPyOps(NumPyOps):
    """The UNet's operations on CuPy; maps are (B, H, W, C), as NumPy's are.

    Convolutions and attention are matrix products by cuBLAS, of a whole batch at once; a norm with
    its SiLU is one kernel. The rest is inherited.
    """

    matmul = staticmethod(matmul)
    apart = False

    def kernel(self, weight: Array) -> Kernel:
        """Its forms are made on the host."""
        return Kernel(cupy.asnumpy(weight), cupy.asarray)

    def _norm(
        self, h: Array, weight: Array, bias: Array, groups: int, eps: float, silu: bool
    ) -> Array:
        h = cupy.ascontiguousarray(h)
        weight, bias = (cupy.ascontiguousarray(p, h.dtype) for p in (weight, bias))
        out = cupy.empty_like(h)
        batch, height, width, channels = h.shape
        sizes = (np.int32(n) for n in (height * width, channels, groups))
        kernels.group_norm(h.dtype.name)(
            (batch * groups,),
            (kernels.THREADS,),
            (h, weight, bias, out, *sizes, h.dtype.type(eps), np.int32(silu)),
        )
        return out

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        return self.matmul(x, weight.T) + bias

    def silu(self, x: Array) -> Array:
        return kernels.silu(x.dtype.name)(x)

    def attention(self, q: Array, k: Array, v: Array, heads: int = 1) -> Array:
        batch, height, width, channels = q.shape
        each, pixels = channels // heads, height * width
        q, k, v = (
            a.reshape(batch, pixels, heads, each).swapaxes(1, 2).reshape(-1, pixels, each)
            for a in (q, k, v)
        )
        weights = self.matmul(q, k.swapaxes(1, 2))
        weights *= 1 / math.sqrt(each)
        weights -= weights.max(axis=2, keepdims=True)
        cupy.exp(weights, out=weights)
        weights /= weights.sum(axis=2, keepdims=True)
        out = self.matmul(weights, v).reshape(batch, heads, pixels, each)
        return out.swapaxes(1, 2).reshape(batch, height, width, channels)


class CuPy(Backend):
    """CuPy, on one NVIDIA GPU.

    device: its ordinal, "cuda" or "cuda:1"; None and "cuda" are CuPy's current device. CuPy
        computes on the current one, so another one is made current, in this thread; between two
        backends, and in other threads, work `with backend.device:`
    dtype: "float32" or "float64"
    """

    name = "cupy"

    def __init__(self, device: Any = None, dtype: str = "float32") -> None:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"the CuPy backend computes in float32 or float64, not {dtype}")
        self.xp = xp
        self.device = _device(device)
        self.device.use()
        self.dtype = np.dtype(dtype)
        self.ops = CuPyOps()

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        return cupy.asnumpy(x)

    def lincomb(self, *terms: tuple[Any, Array]) -> Array:
        dtype = terms[0][1].dtype
        if dtype.name not in kernels.C_TYPES:
            return super().lincomb(*terms)
        kept = [(c, x) for c, x in ((fit(c, x), x) for c, x in terms) if not _is_zero(c)]
        if not kept:
            return cupy.zeros_like(terms[0][1])
        return kernels.lincomb(len(kept), dtype.name)(*(a for term in kept for a in term))

    def noise(self, seed: int) -> Callable[[int, tuple[int, ...]], Array]:
        """CuPy's Philox, whose key has 32 bits: among a million draws, about 100 pairs are equal.

        Each call makes the generator anew, which no graph can capture: within `compile` use
        `portable_noise`.
        """
        return partial(self._normal, seed)

    def _normal(self, seed: int, step: int, shape: tuple[int, ...]) -> Array:
        bits = cupy.random.Philox4x3210(np.random.SeedSequence((seed, step)))
        return cupy.random.Generator(bits).standard_normal(shape, dtype=self.dtype)

    def portable_noise(self, seed: int) -> PortableNoise:
        """`ddpm_core.portable_noise` on this device and in this dtype: its bits, in one kernel."""
        portable_noise(seed)  # for what it says of a seed that it does not take
        return PortableNoise(self, operator.index(seed))

    def compile(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """The function as CUDA graphs; see `graphs.graphed`."""
        return graphed(f)

    def describe(self) -> dict[str, str]:
        runtime = cupy.cuda.runtime
        name = runtime.getDeviceProperties(self.device.id)["name"].decode()
        return {
            "device": f"{name} (cuda:{self.device.id})",
            "library": f"cupy {cupy.__version__}",
            "cuda": f"CUDA {runtime.runtimeGetVersion()}",
        }

    def live_bytes(self) -> AbstractContextManager[Callable[[], int]]:
        pool = cupy.get_default_memory_pool()
        return nullcontext(lambda: int(pool.used_bytes()))

    def checks(self) -> dict[str, tuple[str, Check]]:
        from ddpm_core_cupy.checks import CHECKS

        return CHECKS

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"device": self.device.id}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"device": _device(state["device"])})
        self.device.use()


class PortableNoise:
    """(step, shape, ids=None) -> array, as `ddpm_core.portable_noise` has it."""

    def __init__(self, on: CuPy, seed: int) -> None:
        self.dtype = on.dtype
        self.halves = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)
        self.tables = [on.asarray(table, cupy.float32) for table in normal_tables()]

    def __call__(self, step: Any, shape: tuple[int, ...], ids: Any = None) -> Array:
        batch, elements = shape[0], math.prod(shape[1:])
        if ids is not None:
            ids = _integers(ids)
            if len(ids) != batch:
                raise ValueError(f"{len(ids)} ids do not go with shape {shape}: pass one a sample")
        steps, number = None, 0
        if getattr(step, "ndim", 0) or not hasattr(step, "__index__"):
            steps = cupy.ascontiguousarray(cupy.broadcast_to(_integers(step), (batch,)))
        else:
            number = operator.index(step)
        z = cupy.empty(shape, cupy.float32)
        numbers = np.int32(number), np.int64(batch), np.int64(elements)
        if blocks := math.ceil(batch * ((elements + 1) // 2) / kernels.THREADS):
            kernels.portable_noise()(
                (blocks,),
                (kernels.THREADS,),
                (z, *self.tables, ids, steps, *self.halves, *numbers),
            )
        return z.astype(self.dtype, copy=False)


def _device(name: Any) -> Any:
    """The device of a name; ValueError if there is none, or no driver."""
    match = re.fullmatch(r"cuda(?::(\d+))?", name) if isinstance(name, str) else None
    ordinal = match[1] if match else name
    try:
        count = cupy.cuda.runtime.getDeviceCount()
        if ordinal is None:
            return cupy.cuda.Device()
        if match or not isinstance(name, str):
            ordinal = int(ordinal)
            if 0 <= ordinal < count:
                return cupy.cuda.Device(ordinal)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ValueError(
            f"CuPy finds no GPU: the NVIDIA driver is missing or too old for this CUDA ({error})"
        ) from None
    raise ValueError(f"CuPy has no device {name!r}, but {count} from 'cuda:0' on")


def _is_zero(c: Any) -> bool:
    return isinstance(c, float) and c == 0.0


def _integers(a: Any) -> Array:
    """Integers of the host or the GPU as a vector that a kernel can read."""
    return cupy.ascontiguousarray(cupy.asarray(a), cupy.int32).reshape(-1)
