"""A model's bound on data, term by term, and the rate-distortion curve that follows from it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_core.backends import Backend
from ddpm_core.checkpoints import Checkpoint
from ddpm_core.cli import datasets
from ddpm_core.cli.kept import Kept, fingerprint
from ddpm_core.cli.progress import counted, progress
from ddpm_core.denoisers import clip
from ddpm_core.kernels import Reverse, learned_range, optimal, reverse
from ddpm_core.levels import Level, steps_of
from ddpm_core.likelihood import Elbo, bits_per_dim, elbo, errors_at, interpolated
from ddpm_core.process import large, small
from ddpm_core.typing import Array

_DAMAGED = "the model's weights, or what its file says of them, are damaged"


class Trained(NamedTuple):
    """Images, and the places of those among them that a model was trained on."""

    images: Array
    ids: Array


class Run:
    """A model on a backend, and how images go through it.

    background: of transparent pixels; None is the one that the model was trained with
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        on: Backend,
        labelled: bool,
        seed: int,
        batch: int,
        quiet: bool = False,
        background: str | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.checkpoint, self.on, self.batch = checkpoint, on, batch
        self.labelled, self.seed, self.quiet = labelled, seed, quiet
        noted = checkpoint.notes.get("background")
        self.background = background or (noted if isinstance(noted, str) else "white")
        self.skip_bad = skip_bad
        self.predict = checkpoint.predictor(on.network)
        self.denoise = clip(self.predict)

    def read(self, data: Path, split: str) -> datasets.Images:
        """The images, of the model's size; without those it was trained on, where it tells them."""
        found = self.read_all(data, split)
        if self.standing(data, split) == "held out":
            ids = np.flatnonzero(datasets.held_out(found.images, self.held_out))
            if len(ids) == 0:
                raise ValueError(
                    f"the model may have been trained on each of the {len(found.images)} images of "
                    f"{data}: it holds out a share of {self.held_out:g}, and none of these"
                )
            found = datasets.part(found, ids)
        classes = self.checkpoint.config.classes
        if self.labelled and classes == 0:
            raise ValueError("--labelled was given, but this model has no classes")
        if self.labelled and (found.classes is None or found.classes.max() >= classes):
            raise ValueError(f"--labelled needs data with classes 0 to {classes - 1}, not {data}")
        return found

    def read_all(self, data: Path, split: str) -> datasets.Images:
        """The images, also those that the model was trained on."""
        height, width = self.checkpoint.size
        found = datasets.read(
            data,
            split=split,
            size=height if height == width else None,
            background=self.background,
            skip_bad=self.skip_bad,
        )
        wanted = (self.checkpoint.config.channels, height, width)
        if found.images.shape[1:] != wanted:
            raise ValueError(
                f"{data} has images of shape {found.images.shape[1:]}, but the model's are {wanted}"
            )
        return found

    @property
    def held_out(self) -> float:
        """The share of all images that the model says it was never trained on; 0 for none."""
        share = self.checkpoint.notes.get("held_out")
        return share if isinstance(share, float) and 0 < share <= 1 else 0.0

    def standing(self, data: Path, split: str) -> str:
        """What says that the model was not trained on what `read` gives: "test split", "held out",
        or "unknown" if nothing does.
        """
        is_test = data.is_file() and data.name.startswith("t10k-images")
        if datasets.has_splits(data):
            is_test = split == "t10k"
        return "test split" if is_test else "held out" if self.held_out else "unknown"

    def trained(self, data: Path, split: str, train_data: Path | None) -> Trained | None:
        """What the model was trained on: of train_data, or of the same data; None if unknown."""
        standing = self.standing(data, split)
        known = standing == "held out" or (standing == "test split" and datasets.has_splits(data))
        if train_data is None and not known:
            return None
        images = self.read_all(train_data or data, "train").images
        ids = np.flatnonzero(~datasets.held_out(images, self.held_out))
        if len(ids) == 0:
            raise ValueError(f"the model was trained on no image of {train_data or data}")
        return Trained(images, ids)

    def unseen(self, data: Path, split: str, found: datasets.Images, used: int) -> datasets.Images:
        """Up to 128 images that are not evaluated: of the training split, or those left over."""
        if split != "train" and datasets.has_splits(data):
            found, used = self.read(data, "train"), 0
        ids = np.arange(used, min(used + 128, len(found.images)))
        if len(ids) == 0:
            raise ValueError(
                "no image is left to measure the optimal variance on: pass fewer --images, or "
                "--variance small"
            )
        return datasets.part(found, ids)

    def batches(
        self, images: datasets.Images, places: Array, first_id: int = 0
    ) -> Iterable[tuple[Any, ...]]:
        """Of the images at these places, batch by batch: places, x_0, noise, and conditions."""
        portable = self.on.portable_noise(self.seed)
        for first in range(0, len(places), self.batch):
            at = places[first : first + self.batch]
            part = images.images[at]
            ids = self.on.asarray(at + first_id, self.on.xp.int32)

            def noise(step: int, shape: tuple[int, ...], ids: Array = ids) -> Array:
                return portable(step, shape, ids)

            cond: dict[str, Any] = {}
            if self.checkpoint.config.classes:
                y = np.full(len(part), -1)
                if self.labelled and images.classes is not None:
                    y = images.classes[at]
                cond["y"] = self.on.asarray(y, self.on.xp.int64)
            yield at, self.on.asarray(datasets.to_range(part)), noise, cond

    def kernel(
        self,
        variance: str,
        levels: Level,
        unseen: datasets.Images | None = None,
        folder: Path | None = None,
    ) -> Reverse:
        """The reverse process of a variance; the optimal one is measured here, on unseen images.

        folder: where what was measured is kept, or None
        """
        schedule = self.checkpoint.schedule
        if variance == "learned":
            t, s = steps_of(levels)
            return learned_range(self.denoise, float(small(t.take(-2), s.take(-2))))
        if variance != "optimal":
            return reverse(self.denoise, small if variance == "small" else large)
        assert unseen is not None
        times = np.unique(np.rint(np.geomspace(1, schedule.ends[1], 40)))
        some = schedule(times)
        about = {
            "model": fingerprint(self.checkpoint), "seed": self.seed, "images": self.digest(unseen),
        }  # fmt: skip
        kept = Kept(folder, "errors", about, {"error": np.zeros((len(unseen.images), len(times)))})
        places = kept.lacking(self.batch)
        # Other noise than that of the evaluation: its ids are above all of those.
        parts = list(self.batches(unseen, places, first_id=1 << 30))
        with progress(len(parts), "Measuring the variance", quiet=self.quiet) as bar:
            for at, x_0, noise, cond in counted(parts, bar):
                error = errors_at(self.denoise, some, x_0, noise, **cond)
                if not np.isfinite(error).all():
                    raise ValueError(f"the errors of the denoiser are not finite: {_DAMAGED}")
                # The mean of its batch stands for each image: the mean of all is the same.
                kept.add(at, error=np.tile(error, (len(at), 1)))
        mean = kept.wait()["error"].mean(axis=0)
        return reverse(self.denoise, optimal(interpolated(some, mean)))

    def digest(self, images: datasets.Images) -> str:
        """Eight digits that differ from those of other images, or of other classes if told."""
        total = zlib.crc32(np.ascontiguousarray(images.images).tobytes())
        if self.labelled and images.classes is not None:
            total = zlib.crc32(images.classes.astype(np.int64).tobytes(), total)
        return f"{total:08x}"

    def bound(
        self,
        kernel: Reverse,
        levels: Level,
        images: datasets.Images,
        u: Array | None,
        about: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> Kept:
        """The bound of this process's share of the images, as float64 of the host.

        about: what it depends on besides the model, the images and the seed
        folder: where it is kept, or None

        ValueError if it is not finite.
        """
        count, terms = len(images.images), len(levels.sigma) - 2 if u is None else u.shape[1]
        about = {
            "model": fingerprint(self.checkpoint), "seed": self.seed, **(about or {}),
            "images": self.digest(images),
        }  # fmt: skip
        sizes = {"prior": (), "steps": (terms,), "data": (), "weight": (terms,)}
        arrays: dict[str, Array] = {name: np.zeros((count, *size)) for name, size in sizes.items()}
        arrays["index"] = np.zeros((count, terms), np.int64)
        arrays["error"] = np.zeros((count, terms + 1))
        kept = Kept(folder, "bounds", about, arrays)
        places = kept.lacking(self.batch)
        batches = -(-len(places) // self.batch)
        with progress(batches * (terms + 1), "Evaluating", quiet=self.quiet) as bar:
            for at, x_0, noise, cond in self.batches(images, places):
                some = None if u is None else u[at]
                part = elbo(
                    kernel, levels, x_0, noise, some, progress=lambda js: counted(js, bar), **cond
                )
                bar.advance()
                host = {
                    name: value if name in ("index", "weight") else self.on.to_numpy(value)
                    for name, value in part._asdict().items()
                }
                host = {name: value.astype(arrays[name].dtype) for name, value in host.items()}
                if not all(np.isfinite(value).all() for value in host.values()):
                    raise ValueError(
                        f"the bound of images {at[0]} to {at[-1]} is not finite: {_DAMAGED}"
                    )
                kept.add(at, **host)
        return kept


def report(result: Elbo, levels: Level, dims: int) -> dict[str, Any]:
    """The bound's parts in bits per dimension, and rate against distortion, coarse and fine."""
    return {
        "bits_per_dim": _bits(result.total, dims),
        "prior": _bits(result.prior, dims),
        "steps_sum": _bits(result.steps.sum(axis=1), dims),
        "decoder": _bits(result.data, dims),
        "rate_distortion": _curve(result, levels, dims, 10),  # as in the paper's Table 4
        "curve": _curve(result, levels, dims, 50),
    }


def _bits(nats: Array, dims: int) -> dict[str, float]:
    return dict(bits_per_dim(nats, dims)._asdict())


def _curve(result: Elbo, levels: Level, dims: int, count: int) -> list[dict[str, Any]]:
    """The steps in rows of equally many: bits, the rate to the end of the row, and the error."""
    n = len(levels.sigma) - 1
    edges = np.rint(np.linspace(0, n - 1, min(count, n - 1) + 1)).astype(int).tolist()
    rows: list[dict[str, Any]] = []
    rate = result.prior
    errors = result.error[:, :-1]
    for low, high in pairwise(edges):
        within = (result.index >= low) & (result.index < high)
        if not within.any():  # an estimate may have drawn no term there: the next row has them
            continue
        spent = np.where(within, result.steps, 0.0).sum(axis=1)
        weight = np.where(within, result.weight, 0.0)
        rate = rate + spent
        first, last = levels.time[low], levels.time[high - 1]
        rows.append(_row(first, last, _bits(spent, dims), _bits(rate, dims), errors, weight))
    time, last_errors = levels.time[n - 1], result.error[:, -1:]
    bits = _bits(result.data, dims), _bits(rate, dims)
    rows.append(_row(time, time, *bits, last_errors, np.ones_like(last_errors)))
    return rows


def _row(
    first: float,
    last: float,
    bits: dict[str, float],
    rate: dict[str, float],
    errors: Array,
    weight: Array,
) -> dict[str, Any]:
    """One row, with the root of the weighted mean of errors (B, m), and its standard error.

    The mean is a ratio, Σ w e / Σ w, each over images: its standard error, and that of its root,
    are those of its first-order expansion. One image alone has none.
    """
    total = weight.sum()
    mean = (weight * errors).sum() / total
    off = (weight * (errors - mean)).sum(axis=1)
    count = len(off)
    spread = None
    if np.count_nonzero(weight.sum(axis=1)) > 1 and mean > 0:
        deviation = np.sqrt(count / (count - 1) * (off**2).sum()) / total
        spread = float(127.5 * deviation / (2 * np.sqrt(mean)))
    return {
        "from": float(first), "to": float(last), "bits": bits, "rate": rate,
        "rmse": float(127.5 * np.sqrt(mean)), "rmse_error": spread,
    }  # fmt: skip
