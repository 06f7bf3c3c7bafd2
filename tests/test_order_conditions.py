"""The order of every solver, proved from its table: see `order_conditions`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from formal import WITNESS, K, Series, exactly
from order_conditions import (
    ANY,
    BEFORE,
    BEFORE_IN_LAW,
    EVEN,
    Formal,
    offsets,
    proof,
    step,
    weak_order,
)
from solver_paths import EPS

import ddpm_core as ddpm
from ddpm_core import Level, samplers
from ddpm_core.levels import steps_of
from ddpm_core.samplers.multistep import half_log_snr_steps
from ddpm_core.samplers.registry import ENTRIES
from ddpm_core.samplers.tables import levels_of, table, terms

REGISTERED = {each.name: each for each in ENTRIES}
#: Solvers whose proof has an α of any λ.
OF_ANY_SCALE = ("bdia", "bdia_inversion")
#: Solvers with the coefficients of equal steps: order 1 where the steps before were of other sizes.
OF_EQUAL_STEPS = ("bdia", "bdia_inversion", "plms", "ipndm")
#: Powers of the step that the first steps leave: 2 for an Euler step, 3 for a trapezoid or Heun's.
STARTS = {name: 2 for name, before in (BEFORE | BEFORE_IN_LAW).items() if before}
STARTS |= dict.fromkeys(("unipc_1", "unipc_2", "unipc_3"), 3) | {"plms": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTERED)
def test_order_is_proved(name: str) -> None:
    """The step is of the registry's order, at any level, and of no higher one."""
    found = proof(name)
    assert found.even == REGISTERED[name].order
    assert found.arbitrary == (1 if name in OF_EQUAL_STEPS else REGISTERED[name].order)
    assert found.start == STARTS.get(name)
    assert found.weak == REGISTERED[name].takes_noise


def test_every_solver_has_a_proof() -> None:
    assert {*BEFORE, *BEFORE_IN_LAW, "restart", "edm_stochastic"} == set(REGISTERED)


def etd(on_m_1: float, *, mixed: bool = False) -> Any:
    """DPM-Solver++(2M) but for the share of m_0 - m_1 in D, or for its α."""

    def solver(schedule: Any, steps: int, *, times: Any) -> samplers.Sampler:
        levels = levels_of(schedule, steps, times=times)
        (t, s), h = steps_of(levels), half_log_snr_steps(levels)
        x_t, _, m_0, m_1, _ = terms(2)
        D = m_0 + on_m_1 * (m_0 - m_1)
        alpha = t.alpha if mixed else s.alpha
        reading = -alpha * (s.sigma / t.sigma * t.alpha / s.alpha - 1) * D
        return table("etd", levels, s.sigma / t.sigma * x_t + reading + 0 * h)

    return solver


@pytest.mark.slow
def test_wrong_coefficients_lose_an_order() -> None:
    """(m_0 - m_1) / 2 is right for even steps alone; none of it, or all of it, for no steps."""
    assert [step(etd(1 / 2), 1, ratios).corrected for ratios in (ANY, EVEN)] == [1, 2]
    assert step(etd(0.0), 1, EVEN).corrected == 1
    assert step(etd(1.0), 1, EVEN).corrected == 1


@pytest.mark.slow
def test_too_much_noise_has_no_order() -> None:
    """β in place of β̃ is of order 1 too, and twice the noise, or none, of order 0."""

    def of(share: float) -> Any:
        return lambda schedule, steps, times: samplers.ancestral(
            schedule, steps, lambda t, s: share * ddpm.small(t, s), times=times
        )

    assert [weak_order(of(share), 0, EVEN) for share in (1.0, 2.0)] == [1, 0]


def value(a: Any, scale: float) -> float:
    """A series at ε = scale and the numbers of WITNESS."""
    if not isinstance(a, Series):
        return float(a)
    at = list(zip(K.ring.gens, WITNESS, strict=True))
    numbers = [float(c.numer.evaluate(at)) / float(c.denom.evaluate(at)) for c in a.terms]
    return float(np.polynomial.polynomial.polyval(scale, numbers))


class OneIsAlpha:
    """Levels of α = 1 and σ = e^-λ, at time -λ + λ² / 2 + λ³ / 6, which falls for |λ| < 1."""

    def __init__(self, half: np.ndarray):
        self.half, self.times = half, -half + half**2 + half**3
        self.ends = self.times[-1], self.times[0]

    def at(self, logsnr: Any) -> Level:
        u = np.asarray(logsnr) / 2
        return Level(-u + u**2 + u**3, np.asarray(logsnr), np.ones_like(u), np.exp(-u))

    def __call__(self, times: Any) -> Level:
        return self.at(2 * self.half)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "unipc_2", "lms", "deis_3"])
def test_series_are_the_table(name: str) -> None:
    """The table of series, at a small ε, is the table of floats: one code on two kinds of numbers.

    What is left out is about (3 ε)^9; where the division of differences loses digits, ε^-3 EPS.
    """
    solver, scale = getattr(samplers, name), 1 / 256
    at = offsets(2, ANY)
    schedule = Formal(at)
    with exactly():
        series = solver(schedule, 3, times=schedule.times)
    floats = OneIsAlpha(np.array([value(u, scale) for u in at]))
    found = solver(floats, 3, times=floats.times)
    for a, b in ((series.point, found.point), (series.anchor, found.anchor)):
        numbers = np.vectorize(lambda x: value(x, scale), otypes=[float])(a)
        np.testing.assert_allclose(numbers, b, rtol=0, atol=EPS * scale**-3)


B = 1.7


class Scaled:
    """A schedule whose α and σ are multiplied by c(λ), and σ by B as well."""

    def __init__(self, schedule: Any):
        self.schedule, self.ends = schedule, schedule.ends

    def scaled(self, t: Level) -> Level:
        c, logsnr = scale_at(t.logsnr), t.logsnr - 2 * np.log(B)
        return Level(t.time, logsnr, c * t.alpha, B * c * t.sigma)

    def __call__(self, time: Any) -> Level:
        return self.scaled(self.schedule(time))

    def at(self, logsnr: Any) -> Level:
        return self.scaled(self.schedule.at(logsnr + 2 * np.log(B)))


def scale_at(logsnr: Any) -> Any:
    return np.exp(np.sin(np.asarray(logsnr)))


@pytest.mark.parametrize("name", [name for name in REGISTERED if name not in OF_ANY_SCALE])
def test_only_ratios_of_scales_matter(name: str) -> None:
    """Points are multiplied by c where α and σ are, and noise by B: α = σ = 1 is any level."""
    solver, schedule = REGISTERED[name].solver, ddpm.VP()
    if name == "er_sde":  # its φ is a function of σ / α itself
        solver = partial(solver, phi=lambda k: k**1.5)
    times = np.linspace(0.9, 0.05, 7)
    times = times if REGISTERED[name].from_noise else times[::-1]
    plain, scaled = (solver(each, 6, times=times).unroll() for each in (schedule, Scaled(schedule)))
    c = scale_at(plain.levels.logsnr)
    for a, b in (
        (scaled.x, plain.x * c / c[0]),
        (scaled.y, plain.y * c[:, None]),
        (scaled.z, plain.z * c[:, None] * B),
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=2**12 * EPS * np.abs(b).max())
