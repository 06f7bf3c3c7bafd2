"""The loops that run samplers, and what they and the tables refuse."""

from __future__ import annotations

import dataclasses

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import special_ortho_group

import ddpm_core as ddpm
from ddpm_core import gaussians, samplers
from ddpm_core.levels import steps_of
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
LINEAR = ddpm.linear()

SOLVERS = {
    "ddim": ddpm.ddim,
    "ddim eta": lambda schedule, steps, **kw: ddpm.ddim(schedule, steps, 0.7, **kw),
    "ancestral": ddpm.ancestral,
    "large": lambda schedule, steps, **kw: ddpm.ancestral(schedule, steps, ddpm.large, **kw),
    "dpmpp_2m": ddpm.dpmpp_2m,
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
few = settings(max_examples=20)  # of each of the five solvers


@st.composite
def paths(draw, zero_terminal: bool = False):
    """A schedule and a grid of its times down to clean data."""
    schedule = draw(strategies.discrete_schedules(40) | st.builds(ddpm.VP))
    if zero_terminal:
        schedule = draw(strategies.discrete_schedules(40).filter(lambda s: s.T > 2))
        schedule = ddpm.zero_terminal_snr(schedule)
    times = draw(strategies.grids(schedule, 8))
    if zero_terminal:
        times = np.append(float(schedule.T), times[times < schedule.T])
    return schedule, times


def build(solver, path) -> ddpm.Sampler:
    schedule, times = path
    return solver(schedule, len(times) - 1, times=times)


def draws(seed: int):
    """Noise that is a function of (step, shape)."""
    return lambda step, shape: np.random.default_rng((seed, step)).standard_normal(shape)


def response(sampler: ddpm.Sampler, denoise) -> np.ndarray:
    """What a linear sampler makes of x and of each row's noise, exactly: (1 + n,).

    Sample k of the batch sees 1 in the k-th of (x, z_1, ..., z_n) and 0 in the others. The sum of
    the squares is the variance of what the sampler draws from N(0, 1).
    """
    basis = np.eye(sampler.nfe + 1)[:, :, None]
    return ddpm.sample(denoise, sampler, basis[0], lambda i, shape: basis[i])[:, 0]


def variance(sampler: ddpm.Sampler, c: float) -> float:
    """Of the samples from x_T ~ N(0, 1) with the exact denoiser of N(0, c)."""
    return float((response(sampler, ddpm.GaussianOracle([0.0], c)) ** 2).sum())


@pytest.mark.parametrize(
    ("eta", "expected"), [(0, 0.92948), (0.2, 0.92708), (0.5, 0.91391), (1, 0.85744)]
)
def test_variance_of_eta(eta, expected):
    """N(0, 1) in 51 steps at indices round(linspace(0, 999, 51)): as test_laws.py's, by eta."""
    times = np.append(np.round(np.linspace(999, 0, 51)) + 1, 0)
    sampler = ddpm.ddim(LINEAR, 51, eta, times=times)
    assert variance(sampler, 1.0) == pytest.approx(expected, rel=0, abs=5e-6 + 1e-12)


@pytest.mark.parametrize("K", [1, 10, 50])
def test_ddim_best_grid_for_unit_variance(K):
    """Of N(0, 1), over levels evenly spaced in angle: variance cos²ᴷ(φ_T / K)."""
    top = ddpm.VP()(1.0)
    phi = np.arctan2(top.sigma, top.alpha)
    angle = np.linspace(phi, 0, K + 1)[:-1]
    times = np.append(ddpm.VP().at(2 * np.log(np.cos(angle) / np.sin(angle))).time, 0.0)
    sampler = ddpm.ddim(ddpm.VP(), K, times=np.minimum(times, 1.0))
    expected = np.cos(phi / K) ** (2 * K)
    # Times are inverted from log-SNR and back: a few EPS |log-SNR| a step.
    assert variance(sampler, 1.0) == pytest.approx(expected, rel=1e3 * K * EPS)


def gain(sampler: ddpm.Sampler) -> float:
    """What a row may multiply a rounding by: 2M has h / 2 h_prev, large where steps are uneven."""
    return max(1.0, float(np.abs(sampler.point).max()))


@solvers
@few
@given(path=paths(zero_terminal=True), data=st.data())
def test_one_point_of_data_from_no_signal(solver, path, data):
    """So it is from alpha = 0, by a network that predicts v."""
    x_0, x = data.draw(strategies.normals((3, 2), count=2))
    level = iter(())

    def net(x_t, timestep):
        t = next(level)
        return (t.alpha * x_t - x_0) / t.sigma  # v with σ x_0 = α eps - v

    sampler = build(solver, path)
    level = iter([row.level for row in sampler.rows()])
    predict = ddpm.Predictor(net, path[0], ddpm.v)
    found = ddpm.sample(predict, sampler, x, draws(0))
    sigma = sampler.levels.sigma[-2]  # the v of x_0 loses EPS / σ
    np.testing.assert_allclose(found, x_0, rtol=0, atol=64 * EPS * gain(sampler) * (1 + 10 / sigma))


@given(schedule=strategies.betas(20), seed=st.integers(0, 99), data=st.data())
def test_ancestral_is_algorithm_2(schedule, seed, data):
    """x' = (x - β / sqrt(1 - ᾱ) eps(x)) / sqrt(1 - β) + sqrt(β) z (Ho et al. 2020, Algorithm 2)."""
    betas = schedule
    x = data.draw(strategies.normals((2, 3)))
    net, noise = (lambda x_t, timestep: np.tanh(x_t)), draws(seed)
    expected, size = x, 1 + np.abs(x).max()
    abar = np.cumprod(1 - betas)
    for step, t in enumerate(range(len(betas), 0, -1), start=1):
        z = noise(step, x.shape) if t > 1 else np.zeros_like(x)
        beta = betas[t - 1]
        eps = np.tanh(expected)
        expected = (expected - beta / np.sqrt(1 - abar[t - 1]) * eps) / np.sqrt(1 - beta)
        expected = expected + np.sqrt(beta) * z
        size = max(size, np.abs(expected).max())
    schedule = ddpm.from_betas(betas)
    sampler = ddpm.ancestral(schedule, len(betas), ddpm.large)
    found = ddpm.sample(ddpm.Predictor(net, schedule), sampler, x, noise)
    # 1 - ᾱ above cancels, and each error then grows as x does, by 1 / sqrt(1 - β) a step.
    grown = 1 / np.sqrt(abar[-1]) / betas.min()
    np.testing.assert_allclose(found, expected, rtol=0, atol=64 * EPS * size * grown)


@given(path=paths(), seed=st.integers(0, 99), x=strategies.normals((3, 2)))
def test_ancestral_is_its_kernel(path, seed, x):
    """The table and `sample_kernel(reverse(denoise))` draw the same from the same noise."""
    denoise = ddpm.MixtureOracle([1.0, 2.0], [[-1.0, 0.0], [0.5, 1.0]], 0.1)
    for variance in (ddpm.small, ddpm.large):
        sampler = build(lambda *a, v=variance, **kw: ddpm.ancestral(*a, v, **kw), path)
        levels = ddpm.levels_of(path[0], sampler.nfe, times=path[1])
        kernel = ddpm.reverse(denoise, variance)
        expected = ddpm.sample_kernel(kernel, levels, x, draws(seed))
        found = ddpm.sample(denoise, sampler, x, draws(seed))
        # A mixture's reading turns over a width of its own; errors grow by it at each step.
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=1e4 * EPS * sampler.nfe * gain(sampler)
        )


