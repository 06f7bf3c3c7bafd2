"""`evaluate` on images that a model was not trained on, and what it says where it cannot know."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from command import fails, run, tiny
from PIL import Image

import ddpm_core as ddpm
from ddpm_core.checkpoints import save
from ddpm_core.cli.datasets import held_out
from ddpm_core.cli.rate import Run

pytest_plugins = "command_fixtures"

SHARE = 0.5
COLOUR = ddpm.UNetConfig(widths=(8, 8), blocks=1, groups=4, classes=3)
BOUND = ["--images", "0", "--terms", "2", "--steps", "5", "--variance", "small"]


def idx(folder: Path, split: str, images: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    classes = np.zeros(len(images), np.uint8)
    for kind, a in (("images-idx3", images), ("labels-idx1", classes)):
        head = struct.pack(f">4B{a.ndim}I", 0, 0, 8, a.ndim, *a.shape)
        (folder / f"{split}-{kind}-ubyte").write_bytes(head + a.tobytes())


@pytest.fixture
def place(here) -> Path:
    """A model that held out half of all images, one that does not say, and data of each kind."""
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 4, 6), dtype=np.uint8) for n in (60, 20))
    np.savez("all.npz", images=train)
    held = held_out(train[:, None], SHARE)
    np.savez("held.npz", images=train[held])
    np.savez("seen.npz", images=train[~held])
    idx(here / "idx", "train", train)
    idx(here / "idx", "t10k", test)
    np.savez("test.npz", images=test)
    save("says.safetensors", tiny(notes={"held_out": SHARE}))
    for note in ({}, {"held_out": 0}, {"held_out": "half"}):
        save(f"silent{len(str(note))}.safetensors", tiny(notes=note))
    save("silent.safetensors", tiny())
    return here


def bound(model: str, *words: str) -> tuple[dict, str]:
    run("evaluate", "--model", f"{model}.safetensors", *BOUND, *words, "--json", "n.json")
    found = json.loads(Path("n.json").read_text())
    return found, found["unseen"]


@pytest.mark.parametrize("data", ["--data all.npz", "--data idx --split train"])
def test_only_held_out_images_are_evaluated(place, data, capsys):
    """Of what a model may have been trained on, the numbers are those of what it held out."""
    found, unseen = bound("says", *data.split())
    wanted, _ = bound("silent", "--data", "held.npz")
    assert unseen == "held out"
    assert found["images"] == wanted["images"] == len(np.load("held.npz")["images"])
    assert found["bits_per_dim"] == wanted["bits_per_dim"]
    assert "may have been trained" in capsys.readouterr().out.splitlines()[-1]
    bound("says", *data.split())
    assert "may have been trained" not in capsys.readouterr().out


@pytest.mark.parametrize("model", ["says", "silent"])
@pytest.mark.parametrize("data", ["idx", "idx/t10k-images-idx3-ubyte"])
def test_a_test_split_is_evaluated_whole(place, model, data, capsys):
    found, unseen = bound(model, "--data", data)
    wanted, _ = bound("silent", "--data", "test.npz")
    assert unseen == "test split"
    assert found["bits_per_dim"] == wanted["bits_per_dim"]
    assert capsys.readouterr().out.count("may have been trained") == 1  # of the .npz


@pytest.mark.parametrize("data", ["--data all.npz", "--data idx --split train"])
def test_unknown(place, data, capsys):
    """A model that says nothing, that it held out none, or nonsense, may have seen the images."""
    for path in place.glob("silent*"):
        found, unseen = bound(path.stem, *data.split())
        assert unseen == "unknown"
        assert found["images"] == 60
        assert "may have been trained" in capsys.readouterr().out


def test_nothing_held_out(place, capsys):
    said = fails(capsys, "evaluate", "--model", "says.safetensors", "--data", "seen.npz")
    assert "the model may have been trained on each of the" in said


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("data", ["all.npz", "idx"])
def test_the_variance_is_measured_on_unseen_images(place, data):
    """On images that were held out of training, and that are not evaluated."""
    here = Path(data)
    model = Run(tiny(notes={"held_out": SHARE}), ddpm.backend("numpy"), False, 0, 8)
    found = model.read(here, "t10k")
    measured = rows(model.unseen(here, "t10k", found, 5).images)
    assert measured
    assert measured <= rows(np.load("held.npz")["images"])
    assert measured.isdisjoint(rows(found.images[:5]))


@pytest.mark.parametrize("data", ["all.npz", "idx"])
def test_training_images_are_those_that_were_not_held_out(place, data):
    """By themselves, and among those of --train-data."""
    model = Run(tiny(notes={"held_out": SHARE}), ddpm.backend("numpy"), False, 0, 8)
    seen = rows(np.load("seen.npz")["images"])
    for trained in (
        model.trained(Path(data), "t10k", None),
        model.trained(Path("test.npz"), "t10k", Path(data)),
    ):
        assert trained is not None
        assert rows(trained.images[trained.ids]) == seen
    silent = Run(tiny(), ddpm.backend("numpy"), False, 0, 8)
    assert silent.trained(Path("all.npz"), "t10k", None) is None
    for one in (model, silent):  # a file of test images was not trained on, nor is its other half
        assert one.trained(Path("idx/t10k-images-idx3-ubyte"), "t10k", None) is None
    assert len(silent.trained(Path("idx"), "t10k", None).ids) == 60


def test_pictures_are_read_as_they_were_trained_on(place, capsys):
    """On the background of the model's training, unless another is given; bad ones on demand."""
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (24, 4, 4, 4), dtype=np.uint8)
    rgba[..., 3] = rng.integers(0, 2, (24, 4, 4)) * 255
    Path("pictures").mkdir()
    for i, pixels in enumerate(rgba):
        Image.fromarray(pixels).save(f"pictures/{i:02}.png")
    for name, grey in (("black", 0), ("white", 255)):
        np.savez(f"{name}.npz", images=np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(grey)))
    notes = {"held_out": SHARE, "background": "black"}
    save("says.safetensors", tiny(config=COLOUR, size=(4, 4), notes=notes))
    on_black, _ = bound("says", "--data", "black.npz")
    on_white, _ = bound("says", "--data", "white.npz")
    Path("pictures/bad.png").write_bytes(b"bad")
    words = ["--data", "pictures", "--skip-bad"]
    for wanted, more in ((on_black, ()), (on_white, ("--background", "white"))):
        found, _ = bound("says", *words, *more)
        assert {**found, "data": None} == {**wanted, "data": None}
    assert "1 of 25 pictures cannot be read and are left out: " in capsys.readouterr().err
    assert "repair or remove them" in fails(
        capsys, "evaluate", "--model", "says.safetensors", *words[:2]
    )
