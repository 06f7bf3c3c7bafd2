"""`ddpm-core train`: a DDPM from images of your own."""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ddpm_core.backends import backend
from ddpm_core.cli import datasets, networks, toml
from ddpm_core.cli.networks import (
    PRESETS,
    SCHEDULES,
    check_size,
    integers,
    numbers,
)
from ddpm_core.cli.options import DATA, check_idle, given
from ddpm_core.cli.runs import OPTIONS, Plan, Run
from ddpm_core.cli.stops import locked
from ddpm_core.cli.trackers import tracked, trackers
from ddpm_core.nn.network import UNetConfig
from ddpm_core.parameterisations import TARGETS

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

#: Arguments of `train` that a run's file does not hold.
_OF_A_CALL = ("context", "out", "resume", "config", "preset")

#: Options that may differ when a run is resumed; of the data, its place.
CHANGEABLE = {
    "data", "steps", "save_every", "sample_every", "keep", "device", "lr", "accumulate",
    "compiled", "track",
}  # fmt: skip

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


def _of_preset(context: typer.Context, name: str | None) -> str | None:
    """Lets a preset say the options that the command line does not."""
    if name is not None:
        _one_of("--preset", name, PRESETS)
        _take(context, PRESETS[name])
    return name


def _take(context: typer.Context, options: dict[str, str]) -> None:
    if context.default_map is not None:
        raise ValueError("--resume, --config and --preset each say options: pass one of them")
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
            help="Go on with the run in this folder, whose options are known. --lr, --steps "
            "and how the run works (--save-every, --sample-every, --keep, --track, --device, "
            "--accumulate, --compile, the place of --data) may change.",
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
    keep: Annotated[
        int, _run(help="Saved states to keep: if the last one is damaged, the one before is taken.")
    ] = 2,
    track: Annotated[
        str | None,
        _run(
            help="Also tell the log to a tracker that accelerate knows, such as tensorboard or "
            "wandb; several are separated by commas."
        ),
    ] = None,
    device: Annotated[str, _run(help="cpu, cuda, or auto.")] = "auto",
    precision: Annotated[
        str, _run(help="float32, bfloat16, float16, or auto: bfloat16 where it is fast.")
    ] = "auto",
    accumulate: Annotated[
        int, _run(help="Take each process's images in so many parts, to save memory.")
    ] = 1,
    compiled: Annotated[
        bool, _run("--compile", help="Let torch compile the network: slow to start.")
    ] = False,
    seed: Annotated[int, _run(help="The same seed and options give the same model.")] = 0,
    size: Annotated[
        int | None, _data(help="Crop the pictures of a folder to squares and resize them to it.")
    ] = None,
    unlabelled: Annotated[bool, _data(help="Ignore the classes of the data.")] = False,
    flip: Annotated[bool, _data(help="Mirror half of the images.")] = False,
    held_out: Annotated[
        float,
        _data(
            help="The share of the images that is never trained on, chosen by a hash of each "
            "image; their loss and bound are measured with each picture."
        ),
    ] = 0.05,
    skip_bad: Annotated[
        bool, _data("--skip-bad", help="Leave out pictures that cannot be read, and list them.")
    ] = False,
    background: Annotated[
        str, _data(help="The colour behind transparent pixels: a name, or #rrggbb.")
    ] = "white",
    preset: Annotated[
        str | None,
        _network(
            callback=_of_preset,
            is_eager=True,
            help=f"Options for a size of network: {', '.join(PRESETS)}. cifar10 and 256 are those "
            "of Ho et al. 2020. What is given beside it comes first.",
        ),
    ] = None,
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
    predicts: Annotated[str, _diffusion(help=f"One of {', '.join(TARGETS)}.")] = "eps",
    objective: Annotated[
        str,
        _diffusion(
            help="One of simple, vlb, min-snr, p2: the plain squared error of the target, the "
            "variational bound, or the error under another weight."
        ),
    ] = "simple",
    learn_variance: Annotated[
        bool,
        _diffusion(
            "--learn-variance",
            help="Learn the variance too, from the bound, for likelihood: with simple this is "
            "L_hybrid.",
        ),
    ] = False,
    levels: Annotated[
        str,
        _diffusion(
            help="How noise levels are drawn: uniform, or important, in proportion to their last "
            "losses, for vlb."
        ),
    ] = "uniform",
    batch: Annotated[
        int | None,
        _optimisation(help="Images per step (default: 128, or all if there are fewer)."),
    ] = None,
    lr: Annotated[float, _optimisation(help="Adam's learning rate.")] = 2e-4,
    warmup: Annotated[int, _optimisation(help="Steps in which the learning rate rises.")] = 500,
    lr_decay: Annotated[
        int,
        _optimisation(help="From this step on, --lr falls as 1 / sqrt(step); 0: it stays."),
    ] = 0,
    ema: Annotated[
        str,
        _optimisation(
            help="Decay of the average of the weights. Of several, such as 0.9995,0.9999, the "
            "first is sampled from, and each gets a model."
        ),
    ] = "0.9995",
    power_averages: Annotated[
        str,
        _optimisation(
            help="Relative widths of averages to store with each picture, such as 0.05,0.1, from "
            "which `average` makes one of another width.",
        ),
    ] = "",
    drop_label: Annotated[
        float, _optimisation(help="Share of labels left out, to sample without a class too.")
    ] = 0.1,
) -> None:
    """Train a DDPM on images; needs torch.

    Writes OUT/model.safetensors (the averaged weights, for `sample --model`), states such as
    OUT/state-001000.safetensors and OUT/run.toml (for --resume), OUT/log.csv, OUT/held-out.csv, and
    samples of one noise such as OUT/samples-001000.png. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and
    SIGUSR2 save first; a second one does not. Under torchrun or accelerate launch its processes
    train one run.
    """
    check_idle(context, {"with --unlabelled": ("--drop-label",)})
    if resume is not None:
        _refuse_changes(context)
    _one_of("--schedule", schedule, SCHEDULES)
    _one_of("--predicts", predicts, TARGETS)
    _one_of("--precision", precision, PRECISIONS)
    _within(1, math.inf, steps=steps, save_every=save_every, sample_every=sample_every, size=size)
    trackers(track)
    _within(1, math.inf, keep=keep, accumulate=accumulate)
    if not 0 <= held_out < 1:
        raise ValueError(f"--held-out must be at least 0 and below 1, but is {held_out}")
    _within(1, 100, blocks=blocks)
    _within(1, 10**6, T=T)
    times = SCHEDULES[schedule](T)
    found = datasets.read(data, size=size, background=background, skip_bad=skip_bad)
    if unlabelled:
        found = found._replace(classes=None, labels=())
    channels, *pixels = found.images.shape[1:]
    each = integers("--widths", widths)
    if not each:
        raise ValueError("--widths must be integers, such as 32,64,64, but is empty")
    check_size(data, pixels, len(each), size)
    try:
        from ddpm_core_torch.training import OtherProcessError, Recipe, Trainer
    except ModuleNotFoundError as error:
        raise ImportError(f"training needs {error.name}: pip install 'ddpm-core[train]'") from None
    device = _device(device)
    held = datasets.held_out(found.images, held_out)
    if held.all():
        raise ValueError(
            f"--held-out {held_out:g} leaves none of {len(held)} images to train on; pass less"
        )
    trained, unseen = (datasets.part(found, np.flatnonzero(which)) for which in (~held, held))
    with _named_options():
        network = UNetConfig(
            channels=channels,
            out_channels=channels * (2 if learn_variance else 1),
            widths=each,
            blocks=blocks,
            attention=networks.attention(attention, each),
            groups=networks.groups(groups, each),
            classes=len(found.labels),
        )
        recipe = Recipe(
            batch=min(Recipe.batch, len(trained.images)) if batch is None else batch,
            lr=lr,
            warmup=warmup,
            lr_decay=lr_decay,
            ema=numbers("--ema", ema),
            power=numbers("--power-averages", power_averages),
            objective=objective,
            levels=levels,
            dropout=dropout,
            flip=flip,
            drop_label=drop_label,
            precision=_precision(precision, device),
            seed=seed,
        )
        trainer = Trainer(
            trained.images,
            trained.classes,
            network,
            times,
            predicts,
            recipe,
            device,
            accumulate=accumulate,
            compiled=compiled,
        )
    notes = {"held_out": held_out, "background": background, "data": trainer.data}
    run = Run(trainer, out, unseen, found.labels, notes, keep)
    options = {name: context.params[name] for name in _stored()} | {
        "data": str(data.absolute()),
        "precision": recipe.precision,
        "widths": network.widths,
        "attention": network.attention,
        "groups": network.groups,
        "batch": recipe.batch,
    }
    status: int | None = 2  # of a process whose first one failed, and said why
    with ExitStack() as stack, suppress(OtherProcessError):

        def enter() -> None:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out))
            run.sweep()

        trainer.first_does(enter)
        plan = Plan(steps, save_every, sample_every)
        said = *found.said, run.described, *networks.advice(pixels, len(each))
        status = _go(run, plan, options, resume is not None, said, track)
    trainer.accelerator.end_training()
    if trainer.accelerator.num_processes > 1:
        # torch's threads of several processes abort now and then when Python ends; all is written.
        sys.stdout.flush()
        os._exit(status or 0)
    if status is not None:
        raise typer.Exit(status)


