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
    exponential,
    half_log_snr_steps,
    lags,
    named,
    reads_eps,
    scale_sde,
    staged,
)
from ddpm_core.samplers.tables import Sampler, levels_of, table
from ddpm_core.schedules import Schedule
from ddpm_core.typing import Array


def dpmpp_2m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DPM-Solver++(2M), multistep of order 2 (Lu et al. 2022b, Algorithm 2).

    x_s = (σ_s / σ_t) x_t - α_s (e^{-h} - 1) D,   D = m_0 + (h / 2 h_prev) (m_0 - m_1)

    The first step is of order 1 (D = m_0), which is DDIM.
    """
    return _multistep("dpmpp_2m", levels_of(schedule, steps, grid, times), 2)


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
    return _multistep("dpmpp_3m", levels_of(schedule, steps, grid, times), 3)


def sde_dpmpp_2m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """SDE-DPM-Solver++(2M), of weak order 2 (Lu et al. 2022b).

    x_s = (σ_s / σ_t) e^{-h} x_t + α_s (1 - e^{-2h}) D + σ_s sqrt(1 - e^{-2h}) z,
    D = m_0 + (h / 2 h_prev) (m_0 - m_1)
    """
    return _multistep("sde_dpmpp_2m", levels_of(schedule, steps, grid, times), 2, noise=1.0)


def sde_dpmpp_3m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """The SDE of `sde_dpmpp_2m`, with the exact integral of the polynomial through m_0, m_1, m_2.

    Published code takes half of its second derivative. The second step is that of `sde_dpmpp_2m`.
    """
    return _multistep("sde_dpmpp_3m", levels_of(schedule, steps, grid, times), 3, noise=1.0)


def dpm_solver_2m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """`dpmpp_2m` that reads eps (Lu et al. 2022b, appendix). ValueError at alpha = 0.

    x_s = (α_s / α_t) x_t - σ_s (e^h - 1) D,   D = m_0 + (h / 2 h_prev) (m_0 - m_1)
    """
    return _multistep_eps("dpm_solver_2m", levels_of(schedule, steps, grid, times), 2)


def dpm_solver_3m(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """`dpmpp_3m` that reads eps. ValueError at alpha = 0."""
    return _multistep_eps("dpm_solver_3m", levels_of(schedule, steps, grid, times), 3)


def dpmpp_2s(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DPM-Solver++(2S), single-step of order 2, two calls a step (Lu et al. 2022b, Algorithm 1).

    u = (σ_r / σ_t) x_t - α_r (e^{-h/2} - 1) x_0(x_t, t),   r the middle of the step in log-SNR
    x_s = (σ_s / σ_t) x_t - α_s (e^{-h} - 1) x_0(u, r)
    """
    levels = levels_of(schedule, steps, grid, times)
    return _single_step("dpmpp_2s", schedule, levels, (0.5,), rate=1.0, halved=True)


def dpm_solver_2(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DPM-Solver-2, single-step of order 2, two calls a step (Lu et al. 2022a, Algorithm 1).

    u = (α_r / α_t) x_t - σ_r (e^{h/2} - 1) eps(x_t, t),   r the middle of the step in log-SNR
    x_s = (α_s / α_t) x_t - σ_s (e^h - 1) eps(u, r)

    ValueError at alpha = 0.
    """
    levels = levels_of(schedule, steps, grid, times)
    return _single_step("dpm_solver_2", schedule, levels, (0.5,), rate=-1.0, halved=True)


#: The midpoint method in x / α over k = σ / α, its middle in log k (k-diffusion's DPM2).
midpoint = dpm_solver_2


def dpm_solver_3(
    schedule: Schedule, steps: int, *, grid: Grid = trailing, times: Any = None
) -> Sampler:
    """DPM-Solver-3, single-step of order 3, three calls a step (Lu et al. 2022a, Algorithm 2).

    It looks at t, at a third of the step in log-SNR (by a step of order 1) and at two thirds (by
    one of order 2), and combines the readings at t and at two thirds. ValueError at alpha = 0.
    """
    levels = levels_of(schedule, steps, grid, times)
    return _single_step("dpm_solver_3", schedule, levels, (1 / 3, 2 / 3), rate=-1.0, halved=False)


def _multistep(name: str, levels: Level, order: int, noise: float = 0.0) -> Sampler:
    _, s = steps_of(levels)
    h, rate = half_log_snr_steps(levels), 1 + noise**2
    on_x, on_z = scale_sde(levels, noise)
    weights = exponential(h, lags(levels.logsnr / 2, order), rate, lead=-np.expm1(-rate * h))
    return table(name, levels, point={"x": on_x, **named(s.alpha[:, None] * weights), "z": on_z})


def _multistep_eps(name: str, levels: Level, order: int) -> Sampler:
    t, s = steps_of(levels)
    read, h = reads_eps(name, levels), half_log_snr_steps(levels)
    weights = exponential(h, lags(levels.logsnr / 2, order), -1.0, lead=-np.expm1(h))
    point = {"x": s.alpha / t.alpha, **named(s.sigma[:, None] * weights)}
    return table(name, levels, read=read, point=point)


def _single_step(
    name: str,
    schedule: Schedule,
    levels: Level,
    between: tuple[float, ...],
    *,
    rate: float,
    halved: bool,
) -> Sampler:
    """Stages that look at t and at shares of the step in log-SNR; each starts again at x_t.

    A stage's polynomial is through the readings of the first stage and of the last.
    halved: its first moment is half of h times the zeroth, as in the papers' order 2
    """
    if rate < 0:
        reads_eps(name, levels)
    t, s = steps_of(levels)
    h = half_log_snr_steps(levels)
    short = np.isinf(h)  # these steps have one stage
    shares = (0.0, *between, 1.0)
    step = np.where(short, 0.0, h)
    looks = [t, *(schedule.at(t.logsnr + 2 * r * step) for r in between)]
    stages: list[dict[str, Array]] = []
    for j in range(len(looks)):
        end = s
        if j + 1 < len(looks):
            end = Level(*(np.where(short, *pair) for pair in zip(s, looks[j + 1], strict=True)))
        run = h * np.where(short, 1.0, shares[j + 1])
        nodes = np.stack([shares[j] * step, 0 * step] if j else [0 * step], axis=1)
        on_m = exponential(run, nodes, rate, -np.expm1(-rate * run) if halved else None)
        on_x, scale = end.sigma / t.sigma, end.alpha
        if rate < 0:
            on_x, scale = end.alpha / t.alpha, end.sigma
        readings = dict(zip(("m0", f"m{j}"), (scale[:, None] * on_m).T, strict=False))
        stages.append({"anchor" if j else "x": on_x, **readings})
    return staged(name, looks, s, stages, ~short, eps=rate < 0)
