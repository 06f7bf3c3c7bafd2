"""Generates docs/diffusers.md: the schedulers of diffusers against the solvers here, in numbers.

    pip install -e '.[test]' && python docs/schedulers.py

Takes about a minute.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import diffusers
import numpy as np
import torch

import ddpm_core as ddpm
from ddpm_core import Level
from ddpm_core.arrays import log_sigmoid
from ddpm_core.samplers import Unrolled
from ddpm_core.testing.foreign.diffusers import unrolled

LINEAR, STEPS = ddpm.linear(), 20
COUNTS = (42, 84, 168)  # multiples of 2 and 3, for single-step solvers
NORMAL = ddpm.GaussianOracle([0.0], 0.25)


# Measuring. -------------------------------------------------------------------------------------


def on(
    schedule: ddpm.Schedule, solver: Callable[..., Any], u: Unrolled, at: Any = None
) -> Unrolled:
    """Our solver on the levels of an unrolled scheduler, or on some of them."""
    at = slice(None) if at is None else at
    noisiest = schedule(schedule.ends[1]).logsnr
    times = np.array(schedule.at(np.maximum(u.levels.logsnr[at], noisiest)).time)
    return solver(schedule, len(times) - 1, times=times).unroll()


def difference(a: Unrolled, b: Unrolled, last: bool) -> float:
    """The largest of the matrices, relative to their largest entry, or to 1."""
    pairs, points = ((a.x, b.x), (a.y, b.y), (a.z, b.z)), len(a.x) - (not last)
    return max(np.abs(p - q)[:points].max() / max(1.0, np.abs(q).max()) for p, q in pairs)


def betas(levels: Level) -> list[float]:
    """The betas of training levels, given the noisiest first."""
    log_abar = log_sigmoid(np.asarray(levels.logsnr))[::-1]
    return (-np.expm1(np.diff(log_abar, prepend=0.0))).tolist()


def without_last(u: Unrolled) -> Unrolled:
    """Without the step into clean data."""
    return Unrolled(u.levels.take(slice(None, -1)), u.x[:-1], u.y[:-1, :-1], u.z[:-1, :-1])


def solver_of(kind: Any, mode: str, options: dict[str, Any]) -> Callable[..., Unrolled]:
    """A scheduler as `order` wants a solver: on any levels, which become those of its training."""
    step = options.pop("step", {})

    def solver(schedule: ddpm.Schedule, n: int, times: Any) -> Unrolled:
        levels = schedule(times)
        k = levels.sigma / levels.alpha
        trained = {"num_train_timesteps": n + 1, "trained_betas": betas(levels)}
        match mode:
            case "linspace":  # n steps that end at timestep 0
                return unrolled(kind(**trained, **options), n, **step)
            case "offset":  # t - T // S is the next timestep, and the last is 0
                scheduler = kind(timestep_spacing="leading", steps_offset=1, **trained, **options)
                return unrolled(scheduler, n, **step)
            case "clean":  # n + 1 steps, of which the last one goes from timestep 0 to clean data
                return without_last(unrolled(kind(**trained, **options), n + 1, **step))
            case "edm":
                scheduler = kind(
                    sigma_max=float(k[0]),
                    sigma_min=float(k[-1]),
                    sigma_schedule="exponential",
                    **options,
                )
                return without_last(unrolled(scheduler, n + 1, **step))
            case "ipndm":
                return unrolled(kind(trained_betas=levels.sigma.tolist()), n)
            case "prk":  # with two training levels a step
                fine = schedule.at(np.linspace(levels.logsnr[0], levels.logsnr[-1], 2 * n + 1))
                trained = {"num_train_timesteps": 2 * n + 1, "trained_betas": betas(fine)}
                return unrolled(kind(steps_offset=2, **trained, **options), n)
        raise ValueError(mode)

    return solver


def last_order(solver: Callable[..., Any]) -> float:
    """The measured order between the two largest counts."""
    return float(ddpm.convergence(solver, COUNTS).slopes[-1])


def w2(u: Any) -> float:
    """The Wasserstein-2 distance from N(0, 1/4) of what is drawn with its exact denoiser."""
    return ddpm.law(u, NORMAL).w2


# The table. -------------------------------------------------------------------------------------


@dataclass
class Row:
    """A scheduler, and the solver here that it should be."""

    label: str
    kind: Any
    ours: tuple[str, Callable[..., Any]] | None
    mode: str = "linspace"  #: of `solver_of`
    options: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)  #: options of the comparison alone
    order: dict[str, Any] = field(default_factory=dict)  #: options of the measured order alone
    step: dict[str, Any] = field(default_factory=dict)
    at: Any = None
    last: bool = True  #: whether the last point is compared
    schedule: Any = LINEAR
    note: str = ""


def rows() -> list[Row]:
    """What is compared."""
    d = diffusers
    unclipped = {"clip_sample": False}
    whole = {"lower_order_final": False}
    to_min = {"final_sigmas_type": "sigma_min"}
    two = np.r_[0 : 2 * STEPS - 1 : 2, 2 * STEPS - 1]
    vp, even = ddpm.VP(), ddpm.schedules.LinearLogSNR(12.0, -12.0)
    table = [
        Row(
            "DDPM, fixed_small", d.DDPMScheduler, ("ancestral", ddpm.ancestral), "clean", unclipped
        ),
        Row(
            "DDPM, fixed_large",
            d.DDPMScheduler,
            ("ancestral, large", partial(ddpm.ancestral, variance=ddpm.large)),
            "clean",
            unclipped | {"variance_type": "fixed_large"},
        ),
    ]
    for eta in (0.0, 0.5, 1.0):
        ours = (f"ddim, eta = {eta:g}", partial(ddpm.ddim, eta=eta))
        step = {"eta": eta}
        table.append(
            Row(f"DDIM, eta = {eta:g}", d.DDIMScheduler, ours, "offset", unclipped, step=step)
        )
    inversion = unclipped | {"set_alpha_to_one": False, "timestep_spacing": "trailing"}
    table += [
        Row(
            "DDIMInverse",
            d.DDIMInverseScheduler,
            ("ddim_inversion", ddpm.samplers.ddim_inversion),
            "",
            inversion,
            note="b",
        ),
        Row(
            "PNDM, skip_prk_steps",
            d.PNDMScheduler,
            ("plms", ddpm.samplers.plms),
            "offset",
            {"skip_prk_steps": True},
            {"steps_offset": 1},
            at=np.r_[0:2, 3 : STEPS + 2],
            note="a",
        ),
        Row("PNDM", d.PNDMScheduler, None, "prk"),
    ]
    for algorithm, solvers in {
        "dpmsolver++": ("ddim", "dpmpp_2m", "dpmpp_3m"),
        "dpmsolver": ("dpm_solver_1", "dpm_solver_2m", "dpm_solver_3m"),
        "sde-dpmsolver++": ("sde_dpmpp_1", "sde_dpmpp_2m", "sde_dpmpp_3m"),
    }.items():
        for i, name in enumerate(solvers):
            table.append(
                Row(
                    f"DPMSolverMultistep, {algorithm}, order {i + 1}",
                    d.DPMSolverMultistepScheduler,
                    (name, ddpm.samplers.by_name(name)),
                    options={"algorithm_type": algorithm, "solver_order": i + 1} | whole | to_min,
                    note=("", "", "3, 4" if algorithm.startswith("sde") else "3")[i],
                )
            )
    for algorithm, order, name in (
        ("dpmsolver++", 2, "dpmpp_2s"),
        ("dpmsolver", 2, "dpm_solver_2"),
        ("dpmsolver", 3, "dpm_solver_3"),
    ):
        levels = LINEAR.at(np.linspace(LINEAR.logsnr[-1], LINEAR.logsnr[1], 25))
        trained = {"num_train_timesteps": 25, "trained_betas": betas(levels)}
        table.append(
            Row(
                f"DPMSolverSinglestep, {algorithm}, order {order}",
                d.DPMSolverSinglestepScheduler,
                (name, ddpm.samplers.by_name(name)),
                options={"algorithm_type": algorithm, "solver_order": order} | to_min,
                grid=trained,
                at=slice(None, None, order),
                note="c" if order == 2 else "c, d",
            )
        )
    for order in (2, 3):
        table.append(
            Row(
                f"DPMSolverSinglestep, sde-dpmsolver++, order {order}",
                d.DPMSolverSinglestepScheduler,
                None,
                options={"algorithm_type": "sde-dpmsolver++", "solver_order": order} | to_min,
                note="5",
            )
        )
    for order in (1, 2, 3):
        for b in ("bh1", "bh2"):
            name = f"unipc_{order}"
            table.append(
                Row(
                    f"UniPC, order {order}, {b}",
                    d.UniPCMultistepScheduler,
                    (f"{name}, {b}", partial(ddpm.samplers.by_name(name), b=b)),
                    options={"solver_order": order, "solver_type": b} | whole | to_min,
                )
            )
    for order in (1, 2, 3):
        name = f"deis_{order}"
        table.append(
            Row(
                f"DEIS, order {order}",
                d.DEISMultistepScheduler,
                (name, ddpm.samplers.by_name(name)),
                options={"solver_order": order} | whole,
                schedule=even,
                note="e",
            )
        )
    for tau in (0.0, 1.0):
        table.append(
            Row(
                f"SASolver, tau = {tau:g}, orders 3 and 4",
                d.SASolverScheduler,
                (
                    f"sa_solver, stochasticity = {tau:g}, 3 and 3",
                    partial(ddpm.samplers.sa_solver, stochasticity=tau, predictor=3, corrector=3),
                ),
                options={
                    "predictor_order": 3,
                    "corrector_order": 4,
                    "tau_func": lambda _, tau=tau: tau,
                }
                | whole,
                note="f",
            )
        )
    stable = {"beta_start": 1e-4, "beta_end": 0.02}
    edm = {"lower_order_final": False}
    table += [
        Row("EulerDiscrete", d.EulerDiscreteScheduler, ("euler", ddpm.ddim), "clean"),
        Row(
            "EulerAncestralDiscrete",
            d.EulerAncestralDiscreteScheduler,
            ("euler_ancestral", ddpm.ancestral),
            "clean",
        ),
        Row("HeunDiscrete", d.HeunDiscreteScheduler, ("heun", ddpm.heun), "clean", at=two),
        Row(
            "LMSDiscrete",
            d.LMSDiscreteScheduler,
            ("lms", ddpm.samplers.lms),
            "clean",
            last=False,
            note="a",
        ),
        Row(
            "KDPM2Discrete",
            d.KDPM2DiscreteScheduler,
            ("midpoint", ddpm.samplers.dpm_solver_2),
            "clean",
            stable,
            at=two,
        ),
        Row("KDPM2AncestralDiscrete", d.KDPM2AncestralDiscreteScheduler, None, "clean", stable),
        Row("DPMSolverSDE", d.DPMSolverSDEScheduler, None, "clean", stable),
        Row(
            "IPNDM",
            d.IPNDMScheduler,
            ("ipndm", ddpm.samplers.ipndm),
            "ipndm",
            grid={"trained_betas": LINEAR(np.linspace(1000, 1, STEPS + 1)).sigma.tolist()},
            note="a",
        ),
        Row("EDMEuler", d.EDMEulerScheduler, ("euler", ddpm.ddim), "edm", schedule=vp),
    ]
    for order, algorithm, name in (
        (2, "dpmsolver++", "dpmpp_2m"),
        (3, "dpmsolver++", "dpmpp_3m"),
        (2, "sde-dpmsolver++", "sde_dpmpp_2m"),
    ):
        table.append(
            Row(
                f"EDMDPMSolverMultistep, {algorithm}, order {order}",
                d.EDMDPMSolverMultistepScheduler,
                (name, ddpm.samplers.by_name(name)),
                "edm",
                {"solver_order": order, "algorithm_type": algorithm} | edm,
                schedule=vp,
                note="3" if order == 3 else "",
            )
        )
    table.append(
        Row(
            "CosineDPMSolverMultistep",
            d.CosineDPMSolverMultistepScheduler,
            ("sde_dpmpp_2m", ddpm.samplers.sde_dpmpp_2m),
            "edm",
            edm,
            {"sigma_max": 100.0},
            schedule=vp,
        )
    )
    return table


def compared(row: Row) -> str:
    """A line of the table."""
    largest, ours, mine = "", "", ""
    if row.ours is not None:
        steps = 24 if "num_train_timesteps" in row.grid else STEPS
        u = unrolled(row.kind(**row.options, **row.grid), steps, **row.step)
        largest = f"{difference(u, on(row.schedule, row.ours[1], u, row.at), row.last):.0e}"
        ours = f"`{row.ours[0].partition(',')[0]}`{''.join(row.ours[0].partition(',')[1:])}"
    if row.mode:
        theirs = solver_of(row.kind, row.mode, row.options | {"step": row.step})
        measured = f"{last_order(theirs):.1f}"
        if row.ours is not None:
            mine = f"{last_order(row.ours[1]):.1f}"
    else:
        measured = ""
    return f"| {row.label} | {ours} | {largest} | {measured} | {mine} | {row.note} |"


# Where they are not right. ----------------------------------------------------------------------


def schedulers(*names: str) -> list[Any]:
    """The schedulers of diffusers whose constructors have these arguments."""
    kinds = [getattr(diffusers, name) for name in sorted(dir(diffusers)) if "Scheduler" in name]
    return [
        kind
        for kind in kinds
        if getattr(kind, "__module__", "").startswith("diffusers.schedulers.scheduling")
        and set(names) <= set(inspect.signature(kind).parameters)
    ]


def named(kinds: list[Any]) -> str:
    """Their names without the word that all have."""
    return ", ".join(kind.__name__.removesuffix("Scheduler") for kind in kinds)


def calls(kind: Any, steps: int, **options: Any) -> Any:
    """The timesteps of a scheduler."""
    scheduler = kind(**options)
    scheduler.set_timesteps(steps)
    return np.asarray(scheduler.timesteps)


DDIM = partial(diffusers.DDIMScheduler, clip_sample=False)
DDPM = partial(diffusers.DDPMScheduler, clip_sample=False)
MULTISTEP = partial(
    diffusers.DPMSolverMultistepScheduler, lower_order_final=False, final_sigmas_type="sigma_min"
)
SINGLE = partial(diffusers.DPMSolverSinglestepScheduler, final_sigmas_type="sigma_min")
EDM = partial(diffusers.EDMDPMSolverMultistepScheduler, lower_order_final=False)


def trailing() -> str:
    """A float range that is one too long."""
    counts = [s for s in range(1, 1001) if len(calls(DDPM, s, timestep_spacing="trailing")) != s]
    found = {
        kind: [len(calls(kind, steps, timestep_spacing="trailing")) for steps in (61, 62)]
        for kind in schedulers("timestep_spacing", "trained_betas")
        if "original_inference_steps" not in inspect.signature(kind.set_timesteps).parameters
    }
    affected = [kind for kind, (here, next_) in found.items() if here == next_]
    last = calls(DDPM, counts[0], timestep_spacing="trailing")[-1]
    bad, good = (unrolled(DDIM(timestep_spacing="trailing"), s) for s in (61, 60))
    return f"""\
