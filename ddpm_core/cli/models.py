"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Device: TypeAlias = Annotated[
    str | None, typer.Option(help="As the backend's library names it, such as cuda or cuda:1.")
]
