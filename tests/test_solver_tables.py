"""What the tables of all solvers have in common, at their edges too, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_paths import (
    COSINE,
    EPS,
    LINEAR,
    SEED,
    SOLVERS,
    X,
    check_marginals,
    check_same,
    curved,
    draws,
    excess,
    few,
    fewer,
    paths,
    solvers,
    uneven,
    variance_of,
)

import ddpm_core as ddpm
from ddpm_core import grids, samplers
from ddpm_core.samplers.registry import ENTRIES


@solvers
@fewer
@given(path=paths() | uneven())
def test_marginals_are_kept(solver, path):
    """A known x_0 keeps q(x_t | x_0), in the middle of a step too; `large` adds large - small."""
    large = solver is SOLVERS["ancestral large"]
    check_marginals(path.build(solver), excess(path, ddpm.large) if large else 0.0)


@few
@given(path=paths(), log_c=st.floats(-6, 6))
def test_excess_of_any_variance(path, log_c):
    """`ancestral` with the exact variance of N(0, c) spreads points by exactly what it adds."""
    exact = variance_of(math.exp(log_c))
    check_marginals(path.build(ddpm.ancestral, variance=exact), excess(path, exact))


@solvers
@fewer
@given(path=paths(clean=[True]) | uneven(), x=X, seed=SEED)
def test_row_into_clean_data(solver, path, x, seed):
    """It is x_0 as read, in each table: one point of data is hit exactly, from any start."""
    sampler, x_0 = path.build(solver), np.array([[0.3, -1.7]] * 3)
    assert sampler.levels.sigma[-1] == 0
    np.testing.assert_array_equal(sampler.read[-1], [0, 1])
    np.testing.assert_array_equal(np.flatnonzero(sampler.point[-1]), [2])
    assert sampler.point[-1, 2] == 1
    assert sampler.anchor[-1, -1] == 0
    found = ddpm.sample(lambda x_t, t: x_0, sampler, 100 * x, draws(seed))
    np.testing.assert_array_equal(found, x_0)


def calls(name: str, n: int, clean: bool) -> int:
    solver = name.split()[0]
    if solver == "plms":
        return n + (n > 1)
    if solver == "restart":  # the two steps before the last, or one of two
        return 2 * n - clean + 2 * min(2, n - 1) * (1 + ("twice" in name))
    each = ENTRY[solver].calls
    return each * n - (each - 1) * clean


@pytest.mark.parametrize("name", SOLVERS)
def test_number_of_calls(name):
    """As the registry and the docstrings say; the step into clean data makes one."""
    for n in range(2 if name.startswith("restart") else 1, 9):
        assert SOLVERS[name](LINEAR, n).nfe == calls(name, n, True)
        noisy = np.linspace(1000, 100, n + 1)
        assert SOLVERS[name](LINEAR, n, times=noisy).nfe == calls(name, n, False)


@solvers
def test_no_reading_is_kept_in_vain(solver):
    """Some row takes the earliest reading that a state has room for."""
    sampler = solver(LINEAR, 10)
    assert np.any(sampler.point[:, -2]) or np.any(sampler.anchor[:, -2])


ENTRY = {entry.name: entry for entry in ENTRIES}
#: Those that read eps, and one that works in x / α.
NEED_DATA = {n for n in SOLVERS if ENTRY[n.split()[0]].reads == "eps" or n.startswith("er_sde")}
GRIDS = (
    ddpm.grids.trailing,
    ddpm.grids.linspace,
    ddpm.grids.leading,
    grids.quad,
    ddpm.grids.karras,
    ddpm.grids.log_snr,
)


@solvers
def test_finite(solver):
    """Every number of steps, schedule and grid; nothing is divided by 0 on the way."""
    counts = dict.fromkeys(GRIDS, (1, 2, 3, 10, 50))
    restarts = "restart" in str(solver)  # which need two steps
    counts |= {ddpm.grids.trailing: (*range(1, 61), 1000), ddpm.grids.log_snr: (1, 2, 4, 25, 1000)}
    with np.errstate(all="raise", under="ignore"):
        for grid, numbers in counts.items():
            for schedule in (LINEAR, COSINE):
                for n in numbers[restarts:]:
                    sampler = solver(schedule, n, grid=grid)
                    for columns in (sampler.point, sampler.anchor, sampler.read):
                        assert np.isfinite(columns).all(), (grid.__name__, n)


ZERO = ddpm.zero_terminal_snr(LINEAR)


@pytest.mark.parametrize("name", sorted(NEED_DATA))
def test_eps_says_nothing_at_alpha_0(name):
    with pytest.raises(ValueError, match=rf"{name.split()[0]} works in x / alpha, but alpha = 0"):
        SOLVERS[name](ZERO, 10)


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - NEED_DATA))
def test_first_step_from_alpha_0(name):
    """Its h is infinite: x_s = α_s x_0 + σ_s (eps or z), and no later step looks back to it."""
    for n in (1, 2, 3, 10, 50, 1000):
        with np.errstate(all="raise", under="ignore"):
            sampler = SOLVERS[name](ZERO, n)
        for columns in (sampler.point, sampler.anchor, sampler.read):
            assert np.isfinite(columns).all()
        if n == 1000:
            continue
        u, (alpha, sigma) = sampler.unroll(), (sampler.levels.alpha, sampler.levels.sigma)
        if n > 1:
            assert u.y[1, 0] == pytest.approx(alpha[1], rel=4 * EPS)
            assert math.hypot(u.x[1], u.z[1, 0]) == pytest.approx(
                {"ancestral large": 1.0}.get(name, sigma[1]), rel=4 * EPS
            )
            if sampler.stochastic and name not in ("ddim eta=0.5", "ancestral large"):
                assert u.x[1] == 0
        if n > 2 and name != "dpmpp_2s":
            assert not np.any(sampler.point[1, 3:-1])
        if name != "ancestral large":
            check_marginals(sampler)


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - NEED_DATA - {"bdia"}))
def test_no_trace_of_a_step_from_alpha_0(name):
    """The rows after it are those of the solver that begins where it ends; bdia looks back."""
    sampler = SOLVERS[name](ZERO, 5)
    later = SOLVERS[name](ZERO, 4, times=[800, 600, 400, 200, 0])
    np.testing.assert_array_equal(sampler.point[1:], later.point)
    np.testing.assert_array_equal(sampler.anchor[1:], later.anchor)


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - NEED_DATA))
def test_smoke_samples_from_alpha_0(name):
    x = np.random.default_rng(0).standard_normal((4, 2))
    found = ddpm.sample(curved, SOLVERS[name](ZERO, 12), x, draws(0))
    assert np.abs(found).max() <= 1  # the last step is a reading


BAD = [
    (samplers.lms, {"order": 5}, "order must be 1, 2, 3 or 4, but is 5"),
    (samplers.lms, {"order": 0}, "order must be 1, 2, 3 or 4, but is 0"),
    (samplers.ipndm, {"order": 5}, "order must be 1, 2, 3 or 4, but is 5"),
    (samplers.plms, {"order": 0}, "order must be 1, 2, 3 or 4, but is 0"),
    (samplers.er_sde, {"order": 4}, "order must be 1, 2 or 3, but is 4"),
    (samplers.er_sde, {"phi": lambda k: k**0.5}, r"phi\(k\) / k not fall as k rises"),
    (samplers.er_sde, {"phi": lambda k: k - 1}, "phi must be positive"),
    (samplers.er_sde, {"phi": lambda k: -k}, "phi must be positive"),
    (samplers.unipc_1, {"b": "bh3"}, "b must be bh1 or bh2, but is 'bh3'"),
    (ddpm.unipc_2, {"b": ""}, "b must be bh1 or bh2, but is ''"),
    (samplers.unipc_3, {"b": None}, "b must be bh1 or bh2, but is None"),
    (
        samplers.edm_stochastic,
        {"churn": -1.0},
        "churn, s_min and s_noise must be .*, but are -1.0",
    ),
    (samplers.edm_stochastic, {"churn": math.nan}, "must be at least 0, but are nan"),
    (samplers.edm_stochastic, {"s_noise": -0.5}, "but are 30.0, 0.0 and -0.5"),
    (samplers.edm_stochastic, {"s_min": -0.1}, "but are 30.0, -0.1 and 1.0"),
    (samplers.restart, {"repeats": -1}, "repeats must be an integer of at least 0, but is -1"),
    (
        samplers.restart,
        {"repeats": 1.5},
        "repeats must be an integer of at least 0, but is 1.5",
    ),
    (
        samplers.restart,
        {"interval": (2, 2)},
        r"0 <= i < j < steps, but is \(2, 2\) of 6 steps",
    ),
    (samplers.restart, {"interval": (-1, 2)}, r"but is \(-1, 2\) of 6 steps"),
    (samplers.restart, {"interval": (3, 6)}, r"but is \(3, 6\) of 6 steps"),
    (
        samplers.sa_solver,
        {"predictor": 0},
        "predictor must be an integer of at least 1, but is 0",
    ),
    (
        samplers.sa_solver,
        {"predictor": 2.0},
        "predictor must be an integer of at least 1, but is 2.0",
    ),
    (
        samplers.sa_solver,
        {"corrector": -1},
        "corrector must be an integer of at least 0, but is -1",
    ),
    (
        samplers.sa_solver,
        {"corrector": 0.5},
        "corrector must be an integer of at least 0, but is 0.5",
    ),
    (
        samplers.sa_solver,
        {"stochasticity": -0.1},
        "stochasticity must be at least 0, .* but is -0.1",
    ),
    (
        samplers.sa_solver,
        {"stochasticity": math.inf},
        "stochasticity must be at least 0, .* but is inf",
    ),
    (
        samplers.sa_solver,
        {"stochasticity": [1.0, 0.5]},
        r"a number or one per step, but is \[1.0, 0.5\]",
    ),
    (ddpm.ddim, {"eta": -0.1}, "eta must be at least 0 .* but eta = -0.1"),
]


@pytest.mark.parametrize(("solver", "options", "message"), BAD)
def test_bad_arguments(solver, options, message):
    with pytest.raises(ValueError, match=message):
        solver(LINEAR, 6, **options)


def test_restart_of_one_step():
    with pytest.raises(ValueError, match="at least 2 steps"):
        samplers.restart(LINEAR, 1)


@solvers
def test_bad_grids(solver):
    """Each solver asks `levels_of` for its levels."""
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, but is 0"):
        solver(LINEAR, 0)
    with pytest.raises(ValueError, match=r"steps = 3 needs 4 times.*shape \(3,\)"):
        solver(LINEAR, 3, times=[1000, 500, 0])
    with pytest.raises(ValueError, match=r"times\[2\] = 700 is not cleaner than times\[1\] = 500"):
        solver(LINEAR, 3, times=[1000, 500, 700, 0])


@pytest.mark.parametrize("churn", [1.5, 30.0])
@pytest.mark.parametrize("times", [[500, 300, 100, 0], [1000, 300, 100, 0]])
def test_edm_stochastic_starts_where_x_is(times, churn):
    """The first row looks at the time that was asked for; noise comes before each other step."""
    sampler = samplers.edm_stochastic(LINEAR, 3, churn, times=times)
    assert sampler.levels.time[0] == times[0]
    k = np.exp(-sampler.levels.logsnr / 2)
    gamma = min(churn / 3, math.sqrt(2) - 1)
    for row, time in ((2, 300), (4, 100)):
        assert k[row] == pytest.approx((1 + gamma) * np.exp(-LINEAR(time).logsnr / 2), rel=1e-12)


def test_edm_stochastic_within_its_range():
    """The ends of [s_min, s_max] are in it; elsewhere, and without noise, its levels are heun's."""
    heun = ddpm.heun(LINEAR, 6)
    k = (heun.levels.sigma / heun.levels.alpha)[4]
    one = samplers.edm_stochastic(LINEAR, 6, s_min=k, s_max=k)
    assert np.flatnonzero(one.levels.time != heun.levels.time).tolist() == [4]
    assert np.flatnonzero(one.point[:, -1]).tolist() == [3]
    schedule = ddpm.VP()  # whose inverse rounds
    none = samplers.edm_stochastic(schedule, 6, churn=0.0)
    np.testing.assert_array_equal(none.levels.time, ddpm.heun(schedule, 6).levels.time)
    assert not samplers.edm_stochastic(LINEAR, 6, s_noise=0.0).stochastic


