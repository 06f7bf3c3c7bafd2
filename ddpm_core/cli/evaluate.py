"""`ddpm-core evaluate`: bits per dimension, and rate against distortion."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

from ddpm_core.backends import Backend, backend
from ddpm_core.checkpoints import Checkpoint, load
from ddpm_core.checkpoints.files import write_whole
from ddpm_core.cli import datasets
from ddpm_core.cli.models import Device
from ddpm_core.cli.pictures import check_place
from ddpm_core.denoisers import clip
from ddpm_core.kernels import Reverse, learned_range, optimal, reverse
from ddpm_core.levels import Level, steps_of
from ddpm_core.likelihood import Elbo, bits_per_dim, elbo, errors_at, interpolated
from ddpm_core.process import large, small
from ddpm_core.samplers import levels_of
from ddpm_core.schedules import Discrete
from ddpm_core.typing import Array

VARIANCES = ("auto", "small", "large", "optimal", "learned")


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A bundled model's name, a checkpoint file, or a run's folder.")
    ] = "fashion-mnist",
    data: Annotated[
        Path,
        typer.Option(help="IDX files' folder, a folder of pictures, or an .npz / .npy file."),
    ] = ...,  # type: ignore[assignment]
    split: Annotated[str, typer.Option(help="Of IDX files: t10k (test) or train.")] = "t10k",
    images: Annotated[int, typer.Option(help="How many, the first ones; 0 is all.")] = 1000,
    terms: Annotated[
        int, typer.Option(help="Of the bound, drawn for each image; 0 is all of them.")
    ] = 20,
    steps: Annotated[int, typer.Option(help="Levels of the bound; 0 is the schedule's.")] = 0,
    variance: Annotated[
        str,
        typer.Option(
            help=f"Of the reverse process: {', '.join(VARIANCES)}. optimal is measured first, on "
            "images that are not evaluated; auto is learned where the model has it, else optimal."
        ),
    ] = "auto",
    labelled: Annotated[
        bool, typer.Option("--labelled", help="Bits given each image's class, not of the image.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of noise and terms.")] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw rate and distortion, as a PNG.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at a time; changes no result.")] = 32,
    backend_name: Annotated[
        str, typer.Option("--backend", help="numpy, torch, or another that `info` lists.")
    ] = "numpy",
    device: Device = None,
) -> None:
    """Measure how many bits per dimension a model spends on images it has not seen.

    The variational bound (Ho et al. 2020, Eq. 5) on -log P of the images, each term with its
    standard error, and the rate-distortion curve (their Table 4 and Figure 5).
    """
    for name, value, least in (
        ("images", images, 0), ("terms", terms, 0), ("steps", steps, 0), ("batch", batch, 1),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, but is {value}")
    if variance not in VARIANCES:
        raise ValueError(f"no variance {variance!r}; there are {', '.join(VARIANCES)}")
    if steps == 1:
        raise ValueError("--steps must be at least 2, or 0 for the schedule's, but is 1")
    for path, suffix in ((json_path, ".json"), (plot, ".png")):
        if path is not None:
            check_place(path, suffix)
    if plot is not None:
        _empty_figure()  # without matplotlib, better now than after the work
    checkpoint = load(model)
    schedule = checkpoint.schedule
    if not isinstance(schedule, Discrete):
        raise ValueError(f"evaluate needs a discrete schedule, not {schedule!r}")
    count = steps or schedule.T
    levels = levels_of(schedule, count)
    if terms > count - 1:
        raise ValueError(f"--terms must be at most {count - 1}, but is {terms}")
    on = backend(backend_name, device=device)
    run = _Run(checkpoint, on, labelled, seed, batch)
    found = run.read(data, split)
    total = len(found.images) if images == 0 else min(images, len(found.images))
    if total < 2:
        raise ValueError(f"a standard error takes at least 2 images, but there is {total}")
    has_v = run.predict.variance
    if variance == "learned" and not has_v:
        raise ValueError(f"{model} has no learned variance; there are small, large and optimal")
    if variance == "auto":
        variance = "learned" if has_v else "optimal"
    chosen = datasets.Images(
        found.images[:total],
        None if found.classes is None else found.classes[:total],
        found.labels,
    )
    u = np.random.default_rng(seed).random((total, terms)) if terms else None
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        unseen = partial(run.unseen, data, split, found, total)
        kernel = run.kernel(variance, levels, unseen, progress)
        result = run.bound(kernel, levels, chosen, u, progress)
    numbers = report(result, levels, found.images[0].size)
    numbers = {
        "model": model, "data": str(data), "split": split, "images": total,
        "terms": terms or count - 1, "steps": count, "variance": variance, "labelled": labelled,
        "seed": seed, **numbers,
    }  # fmt: skip
    _show(numbers)
    if json_path is not None:
        write_whole(json_path, (json.dumps(numbers, indent=2) + "\n").encode())
    if plot is not None:
        write_whole(plot, draw_curve(numbers))


class _Run:
    """A model on a backend, and how images go through it."""

    def __init__(
        self, checkpoint: Checkpoint, on: Backend, labelled: bool, seed: int, batch: int
    ) -> None:
        self.checkpoint, self.on, self.batch = checkpoint, on, batch
        self.labelled, self.seed = labelled, seed
        self.predict = checkpoint.predictor(on.network)
        self.denoise = clip(self.predict)

    def read(self, data: Path, split: str) -> datasets.Images:
        """The images, which must be of the model's size."""
        height, width = self.checkpoint.size
        found = datasets.read(data, split=split, size=height if height == width else None)
        wanted = (self.checkpoint.config.channels, height, width)
        if found.images.shape[1:] != wanted:
            raise ValueError(
                f"{data} has images of shape {found.images.shape[1:]}, but the model's are {wanted}"
            )
        classes = self.checkpoint.config.classes
        if self.labelled and (found.classes is None or found.classes.max() >= classes):
            raise ValueError(f"--labelled needs classes 0 to {classes - 1}, which {data} has not")
        return found

    def unseen(self, data: Path, split: str, found: datasets.Images, used: int) -> datasets.Images:
        """Up to 128 images that are not evaluated: of the training split, or those left over."""
        if split != "train" and data.is_dir() and any(data.glob("train-images*")):
            found, used = self.read(data, "train"), 0
        images = found.images[used : used + 128]
        if len(images) == 0:
            raise ValueError(
                "no image is left to measure the optimal variance on: pass fewer --images, or "
                "--variance small"
            )
        classes = None if found.classes is None else found.classes[used : used + 128]
        return datasets.Images(images, classes, found.labels)

    def batches(self, images: datasets.Images, first_id: int = 0) -> Iterable[tuple[Any, ...]]:
        """Where each batch starts, its x_0, its noise, and its conditions."""
        portable = self.on.portable_noise(self.seed)
        for first in range(0, len(images.images), self.batch):
            part = images.images[first : first + self.batch]
            ids = self.on.asarray(np.arange(first, first + len(part)) + first_id, self.on.xp.int32)

            def noise(step: int, shape: tuple[int, ...], ids: Array = ids) -> Array:
                return portable(step, shape, ids)

            cond: dict[str, Any] = {}
            if self.checkpoint.config.classes:
                y = np.full(len(part), -1)
                if self.labelled and images.classes is not None:
                    y = images.classes[first : first + self.batch]
                cond["y"] = self.on.asarray(y, self.on.xp.int64)
            yield first, self.on.asarray(datasets.to_range(part)), noise, cond

    def kernel(
        self,
        variance: str,
        levels: Level,
        unseen: Callable[[], datasets.Images],
        progress: Progress,
    ) -> Reverse:
        """The reverse process of a variance; the optimal one is measured here."""
        schedule = self.checkpoint.schedule
        if variance == "learned":
            t, s = steps_of(levels)
            return learned_range(self.denoise, float(small(t.take(-2), s.take(-2))))
        if variance != "optimal":
            return reverse(self.denoise, small if variance == "small" else large)
        images = unseen()
        times = np.unique(np.rint(np.geomspace(1, schedule.ends[1], 40)))
        some = schedule(times)
        # Other noise than that of the evaluation: its ids are above all of those.
        parts = list(self.batches(images, first_id=1 << 30))
        task = progress.add_task("Measuring the variance", total=len(parts))
        errors: list[Array] = []
        for _, x_0, noise, cond in parts:
            errors.append(len(x_0) * errors_at(self.denoise, some, x_0, noise, **cond))
            progress.advance(task)
        mean = np.sum(errors, axis=0) / len(images.images)
        return reverse(self.denoise, optimal(interpolated(some, mean)))

    def bound(
        self,
        kernel: Reverse,
        levels: Level,
        images: datasets.Images,
        u: Array | None,
        progress: Progress,
    ) -> Elbo:
        """The bound of all images, as float64 of the host."""
        calls = len(levels.sigma) - 1 if u is None else u.shape[1] + 1
        batches = -(-len(images.images) // self.batch)
        task = progress.add_task("Evaluating", total=batches * calls)

        def counted(steps: list[int]) -> Iterable[int]:
            for step in steps:
                yield step
                progress.advance(task)

        parts: list[Elbo] = []
        for first, x_0, noise, cond in self.batches(images):
            some = None if u is None else u[first : first + len(x_0)]
            part = elbo(kernel, levels, x_0, noise, some, progress=counted, **cond)
            progress.advance(task)
            host = self.on.to_numpy
            prior, steps, data, error = map(host, (part.prior, part.steps, part.data, part.error))
            parts.append(Elbo(prior, steps, data, part.index, part.weight, error))
        return Elbo(
            *(np.concatenate(field).astype(np.float64) for field in zip(*parts, strict=True))
        )


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
    for low, high in pairwise(edges):
        within = (result.index >= low) & (result.index < high)
        if not within.any():  # an estimate may have drawn no term there: the next row has them
            continue
        spent = np.where(within, result.steps, 0.0).sum(axis=1)
        error = np.average(result.error[:, :-1][within], weights=result.weight[within])
        rate = rate + spent
        first, last = levels.time[low], levels.time[high - 1]
        rows.append(_row(first, last, _bits(spent, dims), _bits(rate, dims), error))
    time, error = levels.time[n - 1], result.error[:, -1].mean()
    rows.append(_row(time, time, _bits(result.data, dims), _bits(rate, dims), error))
    return rows


def _row(
    first: float, last: float, bits: dict[str, float], rate: dict[str, float], error: float
) -> dict[str, Any]:
    rmse = float(np.sqrt(error) * 127.5)
    return {"from": float(first), "to": float(last), "bits": bits, "rate": rate, "rmse": rmse}


def _show(numbers: dict[str, Any]) -> None:
    console = Console()
    given = " given their classes" if numbers["labelled"] else ""
    console.print(
        f"{numbers['model']} on {numbers['images']} images of {numbers['data']}{given}: "
        f"{numbers['variance']} variance, {numbers['steps']} levels, {numbers['terms']} terms each",
        highlight=False,
    )
    parts = Table("bound", "bits/dim", "standard error", box=None, pad_edge=False)
    first = numbers["rate_distortion"][-1]["from"]
    for label, key in (
        ("L_T, the prior", "prior"),
        ("L_1 .. L_{T-1}, the steps", "steps_sum"),
        (f"L_0, the decoder at t = {first:g}", "decoder"),
        ("in all", "bits_per_dim"),
    ):
        value = numbers[key]
        parts.add_row(label, f"{value['mean']:.5f}", f"{value['error']:.5f}")
    console.print(parts)
    curve = Table("t", "bits/dim", "rate so far", "RMSE of x_0, 0..255", box=None, pad_edge=False)
    for row in numbers["rate_distortion"]:
        span = f"{row['from']:g} .. {row['to']:g}" if row["from"] != row["to"] else f"{row['to']:g}"
        curve.add_row(
            span, f"{row['bits']['mean']:.5f}", f"{row['rate']['mean']:.5f}", f"{row['rmse']:.3f}"
        )
    console.print(curve)


def draw_curve(numbers: dict[str, Any]) -> bytes:
    """Distortion and rate along the reverse process, and against each other (Figure 5), as PNG."""
    rows = numbers["curve"]
    start = rows[0]["from"]
    steps = [start - 0.5 * (row["from"] + row["to"]) + 1 for row in rows]
    rate, rmse = [row["rate"]["mean"] for row in rows], [row["rmse"] for row in rows]
    figure = _empty_figure()
    for axes, (x, y, across, up) in zip(
        figure.subplots(1, 3),
        (
            (steps, rmse, "reverse step", "distortion (RMSE, 0..255)"),
            (steps, rate, "reverse step", "rate (bits/dim)"),
            (rate, rmse, "rate (bits/dim)", "distortion (RMSE, 0..255)"),
        ),
        strict=True,
    ):
        axes.plot(x, y, marker=".", markersize=3, linewidth=1)
        axes.set(xlabel=across, ylabel=up)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _empty_figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ImportError("--plot needs matplotlib: pip install 'ddpm-core[cli]'") from None
    return Figure(figsize=(9, 2.8), layout="constrained")
