"""Finding a trained model by name, file or run."""

from __future__ import annotations

from pathlib import Path

from ddpm_core.models import bundled
from ddpm_core.nn.checkpoints import Checkpoint, load


def open_model(name: str) -> Checkpoint:
    """A bundled model, a checkpoint file, or the model of a run of `train`."""
    models = bundled()
    path = models.get(name, Path(name))
    if not path.exists():
        raise FileNotFoundError(
            f"no model {name!r}: neither a file, nor a run, nor one of {', '.join(models)}"
        )
    return load(path / "model.safetensors" if path.is_dir() else path)
