"""BDIA: the paper's formula, its order, and the way back."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_paths import EPS, LINEAR, X, check_same, curved, few, lost, paths

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.models import bundled
from ddpm_core.samplers import decode, encode
from ddpm_core.samplers.registry import ENTRIES

GAMMA = st.floats(0.3, 1.0)
noisy = paths(clean=[False])


@few
@given(path=noisy, gamma=GAMMA)
def test_table_is_the_papers(path, gamma):
    """z_{i-1} = z_{i+1} - (1 - γ) (z_{i+1} - z_i) - γ Δ(i -> i+1) + Δ(i -> i-1), Zhang et al. 2023.

    Δ(i -> j) is what a DDIM step from z_i to the time j adds.
    """
    a, s, z = path.a, path.s, []

    def added(i, j, eps):
        return a[j] * (z[i] - s[i] * eps) / a[i] + s[j] * eps - z[i]

    def step(i, z_i, eps, _):
        z[i:] = [z_i]
        if i == 0:
            return z_i + added(0, 1, eps)
        past = z[i - 1]
        to_z_i = -(1 - gamma) * (past - z_i) - gamma * added(i, i - 1, eps)
        return past + to_z_i + added(i, i + 1, eps)

    sampler = path.build(samplers.bdia, gamma=gamma)
    wanted = samplers.from_step(step, sampler.levels, ddpm.eps)
    np.testing.assert_array_equal(sampler.point[0], path.build(ddpm.ddim).point[0])
    # x_0 from eps divides by α.
    check_same(sampler.unroll(), wanted, 2**8 * lost(sampler) / path.a[0])


@pytest.mark.parametrize("gamma", [0.9, 0.5, 0.1])
def test_error_by_gamma(gamma):
    """A share (1 - γ) / (1 + γ) of DDIM's is left, which is of order 1; at γ = 1 nothing of it.

    The step's own error, (1 - γ) times DDIM's, is divided by the sum 1 + γ of the weights.
    """
    ours = ddpm.convergence(partial(samplers.bdia, gamma=gamma), (320, 640))
    share = ours.errors / ddpm.convergence(ddpm.ddim, (320, 640)).errors
    wanted = (1 - gamma) / (1 + gamma)
    assert share[1] == pytest.approx(wanted, rel=0.03)
    assert abs(ours.slopes[0] - 1) < 0.1


@pytest.mark.parametrize("entry", [each for each in ENTRIES if not each.from_noise])
def test_order_of_inversion(entry):
    """Against the flow of N(1, 1/4), whose marginals it keeps: order 2, where DDIM has 1."""
    schedule, errors = ddpm.VP(), []
    for n in (80, 160, 320):
        logsnr = np.linspace(schedule(1e-3).logsnr, schedule(1.0).logsnr, n + 1)
        times = np.minimum(schedule.at(logsnr).time, 1.0)
        sampler = entry.solver(schedule, n, times=times)
        found = ddpm.law(sampler, ddpm.GaussianOracle([1.0], 0.25), exact_start=True)
        errors.append(found.w2)
    assert np.all(abs(np.diff(np.log2(errors)) + entry.order) < 0.15)


@few
@given(path=noisy, gamma=GAMMA, x=X)
def test_there_and_back(path, gamma, x):
    """`decode` returns what was encoded, from either end; on its way it is the other's table."""
    for sampler, other, times in (
        (samplers.bdia_inversion, samplers.bdia, path.times[::-1]),
        (samplers.bdia, samplers.bdia_inversion, path.times),
    ):
        there = sampler(path.schedule, path.n, gamma, times=times)
        back = other(path.schedule, path.n, gamma, times=times[::-1])
        state = encode(curved, there, x)
        assert len(state.memory) == 0
        np.testing.assert_array_equal(state.point, ddpm.sample(curved, there, x))
        found = decode(curved, there, state)
        turned = samplers.State(state.anchor, state.point, ())
        for row in back.rows()[1:]:
            turned = ddpm.advance(row, turned, curved(turned.point, row.level))
        # Each of at most 7 rows multiplies roundings by its coefficients.
        size = np.abs(there.point).sum(axis=1).prod() * np.abs(back.point).sum(axis=1).prod()
        atol = 64 * EPS * size * (1 + np.abs(x).max())
        np.testing.assert_allclose(found, x, rtol=0, atol=atol)
        np.testing.assert_allclose(turned.point, found, rtol=0, atol=atol)


