"""Methods for inverse problems, against conditioning, the papers' equations and exact kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import inverse
from ddpm_core.denoisers import Wrapped
from ddpm_core.levels import from_logsnr
from ddpm_core.measurements import Measurement, Operator, average_pool, grey, mask, matrix, measure

EPS = np.finfo(np.float64).eps
DIFFERENCE = EPS ** (2 / 3)  # the relative error of a derivative on NumPy
SHAPE = (3, 2, 2)

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
levels = st.floats(-5, 5).map(lambda logsnr: from_logsnr(logsnr, 0.0))
pairs = st.tuples(st.floats(-5, 5), st.floats(0.1, 5)).map(
    lambda p: (from_logsnr(p[0], 1.0), from_logsnr(p[0] + p[1], 0.0))
)  # t, s < t
variances = st.sampled_from([0.0, 0.01, 0.5])
RNG = np.random.default_rng(0)
OPERATORS = {
    "mask": mask(RNG.random(SHAPE) < 0.5),
    "pool": average_pool(SHAPE, 2),
    "grey": grey(SHAPE),
    "matrix": matrix(RNG.standard_normal((5, 12)), SHAPE),
}
operators = pytest.mark.parametrize("name", OPERATORS)
MIXTURE = ddpm.MixtureOracle([0.3, 0.7], RNG.standard_normal((2, *SHAPE)), 0.3)
CLEAN = from_logsnr(np.inf, 0.0)


def seen(rng, operator, var=0.0):
    eps = rng.standard_normal((1, *operator.y_shape)) if var else None
    return measure(operator, rng.standard_normal((1, *SHAPE)), eps, var)


def rows(x):
    return x.reshape(len(x), -1)


@operators
@given(rng=seeds, t=levels)
def test_ddnm_keeps_the_measurement(name, rng, t):
    """A x_0 = y, to the bit for a mask, and A changes nothing that it does not see."""
    measurement = seen(rng, OPERATORS[name])
    x_t, a = rng.standard_normal((3, *SHAPE)), measurement.operator.matrix()
    x_0 = inverse.ddnm(MIXTURE, measurement)(x_t, t)
    off = measurement.operator.forward(x_0) - measurement.y
    atol = 0 if name == "mask" else 64 * EPS * (1 + np.abs(a).max() ** 2)
    np.testing.assert_allclose(off, 0, atol=atol)
    moved = rows(x_0 - MIXTURE(x_t, t)) @ (np.eye(12) - np.linalg.pinv(a) @ a)
    np.testing.assert_allclose(moved, 0, atol=256 * EPS)
    learned = Wrapped(lambda x, t: (MIXTURE(x, t), x))
    for method in (inverse.ddnm, inverse.diffpir):  # which are one without noise
        found, v = method(learned, measurement).both(x_t, t)
        np.testing.assert_array_equal(found, x_0)
        assert v is x_t


@operators
@given(rng=seeds, t=levels, var=st.floats(0.01, 1.0), lam=st.floats(0.1, 10.0))
def test_diffpir_is_a_posterior_mean(name, rng, t, var, lam):
    """Of N(x̂_0, k² / lam I) given y: (lam / k² I + Aᵀ A / var) x_0 = lam / k² x̂_0 + Aᵀ y / var."""
    measurement = seen(rng, OPERATORS[name], var)
    x_t, a = rng.standard_normal((3, *SHAPE)), measurement.operator.matrix()
    precision = lam * (t.alpha / t.sigma) ** 2
    system = precision * np.eye(12) + a.T @ a / var
    right = precision * rows(MIXTURE(x_t, t)) + rows(measurement.y) @ a / var
    expected = np.linalg.solve(system, right.T).T
    found = inverse.diffpir(MIXTURE, measurement, lam)(x_t, t)
    atol = 64 * EPS * np.linalg.cond(system) * (1 + np.abs(expected).max())
    np.testing.assert_allclose(rows(found), expected, rtol=0, atol=atol)


@operators
@given(rng=seeds, t=levels, var=variances, c=st.sampled_from([1.0, 0.1, 3.0]))
def test_pigdm_is_exact_for_isotropic_data(name, rng, t, var, c):
    """E[x_0 | x_t, y] of N(m, c I): by default for c = 1, with its own spread for every c."""
    measurement = seen(rng, OPERATORS[name], var)
    oracle = ddpm.GaussianOracle(rng.standard_normal(SHAPE), c)
    spread = None if c == 1.0 else lambda t: oracle.error(t).mean()
    x_t = rng.standard_normal((3, *SHAPE))
    found = inverse.pigdm(oracle, measurement, spread)(x_t, t)
    expected = oracle.given(measurement)(x_t, t)
    # J is a difference quotient, which (σ² / α) and A⁺ multiply.
    atol = 1e3 * DIFFERENCE * (1 + t.sigma**2 / t.alpha) * (1 + np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@operators
@given(rng=seeds, t=st.floats(-3, 3).map(lambda v: from_logsnr(v, 0.0)), var=variances)
def test_mmps_is_exact_for_gaussian_data(name, rng, t, var):
    """E[x_0 | x_t, y] of N(m, C), once conjugate gradients have solved; A needs no basis."""
    decomposed = OPERATORS[name]
    operator = Operator(SHAPE, decomposed.y_shape, decomposed.forward, decomposed.transpose)
    measurement = seen(rng, operator, var)
    root = rng.standard_normal((12, 12))
    oracle = ddpm.GaussianOracle(rng.standard_normal(SHAPE), root @ root.T / 12 + 0.3 * np.eye(12))
    x_t = rng.standard_normal((3, *SHAPE))
    expected = oracle.given(measurement)(x_t, t)
    found = inverse.mmps(oracle, measurement, 24)(x_t, t)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * (1 + np.abs(expected).max()))


@given(rng=seeds, t=levels, var=variances)
@example(rng=np.random.default_rng(0), t=from_logsnr(0.5, 0.0), var=0.0)
def test_nothing_to_solve_changes_nothing(rng, t, var):
    """Iterations beyond the solution keep it, also of a singular system; no misfit, no change."""
    a = rng.standard_normal((3, 12))
    measurement = seen(rng, matrix(np.vstack([a, a, a[:1] + a[1:2]]), SHAPE), var)
    oracle = ddpm.GaussianOracle(rng.standard_normal(SHAPE), rng.uniform(0.2, 2.0, SHAPE))
    x_t = rng.standard_normal((2, *SHAPE))
    found = inverse.mmps(oracle, measurement, 100)(x_t, t)
    expected = oracle.given(measurement)(x_t, t)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * (1 + np.abs(expected).max()))
    fits = measure(measurement.operator, oracle(x_t, t), var=var)
    np.testing.assert_array_equal(inverse.mmps(oracle, fits)(x_t, t), oracle(x_t, t))
    end = inverse.dps(oracle, fits)(x_t, t, CLEAN).mean
    np.testing.assert_array_equal(end, oracle(x_t, t))


@operators
@given(rng=seeds, pair=pairs, eta=st.floats(0, 1), eta_b=st.floats(0, 1), ratio=st.floats(0.2, 5))
def test_ddrm_is_its_paper(name, rng, pair, eta, eta_b, ratio):
    """Its equations in the coordinates x / α and σ / α, one coordinate of the basis at a time."""
    (t, s), operator = pair, OPERATORS[name]
    values = operator.singular.reshape(-1)
    std_y = ratio * values.max() * s.sigma / s.alpha
    assume(
        np.abs(std_y - values * s.sigma / s.alpha).min() > 1e-9
    )  # at a tie, either case is right
    measurement = seen(rng, operator, std_y**2)
    x_t, z = rng.standard_normal((2, 3, *SHAPE))
    step = inverse.ddrm(MIXTURE, measurement, eta, eta_b)(x_t, t, s)
    into = lambda x: rows(operator.to_basis(x))
    x0, xt, zs = into(MIXTURE(x_t, t)), into(x_t) / t.alpha, into(z)
    y = rows(operator.y_to_basis(measurement.y))[0]
    sigma_t, sigma_s, sigma_y = t.sigma / t.alpha, s.sigma / s.alpha, std_y
    expected, std = np.zeros_like(x0), np.zeros(12)
    for i, value in enumerate(values):
        if value == 0:
            expected[:, i] = x0[:, i] + np.sqrt(1 - eta**2) * sigma_s * (xt - x0)[:, i] / sigma_t
            std[i] = eta * sigma_s
        elif sigma_s < sigma_y / value:
            off = (y[i] - x0[:, i]) / (sigma_y / value)
            expected[:, i] = x0[:, i] + np.sqrt(1 - eta**2) * sigma_s * off
            std[i] = eta * sigma_s
        else:
            expected[:, i] = (1 - eta_b) * x0[:, i] + eta_b * y[i]
            std[i] = np.sqrt(sigma_s**2 - (sigma_y / value * eta_b) ** 2)
    atol = 1e3 * EPS * (1 + np.abs(y).max() + np.abs(xt).max())
    np.testing.assert_allclose(into(step.mean) / s.alpha, expected, rtol=0, atol=atol)
    # The square root of a difference that may cancel.
    moved = into(step.reparameterise(z) - step.mean) / s.alpha
    np.testing.assert_allclose(moved, std * zs, rtol=0, atol=atol + EPS**0.5 / 10)


def test_ddrm_at_a_tie():
    """Where k_s = sqrt(var) / g the measurement counts by eta_b."""
    rng, s = np.random.default_rng(0), from_logsnr(0.0, 0.0)  # k_s = 1
    measurement = seen(rng, mask(np.ones(SHAPE, bool)), 1.0)
    x_t, t = rng.standard_normal((2, *SHAPE)), from_logsnr(-1.0, 1.0)
    mean = inverse.ddrm(MIXTURE, measurement, 0.5, 0.2)(x_t, t, s).mean
    expected = 0.8 * MIXTURE(x_t, t) + 0.2 * measurement.y
    np.testing.assert_allclose(mean / s.alpha, expected, rtol=0, atol=64 * EPS)


@operators
@given(rng=seeds, pair=pairs, eta=st.floats(0, 1), eta_b=st.floats(0, 1), var=variances)
def test_ddrm_keeps_the_variance_of_q(name, rng, pair, eta, eta_b, var):
    """If x̂_0 is x_0, the variance of x_s about α_s x_0, over noise in x_t, y and z, is σ_s²."""
    (t, s), operator = pair, OPERATORS[name]
    x_0 = rng.standard_normal((1, *SHAPE))

    def drawn(eps, eps_y, z):
        kernel = inverse.ddrm(lambda x, t: x_0, measure(operator, x_0, eps_y, var), eta, eta_b)
        step = kernel(ddpm.q_sample(x_0, eps, t), t, s)
        return rows(step.reparameterise(z) - s.alpha * x_0)[0]

    zeros, none = np.zeros_like(x_0), np.zeros((1, *operator.y_shape))
    units = lambda a: np.eye(a.size).reshape(-1, *a.shape)
    parts = [drawn(e, none, zeros) for e in units(zeros)]
    parts += [drawn(zeros, e, zeros) for e in units(none)]
    parts += [drawn(zeros, none, e) for e in units(zeros)]
    cov = np.array(parts).T @ np.array(parts)
    np.testing.assert_allclose(cov, s.sigma**2 * np.eye(12), rtol=0, atol=1e4 * EPS)
    clean = inverse.ddrm(lambda x, t: x_0, measure(operator, x_0, None, var))(zeros, t, CLEAN)
    np.testing.assert_allclose(clean.mean, x_0, rtol=0, atol=256 * EPS)


@operators
@given(rng=seeds, pair=pairs)
def test_replaced_is_q_where_measured(name, rng, pair):
    """V_m ᵀ x_s = α_s ȳ + σ_s z̄, V_m what A sees; the kernel's elsewhere; A x_0 = y at clean."""
    (t, s), operator = pair, OPERATORS[name]
    measurement = seen(rng, operator)
    x_t, z = rng.standard_normal((2, 3, *SHAPE))
    kernel = ddpm.reverse(MIXTURE)
    step = inverse.replaced(kernel, measurement)(x_t, t, s)
    inverted = np.linalg.pinv(operator.matrix())
    see, y = inverted @ operator.matrix(), rows(measurement.y) @ inverted.T
    for found, noise, plain in (
        (step.mean, 0 * z, kernel(x_t, t, s).mean),
        (step.reparameterise(z), z, kernel(x_t, t, s).reparameterise(z)),
    ):
        expected = (s.alpha * y + s.sigma * rows(noise)) @ see + rows(plain) @ (np.eye(12) - see)
        size = 1 + np.abs(expected).max() + np.abs(y).max()
        np.testing.assert_allclose(rows(found), expected, rtol=0, atol=1e3 * EPS * size)
    end = inverse.replaced(kernel, measurement)(x_t, t, CLEAN).mean
    np.testing.assert_allclose(operator.forward(end) - measurement.y, 0, atol=1e3 * EPS * size)


