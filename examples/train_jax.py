"""A DDPM on Fashion-MNIST in a training loop of your own, on JAX: the UNet and optax.

    pip install 'ddpm-core[cli,jax]' optax
    python examples/train_jax.py --steps 5000 --out fashion-jax

Trains with Adam, a warm-up, clipped gradients and an average of the weights, as Ho et al. 2020 did.
Writes samples.png and model.safetensors, which every backend and `ddpm-core sample --model` read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ddpm_core as ddpm
import ddpm_core_jax
from ddpm_core.cli.datasets import read, to_range
from ddpm_core.cli.pictures import grid, write_png
from ddpm_core.nn import UNetConfig, initialise

SCHEDULE = ddpm.linear(1000)
ON = ddpm_core_jax.JAX()
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def main() -> None:
    """Trains, measures, samples."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=5000)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--widths", type=int, nargs="+", default=[32, 64, 64])
    options.add_argument("--warmup", type=int, default=200, help="steps in which the rate rises")
    options.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    options.add_argument("--out", type=Path, default=Path("fashion-jax"))
    options = options.parse_args()

    images, classes, *_ = read(options.data)
    config = UNetConfig(
        channels=1,
        out_channels=1,
        widths=options.widths,
        attention=(),  # besides the middle, which always has it
        groups=8,
        classes=len(FASHION),
    )
    rng = np.random.default_rng(0)
    params = {name: ON.asarray(p) for name, p in initialise(config, rng).items()}
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.linear_schedule(0.0, 1e-3, options.warmup)),
    )

    def objective(params: Any, x_0: jax.Array, y: jax.Array, u: jax.Array, eps: jax.Array) -> Any:
        predict = ddpm.Predictor(ON.network(params, config), SCHEDULE)
        return ddpm.loss(predict, x_0, eps, ddpm.draw(SCHEDULE, u), y=y).mean()

    @jax.jit
    def step(params: Any, average: Any, state: Any, number: Any, x_0: Any, y: Any) -> Any:
        times, noise, labels = jax.random.split(jax.random.fold_in(jax.random.key(0), number), 3)
        # One label in ten is left out, so that the network also samples without a class.
        y = jnp.where(jax.random.bernoulli(labels, 0.1, y.shape), -1, y)
        u, eps = jax.random.uniform(times, y.shape), jax.random.normal(noise, x_0.shape)
        gradient = jax.grad(objective)(params, x_0, y, u, eps)
        updates, state = optimiser.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(0.999, (1 + number) / (10 + number))
        return params, optax.incremental_update(params, average, 1 - decay), state

    # From batch to batch the loss jumps with the times drawn, so it is measured on one fixed batch.
    held = read(options.data, "t10k")
    x_0, y = ON.asarray(to_range(held.images[:64])), ON.asarray(held.classes[:64], jnp.int32)
    eps = ddpm.portable_noise(1, jnp)(0, x_0.shape)
    fixed = x_0, y, (jnp.arange(64) + 0.5) / 64, eps
    measure = jax.jit(objective)
    average, state = params, optimiser.init(params)
    print(f"before: loss {measure(average, *fixed):.4f}")
    for number in range(1, options.steps + 1):
        index = rng.integers(len(images), size=options.batch)
        x_0, y = ON.asarray(to_range(images[index])), ON.asarray(classes[index], jnp.int32)
        params, average, state = step(params, average, state, number, x_0, y)
        if number % 500 == 0 or number == options.steps:
            print(f"step {number}: loss {measure(average, *fixed):.4f}")

    options.out.mkdir(parents=True, exist_ok=True)
    weights = {name: ON.to_numpy(p) for name, p in average.items()}
    checkpoint = ddpm.Checkpoint(weights, config, SCHEDULE, (28, 28), labels=FASHION)
    ddpm.save(options.out / "model.safetensors", checkpoint)
    denoise = ddpm.clip(ddpm.Predictor(ON.network(average, config), SCHEDULE))
    noise = ddpm.portable_noise(0, jnp)
    y = jnp.tile(jnp.arange(10), 4)
    x = ddpm_core_jax.sample(denoise, ddpm.dpmpp_2m(SCHEDULE, 20), noise(0, (40, 1, 28, 28)), y=y)
    write_png(options.out / "samples.png", grid(ON.to_numpy(x), columns=10), scale=2)
    print(f"wrote {options.out}/model.safetensors and samples.png")


if __name__ == "__main__":
    main()
