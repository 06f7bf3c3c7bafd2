"""Samplers unrolled, and foreign solvers found by probing."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from solver_papers import Stateful
from solver_paths import (
    LINEAR,
    OFF,
    SEED,
    Path,
    X,
    check_same,
    curved,
    draws,
    few,
    fewer,
    lost,
    paths,
    solvers,
)

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.samplers.unrolled import mixed_signs


def run(u: samplers.Unrolled, denoise, x, noise):
    """Where an unrolled sampler ends."""
    said, fresh = np.zeros((u.nfe, *x.shape)), np.zeros((u.nfe, *x.shape))
    for i in range(u.nfe + 1):
        point = u.x[i] * x + np.tensordot(u.y[i], said, 1) + np.tensordot(u.z[i], fresh, 1)
        if i < u.nfe:
            said[i] = denoise(point, u.levels.take(i))
            fresh[i] = noise(i + 1, x.shape)
    return point


@solvers
@fewer
@given(path=paths(), x=X, seed=SEED)
def test_unrolled_is_the_sampler(solver, path, x, seed):
    """The matrix does what the rows do, with a nonlinear denoiser."""
    sampler = path.build(solver)
    u = sampler.unroll()
    found = run(u, curved, x, draws(seed))
    expected = ddpm.sample(curved, sampler, x, draws(seed))
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * path.n * lost(sampler))
    assert (u.nfe, u.stochastic) == (sampler.nfe, sampler.stochastic)
    assert u.levels is sampler.levels


@solvers
@fewer
@given(path=paths())
def test_from_step_finds_the_table(solver, path):
    """A loop of `advance` over rows for x_0, eps or v, probed, has the matrix of the sampler."""
    sampler = path.build(solver)
    u, levels = sampler.unroll(), sampler.levels
    for predicts in (ddpm.x0, ddpm.eps, ddpm.v):
        rows = sampler.given(predicts).rows()
        state = None

        def step(i, x, y, z, rows=rows):
            nonlocal state
            state = sampler.start(x) if state is None else state
            np.testing.assert_array_equal(x, state.point)
            state = ddpm.advance(rows[i], state, y, z)
            return state.point

        found = samplers.from_step(step, levels, predicts)
        # Through eps, x_0 is divided by α and multiplied again, and x_t by 1 / α.
        grown = 1 if predicts is ddpm.x0 else 1 / levels.alpha.min()
        check_same(found, u, 8 * sampler.nfe * grown * lost(sampler))


@pytest.mark.parametrize("predicts", [ddpm.x0, ddpm.eps, ddpm.v], ids=["x0", "eps", "v"])
@pytest.mark.parametrize(
    ("order", "solver"), [(1, ddpm.ddim), (2, ddpm.dpmpp_2m), (3, samplers.dpmpp_3m)]
)
@few
@given(path=paths())
def test_from_step_of_a_foreign_class(order, solver, predicts, path):
    sampler = path.build(solver)
    step = Stateful(path, predicts.__name__, order)
    found = samplers.from_step(step, sampler.levels, predicts)
    grown = 1 if predicts is ddpm.x0 else 1 / path.a.min()
    check_same(found, sampler.unroll(), OFF * grown * lost(sampler))


def test_from_step_converts_arrays():
    """To the foreign library and back, each call once and in order; noise is z."""
    g, seen = Path(LINEAR, np.array([1000.0, 500.0, 100.0])), []

    def step(i, x, y, z):
        seen.append(i)
        assert all(isinstance(a, list) for a in (x, y, z))
        return [a + 2 * b + 3 * c for a, b, c in zip(x, y, z, strict=True)]

    levels = ddpm.levels_of(LINEAR, 2, times=g.times)
    to = lambda a: np.array(a, dtype=np.float32)
    u = samplers.from_step(step, levels, asarray=lambda a: a.tolist(), to_numpy=to)
    assert seen == [0, 1]
    np.testing.assert_array_equal(u.x, [1, 1, 1])
    np.testing.assert_array_equal(u.y, [[0, 0], [2, 0], [2, 2]])
    np.testing.assert_array_equal(u.z, [[0, 0], [3, 0], [3, 3]])
    assert u.x.dtype == np.float64
    assert u.stochastic


@pytest.mark.parametrize(
    "step",
    [
        lambda i, x, y, z: np.clip(x, -1, 1) ** 2,
        lambda i, x, y, z: x + np.clip(y, -1, 1),
        lambda i, x, y, z: x + y + 0.1,
        lambda i, x, y, z: x * y,
        lambda i, x, y, z: np.maximum(z, 0),
        lambda i, x, y, z: x * np.nan,
        lambda i, x, y, z: x + y + z**2,
        lambda i, x, y, z: x + y + z * np.abs(z),
        lambda i, x, y, z: x / np.maximum(1, np.abs(x)) + y,
        lambda i, x, y, z: np.where(np.abs(x) > 1.5, 0.5, 1.0) * x + y,
        lambda i, x, y, z: x + y + 0.01 * x**2,
    ],
    ids=[
        "square",
        "clip",
        "constant",
        "product",
        "relu",
        "nan",
        "noise squared",
        "noise by its size",
        "norm of a sample",
        "norm above a limit",
        "a hundredth",
    ],
)
def test_from_step_of_what_is_not_linear(step):
    """Each of these maps basis vectors as some linear map does, but their sums not, or is NaN."""
    levels = ddpm.levels_of(LINEAR, 3)
    with pytest.raises(ValueError, match=r"step 0 is not linear in \(x, y, z\): of a sum"):
        samplers.from_step(step, levels)


def test_from_step_of_what_is_linear_to_rounding():
    """A step in half precision is, and one that forgets everything."""
    levels = ddpm.levels_of(LINEAR, 1)
    u = samplers.from_step(lambda i, x, y, z: (100 * x).astype(np.float16), levels)
    assert u.x.tolist() == [1, 100]
    assert samplers.from_step(lambda i, x, y, z: 0 * x, levels).x.tolist() == [1, 0]


def test_probes_have_both_signs():
    assert {*mixed_signs(20)} == {-1.0, 1.0}


@pytest.mark.parametrize("predicts", [ddpm.x0, ddpm.eps, ddpm.v])
def test_from_step_calls_no_network_at_clean_data(predicts):
    """There eps and v determine x_0 without y, so that nothing is found of what is made of y."""
    levels = LINEAR(np.array([1000, 0, 0]))
    with pytest.raises(ValueError, match="only the last level may be clean data"):
        samplers.from_step(lambda i, x, y, z: x, levels, predicts)


def test_outputs_that_say_nothing_are_refused_at_once():
    """Before a step is taken, and after one run of a loop, which counts its calls."""
    levels, runs = ddpm.zero_terminal_snr(LINEAR)(np.array([900, 1000, 500])), []
    with pytest.raises(ValueError, match="eps says nothing of x_0 where alpha = 0"):
        samplers.from_step(lambda *_: pytest.fail("a step"), levels, ddpm.eps)

    def loop(network, x, draw):
        runs.append(x)
        return network(network(x, 0), 1)

    with pytest.raises(ValueError, match="eps says nothing of x_0 where alpha = 0"):
        samplers.from_loop(loop, levels.take, levels.take(2), ddpm.eps)
    assert len(runs) == 1


def test_unrolled_of_wrong_shape():
    """Shapes that disagree, and a point that knows the future, cannot be."""
    good = ddpm.ancestral(LINEAR, 3).unroll()
    for name, shape in (("x", "(4,)"), ("y", "(4, 3)"), ("z", "(4, 3)")):
        bad = getattr(good, name)[:-1]
        said = f"{name} has shape {bad.shape}, but 4 levels need {shape}"
        with pytest.raises(ValueError, match=re.escape(said)):
            replace(good, **{name: bad})
    for name in ("y", "z"):
        for i, j in ((0, 0), (1, 2), (2, 2)):
            ahead = getattr(good, name).copy()
            ahead[i, j] = 0.1
            said = f"point {i} depends on reading or noise {j}, which comes after it"
            with pytest.raises(ValueError, match=said):
                replace(good, **{name: ahead})
    ahead = np.eye(4, 3) / 10  # as much of the reading as of the noise
    with pytest.raises(ValueError, match="point 0 depends on reading or noise 0"):
        replace(good, y=good.y + ahead, z=good.z + ahead)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "y", "z", "alpha", "sigma"])
def test_unrolled_of_what_is_no_number(name, bad):
    """A NaN or an infinity in a table or a level is refused, with its place."""
    good = ddpm.ancestral(LINEAR, 3).unroll()
    where = "[2, 1]" if name in "yz" else "[2]"
    table = getattr(good.levels if name in ("alpha", "sigma") else good, name).copy()
    table[(2, 1) if name in "yz" else 2] = bad
    change = {name: table}
    if name in ("alpha", "sigma"):
        change = {"levels": good.levels._replace(**change)}
        name = f"levels.{name}"
    with pytest.raises(ValueError, match=re.escape(f"but {name}{where} is {bad}")):
        replace(good, **change)
    if "levels" in change:
        with pytest.raises(ValueError, match=re.escape(f"but {name}{where} is {bad}")):
            replace(ddpm.ancestral(LINEAR, 3), **change)


def test_unrolled_of_levels_without_log_snr():
    """The last level's log-SNR may be infinite, as at clean data, and no NaN."""
    good = ddpm.ancestral(LINEAR, 3)
    logsnr = good.levels.logsnr.copy()
    logsnr[-1] = np.nan
    for table in (good, good.unroll()):
        assert table.levels.logsnr[-1] == np.inf
        with pytest.raises(ValueError, match=r"levels.logsnr\[3\] is nan"):
            replace(table, levels=good.levels._replace(logsnr=logsnr))


