"""`ddpm-core edit`: pictures from a picture: filled in, varied, enlarged or coloured."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ddpm_core.checkpoints import load
from ddpm_core.cli import datasets, pictures
from ddpm_core.cli.drawing import (
    MOST,
    check_guidable,
    check_sampler,
    deal,
    parse_guidance,
    parts,
    predictor,
)
from ddpm_core.cli.methods import DENOISERS, METHODS, NOISY, REPEATS, plan
from ddpm_core.cli.options import BackendName, Device, check_seed, open_backend
from ddpm_core.cli.pictures import sides
from ddpm_core.cli.progress import counted, progress
from ddpm_core.measurements import Measurement, average_pool, grey, mask, measure
from ddpm_core.noise import portable_noise
from ddpm_core.process import q_sample
from ddpm_core.typing import Array

ROW = 8  #: results beside each other
WIDTH = 112  #: pixels on the sheet, to which smaller pictures are enlarged

_WHAT, _RESULT, _HOW = "What is done: one of these", "What comes out", "How it is done"


def edit(
    picture: Annotated[
        Path,
        typer.Argument(
            metavar="PICTURE",
            help="A PNG, JPEG, BMP, GIF, WebP or TIFF; cropped and resized to the model's pixels, "
            "and made grey if they are."
        ),
    ],
    mask_path: Annotated[
        Path | None,
        typer.Option(
            "--mask", rich_help_panel=_WHAT,
            help="Fill in: a picture as large as PICTURE, white where it is filled in and black "
            "where it is kept. What is not black counts as white.",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_WHAT,
            help="Vary: above 0, where nothing changes, to 1, where nothing stays. It is the share "
            "of the model's noise levels up to which noise is added, before it is removed again.",
        ),
    ] = None,
    upscale: Annotated[
        int | None,
        typer.Option(
            min=2, rich_help_panel=_WHAT,
            help="Enlarge by a factor, such as 2, to the size of the model's images.",
        ),
    ] = None,
    colour: Annotated[
        bool, typer.Option("--grey", rich_help_panel=_WHAT, help="Colour PICTURE from its grey.")
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            rich_help_panel=_RESULT,
            help="A bundled model's name, a checkpoint file, or a run's folder.",
        ),
    ] = "fashion-mnist",
    classes: Annotated[
        str,
        typer.Option(
            rich_help_panel=_RESULT,
            help="What the results show: class names or numbers, comma-separated, dealt out result "
            "by result.",
        ),
    ] = "none",
    count: Annotated[
        int, typer.Option(min=1, max=MOST, rich_help_panel=_RESULT, help="How many results.")
    ] = 4,
    seed: Annotated[
        int,
        typer.Option(
            rich_help_panel=_RESULT,
            help="The same seed gives the same results, but for rounding.",
        ),
    ] = 0,
    out: Annotated[
        Path,
        typer.Option(
            rich_help_panel=_RESULT,
            help="A .png of the original, what was given of it, and the results, side by side.",
        ),
    ] = Path("edited.png"),
    method: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_HOW,
            help=f"Of --mask, --upscale and --grey: one of {', '.join(METHODS)}, the first by "
            f"default, which calls the network {REPEATS} times a step. On NumPy, pigdm, mmps and "
            f"dps take derivatives by differences.",
        ),
    ] = None,
    noise_std: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_HOW,
            help="The standard deviation of the noise in PICTURE, if its black is -1 and its white "
            f"is 1; with --method {', '.join(NOISY)}.",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_HOW,
            help=f"Of --strength and --method {', '.join(DENOISERS)}: as in `sample`; ancestral by "
            f"default.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=_HOW, help="20 by default, and 100 of dps."),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(rich_help_panel=_HOW, help="Towards --classes, as in `sample`.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, rich_help_panel=_HOW, help="Results at a time.")
    ] = 16,
    backend_name: BackendName = "numpy",
    device: Device = None,
) -> None:  # fmt: skip
    """Fill in, vary, enlarge or colour a picture with a trained model."""
    check_seed(seed)
    pictures.check_place(out, ".png")
    if sum((mask_path is not None, strength is not None, upscale is not None, colour)) != 1:
        raise ValueError("pass one of --mask, --strength, --upscale and --grey: what is to be done")
    _check_options(strength, method, noise_std, sampler)
    scale = parse_guidance(guidance, None)
    pixels = datasets.read_picture(picture)

    checkpoint = load(model)
    channels, size, factor = checkpoint.config.channels, checkpoint.size, upscale or 1
    if channels not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, but this model's images have {channels}")
    if colour and channels == 1:
        raise ValueError("--grey gives a picture colours, but this model's images are grey")
    if any(n % factor for n in size):
        raise ValueError(f"--upscale {factor} does not divide the model's {sides(size)} pixels")
    dealt = deal(classes, checkpoint) if checkpoint.config.classes or classes != "none" else None
    if guidance is not None:
        check_guidable(checkpoint, dealt)
    columns, larger = min(count, ROW), max(WIDTH // max(size), 1)
    pictures.check_sheet(-(-count // columns), columns + 2, size, larger)
    shape, kept, measurement = (channels, *size), None, None
    if mask_path is not None:
        kept = _kept(mask_path, picture, pixels, size)
    x_0 = _fitted(picture, pixels, channels, (size[0] // factor, size[1] // factor))
    if kept is not None:
        measurement = measure(mask(np.broadcast_to(kept, shape)), x_0)
    elif colour:
        measurement = measure(grey(shape), x_0)
    elif upscale is not None:
        measurement = Measurement(average_pool(shape, factor), x_0)
    if measurement is not None:
        measurement = replace(measurement, var=(noise_std or 0.0) ** 2)

    on = open_backend(backend_name, device)
    predict = predictor(checkpoint, on, scale)
    todo = plan(predict, checkpoint.schedule, measurement, method, sampler, steps, strength)
    results: list[Array] = []
    with progress(todo.calls * -(-count // batch), "Editing") as bar:
        for ids, eps, cond in parts(on, np.arange(count), dealt, seed, batch):
            x = eps(0, (len(ids), *shape))
            if measurement is None:
                x = q_sample(on.xp.broadcast_to(on.asarray(x_0), x.shape), x, todo.start)
            x = todo.draw(x, eps, progress=partial(counted, bar=bar), **cond)
            results.append(on.to_numpy(x))
            if not np.isfinite(results[-1]).all():
                raise ValueError(
                    f"{todo.how} gives numbers that are not finite: the model's weights are "
                    f"damaged, or the method diverges with it"
                )

    if measurement is None:
        first = portable_noise(seed)(0, (1, *shape))
        shown = {"original": x_0, "noised": q_sample(x_0, first, todo.start)}
    elif upscale is not None:
        shown = {"given": x_0.repeat(factor, axis=2).repeat(factor, axis=3)}
    else:
        shown = {"original": x_0, "given": np.broadcast_to(measurement.y, x_0.shape)}
    _write(out, shown, np.concatenate(results), columns, larger)
    typer.echo(f"Wrote {out}: {count} results of {model}, {todo.how}.")


def _check_options(
    strength: float | None, method: str | None, noise_std: float | None, sampler: str | None
) -> None:
    """ValueError if these are not understood, or do not go together."""
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(f"--strength must be above 0 and at most 1, but is {strength:g}")
    if strength is not None and (method is not None or noise_std is not None):
        raise ValueError("--method and --noise-std go with --mask, --upscale and --grey")
    if method is not None and method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    if noise_std is not None and not 0 <= noise_std < math.inf:
        raise ValueError(f"--noise-std must be a number of at least 0, but is {noise_std:g}")
    if noise_std and method not in NOISY:
        raise ValueError(f"--noise-std goes with --method {', '.join(NOISY)}")
    if sampler is not None:
        check_sampler(sampler)
        if strength is None and method not in DENOISERS:
            raise ValueError(
                f"{method or 'repaint'} steps by a kernel of its own: --sampler goes with "
                f"--strength and with --method {', '.join(DENOISERS)}"
            )


def _kept(path: Path, picture: Path, pixels: Array, size: tuple[int, int]) -> Array:
    """Where a mask is black: (H, W) of the model's pixels, each black if less than 1/510 is not."""
    found = datasets.read_picture(path)
    if found.shape[:2] != pixels.shape[:2]:
        raise ValueError(
            f"{path} has {sides(found.shape)} pixels, but {picture} {sides(pixels.shape)}: a "
            f"mask must be as large as its picture"
        )
    white = found > 0 if found.ndim == 2 else (found > 0).any(axis=-1)
    kept = pictures.resized(np.where(white, 255, 0).astype(np.uint8), size, "BOX") == 0
    if kept.all() or not kept.any():
        raise ValueError(
            f"{path} {'fills in' if kept.all() else 'keeps'} nothing: white is filled in, black is "
            f"kept, and what is not black counts as white"
        )
    return kept


