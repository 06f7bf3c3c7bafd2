"""The log probability of a step: a path's density, row by row, and its gradients."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
from solver_paths import LINEAR, SOLVERS, curved, draws

import ddpm_core as ddpm
from ddpm_core.levels import Level
from ddpm_core.samplers import log_prob_of_step

#: All whose points each take a noise of their own.
NOISY = [
    name
    for name, solver in SOLVERS.items()
    if solver(LINEAR, 5, times=np.linspace(1000, 200, 6)).point[:, -1].all()
]


def path_of(denoise, sampler, x, noise):
    """The state before each row, what the network said there, and the point after it."""
    state = sampler.start(x)
    for i, row in enumerate(sampler.rows(), start=1):
        y = denoise(state.point, row.level)
        after = ddpm.advance(row, state, y, noise(i, x.shape) if row.point[-1] else None)
        yield row, state, y, after.point
        state = after


def affine(t):
    """G and g of x_0 = G x_t + g, others at each level."""
    rng = np.random.default_rng(round(t.time))
    return rng.standard_normal((2, 2)) / 2, rng.standard_normal(2)


def test_solvers():
    """With a corrector, an anchor and a memory among them."""
    assert {"ancestral", "ancestral large", "ddim eta=0.5", "sde_dpmpp_3m", "sa_solver"} < {*NOISY}


@pytest.mark.parametrize("end", [0, 200])
@pytest.mark.parametrize("name", NOISY)
def test_sum_is_the_density_of_the_path(name, end):
    """Σ over rows = log N of all points, whose covariance is made of the unrolled table at once."""
    sampler = SOLVERS[name](LINEAR, 5, times=np.linspace(1000, end, 6))
    x = np.random.default_rng(0).standard_normal((3, 2))
    denoise = lambda x, t: x @ affine(t)[0].T + affine(t)[1]
    path = [step for step in path_of(denoise, sampler, x, draws(0)) if step[0].point[-1]]
    found = sum(log_prob_of_step(*step) for step in path)

    # (I - y G) p = x x_T + y g + z z, of the points p: two coordinates of each.
    u, n, rows = sampler.unroll(), sampler.nfe, len(path)
    assert rows == (n if end else n - 1)
    on_p, on_z = np.eye(2 * n + 2), np.kron(u.z, np.eye(2))
    offset = np.zeros(2 * n + 2)
    for j in range(n):
        G, g = affine(u.levels.take(j))
        on_p[:, 2 * j : 2 * j + 2] -= np.kron(u.y[:, j : j + 1], G)
        offset += np.kron(u.y[:, j], g)
    drawn = slice(2, 2 * rows + 2)
    root = np.linalg.solve(on_p, on_z)[drawn, : 2 * rows]
    means = np.linalg.solve(on_p, (offset + np.kron(u.x, x)).T).T[:, drawn]
    points = np.concatenate([after for *_, after in path], axis=1)
    white = np.linalg.solve(root, (points - means).T)
    expected = -(white**2).sum(axis=0) / 2 - np.linalg.slogdet(root)[1]
    expected -= rows * math.log(2 * math.pi)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_density_of_a_kernel():
    """Of one row of `ancestral` it is the density of Ho et al. 2020's p(x_s | x_t)."""
    sampler = ddpm.ancestral(LINEAR, 4, variance=ddpm.large)
    t, s = (sampler.levels.take(i) for i in (1, 2))
    x_t, x_s = np.random.default_rng(0).standard_normal((2, 3, 2, 2))
    kernel = ddpm.reverse(curved, ddpm.large)(x_t, t, s)
    found = log_prob_of_step(sampler.rows()[1], sampler.start(x_t), curved(x_t, t), x_s)
    assert found.shape == (3,)
    np.testing.assert_allclose(found, ddpm.gaussians.log_prob(kernel, x_s), rtol=1e-12)


