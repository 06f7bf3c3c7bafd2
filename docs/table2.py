"""Trains and measures the rows of table2.json, and writes table2.md: Ho et al.'s Table 2, anew.

    pip install -e '.[train]' && python docs/table2.py

Takes two hours on one core. What table2.json has is not done again: a run that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import ddpm_core as ddpm
from ddpm_core.backends import backend
from ddpm_core.checkpoints.classifier import load_classifier
from ddpm_core.checkpoints.files import write_whole
from ddpm_core.cli.datasets import read, to_range
from ddpm_core.cli.pictures import to_bytes
from ddpm_core.distances import frechet
from ddpm_core.kernels import Reverse, learned_range
from ddpm_core.levels import Level, steps_of
from ddpm_core.likelihood import bits_per_dim, elbo
from ddpm_core.parameterisations import named
from ddpm_core.process import small
from ddpm_core.samplers import sample_kernel
from ddpm_core_torch.training import Recipe, Trainer

HERE = Path(__file__).parent
DATA = "/usr/share/datasets/fashion-mnist"
TARGETS = ("mu", "eps", "x0", "v")
SEEDS = (0, 1, 2)
SCHEDULE = ddpm.linear(1000)
STEPS, WARMUP, DECAY = 1000, 100, 0.99
COUNT, TERMS, SAMPLER_STEPS = 500, 10, 25

#: What is minimised, as a reader of the paper knows it: its objective, and the variances with which
#: the network is measured. "learned" is one more output of the network.
LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "L": ("vlb", ("small", "large")),
    "L, learned": ("vlb", ("learned",)),
    "L_simple": ("simple", ("small", "large")),
    "L_hybrid": ("simple", ("learned",)),
}
FIXED = {"small": ddpm.small, "large": ddpm.large}
on = backend("torch")


# The measurements. ------------------------------------------------------------------------------


def train(images: np.ndarray, target: str, name: str, seed: int) -> ddpm.Predictor:
    """The average of a small network's weights over a short training."""
    objective, variances = LOSSES[name]
    learned = variances == ("learned",)
    config = ddpm.UNetConfig(
        channels=1, out_channels=1 + learned, widths=(16, 32, 32), blocks=1, attention=(), groups=8
    )
    recipe = Recipe(
        batch=32, lr=1e-3, warmup=WARMUP, ema=DECAY, objective=objective, flip=True, seed=seed
    )
    trainer = Trainer(images, None, config, SCHEDULE, target, recipe)
    trainer.train(STEPS)
    network = on.network(trainer.averaged(), config)
    return ddpm.Predictor(network, SCHEDULE, named(target, SCHEDULE), learned)


def kernel(predict: ddpm.Predictor, variance: str, levels: Level) -> Reverse:
    denoise = ddpm.clip(predict)
    if variance != "learned":
        return ddpm.reverse(denoise, FIXED[variance])
    t, s = steps_of(levels)
    return learned_range(denoise, float(small(t.take(-2), s.take(-2))))


def bits(predict: ddpm.Predictor, variance: str, images: np.ndarray, seed: int) -> float:
    """The bound, estimated without bias from some of its terms."""
    levels = ddpm.levels_of(SCHEDULE, SCHEDULE.T)
    found = elbo(
        kernel(predict, variance, levels), levels, on.asarray(to_range(images)),
        on.portable_noise(seed), np.random.default_rng(seed).random((len(images), TERMS)),
    )  # fmt: skip
    return bits_per_dim(found.total, images[0].size).mean


def samples(predict: ddpm.Predictor, variance: str, seed: int) -> np.ndarray:
    levels = ddpm.levels_of(SCHEDULE, SAMPLER_STEPS)
    noise = on.portable_noise(seed)
    x = noise(0, (COUNT, 1, 28, 28))
    return to_bytes(on.to_numpy(sample_kernel(kernel(predict, variance, levels), levels, x, noise)))


def rows(todo: Iterable[tuple[int, str, str]]) -> Iterable[list[dict[str, Any]]]:
    """The rows of each training that is to be done. Each seed has its own test images."""
    images, test = read(DATA).images, read(DATA, split="t10k").images
    features = load_classifier()
    real = features(test)
    for seed, target, name in todo:
        found: list[dict[str, Any]] = []
        try:
            predict = train(images, target, name, seed)
        except FloatingPointError:  # training has diverged
            predict = None
        for variance in LOSSES[name][1]:
            row = {"target": target, "loss": name, "variance": variance, "seed": seed}
            if predict is None:
                found.append(row | {"bits": None, "frechet": None})
                continue
            part = test[seed * COUNT : (seed + 1) * COUNT]
            drawn = features(samples(predict, variance, seed))
            found.append(
                row
                | {
                    "bits": bits(predict, variance, part, seed),
                    "frechet": frechet(drawn, real).value,
                }
            )
        yield found


