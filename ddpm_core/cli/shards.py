"""A folder of images, one a file or many (shards): each file is there whole, or not at all."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_core.checkpoints.files import open_regular, write_whole
from ddpm_core.cli import pictures
from ddpm_core.cli.datasets.arrays import read_arrays
from ddpm_core.cli.drawing import classes_of
from ddpm_core.cli.kept import check_about, npz
from ddpm_core.cli.processes import blocks
from ddpm_core.typing import Array

KINDS = ("npz", "tar")
DTYPES = ("uint8", "float32")
SETTINGS = "samples.json"
_USUAL = 100_000_000  #: at most
_SHARD = re.compile(r"(\d{8,10})-(\d{8,10})\.(npz|tar)")


@dataclass(frozen=True)
class Layout:
    """How images lie in files.

    kind: png, one image a file; npz or tar, all of one id // size a file
    dtype: of an .npz: uint8, or float32 in [-1, 1]
    """

    kind: str = "png"
    size: int = 1
    dtype: str = "uint8"

    @property
    def what(self) -> str:
        """The files, in words."""
        return "pictures" if self.kind == "png" else "shards"

    def about(self) -> dict[str, Any]:
        """As JSON has it; of single pictures nothing that older folders lack."""
        shards = {"shards": self.kind, "dtype": self.dtype}
        return {"shards": None} if self.kind == "png" else shards

    def name(self, ids: Array) -> str:
        """The name of the file of these ids."""
        span = f"{ids[0]:08d}" if self.kind == "png" else f"{ids[0]:08d}-{ids[-1]:08d}"
        return f"{span}.{self.kind}"

    def stored(self, x: Array) -> Array:
        """Images (N, C, H, W) in the numbers that a file has."""
        return pictures.to_bytes(x) if self.dtype == "uint8" else np.clip(x, -1, 1)

    def file(self, ids: Array, images: Array, dealt: Array | None) -> bytes:
        """The bytes of the file of these ids; images: as `stored` gives them."""
        classes = classes_of(dealt, ids)
        if self.kind == "npz":
            return npz(images, classes, ids)
        return _png(images[0]) if self.kind == "png" else _tar(ids, images, classes)

    def files(
        self, drawn: Iterable[tuple[Array, list[Array]]], ids: Array, dealt: Array | None
    ) -> Generator[tuple[Array, bytes]]:
        """What is drawn of some ids, in batches: the ids and the bytes of each file, once it can be
        written.
        """
        batches, held = iter(drawn), list[Array]()
        for part in blocks(ids, self.size):
            while sum(map(len, held)) < len(part):
                _, (x,) = next(batches)
                held.append(self.stored(x))
            images = held[0] if len(held) == 1 else np.concatenate(held)
            yield part, self.file(part, images[: len(part)], dealt)
            held = [images[len(part) :]] if len(images) > len(part) else []
        next(batches, None)  # so that it ends

    def is_there(self, path: Path, ids: Array) -> bool:
        """Whether the file of these ids is there, and if it is a shard, whether it has its end."""
        if self.kind == "png" or not path.exists():
            return path.exists()
        if self.kind == "npz":  # whose list of arrays is at its end
            try:
                return np.array_equal(read_arrays(path, "ids").get("ids", ()), ids)
            except ValueError:
                return False
        with open_regular(path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(size - 2 * tarfile.BLOCKSIZE, 0))
            return size > 0 and size % tarfile.RECORDSIZE == 0 and not any(file.read())


def usual_size(image: int) -> int:
    """How many images of so many bytes a shard has: a power of two, so that batches fit."""
    return 1 << min((_USUAL // image).bit_length() - 1, 13) if image <= _USUAL else 1


def lacking(folder: Path, layout: Layout, ids: Array, about: dict[str, Any], resume: bool) -> Array:
    """The ids whose files a folder lacks; ValueError if it holds those of other settings."""
    settled = _settled(folder, about)
    present = {path.name for path in folder.iterdir()} if folder.exists() else set[str]()
    others = {name: match for name in present if (match := _SHARD.fullmatch(name))}
    lacks, at, there = np.ones(len(ids), bool), 0, 0
    for part in blocks(ids, layout.size):
        name = layout.name(part)
        others.pop(name, None)
        if name in present:
            there += 1
            lacks[at : at + len(part)] = not layout.is_there(folder / name, part)
        at += len(part)
    if there and not settled:
        raise ValueError(
            f"{folder} has some of these {layout.what}, but no {SETTINGS} that says how they were "
            f"drawn; choose another --out-dir"
        )
    for name, match in others.items():
        if np.any((ids >= int(match[1])) & (ids <= int(match[2]))):
            raise ValueError(
                f"{folder} has {name}, and would have some of its images twice; pass its "
                f"--shard-size, and --ids that cut no shard, or choose another --out-dir"
            )
    if there and not resume:
        raise ValueError(
            f"{folder} has {there} of these {layout.what} already; pass --resume to draw the "
            f"others, or choose another --out-dir"
        )
    return ids[lacks]


def write(folder: Path, name: str, data: bytes, about: dict[str, Any]) -> None:
    """Writes a file, and what it was drawn with; ValueError if the folder has other settings."""
    if not _settled(folder, about):  # asked again: another command may have begun since
        folder.mkdir(exist_ok=True)
        write_whole(folder / SETTINGS, (json.dumps(about, indent=2) + "\n").encode())
    write_whole(folder / name, data)


def _settled(folder: Path, about: dict[str, Any]) -> bool:
    """Whether a folder has the settings of its images; ValueError if they are others."""
    try:
        with open_regular(folder / SETTINGS) as file:
            before: Any = json.loads(file.read(1 << 20))
    except FileNotFoundError:
        return False
    except (ValueError, RecursionError):
        raise ValueError(f"{folder / SETTINGS} cannot be read; choose another --out-dir") from None
    check_about(folder, before, about, "samples", "--out-dir")
    return True


def _png(image: Array) -> bytes:
    """An image (C, H, W) in uint8."""
    return pictures.png(pictures.flat(image.transpose(1, 2, 0)))


def _tar(ids: Array, images: Array, classes: Array | None) -> bytes:
    """As WebDataset has it: 00000017.png, and 00000017.cls with the number of the class."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for at, i in enumerate(ids):
            members = {"png": _png(images[at])}
            if classes is not None:
                members["cls"] = str(classes[at]).encode()
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{i:08d}.{suffix}")  # of the time 0 and of no owner
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
