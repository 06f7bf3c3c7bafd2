"""NVlabs' EDM, of a checkout: its samplers, preconditionings and losses."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

from ddpm_core.grids import karras
from ddpm_core.levels import Level
from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.schedules import EDM, VP, cosine
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import (
    ANY,
    LAST,
    fails_for,
    numbers,
    on_levels,
    same,
    solver_laws,
    table_laws,
)
from ddpm_core.testing.foreign.kdiffusion import unrolled
from ddpm_core.testing.report import Finding

NOTES = {
    "time": Note(
        "difference",
        "Steps in the time of the VP and VE schedules are not exact for a known x_0",
        "`ablation_sampler` steps in t, as Algorithm 1 has it with those schedules; of the last "
        "step, into t = 0, half of the noise stays.",
        '`schedule="linear"`, of which they are exact',
    ),
    "one-step": Note(
        "difference",
        "One step is NaN",
        "Eq. 5 divides by N - 1.",
        "two steps, or more",
    ),
}
_GRID = EDM()(np.append(np.geomspace(80, 0.02, 13), 0.0))
_HEUN = np.r_[0:25:2, 25]  # where a step of two calls begins, the last being Euler's


def subjects() -> list[Subject]:
    lib: Any = importlib.import_module("generate")
    networks: Any = importlib.import_module("training.networks")
    table: list[Subject] = []

    def add(label: str, ours: str, p: float | None, notes: Any = None, **options: Any) -> None:
        name = label.partition(",")[0]
        on = partial(_unrolled, getattr(lib, name), **options)
        laws = partial(solver_laws, on, _GRID, by_name(ours) if ours else None, ours, p=p,
                       at=_HEUN if ours == "heun" else None)  # fmt: skip
        table.append(Subject(label, laws, notes or {}, ours))

    add("edm_sampler", "heun", 2)
    for solver, p in (("euler", 1), ("heun", 2)):
        add(f"ablation_sampler, {solver}", solver, p, solver=solver)
        for kind in ("vp", "ve"):
            notes = {"x_0 known": "time", LAST: "time"}
            scaling = "vp" if kind == "vp" else "none"
            add(f"ablation_sampler, {solver}, {kind}", "", None, notes, solver=solver,
                schedule=kind, scaling=scaling)  # fmt: skip
    add("ablation_sampler, heun, alpha=0.5", "", None, solver="heun", alpha=0.5)
    return [
        *table,
        *(
            Subject(f"{name}, S_churn=5", partial(_churn, getattr(lib, name)),
                    {}, "edm_stochastic, churn=5")
            for name in ("edm_sampler", "ablation_sampler")
        ),
        Subject("edm_sampler, its sigmas", partial(_sigmas, lib)),
        Subject("edm_sampler, one step", partial(_one, lib), {"": "one-step"}),
        *(
            Subject(f"{kind}Precond", partial(_preconditioning, networks, kind))
            for kind in ("VP", "VE", "iDDPM", "EDM")
        ),
        *(Subject(f"{kind}Loss", partial(_weights, kind)) for kind in ("VP", "VE", "EDM")),
    ]  # fmt: skip


def _net(call: Callable[..., Any], sigmas: Any = None) -> Any:
    """A network that rounds the sigmas of a sampler to those that are given."""
    import torch

    def rounded(sigma: Any) -> Any:
        given = sigmas is not None and sigma.ndim and len(sigma) == len(sigmas)
        return torch.as_tensor(sigmas if given else sigma)

    class Net:
        sigma_min, sigma_max, round_sigma = 1e-9, 1e9, staticmethod(rounded)

        def __call__(self, x: Any, sigma: Any, *_: Any, **__: Any) -> Any:
            return call(x, sigma)

    return Net()


def _unrolled(sampler: Any, levels: Level, **options: Any) -> Unrolled:
    import torch

    def drawn(x: Any) -> Any:  # its own default is bound before ours is in place
        return torch.randn_like(x) if "S_churn" in options else 0 * x

    def loop(model: Any, x: Any, sigmas: Any) -> Any:
        net, n = _net(model, sigmas[:-1]), len(sigmas) - 1
        return sampler(
            net, x / sigmas[0], None, drawn, num_steps=n, sigma_min=0.02, sigma_max=80, **options
        )

    return unrolled(loop, levels.sigma / levels.alpha)


def _churn(sampler: Any) -> Iterable[Finding]:
    u = _unrolled(sampler, _GRID, S_churn=5, S_max=50.0)
    ours = on_levels(ANY, by_name("edm_stochastic"), _GRID, churn=5.0, s_max=50.0)
    yield same(u, ours, "edm_stochastic, churn=5")
    yield from table_laws(u)


def _sigmas(lib: Any) -> Iterable[Finding]:
    import torch

    told: list[float] = []

    def network(x: Any, sigma: Any) -> Any:
        told.append(float(sigma))
        return x

    lib.edm_sampler(_net(network), torch.ones(1, 1, 1, 1))
    yield numbers("the sigmas where it calls", "Karras et al. 2022, Eq. 5", [told[0], *told[1::2]],
                  karras(EDM(), 18)[:-1], 1e-9, lambda i: f"index {i}")  # fmt: skip


def _one(lib: Any) -> Iterable[Finding]:
    import torch

    def wrong(n: int) -> str | None:
        x = lib.edm_sampler(_net(_first), torch.ones(1, 1, 1, 1), num_steps=n)
        return None if bool(x.isfinite().all()) else "NaN"

    law = "n steps give a number"
    yield fails_for(law, "Karras et al. 2022, Algorithm 2", range(1, 6), wrong)


def _first(x: Any, sigma: Any) -> Any:
    return x


def _stub(**_: Any) -> None:
    """In the place of a UNet, which its classes make by name."""


def _preconditioning(networks: Any, kind: str) -> Iterable[Finding]:
    """What a network of the exact target is made of, and what it is told."""
    import torch

    k = torch.logspace(-1, 1, 9)
    x_0, eps = 0.7 * torch.ones(9, 1, 1, 1), -0.3 * torch.ones(9, 1, 1, 1)
    s = k.reshape(-1, 1, 1, 1)
    told: dict[str, Any] = {}

    def exact(x: Any, noise: Any, **_: Any) -> Any:
        told["noise"] = noise
        if kind == "EDM":
            total = s**2 + 0.25
            return (x_0 - 0.25 / total * (x_0 + s * eps)) / (s * 0.5) * total**0.5
        return -eps if kind == "VE" else torch.cat([eps, eps], dim=1)[:, : 1 + (kind == "iDDPM")]

    with patch.object(networks, "SongUNet", _stub):
        made = getattr(networks, f"{kind}Precond")(1, 1, model_type="SongUNet")
    made.model = exact
    k = made.round_sigma(k)
    s = k.reshape(-1, 1, 1, 1)
    found = made(x_0 + s * eps, k)[:, :1]
    source = "Karras et al. 2022, Table 1"
    yield numbers("a network of the exact target gives the exact x_0", source,
                  found.reshape(-1), 0.7, 1e-5, lambda i: f"sigma = {k[i]:.3g}")  # fmt: skip
    at = -2 * np.log(k.double().numpy())
    wanted = {
        "VP": lambda: 999 * np.asarray(VP().at(at).time),
        "iDDPM": lambda: np.asarray(cosine().at(at).time) - 1,
        "VE": lambda: np.log(k / 2),
        "EDM": lambda: np.log(k) / 4,
    }[kind]()
    yield numbers("the network is told the noise level", source, told["noise"], wanted, 1e-2,
                  lambda i: f"sigma = {k[i]:.3g}")  # fmt: skip


def _weights(kind: str) -> Iterable[Finding]:
    """Of an error of 1, the loss is the weight: 1 / c_out² of its preconditioning."""
    import torch

    said: list[Any] = []

    def network(x: Any, sigma: Any) -> Any:
        said.append(sigma)
        return torch.ones_like(x)

    loss = getattr(importlib.import_module("training.loss"), f"{kind}Loss")()
    found = loss(_net(network), torch.zeros(64, 1, 1, 1), None).double().reshape(-1)
    s2 = said[0].double().reshape(-1) ** 2
    c_out2 = s2 * 0.25 / (s2 + 0.25) if kind == "EDM" else s2
    yield numbers("the weight is 1 / c_out²", "Karras et al. 2022, Table 1",
                  found * c_out2, 1.0, 1e-4)  # fmt: skip
