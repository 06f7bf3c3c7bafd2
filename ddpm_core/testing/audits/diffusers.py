"""diffusers: its schedulers' timesteps, noise, tables and labels."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

from ddpm_core.certificates import convergence
from ddpm_core.samplers import ancestral
from ddpm_core.testing.audits.diffusers_notes import NOTES
from ddpm_core.testing.audits.diffusers_solvers import (
    TO_MIN,
    UNCLIPPED,
    WHOLE,
    on_training_levels,
    solvers,
)
from ddpm_core.testing.audits.found import Subject
from ddpm_core.testing.audits.solvers import (
    COUNTS,
    LAST,
    LINEAR,
    STEPS,
    drawn,
    fails_for,
    labels,
    numbers,
    table_laws,
)
from ddpm_core.testing.foreign.diffusers import unrolled
from ddpm_core.testing.report import Finding

__all__ = ["NOTES", "subjects"]


def subjects() -> list[Subject]:
    import diffusers

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    kinds = _schedulers(diffusers)
    at = partial(getattr, diffusers)
    ddpm, ddim = (partial(at(name), **UNCLIPPED) for name in ("DDPMScheduler", "DDIMScheduler"))
    table = [
        Subject(
            "set_timesteps, trailing", lambda: [_trailing(ddpm), *_trailing_kinds(kinds)],
            {"S steps": "trailing", "in 61": "trailing"},
        ),
        Subject(
            "DDIM, trailing, 61 steps",
            lambda: [drawn(unrolled(ddim(timestep_spacing="trailing"), 61), 0.242, 0.02)],
            {"": "trailing"},
        ),
        *(solver.subject(diffusers) for solver in solvers()),
        Subject(
            "DPMSolverSinglestep, sde-dpmsolver++, order 3, heun",
            lambda: [_falls(at("DPMSolverSinglestepScheduler"))],
            {"": "sde-third-order"},
        ),
    ]  # fmt: skip
    for name, algorithm in (
        ("EDMDPMSolverMultistep", "sde-dpmsolver++"),
        ("DPMSolverMultistep", "sde-dpmsolver"),
    ):
        options = {"solver_order": 3, "algorithm_type": algorithm} | WHOLE
        table.append(
            Subject(
                f"{name}, {algorithm}, order 3",
                partial(
                    _runs, at(f"{name}Scheduler"), options | TO_MIN if name[0] == "D" else options
                ),
                {"": "unbound"},
            )
        )
    for options, steps in (
        ({"timestep_spacing": "trailing"}, 10),
        ({"timestep_spacing": "trailing"}, 20),
        ({"timestep_spacing": "trailing"}, 50),
        ({"steps_offset": 1}, 50),
    ):
        made = partial(ddpm, variance_type="fixed_large", **options)
        words = ", ".join(f"{key}={value}" for key, value in options.items())
        table.append(
            Subject(
                f"DDPM, fixed_large, {words}, {steps} steps",
                lambda made=made, steps=steps: table_laws(unrolled(made(), steps), LAST),
                {"": "last-noise"},
            )
        )
    for variance in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned"):
        table.append(
            Subject(
                f"DDPM, variance_type={variance}, its noise",
                partial(_variance, ddpm, variance),
                {"": "learned-variance" if variance == "learned" else "variances"},
            )
        )
    for amount in (0.0, 5.0, 20.0):
        table.append(
            Subject(
                f"EulerDiscrete, s_churn={amount:g}, 50 steps",
                lambda amount=amount: table_laws(
                    unrolled(
                        at("EulerDiscreteScheduler")(timestep_spacing="trailing"),
                        50,
                        s_churn=amount,
                    ),
                    LAST,
                ),
                {"": "churn"},
            )
        )
    for label, kind, options in (
        ("PNDM, skip_prk_steps", "PNDMScheduler", {"skip_prk_steps": True}),
        ("DDIM, set_alpha_to_one=False", "DDIMScheduler", UNCLIPPED | {"set_alpha_to_one": False}),
        ("DEIS, use_karras_sigmas", "DEISMultistepScheduler", {"use_karras_sigmas": True}),
        (
            "DPMSolverMultistep, use_karras_sigmas, sigma_min",
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True} | WHOLE | TO_MIN,
        ),
        ("DPMSolverMultistep", "DPMSolverMultistepScheduler", {}),
    ):
        table.append(
            Subject(
                f"{label}, its last call", partial(_effect, at(kind), options), {"": "no-effect"}
            )
        )
    first = partial(_effect, at("IPNDMScheduler"), {}, last=False)
    table.append(Subject("IPNDM, its first call", first, {"": "no-effect"}))
    for label, kind, options in (
        ("DEIS", "DEISMultistepScheduler", {}),
        ("SASolver", "SASolverScheduler", {}),
        ("DDIM", "DDIMScheduler", UNCLIPPED),
        ("UniPC", "UniPCMultistepScheduler", {}),
    ):
        table.append(
            Subject(f"{label}, where it ends", partial(_ends, at(kind), options), {"": "residual"})
        )
    for name in ("DPMSolverMultistep", "UniPCMultistep", "KDPM2Discrete", "EulerDiscrete"):
        karras = {"use_karras_sigmas": True, "beta_start": 1e-4, "beta_end": 0.02}
        kind = at(f"{name}Scheduler")
        table.append(
            Subject(
                f"{name}, use_karras_sigmas, its timesteps",
                lambda kind=kind, karras=karras: [labels(unrolled(kind(**karras), STEPS), LINEAR)],
                {"": "labels"},
            )
        )
    return [*table, *_tables(ddpm, kinds, at)]


# Timesteps. -------------------------------------------------------------------------------------


def _schedulers(library: Any) -> list[Any]:
    """The schedulers, by name."""
    kinds = [getattr(library, name) for name in sorted(dir(library)) if "Scheduler" in name]
    return [
        kind
        for kind in kinds
        if getattr(kind, "__module__", "").startswith("diffusers.schedulers.scheduling")
    ]


def _takes(kind: Any, *names: str) -> bool:
    return set(names) <= set(inspect.signature(kind).parameters)


def _timesteps(kind: Any, steps: int, **options: Any) -> Any:
    scheduler = kind(**options)
    scheduler.set_timesteps(steps)
    return np.asarray(scheduler.timesteps)


def _trailing(kind: Any) -> Finding:
    def wrong(steps: int) -> str | None:
        times = _timesteps(kind, steps, timestep_spacing="trailing")
        if len(times) == steps and times[-1] >= 0:
            return None
        return f"{len(times)} timesteps, the last {times[-1]}"

    law = "S steps are S timesteps, none below 0, for every S"
    return fails_for(law, "Lin et al. 2024, Table 2", range(1, 1001), wrong)


def _trailing_kinds(kinds: Iterable[Any]) -> Iterable[Finding]:
    spaced = [
        kind
        for kind in kinds
        if _takes(kind, "timestep_spacing", "trained_betas")
        and "original_inference_steps" not in inspect.signature(kind.set_timesteps).parameters
    ]
    affected: list[str] = []
    for kind in spaced:
        here, after = (len(_timesteps(kind, n, timestep_spacing="trailing")) for n in (61, 62))
        if here == after:
            affected.append(kind.__name__.removesuffix("Scheduler"))
    law, source = "in 61 steps, one timestep less than in 62", "Lin et al. 2024, Table 2"
    failure = f"{len(affected)} schedulers have as many: {', '.join(affected)}" if affected else ""
    yield Finding(law, source, len(spaced), failure=failure)


# Noise and calls. -------------------------------------------------------------------------------


def _falls(kind: Any) -> Finding:
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"}
    found = convergence(on_training_levels(kind, "linspace", options | TO_MIN), COUNTS)
    return numbers(
        f"its error at {COUNTS[-1]} steps is at most that of order 1",
        "measured on exact denoisers",
        found.errors[-1:],
        convergence(ancestral, COUNTS).errors[-1:],
        0.0,
        how="at most",
    )


def _runs(kind: Any, options: dict[str, Any]) -> list[Finding]:
    unrolled(kind(**options), STEPS)
    return [Finding("it runs", "", 1)]


def _variance(kind: Any, variance: str) -> list[Finding]:
    """The standard deviation that a step at t = 600 of 10 adds, for a network that says log β."""
    import torch

    scheduler = kind(variance_type=variance)
    scheduler.set_timesteps(10)
    t, then = scheduler.timesteps[3:5]
    beta = 1 - scheduler.alphas_cumprod[t] / scheduler.alphas_cumprod[then]
    if "small" in variance:
        beta *= (1 - scheduler.alphas_cumprod[then]) / (1 - scheduler.alphas_cumprod[t])
    output = torch.zeros(1, 6 if variance == "learned" else 3, 64, 64)
    output[:, 3:] = beta.log()
    made = torch.Generator().manual_seed(0)
    x = scheduler.step(output, t, torch.zeros(1, 3, 64, 64), generator=made).prev_sample
    return [
        numbers(
            "the standard deviation of the noise of a step is the root of its variance",
            "Ho et al. 2020, section 3.2; Nichol & Dhariwal 2021, Eq. 15",
            float(x.std()),
            float(beta.sqrt()),
            0.05,
            lambda i: f"t = {int(t)} of 10 steps",
        )
    ]


def _effect(kind: Any, options: dict[str, Any], last: bool = True) -> list[Finding]:
    u = unrolled(kind(**options), STEPS)
    if last:
        change, stays = np.abs(u.y[-1] - u.y[-2]).max(), u.levels.sigma[-1]
    else:
        change, stays = np.abs(u.y[:, 0]).max(), u.levels.sigma[0]
    failure = f"it changes nothing; x stays at sigma = {stays:.2f}" * bool(change < 1e-9)
    law = f"the {'last' if last else 'first'} call has an effect"
    return [Finding(law, "", 1, failure=failure)]


def _ends(kind: Any, options: dict[str, Any]) -> list[Finding]:
    u = unrolled(kind(**options), STEPS)
    return [
        numbers(
            "it ends at clean data", "Ho et al. 2020, Algorithm 2", u.levels.sigma[-1], 0.0, 1e-6,
            lambda i: "sigma at the end",
        )
    ]  # fmt: skip


# Beside the solvers. ----------------------------------------------------------------------------


def _tables(ddpm: Any, kinds: list[Any], at: Callable[[str], Any]) -> Iterable[Subject]:
    import torch

    def noisy(dtype: Any) -> list[Finding]:
        clean = torch.zeros(1000, 1, dtype=dtype)
        found = ddpm().add_noise(clean, clean + 1, torch.arange(1000))[:, 0].double()
        law = "the standard deviation of q(x_t | x_0) is sqrt(1 - alpha_bar), to a hundredth"
        wanted = LINEAR(np.arange(1, 1001.0)).sigma
        where: Callable[[int], str] = lambda i: f"timestep {i}"
        return [numbers(law, "Ho et al. 2020, Eq. 4", found, wanted, 0.01 * wanted, where)]

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        yield Subject(
            f"DDPM, add_noise in {str(dtype).rpartition('.')[2]}",
            partial(noisy, dtype),
            {"": "half-precision"},
        )

    def laplace() -> list[Finding]:
        """ᾱ = sigmoid(λ), λ = -sign(1/2 - t) log(1 - 2 |t - 1/2|) in the paper: ᾱ(1/2) = 1/2."""
        found = float(ddpm(beta_schedule="laplace").alphas_cumprod[499])
        return [numbers("alpha_bar is sigmoid(log-SNR): 1/2 halfway", "Hang et al. 2024",
                        found, 0.5, 0.01, lambda i: "timestep 499")]  # fmt: skip

    yield Subject("beta_schedule=laplace", laplace, {"": "laplace"})

    def zero() -> list[Finding]:
        made = [kind for kind in kinds if _takes(kind, "rescale_betas_zero_snr")]
        ends = [float(kind(rescale_betas_zero_snr=True).alphas_cumprod[-1]) for kind in made]
        return [numbers("alpha_bar at the end is 0", "Lin et al. 2024, Algorithm 1", ends, 0.0, 0.0,
                        lambda i: made[i].__name__)]  # fmt: skip

    yield Subject("rescale_betas_zero_snr", zero, {"": "zero-snr"})

    def threshold() -> list[Finding]:
        wide = 3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        shown = at("DDPMScheduler")(thresholding=True)._threshold_sample(wide)
        failure = "it clips to [-1, 1]" if torch.equal(shown, wide.clamp(-1, 1)) else ""
        law = "thresholding divides by a quantile of |x_0|"
        return [Finding(law, "Saharia et al. 2022, section 2.3", 1, failure=failure)]

    yield Subject("thresholding=True", threshold, {"": "thresholding"})

    def undone(steps: int) -> list[Finding]:
        """Of x = 1 and no noise: what a jump of one step makes of the level that it starts from."""
        made = at("RePaintScheduler")()
        made.set_timesteps(steps, 1, 1)
        n, abar = 1000 // steps, torch.cat([torch.ones(1), made.alphas_cumprod]).double()
        times, one = [int(t) for t in made.timesteps[:-1]], torch.ones(1, 1)
        module = sys.modules[type(made).__module__]

        def nothing(*_: Any, **__: Any) -> Any:
            return torch.zeros(1, 1)

        with patch.object(module, "randn_tensor", nothing):
            found = [float(made.undo_step(one, t)) for t in times]
        wanted = [float((abar[t + 1] / abar[t + 1 - n]).sqrt()) for t in times]
        return [numbers("undo_step goes from the level of t - T / S to that of t",
                        "Lugmayr et al. 2022, Algorithm 1, line 10", found, wanted, 1e-5,
                        lambda i: f"timestep {times[i]}, the share of x that is kept")]  # fmt: skip

    for steps in (1000, 250, 50):
        yield Subject(f"RePaint.undo_step, {steps} steps", partial(undone, steps), {"": "undo"})
