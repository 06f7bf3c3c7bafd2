"""Properties that public implementations were found to lack, and that hold here.

Each names the project and the behaviour that was read in, or computed from, its source.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import grids, samplers, schedules
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
LINEAR = ddpm.linear()
SCHEDULES = strategies.schedules().filter(lambda s: getattr(s, "T", 2) > 1)
GRIDS = [grids.trailing, grids.leading, grids.linspace]
NAMED = [
    LINEAR,
    schedules.quadratic(),
    schedules.scaled_linear(),
    ddpm.cosine(),
    ddpm.cosine(4000),
    schedules.beta_sigmoid(),
    schedules.alphabar_sigmoid(),
    ddpm.zero_terminal_snr(LINEAR),
]
SOLVERS = [
    ddpm.ddim,
    lambda schedule, steps, **kw: ddpm.ddim(schedule, steps, 1.0, **kw),
    ddpm.ancestral,
    lambda schedule, steps, **kw: ddpm.ancestral(schedule, steps, ddpm.large, **kw),
    ddpm.dpmpp_2m,
]
solvers = pytest.mark.parametrize(
    "solver", SOLVERS, ids=["ddim", "ddim eta", "ancestral", "large", "dpmpp_2m"]
)


@pytest.mark.parametrize("T", [1, 7, 1000])
def test_trailing_length(T):
    """S steps are S calls at integer times from T down (diffusers: a float range makes S + 1)."""
    schedule = ddpm.from_betas(np.full(T, 0.01))
    for steps in range(1, T + 1):
        times = grids.trailing(schedule, steps)
        assert len(times) == steps + 1
        assert (times[0], times[-1]) == (T, 0)
        assert np.all(np.diff(times) <= -1)
        assert np.all(times == np.rint(times))


@pytest.mark.parametrize("steps", [10, 30, 600])
@pytest.mark.parametrize("grid", GRIDS)
def test_next_time_is_next_in_the_list(grid, steps):
    """x_s has variance 1 - ᾱ_s at the s of the next call (diffusers DDIM: at t - T // S)."""
    for solver in SOLVERS[:3]:
        sampler = solver(LINEAR, steps, grid=grid)
        rows = sampler.rows()
        var = rows[0].level.sigma ** 2
        for row, then in pairwise(rows):
            var = row.point[0] ** 2 * var + row.point[-1] ** 2  # of x_0 = 0, whose reading is 0
            assert var == pytest.approx(then.level.sigma**2, rel=64 * EPS * steps)
        assert [row.level.time for row in rows] == grid(LINEAR, steps)[:-1].tolist()


@solvers
@pytest.mark.parametrize("grid", GRIDS)
@given(steps=st.integers(1, 1000))
def test_last_step_is_deterministic(solver, grid, steps):
    """The sample is the last x_0, without noise (diffusers DDPM: noise unless t = 0)."""
    last = solver(LINEAR, steps, grid=grid).rows()[-1]
    assert last.point[-1] == 0
    assert (last.point[0], last.point[2]) == (0, 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("schedule", NAMED)
def test_noise_survives_half_precision(schedule, dtype):
    """The std of x_t is σ_t to a rounding (diffusers: 1 - ᾱ of a cast ᾱ, no noise for t < 10)."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    for time in range(1, 11):
        exact = schedule(time).sigma
        for t in (schedule(time), schedule(torch.tensor([time, time]), dtype=torch.float32)):
            x_0 = torch.zeros(2, 2, dtype=kind)
            std = ddpm.q_sample(x_0, torch.ones_like(x_0), t)
            assert std.dtype == kind
            # One rounding; of levels of the device, log-SNR's float32 besides.
            rel = torch.finfo(kind).eps + 16 * torch.finfo(torch.float32).eps
            np.testing.assert_allclose(std.double().numpy(), exact, rtol=rel)


def test_eps_without_signal_is_refused():
    """A prediction of eps at alpha_T = 0 cannot be built (diffusers: divides by it at T)."""
    with pytest.raises(ValueError, match="eps says nothing of x_0 where alpha = 0"):
        ddpm.Predictor(lambda x, time: x, ddpm.zero_terminal_snr(LINEAR))


@given(schedule=SCHEDULES, data=st.data())
def test_forward_steps_compose(schedule, data):
    """q(x_t | x_s) of q(x_s | x_0) is q(x_t | x_0) (diffusers, RePaint: forward by other betas)."""
    t, s = data.draw(strategies.levels(schedule, 2))
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    gain = ddpm.q_step(ddpm.q_sample(one, zero, s), zero, t, s)
    first = ddpm.q_step(ddpm.q_sample(zero, one, s), zero, t, s)
    second = ddpm.q_step(zero, one, t, s)
    assert gain.item() == pytest.approx(t.alpha, rel=8 * EPS)
    # τ comes from a difference of log-SNR, of whose size it keeps EPS.
    size = 1 + abs(t.logsnr) + abs(s.logsnr)
    assert (first**2 + second**2).item() == pytest.approx(t.sigma**2, rel=16 * EPS * size)


@given(time=st.integers(1, 1000), arrays=strategies.normals((4, 3), count=2))
def test_loss_aims_at_the_noise_of_x_t(time, arrays):
    """(x_t - α x_0) / σ costs nothing (denoising-diffusion-pytorch, immiscible: other noise)."""
    x_0, eps = arrays
    t = LINEAR(time)
    net = lambda x_t, timestep: (x_t - t.alpha * x_0) / t.sigma
    lost = ddpm.loss(ddpm.Predictor(net, LINEAR), x_0, eps, t)
    size = (1 + np.abs(arrays).max()) / t.sigma
    assert np.all(lost <= (16 * EPS * size) ** 2)


@given(times=st.sets(st.integers(1, 1000), min_size=2, max_size=2), x=strategies.normals((4, 3), 2))
def test_clip_derives_eps_again(times, x):
    """α x_0 + σ eps = x_t, x_0 clipped (denoising-diffusion-pytorch: in two files of five)."""
    i, j = sorted(times)
    t, s = LINEAR(j), LINEAR(i)
    x_t, y = x
    row = ddpm.ddim(LINEAR, 1, times=[j, i]).rows()[0]
    x_0 = ddpm.clip(lambda x, t: 4 * y)(x_t, t)
    x_s = ddpm.advance(row, samplers.State(x_t, x_t, ()), x_0).point
    eps = (x_s - s.alpha * x_0) / s.sigma  # what went on
    np.testing.assert_allclose(t.alpha * x_0 + t.sigma * eps, x_t, atol=64 * EPS / s.sigma)


@solvers
@given(seed=st.integers(0, 2**32 - 1))
def test_others_in_the_batch_do_not_matter(solver, seed):
    """A sample is the same beside a huge one (hackable_diffusion aDDIM: a norm over the batch)."""
    rng = np.random.default_rng(seed)
    x, sampler = rng.standard_normal((3, 2)), solver(LINEAR, 8)
    denoise = ddpm.MixtureOracle([1.0, 1.0], [[-1.0, 0.0], [1.0, 0.5]], 0.2)
    noise = lambda i, shape: np.random.default_rng((seed, i)).standard_normal((3, 2))
    before = ddpm.sample(denoise, sampler, x, noise)
    x[2] *= 1e3
    after = ddpm.sample(denoise, sampler, x, noise)
    np.testing.assert_array_equal(after[:2], before[:2])


@pytest.mark.parametrize("schedule", [ddpm.cosine(1000), ddpm.cosine(4000), LINEAR])
def test_label_of_a_level_is_its_index(schedule):
    """Every level found by log-SNR is told as t - 1 (dpm-solver, cosine: 999 where 995 is true)."""
    times = np.arange(1, schedule.T + 1)
    found = schedule.at(schedule(times).logsnr)
    # Inverted through log ᾱ, whose least step to T is of order 1e-6 of its size or more.
    np.testing.assert_allclose(found.time, times, rtol=0, atol=1e-9)
    told = []
    net = lambda x, timestep: told.append(timestep) or x
    predict = ddpm.Predictor(net, schedule)
    predict(np.zeros((schedule.T, 1)), found)
    np.testing.assert_array_equal(np.rint(told[0]), times - 1)


@pytest.mark.parametrize("schedule", NAMED)
def test_named_schedules_are_finite(schedule):
    """Every target is finite at every level (DDPM's code, jsd: β_T = 1, and eps is inf - inf)."""
    t = schedule(np.arange(1, schedule.T + 1))
    x_0, x_t = np.ones((2, schedule.T, 1))
    for predicts in (ddpm.x0, ddpm.v, ddpm.flow):
        y = ddpm.target(x_0, x_t, t, predicts)
        assert np.isfinite(ddpm.to_x0(y, x_t, t, predicts)).all()
        assert np.isfinite(ddpm.to_eps(y, x_t, t, predicts)).all()
    if t.alpha[-1] > 0:
        assert np.isfinite(ddpm.to_x0(x_0, x_t, t, ddpm.eps)).all()


def test_betas_outside_0_1_are_refused():
    """β_T = 1 is an error (DDPM's code, jsd), as is β > 1 (denoising-diffusion-pytorch, T < 20)."""
    with pytest.raises(ValueError, match=r"betas must lie in \(0, 1\), but betas\[9\] = 1\.0"):
        ddpm.from_betas(1 / np.arange(10, 0, -1))  # jsd
    for T in range(2, 21):
        with pytest.raises(ValueError, match=r"T must be above 20"):
            ddpm.linear(T, rescale=True)
    ddpm.linear(21, rescale=True)


@solvers
def test_finite_for_every_step_count(solver):
    """No table has a root of a negative number (diffusers, Euler ancestral on cosine: NaN)."""
    schedule = ddpm.cosine()
    for steps in range(1, schedule.T + 1):
        sampler = solver(schedule, steps)
        assert np.isfinite(sampler.point).all()
        assert np.isfinite(sampler.anchor).all()


@solvers
@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_finite_in_float32(solver, steps):
    """Nor does a run of one in float32 lose more than its roundings (as above)."""
    x, z = np.random.default_rng(steps).standard_normal((2, 256, 4)).astype(np.float32)
    oracle = ddpm.GaussianOracle(np.zeros(4), 1.0)
    found = ddpm.sample(oracle, solver(ddpm.cosine(), steps), x, lambda i, shape: z)
    exact = ddpm.sample(
        oracle,
        solver(ddpm.cosine(), steps),
        x.astype(np.float64),
        lambda i, shape: z.astype(np.float64),
    )
    assert found.dtype == np.float32
    # Rows of unit size, a few roundings each.
    atol = 32 * steps * float(np.finfo(np.float32).eps) * np.abs(exact).max()
    np.testing.assert_allclose(found, exact, rtol=0, atol=atol)


def test_one_step_of_a_multistep_solver():
    """One step of 2M is one of DDIM (k-diffusion, 2M-SDE and 3M-SDE: h is unbound at one step)."""
    for schedule in (LINEAR, ddpm.zero_terminal_snr(LINEAR)):
        for times in ([1000, 0], [1000, 500]):
            one, other = (f(schedule, 1, times=times) for f in (ddpm.dpmpp_2m, ddpm.ddim))
            np.testing.assert_allclose(one.point[:, 2], other.point[:, 2], rtol=0, atol=8 * EPS)
            np.testing.assert_allclose(one.point[:, 0], other.point[:, 0], rtol=0, atol=8 * EPS)
            assert not one.point[:, [1, 3, 4]].any()


@solvers
def test_one_sampler_serves_two_runs_at_once(solver):
    """Runs in turns end as runs alone (diffusers: multistep state lives in the scheduler)."""
    sampler, noise = solver(LINEAR, 7), lambda i, shape: np.full(shape, 1.0 / i)
    denoise = ddpm.DatasetOracle(np.array([[-1.0], [0.5]]))
    starts = [np.full((2, 1), 0.3), np.full((5, 1), -0.8)]
    alone = [ddpm.sample(denoise, sampler, x, noise) for x in starts]
    runs = [ddpm.trajectory(denoise, sampler, x, noise) for x in starts]
    ends = [None, None]
    for turn in zip(*runs, strict=True):
        ends = [step.x for step in turn]
    for a, b in zip(alone, ends, strict=True):
        np.testing.assert_array_equal(a, b)
