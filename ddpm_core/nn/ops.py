"""The operations that a UNet is made of, on the bare Array API standard.

This is the reference: correct on every array library and fast on none. A backend replaces the
operations that it does better, and chooses the layout of the feature maps: `enter` and `leave`
convert to and from it.
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace

from ddpm_core.arrays import device_of
from ddpm_core.typing import Array


class Ops:
    """The reference operations. Feature maps are (B, C, H, W), vectors are (B, C).

    A subclass may change the layout of maps, and the form of weights and biases (`pack`).
    """

    def pack(self, params: dict[str, Array]) -> dict[str, Any]:
        """The parameters in the form that is fastest for these operations, prepared once."""
        return params

    def enter(self, x: Array) -> Array:
        """(B, C, H, W) to the layout of the feature maps."""
        return x

    def leave(self, h: Array) -> Array:
        """From the layout of the feature maps back to (B, C, H, W)."""
        return h

    def conv2d(
        self, h: Array, weight: Array, bias: Array, stride: int = 1, symmetric: bool = True
    ) -> Array:
        """A convolution with output size H / stride, zero padding outside.

        weight: (O, C, k, k), k = 1 or 3; bias: (O,)
        symmetric: False, at stride 2, pads on the right and at the bottom only, as TensorFlow's
            SAME does
        """
        xp = array_namespace(h)
        k = weight.shape[2]
        if k == 3:
            h = _pad(xp, h, 1 if symmetric else 0, 1)
        batch, channels, height, width = h.shape
        height, width = (height - k) // stride + 1, (width - k) // stride + 1
        out = xp.reshape(bias, (1, -1, 1))
        for i in range(k):
            for j in range(k):
                rows = slice(i, i + stride * (height - 1) + 1, stride)
                columns = slice(j, j + stride * (width - 1) + 1, stride)
                tap = h[:, :, rows, columns]
                out = out + weight[:, :, i, j] @ xp.reshape(tap, (batch, channels, height * width))
        return xp.reshape(out, (batch, weight.shape[0], height, width))

    def group_norm(self, h: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
        """Zero mean and unit variance per sample and group of channels (Wu & He 2018), then affine.

        weight, bias: (C,)
        """
        xp = array_namespace(h)
        batch, channels, height, width = h.shape
        grouped = xp.reshape(h, (batch, groups, channels // groups, height, width))
        mean = xp.mean(grouped, axis=(2, 3, 4), keepdims=True)
        var = xp.mean((grouped - mean) ** 2, axis=(2, 3, 4), keepdims=True)
        normed = xp.reshape((grouped - mean) / xp.sqrt(var + eps), h.shape)
        return normed * xp.reshape(weight, (1, -1, 1, 1)) + xp.reshape(bias, (1, -1, 1, 1))

    def group_norm_silu(
        self, h: Array, weight: Array, bias: Array, groups: int, eps: float
    ) -> Array:
        """`group_norm`, then `silu`: one pass over memory where a backend can."""
        return self.silu(self.group_norm(h, weight, bias, groups, eps))

    def silu(self, x: Array) -> Array:
        """x sigmoid(x), of a map or of a vector."""
        xp = array_namespace(x)
        small = xp.exp(-xp.abs(x))  # never overflows
        return x * xp.where(x >= 0, xp.ones_like(x), small) / (1.0 + small)

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        """(B, C) to (B, O). weight: (O, C); bias: (O,)"""
        xp = array_namespace(x)
        return x @ xp.matrix_transpose(weight) + bias

    def attention(self, q: Array, k: Array, v: Array, heads: int = 1) -> Array:
        """Every pixel attends to every pixel: softmax(q kᵀ / sqrt(c)) v. All maps.

        heads: each has c = C / heads neighbouring channels
        """
        xp = array_namespace(q)
        batch, channels, height, width = q.shape
        each = channels // heads
        q, k, v = (xp.reshape(a, (batch * heads, each, height * width)) for a in (q, k, v))
        logits = xp.matrix_transpose(q) @ k * (1 / math.sqrt(each))
        weights = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
        weights = weights / xp.sum(weights, axis=-1, keepdims=True)
        return xp.reshape(v @ xp.matrix_transpose(weights), (batch, channels, height, width))

    def downsample(self, h: Array) -> Array:
        """Half the height and width, by means of 2x2 pixels."""
        xp = array_namespace(h)
        batch, channels, height, width = h.shape
        return xp.mean(xp.reshape(h, (batch, channels, height // 2, 2, width // 2, 2)), axis=(3, 5))

    def upsample(self, h: Array) -> Array:
        """Twice the height and width, by nearest neighbours."""
        xp = array_namespace(h)
        batch, channels, height, width = h.shape
        h = xp.reshape(h, (batch, channels, height, 1, width, 1))
        h = xp.broadcast_to(h, (batch, channels, height, 2, width, 2))
        return xp.reshape(h, (batch, channels, 2 * height, 2 * width))

    def add_vector(self, h: Array, e: Array) -> Array:
        """A vector (B, C) added to every pixel of a map."""
        xp = array_namespace(h)
        return h + xp.reshape(e, (*e.shape, 1, 1))

    def scale_shift(self, h: Array, scale: Array, shift: Array) -> Array:
        """A map times (1 + scale) plus shift, vectors (B, C)."""
        xp = array_namespace(h)
        scale, shift = (xp.reshape(e, (*e.shape, 1, 1)) for e in (scale, shift))
        return h * (1 + scale) + shift

    def concat(self, h: Array, skip: Array) -> Array:
        """Two maps with their channels one after the other."""
        return array_namespace(h).concat([h, skip], axis=1)


class ChannelsLast(Ops):
    """The same on feature maps (B, H, W, C), without `conv2d`, `group_norm` and `attention`.

    Those three mix pixels or channels, and a backend brings its own.
    """

    def enter(self, x: Array) -> Array:
        return array_namespace(x).permute_dims(x, (0, 2, 3, 1))

    def leave(self, h: Array) -> Array:
        return array_namespace(h).permute_dims(h, (0, 3, 1, 2))

    def downsample(self, h: Array) -> Array:
        xp = array_namespace(h)
        batch, height, width, channels = h.shape
        return xp.mean(xp.reshape(h, (batch, height // 2, 2, width // 2, 2, channels)), axis=(2, 4))

    def upsample(self, h: Array) -> Array:
        xp = array_namespace(h)
        return xp.repeat(xp.repeat(h, 2, axis=1), 2, axis=2)

    def add_vector(self, h: Array, e: Array) -> Array:
        return h + e[:, None, None, :]

    def scale_shift(self, h: Array, scale: Array, shift: Array) -> Array:
        return h * (1 + scale[:, None, None, :]) + shift[:, None, None, :]

    def concat(self, h: Array, skip: Array) -> Array:
        return array_namespace(h).concat([h, skip], axis=-1)


def _pad(xp: Any, h: Array, before: int, after: int) -> Array:
    """Zeros around height and width; the standard has no pad."""
    for axis in (2, 3):
        parts = [h]
        for where, count in ((0, before), (1, after)):
            if count:
                shape = list(h.shape)
                shape[axis] = count
                zeros = xp.zeros(tuple(shape), dtype=h.dtype, **device_of(xp, h))
                parts = [*parts, zeros] if where else [zeros, *parts]
        h = xp.concat(parts, axis=axis)
    return h
