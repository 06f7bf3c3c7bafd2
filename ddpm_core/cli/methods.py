"""The methods of `ddpm-core edit`, by name, and how they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ddpm_core.cli.drawing import SAMPLERS, check_steps
from ddpm_core.denoisers import Denoiser, clip
from ddpm_core.grids import trailing
from ddpm_core.inverse import ddnm, ddrm, diffpir, dps, mmps, pigdm, replaced, walk
from ddpm_core.kernels import reverse
from ddpm_core.levels import Level
from ddpm_core.measurements import Measurement
from ddpm_core.samplers import levels_of, sample, sample_kernel
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.typing import Array

#: (denoiser, measurement) -> a denoiser, or a kernel.
_Method: TypeAlias = Callable[[Denoiser, Measurement], Any]

ROUNDING = (1 / 127.5) ** 2 / 12  #: the variance of what 8 bits leave out


def _mmps(predict: Denoiser, given: Measurement) -> Denoiser:
    # With a network's derivative its equations are nearly singular: noise and few iterations help.
    return clip(mmps(predict, replace(given, var=max(given.var, ROUNDING)), iterations=2))


#: Methods that make a denoiser, for any sampler. Those that take a derivative clip afterwards:
#: where a number is clipped, its derivative is 0.
DENOISERS: dict[str, _Method] = {
    "ddnm": lambda predict, given: ddnm(clip(predict), given),
    "diffpir": lambda predict, given: diffpir(clip(predict), given),
    "pigdm": lambda predict, given: clip(pigdm(predict, given)),
    "mmps": _mmps,
}
#: Methods that step by a kernel of their own.
KERNELS: dict[str, _Method] = {
    "repaint": lambda predict, given: replaced(reverse(clip(predict)), given),
    "ddrm": lambda predict, given: ddrm(clip(predict), given),
    "dps": lambda predict, given: dps(clip(predict), given),
}
METHODS = (*KERNELS, *DENOISERS)
NOISY = ("ddrm", "diffpir", "pigdm", "mmps")  #: methods for a measurement with noise
STEPS = {"dps": 100}  #: where 20 are too few
REPEATS = 5  #: of each step of repaint


class Plan(NamedTuple):
    """What is run: draw(x, noise, progress=, **cond), from x at the level `start`.

    calls: how many steps `progress` counts
    """

    draw: Callable[..., Array]
    start: Level
    calls: int
    how: str


def plan(
    predict: Denoiser,
    schedule: Schedule,
    measurement: Measurement | None,
    method: str | None,
    sampler: str | None,
    steps: int | None,
    strength: float | None,
) -> Plan:
    """What runs a method on a measurement, or without one a variation of some strength (SDEdit).

    method, sampler, steps: None for what is best on the bundled model
    """
    method = "repaint" if method is None else method
    steps = STEPS.get(method, 20) if steps is None else steps
    check_steps(steps, schedule)
    if measurement is not None and method in KERNELS:
        levels = levels_of(schedule, steps)
        levels = walk(levels, 1, REPEATS) if method == "repaint" else levels
        draw = partial(sample_kernel, KERNELS[method](predict, measurement), levels)
        return Plan(draw, levels.take(0), len(levels.sigma) - 1, f"{method}, {steps} steps")
    denoise, how = clip(predict), f"strength {strength or 1.0:g}"
    if measurement is not None:
        denoise, how = DENOISERS[method](predict, measurement), method
    times = _times(schedule, steps, strength or 1.0)
    sampler = "ancestral" if sampler is None else sampler
    solver = SAMPLERS[sampler](schedule, len(times) - 1, times=times)
    how += f" with {sampler}, {len(times) - 1} steps"
    return Plan(partial(sample, denoise, solver), solver.levels.take(0), solver.nfe, how)


def _times(schedule: Schedule, steps: int, share: float) -> Array:
    """Up to steps + 1 times, from that share of the schedule's down to clean data."""
    clean = schedule.ends[0]
    times = clean + share * (trailing(schedule, steps) - clean)
    if isinstance(schedule, Discrete):  # whose network knows whole times
        times = np.append(np.unique(np.rint(times[:-1]).clip(1))[::-1], 0.0)
    return times
