"""What the readers of every kind share: the result, the limits, and how a file is opened."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ddpm_core.typing import Array

LARGEST = 1 << 34  #: bytes of all images together, where they are held in memory
RATIO, SMALL = 200, 1 << 26  #: compressed data may grow by the first, or to the second, in bytes
CLASSES = 1 << 16


class Images(NamedTuple):
    """images: (N, C, H, W) uint8; classes: (N,) integers or None; labels: the classes' names.

    said: what the reader changed or left out, a sentence each
    """

    images: Array
    classes: Array | None
    labels: tuple[str, ...]
    said: tuple[str, ...] = ()


def open_regular(path: Path) -> IO[bytes]:
    """A regular file, opened: others, such as a FIFO, could be waited for without end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")
    return path.open("rb")


def check_claim(path: Path, claimed: int, stored: int) -> None:
    """ValueError if stored bytes, compressed, are too few to claim so many."""
    if claimed > LARGEST:
        raise ValueError(f"{path} claims {claimed:,} bytes of data, but {LARGEST:,} are the most")
    if claimed > max(SMALL, RATIO * stored):
        raise ValueError(
            f"{path} claims {claimed:,} bytes of data in {stored:,} compressed ones, but at most "
            f"{RATIO} times as many are read"
        )


def fill(file: IO[bytes], size: int, start: bytes = b"") -> Array:
    """Up to `size` bytes, as uint8: those at the start and then those of a file."""
    data = np.empty(size, np.uint8)  # its pages are taken as they are written, not before
    done = len(start)
    data[:done] = np.frombuffer(start, np.uint8)
    while done < size and (part := file.read(min(1 << 20, size - done))):
        data[done : done + len(part)] = np.frombuffer(part, np.uint8)
        done += len(part)
    return data[:done]


def reason(error: object) -> str:
    """What a library says, in one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def channels_last(where: object, shape: tuple[int, ...]) -> bool:
    """Whether (a, b, c) is channels last: 1 and 3 are channels before 4 is."""
    likely = {1: 2, 3: 2, 4: 1}
    first, last = likely.get(shape[0], 0), likely.get(shape[2], 0)
    if first == last:
        raise ValueError(f"{where} has images of shape {shape}: 1, 3 or 4 channels, first or last?")
    return last > first