### 1. `trailing` has one timestep too many for some step counts

`set_timesteps`, `timestep_spacing="trailing"`: `np.arange(T, 0, -T / S)` on floats has S + 1
elements for {len(counts)} of the 1000 step counts at T = 1000: {", ".join(map(str, counts[:6]))},
... The last timestep is then {last}. In {len(affected)} schedulers:

{fill(named(affected) + ".", 100)}

Schedulers that look ᾱ up in a table find ᾱ_T at index -1: `DDIMScheduler`'s last step divides
the network's error by sqrt(ᾱ_T), {LINEAR(1000).alpha:.5f} on the linear schedule. With the exact denoiser of
N(0, 0.25) it draws a variance of {ddpm.law(good, NORMAL).variances[0]:.3f} in 60 steps, and of
{ddpm.law(bad, NORMAL).variances[0]:.0e} in 61.
Schedulers that interpolate sigmas make one call more, at timestep -1.

To avoid it: check `len(scheduler.timesteps) == S`, or take a step count that divides T.
"""


def previous() -> str:
    """The step to t - T // S."""
    lines: list[str] = []
    for spacing, steps in (
        ("leading", 30),
        ("linspace", 10),
        ("linspace", 30),
        ("trailing", 30),
        ("trailing", 600),
    ):
        u = unrolled(DDIM(timestep_spacing=spacing), steps)
        reached = u.levels.alpha[0] * u.x + u.y.sum(axis=1)
        gap = np.abs(reached - u.levels.alpha)
        mine = on(LINEAR, ddpm.ddim, u)
        lines.append(
            f"| {spacing} | {steps} | {np.count_nonzero(gap > 1e-9)} of {steps} | "
            f"{gap.max():.3f} | {w2(u):.4f} | {w2(mine):.4f} |"
        )
    rows = "\n".join(lines)
    return f"""\
### 2. DDIM and PNDM step to t - T // S, and not to the next timestep

`step` of `DDIMScheduler`, `DDIMParallelScheduler`, `DDIMInverseScheduler`, `CogVideoXDDIMScheduler`,
`CogVideoXDPMScheduler` and `RePaintScheduler`, `PNDMScheduler.step_plms`:
`prev_timestep = timestep - T // S`. With `linspace`, and with `trailing` where S does not divide T,
that is not the time of which the network is told next. `DDPMScheduler` is right: it looks into the
list.

| `DDIMScheduler` | steps | steps that end elsewhere | largest error of sqrt(ᾱ) | W2 | W2 of `ddim` |
|---|---|---|---|---|---|
{rows}

W2 is the distance of what is drawn from N(0, 0.25), with its exact denoiser. At few steps this
error may cancel a part of the solver's own.

To avoid it: `leading`, or `trailing` with a step count that divides T.
"""


