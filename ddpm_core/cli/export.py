"""`ddpm-core export`: a network, or a sampler with a network in it, as a file of ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ddpm_core.backends import backend
from ddpm_core.checkpoints import Checkpoint, load
from ddpm_core.checkpoints.files import write_whole
from ddpm_core.cli.drawing import (
    SAMPLERS,
    check_guidable,
    check_sampler,
    check_steps,
    deal,
    parse_guidance,
)
from ddpm_core.cli.pictures import check_place
from ddpm_core.typing import Array


def export(
    model: Annotated[
        str, typer.Argument(help="A bundled model's name, a checkpoint file, or a run's folder.")
    ],
    out: Annotated[Path, typer.Option(help="The .onnx file to write.")],
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Write a whole sampler, from a seed to pictures, and not the network alone: one "
            f"of {', '.join(SAMPLERS)}."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the sampler: 20 by default.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="The sampler's scale of classifier-free guidance.")
    ] = None,
    float16: Annotated[
        bool, typer.Option("--float16", help="Store weights in float16: half the size.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Store weights in int8, scaled row by row: a quarter of the size."
        ),
    ] = False,
) -> None:
    """Write a model as a file of ONNX, for other programs; --model takes it, too."""
    if float16 and int8:
        raise ValueError("--float16 and --int8 are two ways to store weights: pass one of them")
    if sampler is None and (steps is not None or guidance is not None):
        raise ValueError("--steps and --guidance are of a sampler: pass --sampler as well")
    check_place(out, ".onnx")
    parse_guidance(guidance, None)
    try:
        import ddpm_core_onnx
    except ModuleNotFoundError as error:
        raise ImportError(f"export needs {error.name}: pip install 'ddpm-core[onnx]'") from None
    if sampler is not None:
        check_sampler(sampler)
    checkpoint = load(model)
    dtype = "int8" if int8 else "float16" if float16 else "float32"
    if sampler is None:
        file, what = ddpm_core_onnx.export_network(checkpoint, dtype), f"the network of {model}"
    else:
        steps = 20 if steps is None else steps
        check_steps(steps, checkpoint.schedule)
        if guidance is not None:
            check_guidable(checkpoint, deal(None, checkpoint))
        table = SAMPLERS[sampler](checkpoint.schedule, steps)
        file = ddpm_core_onnx.export_sampler(checkpoint, table, guidance, dtype)
        what = f"{sampler}, {steps} steps, of {model}"
    write_whole(out, file)
    count = sum(int(p.size) for p in checkpoint.params.values())
    typer.echo(f"Wrote {out}: {what}, {count:,} parameters in {dtype}, {len(file):,} bytes.")
    if dtype != "float32":
        off = _difference(checkpoint, load(out))
        typer.echo(
            f"On noise at eight timesteps, its network's output is {off:.2%} (root mean square) "
            f"off that of the model's own weights."
        )


def _difference(checkpoint: Checkpoint, other: Checkpoint) -> float:
    """The root mean square of what two networks differ by, relative to that of the first."""
    on: Any = backend("numpy")
    x = on.portable_noise(0)(0, (8, checkpoint.config.channels, *checkpoint.size))
    timestep = np.linspace(0, 999, 8, dtype=np.float32)
    y = (np.arange(8) % checkpoint.config.classes,) if checkpoint.config.classes else ()
    net, others = (on.network(dict(each.params), each.config) for each in (checkpoint, other))
    wanted: Array = net(x, timestep, *y)
    off = others(x, timestep, *y) - wanted
    return float(np.sqrt((off**2).mean() / (wanted**2).mean()))
