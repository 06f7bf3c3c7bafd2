"""What families of solvers share: the integral of a polynomial through readings, and stages.

A solver with a memory integrates its ODE or SDE over a step as if the readings lay on the
polynomial through the last few of them. In which variable that is a polynomial, and by which weight
it is integrated, makes the solver; the integral is here.
"""

from __future__ import annotations

import numpy as np

from ddpm_core.levels import Level, steps_of
from ddpm_core.samplers.tables import Sampler, table
from ddpm_core.typing import Array


def half_log_snr_steps(levels: Level) -> Array:
    """h of each step in the papers' λ = log(α / σ), half of ours; inf into clean data."""
    return np.diff(levels.logsnr) / 2


def ratio(levels: Level) -> Array:
    """k = σ / α, the σ of Karras et al. 2022; 0 at clean data."""
    return levels.sigma / levels.alpha


def lags(at: Array, order: int) -> Array:
    """Where each step's readings lie, counted from its start: (n, order), the newest, 0, first.

    at: (n + 1,), the grid in the polynomial's variable

    nan where there is no reading that far back, or none at a finite distance.
    """
    n = len(at) - 1
    back = np.arange(n)[:, None] - np.arange(order)
    with np.errstate(invalid="ignore"):
        nodes = np.where(back >= 0, at[np.maximum(back, 0)] - at[:-1, None], np.nan)
    nodes[:, 0] = 0.0
    return np.where(np.isfinite(nodes), nodes, np.nan)


def quadrature(nodes: Array, moments: Array) -> Array:
    """Weights w with Σ_j w_j p(u_j) = ∫ ω(u) p(u) du for polynomials p of lower degree than nodes.

    nodes: (n, k), the u_j; missing ones are nan, come last, and get weight 0
    moments: (n, k), ∫ ω(u) u^m du for m = 0 .. k - 1
    """
    there = np.isfinite(nodes)
    powers = np.arange(float(nodes.shape[1]))
    scale = np.where(there, np.abs(nodes), 0.0).max(axis=1, keepdims=True)
    scale = np.where(scale > 0, scale, 1.0)
    # Row m asks for exactness on u^m; past the last node, row m asks for a weight of 0.
    vandermonde: Array = np.where(there, nodes / scale, 0.0)[:, None, :] ** powers[:, None]
    system = np.where(there[:, :, None], vandermonde * there[:, None, :], np.eye(len(powers)))
    wanted = np.where(there, moments / scale**powers, 0.0)
    return np.linalg.solve(system, wanted[..., None])[..., 0]


def exponential(h: Array, nodes: Array, rate: Array | float, lead: Array | None = None) -> Array:
    """Weights of the readings under ω(u) = rate e^{-rate (h - u)} over [0, h]: (n, k).

    h: (n,), steps in half log-SNR
    nodes: (n, k), where the readings lie, from the start of the step
    rate: 1 for x_0 in the ODE, -1 for eps in it, 1 + τ² for x_0 in an SDE
    lead: (n,); where two readings are combined, (h / 2) lead stands for the first moment, which has
        the same order: DPM-Solver's and UniPC's form. None takes the moment itself

    Where h is not finite, at clean data and at alpha = 0, the newest reading alone counts.
    """
    far = np.isinf(h)
    order = nodes.shape[1]
    nodes = np.array(nodes)
    nodes[far, 1:] = np.nan
    finite = np.where(far, 1.0, h)
    moments = [np.where(far, 1.0, -np.expm1(-rate * finite))]
    for m in range(1, order):  # by parts
        moments.append(finite**m - m / rate * moments[-1])
    if lead is not None and order > 1:
        moments[1] = np.where(np.isfinite(nodes).sum(axis=1) == 2, finite * lead / 2, moments[1])
    return quadrature(nodes, np.stack(moments, axis=1))


def gauss_legendre(t: Level, s: Level, points: int = 32) -> tuple[Array, Array]:
    """Weights that integrate dk from t to s, and the log-SNR of the points: (n, points) each.

    Gauss-Legendre in log-SNR, where k = exp(-log-SNR / 2); of no use, but finite, at clean data.
    """
    node, weight = np.polynomial.legendre.leggauss(points)
    width = np.where(np.isfinite(s.logsnr), s.logsnr - t.logsnr, 0.0)[:, None] / 2
    logsnr = t.logsnr[:, None] + width * (1 + node)
    return width * weight * -0.5 * np.exp(-logsnr / 2), logsnr


def scale_sde(levels: Level, noise: Array | float) -> tuple[Array, Array]:
    """What multiplies x_t and z in a step of the SDE with τ = `noise` times the reverse noise.

    x_s = (σ_s / σ_t) e^{-τ² h} x_t + (readings) + σ_s sqrt(1 - e^{-2 τ² h}) z

    τ = 0 is the probability flow, τ = 1 the reverse SDE (Xue et al. 2023, SA-Solver).
    """
    t, s = steps_of(levels)
    added = np.square(noise)
    run = added * np.where(added == 0, 0.0, half_log_snr_steps(levels))  # 0 inf is nan
    return s.sigma / t.sigma * np.exp(-run), s.sigma * np.sqrt(-np.expm1(-2 * run))


def reads_eps(name: str, levels: Level) -> tuple[Array, Array]:
    """The reading (u, v) of eps = (x_t - α x_0) / σ at each row.

    ValueError at alpha = 0, where eps is all of x_t and says nothing.
    """
    t = levels.take(slice(None, -1))
    if not np.all(t.alpha > 0):
        raise ValueError(
            f"{name} works in x / alpha, but alpha = 0 at the first level; use ddim, ancestral or "
            f"a solver of the dpmpp family, or start at a later time"
        )
    return 1 / t.sigma, -t.alpha / t.sigma


def named(weights: Array) -> dict[str, Array]:
    """Weights (n, k) as the columns m0, m1, ... of a table."""
    return {f"m{j}": column for j, column in enumerate(weights.T)}


def staged(
    name: str,
    looks: list[Level],
    end: Level,
    stages: list[dict[str, Array]],
    whole: Array,
    *,
    eps: bool,
) -> Sampler:
    """The table of steps with several network calls, each a row; the anchor is where a step began.

    looks: of each stage, its levels (n,)
    end: (n,), where the steps end
    stages: of each stage, its columns (n,)
    whole: (n,), whether a step has all its stages, or the first alone
    eps: read eps, and not x_0
    """
    keep = np.stack([whole | (j == 0) for j in range(len(stages))], axis=1)

    def rows(columns: list[Array]) -> Array:
        return np.stack(columns, axis=1)[keep]

    parts = (end.take(slice(-1, None)), *looks)
    levels = Level(*(np.append(rows(each), last) for last, *each in zip(*parts, strict=True)))
    nothing = np.zeros(len(whole))
    names = dict.fromkeys(column for stage in stages for column in stage)
    point = {column: rows([stage.get(column, nothing) for stage in stages]) for column in names}
    first = rows([nothing == j for j in range(len(stages))])
    read = reads_eps(name, levels) if eps else None
    return table(name, levels, read=read, point=point, anchor={"x": first, "anchor": ~first})
