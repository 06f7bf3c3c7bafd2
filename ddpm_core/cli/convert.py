"""`ddpm-core convert`: a published checkpoint as ours, or ours as one of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddpm_core.checkpoints import save, save_diffusers
from ddpm_core.cli.models import open_model


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of a diffusers UNet2DModel, a .pt, .ckpt or .safetensors file of Ho et "
            "al.'s port or of OpenAI, or a model of ours."
        ),
    ],
    target: Annotated[
        Path, typer.Argument(help="NAME.safetensors for a file of ours, else a diffusers folder.")
    ],
) -> None:
    """Convert a checkpoint; its layout is recognised."""
    if target.exists():
        raise FileExistsError(f"{target} is there already; remove it, or choose another name")
    checkpoint = open_model(source)
    if target.suffix == ".safetensors":
        save(target, checkpoint)
    else:
        save_diffusers(target, checkpoint)
    count = sum(int(p.size) for p in checkpoint.params.values())
    typer.echo(
        f"Wrote {target}: {count / 1e6:.1f} M parameters, {checkpoint.size[0]}x"
        f"{checkpoint.size[1]}, predicts {checkpoint.predicts}, {checkpoint.schedule!r}."
    )