def test_sa_solver_with_next_to_no_noise():
    """A τ whose square underflows is none."""
    sampler = samplers.sa_solver(LINEAR, 4, 1e-200)
    check_same(sampler.unroll(), samplers.sa_solver(LINEAR, 4, 0.0).unroll(), 0.0)


def test_er_sde_far_into_noise():
    """The default φ(k) at k = 1e13, which a schedule may reach, is not a number of float64."""
    schedule = ddpm.schedules.Discrete((math.inf, *np.linspace(5, -60, 100)))
    with pytest.raises(ValueError, match=r"finite, .* another phi, or a later time to start at"):
        samplers.er_sde(schedule, 50)
    assert np.isfinite(samplers.er_sde(schedule, 50, phi=lambda k: k**1.5).point).all()


@pytest.mark.parametrize(
    ("times", "phi"), [([1000, 0], lambda k: 0 * k), ([1000, 500], lambda k: k * (k > 10))]
)
def test_er_sde_of_no_phi(times, phi):
    """φ is positive in a single step too: where it begins, and where it ends with noise."""
    with pytest.raises(ValueError, match="phi must be positive"):
        samplers.er_sde(LINEAR, 1, phi=phi, times=times)


def test_er_sde_of_the_flow_takes_no_noise():
    """With φ(k) = k no rounding of k_s² - r² k_t² is taken for noise; with next to k, noise is."""
    for n in (3, 10, 50, 1000):
        assert not samplers.er_sde(LINEAR, n, phi=lambda k: k).stochastic
    small = np.linspace(1e-3, 0, 300)  # where k³ is far below the rounding of k²
    edm = ddpm.schedules.EDM()
    assert not samplers.er_sde(edm, 299, phi=lambda k: k, times=small).stochastic
    assert samplers.er_sde(LINEAR, 10, phi=lambda k: k**1.0001).stochastic