TOY = ddpm.MixtureOracle([0.3, 0.7], [[-1.0, 0.2], [0.5, -0.4]], 0.2)


@solvers
@few
@given(path=paths(), x=strategies.normals((3, 2)))
def test_given_reads_the_raw_output(solver, path, x):
    """A loop over `given(target)` and the raw network ends where `sample` and a Predictor do."""
    sampler = build(solver, path)
    for predicts in (ddpm.x0, ddpm.eps, ddpm.v, ddpm.flow):
        net = lambda x_t, timestep: np.tanh(x_t) + timestep[:, None] / 100
        predict = ddpm.Predictor(net, path[0], predicts)
        expected = ddpm.sample(predict, sampler, x, draws(1))
        state = sampler.start(x)
        for i, row in enumerate(sampler.given(predicts).rows(), start=1):
            y = net(state.point, predict.timestep(x, row.level))
            state = ddpm.advance(row, state, y, draws(1)(i, x.shape))
        # Reading eps at alpha_t divides by it, at every step anew.
        grown = sampler.nfe / sampler.levels.alpha[0] ** 2
        size = 1 + np.abs(expected).max()
        np.testing.assert_allclose(
            state.point, expected, rtol=0, atol=256 * EPS * size * grown * gain(sampler)
        )


@solvers
@few
@given(path=paths(), x=strategies.normals((3, 2)), data=st.data())
def test_trajectory_ends_and_resumes(solver, path, x, data):
    """The last step is `sample`, and going on from the state after row i ends at the same place."""
    sampler = build(solver, path)
    steps = list(ddpm.trajectory(TOY, sampler, x, draws(2)))
    end = ddpm.sample(TOY, sampler, x, draws(2))
    np.testing.assert_array_equal(steps[-1].x, end)
    assert [step.number for step in steps] == list(range(1, sampler.nfe + 1))
    np.testing.assert_array_equal([step.level.time for step in steps], sampler.levels.time[1:])
    # x_0 is what was said of the x before.
    for before, row, step in zip([x, *(s.x for s in steps)], sampler.rows(), steps, strict=False):
        np.testing.assert_array_equal(step.x_0, TOY(before, row.level))
    i = data.draw(st.integers(0, sampler.nfe))
    memory = tuple(
        np.zeros_like(x) if i == 0 else steps[i - 1].x_0 for _ in sampler.start(x).memory
    )
    state = samplers.State(x if i == 0 else steps[i - 1].x, x, memory)
    for k, row in enumerate(sampler.rows()[i:], start=i + 1):
        state = ddpm.advance(row, state, TOY(state.point, row.level), draws(2)(k, x.shape))
    np.testing.assert_array_equal(state.point, end)


