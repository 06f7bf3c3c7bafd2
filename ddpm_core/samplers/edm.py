"""Heun's method on the probability flow in x / α over k = σ / α, with and without new noise.

Karras et al. 2022 (EDM), whose σ is our k, and Xu et al. 2023 (Restart). All read eps, and refuse
to start at alpha = 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddpm_core.grids import Grid, trailing
from ddpm_core.levels import Level, steps_of
from ddpm_core.samplers.multistep import ratio, reads_eps, staged
from ddpm_core.samplers.tables import Sampler, levels_of, terms
from ddpm_core.schedules import Schedule


def heun(schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None) -> Sampler:
    """EDM's deterministic sampler, of order 2, two calls a step (Karras et al. 2022, Algorithm 1).

    u / α_s = x_t / α_t + (k_s - k_t) eps(x_t, t)
    x_s / α_s = x_t / α_t + (k_s - k_t) (eps(x_t, t) + eps(u, s)) / 2

    The step into clean data is Euler's.
    """
    levels = levels_of(schedule, steps, grid, times)
    reads_eps("heun", levels)
    return _heun("heun", *steps_of(levels))


def edm_stochastic(
    schedule: Schedule,
    steps: int,
    churn: float = 30.0,
    *,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """EDM's stochastic sampler: noise before each step of `heun` (Karras et al. 2022, Algorithm 2).

    x̂ = x + sqrt(k̂² - k²) s_noise z in x / α, and the step goes from k̂ = (1 + γ) k,
    γ = min(churn / steps, sqrt(2) - 1) where s_min <= k <= s_max, else 0

    churn: S_churn, how much noise in all; 0 is `heun`
    s_min, s_max: S_min and S_max, the range of k = σ / α in which it is added
    s_noise: S_noise, multiplies the standard deviation of what is added

    Noise is added by the row before a step, and so not before the first step: x is read at the
    level where it is given. That differs from the paper only where `times` start below the
    schedule's noisiest level, above which no k̂ goes, because no network was trained there.
    """
    if not (churn >= 0 and s_noise >= 0 and s_min >= 0):
        raise ValueError(
            f"churn, s_min and s_noise must be at least 0, but are {churn}, {s_min} and {s_noise}"
        )
    levels = levels_of(schedule, steps, grid, times)
    reads_eps("edm_stochastic", levels)
    t, s = steps_of(levels)
    k = ratio(t)
    gamma = np.where((s_min <= k) & (k <= s_max), min(churn / steps, math.sqrt(2) - 1), 0.0)
    gamma[0] = 0.0
    noisiest = schedule(schedule.ends[1]).logsnr
    raised = schedule.at(np.maximum(t.logsnr - 2 * np.log1p(gamma), noisiest))
    start = Level(*(np.where(gamma > 0, a, b) for a, b in zip(raised, t, strict=True)))
    return _heun("edm_stochastic", start, s, s_noise)


def restart(
    schedule: Schedule,
    steps: int,
    repeats: int = 1,
    *,
    interval: tuple[int, int] | None = None,
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """Restart: `heun` that adds noise again to an interval and repeats its steps (Xu et al. 2023).

    repeats: K, how often
    interval: (i, j), i < j: on reaching the j-th time of the grid, noise of variance k_i² - k_j²
        is added to x / α, and the steps from the i-th time are taken again. By default the two
        steps before the last one, (steps - 3, steps - 1); where there are 2 steps, the first
    """
    levels = levels_of(schedule, steps, grid, times)
    reads_eps("restart", levels)
    if interval is None and steps < 2:
        raise ValueError("restart needs at least 2 steps: nothing is noisier than the first time")
    i, j = (max(0, steps - 3), steps - 1) if interval is None else interval
    if not (0 <= i < j < steps):
        raise ValueError(
            f"interval must be (i, j) with 0 <= i < j < steps, but is ({i}, {j}) of {steps} steps"
        )
    if not hasattr(repeats, "__index__") or repeats < 0:
        raise ValueError(f"repeats must be an integer of at least 0, but is {repeats}")
    visits = [*range(j), *[*range(i, j)] * repeats, *range(j, steps)]
    t, s = (part.take(visits) for part in steps_of(levels))
    return _heun("restart", t, s)


def _heun(name: str, t: Level, s: Level, s_noise: float = 1.0) -> Sampler:
    """Steps from t_i to s_i (n,); noise takes s_i up to t_{i+1} where that is noisier."""
    to = Level(*(np.append(a[1:], b[-1]) for a, b in zip(t, s, strict=True)))
    step = ratio(s) - ratio(t)
    added = s_noise * np.sqrt(np.maximum(ratio(to) ** 2 - ratio(s) ** 2, 0.0))
    x_t, anchor, m_0, m_1, z = terms(2)
    u = s.alpha * (x_t / t.alpha + step * m_0)
    x = to.alpha * (anchor / t.alpha + step * (m_0 + m_1) / 2 + added * z)
    return staged(name, [t, s], s, [u, x], eps=True)
