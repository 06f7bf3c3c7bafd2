"""A run of `ddpm-core train` logs its loss and draws numbered samples."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from command import pixels, run
from training_runs import RESUME, Killed, files, status_of

from ddpm_core.cli import log

pytest_plugins = ("command_fixtures", "training_fixtures")
pytestmark = [pytest.mark.needs("torch"), pytest.mark.usefixtures("one_thread_of_processes")]


def test_numbered_samples(here, started):
    """Each sheet has its step's number and weights; the same weights give the same pictures."""
    run(*started, "--sample-every", 2, "--steps", 5)
    sheets = sorted(Path("run").glob("samples-*"))
    assert [sheet.name for sheet in sheets] == [f"samples-00000{n}.png" for n in (2, 4, 5)]
    assert len({sheet.read_bytes() for sheet in sheets}) == 3
    run(*started, "--out", "other", "--steps", 4)
    assert files("other")["samples-000004.png"] == files("run")["samples-000004.png"]
    run(*started, "--out", "still", "--sample-every", 2, "--steps", 4, "--lr", 1e-30)
    first, second = (pixels(f"still/samples-00000{n}.png") for n in (2, 4))
    np.testing.assert_array_equal(first, second)


def test_log(here, started, monkeypatch):
    """A row for each ten steps and each save: their mean loss, the learning rate, and the times."""
    from ddpm_core_torch.training import Trainer

    step, losses = Trainer.step, []
    monkeypatch.setattr(Trainer, "step", lambda self: losses.append(step(self)) or losses[-1])
    options = ["--save-every", 8, "--sample-every", 100, "--warmup", 16]
    run(*started, *options, "--steps", 12, "--lr", 0.32)
    rows = log.read(Path("run/log.csv"))
    assert [row.step for row in rows] == [8, 10, 12]
    assert [row.learning_rate for row in rows] == pytest.approx([0.16, 0.2, 0.24])
    losses = [step.loss for step in losses]
    means = [np.mean(losses[:8]), np.mean(losses[8:10]), np.mean(losses[10:])]
    assert [row.loss for row in rows] == pytest.approx(means, rel=1e-5)  # of six digits
    spent = rows[-1].seconds
    for row, first in zip(rows, (0, 8, 10), strict=True):
        assert (row.step - first) * 4 / row.images_per_second < spent + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("left", ["", "10,0.5", "9,0.5,1e-3,1.0,1.0\n10,", "\0\0\n", None])
def test_log_after_a_kill(here, started, through, monkeypatch, left):
    """Rows after the saved state, and part of one, are dropped; the others stay, each once."""
    from ddpm_core_torch.training import Trainer

    monkeypatch.setattr(log, "EVERY", 1)
    run(*started, "--out", "other", "--steps", 6)
    step = Trainer.step

    def killed(self):
        if self.done == 5:
            raise Killed
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(Killed):
            run(*started, "--steps", 6)
    path = Path("run/log.csv")
    assert [row.step for row in log.read(path)] == [1, 2, 3, 4, 5]
    if left is None:
        path.unlink()
    else:
        text = path.read_text()
        path.write_text(re.sub(r"\n4,(.*),.*\n", r"\n4,\1,1000.0\n", text) + left)
    run(*RESUME)
    whole = files("other")["log.csv"]
    if left is None:
        assert [row.step for row in log.read(path)] == [5, 6]
    else:
        assert files("run")["log.csv"] == whole
        assert [row.step for row in log.read(path) if row.seconds >= 1000] == [4, 5, 6]
    assert files("run") == through | {"log.csv": files("run")["log.csv"]}


def test_rows_before_the_state(here, started, monkeypatch):
    """When a state is written, the rows of its steps are in the log and on the disk."""
    from ddpm_core_torch.training import Trainer

    events, save, fsync = [], Trainer.save, os.fsync

    def saving(self, path):
        events.append([row.step for row in log.read(Path("run/log.csv"))])
        save(self, path)

    def syncing(file):
        if os.path.samestat(os.fstat(file), Path("run/log.csv").stat()):
            events.append("synced")
        fsync(file)

    monkeypatch.setattr(Trainer, "save", saving)
    run(*started, "--steps", 1)
    monkeypatch.setattr(os, "fsync", syncing)
    run(*RESUME, "--steps", 4)
    assert events == [[1], "synced", [1, 2], "synced", [1, 2, 4]]


def test_log_on_a_full_disk(here, capsys, started, monkeypatch):
    """A log that cannot be written is named."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    begin = log.Log.__init__

    def begun(self, path, *arguments):
        begin(self, path, *arguments)
        self._path = full

    monkeypatch.setattr(log.Log, "__init__", begun)
    assert status_of(*started, "--steps", 2) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "ddpm-core: /dev/full: No space left on device"
