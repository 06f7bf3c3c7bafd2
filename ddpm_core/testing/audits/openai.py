"""What improved-diffusion and guided-diffusion share: a Gaussian diffusion, respaced or not."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from ddpm_core.parameterisations import eps as eps_of
from ddpm_core.parameterisations import x0
from ddpm_core.process import large, q_posterior
from ddpm_core.process import q_sample as q_sample_of
from ddpm_core.samplers import by_name
from ddpm_core.schedules import cosine, linear
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import fails_for, numbers, on_levels, same, table_laws
from ddpm_core.testing.foreign import openai
from ddpm_core.testing.report import Finding

NOTES = {
    "numpy-int": Note(
        "defect",
        "`loss-second-moment` does not run on NumPy 1.24 or later",
        "`LossSecondMomentResampler` names `np.int`, which is gone.",
        "`np.int = int` before",
        report="improved-diffusion-np-int",
    ),
}


def subjects_of(package: str) -> list[Subject]:
    """The subjects of a package that has `gaussian_diffusion`, `respace` and `resample`."""
    g = importlib.import_module(f"{package}.gaussian_diffusion")
    respace = importlib.import_module(f"{package}.respace")
    resample = importlib.import_module(f"{package}.resample")
    table = [
        Subject(f"get_named_beta_schedule, {name}", partial(_betas, g, name))
        for name in ("linear", "cosine")
    ]
    for spacing in ("100", "ddim25", "10,15,25"):
        made = partial(_made, g, respace, spacing)
        table.append(Subject(f"SpacedDiffusion, {spacing}", partial(_diffusion, made)))
        for kind, predicts in (("EPSILON", eps_of), ("START_X", x0)):
            of = partial(made, kind)
            label = f"{kind}, {spacing}"
            table += [
                Subject(f"p_sample, {label}", partial(_sampler, of, "p_sample", predicts),
                        {}, "ancestral"),
                Subject(
                    f"p_sample, {label}, FIXED_LARGE",
                    partial(_sampler, partial(of, var="FIXED_LARGE"), "p_sample", predicts,
                            with_={"variance": large}),
                    {}, "ancestral, variance=large",
                ),
            ]  # fmt: skip
            for eta in (0.0, 0.5):
                table.append(
                    Subject(f"ddim_sample, {label}, eta={eta:g}",
                            partial(_sampler, of, "ddim_sample", predicts, "ddim", {"eta": eta}),
                            {}, f"ddim, eta={eta:g}")
                )  # fmt: skip
    return [
        *table,
        Subject("space_timesteps", partial(_spacing, respace)),
        Subject("loss-second-moment", partial(_resampler, resample), {"it runs": "numpy-int"}),
        Subject("discretized_gaussian_log_likelihood", partial(_decoder, package)),
    ]


def _made(
    g: Any, respace: Any, spacing: str, mean: str = "EPSILON", var: str = "FIXED_SMALL"
) -> Any:
    return respace.SpacedDiffusion(
        use_timesteps=respace.space_timesteps(1000, spacing),
        betas=g.get_named_beta_schedule("linear", 1000),
        model_mean_type=g.ModelMeanType[mean],
        model_var_type=g.ModelVarType[var],
        loss_type=g.LossType.MSE,
    )


def _betas(g: Any, name: str) -> Iterable[Finding]:
    for T in (1000, 4000, 100):
        schedule = cosine(T) if name == "cosine" else linear(T, rescale=True)
        abar = np.append(1.0, schedule(np.arange(1, T + 1.0)).alpha ** 2)
        wanted = 1 - abar[1:] / abar[:-1]
        source = "Nichol & Dhariwal 2021, Eq. 17" if name == "cosine" else "Ho et al. 2020"
        found = g.get_named_beta_schedule(name, T)
        yield numbers(f"betas, T = {T}", source, found, wanted, 1e-9, lambda i: f"index {i}")


def _diffusion(made: Any) -> Iterable[Finding]:
    diffusion = made()
    schedule = openai.schedule(diffusion)
    x_0, eps = np.random.default_rng(0).standard_normal((2, 3, 4))
    times = [1, 2, schedule.T // 2, schedule.T]
    ask, posterior = openai.q_sample(diffusion), openai.posterior(diffusion)
    where: Callable[[int], str] = lambda i: f"time {times[i]} of {schedule.T}"
    forward = [
        np.abs(ask(x_0, eps, t) - q_sample_of(x_0, eps, t)).max() for t in map(schedule, times)
    ]
    yield numbers("q(x_t | x_0), to float32", "Ho et al. 2020, Eq. 4", forward, 0, 1e-5, where)
    back: list[float] = []
    for t, s in ((schedule(i), schedule(i - 1)) for i in times):
        theirs, mine = posterior(x_0, eps, t, s), q_posterior(x_0, eps, t, s)
        back.append(max(np.abs(theirs.mean - mine.mean).max(), abs(theirs.var - mine.var)))
    yield numbers("q(x_s | x_t, x_0), to float32", "Ho et al. 2020, Eq. 7", back, 0, 1e-5, where)
    kept = linear()(np.array(diffusion.timestep_map) + 1.0)
    yield numbers(
        "the levels that respacing keeps are those of the whole schedule",
        "Nichol & Dhariwal 2021, section 4",
        schedule(np.arange(1.0, schedule.T + 1)).logsnr, kept.logsnr, 1e-8,
        lambda i: f"index {i}",
    )  # fmt: skip


def _sampler(
    made: Any, step: str, predicts: Any, ours: str = "ancestral", options: Any = None,
    with_: Any = None,
) -> Iterable[Finding]:  # fmt: skip
    options = options or {}
    diffusion = made()
    times = np.array(diffusion.timestep_map) + 1
    u = openai.unrolled(diffusion, step, predicts, times=times, **options)
    mine = on_levels(
        openai.schedule(diffusion), by_name(ours), u.levels, **options, **(with_ or {})
    )
    name = ", ".join([ours, *(str(value) for value in options.values())])
    yield same(u, mine, name, allowed=1e-4)  # its tables are cast to float32
    yield from table_laws(u, precision=1e-6)


def _spacing(respace: Any) -> Iterable[Finding]:
    def wrong(steps: int) -> str | None:
        found = sorted(respace.space_timesteps(1000, [steps]))
        good = len(found) == steps and found[0] == 0 and (steps == 1 or found[-1] == 999)
        return None if good else f"{len(found)} timesteps, {found[0]} to {found[-1]}"

    law = "S steps are S timesteps, 0 and T - 1 among them"
    yield fails_for(law, "Nichol & Dhariwal 2021, section 4", range(1, 1001, 7), wrong)


def _resampler(resample: Any) -> Iterable[Finding]:
    class Diffusion:
        num_timesteps = 10

    made = resample.LossSecondMomentResampler(Diffusion())
    weights = np.asarray(made.weights())
    yield numbers("it is uniform before it has seen a loss", "Nichol & Dhariwal 2021, Eq. 18",
                  weights / weights.sum(), 0.1, 1e-12, lambda i: f"index {i}")  # fmt: skip


def _decoder(package: str) -> Iterable[Finding]:
    """The sum over all 256 bins, with and without their tails, is 1."""
    import torch

    losses = importlib.import_module(f"{package}.losses")
    x = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    sums: list[float] = []
    cases = [(0.0, 0.01), (0.3, 0.1), (-1.0, 0.003), (0.99, 1.0)]
    for mean, scale in cases:
        log_prob = losses.discretized_gaussian_log_likelihood(
            x, means=torch.full_like(x, mean), log_scales=torch.full_like(x, np.log(scale))
        )
        sums.append(float(log_prob.exp().sum()))
    yield numbers(
        "the probabilities of all bins sum to 1", "Ho et al. 2020, Eq. 13", sums, 1.0, 1e-6,
        lambda i: f"mean {cases[i][0]}, scale {cases[i][1]}",
    )  # fmt: skip
