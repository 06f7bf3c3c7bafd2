"""The models that ship with the package: name.safetensors, and a card name.md for each."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def bundled() -> dict[str, Path]:
    """The checkpoints in this package, by name."""
    return _in(_HERE)


def classifiers() -> dict[str, Path]:
    """The classifiers in this package, by the name of their data."""
    return _in(_HERE / "classifiers")


def _in(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
