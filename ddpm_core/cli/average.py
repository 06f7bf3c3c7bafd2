"""`ddpm-core average`: a model of weights averaged over another share of a run, after the run."""

from __future__ import annotations

import dataclasses
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from ddpm_core.averages import combine, exponent
from ddpm_core.checkpoints import Checkpoint, load, save
from ddpm_core.checkpoints.fields import cut
from ddpm_core.checkpoints.files import Shapes, check_names, open_regular, safetensors_module
from ddpm_core.checkpoints.own import check_finite
from ddpm_core.cli.pictures import check_place
from ddpm_core.cli.progress import progress
from ddpm_core.nn import parameter_shapes
from ddpm_core.typing import Array

FAR = 0.1  #: an error of the fit that is worth a warning


class Snapshot(NamedTuple):
    """An average that a run kept: in a file, under names that begin with its width."""

    path: Path
    file: Any
    step: int
    prefix: str

    @property
    def width(self) -> float:
        return float(self.prefix)

    def read(self, name: str) -> Array:
        try:
            found = self.file.get_tensor(f"{self.prefix}/{name}")
        except safetensors_module("safetensors").SafetensorError as error:
            raise ValueError(f"{self.path} cannot be read ({cut(error)})") from None
        check_finite(self.path, {f"{self.prefix}/{name}": found})
        return found


def average(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, as train writes it.")
    ],
    width: Annotated[
        float,
        typer.Option(
            help="How wide the average is: the standard deviation of the steps that it counts, as "
            "a share of all steps so far. 0.05 and 0.1 are usual; above 0, at most 0.2886."
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new .safetensors file to write.")],
    step: Annotated[
        int | None,
        typer.Option(help="Up to which step it goes (default: the last that the run kept)."),
    ] = None,
) -> None:
    """Make a model of averaged weights, of any width, out of the averages that a run kept.

    The weights of the later steps count more (post-hoc EMA, Karras et al. 2024). What the model
    needs besides its weights is read from RUN/model.safetensors.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already; remove it, or choose another name")
    check_place(out, ".safetensors")
    model = dataclasses.replace(load(run / "model.safetensors"), params={})
    shapes = parameter_shapes(model.config)
    with ExitStack() as stack:
        kept = _kept(run / "averages", shapes, stack)
        step = max(one.step for one in kept) if step is None else step
        fit = combine([(one.step, one.width) for one in kept], (step, width))
        params: dict[str, Array] = {}
        with progress(len(shapes), "Averaging") as bar:
            for name, shape in shapes.items():
                total = np.zeros(shape)
                for weight, one in zip(fit.weights, kept, strict=True):
                    total += weight * one.read(name).astype(np.float64)
                params[name] = total.astype(np.float32)
                bar.advance()
    notes = _notes(model, step) | {"step": step, "width": width}
    save(out, dataclasses.replace(model, params=params, notes=notes))
    typer.echo(
        f"Wrote {out}: width {width:g} at step {step:,}, of {len(kept)} averages kept; the fit's "
        f"error is {fit.error:.2%}."
    )
    if fit.error > FAR:
        widths = sorted({one.width for one in kept})
        typer.echo(
            f"Warning: an error above {FAR:.0%} is large. The run kept widths {widths[0]:g} to "
            f"{widths[-1]:g} up to step {max(one.step for one in kept):,}: choose a width and a "
            f"step nearer to them.",
            err=True,
        )


def _notes(model: Checkpoint, step: int) -> dict[str, Any]:
    """The notes that hold for the weights of a step, too."""
    said_of_its_step = () if model.notes.get("step") == step else ("trained", "loss")
    return {name: note for name, note in model.notes.items() if name not in said_of_its_step}


def _kept(folder: Path, shapes: Shapes, stack: ExitStack) -> list[Snapshot]:
    """The averages in a folder, whose files stay open: their tensors are read when asked for."""
    names = re.compile(r"[0-9]{6,}\.safetensors")
    paths = sorted(path for path in folder.glob("*") if names.fullmatch(path.name))
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no file of averages, such as 001000.safetensors: the run kept none"
        )
    return [one for path in paths for one in _open(path, shapes, stack)]


def _open(path: Path, shapes: Shapes, stack: ExitStack) -> list[Snapshot]:
    library = safetensors_module("safetensors")
    open_regular(path).close()
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    try:
        file: Any = stack.enter_context(library.safe_open(path, framework="np"))
        for full in file.keys():  # noqa: SIM118
            prefix, _, name = full.partition("/")
            tensor = file.get_slice(full)
            if tensor.get_dtype() != "F32":
                raise ValueError(f"{path}: {cut(full)} is of dtype {tensor.get_dtype()}, not F32")
            found.setdefault(prefix, {})[name] = tuple(tensor.get_shape())
    except library.SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file, or is truncated ({cut(error)})"
        ) from None
    if not found:
        raise ValueError(f"{path} holds no averages")
    for prefix in found:
        _check_width(path, prefix)
    for prefix, tensors in found.items():
        check_names(f"{path}, of width {prefix},", tensors, shapes)
    return [Snapshot(path, file, int(path.stem), prefix) for prefix in found]


def _check_width(path: Path, prefix: str) -> None:
    try:
        exponent(float(prefix))
    except ValueError:
        raise ValueError(
            f"{path} has tensors under {cut(prefix)!r}, which is not a width: their names must be "
            f"such as 0.1/conv_in.weight"
        ) from None
