"""The models that ship with the package: name.safetensors, and a card name.md for each."""

from __future__ import annotations

from pathlib import Path


def bundled() -> dict[str, Path]:
    """The checkpoints in this package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.safetensors"))}
