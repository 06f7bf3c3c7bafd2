"""BayesFlow: the noise schedules of its diffusion models, on the torch backend of Keras."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np

from ddpm_core.grids import karras
from ddpm_core.schedules import EDM
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import numbers, process_laws
from ddpm_core.testing.report import Finding

NOTES = {
    "exploding": Note(
        "defect",
        'The SDE of `variance_type="exploding"` is that of a preserving one',
        "`EDMNoiseSchedule.derivative_log_snr`, which `get_drift` takes for g², has the factor "
        "σ² / (1 + σ²) for both. With α = 1, g² is the rate of σ²: 1 + σ² times as much, 6401 "
        "at σ = 80. Neither the ODE nor the SDE then takes the noise away. `DiffusionModel` also "
        "starts from N(0, 1), and not from N(0, 80²).",
        '`variance_type="preserving"`, the default',
        report="bayesflow-exploding",
    ),
    "twice": Note(
        "defect",
        "The cosine schedule's SDE has half the rate at both ends",
        "`get_t_from_log_snr` gives the time that `get_log_snr` has truncated to, and "
        "`derivative_log_snr` truncates it again. At t = 0 and 1 the rate of the log-SNR is off "
        "by a factor of 2, and by 3 % at 0.01: it matters next to both ends only.",
        "the EDM schedule, the default",
        report="bayesflow-cosine",
    ),
    "inverse": Note(
        "defect",
        "The time of a log-SNR is not the one that has it",
        "As above: `get_t_from_log_snr` of the cosine schedule is the inverse before truncation.",
        "the EDM schedule, the default",
        report="bayesflow-cosine",
    ),
}
_TIMES = np.array([0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])


def subjects() -> list[Subject]:
    import torch

    os.environ.setdefault("KERAS_BACKEND", "torch")
    with torch.set_grad_enabled(True):  # importing it turns gradients off, for all of torch
        lib: Any = importlib.import_module("bayesflow.networks.inference.diffusion.schedules")
    edm = partial(lib.EDMNoiseSchedule, sigma_min=0.01)
    return [
        Subject("EDMNoiseSchedule", partial(_process, edm)),
        Subject("EDMNoiseSchedule, exploding",
                partial(_process, partial(edm, variance_type="exploding")),
                {"its SDE": "exploding"}),
        Subject("CosineNoiseSchedule", partial(_process, lib.CosineNoiseSchedule),
                {"its SDE": "twice", "the time": "inverse"}),
        Subject("EDMNoiseSchedule, its sigmas", partial(_sigmas, lib)),
        Subject("EDMNoiseSchedule, its training", partial(_training, lib)),
    ]  # fmt: skip


def _tensor(t: Any) -> Any:
    import torch

    return torch.as_tensor(t, dtype=torch.float64)


def _process(kind: Any) -> Iterable[Finding]:
    made = kind()

    def scales(t: Any) -> Any:
        alpha, sigma = made.get_alpha_sigma(made.get_log_snr(_tensor(t), training=False))
        return np.asarray(alpha), np.asarray(sigma)

    level = made.get_log_snr(_tensor(_TIMES), training=False)
    f, g2 = made.get_drift(level, x=_tensor(np.ones_like(_TIMES)))
    source = "Kingma & Gao 2023, appendix A"
    yield from process_laws(scales, source, _TIMES, None, (np.asarray(f), np.asarray(g2)),
                            allowed=1e-8)  # fmt: skip
    back = made.get_t_from_log_snr(level, training=False)
    yield numbers("the time of a log-SNR is the one that has it", "its own get_log_snr", back,
                  _TIMES, 1e-6, lambda i: f"t = {_TIMES[i]:g}")  # fmt: skip


def _sigmas(lib: Any) -> Iterable[Finding]:
    made = lib.EDMNoiseSchedule(sigma_min=0.002)
    found = np.exp(-np.asarray(made.get_log_snr(_tensor(np.linspace(1, 0, 18)), False)) / 2)
    yield numbers("its sigmas", "Karras et al. 2022, Eq. 5", found, karras(EDM(), 18)[:-1], 1e-4,
                  lambda i: f"index {i}")  # fmt: skip


def _training(lib: Any) -> Iterable[Finding]:
    """Quantiles of log σ, and the weight of eps's error."""
    made, t = lib.EDMNoiseSchedule(sigma_data=0.5), np.linspace(0.1, 0.9, 9)
    level = made.get_log_snr(_tensor(t), training=True)
    wanted = [NormalDist(-1.2, 1.2).inv_cdf(each) for each in t]
    source = "Karras et al. 2022, Table 1"
    yield numbers("log sigma is normal", source, -np.asarray(level) / 2, wanted,
                  1e-5, lambda i: f"quantile {t[i]:g}")  # fmt: skip
    s2 = np.exp(-np.asarray(level))
    yield numbers("its weight", source, made.get_weights_for_snr(level), (s2 + 0.25) / 0.25,
                  1e-5 * s2 + 1e-5)  # fmt: skip