@solvers
@fewer
@given(path=paths())
def test_from_loop_finds_the_table(solver, path):
    """The whole of `sample`, in coordinates of its own, run once on the basis."""
    sampler = path.build(solver)
    u, levels = sampler.unroll(), sampler.levels
    for predicts in (ddpm.x0, ddpm.v):
        rows = sampler.given(predicts).rows()

        def loop(network, x, draw, rows=rows):
            state = sampler.start(x / 3)
            for i, row in enumerate(rows):
                y = network(3 * state.point, i)
                state = ddpm.advance(row, state, y, draw())
            return 3 * state.point

        end = levels.take(-1)
        found = samplers.from_loop(loop, levels.take, end, predicts, scale=lambda t: 3.0)
        grown = 1 if predicts is ddpm.x0 else 1 / levels.alpha.min()
        check_same(found, u, 8 * sampler.nfe * grown * lost(sampler))


def from_loop(loop, n=3, **options):
    levels = ddpm.levels_of(ddpm.linear(), n)
    return samplers.from_loop(loop, levels.take, levels.take(n), **options)


def test_noises_of_a_loop_have_places():
    """Those between two calls are one; what enters later is of the later step; unused ones go."""

    def loop(network, x, draw):
        early = draw()
        x = x + network(x, 0) + 3 * draw() + 4 * draw()
        x = x + network(x, 1) + early
        draw()
        return x + network(x, 2)

    assert from_loop(loop).z.tolist() == [[0, 0, 0], [5, 0, 0], [5, 1, 0], [5, 1, 0]]
    against = lambda network, x, draw: network(x, 0) + 3 * draw() - 4 * draw()
    assert np.abs(from_loop(against, 1).z).tolist() == [[0], [5]]


