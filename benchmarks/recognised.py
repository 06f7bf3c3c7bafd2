"""Are the samples what was asked for? A classifier of Fashion-MNIST judges them.

    python benchmarks/recognised.py                       # the bundled model
    python benchmarks/recognised.py --model runs/x/model.safetensors --count 1000

Trains a small convolutional classifier on the training images (a few minutes on two cores), then
prints the share of test images and the share of samples that it recognises as their class, for all
and for each class. Needs torch and Fashion-MNIST's IDX files (Debian: dataset-fashion-mnist).
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
from ddpm_core.cli.sample import SAMPLERS, draw, parse_classes
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


def main() -> None:
    """Trains the classifier, draws the samples, prints both shares."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    options.add_argument("--model", default="fashion-mnist")
    options.add_argument("--count", type=int, default=1000)
    options.add_argument("--sampler", default="dpmpp_2m", choices=SAMPLERS)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--backend", default="torch")
    options.add_argument("--epochs", type=int, default=6)
    given = options.parse_args()

    train, test = read(given.data), read(given.data, split="t10k")
    net = classifier()
    fit(net, torch.tensor(to_range(train.images)), torch.tensor(train.classes), given.epochs)
    real = recognised(net, torch.tensor(to_range(test.images)), torch.tensor(test.classes))

    model = load(bundled().get(given.model, Path(given.model)))
    y = parse_classes(None, model, given.count)
    solver = SAMPLERS[given.sampler](model.schedule, given.steps)
    x = draw(model, backend(given.backend), solver, given.count, y, given.seed, batch=50)[-1]
    # The classifier sees what a viewer would: whole grey levels.
    x = np.clip(np.rint((x + 1) * 127.5), 0, 255) / 127.5 - 1
    drawn = recognised(net, torch.tensor(x, dtype=torch.float32), torch.tensor(y))

    print(f"{given.sampler}, {given.steps} steps, seed {given.seed}")
    print(f"{'class':14s} {'test images':>12s} {'samples':>8s}")
    for k, label in enumerate(model.labels):
        print(f"{label:14s} {real[test.classes == k].mean():12.1%} {drawn[y == k].mean():8.1%}")
    error = np.sqrt(drawn.mean() * (1 - drawn.mean()) / len(drawn))
    print(f"{'all':14s} {real.mean():12.1%} {drawn.mean():8.1%} (standard error {error:.1%})")


if __name__ == "__main__":
    main()
