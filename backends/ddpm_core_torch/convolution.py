"""Convolutions for inference on the CPU, maps and weights with channels last in memory.

Large maps with many channels go by Winograd's F(4 x 4, 3 x 3) in float32 (Lavin & Gray 2016; see
`ddpm_core.nn.winograd`), one pixel's by a matrix product, and the rest through oneDNN, on
weights that it reordered once.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_core.nn.winograd import Kernel, matrices

TILE = 4
INTO, OUT_OF = (
    torch.as_tensor(np.kron(a, a), dtype=torch.float32, device="cpu") for a in matrices(TILE)[::2]
)
SCRATCH = 2**24  # bytes of one buffer: a few maps' tiles, which stay in the processor's cache


class Packed:
    """The weights (O, C, k, k) of a convolution, in the forms that its algorithms multiply by.

    A form is made when it is first asked for.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self._winograd = Kernel(weight.numpy(), _on_host) if tileable(weight) else None
        self._reordered: dict[Any, Tensor | None] = {}

    def winograd(self, shape: tuple[int, ...]) -> Tensor | None:
        """((m + 2)², C, O), where Winograd's is the faster for a map of this shape."""
        batch, _, height, width = shape
        if self._winograd is None or batch * height * width < 512 or min(height, width) < 8:
            return None
        return self._winograd.form(TILE)

    def reordered(self, shape: tuple[int, ...], padding: int, stride: int) -> Tensor | None:
        """As oneDNN likes them best for a map of this shape; None where it cannot say."""
        key = (shape, padding, stride)
        if key not in self._reordered:
            try:
                self._reordered[key] = torch.ops.mkldnn._reorder_convolution_weight(
                    self.weight, [padding] * 2, [stride] * 2, [1, 1], 1, list(shape)
                )
            except (AttributeError, RuntimeError):  # no such operation, or not for this dtype
                self._reordered[key] = None
        return self._reordered[key]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_reordered": {}}  # oneDNN's own tensors do not pickle


def _on_host(a: Any) -> Tensor:
    return torch.as_tensor(a, device="cpu")


def tileable(weight: Tensor) -> bool:
    """Whether a convolution is wide enough for Winograd's, and precise enough to bear it."""
    return weight.dtype is torch.float32 and weight.shape[-1] == 3 and min(weight.shape[:2]) >= 128


def convolve(h: Tensor, packed: Packed, bias: Tensor, stride: int, symmetric: bool) -> Tensor:
    """(B, C, H, W) to (B, O, H / stride, W / stride), channels last in memory."""
    batch, channels, height, width = h.shape
    weight, padding = packed.weight, packed.weight.shape[-1] // 2
    if padding == 0:
        rows = h.permute(0, 2, 3, 1).reshape(-1, channels)
        out = torch.addmm(bias, rows, weight.flatten(1).mT)
        return out.view(batch, height, width, len(bias)).permute(0, 3, 1, 2)
    form = packed.winograd(tuple(h.shape)) if stride == 1 else None
    if form is not None:
        return _winograd(h, form, bias)
    if not symmetric:
        h, padding = F.pad(h, (0, 1, 0, 1)), 0
    reordered = packed.reordered(tuple(h.shape), padding, stride)
    if reordered is None:
        return F.conv2d(h, weight, bias, stride, padding)
    pad, step = [padding] * 2, [stride] * 2
    return torch.ops.mkldnn._convolution_pointwise(
        h, reordered, bias, pad, step, [1, 1], 1, "none", [], ""
    )


def _winograd(h: Tensor, form: Tensor, bias: Tensor) -> Tensor:
    batch, channels, height, width = h.shape
    down, across, n, o = -(-height // TILE), -(-width // TILE), TILE + 2, len(bias)
    out = h.new_empty((batch, down, TILE, across, TILE, o))
    size = n * n * down * across * max(channels, o) * h.element_size()
    parts = min(batch, -(-batch * size // SCRATCH))
    for maps, result in zip(h.chunk(parts), out.chunk(parts), strict=True):
        some = len(maps)
        right, below = across * TILE + 1 - width, down * TILE + 1 - height
        padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below))
        b, y, x, c = padded.stride()
        tiles = _scratch(0, (n, n, some, down, across, channels))
        tiles.copy_(padded.as_strided(tiles.shape, (y, x, b, TILE * y, TILE * x, c)))
        points = _scratch(1, (n * n, some * down * across * channels))
        torch.mm(INTO, tiles.view(n * n, -1), out=points)
        products = _scratch(0, (n * n, some * down * across, o))  # the tiles are done with
        torch.bmm(points.view(n * n, -1, channels), form, out=products)
        made = _scratch(1, (TILE * TILE, some * down * across * o))  # and so are the points
        torch.mm(OUT_OF, products.view(n * n, -1), out=made)
        made = made.view(TILE, TILE, some, down, across, o).permute(2, 3, 0, 4, 1, 5)
        torch.add(made, bias, out=result)
    out = out.view(batch, down * TILE, across * TILE, o)
    return out[:, :height, :width].permute(0, 3, 1, 2)


def _scratch(which: int, shape: tuple[int, ...]) -> Tensor:
    """One of this thread's buffers, as large as it was ever asked to be.

    Fresh memory, which the system must map page by page, costs more than the sums do.
    """
    size, held = math.prod(shape), _BUFFERS.held
    if len(held[which]) < size:
        held[which] = torch.empty(size, device="cpu")
    return held[which][:size].view(shape)


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.held = [torch.empty(0, device="cpu") for _ in range(2)]


_BUFFERS = _Buffers()