def third_order() -> str:
    """Half of the second derivative."""
    lines: list[str] = []
    for label, kind, mode, options, ours in (
        ("DPMSolverMultistep, dpmsolver++", MULTISTEP, "linspace", {}, ddpm.samplers.dpmpp_3m),
        (
            "DPMSolverMultistep, dpmsolver",
            MULTISTEP,
            "linspace",
            {"algorithm_type": "dpmsolver"},
            ddpm.samplers.dpm_solver_3m,
        ),
        ("EDMDPMSolverMultistep, dpmsolver++", EDM, "edm", {}, ddpm.samplers.dpmpp_3m),
    ):
        theirs = ddpm.convergence(solver_of(kind, mode, options | {"solver_order": 3}), COUNTS)
        mine = ddpm.convergence(ours, COUNTS)
        lines.append(
            f"| {label} | {theirs.slopes[-1]:.2f} | {mine.slopes[-1]:.2f} | "
            f"{theirs.errors[-1]:.1e} | {mine.errors[-1]:.1e} |"
        )
    rows = "\n".join(lines)
    return f"""\
### 3. Multistep DPM-Solver of order 3 is of order 2

`multistep_dpm_solver_third_order_update` in `DPMSolverMultistepScheduler`,
`DPMSolverMultistepInverseScheduler` and `EDMDPMSolverMultistepScheduler`: `D2` is the second
divided difference times h², which is half of h² times the second derivative, and the coefficient
that multiplies it is that of the whole. The single-step solver has the factor 2.

| order 3 of | measured order | with the factor 2 | error at {COUNTS[-1]} steps | with the factor 2 |
|---|---|---|---|---|
{rows}

To avoid it: `solver_order=2` loses no order; `DPMSolverSinglestepScheduler`, `UniPC` and `DEIS` of
order 3 have it.
"""


