"""`ddpm-core info`: what is installed."""

from __future__ import annotations

import math
import platform
from importlib import metadata

import array_api_compat
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import ddpm_core
from ddpm_core.backends import backend, discover
from ddpm_core.models import bundled
from ddpm_core.nn.checkpoints import load


def info() -> None:
    """Show versions, the backends found, and the bundled models."""
    console = Console()
    console.print(
        f"ddpm-core {ddpm_core.__version__}, Python {platform.python_version()}, "
        f"numpy {np.__version__}, array-api-compat {array_api_compat.__version__}",
        highlight=False,
    )
    backends = Table(
        "backend",
        "version, or what is missing",
        box=None,
        pad_edge=False,
        title="",
        show_edge=False,
    )
    for name in sorted(discover()):
        try:
            on = backend(name)
            backends.add_row(name, f"{_version(name)} on {on.device}")
        except (ImportError, LookupError, ValueError, RuntimeError) as error:
            backends.add_row(name, Text(str(error)))  # no markup: [torch] is an extra
    console.print(backends)
    models = Table("model", "images", "parameters", "trained", box=None, pad_edge=False, title="")
    for name, path in bundled().items():
        model = load(path)
        shape = (*model.size, model.config.channels)
        count = sum(math.prod(p.shape) for p in model.params.values())
        models.add_row(
            name,
            f"{'x'.join(str(n) for n in shape)}, {model.config.classes} classes",
            f"{count:,}",
            str(model.notes.get("trained", "")),
        )
    console.print(models)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "ready"
