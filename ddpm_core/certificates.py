"""Certificates of samplers: what they draw, exactly, and how fast they converge.

Both take a `Sampler`, or a foreign solver as an `Unrolled`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.likelihood import dop853
from ddpm_core.oracles import GaussianOracle, MixtureOracle
from ddpm_core.samplers import Sampler, Unrolled, sample
from ddpm_core.schedules import VP, Schedule
from ddpm_core.typing import Array

#: (schedule, steps, times=...) -> a sampler
Solver: TypeAlias = Callable[..., Sampler | Unrolled]


class Law(NamedTuple):
    """The normal distribution that a sampler draws from, and how far it is from the data's.

    mean: (*D)
    variances: (D,), along the directions of the oracle's basis, or its coordinates
    cov: the covariance, (D, D)
    kl: KL(data | sampler) in nats, data standing for q(x) at the level where the sampler ends
    w2: the Wasserstein-2 distance between them
    """

    mean: Array
    variances: Array
    cov: Array
    kl: float
    w2: float


def law(sampler: Sampler | Unrolled, oracle: GaussianOracle, *, exact_start: bool = False) -> Law:
    """What a sampler with the exact denoiser of N(m, C) draws: exactly, without drawing.

    Every row is affine in x_T and the noises, and along the eigenvectors of C it is so for each
    coordinate alone.

    exact_start: x_T is a draw of q(x_T) and not of N(0, I)

    >>> from ddpm_core import ddim, linear
    >>> round(float(law(ddim(linear(), 10), GaussianOracle([0.0], 0.25)).variances[0]), 6)
    0.136867
    """
    table = sampler.unroll() if isinstance(sampler, Sampler) else sampler
    levels, n, c = table.levels, table.nfe, oracle.variances[:, None]
    m = oracle.mean.reshape(-1)
    m = m if oracle.basis is None else m @ oracle.basis
    looks = levels.take(slice(None, -1))
    # The reading is m + gain (x_t - α m); the end is Σ_j on_y_j reading_j + (its own x and z).
    gain = looks.alpha * c / (looks.alpha**2 * c + looks.sigma**2)  # (D, n)
    on_y = np.broadcast_to(table.y[n], gain.shape).copy()
    for j in reversed(range(n)):
        on_y[:, j] += (on_y * gain)[:, j + 1 :] @ table.y[j + 1 : n, j]
    on_point = on_y * gain
    on_x = table.x[n] + on_point @ table.x[:n]
    on_z = table.z[n] + on_point @ table.z[:n]
    mean = m * (on_y * (1 - gain * looks.alpha)).sum(axis=1)
    var = (on_z**2).sum(axis=1)
    first, last = levels.take(0), levels.take(n)
    if exact_start:
        mean, var = mean + on_x * first.alpha * m, var + on_x**2 * _marginal(first, oracle)
    else:
        var = var + on_x**2
    return _compared(mean, var, last.alpha * m, _marginal(last, oracle), oracle)


def _marginal(t: Level, oracle: GaussianOracle) -> Array:
    return t.alpha**2 * oracle.variances + t.sigma**2


def _compared(mean: Array, var: Array, data: Array, data_var: Array, oracle: Any) -> Law:
    off = (mean - data) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = data_var / var
        each = 0.5 * (ratio - 1 - np.log(ratio) + off / var)
    # Two point masses: at one place, or apart.
    each = np.where((var == 0) & (data_var == 0), np.where(off == 0, 0.0, np.inf), each)
    w2 = np.sqrt((off + (np.sqrt(var) - np.sqrt(data_var)) ** 2).sum())
    basis = np.eye(len(var)) if oracle.basis is None else oracle.basis
    place = (basis @ mean).reshape(oracle.mean.shape)
    return Law(place, var, (basis * var) @ basis.T, float(each.sum()), float(w2))


class Convergence(NamedTuple):
    """How the error of a solver falls with its steps.

    steps: (N,)
    errors: (N,), of the probability flow's solution, or of the law where the solver takes noise
    slopes: (N - 1,), -Δ log error / Δ log steps: the order, as the steps grow
    """

    steps: Array
    errors: Array
    slopes: Array


def convergence(
    solver: Solver, steps: Sequence[int] = (40, 80, 160), schedule: Schedule | None = None
) -> Convergence:
    """The measured order of convergence of a solver; `scipy` is needed.

    On even grids in log-SNR, from the schedule's noisiest time down to 1e-3 of it, where noise is
    left, in float64. Without noise: the RMS error against the probability flow of a mixture of two
    normals, by DOP853. With noise: in the weak sense, the Wasserstein-2 distance of its `law` from
    the marginal of N(1, 1/4), started at the exact one.

    solver: (schedule, steps, times=) -> Sampler or Unrolled
    schedule: `VP()` by default; its noisiest level must have data, alpha > 0

    >>> from ddpm_core import dpmpp_2m
    >>> convergence(dpmpp_2m).slopes.round(1)
    array([2., 2.])
    """
    schedule = VP() if schedule is None else schedule
    clean, noisiest = schedule.ends
    first, last = schedule(noisiest), schedule(clean + 1e-3 * (noisiest - clean))
    errors: list[float] = []
    for n in steps:
        times = np.array(schedule.at(np.linspace(first.logsnr, last.logsnr, n + 1)).time)
        times[0], times[-1] = first.time, last.time
        errors.append(_error(solver(schedule, n, times=times), schedule, first, last))
    slopes = -np.diff(np.log(errors)) / np.diff(np.log(list(steps)))
    return Convergence(np.asarray(list(steps)), np.asarray(errors), slopes)


_MIXTURE = MixtureOracle([0.3, 0.7], [[-1.0], [0.5]], [0.09, 0.16])
_NORMAL = GaussianOracle([1.0], 0.25)
_STARTS: Array = np.linspace(-2, 2, 9)[:, None]


def _error(sampler: Sampler | Unrolled, schedule: Schedule, first: Level, last: Level) -> float:
    if sampler.stochastic:
        return law(sampler, _NORMAL, exact_start=True).w2
    found = _ends(sampler, _MIXTURE, _STARTS)
    return float(np.sqrt(((found - _flow(schedule, first, last)) ** 2).mean()))


def _ends(sampler: Sampler | Unrolled, denoise: MixtureOracle, x: Array) -> Array:
    """Where a sampler without noise ends."""
    if isinstance(sampler, Sampler):
        return sample(denoise, sampler, x)
    readings = np.zeros((sampler.nfe, *x.shape))
    for i in range(sampler.nfe):
        t = sampler.levels.take(i)
        readings[i] = denoise(sampler.x[i] * x + np.tensordot(sampler.y[i], readings, 1), t)
    return sampler.x[-1] * x + np.tensordot(sampler.y[-1], readings, 1)


@lru_cache(maxsize=4)
def _flow(schedule: Schedule, first: Level, last: Level) -> Array:
    """Where the mixture's probability flow takes the starts (Song et al. 2021, DDIM, Eq. 14).

    With y = x / α and k = σ / α, dy / dk = eps; in half log-SNR, r = -log k, dy / dr = x_0 - y.
    """

    def rates(r: float, y: Array) -> tuple[Array, Array]:
        t = schedule.at(min(max(2 * r, first.logsnr), last.logsnr))
        return _MIXTURE(t.alpha * y, t) - y, np.zeros(len(y))

    y, _ = dop853(1e-13, 1e-13)(
        rates, first.logsnr / 2, last.logsnr / 2, np.asarray(_STARTS / first.alpha)
    )
    return last.alpha * y
