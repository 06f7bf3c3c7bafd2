"""Has a model learned its training images by heart? It is measured beside a memory of them.

    python benchmarks/memorised.py --model emoji --data emoji

The best denoiser of the training images alone is `DatasetOracle`: it knows them, and nothing else.
What it takes for x_0 is right of images that it has, and wrong of others. Printed is how far x̂_0 is
off, the root of the mean square in grey levels 0 .. 255, at levels from noise to data: the model's
and the memory's, each on training images and on images that were held out. A model that knows its
training images by heart is as good on them as the memory, and worse on others.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from ddpm_core import DatasetOracle, Denoiser, backend, clip, load
from ddpm_core.backends import Backend
from ddpm_core.cli.datasets import to_range
from ddpm_core.cli.rate import Run
from ddpm_core.levels import Level
from ddpm_core.likelihood import errors_at

AT_ONCE = 10  #: images: the memory compares each with all that it has
LOGSNR = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)


def errors(denoise: Denoiser, on: Backend, levels: Level, x_0: np.ndarray, y: bool) -> np.ndarray:
    """The mean square error at each level, a few images at a time; y: pass "no class"."""
    portable, total = on.portable_noise(seed=1), np.zeros(len(LOGSNR))
    for first in range(0, len(x_0), AT_ONCE):
        part = x_0[first : first + AT_ONCE]
        ids = on.asarray(np.arange(first, first + len(part)), on.xp.int32)
        cond = {"y": on.asarray(np.full(len(part), -1), on.xp.int64)} if y else {}
        total += len(part) * errors_at(
            denoise, levels, on.asarray(part), partial(portable, ids=ids), **cond
        )
    return total / len(x_0)


def main() -> None:
    """Prints the four errors at each level."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="emoji")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--count", type=int, default=100, help="images of each kind")
    options.add_argument("--backend", default="torch")
    given = options.parse_args()

    model, on = load(given.model), backend(given.backend)
    run = Run(model, on, labelled=False, seed=0, batch=50)
    unseen = run.read(given.data, "t10k").images
    known = run.trained(given.data, "t10k", None)
    if known is None:
        raise SystemExit(f"{given.model} does not say which images of {given.data} it held out")
    trained = np.asarray(known.images[known.ids])
    rng = np.random.default_rng(0)
    sets = {
        name: to_range(images[rng.permutation(len(images))[: given.count]])
        for name, images in (("training", trained), ("held out", unseen))
    }
    levels = Level(*(np.array(f) for f in zip(*map(model.schedule.at, LOGSNR), strict=True)))
    memory, own = DatasetOracle(to_range(trained)), clip(model.predictor(on.network))
    found = {}
    for name, x_0 in sets.items():
        found[f"model, {name}"] = errors(own, on, levels, x_0, model.config.classes > 0)
        found[f"memory, {name}"] = errors(memory, backend("numpy"), levels, x_0, False)

    print(f"{given.model}: {len(trained)} training images, {len(unseen)} held out")
    print(f"{'log-SNR':>8s}", *(f"{name:>16s}" for name in found))
    for i, logsnr in enumerate(LOGSNR):
        print(f"{logsnr:8g}", *(f"{127.5 * np.sqrt(each[i]):16.2f}" for each in found.values()))


if __name__ == "__main__":
    main()
