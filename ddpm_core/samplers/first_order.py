"""Ancestral sampling (Ho et al. 2020, Algorithm 2) and DDIM (Song et al. 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_core.grids import Grid, trailing
from ddpm_core.levels import steps_of, tau
from ddpm_core.process import Variance, posterior_row, small
from ddpm_core.samplers.tables import Sampler, levels_of, rising_levels_of, table, terms
from ddpm_core.schedules import Schedule


def ancestral(
    schedule: Schedule,
    steps: int,
    variance: Variance = small,
    *,
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """Ancestral sampling through p(x_s | x_t), for any s < t (Ho et al. 2020, Algorithm 2).

    x_s = α_s τ x_0 + (α_t / α_s) (σ_s / σ_t)² x_t + sqrt(variance) z,   τ = 1 - SNR_t / SNR_s

    variance: `small`, `large`, or any function (t, s) -> coefficient

    The step into clean data takes no noise, as in the paper.
    """
    levels = levels_of(schedule, steps, grid, times)
    t, s = steps_of(levels)
    on_x_0, on_x_t = posterior_row(t, s)
    x_t, _, x_0, z = terms()
    x_s = on_x_0 * x_0 + on_x_t * x_t + np.sqrt(variance(t, s)) * z
    return table("ancestral", levels, x_s)


def ddim(
    schedule: Schedule,
    steps: int,
    eta: float = 0.0,
    *,
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """DDIM (Song et al. 2021, Eqs. 12 and 16), for any s < t.

    x_s = α_s x_0 + sqrt(σ_s² - η² τ σ_s²) eps + η sqrt(τ) σ_s z,   eps = (x_t - α_t x_0) / σ_t

    eta: multiplies the standard deviation, as in the paper. 0 is deterministic, the Euler step of
        the probability flow; 1 is `ancestral` with `small`
    """
    levels = levels_of(schedule, steps, grid, times)
    t, s = steps_of(levels)
    kept = np.where(s.sigma > 0, 1.0 - eta**2 * tau(t, s), 1.0)
    # At eta = 1 this is SNR_t / SNR_s, which the subtraction may round to just below 0.
    if eta < 0 or np.any(kept < -1e-12):
        raise ValueError(
            f"eta must be at least 0 and eta² τ at most 1 at every step, but eta = {eta}"
        )
    x_t, _, x_0, z = terms()
    eps = (x_t - t.alpha * x_0) / t.sigma
    x_s = s.alpha * x_0 + s.sigma * np.sqrt(np.maximum(kept, 0.0)) * eps
    return table("ddim", levels, x_s + eta * np.sqrt(tau(t, s)) * s.sigma * z)


def ddim_inversion(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DDIM from data to noise: deterministic encoding (Song et al. 2021, section 4.3).

    x_s = α_s x_0 + σ_s eps,   eps = (x_t - α_t x_0) / σ_t,   s the noisier

    times: steps + 1 times of the schedule, strictly rising, the first of them with noise: nothing
        is read at clean data. By default those of grid(schedule, steps + 1) but the clean one

    `sample` with it takes x at the first of its levels, as which clean data may be taken where that
    level has little noise, and returns x at the noisiest.
    """
    levels = rising_levels_of("ddim_inversion", schedule, steps, grid, times)
    t, s = steps_of(levels)
    x_t, _, x_0, _ = terms()
    eps = (x_t - t.alpha * x_0) / t.sigma
    return table("ddim_inversion", levels, s.alpha * x_0 + s.sigma * eps)
