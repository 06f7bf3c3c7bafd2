"""Which images are held out of training, and parts of a data set."""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Any

import numpy as np

from ddpm_core.cli.datasets.shared import Images
from ddpm_core.typing import Array

BLOCK = 1 << 24  #: bytes of images that are read at a time


def held_out(images: Any, share: float) -> Array:
    """(N,) of bool: whether each image is one of the share that is never trained on.

    images: (N, C, H, W) uint8, an array or whatever gives one for an array of indices
    share: 0 .. 1

    An image's own pixels decide: its hash, BLAKE2b of the bytes in the order (C, H, W), is evenly
    spread over 0 .. 1, and is below the share or not. So equal images are on one side, whatever
    their order, their number and the kind of their file; and of a larger share a smaller one is a
    part.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share that is held out must lie within 0 .. 1, but is {share}")
    held = np.zeros(len(images), bool)
    if share == 0:
        return held
    below = round(share * 2**64)
    count = max(1, BLOCK // math.prod(images.shape[1:]))
    for first in range(0, len(images), count):
        ids = np.arange(first, min(first + count, len(images)))
        block: Array = np.ascontiguousarray(images[ids])
        hashes = [blake2b(image, digest_size=8).digest() for image in block]
        held[ids] = [int.from_bytes(digest, "big") < below for digest in hashes]
    return held


def part(found: Images, index: Array) -> Images:
    """The images at some places, and their classes; no image is copied before it is asked for."""
    classes = None if found.classes is None else found.classes[index]
    return found._replace(images=Part(found.images, index), classes=classes)


class Part:
    """Some of many images, read when they are asked for."""

    def __init__(self, images: Any, index: Array) -> None:
        self._images, self._index = images, index
        self.shape = (len(index), *images.shape[1:])
        self.dtype = images.dtype

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Any) -> Array:
        return self._images[self._index[index]]
