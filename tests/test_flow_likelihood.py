"""The probability flow's density, against exact densities and closed forms of Gaussian data."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from array_api_extra.testing import lazy_xp_function
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import ddpm_core as ddpm
from ddpm_core import levels
from ddpm_core.likelihood import dop853, rk4
from ddpm_core.likelihood.flow import central_difference
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
VP = ddpm.VP()
START, END = VP(1e-3), VP(1.0)

few = settings(max_examples=10)
# torch's own, when it first loads forward derivatives.
torch_derivatives = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def mixture(D: int = 2) -> ddpm.MixtureOracle:
    rng = np.random.default_rng(0)
    return ddpm.MixtureOracle([0.3, 0.7], rng.standard_normal((2, D)), [[0.09] * D, [0.3] * D])


def full(D: int, seed: int = 0) -> ddpm.GaussianOracle:
    """Its Jacobian has entries off the diagonal, which a trace must not see."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((D, D))
    return ddpm.GaussianOracle(rng.standard_normal(D), root @ root.T + 0.1 * np.eye(D))


def gaussian_flow(m, c, x, start, end) -> np.ndarray:
    """log N(y; 0, I) + ½ Σ log(V_e / V_s) with y = α_e m + sqrt(V_e / V_s) (x - α_s m)."""
    V_s, V_e = (t.alpha**2 * c + t.sigma**2 for t in (start, end))
    x_end = end.alpha * m + np.sqrt(V_e / V_s) * (x - start.alpha * m)
    return (stats.norm.logpdf(x_end) + 0.5 * np.log(V_e / V_s)).sum(1)


@few
@given(
    a=st.floats(-2, 9),
    width=st.floats(0.5, 8),
    m=st.floats(-2, 2),
    log_c=st.floats(-4, 3),
    z=strategies.normals((3, 2)),
)
def test_gaussian_data(a, width, m, log_c, z):
    """The closed form of Gaussian data between any two levels, by SciPy's adaptive solver."""
    start, end = VP.at(a), VP.at(max(a - width, -9.0))
    c = np.exp(log_c) * np.array([1.0, 0.3])
    oracle = ddpm.GaussianOracle(m * np.ones(2), c)
    x = start.alpha * m + np.sqrt(start.alpha**2 * c + start.sigma**2) * z
    solve = dop853(1e-9, 1e-9)
    actual = ddpm.flow_log_prob(oracle, VP, x, start, end, solve=solve)
    expected = gaussian_flow(m, c, x, start, end)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * (1 + np.abs(x).max() ** 2))


@pytest.mark.parametrize("full_cov", [False, True])
def test_rk4_is_fourth_order(full_cov):
    """Halving the steps of `rk4` divides the error by 16."""
    oracle = full(2) if full_cov else ddpm.GaussianOracle([0.3, -1.0], [0.01, 3.0])
    x = np.random.default_rng(1).standard_normal((3, 2))
    if full_cov:  # along its own directions it is of independent coordinates
        args = oracle.mean @ oracle.basis, oracle.variances, x @ oracle.basis
    else:
        args = oracle.mean, oracle.variances, x
    start = VP(0.01)
    exact = gaussian_flow(*args, start, END)
    errors = []
    for steps in (20, 40, 80):
        log_p = ddpm.flow_log_prob(oracle, VP, x, start, solve=rk4(steps))
        errors.append(np.abs(log_p - exact).max())
    slopes = np.log2(errors[:-1]) - np.log2(errors[1:])
    assert np.all((slopes >= 3.85) & (slopes <= 4.5)), (errors, slopes)


@pytest.mark.parametrize(
    ("schedule", "time", "bias"),
    [(ddpm.linear(), 1, 2.5e-5), (VP, 1e-3, 2.5e-5), (ddpm.cosine(), 1, 1.3e-4)],
    ids=["linear", "VP", "cosine"],
)
def test_bias_of_the_default(schedule, time, bias):
    """The mean bias that the docstring states, in bits per coordinate, D = 16."""
    rng = np.random.default_rng(0)
    start, end = schedule(time), schedule(schedule.ends[1])
    m, c = rng.uniform(-1, 1, 16), np.geomspace(1e-6, 4, 16)
    z = rng.standard_normal((8, 16))
    x = start.alpha * m + np.sqrt(start.alpha**2 * c + start.sigma**2) * z
    actual = ddpm.flow_log_prob(ddpm.GaussianOracle(m, c), schedule, x, start)
    off = (gaussian_flow(m, c, x, start, end) - actual) / (16 * math.log(2))
    assert abs(off.mean()) < bias


