"""ER-SDE-Solver (Cui et al. 2023): reverse SDEs with a noise of one's choice, reading x_0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_core.grids import Grid, trailing
from ddpm_core.levels import steps_of
from ddpm_core.samplers.multistep import (
    integral_dk,
    lags,
    quadrature,
    ratio,
    reads_eps,
    weighted,
)
from ddpm_core.samplers.tables import Sampler, levels_of, table, terms
from ddpm_core.schedules import Schedule
from ddpm_core.typing import Array


def er_sde_5(k: Array) -> Array:
    """φ(k) = k (e^{k^0.3} + 10), the paper's choice (Cui et al. 2023, ER SDE 5)."""
    return k * (np.exp(k**0.3) + 10)


def er_sde(
    schedule: Schedule,
    steps: int,
    order: int = 3,
    phi: Callable[[Array], Array] = er_sde_5,
    *,
    grid: Grid = trailing,
    times: Any = None,
) -> Sampler:
    """ER-SDE-Solver in k = σ / α, the paper's σ (Cui et al. 2023, VP).

    x_s / α_s = r x_t / α_t + (1 - r) D + sqrt(k_s² - r² k_t²) z,   r = φ(k_s) / φ(k_t)

    with D the mean, under the solver's weight, of the polynomial in k through m_0 and earlier
    readings. The paper expands it in Taylor terms, with plain differences for the derivatives.

    order: 1, 2 or 3, the number of readings
    phi: k -> φ(k), with φ(k) / k not falling; φ(k) = k gives the probability flow, and φ(k) = k²
        the reverse SDE

    ValueError at alpha = 0.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, but is {order}")
    levels = levels_of(schedule, steps, grid, times)
    reads_eps("er_sde", levels)
    t, s = steps_of(levels)
    k, run = ratio(levels), np.diff(ratio(levels))
    with np.errstate(over="ignore", invalid="ignore"):
        at_t, r = phi(k[:-1]), np.where(k[1:] > 0, phi(k[1:]) / phi(k[:-1]), 0.0)
    left = k[1:] ** 2 - (r * k[:-1]) ** 2
    lost = 1e-14 * k[1:] ** 2
    if not np.all((at_t > 0) & ((r > 0) | (k[1:] == 0))) or np.any(left < -lost):
        raise ValueError(
            f"phi must be positive and finite, and phi(k) / k not fall as k rises, for k from "
            f"{k[-1]:.3g} to {k[0]:.3g}; another phi, or a later time to start at, may do"
        )
    left = np.where(left <= lost, 0.0, left)  # a rounding is not noise
    # By parts: ∫ φ_s (φ' / φ²) u^m dk = u_s^m - m φ_s ∫ u^{m-1} / φ dk, from k_t down to k_s.
    moments = [1 - r]
    for m in range(1, order):

        def f(logsnr: Array, i: Array, m: int = m) -> Array:
            at = np.exp(-logsnr / 2)
            return (at - k[i]) ** (m - 1) * phi(k[i + 1]) / phi(at)

        moments.append(run**m - m * integral_dk(levels, f))
    weights = quadrature(lags(k, order), np.stack(moments, axis=1))
    x, _, *x_0, z = terms(order)
    x_s = s.alpha * (r * x / t.alpha + weighted(weights, x_0) + np.sqrt(left) * z)
    return table("er_sde", levels, x_s)
