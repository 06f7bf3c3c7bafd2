"""3x3 convolutions of maps (B, H, W, C): matrix products over patches, or Winograd's.

The same lines run on NumPy and on CuPy: the namespace is that of the map.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.nn.winograd import Kernel, matrices
from ddpm_core.typing import Array


def convolve(
    h: Array,
    kernel: Kernel,
    bias: Array,
    stride: int,
    symmetric: bool,
    matmul: Callable[..., Array] = np.matmul,
    *,
    apart: bool = True,
) -> Array:
    """(B, H, W, C) to (B, H / stride, W / stride, O); see `ddpm_core.nn.Ops.conv2d`.

    matmul: that of the map's library, with an argument out
    apart: each image has matrix products of its own. How a product is rounded depends on its shape,
        so only then does an image's result not depend on its batch, to the bit
    """
    # The library itself: what follows is beyond the standard, but the same in the two.
    xp = np if type(h) is np.ndarray else array_namespace(h, use_compat=False)
    m = tile(h.shape[1:] if apart else h.shape, len(bias)) if stride == 1 else 0
    weight = kernel.form(m)
    if m:
        return _winograd(xp, matmul, h, weight, bias, m, apart)
    return _patches(xp, matmul, h, weight, bias, stride, symmetric, apart)


def tile(shape: tuple[int, ...], out_channels: int) -> int:
    """The m of Winograd's tiles that is fastest for a map of this shape, or 0 for patches.

    shape: (..., H, W, C), all that goes into one product
    """
    *_, height, width, channels = shape
    pixels = math.prod(shape[:-1])
    if min(channels, out_channels) < 32 or pixels < 128:
        return 0
    return 4 if pixels >= 768 and min(height, width) >= 8 else 2


def _patches(
    xp: Any,
    matmul: Any,
    h: Array,
    weight: Array,
    bias: Array,
    stride: int,
    symmetric: bool,
    apart: bool,
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
    rows = (batch, height * width) if apart else (batch * height * width,)
    out = matmul(patches.reshape(*rows, 9 * channels), weight)
    out += bias
    return out.reshape(batch, height, width, len(bias))


def _winograd(
    xp: Any, matmul: Any, h: Array, weight: Array, bias: Array, m: int, apart: bool
) -> Array:
    """Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A over tiles d of (m + 2)² pixels that overlap by 2."""
    batch, height, width, channels = h.shape
    down, across, n, out_channels = -(-height // m), -(-width // m), m + 2, len(bias)
    # Images are the first axis, or one of those over which a product runs.
    stack, run = ((batch,), ()) if apart else ((), (batch,))
    count = math.prod(run) * down * across
    padded = _padded(xp, h, 1, down * m + 2, across * m + 2)
    b, y, x, c = padded.strides
    into, out_of = _transforms(xp, m, h.dtype, str(h.device))
    tiles = _scratch(xp, 0, (*stack, n, n, *run, down, across, channels), h.dtype)
    steps = (b, y, x, m * y, m * x, c) if apart else (y, x, b, m * y, m * x, c)
    xp.copyto(tiles, xp.lib.stride_tricks.as_strided(padded, tiles.shape, steps))
    points = _scratch(xp, 1, (*stack, n * n, count * channels), h.dtype)
    matmul(into, tiles.reshape(points.shape), out=points)
    # The tiles are not needed again, nor will the points be: their memory is.
    products = _scratch(xp, 0, (*stack, n * n, count, out_channels), h.dtype)
    matmul(points.reshape(*stack, n * n, count, channels), weight, out=products)
    made = _scratch(xp, 1, (*stack, m * m, count * out_channels), h.dtype)
    matmul(out_of, products.reshape(*stack, n * n, count * out_channels), out=made)
    out = xp.empty((batch, down, m, across, m, out_channels), h.dtype)
    made = made.reshape(*stack, m, m, *run, down, across, out_channels)
    xp.add(made.transpose((0, 3, 1, 4, 2, 5) if apart else (2, 3, 0, 4, 1, 5)), bias, out=out)
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
