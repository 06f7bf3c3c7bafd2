"""What the commands share that draw from a model: solvers, classes, guidance, batches."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_core.backends import Backend
from ddpm_core.checkpoints import Checkpoint
from ddpm_core.cli.kept import fingerprint
from ddpm_core.cli.options import open_backend
from ddpm_core.cli.processes import blocks
from ddpm_core.cli.progress import counted, progress
from ddpm_core.denoisers import Denoiser, clip
from ddpm_core.guidance import Scale, classifier_free, within
from ddpm_core.samplers import Sampler, trajectory
from ddpm_core.samplers.registry import ENTRIES
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.typing import Array, Noise

#: Every solver that goes from noise to data, by name and alias, the default first.
SAMPLERS = {name: each.solver for each in ENTRIES if each.from_noise for name in each.names}

MOST = 10_000_000  #: images of one command
LAST = 2**31 - 1  #: id of an image


@dataclass(frozen=True, eq=False)
class Drawing:
    """All that images are drawn from, but for their ids. It pickles."""

    checkpoint: Checkpoint
    sampler: str
    steps: int
    dealt: Array | None  #: as `deal` gives them
    seed: int
    batch: int
    guidance: float | None
    guidance_interval: tuple[float, float] | None
    backend: str
    device: str | None

    @property
    def solver(self) -> Sampler:
        return SAMPLERS[self.sampler](self.checkpoint.schedule, self.steps)

    def about(self) -> dict[str, Any]:
        """What decides an image, but for rounding, as JSON has it."""
        return {
            "model": fingerprint(self.checkpoint), "sampler": self.sampler, "steps": self.steps,
            "seed": self.seed, "classes": None if self.dealt is None else self.dealt.tolist(),
            "guidance": self.guidance,
            "guidance_interval": self.guidance_interval and list(self.guidance_interval),
        }  # fmt: skip

    def batches(self, ids: Array, **options: bool) -> Generator[tuple[Array, list[Array]]]:
        """As `batches` gives them; options: process, whole and quiet."""
        on = open_backend(self.backend, self.device)
        on.measure &= not options.get("whole", False)
        scale = parse_guidance(self.guidance, self.guidance_interval)
        return batches(
            self.checkpoint, on, self.solver, ids, self.dealt, self.seed, self.batch,
            guidance=scale, **options,
        )  # fmt: skip


def draw(
    checkpoint: Checkpoint,
    on: Backend,
    solver: Sampler,
    count: int,
    y: Array | None,
    seed: int,
    batch: int,
    *,
    guidance: Scale | None = None,
    process: bool = False,
    quiet: bool = False,
) -> list[Array]:
    """Samples, the last of the list: NumPy arrays (count, C, H, W).

    y: (count,), the class of each, -1 for none; None for a model without classes
    guidance: the scale of classifier-free guidance, with y; None for none
    process: with the x_0 that the model saw before, call by call

    ValueError if one is not finite.
    """
    drawn = batches(
        checkpoint, on, solver, np.arange(count), y, seed, batch,
        process=process, guidance=guidance, quiet=quiet,
    )  # fmt: skip
    parts = [states for _, states in drawn]
    return [np.concatenate(states) for states in zip(*parts, strict=True)]


def batches(
    checkpoint: Checkpoint,
    on: Backend,
    solver: Sampler,
    ids: Array,
    dealt: Array | None,
    seed: int,
    batch: int,
    *,
    process: bool = False,
    guidance: Scale | None = None,
    whole: bool = False,
    quiet: bool = False,
) -> Generator[tuple[Array, list[Array]]]:
    """Rising ids, and what `draw` gives of them, batch by batch: those of one id // batch.

    whole: compute all ids of a batch, whichever are asked for, so that an image is the same to the
        bit whatever is asked for; on NumPy it is the same in any batch
    """
    denoise = clip(predictor(checkpoint, on, guidance))
    shape = (checkpoint.config.channels, *checkpoint.size)
    first = np.unique(ids // batch) * batch
    beside = ids
    if whole and on.name != "numpy":
        beside = (first[:, None] + np.arange(batch)).ravel()
        beside = beside[beside <= LAST]
    with progress(len(first) * solver.nfe, "Sampling", quiet=quiet) as bar:
        for own, (part, eps, cond) in zip(
            blocks(ids, batch), parts(on, beside, dealt, seed, batch), strict=True
        ):
            x = eps(0, (len(part), *shape))

            def steps(x: Array = x, cond: dict[str, Any] = cond, eps: Any = eps) -> Any:
                return trajectory(
                    denoise, solver, x, eps, lincomb=on.lincomb,
                    progress=lambda rows: counted(rows, bar), **cond,
                )  # fmt: skip

            states: list[Array] = []
            for step in steps():
                x = step.x
                if process:
                    states.append(on.to_numpy(step.x_0))
            states[-1:] = [on.to_numpy(x)]
            if not np.isfinite(states[-1]).all():
                # Only now is each step looked at, which makes the host wait for the device.
                bad = [s.number for s in steps() if not np.isfinite(on.to_numpy(s.x_0)).all()]
                raise ValueError(
                    f"the model gives numbers that are not finite, from step {min(bad, default=0)} "
                    f"of {len(solver.rows())} on: its weights, or what its file says of them, are "
                    f"damaged"
                )
            mine = np.isin(part, own)
            yield own, [state[mine] for state in states]


def parts(
    on: Backend, ids: Array, dealt: Array | None, seed: int, batch: int
) -> Generator[tuple[Array, Noise, dict[str, Any]]]:
    """Rising ids, with their noise and what their denoiser is told, batch by batch."""
    noise = on.portable_noise(seed)
    for part in blocks(ids, batch):
        there = on.asarray(part, on.xp.int32)

        def eps(step: int, shape: tuple[int, ...], ids: Array = there) -> Array:
            return noise(step, shape, ids)

        y = classes_of(dealt, part)
        yield part, eps, {} if y is None else {"y": on.asarray(y, on.xp.int64)}


def predictor(checkpoint: Checkpoint, on: Backend, guidance: Scale | None) -> Denoiser:
    """The model as a denoiser, not clipped; guidance: as in `draw`."""
    predict = checkpoint.predictor(on.network)
    return predict if guidance is None else classifier_free(predict, guidance, {"y": -1})


def check_sampler(name: str) -> None:
    """ValueError if there is no such sampler."""
    if name not in SAMPLERS:
        raise ValueError(f"no sampler {name!r}; there are {', '.join(SAMPLERS)}")


def check_steps(steps: int, schedule: Schedule, option: str = "--steps") -> None:
    """ValueError if there are more steps than levels."""
    if isinstance(schedule, Discrete) and steps > schedule.T:
        raise ValueError(
            f"{option} must be at most {schedule.T}, the model's noise levels, but is {steps}"
        )


def parse_guidance(scale: float | None, interval: tuple[float, float] | None) -> Scale | None:
    """The scale, within the interval if there is one."""
    if scale is None:
        if interval is not None:
            raise ValueError("--guidance-interval goes with --guidance")
        return None
    if not math.isfinite(scale):
        raise ValueError(f"--guidance must be a finite number, but is {scale}")
    if interval is None:
        return scale
    low, high = interval
    if not low < high:
        raise ValueError(f"--guidance-interval must be LOW HIGH, but is {low:g} {high:g}")
    return within(scale, low, high)


def check_guidable(checkpoint: Checkpoint, dealt: Array | None) -> None:
    """ValueError if there is no class to guide to, or none to guide from."""
    if dealt is None:
        raise ValueError("--guidance is towards a class, but this model has no classes")
    if (dealt == -1).all():
        raise ValueError("--guidance is towards a class, but --classes asks for none")
    if not checkpoint.unconditional:
        raise ValueError(
            "--guidance is away from no class, but this model was never trained without one, or "
            "its file does not say which of its classes stands for none: for that one, see "
            "ddpm_core.guidance.classifier_free"
        )


def deal(classes: str | None, checkpoint: Checkpoint) -> Array | None:
    """The classes that are dealt out, -1 for none, or None for a model without classes."""
    total = checkpoint.config.classes
    if classes is None:
        return np.arange(total) if total else None
    if total == 0:
        raise ValueError("--classes was given, but this model has no classes")
    known = {str(i): i for i in range(total)} | {"none": -1}
    # Names last: a class that is called 7 is asked for by its name, whichever its number.
    labels = checkpoint.labels[:total]
    known |= {label.lower(): i for i, label in enumerate(labels)}
    known |= {label: i for i, label in enumerate(labels)}
    names = [name.strip() for name in classes.split(",")]
    numbers = [known.get(name, known.get(name.lower())) for name in names]
    if None in numbers:
        among = ", ".join((*checkpoint.labels, f"and the numbers 0 to {total - 1}"))
        raise ValueError(
            f"no class {names[numbers.index(None)]!r}; there are {among.removeprefix('and ')}"
        )
    wanted = np.array(numbers)
    if -1 in wanted and not getattr(checkpoint, "unconditional", True):
        raise ValueError("--classes none: this model was never trained without a class")
    return wanted


def parse_classes(classes: str | None, checkpoint: Checkpoint, count: int) -> Array | None:
    """The class of each of count images, -1 for none, or None for a model without classes."""
    return classes_of(deal(classes, checkpoint), np.arange(count))


def classes_of(dealt: Array | None, ids: Array) -> Array | None:
    """The class of each id, as they are dealt out."""
    return None if dealt is None else dealt[ids % len(dealt)]
