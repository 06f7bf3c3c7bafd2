"""azula: its samplers and its schedules."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import named, numbers, solver_laws
from ddpm_core.testing.foreign.azula import levels as levels_of
from ddpm_core.testing.foreign.azula import unrolled
from ddpm_core.testing.report import Finding

NOTES = {
    "reab": Note(
        "defect",
        "`REABSampler` is of order 1 at any order",
        "Its step multiplies the integral by sqrt(α_s² + σ_t²). Its own docstring has sqrt(1 + "
        "e^(2s)) in units of α, so that the factor is sqrt(α_s² + σ_s²): σ of the level that the "
        "step goes to. With it the same steps measure orders 2 and 3.",
        "`xEABSampler`",
        report="azula-reab",
    ),
    "eta": Note(
        "difference",
        "`DDIMSampler(eta)` is the square of Song's η",
        "It multiplies the variance of the noise by η where Song et al. 2021, Eq. 16, multiplies "
        "the standard deviation. Both agree at 0 and 1.",
        "pass the square of a paper's η",
    ),
    "first-steps": Note(
        "difference",
        "Third order with two readings",
        "The second step of `zEABSampler` and `xEABSampler` integrates a line exactly, where the "
        "papers, and the tables here, have h / 2 h_prev. The order is the same.",
    ),
    "rosenbrock": Note(
        "difference",
        "`REABSampler` is not exact for one point of data",
        "Its polynomials go through another function of the reading, which is not constant where "
        "the reading is: of DPM-Solver-v3's kind. (The factor above adds to the numbers.)",
    ),
    "ito": Note(
        "difference",
        "`ItoSampler` is not exact for one point of data",
        "It is the Euler-Maruyama method with the drift's integral in closed form: of weak order "
        "1, but its noise of a step exceeds that of the level which the step goes to. The last "
        "step leaves most: the sample keeps noise of about sqrt(2) times the σ / α before it.",
        "`DDPMSampler`, which solves the same SDE and is exact there",
    ),
    "second-order": Note(
        "difference",
        "Two readings, combined exactly",
        "`xEABSampler` and `zEABSampler` of order 2 integrate the line through two readings "
        "exactly: Adams-Bashforth of the exponential kind. DPM-Solver(++)(2M) takes h / 2 for "
        "its mean. Both are of order 2.",
    ),
}


def _even(levels: Level) -> Any:
    """A schedule of azula through given levels, at times that are even in [0, 1]."""

    def schedule(t: Any) -> Any:
        import torch

        n = len(levels.alpha) - 1
        i = torch.round((1 - t) * n).long()
        return torch.tensor(levels.alpha)[i], torch.tensor(levels.sigma)[i]

    return schedule


def subjects() -> list[Subject]:
    noise: Any = importlib.import_module("azula.noise")
    sample: Any = importlib.import_module("azula.sample")

    def on(kind: Any, options: dict[str, Any]) -> Callable[[Level], Unrolled]:
        def unrolled_on(levels: Level) -> Unrolled:
            made = SimpleNamespace(schedule=_even(levels))
            steps = len(levels.alpha) - 1
            return unrolled(getattr(sample, kind)(made, steps=steps, **options))

        return unrolled_on

    grid = levels_of(noise.VPSchedule(), np.linspace(1, 0, 21))
    table: list[Subject] = []

    def add(kind: str, ours: str = "", notes: Any = None, with_: Any = None, **laws: Any) -> None:
        options = laws.pop("options", {})
        label = ", ".join([kind, *(f"{key}={value}" for key, value in options.items())])
        ours_with: dict[str, Any] = with_ or {}
        solver = partial(by_name(ours), **ours_with) if ours else None
        name = ", ".join([ours, *(f"{key}={named(value)}" for key, value in ours_with.items())])
        findings = partial(solver_laws, on(kind, options), grid, solver, name, **laws)
        table.append(Subject(label, findings, notes or {}, name))

    add("DDPMSampler", "ancestral", p=1)
    for eta in (0.0, 1.0):
        add("DDIMSampler", "ddim", options={"eta": eta}, with_={"eta": eta}, p=1)
    for eta, same in ((0.25, 0.25), (0.25, 0.5)):
        add("DDIMSampler", "ddim", {"it is": "eta"}, options={"eta": eta}, with_={"eta": same})
    add("EulerSampler", "euler", p=1)
    add("HeunSampler", "heun", at=slice(None, None, 2), p=2)
    add("ItoSampler", p=1, notes={"x_0 known: the variance": "ito"})
    add("ItoSampler", "ddim", options={"eta": 0.0}, p=1)
    add("zABSampler", "lms", options={"order": 4}, p=3)
    add("zABSampler", options={"order": 2}, p=2)
    for order in (2, 3):
        add("vABSampler", options={"order": order}, p=order)
    two, three = {"it is": "second-order"}, {"it is": "first-steps"}
    add("zEABSampler", "ddim", options={"order": 1}, p=1)
    add("zEABSampler", "dpm_solver_2m", two, options={"order": 2}, p=2)
    add("zEABSampler", "dpm_solver_3m", three, options={"order": 3}, p=3)
    add("xEABSampler", "ddim", options={"order": 1}, p=1)
    add("xEABSampler", "dpmpp_2m", two, options={"order": 2}, p=2)
    add("xEABSampler", "dpmpp_3m", three, options={"order": 3}, p=3)
    for order in (1, 2, 3):
        reab = {"x_0 known": "rosenbrock", "its order": "reab"}
        add("REABSampler", notes=reab, options={"order": order}, p=order)
    add("PCSampler", p=1)
    return [*table, *_schedules(noise)]


def _schedules(noise: Any) -> Iterable[Subject]:
    """Each against the formula of its own documentation."""
    t = np.linspace(0, 1, 11)
    log = math.log(1e-3)
    alphas = {
        "VPSchedule": np.exp(log * t**2),
        "CosineSchedule": np.cos(t * math.acos(1e-3)),
        "RectifiedSchedule": 1e-3 * t + 1 - t,
        "VESchedule": np.ones(11),
    }
    sigmas = {
        "RectifiedSchedule": t + (1 - t) * 1e-3,
        "VESchedule": np.exp((1 - t) * log - t * log),
    }
    for name, alpha in alphas.items():
        sigma = sigmas.get(name, np.sqrt(1 - alpha**2 + 1e-6))
        wanted = 2 * np.log(alpha / sigma)

        def found(name: str = name, wanted: Any = wanted) -> list[Finding]:
            levels = levels_of(getattr(noise, name)(), t)
            return [
                numbers("log-SNR", "its documentation", levels.logsnr, wanted, 1e-9,
                        lambda i: f"t = {t[i]:g}"),
                numbers("log-SNR falls", "its documentation", np.diff(levels.logsnr), 0.0, 0.0,
                        lambda i: f"t = {t[i]:g}", "at most"),
            ]  # fmt: skip

        yield Subject(name, found)
