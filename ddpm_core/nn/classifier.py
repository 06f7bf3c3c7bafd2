"""A small convolutional classifier as one pure function of a flat dict of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from array_api_compat import array_namespace

from ddpm_core.nn.ops import Ops
from ddpm_core.typing import Array


class Classified(NamedTuple):
    """What a classifier makes of images.

    features: (B, D), its last layer but one
    logits: (B, K), of the classes
    """

    features: Array
    logits: Array


def classify(params: Mapping[str, Array], x: Array) -> Classified:
    """Two convolutions, each with a ReLU and the maximum of 2x2 pixels, then two dense layers.

    params: weight and bias of conv1, conv2, dense and out, in the layout of `Ops`
    x: (B, C, H, W), H and W multiples of 4
    """
    ops, xp = Ops(), array_namespace(x)

    def layer(name: str) -> tuple[Array, Array]:
        return params[f"{name}.weight"], params[f"{name}.bias"]

    h = x
    for name in ("conv1", "conv2"):
        h = _relu(ops.conv2d(h, *layer(name)))
        batch, channels, height, width = h.shape
        tiles = xp.reshape(h, (batch, channels, height // 2, 2, width // 2, 2))
        h = xp.max(tiles, axis=(3, 5))
    features = _relu(ops.linear(xp.reshape(h, (h.shape[0], -1)), *layer("dense")))
    return Classified(features, ops.linear(features, *layer("out")))


def _relu(h: Array) -> Array:
    xp = array_namespace(h)
    return xp.where(h > 0, h, xp.zeros_like(h))
