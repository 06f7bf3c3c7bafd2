"""Every solver against its paper's own form, and solvers that are one against each other."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_papers import (
    PAPERS,
    euler,
    karras_1,
    kdiffusion_ancestral,
    kdiffusion_midpoint,
    lu_multistep,
    lu_multistep_eps,
    lu_sde,
    lu_single_2,
    song_ddim,
    xu_restart,
    xue_sa,
    zhang_tab,
    zhao_unipc,
)
from solver_paths import (
    EPS,
    LINEAR,
    OFF,
    SEED,
    Path,
    X,
    check_same,
    curved,
    draws,
    few,
    lost,
    noise_of,
    paths,
)

import ddpm_core as ddpm
from ddpm_core import grids, samplers
from ddpm_core.levels import Level

DEIS = (ddpm.ddim, samplers.deis_2, samplers.deis_3)


def check_paper(solver, paper, options, g, x, seed):
    sampler, noise = g.build(solver, **options), draws(seed)
    expected = paper(curved, g, x, noise, **({} if paper is karras_1 else options))
    found = ddpm.sample(curved, sampler, x, noise)
    np.testing.assert_allclose(found, expected, rtol=0, atol=OFF * lost(sampler))


@pytest.mark.parametrize("case", PAPERS, ids=[case[0] for case in PAPERS])
@few
@given(path=paths(), x=X, seed=SEED)
def test_paper(case, path, x, seed):
    """The table does what the paper's equations say, with a nonlinear denoiser."""
    check_paper(*case[1:], path, x, seed)


@pytest.mark.parametrize(("order", "solver"), list(enumerate(DEIS, 1)))
@few
@given(path=paths(st.builds(ddpm.VP, st.floats(0.05, 1), st.floats(5, 25))), x=X)
def test_deis_is_tab(order, solver, path, x):
    """Its polynomials are in time; over VP dk / dt has a closed form."""
    check_paper(solver, partial(zhang_tab, order=order), {}, path, x, 0)


@pytest.mark.parametrize("T", [20, 1000])
@pytest.mark.parametrize("end", [[], [0.0]], ids=["noisy", "clean"])
@pytest.mark.parametrize(("order", "solver"), list(enumerate(DEIS, 1))[1:])
def test_deis_on_discrete_schedules(order, solver, end, T):
    """Its integral is exact where log ᾱ has kinks within a step, from and to fractional times."""
    schedule = ddpm.cosine(T)
    path = Path(schedule, np.append(schedule.T * np.array([0.99, 0.731, 0.52, 0.218, 0.1]), end))
    sampler = path.build(solver)
    found = probed(zhang_tab, path, sampler.nfe, order=order)
    check_same(found, sampler.unroll(), 64 * OFF * lost(sampler))


@pytest.mark.parametrize(("order", "solver"), list(enumerate(DEIS, 1))[1:])
def test_deis_over_a_long_step(order, solver):
    """Its integral is exact over most of a schedule, too."""
    path = Path(ddpm.VP(), np.array([1.0, 0.9, 1e-3]))
    sampler = path.build(solver)
    check_same(probed(zhang_tab, path, 2, order=order), sampler.unroll(), OFF * lost(sampler))


@few
@given(path=paths(), x=X, seed=SEED, repeats=st.integers(0, 2), data=st.data())
def test_restart_interval(path, x, seed, repeats, data):
    """Any interval of the grid, any number of times."""
    j = data.draw(st.integers(1, path.n - 1))
    options = {"repeats": repeats, "interval": (data.draw(st.integers(0, j - 1)), j)}
    check_paper(samplers.restart, xu_restart, options, path, x, seed)


@few
@given(path=paths(), data=st.data(), x=X, seed=SEED)
def test_sa_solver_noise_per_step(path, data, x, seed):
    """τ is a function of time in the paper, constant over a step in its examples."""
    noise = data.draw(
        st.lists(st.just(0.0) | st.floats(0.01, 1.5), min_size=path.n, max_size=path.n)
    )
    check_paper(samplers.sa_solver, xue_sa, {"stochasticity": noise}, path, x, seed)


