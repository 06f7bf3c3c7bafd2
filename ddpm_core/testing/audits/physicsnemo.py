"""PhysicsNeMo: its noise schedulers, solvers and preconditioners."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from ddpm_core.grids import karras
from ddpm_core.levels import Level
from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.schedules import EDM, VP, Schedule
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import (
    ANY,
    LAST,
    MEAN,
    fails_for,
    numbers,
    process_laws,
    solver_laws,
    table_laws,
)
from ddpm_core.testing.foreign.torch_loops import timed
from ddpm_core.testing.report import Finding

NOTES = {
    "churn-vp": Note(
        "defect",
        "Churn on the VP schedule is NaN, or noise of the wrong size",
        "`EDMStochasticEulerSolver` and `EDMStochasticHeunSolver`, with `sigma_fn`, "
        "`sigma_inv_fn` and `diffusion_fn` of `VPNoiseScheduler` as their documentation has it: "
        "(1 + γ) σ is above 1, where that schedule has no time. Karras et al. 2022 raise σ / α, "
        "scale x by α(t̂) / α(t), and add the noise that is missing.",
        "`S_churn=0`, or `EDMNoiseScheduler`",
        report="physicsnemo-churn",
    ),
    "churn-ve": Note(
        "defect",
        "Churn on the VE schedule adds noise of the wrong size",
        "Both solvers multiply the noise by sqrt(g² / 2t), which is 1 of `EDMNoiseScheduler` and "
        "1 / sqrt(2t) of `VENoiseScheduler`, and the Euler solver has t̂² - t² in the place of "
        "σ̂² - σ² too. The network is told σ̂, of which the variance is that.",
        "`S_churn=0`, `EDMNoiseScheduler`, or the Heun solver without `diffusion_fn`",
        report="physicsnemo-churn",
    ),
    "pairs": Note(
        "defect",
        "The VP and VE preconditioners do not fit the schedulers that they are paired with",
        "Their documentation pairs them. `VPPreconditioner` is of x_0 + σ n (Karras et al. 2022, "
        "Table 1), and `VPNoiseScheduler` gives x of variance 1, which it shrinks again; "
        "`VEPreconditioner` takes its time for σ, where `VENoiseScheduler` says σ². In Table 1 "
        "the network's target has variance 1.",
        "`EDMPreconditioner` with `EDMNoiseScheduler`; or call the VP one with x / α, of a "
        "scheduler with `beta_d=19.9`, and the VE one with sqrt(t)",
        "NVIDIA/physicsnemo #1317 (merged) says that a preconditioner's sigma should be its "
        "scheduler's",
        report="physicsnemo-pairs",
    ),
    "time": Note(
        "difference",
        "Steps in the time of the VP and VE schedules are not exact for a known x_0",
        "They are steps of Euler or Heun in t, as Karras et al. 2022, Algorithm 1, has it with "
        "those schedules; of the last one, into t = 0, half of the noise stays.",
        "`EDMNoiseScheduler`, of which they are exact",
    ),
    "slope": Note(
        "difference",
        "By default its VP schedule has a slope of 19.1",
        "Song et al. 2021b, which it names, has β from 0.1 to 20, a slope of 19.9, as its own "
        "preconditioner has.",
        "`VPNoiseScheduler(beta_d=19.9)`",
    ),
}


def subjects() -> list[Subject]:
    lib: Any = importlib.import_module("physicsnemo.diffusion.noise_schedulers")
    samplers: Any = importlib.import_module("physicsnemo.diffusion.samplers")
    kinds = {
        "EDM": (lib.EDMNoiseScheduler(), EDM(), _same),
        "VE": (lib.VENoiseScheduler(), EDM(), np.square),
        "VP": (lib.VPNoiseScheduler(beta_d=19.9), VP(), _same),
    }
    table = [
        Subject(f"{name}NoiseScheduler", partial(_process, *kind)) for name, kind in kinds.items()
    ]
    for name, kind in kinds.items():
        for solver, ours, p in (("euler", "euler", 1), ("heun", "heun", 2)):
            ours = ours if name == "EDM" else ""
            laws = partial(
                solver_laws, partial(_unrolled, samplers.sample, kind, solver), _GRID,
                by_name(ours) if ours else None, ours, p=p,
                at=np.r_[0:25:2, 25] if ours == "heun" else None,
            )  # fmt: skip
            notes = {} if ours else {MEAN: "time", "x_0 known: without": "time", LAST: "time"}
            table.append(Subject(f"{solver}, {name}", laws, notes, ours))
    for solver in ("edm_stochastic_euler", "edm_stochastic_heun"):
        for name in ("EDM", "VE"):
            laws = partial(_churn, samplers.sample, kinds[name], solver)
            table.append(Subject(f"{solver}, {name}, S_churn=5", laws, {"": "churn-ve"}))
        laws = partial(_finite, samplers, kinds["VP"][0], solver)
        table.append(Subject(f"{solver}, VP, S_churn=40", laws, {"": "churn-vp"}))
    for name in kinds:
        table.append(Subject(f"{name}Preconditioner", partial(_pair, lib, name), {"": "pairs"}))
    return [
        *table,
        Subject("EDMNoiseScheduler, timesteps", partial(_grid, kinds["EDM"][0])),
        Subject("VPNoiseScheduler, by default", partial(_slope, lib), {"": "slope"}),
    ]


_GRID = EDM()(np.append(np.geomspace(60, 0.02, 13), 0.0))
_TIMES = np.linspace(0.05, 0.95, 13)
_same: Callable[[Any], Any] = lambda t: t
_nothing: Callable[[Any, Any], Any] = lambda x, t: 0 * x


def _scales(made: Any, times: Any) -> Any:
    import torch

    t = torch.as_tensor(times, dtype=torch.float64)
    return made.alpha(t).numpy(), made.sigma(t).numpy()


def _process(made: Any, ours: Schedule, time: Callable[[Any], Any]) -> Iterable[Finding]:
    """Its scales, their SDE, and that x_0, eps and score of one x_t are one another's."""
    import torch

    t = torch.tensor(_TIMES)
    one = torch.ones_like(t)
    levels = ours(np.sqrt(_TIMES) if time is np.square else _TIMES)
    wanted = (levels.alpha, levels.sigma)
    if isinstance(ours, EDM):
        wanted = (np.ones_like(_TIMES), levels.sigma / levels.alpha)
    sde = (made.drift(one, t).numpy(), made.diffusion(one, t).numpy())
    source = "Karras et al. 2022, Table 1"
    yield from process_laws(partial(_scales, made), source, _TIMES, wanted, sde)
    x_0, eps = 0.7 * one, -0.3 * one
    x_t = made.alpha(t) * x_0 + made.sigma(t) * eps
    score = made.x0_to_score(x_0, x_t, t)
    for law, found in {
        "score": score - made.epsilon_to_score(eps, t),
        "x_0": made.score_to_x0(score, x_t, t) - x_0,
        "eps": made.x0_to_epsilon(x_0, x_t, t) - eps,
        "x_0 of eps": made.epsilon_to_x0(eps, x_t, t) - x_0,
        "time": made.sigma_inv(made.sigma(t)) - t,
    }.items():
        yield numbers(f"it converts to the exact {law}", source, found, 0.0, 1e-4)


