"""Trains the bundled classifier of Fashion-MNIST, and prints what it recognises.

    python benchmarks/classifier.py        # a few minutes on two cores

Writes ddpm_core/models/classifiers/fashion-mnist.safetensors, in float16, for `ddpm-core evaluate`.
The network is that of recognised.py, without its dropout, and with each normalisation folded
into the convolution before it. Needs torch and Fashion-MNIST's IDX files (Debian:
dataset-fashion-mnist).
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from recognised import classifier, fit
from safetensors.numpy import save_file
from torch import nn

from ddpm_core.checkpoints import load
from ddpm_core.checkpoints.classifier import KEY, load_classifier
from ddpm_core.cli.datasets import read, to_range
from ddpm_core.models import bundled

LAYERS = {"conv1": (0, 1), "conv2": (4, 5), "dense": (10, None), "out": (12, None)}


def folded(net: nn.Module) -> dict[str, np.ndarray]:
    """The weights by layer, a convolution and the normalisation after it as one."""
    params = {}
    for name, (at, after) in LAYERS.items():
        weight, bias = net[at].weight.detach(), net[at].bias.detach()
        if after is not None:
            norm = net[after]
            scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
            weight = weight * scale[:, None, None, None]
            bias = (bias - norm.running_mean) * scale + norm.bias.detach()
        params |= {f"{name}.weight": weight.numpy(), f"{name}.bias": bias.numpy()}
    return params


def main() -> None:
    """Trains, writes, and prints the card's table: the share of test images that are recognised."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    options.add_argument("--epochs", type=int, default=6)
    given = options.parse_args()

    train, test = read(given.data), read(given.data, split="t10k")
    net = classifier().to(memory_format=torch.channels_last)  # twice as fast
    fit(net, torch.tensor(to_range(train.images)), torch.tensor(train.classes), given.epochs)
    model = bundled()["fashion-mnist"]
    place = model.parent / "classifiers" / model.name
    params = {name: x.astype(np.float16, order="C") for name, x in folded(net).items()}
    about = {"shape": train.images.shape[1:], "labels": load(model).labels}
    save_file(params, place, {KEY: json.dumps(about)})
    print(f"wrote {place}, {place.stat().st_size:,} bytes")
    stored = load_classifier()
    right = stored.read(test.images).logits.argmax(axis=1) == test.classes
    for k, label in enumerate(stored.labels):
        print(f"| {label} | {100 * right[test.classes == k].mean():.1f} % |")
    print(f"| **all** | **{100 * right.mean():.2f} %** |")


if __name__ == "__main__":
    main()