def sde_third_order() -> str:
    """The sign of 1/2."""
    found = [
        ddpm.convergence(
            solver_of(
                MULTISTEP, "linspace", {"algorithm_type": "sde-dpmsolver++", "solver_order": order}
            ),
            COUNTS,
        )
        for order in (1, 2, 3)
    ]
    mine = ddpm.convergence(ddpm.samplers.sde_dpmpp_3m, COUNTS)
    rows = "\n".join(
        f"| {label} | {' | '.join(f'{e:.1e}' for e in o.errors)} | {o.slopes[-1]:.2f} |"
        for label, o in zip(
            ("order 1", "order 2", "order 3", "`sde_dpmpp_3m`"), [*found, mine], strict=True
        )
    )
    heads = " | ".join(map(str, COUNTS))
    heun = ddpm.convergence(
        solver_of(
            SINGLE,
            "linspace",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"},
        ),
        COUNTS,
    )
    return f"""\
### 4. sde-dpmsolver++ of order 3 has a wrong sign

`DPMSolverMultistepScheduler.multistep_dpm_solver_third_order_update`: `D2` is multiplied by
(1 - e^(-2h) - 2h) / (2h)² - 0.5. As h goes to 0 this goes to -1, and the integral that it stands for
to 0: it must be + 0.5 (and twice that, as in 3). Errors of the law of N(1, 1/4), by steps:

| sde-dpmsolver++ | {heads} | measured weak order |
|---|{"---|" * len(COUNTS)}---|
{rows}

`DPMSolverSinglestepScheduler.singlestep_dpm_solver_third_order_update` with `solver_type="heun"` has
the same sign, and does not converge: {heun.errors[0]:.1f} at {COUNTS[0]} steps,
{heun.errors[-1]:.1f} at {COUNTS[-1]}.

To avoid it: `solver_order=2`.
"""


