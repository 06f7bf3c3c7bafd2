"""NumPy files."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from ddpm_core.cli.datasets.shared import (
    CLASSES,
    Images,
    channels_last,
    check_claim,
    fill,
    open_regular,
    reason,
)
from ddpm_core.typing import Array


def read_numpy(path: Path) -> Images:
    with open_regular(path) as file:
        if path.suffix == ".npy":
            stored = _Npy(path, file, path.stat().st_size)
            last = _check_images(path, stored)
            return Images(_channels_first(stored.mapped(), last), None, ())
        archive, members = _members(path, file)
        names = [name for name in ("images", "x", "arr_0") if name in members]
        if not names:
            others = reason(", ".join(members)) if members else "nothing"
            raise ValueError(f"{path} has none of images, x, arr_0, but {others}")
        second = [name for name in ("classes", "labels", "y", "arr_1") if name in members]
        arrays = [
            _Npy(path, _member(path, archive, members[name]), members[name].file_size)
            for name in (names[:1] + second[:1])
        ]
        return _images_of(path, arrays[0], arrays[1] if second else None)


def read_arrays(path: Path, *names: str) -> dict[str, Array]:
    """Those of the named arrays that an .npz has.

    OSError or ValueError, one line, if they cannot be read.
    """
    with open_regular(path) as file:
        archive, members = _members(path, file)
        found = {name: members[name] for name in names if name in members}
        return {
            name: _Npy(path, _member(path, archive, info), info.file_size).read()
            for name, info in found.items()
        }


def read_features(path: Path) -> dict[str, Array]:
    """The arrays `real`, `drawn` and, where it is there, `other` of an .npz, of real numbers.

    OSError or ValueError, one line, if they cannot be read.
    """
    arrays = read_arrays(path, "real", "drawn", "other")
    if missing := [name for name in ("real", "drawn") if name not in arrays]:
        raise ValueError(
            f"{path} lacks {' and '.join(missing)}: features are an .npz of arrays real and "
            f"drawn and, optionally, other"
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu" or array.ndim != 2:
            raise ValueError(
                f"{path}: {name} must hold numbers (N, D), a row a sample, but holds "
                f"{reason(f'{array.dtype} {array.shape}')}"
            )
    return arrays


def _members(path: Path, file: IO[bytes]) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An .npz, opened, and the files in it by the names of the arrays."""
    try:
        archive = zipfile.ZipFile(file)
        return archive, {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    except Exception as error:  # of whatever is wrong with a foreign file
        raise _unreadable(path, error) from None


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    check_claim(path, info.file_size, min(info.compress_size, path.stat().st_size))
    try:
        return archive.open(info)
    except Exception as error:  # encrypted, of an unknown compression, or damaged
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: object) -> ValueError:
    return ValueError(f"{path} cannot be read as {path.suffix} ({reason(error)})")


class _Npy:
    """An .npy file whose header has been read, and is known to fit its size; nothing else yet."""

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self.path, self.file = path, file
        library: Any = np.lib.format
        try:
            self.start = file.read(1 << 14)  # headers of more than 10,000 bytes are refused
            head = io.BytesIO(self.start)
            readers = {
                (1, 0): library.read_array_header_1_0,
                (2, 0): library.read_array_header_2_0,
            }
            self.shape, self.fortran, self.dtype = readers[library.read_magic(head)](head)
        except Exception as error:  # tokenizer's and parser's, too many kinds to name
            raise _unreadable(path, error) from None
        if self.dtype.hasobject:
            raise _unreadable(path, "it holds Python objects")
        claimed = math.prod(self.shape) * self.dtype.itemsize
        if any(n < 0 for n in self.shape) or head.tell() + claimed != size:
            raise _unreadable(path, f"its header says {self}, but it has {size:,} bytes")
        self.size, self.offset = claimed, head.tell()

    def __str__(self) -> str:
        return reason(f"{self.dtype} {self.shape}")

    def mapped(self) -> Array:
        """The array in its file, of which only what is looked at is read."""
        order = "F" if self.fortran else "C"
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape, order)

    def read(self) -> Array:
        try:
            data = fill(self.file, self.size, self.start[self.offset :])
        except Exception as error:  # damaged data
            raise _unreadable(self.path, error) from None
        if len(data) != self.size:
            raise _unreadable(self.path, "it is truncated")
        array: Array = data.view(self.dtype).reshape(self.shape[:: -1 if self.fortran else 1])
        return array.T if self.fortran else array


def _images_of(path: Path, images: _Npy, classes: _Npy | None) -> Images:
    if classes is not None and classes.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold classes as integers, but holds {classes}")
    last = _check_images(path, images)
    if classes is not None and classes.shape != images.shape[:1]:
        raise ValueError(f"{path} must hold one class of at least 0 per image")
    x = np.ascontiguousarray(_channels_first(images.read(), last))
    if classes is None:
        return Images(x, None, ())
    y = classes.read()
    if y.min() < 0:
        raise ValueError(f"{path} must hold one class of at least 0 per image")
    if y.max() >= CLASSES:
        raise ValueError(
            f"{path} has class {y.max()}, but {CLASSES:,} are the most: number them from 0"
        )
    labels = tuple(str(k) for k in range(int(y.max()) + 1))
    return Images(x, y.astype(np.int64), labels)


def _check_images(path: Path, images: _Npy) -> bool:
    """Whether channels are last; ValueError if these are no images."""
    shape = images.shape
    if len(shape) not in (3, 4) or images.dtype != np.uint8:
        raise ValueError(
            f"{path} must hold uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W), but holds "
            f"{images}"
        )
    if images.size == 0:
        raise ValueError(f"{path} has no images: their shape is {shape}")
    return len(shape) == 4 and channels_last(path, shape[1:])


def _channels_first(x: Array, last: bool) -> Array:
    return x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2) if last else x