@solvers
@few
@given(path=paths(), seed=st.integers(0, 99), cut=st.integers(0, 5))
def test_batch_splits(solver, path, seed, cut):
    """[A; B] is A and B alone, each with its own samples' noise."""
    sampler, noise = build(solver, path), ddpm.portable_noise(seed, dtype=np.float64)
    x = noise(0, (5, 2))
    whole = ddpm.sample(TOY, sampler, x, noise)
    for ids in (np.arange(cut), np.arange(cut, 5)):
        if len(ids):
            part = ddpm.sample(TOY, sampler, x[ids], lambda i, shape, ids=ids: noise(i, shape, ids))
            # A matrix product may sum in another order for another batch.
            np.testing.assert_allclose(
                part, whole[ids], rtol=0, atol=1e4 * EPS * sampler.nfe * gain(sampler)
            )


@solvers
@few
@given(path=paths(), seed=st.integers(0, 2**32 - 1))
def test_rotation_equivariance(solver, path, seed):
    """Rotated data, rotated x and rotated noise give the rotated sample."""
    rng = np.random.default_rng(seed)
    R, x = special_ortho_group(3, seed=rng).rvs(), rng.standard_normal((4, 3))
    means = rng.standard_normal((3, 3))
    sampler, noise = build(solver, path), draws(seed)
    turned = lambda i, shape: noise(i, shape) @ R.T
    found = ddpm.sample(ddpm.MixtureOracle(np.ones(3), means @ R.T, 0.3), sampler, x @ R.T, turned)
    expected = ddpm.sample(ddpm.MixtureOracle(np.ones(3), means, 0.3), sampler, x, noise) @ R.T
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e4 * EPS * sampler.nfe * gain(sampler)
    )


@solvers
@few
@given(path=paths(), data=st.data())
def test_rows_per_sample(solver, path, data):
    """Each sample at a row of its own: as that row alone does. `rows_as` holds the same numbers."""
    sampler = build(solver, path)
    which = data.draw(st.lists(st.integers(0, sampler.nfe - 1), min_size=3, max_size=3))
    x, y, z, m = data.draw(strategies.normals((3, 2, 2), count=4))
    table, rows = sampler.rows_as(np, np.float64), sampler.rows()
    at = lambda c: c[which]
    mixed = samplers.Row(ddpm.Level(*map(at, table.level)), *(tuple(map(at, c)) for c in table[1:]))
    memory = (m,) * len(sampler.start(x).memory)
    together = ddpm.advance(mixed, samplers.State(x, x, memory), y, z)
    for k, i in enumerate(which):
        one = slice(k, k + 1)
        state = samplers.State(x[one], x[one], tuple(a[one] for a in memory))
        alone = ddpm.advance(rows[i], state, y[one], z[one])
        # Sums that leave zeros out are the same sums.
        for a, b in zip(
            (*together[:2], *together.memory), (*alone[:2], *alone.memory), strict=True
        ):
            np.testing.assert_array_equal(a[one], b)
        assert [float(c[i]) for c in table.level] == list(rows[i].level)
    assert all(c.shape == (sampler.nfe,) for c in table.level)