@pytest.mark.parametrize("n", [1, 2, 10, 200])
def test_many_steps_there_and_back(n):
    """At γ = 1 roundings do not grow, and the code is as wide as noise, while DDIM comes back off.

    The mixture's two modes have a spread of 0.2.
    """
    denoise = ddpm.MixtureOracle([0.3, 0.7], [[-1.0, 0.2], [0.5, -0.4]], 0.04)
    x = denoise.means[0] + 0.2 * np.random.default_rng(0).standard_normal((64, 2))
    sampler = samplers.bdia_inversion(LINEAR, n)
    state = encode(denoise, sampler, x)
    assert np.abs(state.point).max() < 5
    np.testing.assert_allclose(decode(denoise, sampler, state), x, rtol=0, atol=64 * EPS * (1 + n))
    code = ddpm.sample(denoise, samplers.ddim_inversion(LINEAR, n), x)
    other = ddpm.sample(denoise, ddpm.ddim(LINEAR, n, times=sampler.levels.time[::-1]), code)
    assert np.abs(other - x).max() > 1e-3


@pytest.mark.slow
def test_there_and_back_through_a_network():
    """Through the bundled network, from any picture; in another class another one comes back."""
    checkpoint = ddpm.load(bundled()["fashion-mnist"])
    denoise = checkpoint.predictor(ddpm.backend("numpy").network)
    x = np.tanh(np.random.default_rng(0).standard_normal((2, 1, 28, 28)))
    y, other = np.array([1, 8]), np.array([8, 1])
    sampler = samplers.bdia_inversion(checkpoint.schedule, 8)
    state = encode(denoise, sampler, x, y=y)
    np.testing.assert_allclose(decode(denoise, sampler, state, y=y), x, rtol=0, atol=1e-12)
    assert np.abs(decode(denoise, sampler, state, y=other) - x).max() > 0.1
    z = ddpm.sample(denoise, samplers.ddim_inversion(checkpoint.schedule, 8), x, y=y)
    times = sampler.levels.time[::-1]
    first_order = ddpm.ddim(checkpoint.schedule, 8, times=times)
    assert np.abs(ddpm.sample(denoise, first_order, z, y=y) - x).max() > 0.1


@pytest.mark.parametrize("gamma", [0.0, -0.5, 1.01, np.nan])
@pytest.mark.parametrize("solver", [samplers.bdia, samplers.bdia_inversion])
def test_gamma(solver, gamma):
    with pytest.raises(ValueError, match=rf"gamma must lie within \(0, 1\], but is {gamma}"):
        solver(LINEAR, 5, gamma)


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.bdia(LINEAR, 4),
        ddpm.ddim(LINEAR, 4),
        ddpm.unipc_2(LINEAR, 4, times=[1000, 750, 500, 250, 100]),
        ddpm.heun(LINEAR, 4, times=[1000, 750, 500, 300, 250]),
    ],
)
def test_no_way_back(sampler):
    """A row that forgets the point before cannot be taken back."""
    state = samplers.State(np.zeros((1, 2)), np.zeros((1, 2)), ())
    with pytest.raises(ValueError, match=f"{sampler.name} at time 250 cannot be taken back: use"):
        decode(curved, sampler, state)


def test_inversion_starts_with_noise():
    with pytest.raises(ValueError, match="bdia_inversion cannot start at clean data"):
        samplers.bdia_inversion(LINEAR, 2, times=[0, 500, 1000])
