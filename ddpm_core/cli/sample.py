"""`ddpm-core sample`: pictures from a trained model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
import typer

from ddpm_core.checkpoints import Checkpoint, load
from ddpm_core.checkpoints.files import write_whole
from ddpm_core.cli import cluster, pictures, processes
from ddpm_core.cli.drawing import (
    LAST,
    MOST,
    SAMPLERS,
    Drawing,
    check_guidable,
    check_sampler,
    check_steps,
    classes_of,
    deal,
    parse_guidance,
)
from ddpm_core.cli.options import BackendName, Device, check_idle, check_seed, given
from ddpm_core.cli.shards import DTYPES, KINDS, Layout, lacking, usual_size, write
from ddpm_core.typing import Array

BYTES = 1 << 32  #: of the images of a file

#: When an option does nothing.
_IDLE = {
    "with --out-dir": ("--out", "--grid", "--gif", "--scale"),
    "without --out-dir": ("--resume", "--shards"),
    "without --shards": ("--shard-size", "--scheduler"),
}

#: Ids, process= -> ids and what `draw` gives of them, batch by batch.
_Run: TypeAlias = Callable[..., Iterable[tuple[Array, list[Array]]]]

_WHAT, _WHERE, _HOW = "What is drawn", "Where it goes", "How it is drawn"


def sample(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            help="A bundled model's name, a checkpoint file, or a run's folder.",
            rich_help_panel=_WHAT,
        ),
    ] = "fashion-mnist",
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names or numbers, comma-separated, dealt out image by image; 'none' asks "
            "for no class. By default all classes, in turn.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, rich_help_panel=_WHAT,
            help="How many images: as many as --grid has places, by default.",
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:END", rich_help_panel=_WHAT,
            help="Which images of the seed, END excluded, instead of --count; 100:200 are those "
            "that --count 200 draws last.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            rich_help_panel=_WHAT,
            help="The same seed and id give the same image on every backend, but for rounding.",
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_WHERE,
            help="A .png of all images on one sheet, or an .npz with `images` in uint8 and, where "
            "each has one, `classes`. samples.png by default.",
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_WHERE,
            help="A folder for one PNG per image, named by its id, instead of --out. Processes "
            "that torchrun or accelerate launch starts share the files among them.",
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="npz|tar", rich_help_panel=_WHERE,
            help="Files of many images in --out-dir, named by their first and last id: an .npz as "
            "--out writes it, or a .tar for WebDataset, of 00000017.png and 00000017.cls.",
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1, rich_help_panel=_WHERE,
            help="Images of a shard: those of one id // SIZE. By default 8192, or a smaller "
            "power of two if those have over 100 MB.",
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="uint8|float32", rich_help_panel=_WHERE,
            help="Of an .npz: uint8, or float32 in [-1, 1].",
        ),
    ] = "uint8",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", rich_help_panel=_WHERE, help="Skip the files that --out-dir has already."
        ),
    ] = False,
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="ROWSxCOLUMNS", rich_help_panel=_WHERE,
            help="Places on the sheet. By default 8 rows, with columns of one class each if the "
            "model has at most 16 classes.",
        ),
    ] = None,
    scale: Annotated[
        int,
        typer.Option(
            min=1, max=64, rich_help_panel=_WHERE,
            help="Each pixel of an image is this many pixels wide and high on the sheet.",
        ),
    ] = 2,
    gif: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_WHERE,
            help="Also write a .gif of the sheet that shows, step by step, the clean images that "
            "the model sees in the noise (Ho et al. 2020, Figure 6).",
        ),
    ] = None,
    sampler: Annotated[
        str, typer.Option(help=f"One of {', '.join(SAMPLERS)}.", rich_help_panel=_HOW)
    ] = "dpmpp_2m",
    steps: Annotated[
        int,
        typer.Option(
            min=1, rich_help_panel=_HOW,
            help="Steps of the sampler, at most the model's noise levels. Most samplers call the "
            "network once a step.",
        ),
    ] = 20,
    guidance: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_HOW,
            help="How strongly each image is driven towards its class and away from none "
            "(classifier-free guidance); 1 is no guidance.",
        ),
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH", rich_help_panel=_HOW,
            help="The log-SNR within which there is guidance: everywhere by default.",
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            min=1, rich_help_panel=_HOW,
            help="Images at a time; with --out-dir always those of one id // BATCH. A picture "
            "depends on it by rounding only; on the NumPy backend, not at all.",
        ),
    ] = 16,
    backend_name: BackendName = "numpy",
    device: Device = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", rich_help_panel=_HOW,
            help="A dask scheduler, such as node1:8786, whose workers draw the --shards; this "
            "command writes them.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Sample images from a trained model, onto one sheet or into many files."""
    check_idle(context, _IDLE)
    check_seed(seed)
    check_sampler(sampler)
    rank, world = processes.process()
    if world > 1 and out_dir is None:
        raise ValueError(f"{world} processes cannot write one file: pass --out-dir, a folder")
    if shards is not None and shards not in KINDS:
        raise ValueError(f"--shards must be {' or '.join(KINDS)}, but is {shards!r}")
    if scheduler is not None and world > 1:
        raise ValueError(f"--scheduler takes one process, but torchrun started {world}")
    if scheduler is not None and not re.fullmatch(r"([a-z]+://)?\S+:\d+", scheduler):
        raise ValueError(
            f"--scheduler must be an address, such as node1:8786, but is {scheduler!r}"
        )
    out = Path("samples.png") if out is None else out
    if out_dir is None:
        pictures.check_place(out, ".png", ".npz")
        if out.suffix.lower() == ".npz" and {"grid", "gif", "scale"} & set(given(context)):
            raise ValueError("an .npz has no sheet: leave out --grid, --gif and --scale")
    else:
        pictures.check_folder(out_dir, "--out-dir")
    if gif is not None:
        pictures.check_place(gif, ".gif")
    is_npz = shards == "npz" if out_dir is not None else out.suffix.lower() == ".npz"
    if dtype not in DTYPES:
        raise ValueError(f"--dtype must be {' or '.join(DTYPES)}, but is {dtype!r}")
    if dtype != "uint8" and not is_npz:
        raise ValueError(f"--dtype {dtype} needs an .npz: pass --out NAME.npz or --shards npz")
    parse_guidance(guidance, guidance_interval)
    places = None if grid is None else parse_grid(grid)
    asked = None if ids is None and count is None else parse_ids(ids, count)

    checkpoint = load(model)
    check_steps(steps, checkpoint.schedule)
    dealt = deal(classes, checkpoint)
    if guidance is not None:
        check_guidable(checkpoint, dealt)
    rows, columns = places or _default_grid(asked, 0 if dealt is None else len(dealt))
    wanted = np.arange(rows * columns) if asked is None and rows * columns <= MOST else asked
    if wanted is None or (grid is not None and len(wanted) > rows * columns):
        raise ValueError(
            f"--grid {grid} has {rows * columns:,} places, for "
            f"{len(wanted) if wanted is not None else f'at most {MOST:,}'} images"
        )
    drawing = Drawing(
        checkpoint, sampler, steps, dealt, seed, batch, guidance, guidance_interval,
        backend_name, device,
    )  # fmt: skip
    run = partial(drawing.batches, whole=out_dir is not None, quiet=rank > 0)

    if out_dir is not None:
        layout = _layout(checkpoint, shards, shard_size, dtype)
        own = processes.share(wanted, batch if shards is None else layout.size)
        written = _write_folder(run, drawing, out_dir, layout, own, resume, scheduler)
        if world > 1:
            written += f", the share of one of {world} processes"
    elif is_npz:
        written = _write_npz(run, checkpoint, out, wanted, dealt, dtype)
    else:
        frames = 1 if gif is None else drawing.solver.nfe
        written = _write_sheet(
            run, checkpoint, out, gif, wanted, dealt, (rows, columns), scale, frames
        )
    if rank > 0:
        return
    how = f"{sampler}, {steps} steps"
    if guidance is not None:
        how += f", guidance {guidance:g}"
    if guidance_interval is not None:
        how += " from log-SNR {:g} to {:g}".format(*guidance_interval)
    typer.echo(
        f"{written}: {len(wanted)} images of {model}, {how}, {drawing.solver.nfe} network calls."
    )


