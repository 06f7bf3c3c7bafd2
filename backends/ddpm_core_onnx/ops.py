"""The UNet's operations as those of ONNX, on the arrays of ndonnx, which are graphs."""

from __future__ import annotations

import importlib
import math
from typing import Any

import ndonnx as ndx
import numpy as np

from ddpm_core.nn import Ops
from ddpm_core.typing import Array

#: ONNX's operators, on variables of spox. By name, since this part of spox has no types.
onnx: Any = importlib.import_module("spox.opset.ai.onnx.v21")


class OnnxOps(Ops):
    """The UNet's operations, each a few nodes; maps are (B, C, H, W), of any B and known C, H, W.

    Reshapes say -1 for the batch, so that a graph takes any.
    """

    def conv2d(
        self, h: Array, weight: Array, bias: Array, stride: int = 1, symmetric: bool = True
    ) -> Array:
        before, after = (0, 0) if weight.shape[2] == 1 else (1 if symmetric else 0, 1)
        pads = [before, before, after, after]
        return node(onnx.conv, h, weight, bias, strides=[stride, stride], pads=pads)

    def group_norm(self, h: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
        _, *shape = h.shape
        # A channel for each group: spox does not infer the shapes of GroupNormalization.
        grouped = ndx.reshape(h, (-1, groups, math.prod(shape) // groups))
        ones, zeros = (ndx.asarray(np.full(groups, c, np.float32)) for c in (1, 0))
        normed = node(onnx.instance_normalization, grouped, ones, zeros, epsilon=eps)
        weight, bias = (ndx.reshape(a, (1, -1, 1, 1)) for a in (weight, bias))
        return ndx.reshape(normed, (-1, *shape)) * weight + bias

    def silu(self, x: Array) -> Array:
        return x * node(onnx.sigmoid, x)

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        return node(onnx.gemm, x, weight, bias, transB=1)

    def attention(self, q: Array, k: Array, v: Array, heads: int = 1) -> Array:
        _, channels, height, width = q.shape
        each = channels // heads
        q, k, v = (ndx.reshape(a, (-1, heads, each, height * width)) for a in (q, k, v))
        # Not ndonnx's own product, which first asks in several nodes whether anything is empty.
        logits = node(onnx.matmul, ndx.matrix_transpose(q), k) * (1 / math.sqrt(each))
        weights = node(onnx.softmax, logits, axis=-1)
        out = node(onnx.matmul, v, ndx.matrix_transpose(weights))
        return ndx.reshape(out, (-1, channels, height, width))

    def downsample(self, h: Array) -> Array:
        return node(onnx.average_pool, h, kernel_shape=[2, 2], strides=[2, 2])

    def upsample(self, h: Array) -> Array:
        return ndx.asarray(
            onnx.resize(
                h.unwrap_spox(),
                scales=onnx.const(np.asarray([1, 1, 2, 2], np.float32)),
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        )

    def add_vector(self, h: Array, e: Array) -> Array:
        return h + _on_pixels(e)

    def scale_shift(self, h: Array, scale: Array, shift: Array) -> Array:
        return h * (1 + _on_pixels(scale)) + _on_pixels(shift)


def node(operator: Any, *inputs: Array, **attributes: Any) -> Array:
    """The output of one operator."""
    return ndx.asarray(operator(*(a.unwrap_spox() for a in inputs), **attributes))


def _on_pixels(e: Array) -> Array:
    """A vector (B, C) as (B, C, 1, 1)."""
    return ndx.reshape(e, (-1, e.shape[1], 1, 1))
