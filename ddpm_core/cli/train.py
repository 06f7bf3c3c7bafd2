"""`ddpm-core train`: a DDPM from images of your own."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ddpm_core.backends import backend
from ddpm_core.cli import datasets, toml
from ddpm_core.cli.options import DATA
from ddpm_core.cli.runs import OPTIONS, Plan, Run, locked
from ddpm_core.nn.network import UNetConfig
from ddpm_core.parameterisations import NAMED
from ddpm_core.schedules import Discrete, cosine, linear

SCHEDULES: dict[str, Callable[[int], Discrete]] = {
    "linear": lambda T: linear(T, rescale=True),
    "cosine": cosine,
}
PRECISIONS = ("auto", "float32", "bfloat16")

#: Options that may differ when a run is resumed; of the data, its place.
CHANGEABLE = {"data", "steps", "save_every", "sample_every", "device", "lr"}

_run, _data, _network, _diffusion, _optimisation = (
    functools.partial(typer.Option, rich_help_panel=panel)
    for panel in ("Run", "Data", "Network", "Diffusion", "Optimisation")
)


def _of_file(context: typer.Context, path: Path | None) -> Path | None:
    """Lets a file say the options that the command line does not."""
    if path is not None:
        _take(context, toml.read(path, _stored()))
    return path


def _of_run(context: typer.Context, folder: Path | None) -> Path | None:
    """Lets a run say its options."""
    if folder is not None:
        path = folder / OPTIONS
        if not path.exists():
            raise FileNotFoundError(f"there is no run to resume in {folder}: {OPTIONS} is missing")
        _take(context, toml.read(path, _stored()) | {"out": str(folder)})
    return folder


def _take(context: typer.Context, options: dict[str, str]) -> None:
    if context.default_map is not None:
        raise ValueError("--resume takes the options of its run: leave out --config")
    context.default_map = options


def train(
    context: typer.Context,
    data: Annotated[
        Path,
        _data(help=DATA),
    ],
    out: Annotated[Path, _run(help="The folder of the run.")],
    steps: Annotated[int, _run(help="Steps in all, including those before --resume.")] = 10_000,
    resume: Annotated[
        Path | None,
        _run(
            callback=_of_run,
            is_eager=True,
            help="Go on with the run in this folder, whose options are known. --steps, "
            "--save-every, --sample-every, --device, --lr and the place of --data may change.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        _run(
            callback=_of_file,
            is_eager=True,
            help=f"Take options from a TOML file, such as a run's {OPTIONS}; those given here come "
            "first.",
        ),
    ] = None,
    save_every: Annotated[int, _run(help="Steps between saved states.")] = 500,
    sample_every: Annotated[int, _run(help="Steps between pictures.")] = 1000,
    device: Annotated[str, _run(help="cpu, cuda, or auto.")] = "auto",
    precision: Annotated[
        str, _run(help="float32, bfloat16, or auto: the faster one here.")
    ] = "auto",
    seed: Annotated[int, _run(help="The same seed and options give the same model.")] = 0,
    size: Annotated[
        int | None, _data(help="Crop the pictures of a folder to squares and resize them to it.")
    ] = None,
    unlabelled: Annotated[bool, _data(help="Ignore the classes of the data.")] = False,
    flip: Annotated[bool, _data(help="Mirror half of the images.")] = False,
    widths: Annotated[
        str,
        _network(
            help="Channels of each resolution, the finest first: 32,64,64 suits 28 x 28 grey "
            "pixels; Ho et al. took 128,256,256,256 for 32 x 32 in colour."
        ),
    ] = "32,64,64",
    blocks: Annotated[int, _network(help="Residual blocks per resolution.")] = 2,
    attention: Annotated[
        str | None,
        _network(
            help="Indices into --widths where there is attention (default: 1, if there are two)."
        ),
    ] = None,
    groups: Annotated[
        int | None,
        _network(
            help="Groups of the norms; they divide all widths (default: the most that do, to 32)."
        ),
    ] = None,
    dropout: Annotated[float, _network(help="Its rate in every residual block.")] = 0.0,
    schedule: Annotated[str, _diffusion(help=f"One of {', '.join(SCHEDULES)}.")] = "linear",
    T: Annotated[int, _diffusion("--T", help="Noise levels.")] = 1000,
    predicts: Annotated[str, _diffusion(help=f"One of {', '.join(NAMED)}.")] = "eps",
    learn_variance: Annotated[
        bool, _diffusion(help="Learn the variance too, for likelihood.")
    ] = False,
    batch: Annotated[
        int | None,
        _optimisation(help="Images per step (default: 128, or all if there are fewer)."),
    ] = None,
    lr: Annotated[float, _optimisation(help="Adam's learning rate.")] = 2e-4,
    warmup: Annotated[int, _optimisation(help="Steps in which the learning rate rises.")] = 500,
    ema: Annotated[float, _optimisation(help="Decay of the average of the weights.")] = 0.9995,
    drop_label: Annotated[
        float, _optimisation(help="Share of labels left out, to sample without a class too.")
    ] = 0.1,
) -> None:
    """Train a DDPM on images; needs torch.

    Writes OUT/model.safetensors (the averaged weights, for `sample --model`),
    OUT/training.safetensors and OUT/run.toml (for --resume), OUT/log.csv, and samples of one noise
    such as OUT/samples-001000.png. Ctrl-C, SIGTERM and SIGHUP save first; a second one does not.
    """
    _refuse_launcher()
    if resume is not None:
        _refuse_changes(context)
    _one_of("--schedule", schedule, SCHEDULES)
    _one_of("--predicts", predicts, NAMED)
    _one_of("--precision", precision, PRECISIONS)
    _within(1, math.inf, steps=steps, save_every=save_every, sample_every=sample_every, size=size)
    _within(1, 100, blocks=blocks)
    _within(1, 10**6, T=T)
    levels = SCHEDULES[schedule](T)
    found = datasets.read(data, size=size)
    if unlabelled:
        found = datasets.Images(found.images, None, ())
    channels, *pixels = found.images.shape[1:]
    each = _integers("--widths", widths)
    if not each:
        raise ValueError("--widths must be integers, such as 32,64,64, but is empty")
    _check_size(data, pixels, len(each), size)
    try:
        from ddpm_core_torch.training import Recipe, Trainer
    except ModuleNotFoundError as error:
        raise ImportError(f"training needs {error.name}: pip install 'ddpm-core[train]'") from None
    device = _device(device)
    with _named_options():
        network = UNetConfig(
            channels=channels,
            out_channels=channels * (2 if learn_variance else 1),
            widths=each,
            blocks=blocks,
            attention=_attention(attention, each),
            groups=_groups(groups, each),
            classes=len(found.labels),
        )
        recipe = Recipe(
            batch=min(Recipe.batch, len(found.images)) if batch is None else batch,
            lr=lr,
            warmup=warmup,
            ema=ema,
            dropout=dropout,
            flip=flip,
            drop_label=drop_label,
            bfloat16=_bfloat16(precision, device),
            seed=seed,
        )
        trainer = Trainer(found.images, found.classes, network, levels, predicts, recipe, device)
    run, plan = Run(trainer, out, found.labels), Plan(steps, save_every, sample_every)
    options = {name: context.params[name] for name in _stored()} | {
        "data": str(data.absolute()),
        "precision": "bfloat16" if recipe.bfloat16 else "float32",
        "widths": network.widths,
        "attention": network.attention,
        "groups": network.groups,
        "batch": recipe.batch,
    }
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        status = _go(run, plan, options, resume is not None)
    if status is not None:
        raise typer.Exit(status)


def _stored() -> list[str]:
    """The options that a run's file holds."""
    parameters = inspect.signature(train).parameters
    return [name for name in parameters if name not in ("context", "out", "resume", "config")]


