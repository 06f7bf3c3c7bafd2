"""How samples of a model score beside real images, in the features of a classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ddpm_core.checkpoints.classifier import Classifier, load_classifier
from ddpm_core.cli import copying, processes
from ddpm_core.cli.datasets import Images
from ddpm_core.cli.drawing import (
    SAMPLERS,
    batches,
    check_guidable,
    check_sampler,
    check_steps,
    classes_of,
    deal,
    parse_guidance,
)
from ddpm_core.cli.kept import Kept, fingerprint
from ddpm_core.cli.pictures import to_bytes
from ddpm_core.cli.rate import Run, Trained
from ddpm_core.distances import Measured, scores
from ddpm_core.typing import Array

LEAST = 4  #: samples, of which each has three others
_ROWS = {
    "frechet": "Fréchet distance, squared",
    "kernel": "kernel distance, squared",
    "precision": "precision",
    "recall": "recall",
    "recognised": "recognised",
}


@dataclass(frozen=True)
class How:
    """How samples are drawn. ValueError if they cannot be."""

    sampler: str
    sampler_steps: int
    guidance: float | None
    guidance_interval: tuple[float, float] | None

    def __post_init__(self) -> None:
        check_sampler(self.sampler)
        parse_guidance(self.guidance, self.guidance_interval)

    def about(self) -> dict[str, Any]:
        """As JSON has it."""
        interval = self.guidance_interval
        return asdict(self) | {"guidance_interval": interval and list(interval)}


class Judge:
    """A model's samples, yet to be drawn, and real images beside them.

    trained: what the model was trained on, if that is known
    folder: where the samples are kept, or None

    classifier: the bundled one; None if it takes no such images, so that nothing is measured but
        how near samples are to training images
    real, other: as many images as samples, and as many others; without a classifier, all and none

    ValueError if there are too few images, or nothing can be measured.
    """

    def __init__(
        self, run: Run, found: Images, data: Path, count: int, how: How,
        trained: Trained | None, folder: Path | None,
    ) -> None:  # fmt: skip
        checkpoint, images = run.checkpoint, found.images
        classifier = load_classifier()
        self.classifier = classifier if images.shape[1:] == classifier.shape else None
        if self.classifier is None and trained is None:
            raise ValueError(
                f"the bundled classifier takes images of shape {classifier.shape}, but those "
                f"of {data} are {images.shape[1:]}: pass --train-data, to see how near samples are "
                f"to it, or --features, an .npz of features that you made"
            )
        size = len(images) if self.classifier is None else count
        if count < LEAST:
            raise ValueError(f"--samples must be at least {LEAST}, but is {count}")
        if self.classifier is not None and 2 * count > len(images):
            raise ValueError(
                f"--samples {count} needs {2 * count} images, as many to compare with and as many "
                f"others, but {data} has {len(images)}"
            )
        check_steps(how.sampler_steps, checkpoint.schedule, "--sampler-steps")
        # Pictures in folders come class by class.
        order = np.random.default_rng(run.seed).permutation(len(images))[: 2 * size]
        self.trained, self.real, self.other = trained, images[order[:size]], images[order[size:]]
        self.true = None if found.classes is None else found.classes[order[size:]]
        if self.classifier is None:
            self.true = None
        dealt = deal(None, checkpoint)
        if dealt is not None and self.true is not None and self.true.max() < len(dealt):
            # Not those of `real`: samples that share its classes by design are too near to it.
            dealt = self.true
        if how.guidance is not None:
            check_guidable(checkpoint, dealt)
        self.y = classes_of(dealt, np.arange(count))
        self.run, self.how = run, how
        self.guidance = parse_guidance(how.guidance, how.guidance_interval)
        self.solver = SAMPLERS[how.sampler](checkpoint.schedule, how.sampler_steps)
        about = {"model": fingerprint(checkpoint), "seed": run.seed, **how.about()}
        channels, height, width = images.shape[1:]
        self.kept = Kept(
            folder, "samples", about,
            {"images": np.zeros((count, height, width, channels), np.uint8)},
            {} if self.y is None else {"classes": self.y},
        )  # fmt: skip

    def draw_share(self) -> None:
        """Draws what is lacking of this process's share."""
        run, kept = self.run, self.kept
        ids = kept.lacking(run.batch)
        for part, (x,) in batches(
            run.checkpoint, run.on, self.solver, ids, self.y, run.seed, run.batch,
            guidance=self.guidance, quiet=processes.process().rank > 0,
        ):  # fmt: skip
            kept.add(part, images=to_bytes(x).transpose(0, 2, 3, 1))

    def samples(self) -> Array:
        """All samples, uint8 (N, C, H, W)."""
        self.draw_share()
        return np.ascontiguousarray(self.kept.wait()["images"].transpose(0, 3, 1, 2))

    def numbers(self, plot: Path | None) -> dict[str, Any]:
        """What `compared` gives, the share that is recognised where the classes are known, and how
        near to training images samples are where those are known.

        plot: of the nearest pairs, a .png
        """
        samples, trained = self.samples(), self.trained
        found: dict[str, Any] = {**self.how.about(), "count": len(samples)}
        if self.classifier is not None:
            found |= self._scores(self.classifier, samples)
        if trained is not None:
            unseen = np.concatenate([self.real, self.other])
            both = [copying.nearest_images(x, *trained) for x in (samples, unseen)]
            found["nearest"] = {"trained": len(trained.ids)}
            found["nearest"] |= copying.compared(*(each.distance for each in both))
            if plot is not None:
                copying.draw_pairs(plot, samples, trained.images, both[0])
        return found

    def _scores(self, classifier: Classifier, samples: Array) -> dict[str, Any]:
        drawn, other = (classifier.read(images) for images in (samples, self.other))
        sets = {"real": classifier(self.real)}
        sets |= {"drawn": drawn.features, "other": other.features}
        found = compared(sets, f"the bundled classifier of {classifier.name}")
        if self.run.checkpoint.labels == classifier.labels:
            for name, logits, y in (
                ("drawn", drawn.logits, self.y),
                ("other", other.logits, self.true),
            ):
                if y is not None:
                    found[name]["recognised"] = _shown(_share(logits.argmax(axis=1) == y))
        return found


