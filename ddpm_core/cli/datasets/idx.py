"""IDX (LeCun, MNIST): 0, 0, 8 for bytes, how many dimensions, big-endian sizes, data."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np

from ddpm_core.cli.datasets.shared import LARGEST, Images, check_claim, fill, open_regular
from ddpm_core.typing import Array


def read_pair(path: Path, name: str) -> Images:
    images = _read_idx(path, dimensions=3)
    classes = _read_idx(beside(path.parent, f"{name}-labels"), dimensions=1)
    if len(images) != len(classes):
        raise ValueError(f"{path.parent} has {len(images)} {name} images but {len(classes)} labels")
    count = int(classes.max(initial=0)) + 1
    labels = _labels(path.parent / "labels.txt", count)
    return Images(images[:, None], classes.astype(np.int64), labels)


def _labels(path: Path, count: int) -> tuple[str, ...]:
    """The names in a file, one a line, or numbers where there is none."""
    if not path.exists():
        return tuple(str(k) for k in range(count))
    with open_regular(path) as file:
        lines = file.read(1 << 20).decode(errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if not count <= len(names) <= 256:
        raise ValueError(
            f"{path} must name at least {count} classes, one a line, and at most 256, but names "
            f"{len(names)}"
        )
    return names


def beside(folder: Path, start: str) -> Path:
    found = sorted(file for file in folder.iterdir() if file.name.startswith(start))
    if not found:
        raise FileNotFoundError(f"{folder} has no {start}-*")
    return found[0]


def _read_idx(path: Path, dimensions: int) -> Array:
    head = 4 + 4 * dimensions
    with open_regular(path) as stored:
        size = path.stat().st_size
        file = cast(IO[bytes], gzip.GzipFile(fileobj=stored)) if path.suffix == ".gz" else stored
        try:
            start = file.read(head)
            if len(start) < head or start[:4] != bytes([0, 0, 8, dimensions]):
                raise ValueError(f"{path} is not an IDX file of {dimensions}-dimensional bytes")
            shape = tuple(np.frombuffer(start, ">u4", dimensions, offset=4).tolist())
            wanted = math.prod(shape)
            if file is not stored or wanted > LARGEST:
                check_claim(path, wanted, size)
            elif wanted != size - head:
                raise ValueError(f"{path} is truncated: its header says {shape}")
            data = fill(file, wanted)
            if len(data) != wanted or file.read(1):
                raise ValueError(f"{path} is truncated: its header says {shape}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is not a gzip file, or is truncated ({error})") from None
    if wanted == 0 and len(shape) > 1:
        raise ValueError(f"{path} has no images: its header says {shape}")
    return data.reshape(shape)