@pytest.mark.parametrize(
    ("n", "jump", "repeats", "times"),
    [
        (4, 1, 2, [4, 3, 4, 3, 2, 3, 2, 1, 2, 1, 0]),  # Algorithm 1, with T = 4 and U = 2
        (3, 1, 3, [3, 2, 3, 2, 3, 2, 1, 2, 1, 2, 1, 0]),  # and T = 3, U = 3
        (5, 2, 2, [5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0]),
        (4, 2, 3, [4, 3, 2, 1, 3, 2, 1, 3, 2, 1, 0]),  # the first level is in no whole stretch
        (5, 3, 2, [5, 4, 3, 2, 1, 4, 3, 2, 1, 0]),
        (3, 10, 10, [3, 2, 1, 0]),
        (3, 1, 1, [3, 2, 1, 0]),
    ],
)
def test_walk_is_repaints(n, jump, repeats, times):
    """The paper's Algorithm 1 by hand, and its longer jumps (Figure 9), which land in one step."""
    levels = ddpm.levels_of(ddpm.linear(n, rescale=False), n)
    assert inverse.walk(levels, jump, repeats).time.tolist() == times


def coefficients(draw, n):
    """Of an affine scalar function of x and noises 1 to n: its derivatives by each."""
    at = lambda j: draw(
        np.full((1, 1), float(j == 0)), lambda i, shape: np.full(shape, float(i == j))
    )[0, 0]
    origin = at(-1)
    return np.array([at(j) - origin for j in range(n + 1)])


