"""`train` as several processes: one run in one folder, which any number of them resumes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import run
from training_runs import RESUME, files

from ddpm_core.checkpoints import load
from ddpm_core.cli import log

pytest_plugins = ("command_fixtures", "training_fixtures")
pytestmark = [
    pytest.mark.needs("torch"),
    pytest.mark.slow,  # each process imports torch
    pytest.mark.usefixtures("one_thread_of_processes"),
]


def start(*words: object) -> list[subprocess.Popen[str]]:
    """The command as two processes that a launcher started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "ddpm_core", *map(str, words)],
            env=os.environ | place | {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip


def ended(pair: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """How two processes ended, and what each said."""
    try:
        said = [one.communicate(timeout=120) for one in pair]
    finally:
        for one in pair:
            one.kill()
    return [(one.returncode, *each) for one, each in zip(pair, said, strict=True)]


@pytest.fixture
def two(here, started) -> dict[str, bytes]:
    """The files of a run of two processes without a stop."""
    (first, out, error), second = ended(start(*started, "--out", "two", "--steps", 6))
    assert (first, out) == (0, "two/model.safetensors: 6 steps; see two/samples-000006.png\n")
    assert "8 images of 4 x 4 x 1, 2 classes" in error
    assert "2 x cpu" in error
    assert second == (0, "", "")
    return files("two")


def test_two_processes_are_one_run(here, started, through, two):
    """The files of one process, to rounding; each number of processes resumes the other's run."""
    assert two.keys() == through.keys()
    run(*started, "--out", "one", "--steps", 6)
    assert files("one") == through
    for name, value in load("one").params.items():
        np.testing.assert_allclose(load("two").params[name], value, rtol=0, atol=1e-5)
    pairs = zip(log.read(Path("one/log.csv")), log.read(Path("two/log.csv")), strict=True)
    for alone, together in pairs:
        assert together.loss == pytest.approx(alone.loss, rel=1e-4)
    run("train", "--resume", "two", "--steps", 8)
    for status, *_ in ended(start("train", "--resume", "two", "--steps", 10)):
        assert status == 0
    assert load("two").notes["step"] == 10


def test_killed_in_the_middle(here, started, two):
    """After SIGKILL of both, at some moment, two processes end with the bytes of no kill."""
    pair = start(*started, "--steps", 6)
    while not any(Path("run").glob("state-*")):
        assert pair[0].poll() is None
        time.sleep(0.01)
    for one in pair:
        one.kill()
    ended(pair)
    assert [status for status, *_ in ended(start(*RESUME))] == [0, 0]
    assert files("run") == two


def test_signal(here, started):
    """SIGTERM to one process ends both, at one step that is saved."""
    pair = start(*started, "--steps", 100000, "--save-every", 100000, "--sample-every", 100000)
    while not Path("run/log.csv").exists() or not log.read(Path("run/log.csv")):
        assert pair[0].poll() is None
        time.sleep(0.01)
    pair[1].send_signal(signal.SIGTERM)
    (first, _, error), (second, _, quiet) = ended(pair)
    assert (first, second, quiet) == (0, 128 + signal.SIGTERM, "")
    (state,) = Path("run").glob("state-*")
    assert f"stopped: {state} holds step {int(state.stem[6:])}" in error
    assert load("run").notes["step"] == int(state.stem[6:])


def test_the_first_one_says_why(here, started):
    """What goes wrong in the first process is said once; the other ends with its status."""
    run(*started, "--steps", 2)
    (first, _, error), second = ended(start(*started, "--steps", 4))
    assert first == 2
    assert "holds a run already" in error
    assert second[0] == 2
    Path("run").rename("other")
    Path("run").write_text("a file")
    (first, _, error), second = ended(start(*started, "--steps", 4))
    assert first == 2
    assert error.startswith("ddpm-core: run: ")
    assert second == (2, "", "")