def _stored() -> list[str]:
    """The options that a run's file holds."""
    parameters = inspect.signature(train).parameters
    return [name for name in parameters if name not in _OF_A_CALL]


def _refuse_changes(context: typer.Context) -> None:
    """ValueError if an option that was given is not the run's, and may not change."""
    stored = context.default_map or {}
    told = "; ".join(
        f"{_option(name)} was {stored.get(name, 'not given')} and is {context.params[name]}"
        for name in given(context)
        if name not in {"resume", *CHANGEABLE} and str(context.params[name]) != stored.get(name)
    )
    if told:
        raise ValueError(
            f"{stored['out']} is another run: {told}. Leave out what may not change, or start a run"
        )


def _go(
    run: Run,
    plan: Plan,
    options: Mapping[str, Any],
    resume: bool,
    said: Iterable[str],
    track: str | None,
) -> int | None:
    """Trains, and says what was done; the exit status, if a signal ended it."""
    trainer, written, passed = run.trainer, list[str](), list[str]()
    # All processes look before the first one writes.
    started, trained = bool(run.states), run.model.exists()
    if started and not resume:
        raise ValueError(
            f"{run.folder} holds a run already; pass --resume {run.folder}, or another --out"
        )
    if resume and trained and not started:
        raise FileNotFoundError(f"{run.folder} cannot be resumed: it has no state-*.safetensors")
    if started:
        passed = run.resume()
        if trainer.done > plan.steps:
            raise ValueError(
                f"--steps counts all steps of a run: {run.folder} has done {trainer.done} already, "
                f"and --steps is {plan.steps}"
            )
        written = run.refresh(plan)
    kept = {name: value for name, value in options.items() if value is not None}
    trainer.first_does(lambda: toml.write(run.options, kept))

    def say(text: str) -> None:
        if trainer.is_first:
            typer.echo(text, err=True)

    for error in passed:
        say(f"{error}; the state before it was taken")
    again = f"; wrote {' and '.join(written)} again" if written else ""
    if trainer.done == plan.steps:
        if trainer.is_first:
            typer.echo(f"{run.folder} has done its {trainer.done} steps already{again}")
        return None
    if trainer.done:
        say(f"{run.folder} goes on after step {trainer.done}{again}")
    for sentence in said:
        say(sentence)
    with tracked(track if trainer.is_first else None, run.folder, kept) as follow:
        stopped = run.go(plan, follow)
    if trainer.done == plan.steps and stopped is None:
        if trainer.is_first:
            typer.echo(f"{run.model}: {trainer.done} steps; see {run.samples}")
        return None
    say(f"stopped: {run.state} holds step {trainer.done}; --resume {run.folder} goes on")
    return 0 if stopped is None else 128 + stopped


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


def _precision(name: str, device: str) -> str:
    from ddpm_core_torch.training import bfloat16_is_fast

    if name != "auto":
        return name
    return "bfloat16" if bfloat16_is_fast(device) else "float32"


def _one_of(option: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, but is {value!r}")


def _within(least: float, most: float, **counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise ValueError(f"{_option(name)} must be {bound}, but is {value}")


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
    name = {"power": "power_averages"}.get(name, name)
    known = name in inspect.signature(train).parameters
    return f"--{name.replace('_', '-')}" if known else name