def _fitted(path: Path, pixels: Array, channels: int, size: tuple[int, int]) -> Array:
    """A picture as the model has them, (1, C, H, W) in [-1, 1]; says on stderr what it changes."""
    changes: list[str] = []
    if pixels.ndim != (2 if channels == 1 else 3):
        changes.append("made grey" if channels == 1 else "given three equal channels")
    if pixels.shape[0] * size[1] != pixels.shape[1] * size[0]:
        changes.append("cropped")
    if pixels.shape[:2] != size:
        changes.append(f"resized to {sides(size)}")
    if changes:
        told = ", ".join(changes)
        typer.echo(f"{path}, of {sides(pixels.shape)} pixels, is {told}.", err=True)
    fitted = pictures.resized(pixels, size, "LANCZOS", "L" if channels == 1 else "RGB")
    return datasets.to_range(fitted.reshape(*size, channels).transpose(2, 0, 1)[None])


def _write(out: Path, shown: dict[str, Array], results: Array, columns: int, larger: int) -> None:
    """Writes a sheet with what was given left of the first row of results."""
    left = np.concatenate(list(shown.values()))
    cells: list[Array] = []
    for first in range(0, len(results), columns):
        cells += [left if first == 0 else np.ones_like(left), results[first : first + columns]]
    titles = [*shown, *["result"] * columns]
    sheet = pictures.grid(np.concatenate(cells), len(titles))
    pictures.write_png(out, sheet, larger, titles)