def _refuse_changes(context: typer.Context) -> None:
    """ValueError if an option that was given is not the run's, and may not change."""
    stored = context.default_map or {}
    given = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }
    told = "; ".join(
        f"{_option(name)} was {stored.get(name, 'not given')} and is {value}"
        for name, value in given.items()
        if name not in {"resume", *CHANGEABLE} and str(value) != stored.get(name)
    )
    if told:
        raise ValueError(
            f"{stored['out']} is another run: {told}. Leave out what may not change, or start a run"
        )


def _go(run: Run, plan: Plan, options: Mapping[str, Any], resume: bool) -> int | None:
    """Trains, and says what was done; the exit status, if a signal ended it."""
    trainer, written = run.trainer, list[str]()
    run.sweep()
    if run.state.exists():
        if not resume:
            raise ValueError(
                f"{run.folder} holds a run already; pass --resume {run.folder}, or another --out"
            )
        _resume(run, plan)
        written = run.refresh(plan)
    elif resume and run.model.exists():
        raise FileNotFoundError(f"{run.folder} cannot be resumed: {run.state.name} is missing")
    toml.write(run.options, {name: value for name, value in options.items() if value is not None})
    again = f"; wrote {' and '.join(written)} again" if written else ""
    if trainer.done == plan.steps:
        typer.echo(f"{run.folder} has done its {trainer.done} steps already{again}")
        return None
    if trainer.done:
        typer.echo(f"{run.folder} goes on after step {trainer.done}{again}", err=True)
    typer.echo(_described(run), err=True)
    stopped = run.go(plan)
    if stopped is None:
        typer.echo(f"{run.model}: {trainer.done} steps; see {run.samples}")
        return None
    typer.echo(
        f"stopped: {run.state} holds step {trainer.done}; --resume {run.folder} goes on", err=True
    )
    return 128 + stopped


