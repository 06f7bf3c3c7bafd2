"""Options of several commands, and what they stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, TypeAlias

import numpy as np
import typer
from rich.console import Console

from ddpm_core.backends import Backend, backend
from ddpm_core.cli.processes import own_device

BackendName: TypeAlias = Annotated[
    str, typer.Option("--backend", help="numpy, torch, or another that `info` lists.")
]

Device: TypeAlias = Annotated[
    str | None, typer.Option(help="As the backend's library names it, such as cuda or cuda:1.")
]

DATA = (
    "A folder of IDX files, such as MNIST's, or one IDX file of images; a folder of pictures; one "
    "that save_to_disk of Hugging Face's datasets wrote; or an .npz or .npy of uint8 images. An "
    ".npy may be larger than memory. Each sub-folder of pictures is a class, unless some picture "
    "is in no sub-folder. Transparent pixels are laid on a colour, white by default; of a GIF the "
    "first frame is read. A labels.txt beside IDX files names their classes, one a "
    "line; else they are numbers."
)


def given(context: typer.Context) -> list[str]:
    """The parameters that the command line says, not a file or a default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def check_idle(context: typer.Context, idle: Mapping[str, Collection[str]]) -> None:
    """ValueError if an option is given that does nothing beside the others.

    idle: "with --a" or "without --a", and the options that then do nothing; --a 0 is without --a
    """
    said, asked, there = given(context), list[str](), set[str]()
    for each in context.command.params:
        value = context.params.get(each.name or "")
        words = each.secondary_opts if value is False else each.opts
        there.update(words if value or value is False else ())
        asked += words[:1] if each.name in said else []
    for when, options in idle.items():
        word, other = when.split()
        found = [option for option in asked if option in options]
        if found and (other in there) == (word == "with"):
            do = "does" if len(found) == 1 else "do"
            raise ValueError(f"{', '.join(found)} {do} nothing {when}")


def check_seed(seed: int) -> None:
    """ValueError unless 0 <= seed < 2^64."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"--seed must lie within 0 .. 2^64 - 1, but is {seed}")


def wide_console() -> Console:
    """The console of stdout, 80 columns wide at least: a table cut shorter could not be read."""
    console = Console()
    console.width = max(console.width, 80)
    return console


def open_backend(name: str, device: str | None) -> Backend:
    """The backend of a name on a device; ValueError if arrays do not come back from it."""
    device = own_device(device)
    on = backend(name, device=device)
    try:
        on.to_numpy(on.asarray(np.zeros(1)))
    except Exception as error:  # a library's own, such as that of torch's device "meta"
        raise ValueError(
            f"--device {device}: {name} cannot compute there ({type(error).__name__}: {error})"
        ) from None
    return on
