"""3x3 convolutions of maps (B, H, W, C): one matrix product over patches, or Winograd's.

The same lines run on NumPy and on CuPy, whose namespace follows the map.

Winograd's F(m x m, 3 x 3) makes m² outputs from (m + 2)² products instead of 9 m² (Lavin & Gray
2016): 2.25 times fewer for m = 2, 4 times for m = 4. Its transforms are matrix products too, and
the weights' is made once, when it is first asked for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.typing import Array


class Kernel:
    """The weights (O, C, 3, 3) of a convolution, in the forms that its algorithms multiply by.

    A form is made when it is first asked for: those of Winograd are up to four times as large.

    weight: of the host
    place: puts a form where the maps are
    """

    def __init__(self, weight: Array, place: Callable[[Array], Array] = np.asarray) -> None:
        self.weight = weight
        self._place = place
        self._forms: dict[int, Array] = {}

    def form(self, m: int) -> Array:
        """For tiles of m: G w Gᵀ at each of the (m + 2)² points, ((m + 2)², C, O).

        For patches, m = 0: (9 C, O).
        """
        if m not in self._forms:
            w = self.weight
            if m:
                _, G, _ = matrices(m)
                w = np.einsum("ai,bj,ocij->ocab", G, G, w.astype(np.float64))
            rows = np.ascontiguousarray(w.transpose(2, 3, 1, 0), self.weight.dtype)
            out_channels, channels = w.shape[:2]
            form = rows.reshape(*([-1, channels] if m else [-1]), out_channels)
            self._forms[m] = self._place(form)
        return self._forms[m]


def convolve(
    h: Array,
    kernel: Kernel,
    bias: Array,
    stride: int,
    symmetric: bool,
    matmul: Callable[..., Array] = np.matmul,
) -> Array:
    """(B, H, W, C) to (B, H / stride, W / stride, O); see `ddpm_core.nn.Ops.conv2d`.

    matmul: of the map's library, with an argument out
    """
    # The library itself: what follows is beyond the standard, but alike in the two.
    xp = np if type(h) is np.ndarray else array_namespace(h, use_compat=False)
    m = tile(h.shape, len(bias)) if stride == 1 else 0
    weight = kernel.form(m)
    if m:
        return _winograd(xp, matmul, h, weight, bias, m)
    return _patches(xp, matmul, h, weight, bias, stride, symmetric)


def tile(shape: tuple[int, ...], out_channels: int) -> int:
    """The m of Winograd's tiles that is fastest for a map of this shape, or 0 for patches."""
    batch, height, width, channels = shape
    pixels = batch * height * width
    if min(channels, out_channels) < 32 or pixels < 128:
        return 0
    return 4 if pixels >= 768 and min(height, width) >= 8 else 2


def _patches(
    xp: Any, matmul: Any, h: Array, weight: Array, bias: Array, stride: int, symmetric: bool
) -> Array:
    batch, height, width, channels = h.shape
    before = 1 if symmetric else 0
    padded = _padded(xp, h, before, height + before + 1, width + before + 1)
    height, width = height // stride, width // stride
    # Patches as runs of 3 C neighbouring numbers: three long copies a pixel, not nine.
    b, y, x, c = padded.strides
    patches = _scratch(xp, 0, (batch, height, width, 3, 3 * channels), h.dtype)
    steps = (b, stride * y, stride * x, y, c)
    xp.copyto(patches, xp.lib.stride_tricks.as_strided(padded, patches.shape, steps))
    out = matmul(patches.reshape(-1, 9 * channels), weight)
    out += bias
    return out.reshape(batch, height, width, -1)


def _winograd(xp: Any, matmul: Any, h: Array, weight: Array, bias: Array, m: int) -> Array:
    """Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A over tiles d of (m + 2)² pixels that overlap by 2."""
    batch, height, width, channels = h.shape
    down, across, n = -(-height // m), -(-width // m), m + 2
    count, out_channels = batch * down * across, weight.shape[-1]
    padded = _padded(xp, h, 1, down * m + 2, across * m + 2)
    b, y, x, c = padded.strides
    into, out_of = _transforms(xp, m, h.dtype, str(h.device))
    tiles = _scratch(xp, 0, (n, n, batch, down, across, channels), h.dtype)
    steps = (y, x, b, m * y, m * x, c)
    xp.copyto(tiles, xp.lib.stride_tricks.as_strided(padded, tiles.shape, steps))
    points = _scratch(xp, 1, (n * n, count * channels), h.dtype)
    matmul(into, tiles.reshape(n * n, -1), out=points)
    products = _scratch(xp, 0, (n * n, count, out_channels), h.dtype)  # the tiles are done with
    matmul(points.reshape(n * n, count, channels), weight, out=products)
    made = _scratch(xp, 1, (m * m, count * out_channels), h.dtype)  # and so are the points
    matmul(out_of, products.reshape(n * n, -1), out=made)
    out = xp.empty((batch, down, m, across, m, out_channels), h.dtype)
    made = made.reshape(m, m, batch, down, across, out_channels)
    xp.add(made.transpose(2, 3, 0, 4, 1, 5), bias, out=out)
    return out.reshape(batch, down * m, across * m, out_channels)[:, :height, :width]


def _scratch(xp: Any, which: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """On NumPy one of this thread's buffers, as large as it was ever asked to be.

    Fresh memory, which the system must map page by page, costs more than the sums do. CuPy's comes
    from a pool, which also knows of streams and graphs.
    """
    if xp is not np:
        return xp.empty(shape, dtype)
    size, name = math.prod(shape), f"{which}, {dtype}"
    held: Array | None = getattr(_BUFFERS, name, None)
    if held is None or held.size < size:
        held = np.empty(size, dtype)
        setattr(_BUFFERS, name, held)
    return held[:size].reshape(shape)


_BUFFERS = threading.local()


def _padded(xp: Any, h: Array, before: int, height: int, width: int) -> Array:
    """h in a map of zeros of this size, its first pixel at (before, before)."""
    out = xp.zeros((len(h), height, width, h.shape[-1]), h.dtype)
    out[:, before : before + h.shape[1], before : before + h.shape[2]] = h
    return out


@cache
def _transforms(xp: Any, m: int, dtype: Any, device: str) -> tuple[Array, Array]:
    """Bᵀ ⊗ Bᵀ and Aᵀ ⊗ Aᵀ, which transform all rows and columns of tiles in one product.

    device: the current one, for which they are kept
    """
    B, _, A = matrices(m)
    into, out_of = (xp.asarray(np.kron(M, M).astype(dtype)) for M in (B, A))
    return into, out_of


@cache
def matrices(m: int) -> tuple[Array, Array, Array]:
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
