"""`ddpm-core info`: what is installed."""

from __future__ import annotations

import importlib
import math
import platform
import sys

import array_api_compat
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import ddpm_core
from ddpm_core.backends import Backend, backend, discover
from ddpm_core.checkpoints import load
from ddpm_core.models import bundled


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
            backends.add_row(name, f"{version_of(on)} on {on.device or 'its default device'}")
        except (ImportError, ValueError) as error:
            backends.add_row(name, Text(str(error)))  # no markup: [torch] is an extra
        except Exception as error:  # another package's defect hides nothing else
            backends.add_row(name, Text(f"cannot be made: {type(error).__name__}: {error}"))
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


def version_of(on: Backend) -> str:
    """Of the backend's library, which may have another name on PyPI, as CuPy's has."""
    for library in (importlib.import_module(on.name) if on.name in sys.modules else None, on.xp):
        if found := getattr(library, "__version__", None):
            return str(found)
    return "(no version)"
