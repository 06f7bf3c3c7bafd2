"""A run of `ddpm-core train` goes on with the options that it began with."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import struct
import sys
import tempfile
import tomllib
import zlib
from pathlib import Path

import numpy as np
import pytest
from command import fails, run
from hypothesis import example, given
from hypothesis import strategies as st
from training_runs import RESUME, files

from ddpm_core.checkpoints import load, save
from ddpm_core.cli import toml

pytest_plugins = ("command_fixtures", "training_fixtures")
pytestmark = [pytest.mark.needs("torch"), pytest.mark.usefixtures("one_thread_of_processes")]


@pytest.fixture
def finished(here, through) -> None:
    """The run of `through`, in ./run."""
    Path("run").mkdir()
    for name, data in through.items():
        Path("run", name).write_bytes(data)


@pytest.mark.parametrize("lost", ["model.safetensors", "samples-000006.png"])
@pytest.mark.parametrize("how", ["missing", "older", "broken", "odd"])
def test_finished_run_is_refreshed(finished, started, through, capsys, lost, how):
    """Resuming a finished run writes what is missing or old, says so, and changes nothing else."""
    path = Path("run", lost)
    if how == "older":
        run(*started, "--out", "other", "--steps", 2)
        Path("other", lost.replace("6", "2")).replace(path)
    elif how == "broken":
        path.write_bytes(b"")
    elif how == "odd" and lost.endswith(".png"):  # Pillow refuses so many pixels
        image = zlib.compress(bytes(10))
        head = struct.pack(">2I5B", 10**5, 10**5, 8, 0, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", image))
        parts = [
            struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
            for n, d in chunks
        ]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    elif how == "odd":
        save(path, dataclasses.replace(load(path), notes={"step": math.inf}))
    else:
        path.unlink()
    capsys.readouterr()
    run(*RESUME)
    assert capsys.readouterr() == (f"run has done its 6 steps already; wrote {lost} again\n", "")
    assert files("run") == through


def test_finished_run(finished, through, capsys):
    """Resuming a finished run with nothing amiss writes nothing; fewer steps are refused."""
    run(*RESUME)
    assert capsys.readouterr() == ("run has done its 6 steps already\n", "")
    said = fails(capsys, *RESUME, "--steps", 4)
    assert "--steps counts all steps of a run: run has done 6 already, and --steps is 4" in said
    assert files("run") == through


def test_other_options(here, started, through, capsys):
    """Resuming with other options names each, with both values; some may change, and are kept."""
    run(*started, "--steps", 2)
    before = files("run")
    other = ["--widths", "8,16", "--batch", 3, "--learn-variance", "--predicts", "v", "--T", 5]
    other += ["--precision", "bfloat16", "--size", 4, "--out", "other", "--groups", 4]
    said = fails(capsys, *RESUME, *other)
    assert "run is another run: " in said
    for told in (
        "--widths was 8,8 and is 8,16",
        "--batch was 4 and is 3",
        "--learn-variance was False and is True",
        "--predicts was eps and is v",
        "--T was 4 and is 5",
        "--precision was float32 and is bfloat16",
        "--size was not given and is 4",
        "--out was run and is other",
    ):
        assert told in said
    assert "--groups" not in said
    assert "pass one of them" in fails(capsys, *RESUME, "--config", "run/run.toml")
    assert files("run") == before
    changed = {"steps": 6, "lr": 1e-3, "device": "cpu", "save_every": 4, "sample_every": 3}
    run(*RESUME, *(word for k, v in changed.items() for word in (f"--{k.replace('_', '-')}", v)))
    assert tomllib.loads(Path("run/run.toml").read_text()).items() >= changed.items()
    assert load("run/model.safetensors").notes["step"] == 6
    assert files("run")["model.safetensors"] != through["model.safetensors"]


def test_other_data(here, started, capsys):
    """The data of a run may lie elsewhere, but must be the same; its state knows."""
    run(*started, "--steps", 2)
    data = Path(started[started.index("--data") + 1])
    Path("b.npz").write_bytes(data.read_bytes())
    run(*RESUME, "--steps", 3, "--data", "b.npz")
    assert tomllib.loads(Path("run/run.toml").read_text())["data"] == str(here / "b.npz")
    np.savez("b.npz", images=np.zeros((9, 4, 4), np.uint8), classes=np.arange(9) % 2)
    before = files("run")
    said = fails(capsys, *RESUME, "--steps", 4)
    assert re.search("of another run: data was 8 x 1 x 4 x 4, #[0-9a-f]+ and is 9 x 1 x", said)
    assert "Put run.toml and the data back as they were, or start a run" in said
    assert files("run") == before


def test_config(here, started, capsys):
    """A run's file starts a like one, from another folder too; the command line comes first."""
    run(*started, "--steps", 2, "--flip")
    Path("elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("elsewhere")
        run("train", "--config", "../run/run.toml", "--out", "same")
        changed = ["--no-flip", "--steps", 3, "--widths", "8"]
        run("train", "--config", "../run/run.toml", "--out", "other", *changed)
    assert files("elsewhere/same") == files("run")
    found, other = (
        tomllib.loads(Path(at, "run.toml").read_text()) for at in ("run", "elsewhere/other")
    )
    assert other == found | {"flip": False, "steps": 3, "widths": [8]}
    Path("bad.toml").write_text("step = 3")
    said = fails(capsys, "train", "--config", "bad.toml", "--out", "bad")
    assert "bad.toml: no option step; there are data, steps, save_every" in said
    Path("bad.toml").write_text("steps = 3.5")
    assert "--steps" in fails(capsys, *started, "--config", "bad.toml", "--out", "bad")
    Path("bad.toml").write_text("steps 3")
    said = fails(capsys, "train", "--config", "bad.toml", "--out", "bad")
    assert "bad.toml is not a TOML file (Expected '=' after a key" in said
    assert not Path("bad").exists()


def test_state_is_lost(finished, capsys):
    """A run that has a model but no state does not begin again."""
    for state in Path("run").glob("state-*"):
        state.unlink()
    before = files("run")
    assert "run cannot be resumed: it has no state-*.safetensors" in fails(capsys, *RESUME)
    assert files("run") == before


SCALARS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)


@given(st.dictionaries(st.from_regex("[a-z_]+", fullmatch=True), SCALARS | st.lists(SCALARS)))
@example({"del": "\x7f"})
def test_toml(options):
    """What is written is read as the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.toml")
        toml.write(path, options)
        with path.open("rb") as file:
            assert tomllib.load(file) == options
        words = toml.read(path, options)
    for name, value in options.items():
        assert words[name] == (",".join(map(str, value)) if isinstance(value, list) else str(value))


def test_toml_of_a_name_that_is_no_text(here, capsys, started):
    """A file name that UTF-8 cannot say is refused before it is needed."""
    if sys.platform != "linux":
        pytest.skip("here every file name is text")
    data = Path(os.fsdecode(b"\xff.npz"))
    data.write_bytes(Path(started[started.index("--data") + 1]).read_bytes())
    said = fails(capsys, *started, "--data", data, "--steps", 1)
    assert "run/run.toml is UTF-8, and cannot hold" in said
    assert files("run") == {}
