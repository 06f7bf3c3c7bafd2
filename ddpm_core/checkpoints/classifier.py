"""The bundled classifier: features in which sets of images are compared, and the class of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ddpm_core.checkpoints.fields import parse
from ddpm_core.checkpoints.files import read_tensors
from ddpm_core.models import classifiers
from ddpm_core.nn.classifier import Classified, classify
from ddpm_core.typing import Array

KEY = "ddpm_core_classifier"
_AT_ONCE = 128  #: images


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier, called on images for its features.

    name: of the data that it was trained on
    shape: (C, H, W) of its images, which are uint8
    labels: the names of the classes, in order
    """

    name: str
    params: Mapping[str, Array]
    shape: tuple[int, ...]
    labels: tuple[str, ...]

    def __call__(self, images: Array) -> Array:
        """The features of uint8 images (N, C, H, W): (N, D)."""
        return self.read(images).features

    def read(self, images: Array) -> Classified:
        """Features and logits of uint8 images (N, C, H, W)."""
        parts = [
            classify(self.params, images[at : at + _AT_ONCE].astype(np.float32) / 127.5 - 1)
            for at in range(0, len(images), _AT_ONCE)
        ]
        return Classified(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def load_classifier(name: str = "fashion-mnist") -> Classifier:
    """The bundled classifier of that data."""
    path = classifiers()[name]
    tensors, metadata = read_tensors(path)
    about = parse(metadata[KEY], str(path))
    params = {key: value.astype(np.float32) for key, value in tensors.items()}
    return Classifier(
        name, params, tuple(about.integers("shape", 3, 1, 1 << 14)), tuple(about.texts("labels"))
    )
