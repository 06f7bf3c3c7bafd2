"""`ddpm-core train`: what a run leaves, and that bad input is one line and status 2."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import tomllib
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from command import executable, fails, pixels, run
from hypothesis import example, given
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core.checkpoints import load, save
from ddpm_core.checkpoints.files import TEMPORARY
from ddpm_core.cli import log, main, runs, toml

pytest_plugins = "command_fixtures"
pytestmark = [pytest.mark.needs("torch"), pytest.mark.usefixtures("one_thread_of_processes")]

STATE = "training.safetensors"
RESUME = ["train", "--resume", "run"]
SMALL = ["--widths", "8,8", "--groups", 4, "--blocks", 1, "--attention", "", "--batch", 4]


@pytest.fixture(scope="session")
def started(tmp_path_factory) -> list[object]:
    """The command of a run in ./run that saves each second step, and draws each sixth."""
    path = tmp_path_factory.mktemp("data") / "a.npz"
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4), dtype=np.uint8)
    np.savez(path, images=images, classes=np.arange(8) % 2)
    levels = ["--schedule", "cosine", "--T", 4]  # so that samples take four steps
    options = ["--data", path, "--out", "run", *SMALL, *levels, "--warmup", 2]
    return ["train", *options, "--save-every", 2, "--sample-every", 6]


@pytest.fixture(scope="session")
def through(started, tmp_path_factory) -> dict[str, bytes]:
    """The files of that run after six steps without a stop, on one thread as in each test."""
    torch = pytest.importorskip("torch")
    folder, threads = tmp_path_factory.mktemp("through"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(*started, "--steps", 6)
    torch.set_num_threads(threads)
    return files(folder / "run")


def files(folder: str | Path) -> dict[str, bytes]:
    """The files of a folder, of a log without the times."""
    found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    if "log.csv" in found:
        found["log.csv"] = re.sub(rb"(?m)^((?:[^,\n]*,){3}).*", rb"\1", found["log.csv"])
    return found


def status_of(*arguments: object) -> int:
    """Runs `main` and returns its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ddpm-core", *(str(a) for a in arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
    return caught.value.code


@pytest.mark.needs("torch")
def test_train_pictures(here, photos, capsys):
    """Training on folders of pictures leaves a model of their classes that samples, and resumes."""
    options = ["train", "--data", photos, "--out", "run", "--size", 8, *SMALL]
    run(*options, "--steps", 3, "--save-every", 2)
    trained = load("run/model.safetensors")
    assert (trained.labels, trained.size, trained.config.channels) == (("cat", "dog"), (8, 8), 3)
    assert trained.notes["trained"] == "3 steps of 4"
    assert pixels("run/samples-000003.png").shape == (2 * (4 * 8 + 5 * 2),) * 2 + (3,)
    run("sample", "--model", "run", "--classes", "dog,none", "--grid", "1x3", "--steps", 2)
    assert pixels("samples.png").shape[-1] == 3

    assert "run holds a run already; pass --resume run, or" in fails(capsys, *options)
    run(*RESUME, "--steps", 5)
    resumed = load("run/model.safetensors")
    run(*[*options[:4], "through", *options[5:]], "--steps", 5)
    through = load("through/model.safetensors")
    assert resumed.notes["trained"] == through.notes["trained"] == "5 steps of 4"
    for name, value in through.params.items():
        np.testing.assert_array_equal(resumed.params[name], value)
    found = sorted(p.name for p in Path("run").iterdir())
    samples = ["samples-000003.png", "samples-000005.png"]
    assert found == ["log.csv", "model.safetensors", "run.toml", *samples, STATE]
    said = fails(capsys, "sample", "--model", "run/training.safetensors")
    assert "run/training.safetensors is what a run resumes from: load its folder" in said


@pytest.mark.needs("torch")
def test_train_npz(here):
    """Training takes an .npz, without its classes if asked, with each schedule and target."""
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    np.savez("a.npz", images=images, classes=np.arange(6) % 2)
    options = ["train", "--data", "a.npz", "--steps", 1, *SMALL]
    run(*options, "--out", "a", "--schedule", "cosine", "--T", 50, "--predicts", "v")
    found = load("a/model.safetensors")
    assert (found.schedule, found.predicts) == (ddpm.cosine(50), "v")
    assert (found.config.classes, found.labels, found.size) == (2, ("0", "1"), (4, 4))
    run(*options, "--out", "b", "--unlabelled")
    found = load("b/model.safetensors")
    assert (found.schedule, found.config.classes, found.labels) == (ddpm.linear(), 0, ())