def test_rows_on_a_device():
    """`rows_as` puts the table where it is told."""
    device = array_api_strict.Device("device1")
    row = ddpm.ddim(LINEAR, 3).rows_as(array_api_strict, array_api_strict.float64, device)
    assert {c.device for c in (*row.level, *row.read, *row.point, *row.anchor)} == {device}


def test_given_needs_no_reading_that_is_not_remembered():
    """A sampler without memory takes the raw output as it comes: one sum a row."""
    np.testing.assert_array_equal(ddpm.ddim(LINEAR, 3).given(ddpm.eps).read, [[0, 1]] * 3)


def test_what_stays_is_not_computed():
    """An x_0 as it comes, an anchor that stays and one that becomes x are the arrays themselves."""
    x, anchor, y = np.zeros((3, 1, 2))
    first = ddpm.dpmpp_2m(LINEAR, 4).rows()[0]
    state = ddpm.advance(first, samplers.State(x, anchor, (x,)), y)
    assert state.memory[0] is y
    assert state.anchor is anchor
    becomes = samplers.bdia(LINEAR, 4).rows()[1]
    assert ddpm.advance(becomes, samplers.State(x, anchor, ()), y).anchor is x


@solvers
def test_stochastic(solver):
    """`stochastic` says whether noise is needed: without it the loop says what to pass."""
    sampler = solver(LINEAR, 3)
    assert sampler.stochastic == (solver not in (SOLVERS["ddim"], SOLVERS["dpmpp_2m"]))
    if sampler.stochastic:
        with pytest.raises(ValueError, match=f"{sampler.name} takes noise: pass noise="):
            ddpm.sample(TOY, sampler, np.zeros((1, 2)))
        with pytest.raises(ValueError, match="pass z, or noise to sample"):
            ddpm.advance(sampler.rows()[0], sampler.start(np.zeros((1, 2))), np.zeros((1, 2)))
    else:
        ddpm.sample(TOY, sampler, np.zeros((1, 2)))


def test_noise_is_drawn_where_a_row_takes_it():
    """Once for each row with noise in its point or in its anchor, with the number of the row."""
    sampler = ddpm.ancestral(LINEAR, 4)
    point, anchor = sampler.point.copy(), sampler.anchor.copy()
    anchor[1, -1], point[1, -1] = point[1, -1], 0.0
    moved = dataclasses.replace(sampler, point=point, anchor=anchor)
    for each, wanted in ((ddpm.ddim(LINEAR, 4), []), (sampler, [1, 2, 3]), (moved, [1, 2, 3])):
        steps = []
        noise = lambda i, shape, steps=steps: steps.append(i) or np.ones(shape)
        ddpm.sample(TOY, each, np.zeros((1, 2)), noise)
        assert steps == wanted


def test_kernels_and_their_noise():
    """A kernel is asked wherever levels do not rise, and draws no noise into clean data."""
    asked, drawn = [], []

    def kernel(x, t, s):
        asked.append((t.time, s.time))
        return ddpm.Gaussian(x, 1.0)

    levels = LINEAR(np.array([900, 500, 500, 700, 0]))
    noise = lambda i, shape: drawn.append(i) or np.ones(shape)
    ddpm.sample_kernel(kernel, levels, np.zeros((1, 2)), noise)
    assert asked == [(900, 500), (500, 500), (700, 0)]
    assert drawn == [1, 2, 3]


@solvers
def test_nothing_is_mutated(solver):
    """Read-only x, noise and outputs do; and the same call gives the same bits again."""
    x = np.random.default_rng(0).standard_normal((3, 2))
    frozen = lambda a: a.flags.__setattr__("writeable", False) or a
    noise = lambda i, shape: frozen(draws(3)(i, shape))
    denoise = lambda x_t, t: frozen(TOY(x_t, t))
    sampler = solver(LINEAR, 6)
    kept = x.copy()
    first = ddpm.sample(denoise, sampler, frozen(x), noise)
    np.testing.assert_array_equal(ddpm.sample(denoise, sampler, x, noise), first)
    np.testing.assert_array_equal(x, kept)


