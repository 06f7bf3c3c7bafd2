"""Finding a trained model by name, file or run."""

from __future__ import annotations

from pathlib import Path

from ddpm_core.models import bundled
from ddpm_core.nn.checkpoints import Checkpoint, load


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
