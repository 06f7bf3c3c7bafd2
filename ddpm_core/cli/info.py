"""`ddpm-core info`: what is installed."""

from __future__ import annotations

import math
import platform

import array_api_compat
import numpy as np
from rich.table import Table
from rich.text import Text

import ddpm_core
from ddpm_core.backends import backend, discover
from ddpm_core.checkpoints import load
from ddpm_core.cli.options import wide_console
from ddpm_core.models import bundled


def info() -> None:
    """Show versions, the bundled models, and the backends found."""
    console = wide_console()
    console.print(
        f"ddpm-core {ddpm_core.__version__}, Python {platform.python_version()}, "
        f"numpy {np.__version__}, array-api-compat {array_api_compat.__version__}",
        highlight=False,
    )
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
    names = sorted(discover())
    width = max(len(name) for name in (*names, "backend"))
    console.print(f"\n[bold]{'backend':{width}}  version, or what is missing[/bold]")
    for name in names:  # each line at once: a framework takes seconds to import
        console.print(Text(f"{name:{width}}  {_state(name)}"), soft_wrap=True, highlight=False)


def _state(name: str) -> str:
    """A backend's library, version and device, or why there is none: one line."""
    try:
        about = backend(name).describe()
    except (ImportError, ValueError) as error:
        return str(error)
    except Exception as error:  # another package's defect hides nothing else
        return f"cannot be made: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"{about['library'].removeprefix(f'{name} ')} on {about['device']}"
