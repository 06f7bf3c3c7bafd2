"""Are the samples what was asked for? A classifier of Fashion-MNIST judges them.

    python benchmarks/recognised.py                       # the bundled model
    python benchmarks/recognised.py --model runs/x/model.safetensors --count 1000
    python benchmarks/recognised.py --guidance 0.5 1 1.5 2 3 4

Trains a small convolutional classifier on the training images (a few minutes on two cores), then
prints the share of test images and the share of samples that it recognises as their class, for all
and for each class, and the spread of each: how far an image is from the mean of its class, the root
of the mean square over images and pixels, in grey levels 0 .. 255. Needs torch and Fashion-MNIST's
IDX files (Debian: dataset-fashion-mnist).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_core.backends import backend
from ddpm_core.checkpoints import load
from ddpm_core.cli.datasets import read, to_range
from ddpm_core.cli.drawing import SAMPLERS, draw, parse_classes
from ddpm_core.models import bundled


def classifier() -> nn.Module:
    """Two convolutions and two dense layers, about 200,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def fit(net: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int = 0) -> None:
    """Trains with Adam and a learning rate that falls to 0 over the epochs."""
    torch.manual_seed(seed)
    steps = epochs * (len(x) // 128)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(128)[: len(x) // 128]:
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
    net.eval()


@torch.no_grad()
def recognised(net: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """Whether each image is recognised as its class: (N,)."""
    found = torch.cat([net(part).argmax(1) for part in x.split(1000)])
    return (found == y).numpy()


def spread(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The root mean square distance from the mean of the class, with its standard error."""
    squares = np.empty(len(x))
    for k in np.unique(y):
        part = x[y == k] * 127.5
        squares[y == k] = ((part - part.mean(0)) ** 2).mean((1, 2, 3)) * len(part) / (len(part) - 1)
    root = np.sqrt(squares.mean())
    return root, squares.std() / np.sqrt(len(x)) / (2 * root)


def main() -> None:
    """Trains the classifier, draws the samples, prints what it recognises and the spread."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    options.add_argument("--model", default="fashion-mnist")
    options.add_argument("--count", type=int, default=1000)
    options.add_argument("--sampler", default="dpmpp_2m", choices=SAMPLERS)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--guidance", type=float, nargs="+", default=[1.0], metavar="SCALE")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--backend", default="torch")
    options.add_argument("--epochs", type=int, default=6)
    given = options.parse_args()

    train, test = read(given.data), read(given.data, split="t10k")
    net = classifier()
    fit(net, torch.tensor(to_range(train.images)), torch.tensor(train.classes), given.epochs)
    model = load(bundled().get(given.model, Path(given.model)))
    y = parse_classes(None, model, given.count)
    solver = SAMPLERS[given.sampler](model.schedule, given.steps)
    sets = {"test images": (to_range(test.images), test.classes)}
    for scale in given.guidance:
        x = draw(
            model, backend(given.backend), solver, given.count, y, given.seed, batch=50,
            guidance=scale,
        )[-1]  # fmt: skip
        # The classifier sees what a viewer would: whole grey levels.
        sets[f"scale {scale:g}"] = np.clip(np.rint((x + 1) * 127.5), 0, 255) / 127.5 - 1, y

    print(f"{given.sampler}, {given.steps} steps, seed {given.seed}, {given.count} samples a scale")
    print(f"{'':14s}", *(f"{name:>11s}" for name in sets))
    found = [
        (recognised(net, torch.tensor(x, dtype=torch.float32), torch.tensor(y)), x, y)
        for x, y in sets.values()
    ]
    for k, label in enumerate(model.labels):
        print(f"{label:14s}", *(f"{right[y == k].mean():11.1%}" for right, _, y in found))
    shares = [right.mean() for right, _, _ in found]
    errors = [np.sqrt(p * (1 - p) / len(y)) for p, (_, _, y) in zip(shares, found, strict=True)]
    print(f"{'all':14s}", *(f"{p:11.1%}" for p in shares))
    print(f"{'standard error':14s}", *(f"{error:11.1%}" for error in errors))
    spreads = [spread(x, y) for _, x, y in found]
    print(f"{'spread':14s}", *(f"{root:11.1f}" for root, _ in spreads))
    print(f"{'standard error':14s}", *(f"{error:11.1f}" for _, error in spreads))


if __name__ == "__main__":
    main()
