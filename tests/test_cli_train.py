"""`ddpm-core train`: what it writes, and that bad input is one line and status 2."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from command import executable, fails, pixels, run, sample

import ddpm_core as ddpm
from ddpm_core.checkpoints import load
from ddpm_core.cli import main

pytest_plugins = "command_fixtures"
pytestmark = pytest.mark.usefixtures("one_thread_of_processes")

SMALL = ["--widths", "8,8", "--groups", 4, "--blocks", 1, "--attention", "", "--batch", 4]


def test_train_pictures(here, photos, capsys):
    """Training on folders of pictures leaves a model of their classes that samples, and resumes."""
    options = ["train", "--data", photos, "--out", "run", "--size", 8, *SMALL]
    run(*options, "--steps", 3, "--save-every", 2)
    trained = load("run/model.safetensors")
    assert (trained.labels, trained.size, trained.config.channels) == (("cat", "dog"), (8, 8), 3)
    assert trained.notes["trained"] == "3 steps of 4"
    assert pixels("run/samples.png").shape == (2 * (4 * 8 + 5 * 2),) * 2 + (3,)
    assert sample(Path("run/model.safetensors"), "--classes", "dog,none").shape[-1] == 3

    assert "run holds a run already; pass --resume" in fails(capsys, *options, "--steps", 5)
    assert "another recipe" in fails(capsys, *options, "--steps", 5, "--resume", "--lr", 1)
    assert "another schedule" in fails(capsys, *options, "--resume", "--T", 50)
    run(*options, "--steps", 5, "--resume")
    resumed = load("run/model.safetensors")
    run(*[*options[:4], "through", *options[5:]], "--steps", 5)
    through = load("through/model.safetensors")
    assert resumed.notes["trained"] == through.notes["trained"] == "5 steps of 4"
    for name, value in through.params.items():
        np.testing.assert_array_equal(resumed.params[name], value)
    found = sorted(p.name for p in Path("run").iterdir())
    assert found == ["model.safetensors", "samples.png", "training.safetensors"]


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
        "1 of 1 pictures cannot be read; repair or remove broken/a.png (is not one of PNG",
    ),
    "T 0": (["--T", 0], "T must be an integer of at least 1, but is 0"),
    "T small": (["--T", 10], "would end at beta = 2: T must be above 20"),
    "schedule": (["--schedule", "quad"], "no schedule 'quad'; there are linear, cosine"),
    "target": (["--predicts", "noise"], "no target 'noise'; there are x0, eps"),
    "precision": (["--precision", "int8"], "--precision must be auto, float32 or bfloat16"),
    "steps": (["--steps", 0], "--steps must be at least 1, but is 0"),
    "save every": (["--save-every", 0], "--save-every must be at least 1, but is 0"),
    "sample every": (["--sample-every", 0], "--sample-every must be at least 1, but is 0"),
    "size 0": (["--size", 0], "--size must be at least 1, but is 0"),
    "size 7": (["--size", 7], "cannot halve; pass --size, a multiple of 2"),
    "no size": (["--size", 9], "multiple of 2"),
    "batch": (["--batch", 9], "8 images do not fill a batch of 9"),
    "batch 0": (["--batch", 0], "batch = 0 is out of range"),
    "lr": (["--lr", 0], "lr = 0.0 is out of range"),
    "seed": (["--seed", -1], "non-negative"),
    "widths": (["--widths", "8,x"], "--widths must be integers"),
    "widths of groups": (["--widths", "9"], "widths must be multiples of groups = 4"),
    "no widths": (["--widths", ""], "widths must be multiples of groups"),
    "attention": (["--attention", "2"], "indices into the 2 widths"),
    "device": (["--device", "nowhere"], "torch cannot use device 'nowhere'"),
    "resume nothing": (["--resume"], "no checkpoint at run/training.safetensors"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_TRAININGS.values(), ids=BAD_TRAININGS)
def test_bad_training(here, photos, capsys, arguments, message):
    """Each mistake is answered in one line before any training; no folder is made."""
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"not a picture")
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 2, *arguments]
    assert message in fails(capsys, "train", *options)
    assert not Path("run").exists()


def test_out_is_a_file(here, photos, capsys):
    """A run cannot be a file, and the file is left alone."""
    Path("run").write_text("mine")
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 2]
    assert "run" in fails(capsys, "train", *options)
    assert Path("run").read_text() == "mine"


def test_diverging(here, photos, capsys):
    """A loss that is not a number stops the run with advice, and saves no such weights."""
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 20]
    before = sys.argv
    sys.argv = ["ddpm-core", "train", *map(str, options), "--lr", "1e30", "--warmup", "0"]
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        sys.argv = before
    assert caught.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert "a smaller --lr may help" in last
    assert list(Path("run").iterdir()) == []


def test_no_space_while_training(tmp_path, photos):
    """With no space left for the state of a run: one line, no half-written file."""
    pytest.importorskip("resource")
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 1]
    ran = executable("train", *options, cwd=tmp_path, limit=4000)
    assert ran.returncode == 2
    *_, last = ran.stderr.splitlines()
    assert last == "ddpm-core: run/training.safetensors: File too large"
    assert list((tmp_path / "run").iterdir()) == []