def test_mixture():
    """The exact density of a mixture, corrected only by what is not normal at the end."""
    oracle, ends = mixture(), []
    x = np.random.default_rng(2).uniform(-2, 2, (6, 2))
    adaptive = dop853(1e-8, 1e-8)

    def solve(f, a, b, y):
        ends.append(adaptive(f, a, b, y))
        return ends[-1]

    actual = ddpm.flow_log_prob(oracle, VP, x, START, solve=solve)
    x_end = ends[0][0]
    mismatch = stats.norm.logpdf(x_end).sum(1) - oracle.log_prob(x_end, END)
    np.testing.assert_allclose(actual - mismatch, oracle.log_prob(x, START), rtol=0, atol=1e-6)
    # α_end² = e^-20: little of the data is left, and the correction is below 1e-3.
    noisier = ddpm.VP(0.1, 40.0)
    actual = ddpm.flow_log_prob(oracle, noisier, x, noisier(1e-3), solve=adaptive)
    exact = oracle.log_prob(x, noisier(1e-3))
    bound = noisier(1.0).alpha * np.abs(oracle.means).sum() * 5  # |x_end| < 5
    assert bound < 1e-3
    np.testing.assert_allclose(actual, exact, rtol=0, atol=bound)


def test_defaults():
    """The end is the schedule's noisiest level, the solver is rk4(50); cond reaches the net."""
    oracle, x, y, seen = mixture(), np.full((2, 2), 0.4), object(), []

    def denoise(x, t, **cond):
        seen.append(cond["y"])
        return oracle(x, t)

    actual = ddpm.flow_log_prob(denoise, VP, x, START, y=y)
    expected = ddpm.flow_log_prob(oracle, VP, x, START, VP(1.0), solve=rk4(50))
    np.testing.assert_array_equal(actual, expected)
    assert len(seen) == 50 * 4 * (1 + 2 * 2)  # a value, and two calls for each of D directions
    assert all(one is y for one in seen)


@pytest.mark.parametrize("solve", [rk4(3), dop853(1e-4, 1e-4)], ids=["rk4", "dop853"])
def test_stays_within_the_schedule(solve):
    """No rounding of the time takes a solver outside its two levels."""
    schedule, seen = ddpm.cosine(50), []
    oracle = ddpm.GaussianOracle([0.2], 0.5)
    denoise = lambda x, t: seen.append(t.logsnr) or oracle(x, t)
    start, end = schedule(1), schedule(50)
    ddpm.flow_log_prob(denoise, schedule, np.ones((1, 1)), start, solve=solve)
    assert end.logsnr <= min(seen) <= end.logsnr + 1e-9
    assert start.logsnr - 1e-9 <= max(seen) <= start.logsnr + 1e-9


@given(a=st.floats(-3, 0), width=st.floats(0.1, 3), x=strategies.normals((2, 3)))
def test_solvers_integrate(a, width, x):
    """(y, w)' = (y, Σ y): solvers have the exponential and its integral, to their order."""
    f = lambda s, state: (state[0], state[0].sum(1))
    b, start = a + width, (x, np.zeros(2))
    for solve, tol in ((rk4(50), 1e-6), (dop853(1e-10, 1e-10), 1e-8)):
        y, total = solve(f, a, b, start)
        grown = np.exp(width) * np.abs(x).max()
        np.testing.assert_allclose(y, np.exp(width) * x, rtol=0, atol=tol * grown)
        np.testing.assert_allclose(total, np.expm1(width) * x.sum(1), rtol=0, atol=9 * tol * grown)
    # One step is the Taylor series to order 4 (Hairer, Norsett & Wanner 1993, II.1).
    y, total = rk4(1)(f, a, b, start)
    series = sum(width**k / math.factorial(k) for k in range(5))
    np.testing.assert_allclose(y, series * x, rtol=64 * EPS)
    rate = (series - 1) * x.sum(1)
    np.testing.assert_allclose(total, rate, rtol=0, atol=64 * EPS * 9 * (1 + np.abs(x).max()))


