"""`ddpm-core info`: what is installed, or what a model is."""

from __future__ import annotations

import math
import platform
from typing import Annotated

import array_api_compat
import numpy as np
import typer
from rich.table import Table
from rich.text import Text

import ddpm_core
from ddpm_core.backends import backend, discover
from ddpm_core.checkpoints import load
from ddpm_core.cli.options import wide_console
from ddpm_core.models import bundled


def info(
    model: Annotated[
        str | None,
        typer.Argument(help="A model's name, file or folder, to show that alone."),
    ] = None,
) -> None:
    """Show versions, the bundled models, and the backends found."""
    console = wide_console()
    if model is not None:
        console.print(_models([model]))
        return
    console.print(
        f"ddpm-core {ddpm_core.__version__}, Python {platform.python_version()}, "
        f"numpy {np.__version__}, array-api-compat {array_api_compat.__version__}",
        highlight=False,
    )
    console.print(_models(list(bundled())))
    names = sorted(discover())
    width = max(len(name) for name in (*names, "backend"))
    console.print(f"\n[bold]{'backend':{width}}  version, or what is missing[/bold]")
    for name in names:  # each line at once: a framework takes seconds to import
        console.print(Text(f"{name:{width}}  {_state(name)}"), soft_wrap=True, highlight=False)


def _models(names: list[str]) -> Table:
    models = Table("model", "images", "parameters", "trained", box=None, pad_edge=False, title="")
    for name in names:
        model = load(name)
        shape = (*model.size, model.config.channels)
        count = sum(math.prod(p.shape) for p in model.params.values())
        models.add_row(
            Text(name),
            f"{'x'.join(str(n) for n in shape)}, {model.config.classes} classes",
            f"{count:,}",
            Text(str(model.notes.get("trained", ""))),
        )
    return models


def _state(name: str) -> str:
    """A backend's library, version and device, or why there is none: one line."""
    try:
        about = backend(name).describe()
    except (ImportError, ValueError) as error:
        return str(error)
    except Exception as error:  # another package's defect hides nothing else
        return f"cannot be made: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"{about['library'].removeprefix(f'{name} ')} on {about['device']}"