def one_path(u: Unrolled) -> Unrolled:
    """A single-step SDE solver of order 2, if the noises of a step were of one path."""
    half = u.levels.logsnr / 2
    whole, rest = half[2::2] - half[:-2:2], half[2::2] - half[1::2]
    share = np.exp(-rest) * np.sqrt(np.expm1(-2 * (whole - rest)) / np.expm1(-2 * whole))
    z = u.z.copy()
    z[:, ::2] += share * u.z[:, 1::2]
    z[:, 1::2] *= np.sqrt(1 - share**2)
    return replace(u, z=z)


def single_step_sde() -> str:
    """Independent noises."""
    solvers: dict[str, Callable[..., Any]] = {
        str(order): solver_of(
            SINGLE, "linspace", {"algorithm_type": "sde-dpmsolver++", "solver_order": order}
        )
        for order in (1, 2, 3)
    }
    second = solvers["2"]
    solvers["2, on one path"] = lambda schedule, n, times: one_path(second(schedule, n, times))
    found = {label: ddpm.convergence(solver, COUNTS) for label, solver in solvers.items()}
    rows = "\n".join(
        f"| {label} | {' | '.join(f'{e:.1e}' for e in o.errors)} | {o.slopes[-1]:.2f} |"
        for label, o in found.items()
    )
    heads = " | ".join(map(str, COUNTS))
    return f"""\
### 5. Single-step sde-dpmsolver++ of order 2 and 3 is worse than of order 1

`DPMSolverSinglestepScheduler.step`: each call draws new noise, so that the points inside a step and
its end are on different paths of the SDE, and the differences of readings hold noise that the step
does not know of. Errors of the law of N(1, 1/4), by network calls:

| `solver_order` | {heads} | measured weak order |
|---|{"---|" * len(COUNTS)}---|
{rows}

To avoid it: `DPMSolverMultistepScheduler` with `sde-dpmsolver++`, order 2, or
`DPMSolverSDEScheduler`, whose noise is one path.
"""


def unbound() -> str:
    """Branches that are not there."""
    failed: list[str] = []
    for kind, algorithm in (
        (EDM, "sde-dpmsolver++"),
        (MULTISTEP, "sde-dpmsolver"),
    ):
        scheduler = kind(algorithm_type=algorithm, solver_order=3)
        try:
            unrolled(scheduler, STEPS)
        except UnboundLocalError as error:
            name = type(scheduler).__name__
            failed.append(f"`{name}` with `{algorithm}`: UnboundLocalError, {error}")
    lines = "\n".join(f"- {line}" for line in failed)
    return f"""\
### 6. Order 3 of two SDE solvers does not run

The third step of `multistep_dpm_solver_third_order_update` has no branch for:

{lines}
"""


def last_noise() -> str:
    """The mask t > 0."""
    lines: list[str] = []
    for options, steps in (
        ({"timestep_spacing": "trailing"}, 10),
        ({"timestep_spacing": "trailing"}, 20),
        ({"timestep_spacing": "trailing"}, 50),
        ({"steps_offset": 1}, 50),
    ):
        large, small = (
            unrolled(DDPM(variance_type=variance, **options), steps)
            for variance in ("fixed_large", "fixed_small")
        )
        text = ", ".join(f"`{name}={value!r}`" for name, value in options.items())
        lines.append(f"| {text} | {steps} | {large.z[-1, -1]:.3f} | {small.z[-1, -1]:.0e} |")
    rows = "\n".join(lines)
    return f"""\
### 7. DDPM adds noise to the final sample

`DDPMScheduler.step` adds noise if `t > 0`, and not if there is a next timestep. With `trailing`, or
with `steps_offset`, no timestep is 0, and the sample itself gets noise of this standard deviation:

| options | steps | fixed_large | fixed_small |
|---|---|---|---|
{rows}

To avoid it: `fixed_small`, or take the last step's `pred_original_sample`.
"""


