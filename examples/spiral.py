"""Sampling without a network: the exact denoiser of a finite data set, on NumPy alone.

    python examples/spiral.py

Prints how far from the data samples end, for three solvers and five numbers of steps. The denoiser
is exact, so the distance falls towards 0 as the steps grow in number.
"""

from __future__ import annotations

import numpy as np

import ddpm_core as ddpm


def spiral(count: int = 142) -> np.ndarray:
    """Points (count, 2) along two turns of a spiral, of about unit variance."""
    angle = np.sqrt(np.linspace(0.05, 1, count)) * 4 * np.pi
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1) * (angle / angle.max())[:, None] * 2


def distance(x: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The distance from each sample (N, 2) to the nearest of the points (M, 2): (N,)."""
    return np.sqrt(((x[:, None] - points[None]) ** 2).sum(-1)).min(1)


def main() -> None:
    """Draws 512 points with each solver and number of steps."""
    points = spiral()
    denoise = ddpm.DatasetOracle(points)
    schedule = ddpm.linear(1000)
    noise = ddpm.portable_noise(seed=0)
    x_T = noise(0, (512, 2))
    print("median distance to the data")
    print(f"{'steps':>6s} {'ancestral':>10s} {'ddim':>10s} {'dpmpp_2m':>10s}")
    for steps in (5, 10, 20, 50, 200):
        row = [
            np.median(distance(ddpm.sample(denoise, solver(schedule, steps), x_T, noise), points))
            for solver in (ddpm.ancestral, ddpm.ddim, ddpm.dpmpp_2m)
        ]
        print(f"{steps:6d} " + " ".join(f"{value:10.2e}" for value in row))


if __name__ == "__main__":
    main()