@given(c=st.floats(0.05, 4.0), jump=st.integers(1, 4), repeats=st.integers(1, 3))
def test_a_walk_keeps_exact_kernels_exact(c, jump, repeats):
    """Rises by q and falls by the exact kernel carry q(x_T) to the data's variance."""
    oracle = ddpm.GaussianOracle([0.0], c)
    levels = inverse.walk(ddpm.levels_of(ddpm.linear(1000), 6), jump, repeats)
    top, noisy, last = levels.take(0), levels.take(slice(0, -1)), levels.take(-2)
    n = len(noisy.time) - 1
    draw = lambda x, noise: ddpm.sample_kernel(oracle.reverse, noisy, x, noise)
    var = [top.alpha**2 * c + top.sigma**2, *np.ones(n)] @ coefficients(draw, n) ** 2
    assert var == pytest.approx(last.alpha**2 * c + last.sigma**2, rel=1e4 * EPS)


@operators
@given(rng=seeds, pair=pairs, zeta=st.floats(0.1, 2.0))
def test_dps_descends_its_misfit(name, rng, pair, zeta):
    """Moved by -zeta / ‖y - A x̂_0‖ ∇ ‖y - A x̂_0‖², the gradient by central differences."""
    (t, s), measurement = pair, seen(rng, OPERATORS[name], 0.1)
    x_t = rng.standard_normal((1, *SHAPE))
    misfit = lambda x: rows(measurement.y - measurement.operator.forward(MIXTURE(x, t)))
    h = EPS ** (1 / 3) * t.sigma
    steps = h * np.eye(12).reshape(12, *SHAPE)
    squares = [(misfit(x_t + sign * steps) ** 2).sum(1) for sign in (1, -1)]
    gradient = (squares[0] - squares[1]) / (2 * h)
    moved = -zeta / np.linalg.norm(misfit(x_t)) * gradient
    step = inverse.dps(MIXTURE, measurement, zeta, ddpm.large)(x_t, t, s)
    plain = ddpm.reverse(MIXTURE, ddpm.large)(x_t, t, s)
    # Third derivatives of a mixture's softmax grow as (α / σ²)³.
    atol = 1e4 * DIFFERENCE * (1 + t.alpha / t.sigma**2) ** 3 * (1 + np.abs(moved).max())
    np.testing.assert_allclose(rows(step.mean - plain.mean)[0], moved, rtol=0, atol=atol)
    assert step.var == plain.var
    assert inverse.dps(MIXTURE, measurement, variance=ddpm.large)(x_t, t, CLEAN).var == 0