BAD_TRAININGS = {
    "no data": (["--data", "none"], "no data at none"),
    "empty": (["--data", "empty"], "no IDX files and no pictures"),
    "no image": (
        ["--data", "broken"],
        "1 of 1 pictures cannot be read; repair or remove broken/a.png",
    ),
    "T 0": (["--T", 0], "--T must be at least 1, but is 0"),
    "T large": (["--T", 10**8, "--data", "none"], "--T must be at most 1000000, but is 100000000"),
    "blocks": (
        ["--blocks", 10**5, "--data", "none"],
        "--blocks must be at most 100, but is 100000",
    ),
    "T small": (["--T", 10], "would end at beta = 2: T must be above 20"),
    "schedule": (["--schedule", "quad"], "--schedule must be one of linear, cosine, but is 'quad'"),
    "target": (
        ["--predicts", "noise"],
        "--predicts must be one of x0, eps, v, score, flow, but is",
    ),
    "precision": (
        ["--precision", "int8"],
        "--precision must be one of auto, float32, bfloat16, but is 'int8'",
    ),
    "steps": (["--steps", 0], "--steps must be at least 1, but is 0"),
    "save every": (["--save-every", 0], "--save-every must be at least 1, but is 0"),
    "sample every": (["--sample-every", 0], "--sample-every must be at least 1, but is 0"),
    "size 0": (["--size", 0], "--size must be at least 1, but is 0"),
    "size 7": (
        ["--size", 7],
        "images of 7 x 7 pixels, but 2 --widths need multiples of 2: pass fewer --widths, or",
    ),
    "size 1": (["--size", 1], "or for a folder of pictures a --size, such as 2"),
    "size of no pictures": (
        ["--data", "a.npz", "--size", 8],
        "a.npz has images of 4 x 4 pixels: --size 8 is for folders of pictures, which it resizes",
    ),
    "batch": (["--batch", 9], "--batch must be at most 8, the number of images, but is 9"),
    "batch 0": (["--batch", 0], "--batch must be an integer of at least 1, but is 0"),
    "lr": (["--lr", 0], "--lr must be above 0 and at most 1e30, but is 0.0"),
    "lr inf": (["--lr", "inf"], "--lr must be above 0 and at most 1e30, but is inf"),
    "drop label": (["--drop-label", 2], "--drop-label must be within 0 and 1, but is 2.0"),
    "seed": (["--seed", -1], "--seed must be an integer of at least 0, but is -1"),
    "widths": (["--widths", "8,x"], "--widths must be integers"),
    "widths of groups": (
        ["--widths", "9"],
        "--groups must divide the --widths 9, but is 4; 1, 3, 9 do",
    ),
    "no widths": (["--widths", ""], "--widths must be integers, such as 32,64,64, but is empty"),
    "attention": (["--attention", "2"], "--attention must name indices into the 2 widths"),
    "device": (["--device", "nowhere"], "--device nowhere: torch cannot use device 'nowhere'"),
    "no values": (["--device", "meta"], "--device meta: Cannot copy out of meta tensor"),
    "resume nothing": (
        ["--resume", "run"],
        "there is no run to resume in run: run.toml is missing",
    ),
    "no config": (["--config", "none.toml"], "none.toml: No such file or directory"),
}


@pytest.mark.needs("torch")
@pytest.mark.parametrize(("arguments", "message"), BAD_TRAININGS.values(), ids=BAD_TRAININGS)
def test_bad_training(here, photos, capsys, arguments, message):
    """Each mistake is answered in one line before any training; no folder is made."""
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"not a picture")
    np.savez("a.npz", images=np.zeros((4, 4, 4), np.uint8))
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 2, *arguments]
    assert message in fails(capsys, "train", *options)
    assert not Path("run").exists()


def test_several_processes(here, photos, capsys, monkeypatch):
    """Started by a launcher of several processes, each of them refuses."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = fails(capsys, "train", "--data", photos, "--out", "run")
    assert "runs in one process, but WORLD_SIZE is 2: start it without torchrun" in said
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("widths", "groups", "attention"), [("8", 8, ()), ("24,48", 24, (1,)), ("7,11", 1, (1,))]
)
def test_network_that_fits(here, photos, widths, groups, attention):
    """By default groups divide all widths, a second resolution attends, and few images suffice."""
    options = ["--data", photos, "--out", "run", "--size", 8, "--blocks", 1]
    run("train", *options, "--widths", widths, "--steps", 1)
    trained = load("run/model.safetensors")
    assert (trained.config.groups, trained.config.attention) == (groups, attention)
    assert trained.notes["trained"] == "1 steps of 8"


def test_no_mps(here, photos, capsys):
    """Of torch's page on a device that is not there, the first sentence is shown."""
    torch = pytest.importorskip("torch")
    if torch.backends.mps.is_available():
        pytest.skip("MPS is here")
    said = fails(capsys, "train", "--data", photos, "--out", "run", "--size", 8, "--device", "mps")
    assert said.startswith("ddpm-core: --device mps: torch cannot use device 'mps': ")
    assert len(said) < 200


