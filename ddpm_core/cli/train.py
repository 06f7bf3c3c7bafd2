"""`ddpm-core train`: a DDPM from images of your own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ddpm_core.backends import backend
from ddpm_core.checkpoints import Checkpoint, save
from ddpm_core.cli import datasets, pictures
from ddpm_core.cli.sample import draw, parse_classes
from ddpm_core.nn.network import UNetConfig
from ddpm_core.parameterisations import NAMED
from ddpm_core.samplers import dpmpp_2m
from ddpm_core.schedules import Discrete, cosine, linear
from ddpm_core.typing import Array

if TYPE_CHECKING:
    from ddpm_core_torch.training import Trainer

SCHEDULES: dict[str, Callable[[int], Discrete]] = {
    "linear": lambda T: linear(T, rescale=True),
    "cosine": cosine,
}


def train(
    data: Annotated[
        Path,
        typer.Option(help="IDX files' folder, a folder of pictures, or an .npz / .npy file."),
    ],
    out: Annotated[Path, typer.Option(help="The folder of the run.")],
    steps: Annotated[int, typer.Option(help="Steps in all, resumed ones included.")] = 10_000,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 128,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 2e-4,
    warmup: Annotated[int, typer.Option(help="Steps over which it rises.")] = 500,
    ema: Annotated[float, typer.Option(help="Decay of the average of the weights.")] = 0.9995,
    dropout: Annotated[float, typer.Option(help="In every residual block.")] = 0.0,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the images.")] = False,
    drop_label: Annotated[
        float, typer.Option(help="Share of labels left out, to sample without a class too.")
    ] = 0.1,
    size: Annotated[int | None, typer.Option(help="Crop and resize pictures to it.")] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Ignore the classes of the data.")
    ] = False,
    widths: Annotated[str, typer.Option(help="Channels of each resolution.")] = "32,64,64",
    blocks: Annotated[int, typer.Option(help="Residual blocks per resolution.")] = 2,
    attention: Annotated[str, typer.Option(help="Resolutions that attend, by index.")] = "1",
    groups: Annotated[int, typer.Option(help="Of group norm; widths are multiples.")] = 32,
    schedule: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULES)}.")] = "linear",
    T: Annotated[int, typer.Option("--T", help="Noise levels.")] = 1000,
    predicts: Annotated[str, typer.Option(help=f"One of {', '.join(NAMED)}.")] = "eps",
    learn_variance: Annotated[
        bool, typer.Option("--learn-variance", help="Learn the variance too, for likelihood.")
    ] = False,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: the faster one here.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    sample_every: Annotated[int, typer.Option(help="Steps between pictures.")] = 1000,
) -> None:
    """Train a DDPM on images; needs torch.

    Writes OUT/model.safetensors (the averaged weights, for `sample --model`),
    OUT/training.safetensors (for --resume) and OUT/samples.png.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
    if predicts not in NAMED:
        raise ValueError(f"no target {predicts!r}; there are {', '.join(NAMED)}")
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"--precision must be auto, float32 or bfloat16, but is {precision!r}")
    counts = {"steps": steps, "save-every": save_every, "sample-every": sample_every, "size": size}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, but is {value}")
    levels = SCHEDULES[schedule](T)
    found = datasets.read(data, size=size)
    channels, classes = found.images.shape[1], None if unlabelled else found.classes
    config = UNetConfig(
        channels=channels,
        out_channels=channels * (2 if learn_variance else 1),
        widths=_integers("widths", widths),
        blocks=blocks,
        attention=_integers("attention", attention),
        groups=groups,
        classes=0 if classes is None else len(found.labels),
    )
    factor = 2 ** (len(config.widths) - 1)
    if any(n % factor for n in found.images.shape[2:]):
        raise ValueError(
            f"{data} has images of {found.images.shape[2:]} pixels, which {len(config.widths)} "
            f"resolutions cannot halve; pass --size, a multiple of {factor}"
        )
    trainer = _trainer(
        found.images, classes, config, levels, predicts, device, precision,
        batch=batch, lr=lr, warmup=warmup, ema=ema, dropout=dropout, flip=flip,
        drop_label=drop_label, seed=seed,
    )  # fmt: skip
    state = out / "training.safetensors"
    if resume:
        trainer.resume(state)
    elif state.exists():
        raise ValueError(f"{out} holds a run already; pass --resume, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    labels = () if classes is None else found.labels
    _run(trainer, levels, predicts, labels, out, steps, save_every, sample_every)


def _trainer(
    images: Array,
    classes: Array | None,
    config: UNetConfig,
    levels: Discrete,
    predicts: str,
    device: str,
    precision: str,
    **recipe: Any,
) -> Trainer:
    try:
        import torch

        from ddpm_core_torch.training import Recipe, Trainer, bfloat16_is_fast
    except ModuleNotFoundError as error:
        raise ImportError(f"training needs {error.name}: pip install 'ddpm-core[train]'") from None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    backend("torch", device=device)  # for what it says of a device that is not there
    bfloat16 = precision == "bfloat16" or (precision == "auto" and bfloat16_is_fast(device))
    return Trainer(
        images, classes, config, levels, predicts, Recipe(bfloat16=bfloat16, **recipe), device
    )


def _run(
    trainer: Trainer,
    levels: Discrete,
    predicts: str,
    labels: tuple[str, ...],
    out: Path,
    steps: int,
    save_every: int,
    sample_every: int,
) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    def checkpoint() -> Checkpoint:
        notes = {
            "trained": f"{trainer.done:,} steps of {trainer.recipe.batch}",
            "loss": round(loss, 5),
        }
        size = (int(trainer.images.shape[2]), int(trainer.images.shape[3]))
        return Checkpoint(
            trainer.averaged(), trainer.net.config, levels, size, predicts, labels, notes,
            unconditional=trainer.recipe.drop_label > 0 or not trainer.net.config.classes,
        )  # fmt: skip

    columns = (
        TextColumn("Training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} images/s"),
        TimeRemainingColumn(),
    )
    loss, began, first = float("nan"), time.monotonic(), trainer.done
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=steps, completed=first, loss=loss, speed=0.0)
        while trainer.done < steps:
            value = trainer.step()
            # The mean of about the last hundred steps: single steps differ by their noise levels.
            weight = max(0.01, 1 / (trainer.done - first))
            loss = value if np.isnan(loss) else loss + weight * (value - loss)
            speed = (trainer.done - first) * trainer.recipe.batch / (time.monotonic() - began)
            progress.update(task, completed=trainer.done, loss=loss, speed=speed)
            if not np.isfinite(value):
                raise ValueError(
                    f"the loss is {value} at step {trainer.done}; the last checkpoint stands, and "
                    f"a smaller --lr may help"
                )
            last = trainer.done == steps
            if last or trainer.done % save_every == 0:
                trainer.save(out / "training.safetensors")
                save(out / "model.safetensors", checkpoint())
            if last or trainer.done % sample_every == 0:
                _picture(checkpoint(), str(trainer.device), out / "samples.png")
    typer.echo(f"{out}/model.safetensors: {trainer.done} steps; see {out}/samples.png")


def _picture(checkpoint: Checkpoint, device: str, path: Path) -> None:
    y = parse_classes(None, checkpoint, 16)
    solver = dpmpp_2m(checkpoint.schedule, min(20, int(checkpoint.schedule.ends[1])))
    on = backend("torch", device=device)
    images = draw(checkpoint, on, solver, 16, y, seed=0, batch=16, quiet=True)[-1]
    pictures.write_png(path, pictures.grid(images, 4), scale=2)


def _integers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"--{name} must be integers, such as 32,64,64, but is {text!r}") from None
