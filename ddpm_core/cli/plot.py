"""`ddpm-core plot`: how the loss of a run fell."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ddpm_core.checkpoints.files import write_whole
from ddpm_core.cli import log
from ddpm_core.cli.pictures import check_place
from ddpm_core.typing import Array


def plot(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, as train writes it.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="A .png to write (default: loss.png in the folder).")
    ] = None,
) -> None:
    """Plot the loss of a run: the rows of its log.csv, and their running mean."""
    out = run / "loss.png" if out is None else out
    path = run / "log.csv"
    rows = log.read(path)
    if not rows:
        raise ValueError(f"{path} has no rows: let the run take {log.EVERY} steps")
    check_place(out, ".png")
    figure = empty_figure(7, 4)
    from matplotlib.ticker import LogLocator  # slow to import

    steps, loss = np.array([row[:2] for row in rows]).T
    counts = np.diff(steps, prepend=0)
    half = len(rows) // 60
    axes = figure.subplots()
    axes.plot(steps, loss, linewidth=0.8, alpha=0.4, label=f"mean of {log.EVERY} steps")
    label = f"mean of up to {log.EVERY * (2 * half + 1):,} steps"
    axes.plot(steps, smoothed(loss, counts, half), "C0", linewidth=2, label=label)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=run.resolve().name)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_whole(out, buffer.getvalue())
    typer.echo(f"Wrote {out}: {len(rows):,} rows to step {rows[-1].step:,}.")


def empty_figure(width: float, height: float) -> Any:
    """A figure of matplotlib; ImportError, with the line that installs it, if it is not there."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ImportError("plots need matplotlib: pip install 'ddpm-core[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def smoothed(values: Array, weights: Array, half: int) -> Array:
    """The weighted mean of each value and of `half` on each side, fewer at both ends.

    At the beginning, where a loss falls fast, value i is averaged with i // 4 on each side.
    """
    index = np.arange(len(values))
    about = np.minimum(index // 4, half)
    low, high = index - about, np.minimum(index + about + 1, len(values))
    sums = np.cumsum([np.r_[0, values * weights], np.r_[0, weights]], axis=1)
    total, weight = sums[:, high] - sums[:, low]
    return total / weight