@pytest.mark.parametrize("var", [0.0, 0.1])
def test_what_a_mask_hides_is_not_read(var):
    """Whatever y has there, NaN or noise, each method and oracle does what it does with zeros."""
    rng = np.random.default_rng(0)
    operator, y = OPERATORS["mask"], rng.standard_normal((1, *SHAPE))
    shown = operator.singular > 0
    t, s = from_logsnr(-1.0, 1.0), from_logsnr(0.5, 0.0)
    x_t, z = rng.standard_normal((2, 3, *SHAPE))
    methods = {
        "diffpir": lambda m: inverse.diffpir(MIXTURE, m)(x_t, t),
        "pigdm": lambda m: inverse.pigdm(MIXTURE, m)(x_t, t),
        "mmps": lambda m: inverse.mmps(MIXTURE, m)(x_t, t),
        "ddrm": lambda m: inverse.ddrm(MIXTURE, m)(x_t, t, s).reparameterise(z),
        "dps": lambda m: inverse.dps(MIXTURE, m)(x_t, t, s).mean,
        "given": lambda m: MIXTURE.given(m)(x_t, t),
    }
    if not var:
        methods["ddnm"] = lambda m: inverse.ddnm(MIXTURE, m)(x_t, t)
    for name, method in methods.items():
        expected = method(Measurement(operator, np.where(shown, y, 0.0), var))
        for other in (y, np.where(shown, y, np.nan)):
            found = method(Measurement(operator, other, var))
            np.testing.assert_array_equal(found, expected, err_msg=name)


