"""What is kept in a folder, batch by batch, and what it was computed with."""

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
from ddpm_core.checkpoints.fields import cut
from ddpm_core.checkpoints.files import open_regular, write_whole
from ddpm_core.cli import processes
from ddpm_core.cli.datasets.arrays import read_arrays
from ddpm_core.typing import Array

PATIENCE = 3600.0  #: seconds without a new file, after which other processes are not waited for
_ABOUT = "about.json"  #: in each file, beside the arrays
_MOST = 1 << 22  #: bytes of it, of which 200,000 samples take less


class Kept:
    """Arrays of the ids 0 .. count - 1, which come batch by batch.

    With a folder each batch is a file: a kill loses one batch, and other processes bring theirs.

    folder: None keeps them in memory alone
    what: they are, in the plural: the first word of the files' names
    about: what they are computed with, as JSON has it
    arrays: (count, ...) each, to be filled
    given: (count, ...) each, which a file must agree with

    ValueError if the folder has what was computed with other settings, or cannot be read.
    """

    def __init__(
        self,
        folder: Path | None,
        what: str,
        about: Mapping[str, Any],
        arrays: dict[str, Array],
        given: Mapping[str, Array] | None = None,
    ) -> None:
        self.folder, self.what, self.about = folder, what, about
        self.arrays, self.given = arrays, dict(given or {})
        self.there = np.zeros(len(next(iter(arrays.values()))), bool)
        self._known: set[Path] = set()
        self.collect()

    def lacking(self, batch: int) -> Array:
        """The ids that are not there: with a folder those of this process's share, else all."""
        ids = np.arange(len(self.there))
        own = ids if self.folder is None else processes.share(ids, batch)
        return own[~self.there[own]]

    def add(self, ids: Array, **arrays: Array) -> None:
        """A batch, which is written whole, or not at all."""
        for name, array in arrays.items():
            self.arrays[name][ids] = array
        self.there[ids] = True
        if self.folder is None:
            return
        self.folder.mkdir(exist_ok=True)
        given = {name: array[ids] for name, array in self.given.items()}
        buffer = io.BytesIO(_npz(**arrays, **given, ids=ids))
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(_ABOUT, json.dumps(dict(self.about)))
        write_whole(self.folder / f"{self.what}-{ids[0]:08d}.npz", buffer.getvalue())

    def collect(self) -> bool:
        """Reads the files that are new, of this process and of others; says if there were any."""
        if self.folder is None:
            return False
        pattern = re.compile(rf"{self.what}-\d{{8}}\.npz")
        there = {path for path in self.folder.glob("*.npz") if pattern.fullmatch(path.name)}
        for path in sorted(there - self._known):
            self._take(self.folder, path)
        found = there > self._known
        self._known |= there
        return found

    def wait(self) -> dict[str, Array]:
        """The arrays, once what other processes bring has come too.

        ValueError if nothing comes for `PATIENCE` seconds.
        """
        self.collect()
        if not self.there.all() and processes.process().rank == 0:
            typer.echo(f"Waiting for the {self.what} of the other processes", err=True)
        last = time.monotonic()
        while not self.there.all():
            time.sleep(min(0.5, PATIENCE))
            if self.collect():
                last = time.monotonic()
            elif time.monotonic() - last > PATIENCE:
                raise ValueError(
                    f"{self.folder} lacks {np.sum(~self.there)} of {len(self.there)} {self.what}, "
                    f"and none came in {PATIENCE:g} seconds: has a process ended early, or does a "
                    f"batch take longer? The same command, run again, computes only those; a "
                    f"smaller --batch comes sooner"
                )
        return self.arrays

    def _take(self, folder: Path, path: Path) -> None:
        """Reads a file."""
        unreadable = ValueError(
            f"{path} cannot be read as {self.what}: remove it, or choose another --work-dir"
        )
        with open_regular(path) as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    before = json.loads(archive.open(_ABOUT).read(_MOST))
            except MemoryError:
                raise
            except Exception:  # of whatever is wrong with a foreign file
                raise unreadable from None
        check_about(folder, before, self.about, self.what, "--work-dir")
        wanted = {**self.arrays, **self.given}
        try:
            found = read_arrays(path, "ids", *wanted)
        except ValueError:
            raise unreadable from None
        ids = found.get("ids", np.zeros(()))
        fits = ids.ndim == 1 and ids.dtype.kind == "i" and ids.min(initial=0) >= 0
        if not fits or any(
            name not in found
            or found[name].dtype != array.dtype
            or found[name].shape != (len(ids), *array.shape[1:])
            for name, array in wanted.items()
        ):
            raise unreadable
        here = ids < len(self.there)  # another command may have computed more
        ids = ids[here]
        for name, array in self.given.items():
            if not np.array_equal(array[ids], found[name][here]):
                raise ValueError(
                    f"{folder} holds {self.what} of other {name}, which --samples, --seed and the "
                    f"data decide; choose another --work-dir"
                )
        for name, array in self.arrays.items():
            array[ids] = found[name][here]
        self.there[ids] = True


def check_about(
    folder: Path, before: Any, about: Mapping[str, Any], what: str, option: str
) -> None:
    """ValueError if what is in a folder was computed with other settings than `about`."""
    for key, value in about.items():
        found = cast(Any, before).get(key) if isinstance(before, dict) else None
        if found != value:
            raise ValueError(
                f"{folder} holds {what} of {key} {cut(found)}, not {value}; choose another {option}"
            )


def npz(images: Array, classes: Array | None, ids: Array) -> bytes:
    """Images (N, C, H, W) as a file that `datasets.read` takes."""
    arrays = {"images": images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)}
    if classes is not None and classes.min() >= 0:
        arrays["classes"] = classes
    return _npz(**arrays, ids=ids)


def _npz(**arrays: Array) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
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
