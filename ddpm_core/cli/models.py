"""What several commands ask for: a trained model by name, file or run, and a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ddpm_core.checkpoints import Checkpoint, load
from ddpm_core.models import bundled

Device: TypeAlias = Annotated[
    str | None, typer.Option(help="As the backend's library names it, such as cuda or cuda:1.")
]


def open_model(name: str) -> Checkpoint:
    """A bundled model, a checkpoint's file or folder, or the model of a run of `train`."""
    models = bundled()
    path = models.get(name, Path(name))
    if not path.exists():
        raise FileNotFoundError(
            f"no model {name!r}: neither a file, nor a folder, nor one of {', '.join(models)}"
        )
    run = path / "model.safetensors"
    return load(run if run.is_file() else path)