def variances() -> str:
    """Logarithms taken for variances."""
    lines: list[str] = []
    for kind in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned"):
        scheduler = DDPM(variance_type=kind)
        scheduler.set_timesteps(10)
        t, then = scheduler.timesteps[3:5]
        beta = 1 - scheduler.alphas_cumprod[t] / scheduler.alphas_cumprod[then]
        output = torch.zeros(1, 6 if kind == "learned" else 3, 64, 64)
        output[:, 3:] = beta.log()
        drawn = scheduler.step(
            output, t, torch.zeros(1, 3, 64, 64), generator=torch.Generator().manual_seed(0)
        ).prev_sample
        lines.append(f"| `{kind}` | {float(drawn.std()):.2f} |")
    rows = "\n".join(lines)
    return f"""\
### 8. Two variance types give NaN

`DDPMScheduler._get_variance` returns log β for `fixed_large_log`, of which `step` takes the square
root; for `learned` it takes that of the network's output, which in the networks that have one is a
log-variance. The standard deviation that `step` adds at t = 600 of 10 steps, sqrt(β) being
{float(beta.sqrt()):.2f}:

| `variance_type` | found |
|---|---|
{rows}

To avoid it: `fixed_large`; `learned_range` is right.
"""


def churn() -> str:
    """Noise after the call."""
    lines: list[str] = []
    for steps in (20, 50):
        for amount in (0.0, 5.0, 20.0):
            u = unrolled(
                diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
                steps,
                s_churn=amount,
            )
            lines.append(
                f"| {steps} | {amount:g} | {u.z[-1, -1]:.3f} | "
                f"{ddpm.law(u, NORMAL).variances[0]:.3f} |"
            )
    rows = "\n".join(lines)
    return f"""\
### 9. `s_churn` adds noise of which the network is not told

`EulerDiscreteScheduler.step`, `EDMEulerScheduler.step`: in Karras et al. 2022, Algorithm 2, noise is
added, and then the network is called. Here `step` adds it after the call, and goes on with the
network's output for the sample without it. What is added at the last step stays:

| steps | `s_churn` | noise in the sample | variance of N(0, 0.25) |
|---|---|---|---|
{rows}

To avoid it: `s_churn=0`, the default.
"""


def no_effect() -> str:
    """Calls that change nothing."""
    lines: list[str] = []
    for label, scheduler in (
        ("PNDM, by default, and with skip_prk_steps", diffusers.PNDMScheduler(skip_prk_steps=True)),
        ("DDIM, set_alpha_to_one=False", DDIM(set_alpha_to_one=False)),
        ("DEIS, use_karras_sigmas", diffusers.DEISMultistepScheduler(use_karras_sigmas=True)),
        (
            "DPMSolverMultistep, use_karras_sigmas, sigma_min",
            MULTISTEP(use_karras_sigmas=True),
        ),
    ):
        u = unrolled(scheduler, STEPS)
        change = np.abs(u.y[-1] - u.y[-2]).max()
        lines.append(f"| {label} | last | {change:.0e} | {u.levels.sigma[-1]:.2f} |")
    u = unrolled(diffusers.IPNDMScheduler(), STEPS)
    lines.append(f"| IPNDM | first | {np.abs(u.y[:, 0]).max():.0e} | {u.levels.sigma[-1]:.2f} |")
    rows = "\n".join(lines)
    return f"""\
### 10. Network calls without effect

A step from ᾱ_0 to ᾱ_0, where the last timestep is 0 and the sampler ends there; from sigma_min to
sigma_min, where the end repeats the grid's; and from alpha = 0, where `IPNDMScheduler` takes x_0
for 0. The largest weight that the call has, and the noise that the sample has at the end:

| scheduler | call | weight | sigma at the end |
|---|---|---|---|
{rows}

To avoid it: `steps_offset=1` or `set_alpha_to_one=True`; `final_sigmas_type="zero"`; for
`IPNDMScheduler`, `trained_betas`, which are its sigmas, from below 1.
"""


def residual() -> str:
    """Ends that are not clean data."""
    deis = unrolled(diffusers.DEISMultistepScheduler(), STEPS)
    sa = unrolled(diffusers.SASolverScheduler(tau_func=lambda _: 1.0), STEPS)
    return f"""\
### 11. DEIS and SASolver cannot end at clean data

`DEISMultistepScheduler.set_timesteps`, `SASolverScheduler.set_timesteps`: the last sigma is that of
timestep 0, without `final_sigmas_type`. Samples keep noise of standard deviation
{deis.levels.sigma[-1]:.3f} on the linear schedule; where `tau_func` is 1 at the end,
{sa.z[-1, -1]:.3f} of it is new.

To avoid it: call the network once more at timestep 0 and take its x_0.
"""


