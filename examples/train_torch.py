"""A DDPM in a training loop of your own, on torch, with a network of your own.

    python examples/train_torch.py

The network learns to tell the noise in points of a spiral (Ho et al. 2020, Algorithm 1), then a
solver draws new points. Prints the loss, and how far from the spiral the new points lie.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import torch
from spiral import distance, spiral
from torch import Tensor, nn

import ddpm_core as ddpm


class Net(nn.Module):
    """(x, timestep) -> eps, both (B, 2): three hidden layers over x and sinusoids of the time."""

    def __init__(self, width: int = 128, frequencies: int = 8) -> None:
        super().__init__()
        self.register_buffer("rates", 2.0 ** torch.arange(frequencies) * torch.pi / 1000)
        sizes = [2 + 2 * frequencies, width, width, width]
        layers = [f for a, b in itertools.pairwise(sizes) for f in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """The noise in x, as the network sees it."""
        angles = timestep[:, None] * self.rates
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], dim=-1))


def main() -> None:
    """Trains, samples, measures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=4000)
    steps = options.parse_args().steps

    torch.manual_seed(0)
    points = spiral()
    data = torch.tensor(points, dtype=torch.float32)
    schedule = ddpm.linear(1000)
    net = Net()
    predict = ddpm.Predictor(net, schedule)  # it predicts eps, as in the paper
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    for step in range(1, steps + 1):
        x_0 = data[torch.randint(len(data), (512,))]
        t = ddpm.draw(schedule, torch.rand(len(x_0)))
        loss = ddpm.loss(predict, x_0, torch.randn_like(x_0), t).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if step == 1 or step % 1000 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}")

    noise = ddpm.portable_noise(0, torch)
    with torch.inference_mode():
        x = ddpm.sample(predict, ddpm.dpmpp_2m(schedule, 50), noise(0, (512, 2)))
    print(f"median distance to the spiral: {np.median(distance(x.numpy(), points)):.3f}")


if __name__ == "__main__":
    main()
