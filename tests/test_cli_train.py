"""`ddpm-core train`: what a run leaves, and that bad input is one line and status 2."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from command import fails, pixels, run
from training_runs import RESUME, SMALL

import ddpm_core as ddpm
from ddpm_core.checkpoints import load
from ddpm_core.checkpoints.files import TEMPORARY

pytest_plugins = ("command_fixtures", "training_fixtures")
pytestmark = [pytest.mark.needs("torch"), pytest.mark.usefixtures("one_thread_of_processes")]


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
    states = ["state-000004.safetensors", "state-000005.safetensors"]
    assert found == ["log.csv", "model.safetensors", "run.toml", *samples, *states]
    said = fails(capsys, "sample", "--model", "run/state-000005.safetensors")
    assert "run/state-000005.safetensors is what a run resumes from: load its folder" in said


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
        "1 of 1 pictures cannot be read: repair or remove them, or leave them out, as by "
        "--skip-bad: "
        "broken/a.png (is not",
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
        "--predicts must be one of x0, eps, v, score, flow, mu, but is",
    ),
    "precision": (
        ["--precision", "int8"],
        "--precision must be one of auto, float32, bfloat16, float16, but is 'int8'",
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
    "drop no label": (
        ["--drop-label", 0.2, "--unlabelled"],
        "--drop-label does nothing with --unlabelled",
    ),
    "all held out": (["--held-out", 0.9999], "--held-out 0.9999 leaves none of 8 images to train"),
    "held out": (["--held-out", 1], "--held-out must be at least 0 and below 1, but is 1.0"),
    "objective": (
        ["--objective", "l2"],
        "--objective must be one of simple, vlb, min-snr, p2, but",
    ),
    "levels": (["--levels", "all"], "--levels must be one of uniform, important, but is 'all'"),
    "ema": (
        ["--ema", 2],
        "--ema must be one or more decays, at least 0 and below 1, but is (2.0,)",
    ),
    "ema of words": (["--ema", "a"], "--ema must be numbers, such as 0.1,0.2, but is 'a'"),
    "power": (["--power-averages", 0.5], "--power-averages must be widths above 0 and at most 1"),
    "accumulate": (
        ["--accumulate", 3],
        "--batch must be a multiple of processes times accumulate, but is 4",
    ),
    "preset": (["--preset", "huge"], "--preset must be one of tiny, small, cifar10, 256, but is"),
    "float16": (["--precision", "float16"], "--precision float16 is of GPUs, but device is cpu"),
    "tracker": (["--track", "paper"], "no tracker 'paper'; accelerate knows"),
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


@pytest.mark.parametrize(
    ("widths", "groups", "attention"), [("8", 8, ()), ("24,48", 24, (1,)), ("7,11", 1, (1,))]
)
def test_network_that_fits(here, photos, widths, groups, attention):
    """By default groups divide all widths, a second resolution attends, and few images suffice."""
    options = ["--data", photos, "--out", "run", "--size", 8, "--blocks", 1, "--held-out", 0]
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


def test_folder_of_another_command(here, started):
    """A folder that `convert` is writing, or left half-written, is in the way of no run."""
    folder = Path(f"run/{TEMPORARY}0011")
    folder.mkdir(parents=True)
    run(*started, "--steps", 1)
    assert folder.is_dir()
    assert load("run").notes["step"] == 1


def test_what_is_said(here, started, capsys, monkeypatch):
    """A run says what it trains; where stderr is no terminal, lines tell how far it is."""
    monkeypatch.setattr("ddpm_core.cli.progress.INTERVAL", 0)
    run(*started, "--steps", 2)
    out, err = capsys.readouterr()
    count = sum(p.size for p in load("run/model.safetensors").params.values())
    first, *lines = err.splitlines()
    assert first == f"8 images of 4 x 4 x 1, 2 classes; {count:,} parameters; cpu, float32"
    assert lines.pop(0).startswith("the coarsest of 2 --widths has 2 x 2 pixels")
    assert re.match(r"Training 1/2, loss \d\.\d{4}, gradient [\d.e+]+, \d+ images/s", lines[0])
    assert "nan" not in err
    assert out == "run/model.safetensors: 2 steps; see run/samples-000002.png\n"