def compared(sets: Mapping[str, Array], features: str) -> dict[str, Any]:
    """The scores of `drawn` and of `other`, if there are others, each beside `real`.

    features: where they are from, in words
    """
    drawn, other = sets["drawn"], sets.get("other")
    if other is not None and other.shape != drawn.shape:
        raise ValueError(
            f"scores compare between sets of one size: other has shape {other.shape}, but drawn "
            f"{drawn.shape}"
        )
    found: dict[str, Any] = {
        "features": features,
        "dimensions": drawn.shape[-1],
        "count": len(drawn),
        "real": len(sets["real"]),
    }
    for name in ("drawn", "other"):
        if name in sets:
            measured = scores(sets["real"], sets[name])._asdict()
            found[name] = {key: _shown(value) for key, value in measured.items()}
    return found


def show(numbers: Mapping[str, Any], console: Console) -> None:
    """The numbers of a `Judge`, or of `compared`, as tables."""
    if "features" in numbers:
        _show_scores(numbers, console)
    if "nearest" in numbers:
        copying.show(numbers["nearest"], console)


def _show_scores(numbers: Mapping[str, Any], console: Console) -> None:
    how = ""
    if "sampler" in numbers:
        how = f" ({numbers['sampler']}, {numbers['sampler_steps']} steps)"
    console.print(
        f"Distances of {numbers['count']} samples{how} from {numbers['real']} real images in the "
        f"{numbers['dimensions']} features of {numbers['features']}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    columns = {"drawn": "samples", "other": "other real"}
    there = {key: label for key, label in columns.items() if key in numbers}
    heads = [head for label in there.values() for head in (label, "standard error")]
    table = Table("", *heads, box=None, pad_edge=False)
    for key, label in _ROWS.items():
        each = [numbers[name].get(key) for name in there]
        if any(each):
            cells = [(f"{m['value']:.4g}", f"{m['error']:.2g}") if m else ("", "") for m in each]
            table.add_row(label, *(cell for pair in cells for cell in pair))
    console.print(table)


def _share(right: Array) -> Measured:
    share = float(right.mean())
    return Measured(share, math.sqrt(share * (1 - share) / len(right)))


def _shown(measured: Measured) -> dict[str, float]:
    return dict(measured._asdict())