@pytest.mark.needs("torch")
def test_out_is_a_file(here, photos, capsys):
    """A run cannot be a file, and the file is left alone."""
    Path("run").write_text("mine")
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 2]
    assert "run" in fails(capsys, "train", *options)
    assert Path("run").read_text() == "mine"


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
        f"{'stays as it is' if saved else 'was not written yet'}; a smaller --lr may help" in last
    )
    after = files("run")
    assert after == before | {name: after[name] for name in ("run.toml", "log.csv")}


class Killed(BaseException):
    """Ends a run at a point, as a kill does: nothing catches it."""


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
    assert len(files("run")) == 6  # options, log, state, model, a part of the next one, and .lock
    run(*RESUME)
    assert "run goes on after step 4; wrote model.safetensors again" in capsys.readouterr().err
    assert files("run") == through


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

    def begun(self, path, trainer):
        begin(self, path, trainer)
        self._path = full

    monkeypatch.setattr(log.Log, "__init__", begun)
    assert status_of(*started, "--steps", 2) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "ddpm-core: /dev/full: No space left on device"


def test_folder_of_another_command(here, started):
    """A folder that `convert` is writing, or left half-written, is in the way of no run."""
    folder = Path(f"run/{TEMPORARY}0011")
    folder.mkdir(parents=True)
    run(*started, "--steps", 1)
    assert folder.is_dir()
    assert load("run").notes["step"] == 1


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
    assert "leave out --config" in fails(capsys, *RESUME, "--config", "run/run.toml")
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
    Path("run/training.safetensors").unlink()
    before = files("run")
    assert "run cannot be resumed: training.safetensors is missing" in fails(capsys, *RESUME)
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
        assert last == "stopped: run/training.safetensors holds step 3; --resume run goes on"
        assert sorted(files("run")) == ["log.csv", "model.safetensors", "run.toml", STATE]
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
    assert sorted(files("run")) == ["log.csv", "model.safetensors", "run.toml", STATE]
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
    with runs.locked(Path("run")):
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

    monkeypatch.setattr(runs, "_lock", refuse)
    said = fails(capsys, *started, "--steps", 1)
    assert "run/.lock: cannot be locked on this file system (No locks available)" in said


def test_lock_that_vanishes(here, monkeypatch):
    """A lock on a file that its last owner just removed is not taken for one."""
    lock, calls = runs._lock, []

    def late(file):
        calls.append(file)
        if len(calls) == 1:
            Path(".lock").unlink()
        lock(file)

    monkeypatch.setattr(runs, "_lock", late)
    with runs.locked(Path()), pytest.raises(ValueError, match="in use"), runs.locked(Path()):
        pass
    assert len(calls) == 3


def test_what_is_said(here, started, capsys, monkeypatch):
    """A run says what it trains; where stderr is no terminal, lines tell how far it is."""
    monkeypatch.setattr("ddpm_core.cli.progress.INTERVAL", 0)
    run(*started, "--steps", 2)
    out, err = capsys.readouterr()
    count = sum(p.size for p in load("run/model.safetensors").params.values())
    first, *lines = err.splitlines()
    assert first == f"8 images of 4 x 4 x 1, 2 classes; {count:,} parameters; cpu, float32"
    assert re.match(r"Training 1/2, loss \d\.\d{4}, \d+ images/s", lines[0])
    assert "nan" not in err
    assert out == "run/model.safetensors: 2 steps; see run/samples-000002.png\n"


@pytest.mark.needs("torch")
@pytest.mark.slow
def test_no_space_while_training(tmp_path, photos):
    """With no space left for the state of a run: one line, no half-written file."""
    pytest.importorskip("resource")
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 1]
    ran = executable("train", *options, cwd=tmp_path, limit=4000)
    assert ran.returncode == 2
    *_, last = ran.stderr.splitlines()
    assert last == "ddpm-core: run/training.safetensors: File too large"
    assert sorted(files(tmp_path / "run")) == ["log.csv", "run.toml"]
