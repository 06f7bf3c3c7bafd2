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
from ddpm_core.cli.processes import blocks, process, share

pytest_plugins = "command_fixtures"
pytestmark = pytest.mark.usefixtures("one_thread_of_processes")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@given(first=st.integers(0, 40), count=st.integers(0, 60), size=st.integers(1, 20))
def test_blocks_do_not_depend_on_the_first_id(first, count, size):
    """Those of some ids are those of all ids, less what was not asked for; also where ids lack."""
    ids = first + np.arange(count)
    for some in (ids, ids[ids % 7 > 2]):
        wanted = ([i for i in some if k * size <= i < (k + 1) * size] for k in range(101))
        assert [part.tolist() for part in blocks(some, size)] == [part for part in wanted if part]


@given(count=st.integers(0, 60), batch=st.integers(1, 20), world=st.integers(1, 6))
def test_shares_are_the_whole(count, batch, world):
    """Each id is in one share, and the batches of the shares are those of one process."""
    ids = 7 + np.arange(count)
    shares = []
    for rank in range(world):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RANK", str(rank))
            environment.setenv("WORLD_SIZE", str(world))
            shares += [part.tolist() for part in blocks(share(ids, batch), batch)]
    assert sorted(shares) == [part.tolist() for part in blocks(ids, batch)]


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


@pytest.mark.needs("torch")
def test_a_picture_is_of_its_batch(here, model, monkeypatch):
    """Whatever ids are asked for, the network sees an image beside the same others, to the bit."""
    from ddpm_core_torch import Torch

    seen = []
    asarray = Torch.asarray

    def recorded(self, a, dtype=None):
        if dtype is self.xp.int32:
            seen.append(a.tolist())
        return asarray(self, a, dtype)

    monkeypatch.setattr(Torch, "asarray", recorded)
    words = ["sample", "--model", model, "--steps", 1, "--batch", 4, "--backend", "torch"]
    run(*words, "--count", 11, "--out-dir", "all")
    whole = [list(range(k, k + 4)) for k in (0, 4, 8)]
    assert seen == whole
    seen.clear()
    run(*words, "--ids", "6:10", "--out-dir", "some")
    assert seen == whole[1:]
    seen.clear()
    run(*words, "--ids", f"{2**31 - 2}:{2**31}", "--batch", 3, "--out-dir", "last")
    assert seen == [[2**31 - 2, 2**31 - 1]]
    assert len(list(Path("last").glob("*.png"))) == 2
    for i in range(6, 10):
        assert Path(f"some/{i:08}.png").read_bytes() == Path(f"all/{i:08}.png").read_bytes()


def test_processes_write_no_one_file(here, model, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for out in ([], ["--out", "a.npz"], ["--gif", "a.gif"]):
        said = fails(capsys, "sample", "--model", model, *out)
        assert "2 processes cannot write one file: pass --out-dir" in said
    assert list(here.iterdir()) == []
