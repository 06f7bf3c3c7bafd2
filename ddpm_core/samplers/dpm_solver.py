"""DPM-Solver and DPM-Solver++: exponential integrators in log-SNR.

Lu et al. 2022a: DPM-Solver (arXiv 2206.00927); 2022b: DPM-Solver++ (arXiv 2211.01095).

With λ = log(α / σ), half of our log-SNR, and h its rise over a step, the probability flow is

    x_s = (α_s / α_t) x_t - σ_s ∫ e^{h - u} eps du      (2022a, Eq. 3.4)
    x_s = (σ_s / σ_t) x_t + α_s ∫ e^{-(h - u)} x_0 du   (2022b, Eq. 8)

over u in [0, h], and an SDE with the same marginals has the weight 2 e^{-2 (h - u)}, and noise. A
solver puts a polynomial in place of eps or x_0: through past readings (multistep), or through
readings between t and s (single-step). The step into clean data, where h is infinite, is of order 1
in all of them; so is one from alpha = 0 in those that read x_0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_core.grids import Grid, trailing
from ddpm_core.levels import Level, steps_of
from ddpm_core.samplers.multistep import (
    between,
    exponential,
    half_log_snr_steps,
    lags,
    over_previous,
    reads_eps,
    scale_sde,
    staged,
    weighted,
)
from ddpm_core.samplers.tables import Sampler, levels_of, table, terms
from ddpm_core.schedules import Schedule
from ddpm_core.typing import Array


def dpmpp_2m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DPM-Solver++(2M), multistep of order 2 (Lu et al. 2022b, Algorithm 2).

    x_s = (σ_s / σ_t) x_t - α_s (e^{-h} - 1) D,   D = m_0 + (h / 2 h_prev) (m_0 - m_1)

    The first step is of order 1 (D = m_0), which is DDIM.
    """
    levels = levels_of(schedule, steps, grid, times)
    (t, s), h = steps_of(levels), half_log_snr_steps(levels)
    x_t, _, m_0, m_1, _ = terms(2)
    D = m_0 + over_previous(h) / 2 * (m_0 - m_1)
    x_s = s.sigma / t.sigma * x_t - s.alpha * np.expm1(-h) * D
    return table("dpmpp_2m", levels, x_s)


def dpmpp_3m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DPM-Solver++(3M), multistep of order 3 (Lu et al. 2022b, appendix).

    x_s = (σ_s / σ_t) x_t - α_s (E m_0 - (E / h + 1) D_1 + ((E + h) / h² - 1/2) D_2),
    E = e^{-h} - 1

    D_1, D_2: h and h² times the first and second derivative at t of the polynomial through m_0,
        m_1, m_2. Published code takes half of that D_2, which leaves it at order 2

    The second step is that of `dpmpp_2m`.
    """
    return _third_order("dpmpp_3m", levels_of(schedule, steps, grid, times), stochasticity=0.0)


def sde_dpmpp_2m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """SDE-DPM-Solver++(2M), of weak order 2 (Lu et al. 2022b).

    x_s = (σ_s / σ_t) e^{-h} x_t + α_s (1 - e^{-2h}) D + σ_s sqrt(1 - e^{-2h}) z,
    D = m_0 + (h / 2 h_prev) (m_0 - m_1)
    """
    levels = levels_of(schedule, steps, grid, times)
    (t, s), h = steps_of(levels), half_log_snr_steps(levels)
    x_t, _, m_0, m_1, z = terms(2)
    D = m_0 + over_previous(h) / 2 * (m_0 - m_1)
    x_s = s.sigma / t.sigma * np.exp(-h) * x_t - s.alpha * np.expm1(-2 * h) * D
    return table("sde_dpmpp_2m", levels, x_s + s.sigma * np.sqrt(-np.expm1(-2 * h)) * z)


def sde_dpmpp_3m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """The SDE of `sde_dpmpp_2m`, with the exact integral of the polynomial through m_0, m_1, m_2.

    It is of weak order 2 as well. Published code takes half of the polynomial's second derivative.
    The second step is that of `sde_dpmpp_2m`.
    """
    return _third_order("sde_dpmpp_3m", levels_of(schedule, steps, grid, times), stochasticity=1.0)


def dpm_solver_2m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """`dpmpp_2m` that reads eps (Lu et al. 2022b, appendix). ValueError at alpha = 0.

    x_s = (α_s / α_t) x_t - σ_s (e^h - 1) D,   D = m_0 + (h / 2 h_prev) (m_0 - m_1)
    """
    levels = levels_of(schedule, steps, grid, times)
    read = reads_eps("dpm_solver_2m", levels)
    (t, s), h = steps_of(levels), half_log_snr_steps(levels)
    x_t, _, m_0, m_1, _ = terms(2)
    D = m_0 + over_previous(h) / 2 * (m_0 - m_1)
    x_s = s.alpha / t.alpha * x_t - s.sigma * np.expm1(h) * D
    return table("dpm_solver_2m", levels, x_s, read=read)


def dpm_solver_3m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """`dpmpp_3m` that reads eps. ValueError at alpha = 0."""
    levels = levels_of(schedule, steps, grid, times)
    read = reads_eps("dpm_solver_3m", levels)
    (t, s), h = steps_of(levels), half_log_snr_steps(levels)
    weights = exponential(h, lags(levels.logsnr / 2, 3), rate=-1.0, lead=-np.expm1(h))
    x_t, _, *eps, _ = terms(3)
    x_s = s.alpha / t.alpha * x_t + s.sigma * weighted(weights, eps)
    return table("dpm_solver_3m", levels, x_s, read=read)


def dpmpp_2s(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DPM-Solver++(2S), single-step of order 2, two calls a step (Lu et al. 2022b, Algorithm 1).

    u = (σ_r / σ_t) x_t - α_r (e^{-h/2} - 1) x_0(x_t, t),   r the middle of the step in log-SNR
    x_s = (σ_s / σ_t) x_t - α_s (e^{-h} - 1) x_0(u, r)
    """
    levels = levels_of(schedule, steps, grid, times)
    (t, s), h, r = steps_of(levels), half_log_snr_steps(levels), between(schedule, levels, 1 / 2)
    x_t, anchor, m_0, _ = terms()
    u = r.sigma / t.sigma * x_t - r.alpha * np.expm1(-h / 2) * m_0
    x_s = s.sigma / t.sigma * anchor - s.alpha * np.expm1(-h) * m_0
    return staged("dpmpp_2s", [t, r], s, [u, x_s], eps=False)