def inversion() -> str:
    """The label of the wrong end."""
    u = unrolled(
        diffusers.DDIMInverseScheduler(
            clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing"
        ),
        STEPS,
    )
    told = LINEAR(u.levels.time[:-1]).logsnr
    gaps = u.levels.logsnr[:-1] - told
    return f"""\
### 12. DDIM inversion tells the network where the step ends

`DDIMInverseScheduler`: the timesteps that a pipeline gives to the network are those of the levels
that the steps go to, while its input is at the level before: with {STEPS} steps, log-SNR is between
{gaps.min():.1f} and {gaps.max():.1f} higher than the network is told. By default the first call is
even at clean data. The update itself is right.

To avoid it: tell the network `timestep - T // S`, and start from a level with noise.
"""


def labels() -> str:
    """Rounded times."""
    lines: list[str] = []
    for kind in (
        diffusers.DPMSolverMultistepScheduler,
        diffusers.UniPCMultistepScheduler,
        diffusers.KDPM2DiscreteScheduler,
        diffusers.EulerDiscreteScheduler,
    ):
        found: list[str] = []
        for steps in (20, 50):
            u = unrolled(kind(use_karras_sigmas=True, beta_start=1e-4, beta_end=0.02), steps)
            told = LINEAR(u.levels.time[:-1]).logsnr
            distinct = len(set(u.levels.time[:-1]))
            found.append(f"{np.abs(told - u.levels.logsnr[:-1]).max():.2f}")
            found.append(f"{distinct} of {u.nfe}")
        lines.append(f"| {named([kind])} | {' | '.join(found)} |")
    rows = "\n".join(lines)
    return f"""\
### 13. With `use_karras_sigmas`, timesteps are rounded and levels are not

`set_timesteps`: the network is told an integer, and the solver computes with the level itself.
`EulerDiscreteScheduler` and some others keep the fraction, interpolated. The largest difference in
log-SNR, and how many of the timesteps are distinct, on the linear schedule:

| scheduler | 20 steps | | 50 steps | |
|---|---|---|---|---|
{rows}
"""


def training() -> str:
    """What is not a solver."""
    clean = torch.zeros(1000, 1)
    zero = {
        name: int(
            (DDPM().add_noise(clean.to(dtype), clean.to(dtype) + 1, torch.arange(1000)) == 0).sum()
        )
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16))
    }
    laplace = DDPM(beta_schedule="laplace").alphas_cumprod
    ends = {
        kind.__name__: float(kind(rescale_betas_zero_snr=True).alphas_cumprod[-1])
        for kind in (diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler)
    }
    wide = 3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    thresholded = DDPM(thresholding=True)._threshold_sample(wide)
    same = torch.equal(thresholded, wide.clamp(-1, 1))
    zeros = ", ".join(f"{count} timesteps in {name}" for name, count in zero.items())
    tables = ", ".join(f"{value:.1e} in `{name}`" for name, value in ends.items())
    return f"""\
### 14. Beside the solvers

- `add_noise`, `get_velocity`: ᾱ is cast to the sample's dtype before 1 - ᾱ is taken. No noise is
  added at all at {zeros}, of 1000. To avoid it: call them in float32.
- `beta_schedule="laplace"`: `betas_for_alpha_bar` gets sqrt(ᾱ) where ᾱ is meant. Halfway, where
  log-SNR is 0, ᾱ is {float(laplace[499]):.3f} and not 0.5.
- `rescale_betas_zero_snr`: ᾱ_T is {tables}; where it is 0, x_0 from eps is a division by 0.
- `thresholding=True` with `sample_max_value` at its default of 1 is clipping to [-1, 1]: on normal
  numbers the two are {"equal" if same else "not equal"}.
"""


