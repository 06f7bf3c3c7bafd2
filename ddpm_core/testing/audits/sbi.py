"""sbi: its score estimators, and the sampler that runs them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import numbers, process_laws
from ddpm_core.testing.report import Finding

NOTES = {
    "corrector": Note(
        "defect",
        "The Langevin corrector takes the score of the time that the predictor has left",
        "`Diffuser.run` calls `corrector(samples, t_next, t_current)`, and "
        "`LangevinCorrector.correct(theta, t0, t1)` asks for the score at t1. In Song et al. "
        "2021b, Algorithm 2, the corrector is at the time where the sample is, here t_next.",
        "no corrector, the default, or one of your own that takes `t0`",
        report="sbi-corrector",
    ),
}


def subjects() -> list[Subject]:
    lib: Any = importlib.import_module("sbi.neural_nets.estimators.score_estimator")
    return [
        *(
            Subject(f"{kind}ScoreEstimator", partial(_process, lib, kind))
            for kind in ("VP", "SubVP", "VE")
        ),
        Subject("LangevinCorrector", _corrector, {"": "corrector"}),
    ]


def _made(lib: Any, kind: str) -> Any:
    """An estimator whose network says what the exact score of N(0, 1) needs: nothing."""
    import torch

    class Nothing(torch.nn.Module):
        def forward(self, x: Any, *_: Any) -> Any:
            return torch.zeros_like(x)

    shape = torch.Size([1])
    return getattr(lib, f"{kind}ScoreEstimator")(Nothing(), shape, shape).double()


def _process(lib: Any, kind: str) -> Iterable[Finding]:
    import torch

    made, t = _made(lib, kind), np.linspace(0.05, 0.95, 13)
    times, one = torch.tensor(t), torch.ones(13, 1, dtype=torch.float64)

    def scales(at: Any) -> Any:
        alpha, sigma = made.mean_t_fn(torch.tensor(at)), made.std_fn(torch.tensor(at))
        return np.asarray(alpha).reshape(-1), np.asarray(sigma).reshape(-1)

    abar = np.exp(-0.01 * t - 9.99 * t**2 / 2)
    wanted = {
        "VP": (np.sqrt(abar), np.sqrt(1 - abar)),
        "SubVP": (np.sqrt(abar), 1 - abar),
        "VE": (np.ones_like(t), 1e-4 * 1e5**t),
    }[kind]
    f = np.broadcast_to(np.asarray(made.drift_fn(one, times)).reshape(-1), 13)
    g = np.asarray(made.diffusion_fn(one, times)).reshape(-1)
    yield from process_laws(scales, "Song et al. 2021b, Eq. 29", t, wanted, (f, g**2))
    exact = -1 / (wanted[0] ** 2 + wanted[1] ** 2)
    with torch.no_grad():
        score = made.score(one, one, times)
        flow = made.ode_fn(one, one, times)
    yield numbers("a network of 0 says the exact score of N(0, 1)", "its documentation",
                  score.reshape(-1), exact, 1e-6)  # fmt: skip
    law = "its flow is f - g² / 2 times the score"
    yield numbers(law, "Song et al. 2021b, Eq. 13", flow.reshape(-1), f - g**2 / 2 * exact, 1e-5)


def _zero(x: Any, t: Any) -> Any:
    return 0 * x


def _one(x: Any, t: Any) -> Any:
    return 1 + 0 * x


def _corrector() -> Iterable[Finding]:
    """Which times the score is asked for: by the predictor, and by the corrector after it."""
    import torch

    asked: list[float] = []

    def gradient(theta: Any, time: Any) -> Any:
        asked.append(float(time))
        return 0 * theta

    estimator = SimpleNamespace(
        drift_fn=_zero, diffusion_fn=_one, t_min=0.0, t_max=1.0,
        mean_base=torch.zeros(1), std_base=torch.ones(1), input_shape=torch.Size([1]),
        condition_shape=torch.Size([1]),
    )  # fmt: skip
    potential = SimpleNamespace(
        gradient=gradient, device="cpu", vector_field_estimator=estimator,
        x_o=torch.zeros(1, 1), x_is_iid=False,
    )  # fmt: skip
    kind: Any = importlib.import_module("sbi.samplers.score.diffuser").Diffuser
    made = kind(potential, "euler_maruyama", "langevin", corrector_params={"num_steps": 1})
    made.run(1, torch.tensor([1.0, 0.75, 0.5]), show_progress_bars=False)
    yield numbers("the corrector asks for the score where the sample is",
                  "Song et al. 2021b, Algorithm 2", asked[1::2], [0.75, 0.5], 0,
                  lambda i: f"step {i}")  # fmt: skip
