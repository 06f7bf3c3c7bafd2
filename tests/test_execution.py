"""What executes tables: a backend's lincomb, torch.compile, lax.scan."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.arrays import combine
from ddpm_core_numpy import NumPy

EPS = float(np.finfo(np.float32).eps)
SCHEDULE = ddpm.linear(1000)
#: Of every shape: without a memory, with one, with noise, with an anchor, with all of them.
SOLVERS = [
    ddpm.ddim,
    ddpm.ancestral,
    samplers.dpmpp_3m,
    ddpm.heun,
    ddpm.unipc_2,
    samplers.sa_solver,
]
solvers = pytest.mark.parametrize("solver", SOLVERS)
TOY = ddpm.MixtureOracle([0.3, 0.7], [[-1.0, 0.2], [0.5, -0.4]], 0.2)


def draws(count: int, shape=(4, 2)) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


# lincomb. ---------------------------------------------------------------------------------------


@pytest.fixture(params=["numpy", "torch"])
def on(request):
    if request.param == "torch":
        pytest.importorskip("torch")
    return ddpm.backend(request.param)


def test_lincomb_is_combine(on):
    """Numbers, zeros among them, and arrays () and (B,): the plain sum, of the same dtype."""
    a = draws(4, (3, 2, 2))
    for coefficients in [
        (0.5, -2.0, 0.0, 1.0),
        (0.0, 0.0, 0.0, 3.0),
        (0.0, 0.0, 0.0, 0.0),
        (np.float64(0.5), np.arange(3.0), 0.0, np.array(2.0)),
        (np.zeros(3), 1.0, 0.0, np.arange(3.0)),
    ]:
        terms = [(c, on.asarray(x)) for c, x in zip(coefficients, a, strict=True)]
        kept = [on.to_numpy(x).copy() for _, x in terms]
        found = on.lincomb(*terms)
        assert found.dtype == on.dtype
        expected = combine(*zip(coefficients, a.astype(np.float64), strict=True))
        np.testing.assert_allclose(on.to_numpy(found), expected, rtol=0, atol=16 * EPS)
        for (_, x), before in zip(terms, kept, strict=True):  # which are not changed
            np.testing.assert_array_equal(on.to_numpy(x), before)
        for _, x in terms:  # nor is the result one of them
            assert found is not x


@solvers
def test_sample_with_lincomb(on, solver):
    """The same sample, to the roundings of another order of sums; x is not changed."""
    x, *z = draws(20)
    sampler = solver(SCHEDULE, 8)
    noise = lambda i, shape: on.asarray(z[i])
    start = on.asarray(x)
    plain = ddpm.sample(TOY, sampler, start, noise)
    fused = ddpm.sample(TOY, sampler, start, noise, lincomb=on.lincomb)
    # A mixture's reading turns by (α / σ)² of what it is given; the coefficients are below 10.
    np.testing.assert_allclose(on.to_numpy(fused), on.to_numpy(plain), rtol=0, atol=2e3 * EPS)
    np.testing.assert_array_equal(on.to_numpy(start), x)


def test_lincomb_has_gradients():
    """Through torch's in-place sums too."""
    torch = pytest.importorskip("torch")
    on = ddpm.backend("torch", dtype="float64")
    x, y = (torch.from_numpy(a.astype(np.float64)).requires_grad_() for a in draws(2))
    scale = torch.full((4,), 2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, y, scale: on.lincomb((0.5, x), (-3.0, y), (scale, y), (1.5, x)), (x, y, scale)
    )


def test_numpy_lincomb_of_mixed_dtypes():
    """advance casts to x's dtype before it asks: a float64 network does not raise or widen x."""
    x, y = draws(2)
    row = ddpm.dpmpp_2m(SCHEDULE, 3).rows()[0]
    state = samplers.State(x, x, (x,))
    found = ddpm.advance(row, state, y.astype(np.float64), lincomb=NumPy().lincomb)
    np.testing.assert_array_equal(
        found.point, ddpm.advance(row, state, y, lincomb=NumPy().lincomb).point
    )
    assert {a.dtype.name for a in (found.point, found.anchor, *found.memory)} == {"float32"}


# Compilers. -------------------------------------------------------------------------------------


@pytest.mark.slow
@solvers
@pytest.mark.parametrize("kind", ["numbers", "arrays", "per sample"])
def test_torch_compile_is_one_graph(solver, kind):
    """torch.compile(advance, fullgraph=True): no graph break, and the same numbers."""
    torch = pytest.importorskip("torch")
    x, y, z, m = (torch.from_numpy(a) for a in draws(4))
    sampler = solver(SCHEDULE, 4).given(ddpm.eps)
    table = sampler.rows_as(torch, torch.float32)

    def row(i):
        if kind == "numbers":
            return sampler.rows()[i]
        at = i if kind == "arrays" else torch.tensor([i, 0, i, 1])
        level, *columns = (tuple(c[at] for c in part) for part in table)
        return samplers.Row(ddpm.Level(*level), *columns)

    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own, on import
        warnings.filterwarnings("ignore", message=".*lru_cache")  # of array_api_compat's
        compiled = torch.compile(ddpm.advance, fullgraph=True, backend="aot_eager")
        for i in (0, 2):
            state = samplers.State(x, x + 1, (m,) * len(sampler.start(x).memory))
            found, expected = compiled(row(i), state, y, z), ddpm.advance(row(i), state, y, z)
            for a, b in zip(
                (*found[:2], *found.memory), (*expected[:2], *expected.memory), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=0, atol=64 * EPS * float(b.abs().max()))


@pytest.mark.slow
@solvers
def test_lax_scan_is_the_host_loop(solver):
    """`lax.scan` over `rows_as`: the sample of the loop, by one program for all steps."""
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    sizes = []
    for steps in (4, 40):
        x, *z = (jnp.asarray(a) for a in draws(90))
        sampler = solver(SCHEDULE, steps)
        zs = jnp.stack(z[: sampler.nfe + 1])

        def run(x, rows, zs, sampler=sampler):
            def step(state, row_and_z):
                row, z = row_and_z
                return ddpm.advance(row, state, TOY(state.point, row.level), z), None

            return jax.lax.scan(step, sampler.start(x), (rows, zs))[0].point

        given = x, sampler.rows_as(jnp, jnp.float32), zs[1 : sampler.nfe + 1]
        found = jax.jit(run)(*given)
        expected = ddpm.sample(TOY, sampler, x, lambda i, shape, zs=zs: zs[i])
        sizes.append(str(jax.make_jaxpr(run)(*given)).count(" = "))
        # Levels in float32 lose EPS of log-SNR's size; a mixture's reading turns by (α / σ)² of it.
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e4 * EPS)
    assert sizes[0] == sizes[1]