def dpm_solver_2(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DPM-Solver-2, single-step of order 2, two calls a step (Lu et al. 2022a, Algorithm 1).

    u = (α_r / α_t) x_t - σ_r (e^{h/2} - 1) eps(x_t, t),   r the middle of the step in log-SNR
    x_s = (α_s / α_t) x_t - σ_s (e^h - 1) eps(u, r)

    ValueError at alpha = 0.
    """
    levels = levels_of(schedule, steps, grid, times)
    reads_eps("dpm_solver_2", levels)
    (t, s), h, r = steps_of(levels), half_log_snr_steps(levels), between(schedule, levels, 1 / 2)
    x_t, anchor, m_0, _ = terms()
    u = r.alpha / t.alpha * x_t - r.sigma * np.expm1(h / 2) * m_0
    x_s = s.alpha / t.alpha * anchor - s.sigma * np.expm1(h) * m_0
    return staged("dpm_solver_2", [t, r], s, [u, x_s], eps=True)


def dpm_solver_3(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DPM-Solver-3, single-step of order 3, three calls a step (Lu et al. 2022a, Algorithm 2).

    With eps_0, eps_1, eps_2 read at t, and at a third and two thirds of the step in log-SNR:

    u_1 = (α_1 / α_t) x_t - σ_1 (e^{h/3} - 1) eps_0
    u_2 = (α_2 / α_t) x_t - σ_2 (e^{2h/3} - 1) eps_0
          - 2 σ_2 ((e^{2h/3} - 1) / (2h/3) - 1) (eps_1 - eps_0)
    x_s = (α_s / α_t) x_t - σ_s (e^h - 1) eps_0 - 3/2 σ_s ((e^h - 1) / h - 1) (eps_2 - eps_0)

    ValueError at alpha = 0.
    """
    levels = levels_of(schedule, steps, grid, times)
    reads_eps("dpm_solver_3", levels)
    (t, s), h = steps_of(levels), half_log_snr_steps(levels)
    one, two = (between(schedule, levels, share) for share in (1 / 3, 2 / 3))
    x_t, anchor, m_0, m_1, m_2, _ = terms(3)  # the newest reading is m_0

    def bend(h: Array) -> Array:
        """(e^h - 1) / h - 1; 0 at h = 0, into clean data."""
        return np.expm1(h) / np.where(h > 0, h, 1.0) - (h > 0)

    u_1 = one.alpha / t.alpha * x_t - one.sigma * np.expm1(h / 3) * m_0
    u_2 = two.alpha / t.alpha * anchor - two.sigma * np.expm1(2 * h / 3) * m_1
    u_2 = u_2 - 2 * two.sigma * bend(2 * h / 3) * (m_0 - m_1)
    x_s = s.alpha / t.alpha * anchor - s.sigma * np.expm1(h) * m_2
    x_s = x_s - 3 / 2 * s.sigma * bend(h) * (m_0 - m_2)
    return staged("dpm_solver_3", [t, one, two], s, [u_1, u_2, x_s], eps=True)


def _third_order(name: str, levels: Level, stochasticity: float) -> Sampler:
    """Through three readings of x_0, in the ODE (0) or the reverse SDE (1)."""
    _, s = steps_of(levels)
    h, rate = half_log_snr_steps(levels), 1 + stochasticity**2
    on_x, on_z = scale_sde(levels, stochasticity)
    weights = exponential(h, lags(levels.logsnr / 2, 3), rate, lead=-np.expm1(-rate * h))
    x, _, *m, z = terms(3)
    return table(name, levels, on_x * x + s.alpha * weighted(weights, m) + on_z * z)