PAGE = """\
# diffusers {version}, certified

Generated by `python docs/schedulers.py`; every number on this page is computed by it.

Without clipping, a scheduler of diffusers is linear in x_T, in what the network says of x_0 and in
the noises. `ddpm_core.testing.foreign.diffusers.unrolled` probes its `step` with basis vectors and gives the
matrices of these combinations, in float64; those of a solver here come from `Sampler.unroll()`. Two
samplers are the same if the matrices are.

## Coming from diffusers

A network is wrapped in one line. Its classes are `class_labels` there and `y` here: with classes,
`lambda x, t, y: net(x, t, class_labels=y).sample`. `ddpm_core.load` reads the folder of a
`UNet2DModel` with its scheduler without any of this.

**Clipping.** `clip_sample=True`, the default of DDPM and DDIM, clips x_0. `ddpm.clip` does the same to
a denoiser, and eps follows from the clipped x_0. In `DDIMScheduler` eps does so only with
`use_clipped_model_output=True`; without it the two differ by as much as the images do.

```python
import torch, ddpm_core as ddpm
from diffusers import DDIMScheduler, UNet2DModel

net = UNet2DModel(
    in_channels=1, out_channels=1, block_out_channels=(16, 32), norm_num_groups=8,
    down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
)
schedule = ddpm.linear()                                  # beta_schedule="linear", the default
predict = ddpm.Predictor(lambda x, t, **k: net(x, t, **k).sample, schedule)
sampler = ddpm.ddim(schedule, 10, grid=ddpm.grids.leading)    # DDIMScheduler's default spacing
x = theirs = torch.randn(2, 1, 16, 16)

scheduler = DDIMScheduler()
scheduler.set_timesteps(10)
with torch.inference_mode():
    for t in scheduler.timesteps:
        eps = net(theirs, t).sample
        theirs = scheduler.step(eps, t, theirs, use_clipped_model_output=True).prev_sample
    ours = ddpm.sample(ddpm.clip(predict), sampler, x)
assert torch.allclose(ours, theirs, atol=1e-3)
```

**Timesteps.** Theirs are 0 .. T - 1, and ours 1 .. T, where 0 is clean data. Spacings of the same name
visit different times in some schedulers, such as DPMSolverMultistep, so take the times from the
scheduler:

```python
import torch, ddpm_core as ddpm
from diffusers import DPMSolverMultistepScheduler

net = lambda x, t: torch.tanh(x)                          # predicts eps
x = theirs = torch.randn(2, 1, 16, 16)
schedule = ddpm.linear()

for spacing in ("leading", "linspace", "trailing"):
    scheduler = DPMSolverMultistepScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    theirs = x
    for t in scheduler.timesteps:
        theirs = scheduler.step(net(theirs, t), t, theirs).prev_sample
    times = [int(t) + 1 for t in scheduler.timesteps] + [0]
    sampler = ddpm.dpmpp_2m(schedule, 20, times=times)
    ours = ddpm.sample(ddpm.Predictor(net, schedule), sampler, x)
    assert torch.allclose(ours, theirs, atol=1e-2 * float(theirs.abs().max()))
```

**A scheduler of your own.** `unrolled` takes it as it is configured; `law` says what it draws, and the
matrices say whether it is the solver that it should be:

```python
import numpy as np, ddpm_core as ddpm
from ddpm_core.testing.foreign.diffusers import unrolled
from diffusers import DDIMScheduler

theirs = unrolled(DDIMScheduler(clip_sample=False), 10)
ours = ddpm.ddim(ddpm.linear(), 10, times=theirs.levels.time).unroll()
assert np.allclose(theirs.y, ours.y)
print(ddpm.law(theirs, ddpm.GaussianOracle([0.0], 0.25)).w2)   # 0.13: 10 steps are few
```

## The solvers

Difference: the largest between the matrices, relative to their largest entry or to 1, over {steps}
steps of the linear schedule, on the same levels. Orders are measured by `ddpm_core.convergence`, between
{middle} and {last} network calls or steps on even grids in log-SNR, of a scheduler whose training
levels are that grid: in the RMS error of a deterministic solver on a mixture of two normals, and in
the Wasserstein-2 distance of a stochastic one's law from a normal's. A measured order may exceed the
true one where a term of the error happens to be small.

| scheduler | solver here | difference | order | order here | note |
|---|---|---|---|---|---|
{table}

Numbers are of the sections below. The rest are choices, not errors:

- a. Where it ends at clean data, the last step extrapolates eps from four readings; here it takes x_0
  as it is read. Compared on the levels with noise; LMS, which always ends at clean data, without
  its last point.
- b. Compared on the levels that it computes with; see 12.
- c. Steps are made of two or three of its timesteps. Compared where those are even in log-SNR.
- d. With `solver_type="midpoint"`, the stage at two thirds takes h / 2 for a mean of the exponential
  weight, which is exact in the paper. With `"heun"` that stage is exact, and the last one is not the
  paper's: it combines all three readings.
- e. It is DEIS in log ρ, not in time: `deis` on a schedule whose log-SNR is linear in time.
- f. Where two readings are combined, it takes h² / 2 for the first moment, as UniPC's bh1 does;
  `sa_solver` takes the moment. At tau = 0 it equals `unipc_3` with bh1.

UniPC, DEIS, SASolver and DPMSolverMultistep are compared with `lower_order_final=False`. PNDM without
`skip_prk_steps` starts by Runge-Kutta steps that have no solver here; neither have KDPM2Ancestral and
DPMSolverSDE. `init_noise_sigma` of the sigma-space schedulers makes x_T N(0, σ_T²) with `linspace` and
`trailing`, where σ_T² is {sigma:.6f}.

## Where they are not right

{defects}"""


def main() -> None:
    """Writes the page beside this script."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    defects = (
        trailing,
        previous,
        third_order,
        sde_third_order,
        single_step_sde,
        unbound,
        last_noise,
        variances,
        churn,
        no_effect,
        residual,
        inversion,
        labels,
        training,
    )
    page = PAGE.format(
        version=diffusers.__version__,
        steps=STEPS,
        middle=COUNTS[-2],
        last=COUNTS[-1],
        table="\n".join(map(compared, rows())),
        sigma=LINEAR(1000).sigma ** 2,
        defects="\n".join(defect() for defect in defects),
    )
    Path(__file__).with_name("diffusers.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
