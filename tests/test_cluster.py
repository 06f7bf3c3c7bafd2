"""`sample --scheduler`: the workers of a dask scheduler draw what one process does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import readme
from command import COMMAND, fails, run

pytest_plugins = "command_fixtures"
pytestmark = pytest.mark.usefixtures("one_thread_of_processes")

WORDS = "sample --shards npz --batch 8"
PATIENCE = 30.0  #: seconds


class Cluster:
    """The scheduler and the two workers that docs/many.md starts, on this machine."""

    def __init__(self, running: ExitStack) -> None:
        from distributed import Client

        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        self.address = f"tcp://localhost:{port}"
        page = readme.blocks("console", readme.ROOT / "docs" / "many.md")
        lines = "".join(page).replace("node1", "localhost").replace("8786", port).splitlines()
        for line in lines:
            if line.startswith("$ dask"):
                process = subprocess.Popen(
                    [sys.executable, "-m", *line.split()[1:]], stderr=subprocess.DEVNULL
                )
                running.callback(process.wait)
                running.callback(process.terminate)
        self.client = running.enter_context(Client(self.address, set_as_default=False))
        self.client.wait_for_workers(2, PATIENCE)
        self.pids = list(self.client.run(os.getpid).values())

    def tasks(self) -> tuple[int, int]:
        """How many the scheduler knows, and how many run."""
        known = self.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        run = self.client.run(lambda dask_worker: len(dask_worker.active_threads))
        return known, sum(run.values())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as environment, ExitStack() as running:
        environment.setenv("OMP_NUM_THREADS", "1")
        yield Cluster(running)


def begun(*words: object) -> subprocess.Popen[str]:
    """The command."""
    return subprocess.Popen(
        [COMMAND, *map(str, words)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.needs("distributed")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_worker_that_is_killed(here, model, cluster):
    """Every image is there, once, and to the bit what one process draws."""
    words = [*WORDS.split(), "--shard-size", 16, "--model", model, "--steps", 20, "--count", 150]
    drawing = begun(*words, "--out-dir", "d", "--scheduler", cluster.address)
    until(lambda: any(Path("d").glob("*.npz")))
    os.kill(cluster.pids[0], signal.SIGKILL)
    assert len(list(Path("d").glob("*.npz"))) < 10
    out, err = drawing.communicate(timeout=PATIENCE)
    assert drawing.returncode == 0, err
    assert out.startswith("Wrote 10 shards in d: 150 images")
    run(*words, "--out-dir", "e")
    for path in Path("e").iterdir():
        assert Path("d", path.name).read_bytes() == path.read_bytes()
    assert len(list(Path("d").iterdir())) == 10 + 1
    until(lambda: cluster.tasks() == (0, 0))


@pytest.mark.slow
@pytest.mark.needs("distributed")
def test_an_interrupt_ends_the_tasks(here, model, cluster):
    """Also those that run, and would run for minutes: after their batch."""
    words = [*WORDS.split(), "--model", model, "--steps", 100, "--count", 100_000]
    drawing = begun(*words, "--out-dir", "d", "--scheduler", cluster.address)
    until(lambda: cluster.tasks()[1] == 2)
    drawing.send_signal(signal.SIGINT)
    _, err = drawing.communicate(timeout=PATIENCE)
    assert (drawing.returncode, err) == (130, "ddpm-core: interrupted\n")
    until(lambda: cluster.tasks() == (0, 0))


@pytest.mark.slow
@pytest.mark.needs("distributed")
def test_errors_of_workers(here, model, cluster, capsys):
    """They are those that one process gives."""
    words = [*WORDS.split(), "--model", model, "--out-dir", "d", "--scheduler", cluster.address]
    words += ["--count", 8]
    said = fails(capsys, *words, "--device", "cuda")
    assert "NumPy has no device 'cuda'" in said
    said = fails(capsys, *words, "--backend", "none")
    assert f"{cluster.address} did not draw 00000000-00000007.npz (LookupError: no backend" in said
    assert list(here.iterdir()) == []


def test_bad_schedulers(here, model, capsys, monkeypatch):
    words = [*WORDS.split(), "--model", model, "--out-dir", "d", "--scheduler"]
    monkeypatch.setitem(sys.modules, "distributed", None)
    said = "--scheduler needs distributed: pip install 'ddpm-core[dask]'"
    assert said in fails(capsys, *words, "tcp://localhost:8786")
    said = "--scheduler must be an address, such as node1:8786, but is 'node1'"
    assert said in fails(capsys, *words, "node1")
    said = "--scheduler does nothing without --shards"
    assert said in fails(capsys, "sample", *words[-5:], "node1:8786")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = "--scheduler takes one process, but torchrun started 2"
    assert said in fails(capsys, *words, "node1:8786")
    assert list(here.iterdir()) == []