def _layout(checkpoint: Checkpoint, shards: str | None, size: int | None, dtype: str) -> Layout:
    """ValueError if a file would be too large, or the images are no pictures."""
    if shards != "npz":
        _check_channels(checkpoint)
    if shards is None:
        return Layout()
    image = _bytes(checkpoint, dtype)
    size = usual_size(image) if size is None else size
    if size * image > BYTES:
        raise ValueError(
            f"a shard would hold {size * image:,} bytes of images, of at most {BYTES:,}; a smaller "
            f"--shard-size would do"
        )
    return Layout(shards, size, dtype)


def _bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Of an image."""
    return math.prod((checkpoint.config.channels, *checkpoint.size)) * np.dtype(dtype).itemsize


def _write_folder(
    run: _Run,
    drawing: Drawing,
    folder: Path,
    layout: Layout,
    ids: Array,
    resume: bool,
    scheduler: str | None,
) -> str:
    """Writes the files that a folder lacks, each as soon as it is drawn; says what it did."""
    about = drawing.about() | layout.about()
    missing = lacking(folder, layout, ids, about, resume)
    if scheduler is None:
        files = layout.files(run(missing), missing, drawing.dealt)
    else:
        files = cluster.files(scheduler, drawing, layout, missing)
    with closing(files):
        for part, data in files:
            write(folder, layout.name(part), data, about)
    count, there = (len(np.unique(each // layout.size)) for each in (missing, ids))
    written = f"Wrote {count} {layout.what} in {folder}"
    if count < there:
        written += f", where {there - count} were already"
    return written


def _write_npz(
    run: _Run, checkpoint: Checkpoint, out: Path, ids: Array, dealt: Array | None, dtype: str
) -> str:
    size = len(ids) * _bytes(checkpoint, dtype)
    if size > BYTES:
        raise ValueError(
            f"{out} would hold {size:,} bytes of images, of at most {BYTES:,}; use --out-dir and "
            f"--shards"
        )
    ((_, data),) = Layout("npz", LAST + 1, dtype).files(run(ids), ids, dealt)
    write_whole(out, data)
    return f"Wrote {out}"


def _write_sheet(
    run: _Run,
    checkpoint: Checkpoint,
    out: Path,
    gif: Path | None,
    ids: Array,
    dealt: Array | None,
    places: tuple[int, int],
    scale: int,
    frames: int,
) -> str:
    _check_channels(checkpoint)
    rows, columns = places
    pictures.check_sheet(
        rows, columns, checkpoint.size, scale, frames, options="--grid, --scale or --count"
    )
    drawn = [
        [pictures.to_bytes(x) for x in states] for _, states in run(ids, process=gif is not None)
    ]
    sheets = [pictures.grid(np.concatenate(parts), columns) for parts in zip(*drawn, strict=True)]
    names = _headers(classes_of(dealt, ids), columns, checkpoint.labels)
    pictures.write_png(out, sheets[-1], scale, *names)
    if gif is None:
        return f"Wrote {out}"
    pictures.write_gif(gif, sheets, scale, *names)
    return f"Wrote {out} and {gif}"


def parse_grid(grid: str) -> tuple[int, int]:
    """Rows and columns: "8x10" as (8, 10)."""
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", grid.strip().lower(), re.ASCII)
    if match is None or 0 in (int(match[1]), int(match[2])):
        raise ValueError(f"--grid must be ROWSxCOLUMNS, such as 8x8, but is {grid!r}")
    return int(match[1]), int(match[2])


def parse_ids(ids: str | None, count: int | None) -> Array:
    """Sample ids: "100:200" as 100 .. 199, or as many as `count` from 0."""
    if ids is None:
        return np.arange(count or 0)
    if count is not None:
        raise ValueError("--ids and --count both say which images: pass one of them")
    match = re.fullmatch(r"(\d{1,10}):(\d{1,10})", ids.strip(), re.ASCII)
    first, end = (int(match[1]), int(match[2])) if match else (0, 0)
    if not first < end <= 2**31 or end - first > MOST:
        raise ValueError(
            f"--ids must be FIRST:END, such as 100:200, of at most {MOST:,} images and END at most "
            f"2^31, but is {ids!r}"
        )
    return np.arange(first, end)


def _default_grid(ids: Array | None, classes: int) -> tuple[int, int]:
    if ids is None:
        return 8, max(8 // classes, 1) * classes if 1 <= classes <= 16 else 8
    columns = math.isqrt(len(ids) - 1) + 1
    return -(-len(ids) // columns), columns


def _check_channels(checkpoint: Checkpoint) -> None:
    if checkpoint.config.channels not in (1, 3, 4):
        raise ValueError(
            f"a picture has 1, 3 or 4 channels, but the model's images have "
            f"{checkpoint.config.channels}; write an .npz"
        )


def _headers(
    y: Array | None, columns: int, labels: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """The names of columns, or of rows, that are each of one class; none if all are of one."""
    if y is None or len(set(y.tolist())) == 1:
        return (), ()

    def named(classes: Array) -> list[str]:
        known = dict(enumerate(labels)) | {-1: "no class"}
        return [known.get(k, str(k)) for k in classes.tolist()]

    if np.array_equal(y, y[np.arange(len(y)) % columns]):
        return named(y[:columns]), ()
    if np.array_equal(y, y[np.arange(len(y)) // columns * columns]):
        return (), named(y[::columns])
    return (), ()
