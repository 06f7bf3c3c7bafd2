"""`log.csv` of a run: how the loss fell, how fast, and how long it took."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ddpm_core.checkpoints.files import open_regular, write_whole

if TYPE_CHECKING:
    from ddpm_core_torch.training import Step, Trainer

EVERY = 10  #: steps to a row


class Row(NamedTuple):
    """What a log says of some steps.

    step: the last of the row's; loss: their mean
    loss_1 .. loss_4: the mean at each quarter of the training levels, the noisiest first; NaN if
        none of a quarter was drawn
    gradient_norm: the mean, before gradients are clipped
    seconds: from the begin of the run, working
    """

    step: int
    loss: float
    loss_1: float
    loss_2: float
    loss_3: float
    loss_4: float
    gradient_norm: float
    learning_rate: float
    images_per_second: float
    seconds: float


_FORMATS = ("d", *(".6g",) * 7, ".1f", ".1f")


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

    follow: what is called with each row

    `write` ends a row early, and waits until all rows are on the disk: called before each save, it
    lets no saved step be missing. `go_on` is called when the other work after a step is done. Rows
    after the trainer's step, of a run that was killed, are dropped first.
    """

    def __init__(
        self, path: Path, trainer: Trainer, follow: Callable[[Row], object] = lambda row: None
    ) -> None:
        rows = read(path) if path.exists() else []
        kept = [row for row in rows if row.step <= trainer.done]
        lines = [",".join(Row._fields) + "\n", *(_line(row) for row in kept)]
        write_whole(path, "".join(lines).encode())
        self._path, self._trainer, self._follow = path, trainer, follow
        self._began = time.monotonic() - (kept[-1].seconds if kept else 0.0)
        times = np.arange(1, 4) * trainer.schedule.T / 4
        self._edges = np.asarray(trainer.schedule(times[::-1]).logsnr)  # the noisiest first
        self._steps: list[Step] = []
        self._spent = 0.0
        self.go_on()

    def step(self, step: Step) -> None:
        self._spent += time.perf_counter() - self._mark
        self._steps.append(step)
        if step.number % EVERY == 0:
            self._end_row()

    def go_on(self, step: Step | None = None) -> None:
        self._mark = time.perf_counter()

    def write(self) -> None:
        self._end_row()
        with self._path.open("rb+") as file:
            os.fsync(file.fileno())

    def _end_row(self) -> None:
        if not self._steps:
            return
        trainer, count = self._trainer, len(self._steps)
        row = Row(
            trainer.done,
            sum(step.loss for step in self._steps) / count,
            **self._quarters(),
            gradient_norm=sum(step.gradient_norm for step in self._steps) / count,
            learning_rate=trainer.recipe.rate(trainer.done - 1),
            images_per_second=count * trainer.recipe.batch / self._spent,
            seconds=time.monotonic() - self._began,
        )
        try:
            with self._path.open("ab") as file:
                file.write(_line(row).encode())
        except OSError as error:  # one of a full disk names no file
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        self._steps, self._spent = [], 0.0
        self._follow(row)

    def _quarters(self) -> dict[str, float]:
        losses = np.concatenate([step.losses for step in self._steps])
        logsnr = np.concatenate([step.logsnr for step in self._steps])
        quarter = np.searchsorted(self._edges, logsnr, side="right")  # times above 3 T / 4 are in 0
        parts = (losses[quarter == k] for k in range(4))
        return {
            f"loss_{k}": float(part.mean()) if len(part) else math.nan
            for k, part in enumerate(parts, start=1)
        }


def _line(row: Row) -> str:
    return ",".join(format(*pair) for pair in zip(row, _FORMATS, strict=True)) + "\n"
