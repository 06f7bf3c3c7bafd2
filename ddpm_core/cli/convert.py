"""`ddpm-core convert`: a checkpoint of another library as one of ours, or ours for diffusers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ddpm_core.checkpoints import load, save, save_diffusers
from ddpm_core.cli.pictures import check_place


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="What to read: a folder of diffusers (a pipeline or a UNet2DModel); a .pt, .ckpt "
            "or .safetensors file of Ho et al.'s port or of OpenAI; a file of ours, a run's "
            "folder, or a bundled model's name."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            help="What to write: NAME.safetensors for a file of ours, or a new folder's name for "
            "diffusers."
        ),
    ],
) -> None:
    """Convert a checkpoint between libraries. The format of SOURCE is recognised."""
    if target.exists():
        raise FileExistsError(f"{target} is there already; remove it, or choose another name")
    ours = target.suffix == ".safetensors"
    if not ours and re.fullmatch(r"\.[A-Za-z]\w*", target.suffix):
        raise ValueError(
            f"{target} must end in .safetensors, or be a folder's name without a suffix: no other "
            f"files are written"
        )
    check_place(target, target.suffix.lower())
    checkpoint = load(source)
    (save if ours else save_diffusers)(target, checkpoint)
    count = sum(int(p.size) for p in checkpoint.params.values())
    typer.echo(
        f"Wrote {target}: {count:,} parameters, {checkpoint.size[0]}x"
        f"{checkpoint.size[1]}, predicts {checkpoint.predicts}, {checkpoint.schedule!r}."
    )
