"""What NumPy supplies: arrays, noise, and operations on maps with channels last.

No gradients: NumPy samples and evaluates; torch and JAX train.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
import tracemalloc
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import fit
from ddpm_core.backends import Backend, Network
from ddpm_core.nn import ChannelsLast, UNetConfig, check_inputs
from ddpm_core.nn.network import FREQUENCIES
from ddpm_core.nn.winograd import Kernel
from ddpm_core_numpy.convolution import convolve

Array: TypeAlias = np.ndarray[Any, Any]

NORMED = 2**17  # numbers that a norm works on at once


class NumPyOps(ChannelsLast):
    """The UNet's operations on NumPy; maps are (B, H, W, C).

    A convolution is matrix products (`convolution`); norms work on a few images at once, which
    stay in the processor's cache.

    apart: each image has matrix products of its own, so that its result does not depend on the
        batch that it is in, to the bit
    """

    matmul: Callable[..., Array] = staticmethod(np.matmul)
    apart: bool = True

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
            return convolve(h, weight, bias, stride, symmetric, self.matmul, apart=self.apart)
        *pixels, channels = h.shape
        rows = (pixels[0], pixels[1] * pixels[2]) if self.apart else (math.prod(pixels),)
        out = self.matmul(h.reshape(*rows, channels), weight)
        out += bias
        return out.reshape(*pixels, len(bias))

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        return self.matmul(x[:, None], weight.T)[:, 0] + bias

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


class OneThread:
    """While any thread of this process is in it, BLAS computes with one thread.

    So calls that overlap have one thread from their first product to their last, whichever ends
    first, and BLAS then has the number that it had before. Without threadpoolctl nothing changes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._before: list[tuple[Any, int]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._calls == 0:
                self._before = [(lib, lib.num_threads) for lib in _blas() or () if not _local(lib)]
                for lib, _ in self._before:
                    _set_threads(lib, 1)
            self._calls += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                self._restore()

    def after_fork(self) -> None:
        """In a child process, which has none of the threads whose calls were going on."""
        self._lock, self._calls = threading.Lock(), 0
        self._restore()

    def _restore(self) -> None:
        before, self._before = self._before, []
        for lib, count in before:
            _set_threads(lib, count)


@cache
def _blas() -> list[Any] | None:
    """The libraries of matrix products, as threadpoolctl controls them; None without it."""
    try:
        control = importlib.import_module("threadpoolctl").ThreadpoolController()
    except ModuleNotFoundError:
        return None
    return list(control.select(user_api="blas").lib_controllers)


def _local(lib: Any) -> bool:
    """Whether each thread has a number of threads of its own, as with OpenMP."""
    return getattr(lib, "threading_layer", None) == "openmp"


def _set_threads(lib: Any, count: int) -> None:
    # From threadpoolctl 3.8 on only the thread that was the first to set OpenBLAS's number may
    # change it, until it is cleared: other threads' calls would do nothing.
    clear = getattr(lib, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)
    lib.set_num_threads(count)
    if clear is not None:
        clear(force=True)


def _start_worker() -> None:
    for lib in _blas() or ():
        if _local(lib):
            lib.set_num_threads(1)


@cache
def _workers(process: int) -> ThreadPoolExecutor:
    """The threads of a process, which keep their buffers from call to call.

    process: its number; a forked child has none of its parent's threads, and starts its own
    """
    return ThreadPoolExecutor(os.cpu_count() or 1, "ddpm_core_numpy", _start_worker)


_ONE_THREAD = OneThread()
if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_ONE_THREAD.after_fork)


class NumPyNetwork(Network):
    """The UNet on a batch that is split over the processors, if threadpoolctl is there.

    An image's result is the same, to the bit, in every batch and beside any other calls: each share
    of the batch is computed by one thread, with one thread of BLAS.
    """

    def __call__(self, x: Array, timestep: Array, y: Array | None = None) -> Array:
        check_inputs(x, timestep, y, self.config, self.packed[FREQUENCIES])
        batch = len(x)
        if batch == 0:
            return np.empty((0, self.config.out_channels, *x.shape[2:]), x.dtype)
        net = super().__call__
        if _blas() is None:
            return net(x, timestep, y)

        def run(share: Array) -> Array:
            return net(x[share], timestep[share], None if y is None else y[share])

        shares = np.array_split(np.arange(batch), min(batch, os.cpu_count() or 1))
        with _ONE_THREAD:
            return np.concatenate(list(_workers(os.getpid()).map(run, shares)))


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

    def network(self, params: dict[str, Array], config: UNetConfig) -> NumPyNetwork:
        """The UNet, its batch split over the processors."""
        made: Any = super().network(params, config)
        return NumPyNetwork(made.packed, made.config, made.ops)

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
        return partial(self._normal, seed)

    def _normal(self, seed: int, step: int, shape: tuple[int, ...]) -> Array:
        rng: Any = np.random.default_rng((seed, step))
        return rng.standard_normal(shape, dtype=self.dtype)

    @contextmanager
    def live_bytes(self) -> Generator[Callable[[], int]]:
        """As tracemalloc has it: Python's own small objects are counted too."""
        tracemalloc.start()
        try:
            yield lambda: tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
