"""Samples that are kept in a folder, and what they were drawn with."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import typer

from ddpm_core.checkpoints import Checkpoint
from ddpm_core.checkpoints.files import open_regular, write_whole
from ddpm_core.cli import datasets
from ddpm_core.typing import Array

PATIENCE = 600.0  #: seconds without a new file, after which other processes are not waited for
_ABOUT = "about.json"  #: in each file, beside the arrays


class Kept:
    """Samples of the ids 0 .. count - 1 in a folder, one file a batch: a kill loses one batch.

    about: what they are drawn with, as JSON has it
    y: (count,), their classes; None for a model without classes
    shape: (C, H, W)

    ValueError if the folder has samples of other settings, or files that are none of samples.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        count: int,
        y: Array | None,
        shape: tuple[int, ...],
    ) -> None:
        self.folder, self.about, self.y = folder, about, y
        self.images = np.zeros((count, *shape), np.uint8)
        self.there = np.zeros(count, bool)
        self._known: set[Path] = set()
        self.collect()

    def add(self, ids: Array, images: Array) -> None:
        """Writes a batch: whole, or not at all."""
        self.folder.mkdir(exist_ok=True)
        y = None if self.y is None else self.y[ids]
        text = json.dumps(
            {**self.about, "ids": ids.tolist(), "classes": None if y is None else y.tolist()}
        )
        buffer = io.BytesIO(npz(images, y, ids))
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(_ABOUT, text)
        write_whole(self.folder / f"{ids[0]:08d}.npz", buffer.getvalue())

    def collect(self) -> bool:
        """Reads the files that are new, of this process and of others; says if there were any."""
        there = {p for p in self.folder.glob("*.npz") if re.fullmatch(r"\d{8}\.npz", p.name)}
        for path in sorted(there - self._known):
            self._take(path)
        found = there > self._known
        self._known |= there
        return found

    def wait(self) -> Array:
        """The images (count, C, H, W), uint8, once those of other processes have come too.

        ValueError if none comes for `PATIENCE` seconds.
        """
        self.collect()
        if not self.there.all():
            typer.echo("Waiting for the samples of the other processes", err=True)
        last = time.monotonic()
        while not self.there.all():
            time.sleep(min(0.5, PATIENCE))
            if self.collect():
                last = time.monotonic()
            elif time.monotonic() - last > PATIENCE:
                raise ValueError(
                    f"{self.folder} lacks {np.sum(~self.there)} of {len(self.there)} samples, and "
                    f"none came in {PATIENCE:g} seconds: has a process ended early? The same "
                    f"command, run again, draws only those"
                )
        return self.images

    def _take(self, path: Path) -> None:
        """Reads the samples of a file."""
        try:
            with open_regular(path) as file, zipfile.ZipFile(file) as archive:
                before = json.loads(archive.open(_ABOUT).read(1 << 24))
            ids, classes = np.array(before["ids"], np.int64), before["classes"]
            images = datasets.read(path).images
            if ids.min() < 0 or images.shape != (len(ids), *self.images.shape[1:]):
                raise TypeError
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RecursionError):
            raise ValueError(
                f"{path} cannot be read as samples: remove it, or choose another --samples-dir"
            ) from None
        check_about(self.folder, before, self.about, "--samples-dir")
        here = ids < len(self.there)  # another command may have drawn more
        ids = ids[here]
        if self.y is not None and not np.array_equal(self.y[ids], np.array(classes)[here]):
            raise ValueError(
                f"{self.folder} holds samples of other classes, which --samples, --seed and the "
                f"data decide; choose another --samples-dir"
            )
        self.images[ids], self.there[ids] = images[here], True


def check_about(folder: Path, before: Any, about: Mapping[str, Any], option: str) -> None:
    """ValueError if the samples in a folder were drawn with other settings than `about`."""
    for key, value in about.items():
        found = cast(Any, before).get(key) if isinstance(before, dict) else None
        if found != value:
            raise ValueError(
                f"{folder} holds samples of {key} {found}, not {value}; choose another {option}"
            )


def npz(images: Array, classes: Array | None, ids: Array) -> bytes:
    """Images (N, C, H, W) as a file that `datasets.read` takes."""
    arrays = {"images": images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)}
    if classes is not None and classes.min() >= 0:
        arrays["classes"] = classes
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, ids=ids)
    return buffer.getvalue()


def fingerprint(checkpoint: Checkpoint) -> str:
    """Eight digits that differ from those of another model."""
    # Not the schedule's repr, which has only its ends.
    schedule = dataclasses.astuple(cast(Any, checkpoint.schedule))
    about = (checkpoint.config, schedule, checkpoint.predicts, checkpoint.size)
    total = zlib.crc32(repr((*about, checkpoint.timestep_scale)).encode())
    for name in sorted(checkpoint.params):
        total = zlib.crc32(np.asarray(checkpoint.params[name]).tobytes(), total)
    return f"{total:08x}"
