"""The states of a run: a damaged one is passed over, and a kill at any call loses no step."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from command import fails, run
from training_runs import RESUME, files, status_of

pytest_plugins = ("command_fixtures", "training_fixtures")
pytestmark = [pytest.mark.needs("torch"), pytest.mark.usefixtures("one_thread_of_processes")]


@pytest.mark.parametrize("how", ["a byte", "cut", "empty"])
def test_damaged_state(here, started, through, capsys, how):
    """The state before a damaged one is taken, with a warning; the run ends as if undamaged."""
    run(*started, "--steps", 4)
    path = Path("run/state-000004.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes({"a byte": data, "cut": data[:-9], "empty": b""}[how])
    capsys.readouterr()
    run(*RESUME, "--steps", 6)
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if path.name in line] == [said[0]]
    assert said[0].endswith("; the state before it was taken")
    assert "run goes on after step 2" in said[1]
    found = files("run")
    del found["state-000004.damaged"], found["samples-000004.png"]  # of the last step then
    assert found == through


def test_all_states_are_damaged(here, started, capsys):
    """A run without a whole state is refused, and nothing of it is changed."""
    run(*started, "--steps", 4)
    for path in Path("run").glob("state-*"):
        path.write_bytes(b"")
    before = files("run")
    assert "no state of run can be read: run/state-000004.safetensors" in fails(capsys, *RESUME)
    assert files("run") == before


def test_kept_states(here, started):
    run(*started, "--steps", 6, "--keep", 1)
    assert [path.name for path in Path("run").glob("state-*")] == ["state-000006.safetensors"]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_warning_of_a_batch_system(here, started, monkeypatch, name):
    """The signal that comes before the end of a job's time saves and ends the run."""
    from ddpm_core_torch.training import Trainer

    step, number = Trainer.step, getattr(signal, name)

    def warned(self):
        if self.done == 2:
            signal.raise_signal(number)
        return step(self)

    monkeypatch.setattr(Trainer, "step", warned)
    assert status_of(*started, "--steps", 6) == 128 + number
    assert Path("run/state-000003.safetensors").exists()


def test_what_may_change(here, started, capsys):
    """How a run works may change when it goes on; what it trains may not."""
    run(*started, "--steps", 2)
    run(*RESUME, "--steps", 4, "--accumulate", 2, "--keep", 3, "--device", "cpu")
    stored = tomllib.loads(Path("run/run.toml").read_text())
    assert (stored["accumulate"], stored["keep"]) == (2, 3)
    changed = {"--objective": "p2", "--levels": "important", "--ema": 0.9, "--held-out": 0.5}
    for option, value in changed.items():
        assert f"{option} was" in fails(capsys, *RESUME, option, value)


EACH = 17  # calls from one kill to the next

KILLED = """
import json, os, pathlib, signal, sys
from ddpm_core.cli import app
import accelerate, safetensors.numpy, PIL.Image, ddpm_core_torch.training

def forked(work):
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        try:
            os._exit(work())
        except BaseException:
            os._exit(99)
    return os.waitpid(child, 0)[1]

def killed(at, command):
    count = 0
    def patch(owner, name):
        call = getattr(owner, name)
        def counted(*arguments, **named):
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)
        setattr(owner, name, counted)
    for name in ("open", "fsync", "replace", "unlink", "mkdir", "write", "ftruncate", "close"):
        patch(os, name)
    patch(pathlib.Path, "open")
    return app.run(command)

start, resume = json.loads(sys.argv[1]), ["train", "--resume", "run"]
at, each = int(sys.argv[2]), int(sys.argv[3])
ended = -1
while ended != 0:
    ended = forked(lambda: killed(at, start + ["--out", f"{at}/run"]))
    assert ended in (0, signal.SIGKILL), ended
    begun = os.path.exists(f"{at}/run/run.toml")
    again = ["train", "--resume", f"{at}/run"] if begun else start + ["--out", f"{at}/run"]
    assert forked(lambda: app.run(again)) == 0, at
    at += each
print(at)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_at_any_call(here, started, through):
    """SIGKILL before a call that opens, writes, syncs, renames or removes a file, of every 17th.

    With EACH = 1 it is of each call, which takes minutes, and passes too.
    """
    command = [str(word) for word in started]
    place = command.index("--out")
    command = [*command[:place], *command[place + 2 :], "--steps", "6"]
    code = ["-c", KILLED, json.dumps(command)]
    halves = [
        subprocess.Popen(
            [sys.executable, *code, str(first), str(2 * EACH)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for first in (1, 1 + EACH)
    ]
    for half in halves:
        _, error = half.communicate(timeout=500)
        assert half.returncode == 0, error.decode()
    every = sorted(int(path.name) for path in here.iterdir())
    assert every == list(range(1, every[-1] + 1, EACH))
    assert every[-1] > 50  # calls of a run of three saves and a picture
    for at in every:
        assert files(f"{at}/run") == through, at