def test_rows_as_arrays():
    """A row of arrays (), and one of arrays (B,) that has each sample at a step of its own."""
    sampler = ddpm.ancestral(LINEAR, 4)
    x, y, after = np.random.default_rng(0).standard_normal((3, 3, 2))
    expected = [log_prob_of_step(row, sampler.start(x), y, after) for row in sampler.rows()[:3]]
    table = sampler.rows_as(np, np.float64)

    def at(i):
        return ddpm.samplers.Row(
            Level(*(column[i] for column in table.level)),
            *(tuple(column[i] for column in part) for part in table[1:]),
        )

    one = log_prob_of_step(at(1), sampler.start(x), y, after)
    np.testing.assert_allclose(one, expected[1], rtol=1e-14)
    each = log_prob_of_step(at(np.array([2, 0, 1])), sampler.start(x), y, after)
    np.testing.assert_allclose(each, [expected[2][0], expected[0][1], expected[1][2]], rtol=1e-14)


@pytest.mark.parametrize("solver", ["sa_solver", "sde_dpmpp_3m"])
def test_half_precision_is_computed_in_float32(solver):
    """What half precision would lose: the mean is not rounded to it before the density is taken."""
    sampler = SOLVERS[solver](LINEAR, 4)
    x = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float16)
    said = lambda x, t: curved(x, t).astype(x.dtype)
    for row, state, y, after in list(path_of(said, sampler, x, draws(0)))[:3]:
        wide = [a.astype(np.float64) for a in (state.point, state.anchor, *state.memory, y, after)]
        point, anchor, *memory, y_wide, after_wide = wide
        state_wide = ddpm.samplers.tables.State(point, anchor, tuple(memory))
        found = log_prob_of_step(row, state, y, after)
        assert found.dtype == np.float32
        expected = log_prob_of_step(row, state_wide, y_wide, after_wide)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.lanes("torch", "jax")
def test_gradients_are_finite_differences(lib):
    """By y and by x_next, of every row's log probability; a quadratic's central one is exact."""
    sampler = ddpm.samplers.sa_solver(LINEAR, 4)
    steps = list(path_of(curved, sampler, np.ones((2, 3)), draws(0)))[:3]

    def summed(arrays, row, state, convert=lambda a: a):
        state = ddpm.samplers.tables.State(
            convert(state.point), convert(state.anchor), tuple(map(convert, state.memory))
        )
        return log_prob_of_step(row, state, *arrays).sum()

    def slope(row, state, arrays, k):
        """By arrays[k], element by element."""
        found, h = np.zeros(arrays[k].shape), 1e-3
        for index in np.ndindex(found.shape):
            up, down = ([a.copy() for a in arrays] for _ in range(2))
            up[k][index] += h
            down[k][index] -= h
            found[index] = (summed(up, row, state) - summed(down, row, state)) / (2 * h)
        return found

    with lib.precision("float64"):
        for row, state, *arrays in steps:
            there = [lib.asarray(a) for a in arrays]
            if lib.name == "torch":
                there = [a.requires_grad_() for a in there]
                summed(there, row, state, lib.asarray).backward()
                gradients = [a.grad for a in there]
            else:
                grad = importlib.import_module("jax").grad
                gradients = grad(summed)(there, row, state, lib.asarray)
            for k in range(2):
                expected = slope(row, state, arrays, k)
                size = np.abs(expected).max()
                np.testing.assert_allclose(
                    lib.to_numpy(gradients[k]), expected, rtol=0, atol=1e-9 * size
                )


def test_a_row_without_noise_is_refused():
    """The row into clean data, a solver's without noise, and one whose anchor alone takes it."""
    x = np.zeros((1, 2))
    ancestral, ddim = ddpm.ancestral(LINEAR, 3), ddpm.ddim(LINEAR, 3)
    for sampler, row in (ancestral, ancestral.rows()[-1]), (ddim, ddim.rows()[0]):
        with pytest.raises(ValueError, match="takes no noise, so that its point has no density"):
            log_prob_of_step(row, sampler.start(x), x, x)
    row = ancestral.rows()[0]
    row = row._replace(point=(*row.point[:-1], 0.0), anchor=row.point)
    with pytest.raises(ValueError, match="takes no noise"):
        log_prob_of_step(row, ancestral.start(x), x, x)


def test_shapes_are_checked():
    sampler = ddpm.ancestral(LINEAR, 3)
    x = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"x_next has shape \(2, 1\) but point has"):
        log_prob_of_step(sampler.rows()[0], sampler.start(x), x, x[:, :1])
