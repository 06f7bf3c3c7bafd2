"""UniPC (Zhao et al. 2023) and SA-Solver (Xue et al. 2023): predictors and correctors in log-SNR.

One network call a step: the reading at the predicted point first corrects the step that led to it,
and then predicts the next step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_core.grids import Grid, trailing
from ddpm_core.levels import Level, steps_of
from ddpm_core.samplers.multistep import exponential, half_log_snr_steps, lags, scale_sde, weighted
from ddpm_core.samplers.tables import Sampler, levels_of, table, terms
from ddpm_core.schedules import Schedule
from ddpm_core.typing import Array


def unipc_1(
    schedule: Schedule,
    steps: int,
    *,
    corrector: bool = True,
    b: str = "bh2",
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """UniPC-1, of order 2 with its corrector, which is DDIM without it. See `unipc_2`."""
    return _unipc(1, levels_of(schedule, steps, grid, times), corrector, b)


def unipc_2(
    schedule: Schedule,
    steps: int,
    *,
    corrector: bool = True,
    b: str = "bh2",
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """UniPC-2, which reads x_0; of order 3 with its corrector, 2 without (Zhao et al. 2023).

    x_s = (σ_s / σ_t) x_t - α_s ((e^{-h} - 1) m_0 + B(h) Σ_j ρ_j (m_j - m_0) / r_j)

    The predictor's m_j are past readings, with r_j = -(h_1 + .. + h_j) / h, where h_1, h_2, .. are
    the steps before this one, the last first. The corrector has the reading at x_s as well, with
    r = 1. A single ρ is 1/2, as in the paper. Several make the step the exact integral of the
    polynomial through the readings, whatever B is.

    corrector: False is UniP alone; UniP-2 is DPM-Solver++(2M)
    b: B(h), "bh1" for -h or "bh2" for e^{-h} - 1
    """
    return _unipc(2, levels_of(schedule, steps, grid, times), corrector, b)


def unipc_3(
    schedule: Schedule,
    steps: int,
    *,
    corrector: bool = True,
    b: str = "bh2",
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """UniPC-3, of order 4 with its corrector, 3 without. See `unipc_2`.

    UniP-3 is DPM-Solver++(3M), as corrected here.
    """
    return _unipc(3, levels_of(schedule, steps, grid, times), corrector, b)


def sa_solver(
    schedule: Schedule,
    steps: int,
    stochasticity: Any = 1.0,
    *,
    predictor: int = 3,
    corrector: int = 3,
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """SA-Solver, stochastic Adams in log-SNR, which reads x_0 (Xue et al. 2023, Algorithm 1).

    x_s = (σ_s / σ_t) e^{-τ² h} x_t + α_s ∫ (1 + τ²) e^{-(1 + τ²) (h - u)} x_0 du
          + σ_s sqrt(1 - e^{-2 τ² h}) z

    where the polynomial through readings replaces x_0 and is integrated exactly. The predictor and
    the corrector of a step share its z.

    stochasticity: τ, a number or one per step (steps,); 0 is the probability flow, 1 the reverse
        SDE
    predictor: past readings that the predictor uses
    corrector: past readings that the corrector uses besides the new one; 0 is no corrector
    """
    for name, value, least in (("predictor", predictor, 1), ("corrector", corrector, 0)):
        if not hasattr(value, "__index__") or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, but is {value}")
    levels = levels_of(schedule, steps, grid, times)
    tau = np.asarray(stochasticity, dtype=np.float64)
    if tau.shape not in ((), (steps,)) or not np.all((tau >= 0) & np.isfinite(tau)):
        raise ValueError(
            f"stochasticity must be at least 0, a number or one per step, but is {stochasticity}"
        )
    tau = np.broadcast_to(tau, (steps,))
    return predictor_corrector("sa_solver", levels, predictor, corrector, tau)


def _unipc(order: int, levels: Level, corrector: bool, b: str) -> Sampler:
    if b not in ("bh1", "bh2"):
        raise ValueError(f"b must be bh1 or bh2, but is {b!r}")
    h = half_log_snr_steps(levels)
    lead = h if b == "bh1" else -np.expm1(-h)
    past = order if corrector else 0
    return predictor_corrector(f"unipc_{order}", levels, order, past, 0.0, lead)


def predictor_corrector(
    name: str,
    levels: Level,
    predictor: int,
    corrector: int,
    stochasticity: Array | float,
    lead: Array | None = None,
) -> Sampler:
    """The table of a predictor and a corrector with exponential weights, one call a step.

    The point is what was predicted; the anchor is the point less the readings that predicted it.

    corrected = anchor + (readings of the last step's corrector)
    anchor <- on_x corrected + on_z z,   point <- anchor + (readings of this step's predictor)

    predictor: past readings that the predictor uses
    corrector: past readings that the corrector uses besides the new one; 0 is no corrector
    stochasticity: τ of `scale_sde`
    lead: of `exponential`
    """
    _, s = steps_of(levels)
    h = half_log_snr_steps(levels)
    rate = np.broadcast_to(1 + np.square(stochasticity), h.shape)
    on_x, on_z = scale_sde(levels, stochasticity)
    past = lags(levels.logsnr / 2, max(predictor, corrector))
    x, anchor, *m, z = terms(max(predictor, corrector + 1))
    predicted = s.alpha * weighted(exponential(h, past[:, :predictor], rate, lead), m)

    corrected = x + np.zeros(len(h))
    if corrector and len(h) > 1:
        nodes = np.concatenate([h[:, None], past[:, :corrector]], axis=1)
        leads = None if lead is None else lead[:-1]
        weights = exponential(h[:-1], nodes[:-1], rate[:-1], leads)
        after = anchor + s.alpha[:-1] * weighted(weights, m)
        corrected[:, 1:] = np.where(np.isfinite(h[:-1]), after, x)  # none of a step from alpha = 0

    stepped = on_x * corrected + on_z * z
    return table(name, levels, stepped + predicted, anchor=stepped)
