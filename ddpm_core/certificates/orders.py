"""How fast solvers converge, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np

from ddpm_core.arrays import check_function
from ddpm_core.certificates.laws import law
from ddpm_core.levels import Level
from ddpm_core.likelihood.ode import State, dop853
from ddpm_core.oracles import GaussianOracle, MixtureOracle
from ddpm_core.samplers import Sampler, Unrolled, sample
from ddpm_core.schedules import VP, Schedule
from ddpm_core.typing import Array

#: (schedule, steps, times=...) -> a sampler
Solver: TypeAlias = Callable[..., Sampler | Unrolled]


class Convergence(NamedTuple):
    """How the error of a solver falls with its steps.

    steps: (N,)
    errors: (N,), from the end of the probability flow, or in law where the solver draws noise
    slopes: (N - 1,), -Δ log error / Δ log steps: the order, as the steps grow
    """

    steps: Array
    errors: Array
    slopes: Array


def convergence(
    solver: Solver, steps: Sequence[int] = (40, 80, 160), schedule: Schedule | None = None
) -> Convergence:
    """The measured order of convergence of a solver; `scipy` is needed.

    Measured in float64 on grids that are even in log-SNR, from the schedule's noisiest time down to
    1e-3 of it, so that no step lands on clean data. Where alpha = 0 at the noisiest time, they
    start 1e-3 of it below. A solver without noise is compared with the
    probability flow of a mixture of two normals, solved by DOP853; the error is the RMS over nine
    starts. One with noise is compared in the weak sense, for data N(1, 1/4): it starts from the
    exact q(x_t), and the error is the Wasserstein-2 distance of its `law` from q(x_t) at the end.

    solver: (schedule, steps, times=) -> Sampler or Unrolled
    schedule: `VP()` by default

    >>> from ddpm_core import dpmpp_2m
    >>> convergence(dpmpp_2m).slopes.round(1)
    array([2., 2.])
    """
    check_function("ddim", solver=solver)
    schedule = VP() if schedule is None else schedule
    clean, noisiest = schedule.ends
    share = 1e-3 * (noisiest - clean)
    first, last = schedule(noisiest), schedule(clean + share)
    if first.alpha == 0:
        first = schedule(noisiest - share)
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
    found = _end(sampler, _MIXTURE, _STARTS)
    return float(np.sqrt(((found - _end_of_flow(schedule, first, last)) ** 2).mean()))


def _end(sampler: Sampler | Unrolled, denoise: MixtureOracle, x: Array) -> Array:
    """Where a sampler without noise takes x."""
    if isinstance(sampler, Sampler):
        return sample(denoise, sampler, x)
    readings = np.zeros((sampler.nfe, *x.shape))
    for i in range(sampler.nfe):
        t = sampler.levels.take(i)
        readings[i] = denoise(sampler.x[i] * x + np.tensordot(sampler.y[i], readings, 1), t)
    return sampler.x[-1] * x + np.tensordot(sampler.y[-1], readings, 1)


@lru_cache(maxsize=4)
def _end_of_flow(schedule: Schedule, first: Level, last: Level) -> Array:
    """Where the probability flow of the mixture takes the starts.

    It is the flow of `likelihood.flow_log_prob`, from noise to data: dx/dr = α (x_0 - α x), with r
    half the log-SNR.
    """

    def slope(r: float, state: State) -> State:
        (x,), t = state, schedule.at(2 * r)
        return (t.alpha * (_MIXTURE(x, t) - t.alpha * x),)

    (x,) = dop853(1e-13, 1e-13)(slope, first.logsnr / 2, last.logsnr / 2, (_STARTS,))
    return x
