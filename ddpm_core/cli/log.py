"""`log.csv` of a run: how the loss fell, how fast, and how long it took."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ddpm_core.checkpoints.files import open_regular, write_whole

if TYPE_CHECKING:
    from ddpm_core_torch.training import Trainer

EVERY = 10  #: steps to a row


class Row(NamedTuple):
    """step: the last of the row's; loss: their mean; seconds: from the begin of the run, working"""

    step: int
    loss: float
    learning_rate: float
    images_per_second: float
    seconds: float


def read(path: Path) -> list[Row]:
    """The rows of a log, up to the first that is not whole."""
    with open_regular(path) as file:
        lines = file.read().decode(errors="replace").split("\n")
    rows: list[Row] = []
    for line in lines[1:]:
        try:
            step, *others = line.split(",")
            rows.append(Row(int(step), *(float(word) for word in others)))
        except (ValueError, TypeError):
            break
    return rows


class Log:
    """Takes a trainer's steps, and writes a row for each ten of them.

    `write` ends a row early, and waits until all rows are on the disk: called before each save, it
    lets no saved step be missing. Rows after the trainer's step, of a run that was killed, are
    dropped first.
    """

    def __init__(self, path: Path, trainer: Trainer) -> None:
        rows = read(path) if path.exists() else []
        kept = [row for row in rows if row.step <= trainer.done]
        lines = [",".join(Row._fields) + "\n", *(_line(row) for row in kept)]
        write_whole(path, "".join(lines).encode())
        self._path, self._trainer = path, trainer
        self._began = time.monotonic() - (kept[-1].seconds if kept else 0.0)
        self._losses, self._spent = list[float](), 0.0

    def step(self) -> None:
        began = time.perf_counter()
        self._losses.append(self._trainer.step())
        self._spent += time.perf_counter() - began
        if self._trainer.done % EVERY == 0:
            self._end_row()

    def write(self) -> None:
        self._end_row()
        with self._path.open("rb+") as file:
            os.fsync(file.fileno())

    def _end_row(self) -> None:
        if not self._losses:
            return
        trainer, count = self._trainer, len(self._losses)
        row = Row(
            trainer.done,
            sum(self._losses) / count,
            trainer.optimiser.param_groups[0]["lr"],
            count * trainer.recipe.batch / self._spent,
            time.monotonic() - self._began,
        )
        try:
            with self._path.open("ab") as file:
                file.write(_line(row).encode())
        except OSError as error:  # one of a full disk names no file
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        self._losses, self._spent = [], 0.0


def _line(row: Row) -> str:
    step, loss, rate, speed, seconds = row
    return f"{step},{loss:.6g},{rate:.6g},{speed:.1f},{seconds:.1f}\n"
