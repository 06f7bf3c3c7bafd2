"""What the tests of `ddpm_core_torch.training` share: a small run, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

import ddpm_core as ddpm
from ddpm_core.nn import UNetConfig
from ddpm_core_torch.training import Recipe, Trainer

CONFIG = UNetConfig(
    channels=1, out_channels=1, widths=(8, 8), blocks=1, groups=4, attention=(), classes=2
)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 6), dtype=np.uint8)
CLASSES = np.arange(10) % 2
RECIPE = Recipe(batch=4, lr=1e-3, warmup=3, ema=0.5, flip=True, drop_label=0.3)


def trainer(recipe: Recipe = RECIPE, **options) -> Trainer:
    given = {"images": IMAGES, "classes": CLASSES, "config": CONFIG, "schedule": ddpm.linear()}
    return Trainer(**given | options, recipe=recipe)


def weights(of: Trainer) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in of.net.named_parameters()}


def losses_of(run: Trainer, steps: int) -> list[list[float]]:
    """The loss of each image at some steps."""
    return [run.step().losses.tolist() for _ in range(steps)]


def assert_same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
