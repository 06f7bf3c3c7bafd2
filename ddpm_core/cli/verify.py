"""`ddpm-core verify`: `check_backend` as a table."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddpm_core.backends import backend
from ddpm_core.checkpoints.files import write_whole
from ddpm_core.cli.options import Device, wide_console
from ddpm_core.cli.pictures import check_place
from ddpm_core.testing.backends import Line, environment, examined


def verify(
    backend_name: Annotated[
        str | None,
        typer.Option(
            "--backend",
            help="numpy, torch, or another that `info` lists (default: torch, jax or numpy, the "
            "first that is installed).",
        ),
    ] = None,
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(help="float32, float64 or bfloat16, where the backend has it.")
    ] = "float32",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the table as JSON.")
    ] = None,
) -> int:
    """Check a backend against NumPy on this device; exit status 1 if a check fails.

    Noise, the forward process, samplers and the UNet must give NumPy's numbers to rounding, a
    compiled step must give those of the plain one, and on CUDA a step must not make the host wait.
    This takes seconds on NumPy, and a minute or two where something is compiled.
    """
    if json_path is not None:
        check_place(json_path, ".json")
    on = backend(backend_name or default_backend(), device=device, dtype=dtype)
    try:
        on.to_numpy(on.asarray(0.0))
    except NotImplementedError:
        raise ValueError(f"device {device!r} holds no values, so nothing can be compared") from None
    console, about = wide_console(), environment(on)
    console.print(", ".join(dict.fromkeys(about.values())), highlight=False, soft_wrap=True)
    lines: list[Line] = []
    with Console(stderr=True).status("") as status:
        for line in examined(on, status.update):
            lines.append(line)
    try:
        _show(console, lines)
    finally:  # whoever read the table may have left
        if json_path is not None:
            checks = [line._asdict() | {"largest": _number(line.largest)} for line in lines]
            text = json.dumps({"environment": about, "checks": checks}, indent=2, allow_nan=False)
            write_whole(json_path, (text + "\n").encode())
    return int(any(line.verdict == "failed" for line in lines))


def default_backend() -> str:
    """The first of torch, jax and numpy that is installed."""
    return next(name for name in ("torch", "jax", "numpy") if find_spec(name))


def _number(x: float | None) -> float | str | None:
    """As JSON has it, where NaN and infinities are words."""
    return x if x is None or math.isfinite(x) else str(x)


def _show(console: Console, lines: list[Line]) -> None:
    colours = {"ok": "green", "failed": "bold red", "not applicable": "dim", "reported": "cyan"}
    table = Table("check", "what was compared", box=None, pad_edge=False)
    for name in ("largest", "allowed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for line in lines:
        numbers = ("" if n is None else f"{n:.2g}" for n in (line.largest, line.allowed))
        colour = colours[line.verdict]
        compared = Text("" if line.verdict in ("not applicable", "reported") else line.compared)
        if line.note:
            compared.append(f"\n{line.note}" if compared else line.note, colour)
        table.add_row(line.check, compared, *numbers, Text(line.verdict, colour))
    console.print(table)
    failed = [line.check for line in lines if line.verdict == "failed"]
    counts = {verdict: sum(line.verdict == verdict for line in lines) for verdict in colours}
    words = {verdict: f"{count} {verdict}" for verdict, count in counts.items() if count}
    if failed:
        words["failed"] += f" ({', '.join(failed)})"
    console.print(
        ", ".join(words.values()),
        style="bold red" if failed else "green",
        highlight=False,
    )
