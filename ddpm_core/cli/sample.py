"""`ddpm-core sample`: pictures from a trained model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ddpm_core.backends import Backend, backend
from ddpm_core.checkpoints import Checkpoint, load
from ddpm_core.cli import pictures
from ddpm_core.cli.models import Device
from ddpm_core.denoisers import clip
from ddpm_core.samplers import Sampler, trajectory
from ddpm_core.samplers.registry import ENTRIES
from ddpm_core.typing import Array

#: Every solver that goes from noise to data, by name and alias, the default first.
SAMPLERS = {name: each.solver for each in ENTRIES if each.from_noise for name in each.names}


def sample(
    model: Annotated[
        str, typer.Option(help="A bundled model's name, a checkpoint file, or a run's folder.")
    ] = "fashion-mnist",
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("samples.png"),
    grid: Annotated[str, typer.Option(help="ROWSxCOLUMNS of images.")] = "8x8",
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names or numbers, comma-separated, dealt out image by image; 'none' for no "
            "class (default: all in turn)."
        ),
    ] = None,
    sampler: Annotated[str, typer.Option(help=f"One of {', '.join(SAMPLERS)}.")] = "dpmpp_2m",
    steps: Annotated[
        int, typer.Option(help="Steps of the sampler; most samplers call the network once a step.")
    ] = 20,
    seed: Annotated[
        int, typer.Option(help="The same seed gives the same picture on every backend.")
    ] = 0,
    gif: Annotated[
        Path | None, typer.Option(help="Also write the reverse process, from noise to data.")
    ] = None,
    scale: Annotated[int, typer.Option(help="Pixels of the picture per pixel of an image.")] = 2,
    batch: Annotated[int, typer.Option(help="Images at a time; changes no result.")] = 16,
    backend_name: Annotated[
        str, typer.Option("--backend", help="numpy, torch, or another that `info` lists.")
    ] = "numpy",
    device: Device = None,
) -> None:
    """Sample images from a trained model into one picture."""
    rows, columns = parse_grid(grid)
    pictures.check_place(out, ".png")
    if gif is not None:
        pictures.check_place(gif, ".gif")
    for name, value in (("batch", batch), ("scale", scale)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, but is {value}")
    if sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
    checkpoint = load(model)
    solver = SAMPLERS[sampler](checkpoint.schedule, steps)
    y = parse_classes(classes, checkpoint, rows * columns)
    frames = draw(
        *(checkpoint, backend(backend_name, device=device), solver, rows * columns, y, seed, batch),
        process=gif is not None,
    )
    pictures.write_png(out, pictures.grid(frames[-1], columns), scale)
    written = f"Wrote {out}"
    if gif is not None:
        pictures.write_gif(gif, [pictures.grid(x, columns) for x in frames], scale)
        written += f" and {gif}"
    typer.echo(
        f"{written}: {rows * columns} images of {model}, {sampler}, {steps} steps, "
        f"{solver.nfe} network calls."
    )


def draw(
    checkpoint: Checkpoint,
    on: Backend,
    solver: Sampler,
    count: int,
    y: Array | None,
    seed: int,
    batch: int,
    *,
    process: bool = False,
    quiet: bool = False,
) -> list[Array]:
    """Samples, the last of the list: NumPy arrays (count, C, H, W).

    process: with the states before, from noise on, for each of which the host waits
    """
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    denoise = clip(checkpoint.predictor(on.network))
    noise = on.portable_noise(seed)
    shape = (checkpoint.config.channels, *checkpoint.size)
    parts: list[list[Array]] = []
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("Sampling", total=-(-count // batch) * solver.nfe)
        for first in range(0, count, batch):
            ids = np.arange(first, min(first + batch, count))
            there = on.asarray(ids, on.xp.int32)

            def eps(step: int, shape: tuple[int, ...], ids: Array = there) -> Array:
                return noise(step, shape, ids)

            def counted(steps: list[Any]) -> Iterable[Any]:
                for step in steps:
                    yield step
                    progress.advance(task)

            cond = {} if y is None else {"y": on.asarray(y[ids], on.xp.int64)}
            x = eps(0, (len(ids), *shape))
            states = [on.to_numpy(x)] if process else []
            for state in trajectory(
                denoise, solver, x, eps, lincomb=on.lincomb, progress=counted, **cond
            ):
                x = state.x
                if process:
                    states.append(on.to_numpy(x))
            parts.append(states or [on.to_numpy(x)])
    return [np.concatenate(states) for states in zip(*parts, strict=True)]


def parse_grid(grid: str) -> tuple[int, int]:
    """Rows and columns: "8x10" as (8, 10)."""
    match = re.fullmatch(r"(\d+)x(\d+)", grid.strip().lower())
    if match is None or "0" in (match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"):
        raise ValueError(f"--grid must be ROWSxCOLUMNS, such as 8x8, but is {grid!r}")
    return int(match[1]), int(match[2])


def parse_classes(classes: str | None, checkpoint: Checkpoint, count: int) -> Array | None:
    """The class of each of count images, -1 for none, or None for a model without classes."""
    total = checkpoint.config.classes
    if classes is None:
        return np.arange(count) % total if total else None
    if total == 0:
        raise ValueError("--classes was given, but this model has no classes")
    known = {str(i): i for i in range(total)} | {"none": -1}
    # Names last: a class that is called 7 is asked for by its name, whichever its number.
    known |= {label.lower(): i for i, label in enumerate(checkpoint.labels)}
    names = [name.strip() for name in classes.split(",")]
    for name in names:
        if name.lower() not in known:
            labels = ", ".join(checkpoint.labels) or f"0 to {total - 1}"
            raise ValueError(f"no class {name!r}; there are {labels}")
    wanted = np.array([known[name.lower()] for name in names])
    return wanted[np.arange(count) % len(wanted)]