@solvers
def test_half_precision_is_combined_in_float32(solver):
    """A float16 step is the float32 step of the same numbers, rounded once."""
    rng = np.random.default_rng(0)
    x, y, z, m = (rng.standard_normal((2, 64)).astype(np.float16) for _ in range(4))
    for row in solver(LINEAR, 4).given(ddpm.eps).rows():
        count = len(row.point) - 4
        half = ddpm.advance(row, samplers.State(x, x, (m,) * count), y, z)
        up = [a.astype(np.float32) for a in (x, y, z, m)]
        single = ddpm.advance(row, samplers.State(up[0], up[0], (up[3],) * count), up[1], up[2])
        for a, b in zip((*half[:2], *half.memory), (*single[:2], *single.memory), strict=True):
            np.testing.assert_array_equal(a, b.astype(np.float16), strict=True)


@solvers
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_that_of_x(solver, dtype):
    """In a dtype, out the same dtype, near the float64 sample of the same x."""
    x, z = (np.random.default_rng(k).standard_normal((4, 2)).astype(dtype) for k in range(2))
    sampler = solver(LINEAR, 5)
    found = ddpm.sample(TOY, sampler, x, lambda i, shape: z)
    assert found.dtype == dtype
    exact = ddpm.sample(TOY, sampler, x.astype(np.float64), lambda i, shape: z.astype(np.float64))
    # A step rounds a few times; a mixture's reading changes by (α / σ)² |x_0|² times its input.
    np.testing.assert_allclose(found, exact, rtol=0, atol=200 * float(np.finfo(dtype).eps))


@solvers
def test_grids_that_are_none(solver):
    """Wrong counts, times that rise, leave the schedule or read clean data: named with values."""
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        solver(LINEAR, 0)
    with pytest.raises(ValueError, match=r"integer of at least 1, but is 2\.5"):
        solver(LINEAR, 2.5)
    with pytest.raises(ValueError, match=r"within \[1, 1000\].*but is 1001"):
        solver(LINEAR, 1001)
    with pytest.raises(ValueError, match=r"steps = 3 needs 4 times.*shape \(3,\)"):
        solver(LINEAR, 3, times=[1000, 500, 0])
    with pytest.raises(ValueError, match=r"times\[2\] = 700 is not cleaner than times\[1\] = 500"):
        solver(LINEAR, 3, times=[1000, 500, 700, 0])
    with pytest.raises(ValueError, match=r"times\[2\] = 500 is not cleaner"):
        solver(LINEAR, 3, times=[1000, 500, 500, 0])
    with pytest.raises(ValueError, match=r"within \[0, 1000\], but is 1001"):
        solver(LINEAR, 2, times=[1001, 500, 0])
    with pytest.raises(ValueError, match=r"times\[2\] = 0 is not cleaner than times\[1\] = 0"):
        solver(LINEAR, 2, times=[500, 0, 0])


@given(path=paths())
def test_largest_eta(path):
    """At η² τ = 1, the most there is, no root of a rounding below 0 is taken."""
    t, s = steps_of(build(ddpm.ddim, path).levels)
    noisy = s.sigma > 0
    if noisy.any():
        eta = 1 / np.sqrt(ddpm.levels.tau(t, s)[noisy].max())
        sampler = build(lambda *a, **kw: ddpm.ddim(*a, eta, **kw), path)
        # All of x_s's noise is fresh in the step that allows no more.
        i = np.flatnonzero(noisy)[ddpm.levels.tau(t, s)[noisy].argmax()]
        assert sampler.point[i, -1] == pytest.approx(s.sigma[i], rel=8 * EPS)


def test_eta_and_integers_are_refused():
    """An eta that leaves no real root, or integers to sample from, are errors with the value."""
    for eta in (-0.5, 1.05, 2.0):
        with pytest.raises(ValueError, match=f"but eta = {eta}"):
            ddpm.ddim(LINEAR, 4, eta)
    whole, said = np.zeros((2, 2), dtype=np.int64), "x has dtype int64: convert it to floating"
    with pytest.raises(TypeError, match=said):  # by a denoiser that would take it
        ddpm.sample(lambda x, t: x, ddpm.ddim(LINEAR, 2), whole)
    levels, kernel = ddpm.levels_of(LINEAR, 2), lambda x, t, s: ddpm.Gaussian(x, 1.0)
    with pytest.raises(TypeError, match=said):
        ddpm.sample_kernel(kernel, levels, whole, lambda step, shape: whole)


