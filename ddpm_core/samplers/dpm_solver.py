"""DPM-Solver++ (Lu et al. 2022): exponential integrators that read x_0."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_core._typing import Array
from ddpm_core.grids import Grid, trailing
from ddpm_core.levels import Level, steps_of
from ddpm_core.samplers.table import Sampler, levels_of, table
from ddpm_core.schedules import Schedule


def dpmpp_2m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DPM-Solver++(2M), multistep of order 2 (Lu et al. 2022, Algorithm 2).

    x_s = (σ_s / σ_t) x_t - α_s (e^{-h} - 1) D,   D = m_0 + (h / 2 h_prev) (m_0 - m_1)

    with h half of the rise in log-SNR. The first step and the step into clean data are of order 1
    (D = m_0), where that is DDIM.
    """
    levels = levels_of(schedule, steps, grid, times)
    t, s = steps_of(levels)
    h = half_log_snr_steps(levels)
    h_prev = np.append(np.inf, h[:-1])  # no step before the first: D = m_0
    with np.errstate(invalid="ignore"):  # inf / inf, from alpha = 0; not selected
        extra = np.where(np.isfinite(h), h / (2 * h_prev), 0.0)
    on_d = -s.alpha * np.expm1(-h)
    return table(
        "dpmpp_2m",
        levels,
        point={"x": s.sigma / t.sigma, "m0": on_d * (1 + extra), "m1": -on_d * extra},
    )


def half_log_snr_steps(levels: Level) -> Array:
    """h of each step in the papers' λ = log(α / σ), half of ours; inf into clean data."""
    return np.diff(levels.logsnr) / 2
