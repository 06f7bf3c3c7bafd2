"""How many bits per dimension is a DDPM without a network? The bound of a Gaussian denoiser.

    python benchmarks/gaussian_bound.py                       # under a minute on two cores
    python benchmarks/gaussian_bound.py --data path/to/fashion-mnist

The denoiser is exact for a Gaussian with the mean and covariance of the training images; the bound
is that of the test images, with `linear()`. The mean over the noise is taken in closed form, but in
L_0 by one draw. L_0's masses are exact; with a floor of 1e-12, which is common, they give 0.008
less. Then `elbo`, which draws all noise, runs on a few images: `off` is how far it is from their
closed form, and should be 0 within a few standard errors.
Needs Fashion-MNIST's IDX files (Debian: dataset-fashion-mnist).
"""

from __future__ import annotations

import argparse

import numpy as np

import ddpm_core as ddpm
from ddpm_core.cli.datasets import read, to_range
from ddpm_core.levels import steps_of
from ddpm_core.typing import Array


def squared_error(oracle: ddpm.GaussianOracle, squares: Array, t: ddpm.Level) -> Array:
    """E (x_0 - x̂_0)² over the noise, of given images, along each direction: (B, D).

    squares: (B, D), their (x_0 - m)² along each direction

    x_0 - x̂_0 = (σ² / V) (x_0 - m) - (α c σ / V) eps,   V = α² c + σ²
    """
    c = oracle.variances
    V = t.alpha**2 * c + t.sigma**2
    return squares * (t.sigma**2 / V) ** 2 + (t.alpha * c * t.sigma / V) ** 2


def sum_of_steps(
    oracle: ddpm.GaussianOracle, squares: Array, levels: ddpm.Level, variance: ddpm.process.Variance
) -> Array:
    """The sum of L_1 .. L_{T-1}, its mean over the noise: (B,)."""
    total, centre = np.zeros(len(squares)), np.zeros_like(squares)
    ts, ss = steps_of(levels)
    for i in range(len(ts.sigma) - 1):  # the last step is into clean data: L_0's
        t, s = ts.take(i), ss.take(i)
        # KL is linear in the squared distance: the root of its mean stands for the distance.
        distance = s.alpha * ddpm.levels.tau(t, s) * np.sqrt(squared_error(oracle, squares, t))
        p = ddpm.Gaussian(distance, variance(t, s))
        total += ddpm.kl(ddpm.Gaussian(centre, ddpm.small(t, s)), p)
    return total


def main() -> None:
    """Prints the bound for each variance, how far x̂_0 is off, and what `elbo` says."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    options.add_argument("--count", type=int, default=200, help="images of the comparison")
    options.add_argument("--terms", type=int, default=20, help="its terms, of each image")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()

    train = to_range(read(given.data).images).astype(np.float64)
    x_0 = to_range(read(given.data, split="t10k").images).astype(np.float64)
    dims = x_0[0].size
    oracle = ddpm.GaussianOracle(train.mean(axis=0), np.cov(train.reshape(-1, dims).T))
    schedule = ddpm.linear()
    levels = ddpm.levels_of(schedule, schedule.T)
    noise = ddpm.portable_noise(given.seed, dtype=np.float64)
    squares = ((x_0 - oracle.mean).reshape(-1, dims) @ oracle.basis) ** 2
    variances = {
        "small": ddpm.small,
        "large": ddpm.large,
        "optimal": ddpm.optimal(lambda t: oracle.error(t).mean(axis=-1)),
        "optimal, per direction": ddpm.optimal(oracle.error),
    }

    prior = ddpm.kl(ddpm.process.q_marginal(x_0, schedule(schedule.T)), ddpm.Gaussian(0 * x_0, 1.0))
    first, decoder = schedule(1), ddpm.kernels.decoder_variance(schedule)
    data = np.zeros(len(x_0))
    for ids in np.array_split(np.arange(len(x_0)), -(-len(x_0) // 1000)):
        x_1 = ddpm.q_sample(x_0[ids], noise(0, x_0[ids].shape, ids), first)
        p = ddpm.Gaussian(oracle(x_1, first), decoder)
        data[ids] = -ddpm.gaussians.discretised_log_prob(p, x_0[ids])

    mean_squares = squares.mean(axis=0, keepdims=True)
    ends = [ddpm.bits_per_dim(part, dims).mean for part in (prior, data)]
    print(f"{'bits/dim':24s} {'L_T':>10s} {'steps':>8s} {'L_0':>8s} {'total':>8s}")
    for name, variance in variances.items():
        nats = sum_of_steps(oracle, mean_squares, levels, variance)
        steps = float(nats[0]) / (dims * np.log(2))
        print(f"{name:24s} {ends[0]:10.3e} {steps:8.4f} {ends[1]:8.4f} {sum(ends) + steps:8.4f}")

    print(f"\n{'t':>5s} {'RMSE of x̂_0, of 255':>20s}")
    for time in (1, *range(100, schedule.T + 1, 100)):
        error = squared_error(oracle, mean_squares, schedule(time)).mean()
        print(f"{time:5d} {127.5 * np.sqrt(error):20.3f}")

    x_0, squares, ends_few = (part[: given.count] for part in (x_0, squares, prior + data))
    u = np.random.default_rng(given.seed).random((len(x_0), given.terms))
    print(f"\n{f'{len(u)} images':24s} {'closed':>8s} {'elbo, error':>17s} {'off, error':>17s}")
    for name in ("small", "large", "optimal"):
        kernel = ddpm.reverse(oracle, variances[name])
        drawn = ddpm.elbo(kernel, levels, x_0, noise, u).total
        closed = ends_few + sum_of_steps(oracle, squares, levels, variances[name])
        a, b, c = (ddpm.bits_per_dim(nats, dims) for nats in (closed, drawn, drawn - closed))
        print(f"{name:24s} {a.mean:8.4f} {b.mean:8.4f} {b.error:8.4f} {c.mean:8.4f} {c.error:8.4f}")


if __name__ == "__main__":
    main()