@few
@given(path=paths(clean=[False]), x=X)
def test_ddim_inversion(path, x):
    """x_s = α_s x_0 + σ_s eps, s the noisier (Song et al. 2021, section 4.3)."""
    rising = path.times[::-1]
    sampler, expected = samplers.ddim_inversion(path.schedule, path.n, times=rising), x
    for i in reversed(range(path.n)):
        t, s = path.t[i + 1], path.t[i]
        x_0, e = curved(expected, t), noise_of(curved)(expected, t)
        expected = s.alpha * x_0 + s.sigma * e
    found = ddpm.sample(curved, sampler, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=OFF * lost(sampler))
    np.testing.assert_array_equal(sampler.levels.time, rising)


@few
@given(path=paths(clean=[False]), x=X, m=st.floats(-2, 2), log_c=st.floats(-6, 6))
def test_encoding_and_decoding(path, x, m, log_c):
    """Of N(m, c), both ways multiply x - α m by Π cos²(φ_s - φ_t), φ = atan2(σ, α sqrt(c))."""
    oracle = ddpm.GaussianOracle(np.full(2, m), math.exp(log_c))
    phi = np.arctan2(path.s, path.a * math.exp(log_c / 2))
    there = samplers.ddim_inversion(path.schedule, path.n, times=path.times[::-1])
    code = ddpm.sample(oracle, there, x)
    found = ddpm.sample(oracle, path.build(ddpm.ddim), code)
    expected = path.a[-1] * m + np.prod(np.cos(np.diff(phi)) ** 2) * (x - path.a[-1] * m)
    # A Gaussian's reading has slopes within [0, α c / V], not above 1 / 2 σ sqrt(V).
    size = (1 + np.abs(code).max() + abs(m)) / path.s.min()
    np.testing.assert_allclose(found, expected, rtol=0, atol=64 * EPS * path.n * size)


def test_ddim_inversion_grids():
    """By default the times of the grid but the clean one; nothing is read at clean data."""
    for grid in (ddpm.grids.trailing, ddpm.grids.linspace, ddpm.grids.leading, grids.quad):
        sampler = samplers.ddim_inversion(LINEAR, 10, grid=grid)
        np.testing.assert_array_equal(sampler.levels.time, grid(LINEAR, 11)[10::-1])
        assert sampler.nfe == 10


def test_ddim_inversion_from_clean_data():
    """Nothing is read there: an error, and nothing before it."""
    with pytest.raises(ValueError, match="ddim_inversion cannot start at clean data, time 0"):
        samplers.ddim_inversion(LINEAR, 2, times=[0, 500, 1000])


def test_ddim_inversion_to_the_same_level():
    with pytest.raises(ValueError, match=r"times must rise, .* but are \[100. 500. 500.\]"):
        samplers.ddim_inversion(LINEAR, 2, times=[100, 500, 500])


def probed(paper, g, calls, **options) -> samplers.Unrolled:
    """The matrix of a paper's loop, found by basis vectors in place of x_T, readings and noises."""
    basis, points, levels = np.eye(1 + 2 * calls), [], []

    def denoise(x, t):
        points.append(x)
        levels.append(t)
        return basis[len(points)]

    points.append(paper(denoise, g, basis[0], lambda row, shape: basis[calls + row], **options))
    levels.append(g.t[-1])
    matrix = np.stack(points)
    levels = Level(*map(np.array, zip(*levels, strict=True)))
    return samplers.Unrolled(levels, matrix[:, 0], matrix[:, 1 : 1 + calls], matrix[:, 1 + calls :])


ALIASES = {
    "euler": (ddpm.ddim, euler, {}),
    "dpm_solver_1": (ddpm.ddim, lu_multistep_eps, {"order": 1}),
    "dpm++ 1": (ddpm.ddim, lu_multistep, {"order": 1}),
    "euler_ancestral": (ddpm.ancestral, kdiffusion_ancestral, {}),
    "sde_dpmpp_1": (ddpm.ancestral, lu_sde, {"order": 1}),
    "ddim eta=1": (ddpm.ancestral, song_ddim, {"eta": 1.0}),
    "midpoint": (samplers.dpm_solver_2, kdiffusion_midpoint, {}),
    "dpm_solver_2": (samplers.dpm_solver_2, lu_single_2, {}),
    "heun": (ddpm.heun, karras_1, {}),
    "unipc_2": (ddpm.dpmpp_2m, zhao_unipc, {"order": 2, "corrector": False, "b": "bh2"}),
}


