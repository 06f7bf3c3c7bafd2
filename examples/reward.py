"""Reinforcement learning: a network fine-tuned on a reward by policy gradients, on torch.

    python examples/reward.py

The network first learns a spiral, as in `train_torch.py`; about a fifth of its points lie within
the unit circle. Then each sample in the circle is rewarded with 1, any other with 0. This reward
has no gradient, but a step of the sampler is a random choice of known log probability, and that of
the steps that led to a reward is raised (Black et al. 2024, DDPO, the score function estimator).
Prints the mean reward, and the median distance to the spiral: nothing holds the samples near it
now but what the network had learned.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from spiral import distance, spiral
from torch import Tensor
from train_torch import Net

import ddpm_core as ddpm
from ddpm_core.samplers import Row, State, log_prob_of_step

SCHEDULE = ddpm.linear(1000)
SAMPLER = ddpm.ancestral(SCHEDULE, 10)


def reward(x: Tensor) -> Tensor:
    """1 within the unit circle, 0 outside it: (B,)."""
    return ((x**2).sum(1) < 1).float()


@torch.no_grad()
def paths(predict: ddpm.Denoiser, count: int) -> tuple[Tensor, list[tuple[Row, State, Tensor]]]:
    """Samples (count, 2), and of each step with noise the state before and the point after."""
    state, steps = SAMPLER.start(torch.randn(count, 2)), []
    for row in SAMPLER.rows():
        z = torch.randn(count, 2) if row.point[-1] else None
        after = ddpm.advance(row, state, predict(state.point, row.level), z)
        if z is not None:
            steps.append((row, state, after.point))
        state = after
    return state.point, steps


def main() -> None:
    """Trains, rewards, measures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=3000, help="of training on the spiral")
    options.add_argument("--updates", type=int, default=60, help="by the reward")
    options = options.parse_args()

    torch.set_num_threads(1)  # faster for arrays this small
    torch.manual_seed(0)
    points = spiral()
    data = torch.tensor(points, dtype=torch.float32)
    net = Net()
    predict = ddpm.Predictor(net, SCHEDULE)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(options.steps):
        x_0 = data[torch.randint(len(data), (512,))]
        t = ddpm.draw(SCHEDULE, torch.rand(len(x_0)))
        ddpm.loss(predict, x_0, torch.randn_like(x_0), t).mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    optimiser = torch.optim.Adam(net.parameters(), lr=2e-4)
    for update in range(options.updates + 1):
        x, steps = paths(predict, 512)
        given = reward(x)
        if update % 10 == 0:
            off = np.median(distance(x.numpy(), points))
            print(f"update {update:3d}  reward {given.mean():.3f}  off the spiral by {off:.3f}")
        advantage = (given - given.mean()) / (given.std() + 1e-6)
        for row, state, x_next in steps:
            log_p = log_prob_of_step(row, state, predict(state.point, row.level), x_next)
            (-(advantage * log_p).mean() / len(steps)).backward()
        optimiser.step()
        optimiser.zero_grad()


if __name__ == "__main__":
    main()
