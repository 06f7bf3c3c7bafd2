"""Data sets of torch, or of anything else that gives images by number, as training data."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np

BLOCK = 256  #: items that are read at a time for their classes


class Data(NamedTuple):
    """images: (N, C, H, W) uint8, read when indexed; classes: (N,) integers or None.

    labels: the classes' names, which are their numbers
    """

    images: Items
    classes: np.ndarray | None
    labels: tuple[str, ...]


def from_dataset(dataset: Any, threads: int = 4) -> Data:
    """A map-style data set, of torch or of your own, as what `Trainer` is trained on.

    dataset: has a length; each item is an image or a pair (image, class). An image is of PIL (of
        mode L or RGB), uint8 of shape (H, W), (C, H, W) or (H, W, C), or floats in 0 .. 1, as
        ToTensor gives; all are of one shape. A class is an integer of at least 0
    threads: how many items are read at once; 1 if the data set does not allow more

    Images are read when they are indexed, each time anew, and must be the same each time: leave
    random changes to the trainer. Where items are pairs, each is read once here, for its class.

    >>> class Squares:
    ...     def __len__(self): return 2
    ...     def __getitem__(self, i): return np.full((3, 8, 8), i, np.uint8), i
    >>> images, classes, labels = from_dataset(Squares())
    >>> images[np.array([1, 0])].shape, classes, labels
    ((2, 3, 8, 8), array([0, 1]), ('0', '1'))
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"a data set must have a length and items by number, but {type(dataset).__name__} has "
            f"not: put its items in a list"
        )
    if len(dataset) == 0:
        raise ValueError("the data set has no items")
    images = Items(dataset, threads)
    if not _is_pair(dataset[0]):
        return Data(images, None, ())
    classes = images.classes()
    return Data(images, classes, tuple(str(k) for k in range(int(classes.max()) + 1)))


class Items:
    """The images of a data set: `items[index]` reads those of an index, as NumPy's does."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, dataset: Any, threads: int) -> None:
        self.dataset, self.threads = dataset, threads
        self.shape = (len(dataset), *_pixels(_image(dataset[0]), 0).shape)
        self._ids = np.arange(len(dataset))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """Bytes of all images, of which none is held."""
        return int(np.prod(self.shape, dtype=object))

    def __getitem__(self, index: Any) -> np.ndarray:
        """The images (*index, C, H, W) of a number, a slice, or an array of either or of bool."""
        ids = self._ids[index]
        found = self._read(np.ravel(ids))
        images = [self._checked(item, int(i)) for i, item in zip(np.ravel(ids), found, strict=True)]
        return np.reshape(images, (*np.shape(ids), *self.shape[1:])).astype(np.uint8, copy=False)

    def classes(self) -> np.ndarray:
        """The classes (N,) of items that are pairs; reads each, and checks its image too."""
        classes: list[int] = []
        for first in range(0, len(self), BLOCK):
            ids = self._ids[first : first + BLOCK]
            for i, item in zip(ids.tolist(), self._read(ids), strict=True):
                self._checked(item, i)
                classes.append(_class(item, i))
        return np.asarray(classes, np.int64)

    def _read(self, ids: Iterable[Any]) -> list[Any]:
        numbers = [int(i) for i in ids]
        if self.threads == 1:
            return [self.dataset[i] for i in numbers]
        with ThreadPoolExecutor(self.threads) as pool:  # none is kept: it would not outlive a fork
            return list(pool.map(self.dataset.__getitem__, numbers))

    def _checked(self, item: Any, i: int) -> np.ndarray:
        pixels = _pixels(_image(item), i)
        if pixels.shape != self.shape[1:]:
            raise ValueError(
                f"item {i} is an image of shape {pixels.shape}, but item 0 is of "
                f"{self.shape[1:]}: let the data set bring all to one"
            )
        return pixels


def _image(item: Any) -> Any:
    return item[0] if _is_pair(item) else item


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(cast(Any, item)) == 2


def _class(item: Any, i: int) -> int:
    try:
        y = operator.index(item[1]) if _is_pair(item) else -1
    except (TypeError, ValueError):
        y = -1
    if y < 0:
        raise ValueError(
            f"item {i} must be an image and its class, an integer of at least 0, but is "
            f"{_described(item)}"
        )
    return y


def _pixels(image: Any, i: int) -> np.ndarray:
    """An image as (C, H, W) uint8."""
    if hasattr(image, "shape") or (hasattr(image, "getbands") and image.mode in ("L", "RGB")):
        pixels: np.ndarray = np.asarray(image)
        if pixels.dtype.kind == "f" and pixels.size:
            low, high = float(pixels.min()), float(pixels.max())
            if not 0 <= low <= high <= 1:
                raise ValueError(
                    f"item {i} has floats of {low:g} .. {high:g}, but they must lie within 0 .. 1, "
                    f"as ToTensor gives them: leave out what comes after it, such as Normalize"
                )
            pixels = np.rint(pixels * 255).astype(np.uint8)
        if pixels.dtype == np.uint8 and pixels.ndim == 2:
            return pixels[None]
        if pixels.dtype == np.uint8 and pixels.ndim == 3:
            likely = {1: 2, 3: 2, 4: 1}  # 1 and 3 are channels before 4 is
            first, last = (likely.get(n, 0) for n in (pixels.shape[0], pixels.shape[2]))
            if first != last:
                return pixels if first > last else pixels.transpose(2, 0, 1)
    raise ValueError(
        f"item {i} must be an image of PIL of mode L or RGB, uint8 (H, W), (C, H, W) or (H, W, C) "
        f"with 1, 3 or 4 channels, or floats so, in 0 .. 1; but is {_described(image)}"
    )


def _described(thing: Any) -> str:
    """What something is, in a few words."""
    if isinstance(thing, tuple | list):
        return f"({', '.join(map(_described, cast(Any, thing)[:3]))})"
    if isinstance(thing, dict):
        return f"a dict of {', '.join(map(str, cast(Any, thing)))}"
    if hasattr(thing, "getbands"):
        return f"an image of mode {thing.mode}"
    if hasattr(thing, "shape"):
        return f"{thing.dtype} {tuple(thing.shape)}"
    return repr(thing) if isinstance(thing, str | int | float) else type(thing).__name__