def test_tables_of_wrong_shape():
    """A table whose arrays disagree, or that reads clean data, cannot be made."""
    good = ddpm.ddim(LINEAR, 3)
    with pytest.raises(ValueError, match=r"anchor has shape \(2, 4\), but 3 rows need \(3, 4\)"):
        ddpm.Sampler("s", good.levels, good.read, good.point, good.anchor[:2])
    with pytest.raises(ValueError, match=r"point has shape \(3,\), but 3 rows need \(3, 3\)"):
        ddpm.Sampler("s", good.levels, good.read, good.point[:, 0], good.anchor)
    with pytest.raises(ValueError, match=r"point has shape \(3, 3\), but a row has at least 4"):
        ddpm.Sampler("s", good.levels, good.read, good.point[:, :3], good.anchor[:, :3])
    clean = LINEAR(np.array([1000, 0, 0, 0]))
    with pytest.raises(ValueError, match="only the last level may be clean data"):
        ddpm.Sampler("s", clean, good.read, good.point, good.anchor)


@pytest.mark.parametrize("name", ["read", "point", "anchor"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tables_of_no_numbers(name, value):
    """A NaN or an infinity in a table would spread to all samples."""
    good = ddpm.ddim(LINEAR, 3)
    bad = getattr(good, name).copy()
    bad[1, 1] = value
    with pytest.raises(ValueError, match=rf"must be finite, but {name}\[1, 1\] is {value}"):
        dataclasses.replace(good, **{name: bad})


def test_terms_write_a_table():
    """Sums of unit vectors are the columns of a table; the row into clean data is x_0."""
    x, anchor, m_0, m_1, z = samplers.terms(2)
    a = np.array([1.0, 2.0, 3.0])
    levels = ddpm.levels_of(LINEAR, 3)
    made = samplers.table("mine", levels, a * x - 2 * (m_0 - a * m_1) + z, anchor=x + a * anchor)
    np.testing.assert_array_equal(made.point[:2], [[1, 0, -2, 2, 1], [2, 0, -2, 4, 1]])
    np.testing.assert_array_equal(made.anchor[:2], [[1, 1, 0, 0, 0], [1, 2, 0, 0, 0]])
    np.testing.assert_array_equal(made.point[2], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(made.anchor[2], [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(made.read, [[0, 1]] * 3)


def test_samplers_of_another_schedule_are_refused():
    """A network is told the time of its own schedule, or nothing: the level's log-SNR tells."""
    x = np.zeros((2, 3))
    predict = ddpm.Predictor(lambda x, time: x, ddpm.linear())
    for other in (ddpm.VP(), ddpm.cosine(), ddpm.linear(100, rescale=True)):
        with pytest.raises(ValueError, match="but on the network's schedule it has"):
            ddpm.sample(predict, ddpm.ddim(other, 3), x)
    half = ddpm.linear()(500.5)
    assert predict(x, half).shape == x.shape
    assert predict(x, ddpm.linear().at(half.logsnr)).shape == x.shape


def test_shapes_that_would_broadcast_are_refused():
    """An output or a noise of another shape than x is an error, not a broadcast."""
    x, sampler = np.zeros((4, 2)), ddpm.ancestral(ddpm.linear(), 2)
    noise = lambda step, shape: np.zeros(shape)
    with pytest.raises(ValueError, match=r"y has shape \(4, 1\) but x has shape \(4, 2\)"):
        ddpm.sample(lambda x, t: x[:, :1], sampler, x, noise)
    with pytest.raises(ValueError, match=r"y has shape \(4, 1\) but x has shape \(4, 2\)"):
        ddpm.sample(lambda x, t: x[:, :1], ddpm.ddim(ddpm.linear(), 2), x)
    with pytest.raises(ValueError, match=r"z has shape \(2,\) but x has shape \(4, 2\)"):
        ddpm.sample(lambda x, t: x, sampler, x, lambda step, shape: np.zeros(2))
    with pytest.raises(ValueError, match=r"y has shape \(4,\) but x_t has shape \(4, 2\)"):
        ddpm.loss(lambda x, t: x[:, 0], x, x, ddpm.linear()(500))


@pytest.mark.parametrize(("dtype", "other"), [(np.float32, np.float64), (np.float64, np.float32)])
def test_outputs_of_another_dtype(dtype, other):
    """They are in that of x before anything is computed."""
    sampler, rng = ddpm.ddim(LINEAR, 2), np.random.default_rng(0)
    state, y = sampler.start(rng.standard_normal((9, 2)).astype(dtype)), rng.standard_normal((9, 2))
    y = y.astype(other)
    found, expected = (ddpm.advance(sampler.rows()[0], state, a) for a in (y, y.astype(dtype)))
    np.testing.assert_array_equal(found.point, expected.point, strict=True)


class Foreign:
    """An array of another library that has NumPy's dtypes."""

    dtype, shape = np.dtype(np.float64), (2, 3)

    def __array_namespace__(self, api_version=None):
        return array_api_strict


def test_arrays_of_two_libraries_are_refused():
    sampler, x = ddpm.ddim(LINEAR, 2), np.zeros((2, 3))
    with pytest.raises(TypeError, match=r"y is a .* Foreign: pass arrays of one library"):
        ddpm.advance(sampler.rows()[0], sampler.start(x), Foreign())


def test_swapped_levels_are_refused():
    """s is cleaner than t, or the kernel is of a negative variance."""
    x, t, s = np.zeros((2, 3)), ddpm.linear()(700), ddpm.linear()(350)
    for call in (
        lambda: ddpm.q_posterior(x, x, s, t),
        lambda: ddpm.q_step(x, x, s, t),
        lambda: ddpm.reverse(lambda x, t: x)(x, s, t),
    ):
        with pytest.raises(ValueError, match=r"s must be cleaner than t, .* are they swapped"):
            call()
    many = ddpm.linear()(np.array([100.0, 900.0, 700.0]))
    said = rf"log-SNR is {t.logsnr:.6g} at s and {many.logsnr[0]:.6g} at t"
    with pytest.raises(ValueError, match=said):  # the first pair that is
        ddpm.levels.tau(many, t)


def test_state_of_another_sampler_is_refused():
    """A row combines the memory of its own sampler: another's would shift its coefficients."""
    x, schedule = np.zeros((2, 3)), ddpm.linear()
    state = ddpm.ddim(schedule, 4).start(x)
    with pytest.raises(ValueError, match="row and state must be of one sampler"):
        ddpm.advance(ddpm.dpmpp_2m(schedule, 4).rows()[1], state, x)


def test_outputs_that_say_nothing_are_refused():
    """`given` reads no eps at alpha = 0, as `Predictor` does not."""
    with pytest.raises(ValueError, match="eps says nothing of x_0 where alpha = 0"):
        ddpm.ddim(ddpm.zero_terminal_snr(ddpm.linear()), 5).given(ddpm.eps)


@pytest.mark.parametrize("dtype", [np.int64, np.complex128])
def test_data_is_real_and_floating(dtype):
    """Whole numbers would truncate tables, and complex ones make complex squares: both refused."""
    x, t = np.ones((2, 3), dtype), ddpm.linear()(500)
    oracle = ddpm.GaussianOracle(np.zeros(3), 1.0)
    for call in (
        lambda: oracle(x, t),
        lambda: oracle.log_prob(x),
        lambda: ddpm.DatasetOracle(np.eye(3))(x, t),
        lambda: ddpm.sample(oracle, ddpm.ddim(ddpm.linear(), 2), x),
        lambda: ddpm.loss(oracle, x, x, t),
        lambda: gaussians.log_prob(ddpm.Gaussian(x, 1.0), x),
    ):
        with pytest.raises(TypeError, match=f"has dtype {np.dtype(dtype)}"):
            call()


def test_points_have_no_density_of_their_own():
    """log q(x_0) of points is that of no Gaussian: it is asked for at a level with noise."""
    oracle = ddpm.DatasetOracle(np.eye(3))
    with pytest.raises(ValueError, match="no density"):
        oracle.log_prob(np.zeros((1, 3)))
    assert np.isfinite(oracle.log_prob(np.zeros((1, 3)), ddpm.linear()(10))).all()
