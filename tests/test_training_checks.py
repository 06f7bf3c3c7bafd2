"""What a trainer is given, checked: recipes, data, schedules."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

import ddpm_core as ddpm

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from small_training import CLASSES, CONFIG, IMAGES, RECIPE, trainer

from ddpm_core_torch.training import Recipe, bfloat16_is_fast


@pytest.mark.parametrize(
    ("name", "wrong", "wanted"),
    [
        ("batch", 0, "an integer of at least 1"),
        ("batch", 2.5, "an integer of at least 1"),
        ("warmup", -1, "an integer of at least 0"),
        ("seed", -1, "an integer of at least 0"),
        ("lr", -1.0, "above 0 and at most 1e30"),
        ("lr", 0.0, "above 0 and at most 1e30"),
        ("lr", math.nan, "above 0 and at most 1e30"),
        ("lr", 1.1e30, "above 0 and at most 1e30"),
        ("lr", math.inf, "above 0 and at most 1e30"),
        ("lr_decay", -1, "an integer of at least 0"),
        ("ema", 1.0, "one or more decays, at least 0 and below 1"),
        ("ema", (0.9, 1.0), "one or more decays, at least 0 and below 1"),
        ("ema", (), "one or more decays, at least 0 and below 1"),
        ("ema", (0.9, 0.5, 0.9), "different numbers"),
        ("power", (0.1, 0.0), "widths above 0 and at most 1 / sqrt(12) = 0.288675"),
        ("power", (0.29,), "widths above 0 and at most 1 / sqrt(12) = 0.288675"),
        ("power", (0.1, 0.1), "different numbers"),
        ("objective", "mse", "one of simple, vlb, min-snr, p2"),
        ("levels", "lognormal", "one of uniform, important"),
        ("precision", "float64", "one of float32, bfloat16, float16"),
        ("clip", 0.0, "above 0"),
        ("dropout", 1.0, "at least 0 and below 1"),
        ("drop_label", 1.1, "within 0 and 1"),
    ],
)
def test_wrong_recipe(name, wrong, wanted):
    """A value that cannot train is refused with its name and range."""
    with pytest.raises(ValueError, match=re.escape(f"{name} must be {wanted}, but is {wrong!r}")):
        Recipe(**{name: wrong})


def test_recipes_compare():
    """A recipe is its numbers: equal recipes are one key."""
    several = {Recipe(ema=(0.9, 0.99), power=(0.1,)), Recipe(ema=(0.9, 0.99), power=(0.1,))}
    assert len(several) == 1
    assert Recipe(power=(0.1,)) not in several


WRONG_DATA = {
    "float": ({"images": IMAGES / 127.5 - 1}, "images must be uint8 .* but are float64"),
    "grey without a channel": ({"images": IMAGES[:, 0]}, r"uint8 \(N, C, H, W\).*\(10, 4, 6\)"),
    "channels": ({"images": IMAGES.repeat(3, 1)}, "images have 3 channels, but config has"),
    "no classes": ({"classes": None}, "config has classes = 2, but classes is None"),
    "classes of none": (
        {"classes": CLASSES * 0 - 1, "config": dataclasses.replace(CONFIG, classes=0)},
        "config has classes = 0, so classes must be None",
    ),
    "few classes": ({"classes": CLASSES[:9]}, "classes must be 10 integers"),
    "float classes": ({"classes": CLASSES * 1.0}, "classes must be 10 integers"),
    "classes": ({"classes": CLASSES + 1}, r"classes must lie within -1 .. 1.* are 1 .. 2"),
    "target": ({"predicts": "z"}, "no target 'z'; there are x0, eps, v, score, flow, mu"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_wrong_data(wrong, message):
    """Data that a network would silently misread is refused."""
    with pytest.raises(ValueError, match=message):
        trainer(**wrong)


def test_continuous_schedule():
    """Times of 0 .. 1 are no timesteps of the UNet, whose sinusoids expect 0 .. 999."""
    with pytest.raises(TypeError, match=r"schedule must be Discrete, .* but is VP"):
        trainer(schedule=ddpm.VP())


def test_too_few_images():
    """Fewer images than a batch is an error with both numbers."""
    with pytest.raises(ValueError, match="at most 10, the number of images, but is 11"):
        trainer(Recipe(batch=11))


@pytest.mark.parametrize("accumulate", [0, 3, 8])
def test_parts_of_one_size(accumulate):
    """A batch is cut into equal parts, or refused."""
    with pytest.raises(ValueError, match=f"batch must be a multiple .* is 4, .* is {accumulate}"):
        trainer(accumulate=accumulate)


@pytest.mark.parametrize("on", ["memmap", "view"])
def test_images_on_disk(tmp_path, on):
    """Images that are mapped from a file, or stored channels last, train as those in memory."""
    laid = IMAGES if on == "memmap" else np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))
    laid.tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=laid.shape)
    images = mapped if on == "memmap" else mapped.transpose(0, 3, 1, 2)
    wanted, found = trainer(), trainer(images=images)
    assert found.data == wanted.data
    assert [found.step().loss for _ in range(3)] == [wanted.step().loss for _ in range(3)]


def test_float16_needs_a_gpu():
    """On a CPU float16 is refused, in one line, and a trainer that is there goes on."""
    run = trainer()
    with pytest.raises(ValueError, match=r"precision float16 .* cpu") as caught:
        trainer(dataclasses.replace(RECIPE, precision="float16"))
    assert "\n" not in str(caught.value)
    run.step()


def test_bfloat16_needs_hardware():
    """Autocast is not chosen on a device that has no fast bfloat16."""
    assert bfloat16_is_fast("meta") is False
