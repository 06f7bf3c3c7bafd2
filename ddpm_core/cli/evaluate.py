"""`ddpm-core evaluate`: bits per dimension, rate against distortion, and how samples score."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from ddpm_core.checkpoints import Checkpoint, load
from ddpm_core.checkpoints.files import write_whole
from ddpm_core.cli import datasets, judging, processes
from ddpm_core.cli.drawing import MOST, SAMPLERS
from ddpm_core.cli.options import (
    DATA,
    BackendName,
    Device,
    check_idle,
    check_seed,
    given,
    open_backend,
    wide_console,
)
from ddpm_core.cli.pictures import check_folder, check_place
from ddpm_core.cli.plot import empty_figure
from ddpm_core.cli.rate import Run, report
from ddpm_core.levels import Level
from ddpm_core.likelihood import Elbo
from ddpm_core.samplers import levels_of
from ddpm_core.schedules import Discrete

VARIANCES = ("auto", "small", "large", "optimal", "learned")

_bound, _samples = (
    functools.partial(typer.Option, rich_help_panel=panel)
    for panel in ("Bound: not with --no-bound", "Samples: only with --samples")
)

_OF_BOUND = ("--images", "--terms", "--steps", "--variance", "--labelled", "--plot")
_OF_SAMPLES = (
    "--train-data", "--nearest-plot", "--sampler", "--sampler-steps", "--guidance",
    "--guidance-interval",
)  # fmt: skip
_OF_MODEL = (
    "--data", "--model", "--split", "--background", "--skip-bad", "--bound", "--no-bound",
    "--samples", "--work-dir", "--seed", "--batch", "--backend", "--device",
)  # fmt: skip
#: When an option does nothing.
_IDLE = {
    "with --features": (*_OF_MODEL, *_OF_BOUND, *_OF_SAMPLES),
    "with --no-bound": _OF_BOUND,
    "without --samples": (*_OF_SAMPLES, "--no-bound"),
}


def evaluate(
    context: typer.Context,
    data: Annotated[Path | None, typer.Option(help=DATA)] = None,
    model: Annotated[
        str, typer.Option(help="A bundled model's name, a checkpoint file, or a run's folder.")
    ] = "fashion-mnist",
    split: Annotated[
        str, typer.Option(help="In a folder of IDX files: t10k (or test), or train.")
    ] = "t10k",
    background: Annotated[
        str | None,
        typer.Option(
            help="The colour behind transparent pixels: a name, or #rrggbb; by default the one "
            "that the model was trained with."
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out pictures that cannot be read, and list them."),
    ] = False,
    images: Annotated[
        int, _bound(min=0, help="How many images, the first ones; 0 takes all.")
    ] = 1000,
    terms: Annotated[
        int,
        _bound(min=0, help="Terms of the bound that are drawn per image; 0 takes all."),
    ] = 20,
    steps: Annotated[
        int,
        _bound(min=0, help="Noise levels of the bound, at least 2; 0 takes the model's."),
    ] = 0,
    variance: Annotated[
        str,
        _bound(
            help=f"Variance of the reverse process: {', '.join(VARIANCES)}. optimal is measured "
            "first, on images that are not evaluated; auto is learned if the model has it, else "
            "optimal."
        ),
    ] = "auto",
    labelled: Annotated[
        bool, _bound("--labelled", help="Tell the model each image's class.")
    ] = False,
    bound: Annotated[
        bool, typer.Option(help="Whether the bound is measured, or only what --samples asks for.")
    ] = True,
    samples: Annotated[
        int,
        typer.Option(
            min=0, max=MOST,
            help="Also draw so many samples, and measure how far they are from as many images, in "
            "the features of the bundled classifier; beside that, how far as many other images "
            "are. Hundreds at least.",
        ),
    ] = 0,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            help="A folder that keeps the bound, the measured variance and the samples, one file "
            "a batch: what it has is not computed again. Processes that torchrun or accelerate "
            "launch starts share the work through it."
        ),
    ] = None,
    train_data: Annotated[
        Path | None,
        _samples(
            help="What the model was trained on, to see if samples are copies of it. By default "
            "the train split of --data, or what of it the model did not hold out."
        ),
    ] = None,
    nearest_plot: Annotated[
        Path | None,
        _samples(
            help="Also draw the samples that are nearest to training images, each above that "
            "image, as a .png."
        ),
    ] = None,
    sampler: Annotated[
        str, _samples(help=f"One of {', '.join(SAMPLERS)}.")
    ] = "dpmpp_2m",
    sampler_steps: Annotated[
        int, _samples(min=1, help="Steps of the sampler, at most the model's noise levels.")
    ] = 20,
    guidance: Annotated[
        float | None,
        _samples(
            help="How strongly each sample is driven towards its class and away from none "
            "(classifier-free guidance); 1 is no guidance."
        ),
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        _samples(
            metavar="LOW HIGH",
            help="The log-SNR within which there is guidance: everywhere by default.",
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a model and images, an .npz of features that any network made: arrays "
            "real and drawn, (N, D) each, of real images and of samples, and optionally other, of "
            "as many other real images as samples. Only --json goes with it."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Decides the noise, the terms that are drawn, and the images compared."),
    ] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers, to a .json.")
    ] = None,
    plot: Annotated[
        Path | None,
        _bound(help="Also draw rate and distortion with their errors, as a .png."),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(min=1, help="Images at a time; a number depends on it by rounding only."),
    ] = 32,
    backend_name: BackendName = "numpy",
    device: Device = None,
) -> None:  # fmt: skip
    """Measure how many bits per dimension a model spends on images, and how its samples score.

    The variational bound (Ho et al. 2020, Eq. 5) on -log P of the images, each part with its
    standard error, and the rate-distortion curve (their Table 4 and Figure 5). The images are the
    test split of IDX files by default; of other data they are those that the model says it held
    out of training. If it does not say, they are the first ones: pass --data without the images
    that it was trained on.

    With --samples also the Fréchet distance, kernel distance, precision and recall of samples, in
    the features of a classifier, and the share that it recognises, each with its standard error.
    They are to be read beside those of other real images, and do not compare with values in other
    features. Where the training images are known, also how near to them samples are, beside how
    near unseen images are (the data-copying test of Meehan et al. 2020). If the classifier does
    not take the images, only that is measured.
    """
    check_idle(context, _IDLE)
    check_seed(seed)
    if variance not in VARIANCES:
        raise ValueError(f"no variance {variance!r}; there are {', '.join(VARIANCES)}")
    split = "t10k" if split == "test" else split
    if split not in datasets.SPLITS:
        raise ValueError(f"--split must be train or t10k (or test), but is {split!r}")
    for path, suffix in ((json_path, ".json"), (plot, ".png"), (nearest_plot, ".png")):
        if path is not None:
            check_place(path, suffix)
    if work_dir is not None:
        check_folder(work_dir, "--work-dir")
    if plot is not None:
        empty_figure(1, 1)  # without matplotlib, better now than after the work
    how = judging.How(sampler, sampler_steps, guidance, guidance_interval)
    rank, world = processes.process()
    if features is not None:
        found = judging.compared(datasets.read_features(features), str(features))
        if rank == 0:
            _finish({"samples": found}, json_path, None)
        return
    if world > 1 and work_dir is None:
        raise ValueError(f"{world} processes share their work through a folder: pass --work-dir")
    if data is None:
        raise ValueError("there is nothing to evaluate: pass --data, or --features")
    checkpoint = load(model)
    levels = _levels(checkpoint, steps, terms, labelled) if bound else None
    on = open_backend(backend_name, device)
    on.measure &= work_dir is None  # what is kept there has the same bits from every process
    run = Run(checkpoint, on, labelled, seed, batch, rank > 0, background, skip_bad)
    found = run.read(data, split)
    if "split" in given(context) and not datasets.has_splits(data):
        raise ValueError(f"leave out --split: {data} has no splits")
    for sentence in found.said if rank == 0 else ():
        typer.echo(sentence, err=True)
    judge, kept = None, None
    if samples:
        trained = run.trained(data, split, train_data)
        judge = judging.Judge(run, found, data, samples, how, trained, work_dir)
        if nearest_plot is not None and trained is None:
            raise ValueError("--nearest-plot needs the training images: pass --train-data")
    numbers: dict[str, Any] = {
        "model": model, "data": str(data), "split": split if datasets.has_splits(data) else None,
        "unseen": run.standing(data, split), "seed": seed,
    }  # fmt: skip
    if levels is not None:
        total = len(found.images) if images == 0 else min(images, len(found.images))
        if total < 2:
            raise ValueError(f"a standard error takes at least 2 images, but there is {total}")
        has_v = run.predict.variance
        if variance == "learned" and not has_v:
            raise ValueError(f"{model} has no learned variance; there are small, large and optimal")
        if variance == "auto":
            variance = "learned" if has_v else "optimal"
        chosen = datasets.part(found, np.arange(total))
        u = np.random.default_rng(seed).random((total, terms)) if terms else None
        others = run.unseen(data, split, found, total) if variance == "optimal" else None
        kernel = run.kernel(variance, levels, others, work_dir)
        count = len(levels.sigma) - 1
        about = {
            "terms": terms or count - 1, "steps": count, "variance": variance,
            "labelled": labelled,
        }  # fmt: skip
        depends = {**about, "others": others and run.digest(others)}
        kept = run.bound(kernel, levels, chosen, u, depends, work_dir)
        numbers |= {"images": total, **about}
    if judge is not None and rank > 0:
        judge.draw_share()
    if rank > 0:
        return
    if kept is not None and levels is not None:
        numbers |= report(Elbo(**kept.wait()), levels, found.images[0].size)
    if judge is not None:
        numbers["samples"] = judge.numbers(nearest_plot)
    _finish(numbers, json_path, plot)


def _levels(checkpoint: Checkpoint, steps: int, terms: int, labelled: bool) -> Level:
    """The levels of the bound; ValueError if the model, or the options, allow none."""
    schedule = checkpoint.schedule
    if not isinstance(schedule, Discrete):
        raise ValueError(
            f"the bound needs a discrete schedule, not {schedule!r}; --samples goes without, with "
            f"--no-bound"
        )
    if steps == 1 or steps > schedule.T:
        raise ValueError(
            f"--steps must lie within 2 .. {schedule.T}, the model's noise levels, or be 0 for all "
            f"of them, but is {steps}"
        )
    count = steps or schedule.T
    if terms > count - 1:
        raise ValueError(
            f"--terms must be at most {count - 1}, one less than the levels, but is {terms}; pass "
            f"--terms 0 for all of them"
        )
    has_classes = checkpoint.config.classes > 0
    if has_classes and not labelled and not getattr(checkpoint, "unconditional", True):
        raise ValueError("this model was never trained without a class: pass --labelled")
    return levels_of(schedule, count)


def _finish(numbers: dict[str, Any], json_path: Path | None, plot: Path | None) -> None:
    """Shows the numbers, and writes them."""
    try:
        if "bits_per_dim" in numbers:
            _show(numbers)
        if "samples" in numbers:
            judging.show(numbers["samples"], wide_console())
        if numbers.get("unseen") == "unknown":
            typer.echo("The model may have been trained on these images: nothing says otherwise.")
    finally:  # whoever read the table may have left
        if json_path is not None:
            text = json.dumps(numbers, indent=2, allow_nan=False)
            write_whole(json_path, (text + "\n").encode())
        if plot is not None:
            write_whole(plot, draw_curve(numbers))


def _show(numbers: dict[str, Any]) -> None:
    console = wide_console()
    given = " given their classes" if numbers["labelled"] else ""
    console.print(
        f"{numbers['model']} on {numbers['images']} images of {numbers['data']}{given}: "
        f"{numbers['variance']} variance, {numbers['steps']} levels, {numbers['terms']} terms each",
        highlight=False,
        markup=False,
        soft_wrap=True,
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
    """Distortion and rate along the reverse process, and against each other (Figure 5), as PNG.

    The bands are two standard errors wide on either side.
    """
    rows = numbers["curve"]
    start = rows[0]["from"]
    steps = [start - 0.5 * (row["from"] + row["to"]) + 1 for row in rows]
    rate = np.array([row["rate"]["mean"] for row in rows])
    rate_error = np.array([row["rate"]["error"] for row in rows])
    rmse = np.array([row["rmse"] for row in rows])
    rmse_error = np.array([row["rmse_error"] or 0.0 for row in rows])
    figure = empty_figure(9, 2.8)
    for axes, (x, y, error, across, up) in zip(
        figure.subplots(1, 3),
        (
            (steps, rmse, rmse_error, "reverse step", "distortion (RMSE, 0..255)"),
            (steps, rate, rate_error, "reverse step", "rate (bits/dim)"),
            (rate, rmse, rmse_error, "rate (bits/dim)", "distortion (RMSE, 0..255)"),
        ),
        strict=True,
    ):
        axes.fill_between(x, y - 2 * error, y + 2 * error, alpha=0.3, linewidth=0)
        axes.plot(x, y, marker=".", markersize=3, linewidth=1)
        axes.set(xlabel=across, ylabel=up)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
