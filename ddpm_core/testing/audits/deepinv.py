"""deepinv: its diffusion SDEs, solvers, DDRM and posterior scores."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.process import large
from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.schedules import VP
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import (
    LAST,
    named,
    numbers,
    process_laws,
    solver_laws,
)
from ddpm_core.testing.foreign.torch_loops import Wide, level_of_ratio, timed
from ddpm_core.testing.report import Finding

NOTES = {
    "ddrm": Note(
        "defect",
        "`DDRM` tells the denoiser more noise than there is",
        "Each draw is divided by sqrt(2), at the start and in each step. In Kawar et al. 2022, "
        "Proposition 3.1, the variance of x_t given x_0 is σ_t², of which the denoiser is told; "
        "with the division it is σ_t² / 2 where nothing is measured.",
        "a denoiser that is given σ / sqrt(2), where most is unknown",
        "deepinv/deepinv PR #1350 (open) writes it anew; no thread about the factor was seen",
        report="deepinv-ddrm",
    ),
    "time": Note(
        "difference",
        "Euler and Heun steps are in the time of the SDE",
        "For a known x_0 they are exact on the straight path of `FlowMatching` alone.",
        "`DDIMSolver` and `DDPMSolver`, which are exact on all",
    ),
}


def subjects() -> list[Subject]:
    lib: Any = importlib.import_module("deepinv.sampling")
    kinds = {
        "VP": lib.VariancePreservingDiffusion,
        "VE": partial(lib.VarianceExplodingDiffusion, sigma_min=0.01),
        "flow": lib.FlowMatching,
    }
    scaled = partial(lib.VariancePreservingDiffusion, scaled_linear=True)
    table = [
        Subject(f"the process of {name}", partial(_process, made))
        for name, made in {**kinds, "VP, scaled_linear": scaled}.items()
    ]

    def add(kind: str, solver: str, ours: str = "", p: float | None = None, alpha: float = 0,
            with_: Any = None, **options: Any) -> None:  # fmt: skip
        said = {"alpha": alpha, **options}
        label = ", ".join([solver, kind, *(f"{k}={named(v)}" for k, v in said.items())])
        ours_with: dict[str, Any] = with_ or {}
        name = ", ".join([ours, *(f"{k}={named(v)}" for k, v in ours_with.items())])
        on = partial(_unrolled, kinds[kind], getattr(lib, solver), alpha, options)
        grid = _grid(kind).take(slice(None, -1 if solver == "HeunSolver" else None))
        laws = partial(solver_laws, on, grid, partial(by_name(ours), **ours_with)
                       if ours else None, name, p=p)  # fmt: skip
        notes = {} if ours else {"x_0 known": "time", LAST: "time"}
        table.append(Subject(label, laws, notes, name))

    for kind in kinds:
        add(kind, "AncestralSolver", "ddim", 1)
        add(kind, "AncestralSolver", "ancestral", 1, alpha=1)
        add(kind, "EulerSolver", "ddim" if kind == "flow" else "", 1)
        add(kind, "EulerSolver", "", None, alpha=1)
        add(kind, "HeunSolver", "", None if kind == "flow" else 2)
    add("VP", "DDPMSolver", "ancestral", with_={"variance": large}, variance="large")
    add("VP", "DDIMSolver", "ddim", 1, with_={"eta": 0.5}, eta=0.5)
    return [
        *table,
        Subject("DDRM", partial(_ddrm, lib), {"": "ddrm"}),
        Subject("PiGDMDataFidelity", partial(_posterior, lib.PiGDMDataFidelity, 1.0)),
        Subject("MomentMatchingDataFidelity", partial(_posterior, lib.MomentMatchingDataFidelity,
                                                      0.25)),
    ]  # fmt: skip


def _scales(sde: Any, t: Any) -> Any:
    import torch

    times = torch.as_tensor(t, dtype=torch.float64)
    scale = np.asarray(sde.scale_t(times), dtype=np.float64)
    return scale, scale * np.asarray(sde.sigma_t(times))


def _process(made: Any) -> Iterable[Finding]:
    import torch

    sde, t = made(denoiser=torch.nn.Identity()), np.linspace(0.05, 0.95, 13)
    times = torch.tensor(t)
    options = getattr(made, "keywords", {})
    name = type(sde).__name__
    wanted: Any = {
        "FlowMatching": (1 - t, t),
        "VarianceExplodingDiffusion": (np.ones_like(t), 0.01 * 8000**t),
        "VariancePreservingDiffusion": None if "scaled_linear" in options else VP()(t)[2:],
    }[name]
    f, g = sde.forward_drift(torch.ones_like(times), times), sde.forward_diffusion(times)
    sde_of = (np.asarray(f), np.asarray(g) ** 2)
    yield from process_laws(partial(_scales, sde), "Song et al. 2021b", t, wanted, sde_of)


def _grid(kind: str) -> Level:
    """From t = 0.95 to clean data, or to the cleanest level that there is."""
    t = np.linspace(0.95, 0.0, 14)
    if kind == "VP":
        return VP()(t)
    k = t / (1 - t) if kind == "flow" else 0.01 * 8000**t
    return level_of_ratio(k, k)


def _unrolled(made: Any, solver: Any, alpha: float, options: Any, levels: Level) -> Unrolled:
    import torch

    k = levels.sigma / levels.alpha
    times = {
        "VariancePreservingDiffusion": lambda: np.asarray(VP().at(levels.logsnr).time),
        "FlowMatching": lambda: k / (1 + k),
        "VarianceExplodingDiffusion": lambda: np.log(k / 0.01) / np.log(8000),
    }[getattr(made, "func", made).__name__]()
    module = importlib.import_module("deepinv.sampling.diffusion_sde")

    class Network(torch.nn.Module):
        network: Any = None

        def forward(self, x: Any, sigma: Any) -> Any:
            time = float(times[np.argmin(np.abs(k - float(sigma)))])
            return self.network(x * float(sde.scale_t(time)), time)

    net = Network()
    sde = made(alpha=alpha, denoiser=net, minus_one_one=False)
    steps = solver(timesteps=torch.tensor(times), **options)
    steps.randn_like = _drawn
    sde.solver = steps

    def loop(network: Any, x: Any) -> Any:
        net.network = network
        with patch.object(module, "torch", Wide(torch)):
            return sde.sample(x)

    return timed(loop, partial(_scales, sde), float(times[-1]))


def _drawn(x: Any) -> Any:
    import torch

    return torch.randn_like(x)


def _ddrm(lib: Any) -> Iterable[Finding]:
    """The noise in what the denoiser is given, of data that are 0, where nothing is measured."""
    import torch

    physics = importlib.import_module("deepinv.physics")
    given: list[float] = []

    def denoiser(x: Any, sigma: Any) -> Any:
        if sigma > 0:
            given.append(float(x.std() / sigma))
        return 0 * x

    blind = physics.Inpainting((1, 32, 32), mask=torch.zeros(1, 32, 32), device="cpu")
    lib.DDRM(denoiser, sigmas=np.linspace(1, 0, 10))(torch.zeros(8, 1, 32, 32), blind, seed=1)
    law = "the noise is of the size that the denoiser is told, to a twentieth"
    source = "Kawar et al. 2022, Proposition 3.1"
    yield numbers(law, source, given, 1.0, 0.05, lambda i: f"call {i}")


def _posterior(made: Any, var: float) -> Iterable[Finding]:
    """Its -∇ log p(y | x_t), of data N(0, var), of which one pixel of three is measured."""
    import torch

    physics = importlib.import_module("deepinv.physics")
    mask = torch.tensor([[[1.0, 0.0, 1.0]]])
    measures = physics.Inpainting((1, 1, 3), mask=mask, device="cpu")
    measures.noise_model = physics.GaussianNoise(0.3)
    x, y = torch.tensor([[[[0.5, -1.0, 2.0]]]]), torch.tensor([[[[1.0, 0.0, -0.5]]]])
    found: list[Any] = []
    wanted: list[Any] = []
    for sigma in (0.1, 1.0, 10.0):
        shrink = var / (var + sigma**2)

        def denoiser(x: Any, *_: Any, shrink: float = shrink) -> Any:
            return shrink * x

        fidelity = made(denoiser=denoiser, cg_max_iter=20)
        found.append(fidelity.grad(x, y, measures, torch.tensor(sigma)).flatten())
        spread = 0.3**2 + shrink * sigma**2
        wanted.append((shrink * mask * (shrink * x - y) / spread).flatten())
    law = "its gradient is exact, of normal data of the variance that it takes"
    yield numbers(law, "Song et al. 2023, Eq. 7", torch.cat(found), torch.cat(wanted), 1e-4)