@given(rng=seeds, t=levels, share=st.floats(0, 1))
def test_interpolate(rng, t, share):
    """Each end is its own x_t, and noise keeps σ² between; shares may differ by sample."""
    x_0, other, eps, other_eps = rng.standard_normal((4, 2, 3))
    ends = ddpm.q_sample(x_0, eps, t), ddpm.q_sample(other, other_eps, t)
    found = inverse.interpolate(x_0, other, eps, other_eps, np.array([0.0, 1.0]), t)
    np.testing.assert_allclose(found, [ends[0][0], ends[1][1]], rtol=0, atol=8 * EPS)
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    noises = [inverse.interpolate(zero, zero, *e, share, t) for e in ((one, zero), (zero, one))]
    assert sum(noise**2 for noise in noises) == pytest.approx(t.sigma**2, rel=16 * EPS)
    data = inverse.interpolate(zero, one, zero, zero, share, t)
    assert data == pytest.approx(t.alpha * share, rel=16 * EPS)


@pytest.mark.parametrize("on_device", [False, True])
def test_on_every_library(lib, on_device):
    """float32 on every array library is float64 on NumPy, at levels of the host and the device."""
    rng = np.random.default_rng(1)
    x_t = rng.standard_normal((3, *SHAPE)).astype(np.float32)
    noisy, exact = (seen(rng, OPERATORS["grey"], var) for var in (0.5, 0.0))
    kernels = (
        inverse.ddrm(MIXTURE, noisy),
        inverse.replaced(ddpm.reverse(MIXTURE), exact),
        inverse.dps(MIXTURE, noisy),
    )
    for method in (
        lambda x, t, s: inverse.ddnm(MIXTURE, exact)(x, t),
        lambda x, t, s: inverse.diffpir(MIXTURE, noisy)(x, t),
        lambda x, t, s: inverse.pigdm(MIXTURE, noisy)(x, t),
        lambda x, t, s: inverse.mmps(MIXTURE, noisy)(x, t),
        *(lambda x, t, s, k=k: k(x, t, s).reparameterise(x) for k in kernels),
    ):
        levels = [from_logsnr(np.full(3, logsnr), np.zeros(3)) for logsnr in (-1.0, 0.5)]
        expected = method(x_t.astype(np.float64), *levels)
        levels = [lib.level(t, lib.xp.float32) for t in levels] if on_device else levels
        found = method(lib.asarray(x_t), *levels)
        assert found.dtype == lib.xp.float32
        assert tuple(found.shape) == x_t.shape
        if lib.has_values:
            # On libraries without derivatives they are difference quotients.
            np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=0, atol=2e-3)