def measure(path: Path) -> list[dict[str, Any]]:
    """All rows: those of the file, and those that it lacks, which it then has."""
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    there = {(row["seed"], row["target"], row["loss"]) for row in found}
    wanted = [key for key in product(SEEDS, TARGETS, LOSSES) if key not in there]
    for new in rows(wanted):
        found += new
        print(*new, sep="\n", flush=True)
        write_whole(path, ("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n").encode())
    return found


# The page. --------------------------------------------------------------------------------------


def spread(values: list[float | None]) -> str:
    """The mean over seeds and its standard error; how many trainings there are if one diverged."""
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return f"{len(values) - len(found)} of {len(values)} diverged"
    digits = 3 if max(found) < 100 else 0
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    return f"{np.mean(found):.{digits}f} ± {error:.{digits}f}"


def floor() -> str:
    """Real images beside real ones: what is left of the Fréchet distance where nothing differs."""
    features, images = load_classifier(), read(DATA).images
    real = features(read(DATA, split="t10k").images)
    parts = [images[seed * COUNT : (seed + 1) * COUNT] for seed in SEEDS]
    return spread([frechet(features(part), real).value for part in parts])


def page(found: list[dict[str, Any]]) -> str:
    lines = ["| target | loss | variance | bits/dim | Fréchet distance |", "|---|---|---|---|---|"]
    for target, name in product(TARGETS, LOSSES):
        for variance in LOSSES[name][1]:
            cell = (target, name, variance)
            mine = [row for row in found if (row["target"], row["loss"], row["variance"]) == cell]
            numbers = (spread([row[key] for row in mine]) for key in ("bits", "frechet"))
            lines.append(f"| {' | '.join(cell)} | {' | '.join(numbers)} |")
    config = f"{STEPS:,} steps of 32 images"
    return f"""\
# The paper's Table 2, on Fashion-MNIST and a small budget

`python docs/table2.py` writes this page.

Ho et al. 2020 ask in their Table 2 what a network should predict, and what should be minimised. Here are their rows and those that came
later, each by the same small network (267,000 parameters) in {config}: no number here is a good one, and what is compared is what one budget
buys. `linear` noise of 1,000 levels, Adam at 1e-3 after {WARMUP} steps of warm-up, the average of the weights with decay {DECAY}.

- **target**: what the network predicts: mu is the paper's μ̃, the mean of the posterior.
- **loss**: L is the variational bound; *L, learned* the bound with a learned variance (Nichol & Dhariwal 2021); L_simple the plain squared error of the
  target (for eps, Eq. 14); L_hybrid adds to it 0.001 of the bound, for the learned variance alone (Nichol & Dhariwal 2021, Eq. 16).
- **variance** of the reverse process: small is β̃, large is β. Both are of one training, since they hardly change the weights of L.
- **bits/dim** of {COUNT} test images a seed, without bias from {TERMS} terms of the bound each and L_0.
- **Fréchet distance**, squared, of {COUNT} samples ({SAMPLER_STEPS} ancestral steps) from the 10,000 test images, in the features of the
  [bundled classifier](../ddpm_core/models/classifiers/fashion-mnist.md). {COUNT} training images are at {floor()}.

Each number is the mean over {len(SEEDS)} seeds, of training, noise and test images, ± its standard error.

{chr(10).join(lines)}

## What comes out

In the paper's table (CIFAR-10, 800,000 steps) eps with L_simple has by far the best samples (FID 3.17); mu and eps with L are alike (13.22 and 13.51); mu
with the plain error, and eps with L and a learned variance, did not train. Beside that:

- **Samples and bits want different losses**, as there: for each of eps, x0 and v, L_simple has the better samples, and L the better bits.
- **mu trains by L alone**, as there. With the plain error it is worse, and with L_hybrid it diverged. Even with L it is far behind in so few steps: a
  network must first learn to return x_t, which the others need not.
- **A learned variance trains**, unlike there, because Nichol & Dhariwal's range binds it; for eps and v it has the best bits.
- **x0 has bad bits and good samples**: at little noise an error of x_0 costs its square times the signal-to-noise ratio, and is not seen.
- **large has better bits than small, and for eps, x0 and v worse samples** in {SAMPLER_STEPS} steps. A variance of β takes short steps for granted.
"""


if __name__ == "__main__":
    rows_of_all = measure(HERE / "table2.json")
    (HERE / "table2.md").write_text(page(rows_of_all))
