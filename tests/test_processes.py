"""Several processes of one command: each does its share, and together they do the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command import fails, run, several
from hypothesis import given
from hypothesis import strategies as st

from ddpm_core.cli import processes
from ddpm_core.cli.options import open_backend
from ddpm_core.cli.processes import process, share

pytest_plugins = "command_fixtures"
pytestmark = pytest.mark.usefixtures("one_thread_of_processes")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@given(count=st.integers(0, 60), batch=st.integers(1, 20), world=st.integers(1, 6))
def test_shares_are_the_whole(count, batch, world):
    """Each id is in one share, and the batches of the shares are those of one process."""
    ids = 7 + np.arange(count)
    shares = []
    for rank in range(world):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RANK", str(rank))
            environment.setenv("WORLD_SIZE", str(world))
            own = share(ids, batch)
        shares += [tuple(own[at : at + batch]) for at in range(0, len(own), batch)]
    assert sorted(shares) == [tuple(ids[at : at + batch]) for at in range(0, count, batch)]


def test_process(monkeypatch):
    assert process() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    for world in (None, "1", "-2", "two", ""):
        if world is not None:
            monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(
            ValueError, match=r"has RANK, 0 .. WORLD_SIZE - 1.* here they are 1 and"
        ):
            process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process() == (1, 2)


def test_each_process_has_its_gpu(monkeypatch):
    """cuda is the GPU of LOCAL_RANK; a GPU that is named, or another device, stays."""
    assert processes.own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [processes.own_device(d) for d in ("cuda", "cuda:1", "cpu", None)] == [
        "cuda:3", "cuda:1", "cpu", None,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no device 'cuda:3'"):
        open_backend("numpy", "cuda")


@pytest.mark.slow
def test_samples_are_shared(here, model):
    """Two processes write the files of one, each file once and to the bit; one sums up."""
    words = ["sample", "--model", model, "--steps", 2, "--count", 11, "--batch", 2]
    run(*words, "--out-dir", "one")
    first, second = several(2, *words, "--out-dir", "two")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "Wrote 6 pictures in two, the share of one of 2 processes: 11 images" in first.stdout
    assert (second.stdout, second.stderr) == ("", "")
    for path in Path("one").iterdir():
        assert path.read_bytes() == (Path("two") / path.name).read_bytes()
    assert len(list(Path("two").iterdir())) == 12

    for i in (0, 5):
        Path(f"two/{i:08}.png").unlink()
    again = several(2, *words, "--out-dir", "two", "--resume")
    assert "Wrote 2 pictures in two, where 4 were already" in again[0].stdout
    assert again[1].returncode == 0
    assert Path("two/00000005.png").read_bytes() == Path("one/00000005.png").read_bytes()


def test_processes_write_no_one_file(here, model, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for out in ([], ["--out", "a.npz"], ["--gif", "a.gif"]):
        said = fails(capsys, "sample", "--model", model, *out)
        assert "2 processes cannot write one file: pass --out-dir" in said
    assert list(here.iterdir()) == []
