"""TorchEBM: its interpolants and its flow sampler. Data are at time 1 there, noise at 0."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.schedules import VP
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import (
    ANY,
    LAST,
    drawn,
    numbers,
    on_levels,
    process_laws,
    same,
    table_laws,
)
from ddpm_core.testing.foreign.torch_loops import timed
from ddpm_core.testing.report import Finding

NOTES = {
    "mean": Note(
        "defect",
        'By default, `mode="sde"` draws too little variance, however many steps',
        "`compute_diffusion` divides the SBDM coefficient by σ. In Ma et al. 2024 it is g² / 2, "
        "which goes to 0 with σ on the straight path. The last step, of size 0.04, takes the mean "
        "of the SDE's step and no noise, and so shrinks by what that noise would have been.",
        '`last_step="Euler"` or `"Tweedie"`, or `diffusion_form="sigma"`',
        report="torchebm-sde",
    ),
    "time": Note(
        "difference",
        "Its steps are in the time of the interpolant",
        "For a known x_0, Euler's step is exact on the straight path of `LinearInterpolant` "
        'alone. With `mode="sde"` the noise of a step is that of its start.',
    ),
}
KINDS = ("linear", "cosine", "vp")
FIRST = 0.02  #: where time starts, since nothing is left of the data at 0


def subjects() -> list[Subject]:
    lib: Any = importlib.import_module("torchebm.interpolants")
    made = {
        "linear": lib.LinearInterpolant(),
        "cosine": lib.CosineInterpolant(),
        "vp": lib.VariancePreservingInterpolant(),
    }
    table = [Subject(type(each).__name__, partial(_process, each)) for each in made.values()]
    for kind, each in made.items():
        for prediction in ("velocity", "score", "noise"):
            exact = kind == "linear"
            table.append(
                Subject(f"FlowSampler, euler, {kind}, {prediction}",
                        partial(_euler, each, kind, prediction),
                        {} if exact else {"x_0 known": "time"}, "ddim" if exact else "")
            )  # fmt: skip
        table.append(
            Subject(f"FlowSampler, sde, {kind}",
                    partial(_sde, each, kind),
                    {"x_0 known": "time", LAST: "mean", "the variance": "mean"})
        )  # fmt: skip
    for name, p in (("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)):
        table.append(Subject(f"integrator {name}", partial(_order, name, p)))
    return [
        *table,
        *(Subject(f"FlowMatchingLoss, {kind}", partial(_loss, kind)) for kind in KINDS),
    ]


def _scales(made: Any, t: Any) -> Any:
    import torch

    times = torch.as_tensor(t, dtype=torch.float64)
    return made.compute_alpha_t(times)[0].numpy(), made.compute_sigma_t(times)[0].numpy()


def _process(made: Any) -> Iterable[Finding]:
    """Its scales, their rates by its drift, and that its conversions are exact."""
    import torch

    t = np.linspace(0.05, 0.95, 13)
    times, one = torch.tensor(t), torch.ones(13, 1, dtype=torch.float64)
    wanted = {
        "LinearInterpolant": (t, 1 - t),
        "CosineInterpolant": (np.sin(np.pi * t / 2), np.cos(np.pi * t / 2)),
        "VariancePreservingInterpolant": VP()(1 - t)[2:],
    }[type(made).__name__]
    mean, var = (np.asarray(part).reshape(-1) for part in made.compute_drift(one, times))
    source = "Albergo et al. 2023; its documentation"
    yield from process_laws(partial(_scales, made), source, t, wanted, (-mean, -2 * var))
    x_0, eps = 0.7 * one, -0.3 * one
    x_t, v = made.interpolate(eps, x_0, times)
    sigma = made.compute_sigma_t(times)[0][:, None]
    for law, off in {
        "score of the velocity": made.velocity_to_score(v, x_t, times) + eps / sigma,
        "noise of the velocity": made.velocity_to_noise(v, x_t, times) - eps,
        "velocity of the score": made.score_to_velocity(-eps / sigma, x_t, times) - v,
    }.items():
        yield numbers(f"it converts to the exact {law}", source, off.reshape(-1), 0.0, 1e-7)


def _unrolled(
    made: Any, kind: str, prediction: str = "score", mode: str = "ode", steps: int = 12
) -> Unrolled:
    """Of a network that says x_0."""
    import torch

    sampler: Any = importlib.import_module("torchebm.samplers").FlowSampler
    end = 1 - FIRST if mode == "ode" else 0.96

    def loop(network: Any, x: Any) -> Any:
        def said(x: Any, t: Any, **_: Any) -> Any:
            t = t.reshape(-1)[:1]
            (a, da), (s, ds) = made.compute_alpha_t(t), made.compute_sigma_t(t)
            x_0 = network(x, t)
            eps = (x - a * x_0) / s
            return {"velocity": da * x_0 + ds * eps, "noise": eps, "score": -eps / s}[prediction]

        class Model(torch.nn.Module):
            def forward(self, x: Any, t: Any, **_: Any) -> Any:
                return said(x, t)

        options = {"integrator": "euler"} if mode == "ode" else {}
        ready = sampler(Model(), mode, kind, prediction, dtype=torch.float64, **options)
        ready._check_interval = lambda: (FIRST, end)
        return ready.sample(x, n_steps=steps)

    return timed(loop, partial(_scales, made), 1.0 if mode == "sde" else end)


def _euler(made: Any, kind: str, prediction: str) -> Iterable[Finding]:
    u = _unrolled(made, kind, prediction)
    if kind == "linear":
        yield same(u, on_levels(ANY, by_name("ddim"), u.levels), "ddim", allowed=1e-6)
    yield from table_laws(u, precision=1e-6)


def _sde(made: Any, kind: str) -> Iterable[Finding]:
    yield from table_laws(_unrolled(made, kind, mode="sde"))
    yield drawn(_unrolled(made, kind, mode="sde", steps=200), 0.25, 0.02)


def _order(name: str, p: float) -> Iterable[Finding]:
    """On x' = -t x, whose solution is a normal's density."""
    import torch

    integrators: Any = importlib.import_module("torchebm.integrators.integrator_utils")
    made = integrators.get_integrator(name, dtype=torch.float64)
    errors: list[float] = []
    for n in (20, 40):
        x, grid = (
            torch.ones(1, 1, dtype=torch.float64),
            torch.linspace(0, 1, n + 1, dtype=torch.float64),
        )
        for i in range(n):
            x = made.step({"x": x}, step_size=1 / n, drift=_falls, t=grid[i].expand(1))["x"]
        errors.append(abs(float(x) - np.exp(-0.5)))
    found = np.log2(errors[0] / errors[1])
    yield numbers(
        f"its order is {p}", "its name", found, p, 0.25, lambda i: "20 to 40 steps", "at least"
    )


def _falls(x: Any, t: Any) -> Any:
    return -t.reshape(-1, 1) * x


def _loss(kind: str) -> Iterable[Finding]:
    """Of data that are 0, whose exact velocity is σ' / σ x."""
    import torch

    losses: Any = importlib.import_module("torchebm.losses")
    made = importlib.import_module("torchebm.interpolants.interpolant_utils").get_interpolant(kind)

    class Model(torch.nn.Module):
        def forward(self, x: Any, t: Any, **_: Any) -> Any:
            sigma, d_sigma = made.compute_sigma_t(t[:, None])
            return d_sigma / sigma * x

    found = losses.FlowMatchingLoss(Model(), kind, train_eps=0.01)(torch.zeros(64, 2))
    yield numbers("the exact network has no error", "Lipman et al. 2023, Eq. 9", float(found), 0.0,
                  1e-6)  # fmt: skip