@pytest.mark.parametrize("case", ALIASES.values(), ids=ALIASES)
@few
@given(path=paths())
def test_alias_is_its_own_formula(case, path):
    """The matrix of another name's loop is the table's, unrolled."""
    solver, paper, options = case
    sampler = path.build(solver)
    check_same(probed(paper, path, sampler.nfe, **options), sampler.unroll(), OFF * lost(sampler))


@few
@given(path=paths(st.builds(ddpm.VP)))
def test_deis_1_is_ddim(path):
    sampler = path.build(ddpm.ddim)
    found = probed(zhang_tab, path, sampler.nfe, order=1)
    check_same(found, sampler.unroll(), OFF * lost(sampler))


EQUAL = {
    "unip_1": (partial(samplers.unipc_1, corrector=False), ddpm.ddim),
    "unip_2": (partial(ddpm.unipc_2, corrector=False), ddpm.dpmpp_2m),
    "unip_3": (partial(samplers.unipc_3, corrector=False), samplers.dpmpp_3m),
    "no churn": (partial(samplers.edm_stochastic, churn=0), ddpm.heun),
    "no restart": (partial(samplers.restart, repeats=0), ddpm.heun),
    "no churn there": (partial(samplers.edm_stochastic, s_min=1e9), ddpm.heun),
    "sa 0": (partial(samplers.sa_solver, stochasticity=0, predictor=1, corrector=0), ddpm.ddim),
    "sa 1": (
        partial(samplers.sa_solver, stochasticity=1, predictor=1, corrector=0),
        ddpm.ancestral,
    ),
    "er k": (partial(samplers.er_sde, order=1, phi=lambda k: k), ddpm.ddim),
    "er k^2": (partial(samplers.er_sde, order=1, phi=lambda k: k**2), ddpm.ancestral),
    "lms 1": (partial(samplers.lms, order=1), ddpm.ddim),
    "ipndm 1": (partial(samplers.ipndm, order=1), ddpm.ddim),
    "eta 0": (partial(ddpm.ddim, eta=0.0), ddpm.ddim),
    "eta 1": (partial(ddpm.ddim, eta=1.0), ddpm.ancestral),
}


@pytest.mark.parametrize("pair", EQUAL.values(), ids=EQUAL)
@few
@given(path=paths())
def test_equal(pair, path):
    """Two solvers that are one, by their matrices: the columns of their tables may differ."""
    one, other = (path.build(solver) for solver in pair)
    check_same(one.unroll(), other.unroll(), OFF * (lost(one) + lost(other)))


@few
@given(path=paths(clean=[False]))
def test_sa_solver_is_sde_dpmpp_3m(path):
    """With τ = 1 and no corrector, but in the second row: SDE-DPM-Solver++(2M)'s 1/2 there."""
    sa = path.build(samplers.sa_solver, stochasticity=1.0, predictor=3, corrector=0)
    sde, lost_ = path.build(samplers.sde_dpmpp_3m), OFF * max(lost(sa), EPS)
    others = np.arange(path.n) != 1
    np.testing.assert_allclose(sa.point[others], sde.point[others], rtol=0, atol=lost_)
    h = np.diff(path.lam)[:2]
    all_of_it = -math.expm1(-2 * h[1])
    moments = {"sa": h[1] - all_of_it / 2, "sde": h[1] / 2 * all_of_it}
    for sampler, moment in ((sa, moments["sa"]), (sde, moments["sde"])):
        m_0, m_1 = sampler.point[1, 2:4] / path.a[2]
        assert m_1 == pytest.approx(-moment / h[0], rel=OFF * EPS / h[1])
        assert m_0 == pytest.approx(all_of_it + moment / h[0], rel=OFF * EPS)