def _unrolled(sample: Any, kind: Any, solver: str, levels: Level, **options: Any) -> Unrolled:
    """At given levels, without the second call of Heun's last step, of which nothing is used."""
    import torch

    made, ours, time = kind
    times = time(np.array((VP() if isinstance(ours, VP) else ANY).at(levels.logsnr).time))
    said: list[float] = []

    def loop(network: Any, x: Any) -> Any:
        said.clear()

        def x_0(x: Any, t: Any) -> Any:
            said.append(float(t))
            unused = times[-1] == 0 and len(said) == 2 * len(times) - 2
            return 0 * x if unused else network(x, t)

        denoiser = made.get_denoiser(x0_predictor=x_0)
        return sample(denoiser, x, made, 0, solver, torch.tensor(times), options or None)

    return timed(loop, partial(_scales, made), float(times[-1]))


def _churn(sample: Any, kind: Any, solver: str) -> Iterable[Finding]:
    made, _, time = kind
    options = {"S_churn": 5, "num_steps": 13, "S_max": float(time(50.0))}
    if time is np.square:
        options |= {"sigma_fn": made.sigma, "sigma_inv_fn": made.sigma_inv, "S_max": 50.0,
                    "diffusion_fn": made.diffusion}  # fmt: skip
    u = _unrolled(sample, kind, solver, _GRID, **options)
    return table_laws(u, "x_0 known: the variance", "x_0 known: the mean")


