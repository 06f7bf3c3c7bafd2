"""Orders of convergence against an ODE solver of SciPy, and laws of samplers that are points."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ddpm_core as ddpm

# Data and schedule on which published solvers of order 1, 2 and 3 show their orders.
DATA = ddpm.MixtureOracle([0.3, 0.7], [[-1.0], [0.5]], [0.09, 0.16])
SCHEDULE = ddpm.VP(0.1, 20.0)
START, END = SCHEDULE(1.0), SCHEDULE(1e-3)
X = np.linspace(-2, 2, 9)[:, None]


@cache
def reference() -> np.ndarray:
    """The probability flow from START to END, in log-SNR, by DOP853.

    With x = α u and k = σ / α, eps = (x - α x_0) / σ is du/dk (Song et al. 2021, DDIM, Eq. 14); in
    log-SNR λ, k = exp(-λ / 2).
    """

    def slope(logsnr: float, u: np.ndarray) -> np.ndarray:
        t = SCHEDULE.at(min(max(logsnr, START.logsnr), END.logsnr))
        k = np.exp(-logsnr / 2)
        x_0 = DATA(t.alpha * u[:, None], t)[:, 0]
        return (u - x_0) / k * (-k / 2)

    span = (START.logsnr, END.logsnr)
    start = X[:, 0] / START.alpha
    found = solve_ivp(slope, span, start, method="DOP853", rtol=1e-13, atol=1e-13)
    return END.alpha * found.y[:, -1:]


def error(solver, steps: int) -> float:
    logsnr = np.linspace(START.logsnr, END.logsnr, steps + 1)
    times = SCHEDULE.at(logsnr).time
    times[0] = 1.0  # the inverse may round past the end of the schedule
    found = ddpm.sample(DATA, solver(SCHEDULE, steps, times=times), X)
    return np.sqrt(((found - reference()) ** 2).mean())


@pytest.mark.parametrize(("solver", "order"), [(ddpm.ddim, 1), (ddpm.dpmpp_2m, 2)])
def test_order(solver, order):
    """Halving the step in log-SNR divides the error by 2^p (Lu et al. 2022, Theorem 4.1 for 2M)."""
    errors = [error(solver, steps) for steps in (40, 80, 160)]
    slopes = -np.diff(np.log2(errors))
    assert min(errors) > 1e-11  # above what the reference and rounding can tell
    # Not more than one order above either: that would be an error term which happens to vanish.
    assert np.all((order - 0.15 <= slopes) & (slopes <= order + 0.6)), slopes
    found = ddpm.convergence(solver)
    np.testing.assert_allclose(found.errors, errors, rtol=1e-6)
    np.testing.assert_allclose(found.slopes, slopes, atol=1e-6)


def test_convergence_from_near_alpha_0():
    """A schedule without data at its end is measured from 1e-3 before it."""
    seen = []

    def solver(schedule, steps, times):
        seen.append((times[0], times[-1]))
        return ddpm.ddim(schedule, steps, times=times)

    found = ddpm.convergence(solver, schedule=ddpm.zero_terminal_snr(ddpm.linear()))
    assert set(seen) == {(999.0, 1.0)}
    assert np.all(abs(found.slopes - 1) < 0.15)


def test_convergence_in_law():
    """The error of a solver with noise is the distance of its law from N(1, 1/4) at the end."""

    def solver(*args, **times):  # keeps neither the mean nor the variance
        sampler = ddpm.ancestral(*args, **times)
        return replace(sampler, point=1.01 * sampler.point)

    schedule = ddpm.VP()
    times = schedule.at(np.linspace(schedule(1.0).logsnr, schedule(1e-3).logsnr, 11)).time
    times[0], times[-1] = 1.0, 1e-3
    data = ddpm.GaussianOracle([1.0], 0.25)
    expected = ddpm.law(solver(schedule, 10, times=times), data, exact_start=True).w2
    found = ddpm.convergence(solver, (10, 20)).errors[0]
    assert found == pytest.approx(expected, rel=1e-9)


class Later:
    """A schedule whose times begin at 5."""

    def __init__(self, schedule):
        self.schedule, self.ends = schedule, tuple(5.0 + end for end in schedule.ends)

    def __call__(self, time):
        return self.shifted(self.schedule(time - 5.0))

    def at(self, logsnr):
        return self.shifted(self.schedule.at(logsnr))

    def shifted(self, t):
        return t._replace(time=5.0 + t.time)


def test_convergence_of_times_that_begin_late():
    """The grid's share of the times is one of their whole range."""
    expected = ddpm.convergence(ddpm.ddim, (5, 10))
    found = ddpm.convergence(ddpm.ddim, (5, 10), Later(ddpm.VP()))
    np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-9)


def test_a_point_is_no_law_of_spread_data():
    """KL(data | sampler) is inf, not NaN, where a sampler of spread data draws one point.

    Without signal at the start the only reading is the mean, whatever x_T is.
    """
    one_step = ddpm.ddim(ddpm.zero_terminal_snr(ddpm.linear()), 1)
    found = ddpm.law(one_step, ddpm.GaussianOracle([0.7, 0.0], [0.25, 0.0]))
    assert (found.mean.tolist(), found.variances.tolist()) == ([0.7, 0.0], [0.0, 0.0])
    assert (found.kl, found.w2) == (np.inf, 0.5)


def test_a_spread_law_of_a_point():
    """KL(data | sampler) is inf where the data is a point and the sampler adds noise to it."""
    good = ddpm.ancestral(ddpm.linear(), 3).unroll()
    z = good.z.copy()
    z[-1, -1] = 0.5
    found = ddpm.law(replace(good, z=z), ddpm.GaussianOracle([0.7], 0.0))
    assert found.variances[0] == pytest.approx(0.25, rel=1e-12)
    assert found.kl == np.inf