def _resume(run: Run, plan: Plan) -> None:
    """Takes the trainer to where the run is, if that is the same run."""
    from ddpm_core_torch.training import OtherRunError

    try:
        run.trainer.resume(run.state)
    except OtherRunError as error:
        raise ValueError(
            f"{error}. Put {run.options.name} and the data back as they were, or start a run"
        ) from None
    if run.trainer.done > plan.steps:
        raise ValueError(
            f"--steps counts all steps of a run: {run.folder} has done {run.trainer.done} already, "
            f"and --steps is {plan.steps}"
        )


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        on = backend("torch", device=name)
        on.to_numpy(on.asarray([0.0]))
    except (ValueError, RuntimeError) as error:  # the second, of torch's device "meta"
        reason = str(error).partition(". ")[0]  # torch goes on to list all that it has
        raise ValueError(f"--device {name}: {reason}") from None
    return name


def _bfloat16(precision: str, device: str) -> bool:
    from ddpm_core_torch.training import bfloat16_is_fast

    return precision == "bfloat16" or (precision == "auto" and bfloat16_is_fast(device))


def _described(run: Run) -> str:
    """What is trained, on what: one line."""
    trainer = run.trainer
    count, channels, height, width = trainer.images.shape
    parameters = sum(p.numel() for p in trainer.net.parameters())
    precision = "bfloat16" if trainer.recipe.bfloat16 else "float32"
    return (
        f"{count:,} images of {height} x {width} x {channels}, {len(run.labels) or 'no'} classes; "
        f"{parameters:,} parameters; {trainer.device}, {precision}"
    )


def _refuse_launcher() -> None:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ValueError(
            f"train runs in one process, but WORLD_SIZE is {processes}: start it without torchrun"
        )


def _one_of(option: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, but is {value!r}")


def _within(least: float, most: float, **counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise ValueError(f"{_option(name)} must be {bound}, but is {value}")


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{option} must be integers, such as 32,64,64, but is {text!r}") from None


def _attention(text: str | None, widths: tuple[int, ...]) -> tuple[int, ...]:
    if text is None:
        return (1,) if len(widths) > 1 else ()
    return _integers("--attention", text)


def _groups(groups: int | None, widths: tuple[int, ...]) -> int:
    common = math.gcd(*widths)
    fit = [n for n in range(1, min(common, 32) + 1) if common % n == 0]
    if groups is None:
        return fit[-1] if fit else 1
    if groups > 0 and common % groups:
        raise ValueError(
            f"--groups must divide the --widths {','.join(map(str, widths))}, but is {groups}; "
            f"{', '.join(str(n) for n in fit)} do"
        )
    return groups


def _check_size(data: Path, pixels: list[int], resolutions: int, size: int | None) -> None:
    about = f"{data} has images of {' x '.join(str(n) for n in pixels)} pixels"
    if size is not None and any(n != size for n in pixels):
        raise ValueError(f"{about}: --size {size} is for folders of pictures, which it resizes")
    factor = 2 ** max(resolutions - 1, 0)
    if any(n % factor for n in pixels):
        raise ValueError(
            f"{about}, but {resolutions} --widths need multiples of {factor}: pass fewer --widths, "
            f"or for a folder of pictures a --size, such as {-(-min(pixels) // factor) * factor}"
        )


@contextmanager
def _named_options() -> Generator[None]:
    """Lets an error that begins with an argument's name begin with its option."""
    try:
        yield
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise ValueError(f"{_option(name)} {rest}") from None


def _option(name: str) -> str:
    """The option by which an argument of the network or the recipe is given, if there is one."""
    known = name in inspect.signature(train).parameters
    return f"--{name.replace('_', '-')}" if known else name
