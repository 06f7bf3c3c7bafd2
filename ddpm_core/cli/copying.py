"""How near samples are to training images, beside how near images that were not trained on are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ddpm_core.cli import pictures
from ddpm_core.cli.progress import progress
from ddpm_core.distances import Nearest, data_copying, nearest
from ddpm_core.typing import Array

QUANTILE = 0.01  #: of the unseen images' distances
SHOWN = 16  #: pairs of a picture
_SMALLEST = 5
_AT_ONCE = 1 << 22  #: pixels of training images


def nearest_images(samples: Array, images: Array, trained: Array) -> Nearest:
    """For each sample the place in `images` of the nearest that was trained on, and its distance.

    samples: (N, C, H, W) uint8
    images: (M, C, H, W) uint8, an array or what gives one for an array of indices
    trained: (K,), the places of those that were trained on

    The distance is the root of the mean square over pixels, in grey levels 0 .. 255.
    """
    dims = math.prod(samples.shape[1:])
    index = np.zeros(len(samples), np.int64)
    distance = np.full(len(samples), np.inf)
    step = max(1, _AT_ONCE // dims)
    with progress(len(trained), "Comparing with training images") as bar:
        for first in range(0, len(trained), step):
            ids = trained[first : first + step]
            found = nearest(samples.reshape(-1, dims), np.asarray(images[ids]).reshape(-1, dims))
            closer = found.distance < distance
            index[closer] = ids[found.index[closer]]
            distance[closer] = found.distance[closer]
            bar.advance(len(ids))
    return Nearest(index, distance / math.sqrt(dims))


def compared(drawn: Array, unseen: Array) -> dict[str, Any]:
    """Distances of samples and of unseen images from the nearest training images, and how they
    compare: the share of samples below the unseen ones' first per cent, and `data_copying`.
    """
    limit = float(np.quantile(unseen, QUANTILE))
    share = float((drawn < limit).mean())
    return {
        "drawn": _summary(drawn),
        "unseen": _summary(unseen),
        "nearer": {"value": share, "error": math.sqrt(share * (1 - share) / len(drawn))},
        "data_copying": data_copying(drawn, unseen),
    }


def _summary(distance: Array) -> dict[str, Any]:
    return {
        "count": len(distance),
        "median": float(np.median(distance)),
        "quantile": float(np.quantile(distance, QUANTILE)),
        "smallest": np.sort(distance)[:_SMALLEST].tolist(),
    }


def show(numbers: Mapping[str, Any], console: Console) -> None:
    """The numbers of `compared`, and how many images were trained on, as a table."""
    console.print(
        f"\nDistances from the nearest of {numbers['trained']} training images, RMS over pixels of "
        f"0..255",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    both = numbers["drawn"], numbers["unseen"]
    heads = (
        f"{each['count']} {what}"
        for each, what in zip(both, ("samples", "other real"), strict=True)
    )
    table = Table("", *heads, box=None, pad_edge=False)
    for key, label in (("median", "median"), ("quantile", f"{QUANTILE:.0%} are below")):
        table.add_row(label, *(f"{each[key]:.2f}" for each in both))
    smallest = (", ".join(f"{d:.2f}" for d in each["smallest"][:3]) for each in both)
    table.add_row("smallest", *smallest)
    console.print(table)
    share, z = numbers["nearer"], numbers["data_copying"]
    console.print(
        f"{share['value']:.2%} of the samples (standard error {share['error']:.2%}) are nearer "
        f"than {QUANTILE:.0%} of the other real images.\n"
        f"Data copying (Meehan et al. 2020): z = {z:.2f}; far below 0, samples are "
        f"copies or too smooth.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def draw_pairs(path: Path, samples: Array, images: Array, found: Nearest) -> None:
    """Writes the samples nearest to a training image in one row, and those images below."""
    first = np.argsort(found.distance, kind="stable")[:SHOWN]
    pairs = np.concatenate([samples[first], np.asarray(images[found.index[first]])])
    sheet = pictures.grid(pairs, len(first))
    pictures.write_png(path, sheet, 3, rows=("sample", "training"))