@given(a=st.floats(-3, 3), width=st.floats(0.1, 3), x=strategies.normals((3,)))
def test_rk4_integrates_cubics(a, width, x):
    """y' = s³ has no error: without y the method is Simpson's rule."""
    f = lambda s, state: (s**3 + 0 * state[0],)
    (y,) = rk4(3)(f, a, a + width, (x,))
    exact = x + ((a + width) ** 4 - a**4) / 4
    np.testing.assert_allclose(y, exact, rtol=0, atol=256 * EPS * (1 + np.abs(x).max() + 6**4))


def test_rk4_ends_where_it_should():
    """However the steps round, the last time is the end, and none is beyond it."""
    seen = []
    for steps in range(1, 60):
        seen.clear()
        rk4(steps)(lambda s, y: seen.append(s) or y, -0.1, 0.2, (np.ones(1),))
        assert (seen[0], seen[-1], max(seen)) == (-0.1, 0.2, 0.2)


def test_dop853_of_several_arrays():
    """Each array has its own rates and shape."""
    start = np.ones(()), np.full((2, 1), 2.0), np.arange(3.0)
    rates = lambda s, y: tuple(k * x for k, x in enumerate(y))
    for k, (y, x) in enumerate(zip(dop853()(rates, 0.0, 1.0, start), start, strict=True)):
        np.testing.assert_allclose(y, math.exp(k) * x, rtol=1e-7, strict=True)
    default, same = (solve(rates, 0.0, 1.0, start)[2] for solve in (dop853(), dop853(1e-8, 1e-8)))
    np.testing.assert_array_equal(default, same)


def signs(D: int) -> np.ndarray:
    """All 2^D vectors of signs."""
    return np.array(np.meshgrid(*[[-1.0, 1.0]] * D)).reshape(D, -1).T


