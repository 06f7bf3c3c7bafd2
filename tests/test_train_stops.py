"""A run of `ddpm-core train` survives kills, signals, full disks and a second trainer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from command import executable, fails, run
from training_runs import RESUME, SMALL, Killed, files, status_of

from ddpm_core.checkpoints import load
from ddpm_core.cli import log, runs, stops

pytest_plugins = ("command_fixtures", "training_fixtures")
pytestmark = [pytest.mark.needs("torch"), pytest.mark.usefixtures("one_thread_of_processes")]


@pytest.mark.needs("torch")
@pytest.mark.parametrize("saved", [0, 2])
def test_diverging(here, started, capsys, monkeypatch, saved):
    """Weights that one step made useless are not saved, and what was saved before stays."""
    options = [*started, "--save-every", 1]
    if saved:
        run(*options, "--steps", saved)
        options = RESUME
    before = files("run") if saved else {}
    capsys.readouterr()
    status = status_of(*options, "--lr", "1e30", "--steps", saved + 1)
    assert status == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert f"the weights of step {saved + 1} give a loss of" in last
    assert (
        f"{'run/state-000002.safetensors stays' if saved else 'no state was saved yet'}; a" in last
    )
    after = files("run")
    assert after == before | {name: after[name] for name in ("run.toml", "log.csv")}


@pytest.mark.slow
@pytest.mark.parametrize("at", range(1, 10))
def test_killed_between_writes(here, started, through, monkeypatch, at):
    """A run that ends before any of its nine renames is resumed to the same bytes, each file's."""
    replace, calls = os.replace, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise Killed
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            run(*started, "--steps", 6)
    run(*(RESUME if at > 1 else [*started, "--steps", 6]))
    assert files("run") == through
    assert at < 9 or len(calls) == 9


KILLED = """
import os, sys
from ddpm_core.cli import app
replace, calls = os.replace, []
def killed(*arguments):
    calls.append(arguments)
    if len(calls) == 6:
        os._exit(9)
    replace(*arguments)
os.replace = killed
app.run(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_process(here, started, through, capsys):
    """What a killed process leaves, half a file and a lock, is in the way of no other."""
    command = [*started, "--steps", 6]
    ran = subprocess.run([sys.executable, "-c", KILLED, *map(str, command)], capture_output=True)
    assert ran.returncode == 9
    assert len(files("run")) == 7  # options, log, two states, model, a part of it, and .lock
    run(*RESUME)
    assert "run goes on after step 4; wrote model.safetensors again" in capsys.readouterr().err
    assert files("run") == through


@pytest.fixture
def interruptible():
    """SIGINT interrupts, also where whoever started the tests ignores it, as a shell's `&` does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def signalled(monkeypatch, interruptible):
    """Sends this process signals during the third step of a run."""
    from ddpm_core_torch.training import Trainer

    step = Trainer.step

    def sending(*numbers):
        def step_and_send(self):
            value = step(self)
            for number in numbers if self.done == 3 else ():
                signal.raise_signal(number)
            return value

        monkeypatch.setattr(Trainer, "step", step_and_send)

    return sending


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_save(here, started, through, capsys, signalled, name):
    """A signal ends a run after its step, saved, with the status of that signal."""
    number = getattr(signal, name, None) or pytest.skip(f"no {name} here")
    before = signal.signal(number, signal.default_int_handler)
    try:
        signalled(number)
        assert status_of(*started, "--steps", 6) == 128 + number
        assert signal.getsignal(number) is signal.default_int_handler
        *_, last = capsys.readouterr().err.splitlines()
        assert last == "stopped: run/state-000003.safetensors holds step 3; --resume run goes on"
        assert sorted(files("run")) == [
            "log.csv",
            "model.safetensors",
            "run.toml",
            "state-000002.safetensors",
            "state-000003.safetensors",
        ]
        assert load("run/model.safetensors").notes["step"] == 3
        signalled()
        run(*RESUME)
        assert [row.step for row in log.read(Path("run/log.csv"))] == [2, 3, 4, 6]
        assert files("run") == through | {"log.csv": files("run")["log.csv"]}
    finally:
        signal.signal(number, before)


def test_signal_after_a_step(here, started, monkeypatch, interruptible):
    """A signal that comes when a step is over, and was not due to be saved, still saves it."""

    class Bar:
        count = 0

        def advance(self, note):
            self.count += 1
            if self.count == 3:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(runs, "progress", lambda *_, **__: nullcontext(Bar()))
    assert status_of(*started, "--steps", 6) == 130
    assert load("run/model.safetensors").notes["step"] == 3


def test_second_signal(here, started, signalled):
    """A second signal does not wait for the step to be saved."""
    signalled(signal.SIGINT, signal.SIGINT)
    assert status_of(*started, "--steps", 6) == 130
    assert sorted(files("run")) == [
        "log.csv",
        "model.safetensors",
        "run.toml",
        "state-000002.safetensors",
    ]
    assert load("run/model.safetensors").notes["step"] == 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_nohup(here, started, through, signalled):
    """A signal that is ignored stays so, as under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signalled(signal.SIGHUP)
        run(*started, "--steps", 6)
        assert files("run") == through
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_trainer_a_folder(here, started, capsys):
    """While one trainer has a folder, another is refused with the pid of the first."""
    Path("run").mkdir()
    with stops.locked(Path("run")):
        said = fails(capsys, *started, "--steps", 1)
        assert f"run is in use by process {os.getpid()}: wait for it, or pass another" in said
        assert list(files("run")) == [".lock"]
    assert files("run") == {}
    Path("run/.lock").write_text("1")  # of a process that was killed
    run(*started, "--steps", 1)
    assert ".lock" not in files("run")


def test_no_locks(here, started, capsys, monkeypatch):
    """A file system without locks is named as such; no other process is blamed."""

    def refuse(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(stops, "_lock", refuse)
    said = fails(capsys, *started, "--steps", 1)
    assert "run/.lock: cannot be locked on this file system (No locks available)" in said


def test_lock_that_vanishes(here, monkeypatch):
    """A lock on a file that its last owner just removed is not taken for one."""
    lock, calls = stops._lock, []

    def late(file):
        calls.append(file)
        if len(calls) == 1:
            Path(".lock").unlink()
        lock(file)

    monkeypatch.setattr(stops, "_lock", late)
    with stops.locked(Path()), pytest.raises(ValueError, match="in use"), stops.locked(Path()):
        pass
    assert len(calls) == 3


@pytest.mark.needs("torch")
@pytest.mark.slow
def test_no_space_while_training(tmp_path, photos):
    """With no space left for the state of a run: one line, no half-written file."""
    pytest.importorskip("resource")
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 1]
    ran = executable("train", *options, cwd=tmp_path, limit=4000)
    assert ran.returncode == 2
    *_, last = ran.stderr.splitlines()
    assert last == "ddpm-core: run/state-000001.safetensors: File too large"
    assert sorted(files(tmp_path / "run")) == ["log.csv", "run.toml"]
