"""What families of solvers share: steps in log-SNR, polynomials through readings, and stages.

A multistep solver integrates its ODE or SDE over a step as if the readings lay on the polynomial
through the last few of them. The solvers differ in the variable of that polynomial and in the
weight of the integral. Where a paper prints the result, the solver's own file has it; the integral
for all others is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ddpm_core.levels import Level, steps_of
from ddpm_core.samplers.tables import Sampler, table, terms
from ddpm_core.schedules import Schedule
from ddpm_core.typing import Array


def half_log_snr_steps(levels: Level) -> Array:
    """(n,), the papers' h: the rise of λ = log(α / σ), half of our log-SNR, in each step.

    inf from alpha = 0; 0 into clean data, where `table` replaces the row, so that equations in h
    stay finite.
    """
    return np.where(levels.sigma[1:] > 0, np.diff(levels.logsnr) / 2, 0.0)


def over_previous(h: Array) -> Array:
    """h / h_prev of each step; 0 where no step at a finite distance comes before."""
    before = np.append(np.inf, h[:-1])
    there = np.isfinite(before)
    return np.where(there, h, 0.0) / np.where(there, before, 1.0)


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
    lead: (n,); where two readings are combined, (h / 2) lead replaces the first moment, from which
        it differs by O(h³): DPM-Solver's and UniPC's form. None takes the moment itself

    Where h is inf, at alpha = 0, the newest reading alone counts.
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


def weighted(weights: Array, m: Sequence[Array]) -> Array:
    """Σ_j w_j m_j, in `terms`.

    weights: (n, k)
    m: the readings' unit vectors, k or more of them
    """
    return sum(w * m_j for w, m_j in zip(weights.T, m, strict=False))


def integral_dk(
    levels: Level, f: Callable[[Array, Array], Array], kinks: Sequence[float] = ()
) -> Array:
    """∫ f dk over each step, k = σ / α, by Gauss-Legendre in log-SNR: (n,).

    f: (log-SNR (p, points), number of the step (p, 1)) -> (p, points), p the number of pieces
    kinks: log-SNRs at which f is continuous but not smooth: steps are cut into pieces there

    0 for the step into clean data, whose row needs no integral.
    """
    ends = np.array(levels.logsnr)
    if levels.sigma[-1] == 0:
        ends[-1] = ends[-2]
    inside = np.asarray(kinks, dtype=np.float64)
    inside = inside[(inside > ends[0]) & (inside < ends[-1])]
    cuts = np.append(np.union1d(ends[:-1], inside), ends[-1])
    step = np.searchsorted(ends[:-1], cuts[:-1], side="right") - 1
    # Enough for rounding: of pieces, which are short, and of whole steps.
    node, weight = np.polynomial.legendre.leggauss(16 if len(kinks) else 32)
    half = np.diff(cuts)[:, None] / 2
    logsnr = cuts[:-1, None] + half * (1 + node)
    dk = half * weight * -0.5 * np.exp(-logsnr / 2)
    pieces = (dk * f(logsnr, step[:, None])).sum(axis=1)
    return np.bincount(step, pieces, minlength=len(ends) - 1)


def scale_sde(levels: Level, stochasticity: Array | float) -> tuple[Array, Array]:
    """What multiplies x_t and z in a step of the SDE with τ times the noise of the reverse SDE.

    x_s = (σ_s / σ_t) e^{-τ² h} x_t + (readings) + σ_s sqrt(1 - e^{-2 τ² h}) z

    τ = 0 is the probability flow, τ = 1 the reverse SDE (Xue et al. 2023, SA-Solver).
    """
    t, s = steps_of(levels)
    added = np.square(stochasticity)
    run = added * np.where(added == 0, 0.0, half_log_snr_steps(levels))  # 0 inf is nan
    return s.sigma / t.sigma * np.exp(-run), s.sigma * np.sqrt(-np.expm1(-2 * run))


def reads_eps(name: str, levels: Level) -> tuple[Array, Array]:
    """The reading (u, v) of eps = (x_t - α x_0) / σ at each row.

    ValueError at alpha = 0, where x_t is eps and its prediction says nothing of x_0.
    """
    t = levels.take(slice(None, -1))
    if not np.all(t.alpha > 0):
        raise ValueError(
            f"{name} works in x / alpha, but alpha = 0 at the first level; use ddim, ancestral or "
            f"a solver of the dpmpp family, or start at a later time"
        )
    return 1 / t.sigma, -t.alpha / t.sigma


def between(schedule: Schedule, levels: Level, share: float) -> Level:
    """The level at a share of each step in log-SNR; the step's end where the step is infinite."""
    t, s = steps_of(levels)
    whole = np.isfinite(s.logsnr - t.logsnr)
    rise = np.where(whole, 2 * share * half_log_snr_steps(levels), 0.0)
    inside = schedule.at(t.logsnr + rise)
    return Level(*(np.where(whole, *pair) for pair in zip(inside, s, strict=True)))


def staged(
    name: str, looks: Sequence[Level], end: Level, stages: Sequence[Array], *, eps: bool
) -> Sampler:
    """The table of steps with several network calls, each a row; the anchor is where a step began.

    looks: of each stage, the levels (n,) at which it calls the network
    end: (n,), where the steps end
    stages: of each stage, its equation in `terms`, (K + 3, n)
    eps: whether eps is read, and not x_0

    A step of infinite log-SNR has its first stage alone.
    """
    whole = np.isfinite(end.logsnr - looks[0].logsnr)
    first = np.arange(len(stages)) == 0
    keep = first | whole[:, None]

    def rows(columns: list[Array]) -> Array:
        return np.stack(columns, axis=-1)[..., keep]

    parts = (end.take(slice(-1, None)), *looks)
    levels = Level(*(np.append(rows(each), last) for last, *each in zip(*parts, strict=True)))
    x, anchor, *_ = terms(len(stages[0]) - 3)
    begins: Array = np.broadcast_to(first, keep.shape)[keep]
    read = reads_eps(name, levels) if eps else None
    start = x * begins + anchor * ~begins
    return table(name, levels, rows(list(stages)), anchor=start, read=read)