def _finite(samplers: Any, made: Any, solver: str) -> Iterable[Finding]:
    import torch

    kind = {"euler": samplers.EDMStochasticEulerSolver, "heun": samplers.EDMStochasticHeunSolver}
    stepper = kind[solver.rpartition("_")[2]](
        made.get_denoiser(x0_predictor=_nothing), S_churn=40, num_steps=10,
        sigma_fn=made.sigma, sigma_inv_fn=made.sigma_inv, diffusion_fn=made.diffusion,
    )  # fmt: skip
    times = made.timesteps(10)

    def wrong(i: int) -> str | None:
        x = stepper.step(torch.ones(2, 1), times[i].expand(2), times[i + 1].expand(2))
        return None if bool(x.isfinite().all()) else f"the step from t = {times[i]:.3f} is NaN"

    yield fails_for("a step of x = 1 is a number", "Karras et al. 2022, Algorithm 2",
                    range(10), wrong)  # fmt: skip


def _pair(lib: Any, name: str) -> Iterable[Finding]:
    """What the network is to say of x_0 = 0: (x_0 - c_skip x) / c_out, of variance 1."""
    import torch

    module = importlib.import_module("physicsnemo.diffusion.preconditioners")
    module_of = importlib.import_module("physicsnemo.core").Module
    pair, made = getattr(module, f"{name}Preconditioner"), getattr(lib, f"{name}NoiseScheduler")()

    class Nothing(module_of):
        def forward(self, x: Any, t: Any) -> Any:
            return torch.ones_like(x)

    wrapped, t = pair(Nothing()), made.timesteps(5, dtype=torch.float64)[:-1]
    _, _, c_out, c_skip = wrapped.compute_coefficients(wrapped.sigma(t))
    sigma = made.sigma(t)
    data = 0.5 if name == "EDM" else 0.0  # EDM's is of data of that standard deviation
    alpha = made.alpha(t)
    target = np.hypot((1 - c_skip * alpha) * data, c_skip * sigma) / np.abs(c_out)
    yield numbers("the target of the network has standard deviation 1",
                  "Karras et al. 2022, Table 1", target, 1.0, 1e-5,
                  lambda i: f"t = {t[i]:.4g}")  # fmt: skip


def _grid(made: Any) -> Iterable[Finding]:
    import torch

    found = made.timesteps(18, dtype=torch.float64)
    yield numbers("its sigmas", "Karras et al. 2022, Eq. 5", found, karras(EDM(), 18), 1e-9,
                  lambda i: f"index {i}")  # fmt: skip


def _slope(lib: Any) -> Iterable[Finding]:
    scales = partial(_scales, lib.VPNoiseScheduler())
    levels = VP()(_TIMES)
    source = "Song et al. 2021b, Eq. 33"
    return list(process_laws(scales, source, _TIMES, (levels.alpha, levels.sigma)))[:1]
