"""What a step trains on: images, and all that was drawn for them."""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_core.levels import Level
from ddpm_core.nn.network import UNetConfig
from ddpm_core_torch.backend import Torch

#: Of more bytes of images than this, only some images are compared when a run is resumed.
COMPARED = 2**26


class Pixels(Protocol):
    """Images as a trainer reads them: (N, C, H, W) uint8; a NumPy array, mapped or not, is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> np.ndarray: ...


class Drawn(NamedTuple):
    """What was drawn for a batch, on the host: the levels (B,), and the weights of their losses."""

    levels: Level
    weights: np.ndarray


class Batch(NamedTuple):
    """Images in [-1, 1], noise, their levels, weights, and classes as y if there are any.

    Those of one process, on its device; start: the place of the first one in the whole batch.
    """

    x_0: Tensor
    eps: Tensor
    t: Level
    weights: Tensor
    cond: dict[str, Any]
    start: int

    def parts(self, count: int) -> list[Batch]:
        """As many parts of one size, in order."""
        size = len(self.x_0) // count
        cuts = [slice(first, first + size) for first in range(0, len(self.x_0), size)]
        return [
            Batch(
                self.x_0[cut],
                self.eps[cut],
                Level(*(field[cut] for field in self.t)),
                self.weights[cut],
                {name: value[cut] for name, value in self.cond.items()},
                self.start + cut.start,
            )
            for cut in cuts
        ]


def placed(on: Torch, images: np.ndarray, eps: Tensor, places: np.ndarray, drawn: Drawn) -> Batch:
    """Images on the device, with what was drawn for their places."""
    x_0 = on.asarray(images, torch.uint8).float() / 127.5 - 1
    t = Level(*(on.asarray(field[places].astype(np.float32)) for field in drawn.levels))
    weights = on.asarray(drawn.weights[places].astype(np.float32))
    return Batch(x_0, eps, t, weights, {}, int(places[0]))


def check_data(images: Pixels, classes: np.ndarray | None, config: UNetConfig) -> None:
    if images.dtype != np.uint8 or len(images.shape) != 4:
        raise ValueError(
            f"images must be uint8 (N, C, H, W), of pixels 0 .. 255, but are {images.dtype} "
            f"{images.shape}"
        )
    if images.shape[1] != config.channels:
        raise ValueError(
            f"images have {images.shape[1]} channels, but config has channels = {config.channels}"
        )
    if classes is None:
        if config.classes:
            raise ValueError(f"config has classes = {config.classes}, but classes is None")
        return
    if config.classes == 0:
        raise ValueError("config has classes = 0, so classes must be None")
    if classes.shape != (len(images),) or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"classes must be {len(images)} integers, one for each image, but are {classes.dtype} "
            f"{classes.shape}"
        )
    if classes.min() < -1 or classes.max() >= config.classes:
        raise ValueError(
            f"classes must lie within -1 .. {config.classes - 1}, of config's classes = "
            f"{config.classes}, but are {classes.min()} .. {classes.max()}"
        )


def digest_of(images: Pixels, classes: np.ndarray | None) -> str:
    """Sizes and a digest of images and classes; of many images, of some that are evenly spread."""
    shape = images.shape
    some = images[np.arange(0, len(images), 1 + math.prod(shape) // COMPARED)]
    numbers = b"" if classes is None else classes.astype(np.int64).tobytes()
    return f"{' x '.join(str(n) for n in shape)}, {digest(some.tobytes() + numbers)}"


def digest(data: bytes) -> str:
    return f"#{hashlib.sha256(data).hexdigest()[:12]}"
