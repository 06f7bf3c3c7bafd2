"""`ddpm-core evaluate --samples`: the classifier, and the scores of samples beside real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddpm_core.checkpoints import load
from ddpm_core.checkpoints.classifier import load_classifier
from ddpm_core.cli.datasets import read
from ddpm_core.models import bundled, classifiers

FASHION = Path("/usr/share/datasets/fashion-mnist")
SIZE = (28, 28)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, *SIZE), dtype=np.uint8)


@pytest.mark.needs("torch")
def test_classifier_is_that_of_torch():
    """The bundled classifier in NumPy gives the features and logits of the same layers in torch."""
    import torch
    from torch import nn

    classifier, images = load_classifier(), noise(150)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    for layer, name in zip((0, 3, 7, 9), ("conv1", "conv2", "dense", "out"), strict=True):
        for key in ("weight", "bias"):
            getattr(net[layer], key).data = torch.tensor(classifier.params[f"{name}.{key}"])
    with torch.no_grad():
        features = net[:-1](torch.tensor(images / 127.5 - 1, dtype=torch.float32))
        logits = net[-1](features)
    for ours, theirs in zip(classifier.read(images), (features, logits), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(abs(theirs).max()))
    np.testing.assert_array_equal(classifier(images), classifier.read(images).features)


def test_classifier_is_small_and_no_model():
    """It takes at most 500 kB, and is not among the models that can be sampled."""
    path = classifiers()["fashion-mnist"]
    assert path.stat().st_size <= 500_000
    assert path not in bundled().values()
    assert load_classifier().labels == load("fashion-mnist").labels


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.exists(), reason="Fashion-MNIST is not installed")
def test_classifier_recognises_what_its_card_says():
    test, classifier = read(FASHION, split="t10k"), load_classifier()
    right = classifier.read(test.images).logits.argmax(axis=1) == test.classes
    card = classifiers()["fashion-mnist"].with_suffix(".md").read_text("utf-8")
    for k, label in enumerate(classifier.labels):
        assert f"| {label} | {100 * right[test.classes == k].mean():.1f} % |" in card
    assert f"| **all** | **{100 * right.mean():.2f} %** |" in card
