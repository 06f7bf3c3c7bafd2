"""3x3 convolutions on NumPy, maps (B, H, W, C): one matrix product over patches, or Winograd's.

Winograd's F(m x m, 3 x 3) makes m² outputs from (m + 2)² products instead of 9 m² (Lavin & Gray
2016): 2.25 times fewer for m = 2, 4 times for m = 4. Its transforms are matrix products too, and
the weights' is made once, when it is first asked for.
"""

from __future__ import annotations

import math
import threading
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

Array: TypeAlias = np.ndarray[Any, Any]


class Kernel:
    """The weights (O, C, 3, 3) of a convolution, in the forms that its algorithms multiply by.

    A form is made when it is first asked for: those of Winograd are up to four times as large.
    """

    def __init__(self, weight: Array) -> None:
        self.weight = weight
        self._forms: dict[int, Array] = {}

    def form(self, m: int) -> Array:
        """For tiles of m: G w Gᵀ at each of the (m + 2)² points, ((m + 2)², C, O).

        For patches, m = 0: (9 C, O).
        """
        if m not in self._forms:
            w = self.weight
            if m:
                _, G, _ = _matrices(m)
                w = np.einsum("ai,bj,ocij->ocab", G, G, w.astype(np.float64))
            rows = np.ascontiguousarray(w.transpose(2, 3, 1, 0), self.weight.dtype)
            out_channels, channels = w.shape[:2]
            self._forms[m] = rows.reshape(*([-1, channels] if m else [-1]), out_channels)
        return self._forms[m]


def convolve(h: Array, kernel: Kernel, bias: Array, stride: int, symmetric: bool) -> Array:
    """(B, H, W, C) to (B, H / stride, W / stride, O); see `ddpm_core.nn.Ops.conv2d`."""
    m = tile(h.shape, len(bias)) if stride == 1 else 0
    weight = kernel.form(m)
    out = _winograd(h, weight, m) if m else _patches(h, weight, stride, symmetric)
    out += bias
    return out


def tile(shape: tuple[int, ...], out_channels: int) -> int:
    """The m of Winograd's tiles that is fastest for a map of this shape, or 0 for patches."""
    batch, height, width, channels = shape
    pixels = batch * height * width
    if min(channels, out_channels) < 32 or pixels < 128:
        return 0
    return 4 if pixels >= 768 and min(height, width) >= 8 else 2


def _patches(h: Array, weight: Array, stride: int, symmetric: bool) -> Array:
    batch, height, width, channels = h.shape
    before = 1 if symmetric else 0
    padded = _padded(h, before, height + before + 1, width + before + 1)
    height, width = height // stride, width // stride
    # Patches as runs of 3 C neighbouring numbers: three long copies a pixel, not nine.
    b, y, x, c = padded.strides
    patches = _scratch(0, (batch, height, width, 3, 3 * channels), h.dtype)
    steps = (b, stride * y, stride * x, y, c)
    np.copyto(patches, as_strided(padded, patches.shape, steps, writeable=False))
    out = patches.reshape(-1, 9 * channels) @ weight
    return out.reshape(batch, height, width, -1)


def _winograd(h: Array, weight: Array, m: int) -> Array:
    """Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A over tiles d of (m + 2)² pixels that overlap by 2."""
    batch, height, width, channels = h.shape
    down, across, n = -(-height // m), -(-width // m), m + 2
    count, out_channels = batch * down * across, weight.shape[-1]
    padded = _padded(h, 1, down * m + 2, across * m + 2)
    b, y, x, c = padded.strides
    into, out_of = _transforms(m, h.dtype)
    scratch = partial(_scratch, dtype=h.dtype)
    tiles = scratch(0, (n, n, batch, down, across, channels))
    np.copyto(tiles, as_strided(padded, tiles.shape, (y, x, b, m * y, m * x, c), writeable=False))
    points = scratch(1, (n * n, count * channels))
    np.matmul(into, tiles.reshape(n * n, -1), out=points)
    products = scratch(0, (n * n, count, out_channels))  # the tiles are done with
    np.matmul(points.reshape(n * n, count, channels), weight, out=products)
    made = scratch(1, (m * m, count * out_channels))  # and so are the points
    np.matmul(out_of, products.reshape(n * n, -1), out=made)
    out = np.empty((batch, down, m, across, m, out_channels), h.dtype)
    made = made.reshape(m, m, batch, down, across, out_channels)
    np.copyto(out, made.transpose(2, 3, 0, 4, 1, 5))
    return out.reshape(batch, down * m, across * m, out_channels)[:, :height, :width]


def _scratch(which: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """One of this thread's buffers, as large as it was ever asked to be.

    Fresh memory, which the system must map page by page, costs more than the sums do.
    """
    size, name = math.prod(shape), f"{which}, {dtype}"
    held: Array | None = getattr(_BUFFERS, name, None)
    if held is None or held.size < size:
        held = np.empty(size, dtype)
        setattr(_BUFFERS, name, held)
    return held[:size].reshape(shape)


_BUFFERS = threading.local()


def _padded(h: Array, before: int, height: int, width: int) -> Array:
    """h in a map of zeros of this size, its first pixel at (before, before)."""
    out = np.zeros((len(h), height, width, h.shape[-1]), h.dtype)
    out[:, before : before + h.shape[1], before : before + h.shape[2]] = h
    return out


@cache
def _transforms(m: int, dtype: Any) -> tuple[Array, Array]:
    """Bᵀ ⊗ Bᵀ and Aᵀ ⊗ Aᵀ, which transform all rows and columns of tiles in one product."""
    B, _, A = _matrices(m)
    return np.kron(B, B).astype(dtype), np.kron(A, A).astype(dtype)


@cache
def _matrices(m: int) -> tuple[Array, Array, Array]:
    """Bᵀ, G and Aᵀ of F(m, 3) (Lavin & Gray 2016, sections 4.1 and 4.3): points 0, ±1, ±2, ∞."""
    if m == 2:
        return (
            np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float),
            np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
            np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float),
        )
    return (
        np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ],
            float,
        ),
        np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
        np.array(
            [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
            float,
        ),
    )