def test_noises_that_act_apart_take_an_earlier_place():
    """Two draws of one step, of which the second reaches the end alone."""

    def loop(network, x, draw):
        x = x + network(x, 0)
        kept = x
        a, b = 9 * draw(), draw()
        x = kept + network(kept + a + b, 1)
        return x + b + network(x, 2)

    with pytest.raises(ValueError, match="between calls 0 and 1 x takes noises that act apart"):
        from_loop(loop)
    levels = ddpm.levels_of(ddpm.linear(), 4)

    def later(network, x, draw):
        return loop(lambda x, i: network(x, i + 1), x + network(x, 0), draw)

    u = samplers.from_loop(later, levels.take, levels.take(4))
    assert u.z[2].tolist() == [1, 9, 0, 0]
    assert sorted(u.z[4].tolist()) == [0, 0, 0, 1]


def test_small_probes_pass_beneath_a_clip():
    loop = lambda network, x, draw: np.clip(network(x, 0), -1, 1)
    with pytest.raises(ValueError, match="the loop is not linear up to call 1: of a sum"):
        from_loop(loop, 1)
    assert from_loop(loop, 1, size=1e-3).y.tolist() == [[0], [1]]
    wider = lambda network, x, draw: np.clip(network(x, 0), -4, 4)
    assert from_loop(wider, 1).y.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (lambda network, x, draw: network(x + draw(), 0), "takes noise before the first call"),
        (
            lambda network, x, draw: network(network(x, 0), 1 + int(x[0] != 0)),
            "what the loop does at call 1 depends on x",
        ),
        (
            lambda network, x, draw: network(x, 0) if x[0] else network(network(x, 0), 1),
            "makes 2 calls for x = 0, and 1 otherwise",
        ),
        (
            lambda network, x, draw: network(x, 0) + (draw() if x[0] else 0),
            "draws noise 0 times for x = 0, and more often otherwise",
        ),
        (
            lambda network, x, draw: network(x, 0) + draw() + (draw() if x[0] else 0),
            "draws noise 1 times for x = 0, and more often otherwise",
        ),
    ],
)
def test_loops_without_a_table(loop, message):
    with pytest.raises(ValueError, match=message):
        from_loop(loop)
