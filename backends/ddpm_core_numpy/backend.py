"""What NumPy supplies: arrays, noise, and operations on maps with channels last.

No gradients: NumPy samples and evaluates; torch and JAX train.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import fit
from ddpm_core.backends import Backend
from ddpm_core.nn import ChannelsLast, UNetConfig
from ddpm_core_numpy.convolution import Kernel, convolve

Array: TypeAlias = np.ndarray[Any, Any]

NORMED = 2**17  # numbers that a norm works on at once


class NumPyOps(ChannelsLast):
    """The UNet's operations on NumPy; maps are (B, H, W, C).

    A convolution is matrix products (`convolution`); norms work on a few images at once, which
    stay in the processor's cache.
    """

    matmul: Callable[..., Array] = staticmethod(np.matmul)

    def pack(self, params: dict[str, Array]) -> dict[str, Any]:
        """3x3 convolutions as a `Kernel`, and those of one pixel as matrices (C, O)."""
        packed: dict[str, Any] = dict(params)
        for name, p in params.items():
            if p.ndim == 4:
                packed[name] = self.kernel(p) if p.shape[2] == 3 else _together(p[:, :, 0, 0].T)
        return packed

    def kernel(self, weight: Array) -> Kernel:
        return Kernel(weight)

    def enter(self, x: Array) -> Array:
        return _together(super().enter(x))

    def leave(self, h: Array) -> Array:
        return _together(super().leave(h))

    def conv2d(
        self,
        h: Array,
        weight: Kernel | Array,
        bias: Array,
        stride: int = 1,
        symmetric: bool = True,
    ) -> Array:
        if isinstance(weight, Kernel):
            return convolve(h, weight, bias, stride, symmetric, self.matmul)
        out = self.matmul(h.reshape(-1, h.shape[-1]), weight)
        out += bias
        return out.reshape(*h.shape[:3], -1)

    def group_norm(self, h: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
        return self._norm(h, weight, bias, groups, eps, silu=False)

    def group_norm_silu(
        self, h: Array, weight: Array, bias: Array, groups: int, eps: float
    ) -> Array:
        return self._norm(h, weight, bias, groups, eps, silu=True)

    def _norm(
        self, h: Array, weight: Array, bias: Array, groups: int, eps: float, silu: bool
    ) -> Array:
        batch, height, width, channels = h.shape
        each, pixels = channels // groups, height * width
        out = np.empty(h.shape, h.dtype)
        some = max(1, min(batch, NORMED // (pixels * channels)))
        scratch = np.empty((some, pixels, channels), h.dtype)
        # Means over the pixels as matrix products, and then over the channels of a group.
        ones = np.full((1, pixels), 1 / (pixels * each), h.dtype)
        for start in range(0, batch, some):
            x = h[start : start + some].reshape(-1, pixels, channels)
            r, other = out[start : start + some].reshape(x.shape), scratch[: len(x)]
            mean = (ones @ x).reshape(-1, 1, groups, each).sum(axis=3)
            np.subtract(x, mean.repeat(each, axis=2), out=r)
            np.multiply(r, r, out=other)
            var = (ones @ other).reshape(-1, 1, groups, each).sum(axis=3)
            r *= (1 / np.sqrt(var + eps)).repeat(each, axis=2).astype(h.dtype, copy=False) * weight
            r += bias
            if silu:
                np.negative(r, out=other)
                with np.errstate(over="ignore"):  # x / inf = 0 is right
                    np.exp(other, out=other)
                other += 1
                r /= other
        return out

    def attention(self, q: Array, k: Array, v: Array, heads: int = 1) -> Array:
        batch, height, width, channels = q.shape
        each = channels // heads
        shape = (batch, height * width, heads, each)
        q, k, v = (a.reshape(shape).swapaxes(1, 2) for a in (q, k, v))
        out = np.empty(shape, v.dtype)
        for i, head in np.ndindex(batch, heads):
            weights = q[i, head] @ k[i, head].T
            weights *= 1 / math.sqrt(each)
            weights -= weights.max(axis=1, keepdims=True)
            np.exp(weights, out=weights)
            weights /= weights.sum(axis=1, keepdims=True)
            out[i, :, head] = weights @ v[i, head]
        return out.reshape(batch, height, width, channels)


def _together(x: Array) -> Array:
    """The array, its numbers in order in memory; of CuPy too."""
    return array_namespace(x, use_compat=False).ascontiguousarray(x)


def _threads_of_blas() -> Any:
    """What sets the number of threads of NumPy's matrix products, or None."""
    try:
        return importlib.import_module("threadpoolctl").ThreadpoolController()
    except ModuleNotFoundError:
        return None


class NumPy(Backend):
    """NumPy, on the CPU.

    device: only "cpu" or None
    dtype: "float32" or "float64"
    """

    name = "numpy"

    def __init__(self, device: Any = None, dtype: str = "float32") -> None:
        if device not in (None, "cpu"):
            raise ValueError(f"NumPy has no device {device!r}; it computes on the cpu")
        if dtype not in ("float32", "float64"):
            raise ValueError(f"the NumPy backend computes in float32 or float64, not {dtype}")
        self.xp = np
        self.device = "cpu"
        self.dtype = np.dtype(dtype)
        self.ops = NumPyOps()

    def network(self, params: dict[str, Array], config: UNetConfig) -> Callable[..., Array]:
        """The UNet on a batch that is split over the processors, if threadpoolctl is there.

        Each part has one thread of BLAS then, and what is no matrix product is in parallel too.
        """
        net = super().network(params, config)
        blas = _threads_of_blas()
        parts = os.cpu_count() or 1
        pool = ThreadPoolExecutor(parts)  # whose threads keep their buffers from call to call

        def split(x: Array, timestep: Array, y: Array | None = None) -> Array:
            if blas is None or min(parts, len(x)) < 2:
                return net(x, timestep, y)

            def run(share: Array) -> Array:
                return net(x[share], timestep[share], None if y is None else y[share])

            shares = np.array_split(np.arange(len(x)), min(parts, len(x)))
            with blas.limit(limits=1, user_api="blas"):
                return np.concatenate(list(pool.map(run, shares)))

        return split

    def lincomb(self, *terms: tuple[Any, Array]) -> Array:
        total = product = None
        for c, x in terms:
            c = fit(c, x)
            if isinstance(c, float) and c == 0.0:
                continue
            if total is None:
                total = np.multiply(c, x)
            else:
                product = np.multiply(c, x, out=product)
                total += product
        return np.zeros_like(terms[0][1]) if total is None else total

    def noise(self, seed: int) -> Callable[[int, tuple[int, ...]], Array]:
        def normal(step: int, shape: tuple[int, ...]) -> Array:
            rng: Any = np.random.default_rng((seed, step))
            return rng.standard_normal(shape, dtype=self.dtype)

        return normal
