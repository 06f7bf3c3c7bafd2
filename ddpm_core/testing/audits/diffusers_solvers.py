"""The schedulers of diffusers that are solvers, and what each must be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.process import large
from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.samplers.registry import ENTRIES
from ddpm_core.schedules import VP, LinearLogSNR, Schedule
from ddpm_core.testing.audits.found import Subject
from ddpm_core.testing.audits.solvers import (
    COUNTS,
    LAST,
    LINEAR,
    MEAN,
    STEPS,
    betas_of,
    convergence,
    labels,
    named,
    on_levels,
    order_of,
    same,
    table_laws,
    without_last,
)
from ddpm_core.testing.foreign.diffusers import unrolled
from ddpm_core.testing.report import Finding

_ORDERS = {name: entry.order for entry in ENTRIES for name in entry.names}
UNCLIPPED = {"clip_sample": False}
TO_MIN = {"final_sigmas_type": "sigma_min"}
WHOLE = {"lower_order_final": False}
_STABLE = {"beta_start": 1e-4, "beta_end": 0.02}
_TWO_CALLS = np.r_[0 : 2 * STEPS - 1 : 2, 2 * STEPS - 1]


@dataclass(eq=False)
class Solver:
    """A scheduler, and what it must be.

    kind: its class
    ours: the name of the solver here, with `with_`, its options; empty if there is none
    mode: of `on_training_levels`; empty where no order is measured
    options: of its constructor; of them `grid` are of the comparison alone, `step` of its step
    p: its order; that of ours by default
    at: which of its points are those of ours
    last: whether the last point is compared
    notes: of `Subject`
    """

    label: str
    kind: str
    ours: str = ""
    mode: str = "linspace"
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    grid: dict[str, Any] = field(default_factory=dict[str, Any])
    step: dict[str, Any] = field(default_factory=dict[str, Any])
    with_: dict[str, Any] = field(default_factory=dict[str, Any])
    p: float | None = None
    at: Any = None
    last: bool = True
    schedule: Schedule = field(default_factory=lambda: LINEAR)
    notes: dict[str, str] = field(default_factory=dict[str, str])

    def subject(self, library: Any) -> Subject:
        said = {key: named(value) for key, value in self.with_.items()}
        name = ", ".join([self.ours, *(f"{key}={value}" for key, value in said.items())])
        return Subject(self.label, partial(self.findings, library, name), self.notes, name)

    def findings(self, library: Any, name: str) -> Iterable[Finding]:
        kind = getattr(library, self.kind)
        steps = 24 if "num_train_timesteps" in self.grid else STEPS
        u = unrolled(kind(**self.options, **self.grid), steps, **self.step)
        if self.ours:
            ours = partial(by_name(self.ours), **self.with_)
            mine = on_levels(
                self.schedule, ours, u.levels.take(slice(None) if self.at is None else self.at)
            )
            points = None if self.last else slice(None, -1)
            yield same(u, mine, name, points=points)
        yield from table_laws(u)
        if self.mode:
            found = convergence(self._measured(kind), COUNTS)
            yield order_of(found, _ORDERS[self.ours] if self.p is None else self.p)

    def _measured(self, kind: Any) -> Any:
        return on_training_levels(kind, self.mode, self.options, self.step)


def on_training_levels(
    kind: Any, mode: str, options: dict[str, Any], step: dict[str, Any] | None = None
) -> Any:
    """A scheduler as `convergence` wants a solver: on any levels, those of its training."""
    step = step or {}

    def solver(schedule: Schedule, n: int, times: Any) -> Unrolled:
        levels: Level = schedule(times)
        k = levels.sigma / levels.alpha
        trained = {"num_train_timesteps": n + 1, "trained_betas": betas_of(levels)}
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
            case _:  # "prk", with two training levels a step
                fine = schedule.at(np.linspace(levels.logsnr[0], levels.logsnr[-1], 2 * n + 1))
                trained = {"num_train_timesteps": 2 * n + 1, "trained_betas": betas_of(fine)}
                return unrolled(kind(steps_offset=2, **trained, **options), n)

    return solver


def even_levels(n: int) -> dict[str, Any]:
    """Options that make levels even in log-SNR those of training."""
    levels = LINEAR.at(np.linspace(LINEAR.logsnr[-1], LINEAR.logsnr[1], n + 1))
    return {"num_train_timesteps": n + 1, "trained_betas": betas_of(levels)}


def solvers() -> list[Solver]:
    """All of them."""
    ddpm, ddim = "DDPMScheduler", "DDIMScheduler"
    table = [
        Solver("DDPM, fixed_small", ddpm, "ancestral", "clean", UNCLIPPED),
        Solver(
            "DDPM, fixed_large", ddpm, "ancestral", "clean",
            UNCLIPPED | {"variance_type": "fixed_large"}, with_={"variance": large},
        ),
    ]  # fmt: skip
    for eta in (0.0, 0.5, 1.0):
        step = {"eta": eta}
        table.append(
            Solver(f"DDIM, eta={eta:g}", ddim, "ddim", "offset", UNCLIPPED, step=step, with_=step)
        )
    for spacing, steps in (("linspace", 10), ("linspace", 30), ("trailing", 30), ("trailing", 600)):
        table.append(_Spaced(f"DDIM, {spacing}, {steps} steps", ddim, grid={"steps": steps},
            options=UNCLIPPED | {"timestep_spacing": spacing}, notes={"": "previous"},
        ))  # fmt: skip
    inversion = UNCLIPPED | {"set_alpha_to_one": False, "timestep_spacing": "trailing"}
    table += [
        _Labelled(
            "DDIMInverse", "DDIMInverseScheduler", "ddim_inversion", "", inversion,
            notes={"the network": "inversion"},
        ),
        Solver(
            "PNDM, skip_prk_steps", "PNDMScheduler", "plms", "offset", {"skip_prk_steps": True},
            {"steps_offset": 1}, at=np.r_[0:2, 3 : STEPS + 2],
        ),
        Solver("PNDM", "PNDMScheduler", mode="prk", p=2),
    ]  # fmt: skip
    for algorithm, names in {
        "dpmsolver++": ("ddim", "dpmpp_2m", "dpmpp_3m"),
        "dpmsolver": ("dpm_solver_1", "dpm_solver_2m", "dpm_solver_3m"),
        "sde-dpmsolver++": ("sde_dpmpp_1", "sde_dpmpp_2m", "sde_dpmpp_3m"),
    }.items():
        third = "sde-third-order" if algorithm.startswith("sde") else "third-order"
        for i, name in enumerate(names):
            table.append(
                Solver(
                    f"DPMSolverMultistep, {algorithm}, order {i + 1}",
                    "DPMSolverMultistepScheduler",
                    name,
                    options={"algorithm_type": algorithm, "solver_order": i + 1} | WHOLE | TO_MIN,
                    notes={"it is": third, "its order": third} if i == 2 else {},
                )
            )
    single = "DPMSolverSinglestepScheduler"
    for algorithm, order, name in (
        ("dpmsolver++", 2, "dpmpp_2s"),
        ("dpmsolver", 2, "dpm_solver_2"),
        ("dpmsolver", 3, "dpm_solver_3"),
    ):
        table.append(
            Solver(
                f"DPMSolverSinglestep, {algorithm}, order {order}",
                single,
                name,
                options={"algorithm_type": algorithm, "solver_order": order} | TO_MIN,
                grid=even_levels(24),
                at=slice(None, None, order),
                notes={"it is": "stage"},
            )
        )
    for order in (2, 3):
        table.append(
            Solver(
                f"DPMSolverSinglestep, sde-dpmsolver++, order {order}",
                single,
                options={"algorithm_type": "sde-dpmsolver++", "solver_order": order} | TO_MIN,
                p=2,  # as DPMSolverSDE, on one path; order 1 has 1
                notes={"its order": "single-step-sde"},
            )
        )
    for order in (1, 2, 3):
        for b in ("bh1", "bh2"):
            table.append(
                Solver(
                    f"UniPC, order {order}, {b}",
                    "UniPCMultistepScheduler",
                    f"unipc_{order}",
                    options={"solver_order": order, "solver_type": b} | WHOLE | TO_MIN,
                    with_={"b": b},
                )
            )
    for order in (1, 2, 3):
        table.append(
            Solver(
                f"DEIS, order {order}", "DEISMultistepScheduler", f"deis_{order}",
                options={"solver_order": order} | WHOLE,
                schedule=LinearLogSNR(12.0, -12.0),  # polynomials in log ρ
            )
        )  # fmt: skip
    for tau in (0.0, 1.0):
        table.append(
            Solver(
                f"SASolver, tau={tau:g}, orders 3 and 4",
                "SASolverScheduler",
                "sa_solver",
                options={
                    "predictor_order": 3,
                    "corrector_order": 4,
                    "tau_func": partial(_constant, tau),
                }
                | WHOLE,
                with_={"stochasticity": tau, "predictor": 3, "corrector": 3},
                notes={"it is": "first-moment"},
            )
        )
    table += [
        Solver("EulerDiscrete", "EulerDiscreteScheduler", "euler", "clean"),
        Solver(
            "EulerAncestralDiscrete", "EulerAncestralDiscreteScheduler", "euler_ancestral", "clean"
        ),
        Solver("HeunDiscrete", "HeunDiscreteScheduler", "heun", "clean", at=_TWO_CALLS),
        Solver("LMSDiscrete", "LMSDiscreteScheduler", "lms", "clean", p=3,  # and 4, save its start
            notes={"it is": "extrapolates", LAST: "extrapolates"}),
        Solver("KDPM2Discrete", "KDPM2DiscreteScheduler", "midpoint", "clean", _STABLE,
            at=_TWO_CALLS),
        Solver("KDPM2AncestralDiscrete", "KDPM2AncestralDiscreteScheduler", "", "clean", _STABLE,
            p=2),
        Solver("DPMSolverSDE", "DPMSolverSDEScheduler", "", "clean", _STABLE, p=2),
        Solver(
            "IPNDM", "IPNDMScheduler", "ipndm", "ipndm",
            grid={"trained_betas": LINEAR(np.linspace(1000, 1, STEPS + 1)).sigma.tolist()},
        ),
        Solver("EDMEuler", "EDMEulerScheduler", "euler", "edm", schedule=VP()),
    ]  # fmt: skip
    for order, algorithm, name in (
        (2, "dpmsolver++", "dpmpp_2m"),
        (3, "dpmsolver++", "dpmpp_3m"),
        (2, "sde-dpmsolver++", "sde_dpmpp_2m"),
    ):
        table.append(
            Solver(
                f"EDMDPMSolverMultistep, {algorithm}, order {order}",
                "EDMDPMSolverMultistepScheduler", name, "edm",
                {"solver_order": order, "algorithm_type": algorithm} | WHOLE, schedule=VP(),
                notes={"it is": "third-order", "its order": "third-order"} if order == 3 else {},
            )
        )  # fmt: skip
    table.append(
        Solver(
            "CosineDPMSolverMultistep", "CosineDPMSolverMultistepScheduler", "sde_dpmpp_2m", "edm",
            WHOLE, {"sigma_max": 100.0}, schedule=VP(),
        )
    )  # fmt: skip
    return table


def _constant(tau: float, time: Any) -> float:
    return tau


class _Spaced(Solver):
    """DDIM where its steps do not end at the timestep that is next."""

    def findings(self, library: Any, name: str) -> Iterable[Finding]:
        u = unrolled(getattr(library, self.kind)(**self.options), self.grid["steps"])
        yield from table_laws(u, MEAN)


class _Labelled(Solver):
    """A scheduler of which it is also asked what the network is told."""

    def findings(self, library: Any, name: str) -> Iterable[Finding]:
        yield from super().findings(library, name)
        u = unrolled(getattr(library, self.kind)(**self.options, **self.grid), STEPS)
        yield labels(u, LINEAR)