def test_defaults():
    """Those of the papers, and of the docstrings."""
    rng = np.random.default_rng(0)
    measurement, x_t = seen(rng, OPERATORS["matrix"], 0.1), rng.standard_normal((2, *SHAPE))
    t, s = from_logsnr(-1.0, 1.0), from_logsnr(0.5, 0.0)
    draw = lambda kernel: kernel(x_t, t, s).reparameterise(x_t)
    for found, expected in (
        (
            inverse.diffpir(MIXTURE, measurement)(x_t, t),
            inverse.diffpir(MIXTURE, measurement, 1.0)(x_t, t),
        ),
        (inverse.mmps(MIXTURE, measurement)(x_t, t), inverse.mmps(MIXTURE, measurement, 5)(x_t, t)),
        (
            draw(inverse.ddrm(MIXTURE, measurement)),
            draw(inverse.ddrm(MIXTURE, measurement, 0.85, 1.0)),
        ),
        (draw(inverse.dps(MIXTURE, measurement)), draw(inverse.dps(MIXTURE, measurement, 1.0))),
        (
            inverse.walk(ddpm.levels_of(ddpm.linear(), 40)).time,
            inverse.walk(ddpm.levels_of(ddpm.linear(), 40), 10, 10).time,
        ),
    ):
        np.testing.assert_array_equal(found, expected)
    inverse.mmps(MIXTURE, measurement, 1)(x_t, t)


def test_refusals():
    """What a method cannot take is an error that names another."""
    operator = OPERATORS["matrix"]
    noisy = Measurement(operator, np.zeros((1, 5)), 0.1)
    for method in (inverse.ddnm, inverse.replaced):
        with pytest.raises(ValueError, match=r"without noise, but var = 0\.1: use diffpir"):
            method(MIXTURE, noisy)
    bare = Operator(SHAPE, (5,), operator.forward, operator.transpose)
    for method in (inverse.ddnm, inverse.diffpir, inverse.pigdm, inverse.replaced, inverse.ddrm):
        with pytest.raises(ValueError, match="use mmps or dps"):
            method(MIXTURE, Measurement(bare, np.zeros((1, 5))))
    pure = from_logsnr(-np.inf, 1.0)
    for method in (inverse.pigdm, inverse.mmps):
        with pytest.raises(ValueError, match=r"\(alpha = 0\)"):
            method(MIXTURE, noisy)(np.zeros((1, *SHAPE)), pure)
    for name in ("eta", "eta_b"):
        with pytest.raises(ValueError, match=rf"{name} must lie within 0 \.\. 1, but is 1\.5"):
            inverse.ddrm(MIXTURE, noisy, **{name: 1.5})
    for lam in (0.0, np.nan):
        with pytest.raises(ValueError, match=f"lam must be positive, but is {lam}"):
            inverse.diffpir(MIXTURE, noisy, lam)
    with pytest.raises(ValueError, match="iterations must be at least 1, but is 0"):
        inverse.mmps(MIXTURE, noisy, 0)
    for jump, repeats in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="jump and repeats must be at least 1"):
            inverse.walk(ddpm.levels_of(ddpm.linear(1000), 5), jump, repeats)
