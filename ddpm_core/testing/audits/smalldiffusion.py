"""smalldiffusion: its schedules, its predictions and its sampler."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.schedules import beta_sigmoid, cosine, linear, scaled_linear
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import LAST, LINEAR, fails_for, numbers, solver_laws
from ddpm_core.testing.foreign.kdiffusion import unrolled
from ddpm_core.testing.report import Finding

NOTES = {
    "accelerated": Note(
        "difference",
        "`gam=2` is of order 1",
        "It extrapolates by 2 eps - eps', where Adams-Bashforth's second order has (3 eps - "
        "eps') / 2: a choice of its paper (Permenter & Yuan 2024), which asks for few steps and "
        "not for order.",
        "multistep DPM-Solver++ for an order of 2",
    ),
    "not-clean": Note(
        "difference",
        "`sample_sigmas` ends at the cleanest training level",
        "σ / α = 0.01 of the linear schedule stays in the sample, and with `mu` above 0 it is "
        "new noise.",
        "append 0 to the sigmas",
    ),
}


def subjects() -> list[Subject]:
    import torch

    library: Any = importlib.import_module("smalldiffusion")

    class Net(library.ModelMixin):
        """Gives eps of a network (x, sigma) -> x_0, as `samples` asks for it."""

        input_dims = (1,)

        def __init__(self, network: Any, like: Any) -> None:
            self.network, self.like = network, like

        def eval(self) -> None: ...

        def rand_input(self, batchsize: int) -> Any:
            return torch.randn_like(self.like)

        def predict_eps_cfg(self, x: Any, sigma: Any, cond: Any, scale: float) -> Any:
            return (x - self.network(x, sigma)) / sigma

    class Here:
        device = "cpu"

    def loop(model: Any, x: Any, sigmas: Any, **options: Any) -> Any:
        made = Net(model, x)
        return list(library.samples(made, sigmas, xt=x, accelerator=Here(), **options))[-1]

    def on(**options: Any) -> Callable[[Level], Unrolled]:
        return lambda levels: unrolled(loop, levels.sigma / levels.alpha, **options)

    grid = LINEAR(np.append(np.linspace(1000, 1, 20), 0.0))
    table: list[Subject] = []

    def add(label: str, ours: str = "", notes: Any = None, p: float = 1, **options: Any) -> None:
        solver = by_name(ours) if ours else None
        laws = partial(solver_laws, on(**options), grid, solver, ours, p=p)
        table.append(Subject(label, laws, notes or {}, ours))

    add("samples, gam=1, mu=0", "ddim")
    add("samples, gam=1, mu=0.5", "ancestral", mu=0.5)
    add(
        "samples, gam=2, mu=0",
        notes={"its order": "accelerated", LAST: "accelerated"},
        p=2,
        gam=2.0,
    )
    table += [
        Subject("sample_sigmas", partial(_sigmas, library), {"it ends": "not-clean"}),
        *_schedules(library),
        *_predictions(library),
    ]
    return table


def _sigmas(library: Any) -> Iterable[Finding]:
    schedule = library.ScheduleDDPM()

    def wrong(steps: int) -> str | None:
        k = np.asarray(schedule.sample_sigmas(steps))
        if len(k) == steps + 1 and k[0] == float(schedule.sigmas[-1]):
            return None if np.all(np.diff(k[:-1]) < 0) else "sigmas do not fall"
        return f"{len(k)} sigmas from {k[0]:.4g}"

    law = "S steps are S + 1 sigmas, falling, from the noisiest"
    yield fails_for(law, "Lin et al. 2024, Table 2", range(1, 1001), wrong)
    end = float(schedule.sample_sigmas(20)[-1])
    yield numbers(
        "it ends at clean data", "Ho et al. 2020, Algorithm 2", end, 0.0, 0.0,
        lambda i: "sigma / alpha at the end",
    )  # fmt: skip


def _schedules(library: Any) -> Iterable[Subject]:
    ours = {
        "ScheduleDDPM": linear(),
        "ScheduleLDM": scaled_linear(),
        "ScheduleSigmoid": beta_sigmoid(),
        "ScheduleCosine": cosine(),
    }
    for name, schedule in ours.items():
        levels = schedule(np.arange(1, 1001.0))
        wanted = levels.sigma / levels.alpha

        def found(name: str = name, wanted: Any = wanted) -> list[Finding]:
            k = np.asarray(getattr(library, name)().sigmas, dtype=np.float64)
            law = "sigma / alpha of each time, to float32's ten thousandths"
            return [numbers(law, "the paper that it names", k, wanted, 1e-3 * wanted,
                            lambda i: f"index {i}")]  # fmt: skip

        yield Subject(name, found)


def _predictions(library: Any) -> Iterable[Subject]:
    """Each kind of prediction, of exact targets, gives eps back."""
    import torch

    k = torch.logspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x_0, eps = torch.full_like(k, 0.7), torch.full_like(k, -0.3)
    alpha, sigma = 1 / (1 + k**2) ** 0.5, k / (1 + k**2) ** 0.5
    targets = {"PredX0": x_0, "PredV": alpha * eps - sigma * x_0}
    for name, target in targets.items():

        def found(name: str = name, target: Any = target) -> list[Finding]:
            class Exact(library.ModelMixin):
                def __call__(self, x: Any, sigma: Any, cond: Any = None) -> Any:
                    return target

            made = getattr(library, name)(Exact)()
            said = made.predict_eps(x_0 + k * eps, k)
            return [numbers("a network of the exact target gives the exact eps",
                            "Salimans & Ho 2022, appendix D", said[:, 0], eps[:, 0], 1e-9,
                            lambda i: f"sigma = {float(k[i, 0]):.3g}")]  # fmt: skip

        yield Subject(name, found)