@torch_derivatives
@pytest.mark.parametrize("kind", ["signs", "basis"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_hutchinson_over_all_probes(kind, library):
    """The mean of v' J v is tr J where the mean of v v' is I: all signs, and all sqrt(D) e_i.

    On NumPy with central differences of an affine denoiser, on torch with exact derivatives of
    one that is not.
    """
    D, B = 4, 3
    v = signs(D) if kind == "signs" else math.sqrt(D) * np.eye(D)
    np.testing.assert_allclose(v.T @ v / len(v), np.eye(D), atol=4 * EPS)
    x = np.random.default_rng(3).standard_normal((B, 2, 2))
    probes = np.broadcast_to(v.reshape(-1, 1, 2, 2), (len(v), B, 2, 2)).copy()
    gaussian = full(D)
    oracle = ddpm.GaussianOracle(gaussian.mean.reshape(2, 2), gaussian.cov)
    jvp, tol = None, 1e3 * EPS ** (2 / 3)
    if library == "torch":
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(4)
        oracle = ddpm.MixtureOracle([1.0, 2.0], rng.standard_normal((2, 2, 2)), 0.3)
        x, probes = torch.asarray(x), torch.asarray(probes)
        jvp, tol = torch.func.jvp, 1e3 * EPS
    run = lambda probes: ddpm.flow_log_prob(
        oracle, VP, x, START, solve=rk4(2), probes=probes, jvp=jvp
    )
    exact, estimate = np.asarray(run(None)), np.asarray(run(probes))
    np.testing.assert_allclose(estimate, exact, rtol=tol, atol=tol)
    # One probe alone is another number: the mean is what is tested.
    assert np.abs(np.asarray(run(probes[:1])) - exact).max() > 1e-3


@pytest.mark.slow
@torch_derivatives
def test_torch_and_jax_derivatives():
    """torch.func.jvp, jax.jvp and central differences give one density."""
    oracle = mixture()
    x = np.random.default_rng(5).standard_normal((3, 2))
    run = lambda x, **kw: ddpm.flow_log_prob(oracle, VP, x, START, solve=rk4(2), **kw)
    expected = run(x)
    torch = pytest.importorskip("torch")
    for jvp, tol in ((torch.func.jvp, 1e-7), (None, 1e-9)):
        actual = run(torch.asarray(x), jvp=jvp)
        assert actual.dtype == torch.float64
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tol)
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        actual = jax.jit(lambda x: run(x, jvp=jax.jvp))(jax.numpy.asarray(x))
        np.testing.assert_allclose(actual, run(torch.asarray(x), jvp=torch.func.jvp), rtol=1e-11)


@given(x=strategies.normals((3, 2)), v=strategies.normals((3, 2)))
def test_central_difference(x, v):
    """Exact but for rounding on quadratics, and h² f''' / 6 off beyond."""
    h = EPS ** (1 / 3)
    size = 1 + np.abs(x).max() ** 3 + np.abs(v).max() ** 3
    slope = central_difference(lambda x: x**2 - 3 * x, x, v)
    np.testing.assert_allclose(slope, (2 * x - 3) * v, rtol=0, atol=32 * EPS / h * size)
    slope = central_difference(lambda x: x**3, x, v)
    expected = 3 * x**2 * v + h**2 * v**3
    np.testing.assert_allclose(slope, expected, rtol=0, atol=32 * EPS / h * size)


def run(density, *arrays):
    """What `lazy_xp_function` sees: under JAX this call is jitted, under dask it is lazy."""
    return density(*arrays)


lazy_xp_function(run)


@pytest.mark.parametrize("hutchinson", [False, True], ids=["exact", "probes"])
def test_on_every_library(lib, hutchinson):
    """float32 on every array library is float64 on NumPy, to the roundings of differences."""
    oracle = full(2)
    rng = np.random.default_rng(6)
    arrays = [rng.standard_normal((4, 2)), rng.choice([-1.0, 1.0], (2, 4, 2))]

    def density(x, probes):
        probes = probes if hutchinson else None
        return ddpm.flow_log_prob(oracle, VP, x, VP(0.1), solve=rk4(2), probes=probes)

    expected = density(*arrays)
    actual = run(density, *(lib.asarray(a.astype(np.float32)) for a in arrays))
    assert actual.dtype == lib.xp.float32
    assert tuple(actual.shape) == (4,)
    if lib.has_values:
        # The oracle is affine, so differences lose EPS / h and nothing more.
        tol = 64 * float(np.finfo(np.float32).eps) ** (2 / 3)
        np.testing.assert_allclose(lib.to_numpy(actual), expected, rtol=0, atol=tol)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (VP(0.0), None),
        (VP(0.5), VP(0.4)),
        (VP(0.5), VP(0.5)),
        (VP(0.5), levels.from_logsnr(-math.inf, 1.0)),
    ],
    ids=["clean", "swapped", "same", "no-data"],
)
def test_levels_refused(start, end):
    """Clean data, a start that is not the cleaner, and an end without data."""
    message = f"log-SNR is {start.logsnr:.6g} at start"
    with pytest.raises(ValueError, match=message):
        ddpm.flow_log_prob(mixture(), VP, np.zeros((1, 2)), start, end)


@pytest.mark.parametrize("shape", [(3, 2), (1, 2, 2), (1, 3), (5, 3, 1)])
def test_probes_refused(shape):
    """Probes of another shape than x's, which might broadcast, are an error."""
    with pytest.raises(ValueError, match=r"probes must be \(P, 3, 2\), not \("):
        ddpm.flow_log_prob(mixture(), VP, np.zeros((3, 2)), START, probes=np.ones(shape))


def test_solvers_refuse(monkeypatch):
    """No steps, an integral that cannot be taken, and a solver without its library."""
    with pytest.raises(ValueError, match="steps must be at least 1, but is 0"):
        rk4(0)
    pole = lambda s, state: (state[0] ** 2,)  # y = 1 / (1 - s)
    with pytest.raises(ValueError, match="dop853 failed"), np.errstate(all="ignore"):
        dop853()(pole, 0.0, 2.0, (np.ones((1, 1)),))
    monkeypatch.setitem(sys.modules, "scipy.integrate", None)
    with pytest.raises(ImportError, match="dop853 needs scipy: pip install scipy"):
        dop853()
