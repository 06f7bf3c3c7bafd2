"""Functions of numbers and arrays: the one place that broadcasts, and the checks of arrays."""

from __future__ import annotations

import importlib
import math
from fractions import Fraction

import array_api_strict
import numpy as np
import pytest
from array_api_compat import array_namespace
from array_api_extra.testing import lazy_xp_function
from hypothesis import given
from hypothesis import strategies as st

from ddpm_core import arrays
from ddpm_core.arrays import check_pair, combine, fit, is_number, on_host, vjp, where, widen
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
NUMBERS = [2, 2.0, np.float64(2), np.float32(2), np.int64(2), np.asarray(2), np.asarray(2.0)]


@given(strategies.shapes(), st.sampled_from([np.float32, np.float64]), st.integers(0, 99))
def test_fit_is_per_sample(shape, dtype, seed):
    """A coefficient (B,) times x is each sample times its number, in x's dtype."""
    rng = np.random.default_rng(seed)
    c, x = rng.standard_normal(shape[0]), rng.standard_normal(shape).astype(dtype)
    got = fit(c, x) * x
    assert got.dtype == dtype
    assert got.shape == shape
    for i in range(shape[0]):
        np.testing.assert_array_equal(got[i], fit(float(c[i]), x[i]) * x[i])


@pytest.mark.parametrize("c", [2, 2.0, np.float64(2), np.asarray(2.0), np.asarray(2.0, np.float32)])
def test_numbers_stay_numbers(c):
    """A number of any kind is a Python float, which leaves x's dtype alone."""
    assert type(fit(c, np.ones((2, 3), np.float16))) is float
    assert (fit(c, np.ones((2, 3), np.float16)) * np.ones(1, np.float16)).dtype == np.float16


def test_fit_casts_last():
    """A float64 coefficient meets float32 data as the nearest float32."""
    c = np.asarray([Fraction(1, 3), Fraction(2, 3)], dtype=np.float64)
    got = fit(c, np.ones((2, 5), np.float32))
    np.testing.assert_array_equal(got[:, 0], [np.float32(1 / 3), np.float32(2 / 3)])


@pytest.mark.parametrize("shape", [(3,), (2, 1), (0,)])
def test_fit_names_the_shapes(shape):
    """Coefficients that are neither one value nor one per sample are an error."""
    with pytest.raises(ValueError, match=rf"shape \({shape[0]}.*x of shape \(2, 5, 5\)"):
        fit(np.ones(shape), np.ones((2, 5, 5)))


def test_zero_takes_no_part():
    """A host coefficient of 0 costs nothing: 0 times inf does not appear."""
    bad, good = np.asarray([[math.inf, math.nan]]), np.ones((1, 2))
    np.testing.assert_array_equal(combine((0.0, bad), (2.0, good)), 2 * good)
    for terms in ([(0, good), (0.0, good)], [(0.0, good)]):
        np.testing.assert_array_equal(combine(*terms), np.zeros((1, 2)))


def test_pairs_must_match():
    """Arrays that are combined have one shape and one floating-point dtype, or are named."""
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"eps has shape \(3, 2\) but x_0 has shape \(2, 3\)"):
        check_pair(x_0=x, eps=np.ones((3, 2), np.float32))
    with pytest.raises(TypeError, match="eps has dtype float64 but x_0 has dtype float32"):
        check_pair(x_0=x, eps=np.ones((2, 3)))
    with pytest.raises(TypeError, match="x_0 has dtype int64: convert it to floating point"):
        check_pair(x_0=np.ones((2, 3), np.int64))


@pytest.mark.parametrize(
    ("given_", "wide"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_half_precision_is_widened(given_, wide):
    """Half precision is computed in float32, and nothing else changes."""
    assert widen(np, np.ones(2, given_)).dtype == wide


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_precisions_are_kept(lib, dtype):
    """They are not even copied, whatever a library calls the size of its dtypes."""
    with lib.precision(dtype):
        x = lib.asarray([1.0, 2.0], getattr(lib.xp, dtype))
        assert widen(lib.xp, x) is x


@pytest.mark.parametrize("c", NUMBERS, ids=lambda c: type(c).__name__)
def test_numbers_of_every_kind_are_numbers(c):
    """Python's numbers, NumPy's scalars and its arrays () are numbers, and give Python floats."""
    assert is_number(c)
    assert on_host(c)
    for f, wanted in ((arrays.exp, math.e**2), (arrays.expm1, math.e**2 - 1), (arrays.log, None)):
        assert type(f(c)) is float
        assert f(c) == pytest.approx(math.log(2) if wanted is None else wanted, rel=4 * EPS)
    assert type(arrays.sqrt(c)) is type(arrays.minimum(c, 1.0)) is float
    assert type(arrays.log_sigmoid(c)) is type(arrays.logit_of_log(-c)) is float


@pytest.mark.parametrize("c", [np.ones(1), np.ones((1, 1)), "2", None, [2.0]], ids=str)
def test_what_is_no_number(c):
    """An array with an axis is no number, and neither is what only looks like one."""
    assert not is_number(c)
    assert on_host(c) == isinstance(c, np.ndarray)


def test_an_array_of_another_library_is_not_on_the_host():
    """Even one of shape (), and on the CPU: its values are not looked at."""
    torch = pytest.importorskip("torch")
    assert not is_number(torch.tensor(2.0))
    assert not on_host(torch.ones(2))


@given(st.integers(1, 4), st.integers(0, 99))
def test_where_is_per_sample(B, seed):
    """A condition (B,) chooses whole samples, of numbers, of (B,) and of (B, *D)."""
    rng = np.random.default_rng(seed)
    condition, c = rng.random(B) < 0.5, rng.standard_normal((B, 2, 3))
    d = rng.standard_normal(B)
    got = where(condition, c, d)
    for i in range(B):
        np.testing.assert_array_equal(got[i], c[i] if condition[i] else np.full((2, 3), d[i]))
    np.testing.assert_array_equal(
        where(condition, 0.5, d), [*map(lambda b, x: 0.5 if b else x, condition, d)]
    )
    assert where(np.asarray(1.0) == 1, "c", "d") == "c"
    assert where(1.0 == 2, "c", "d") == "d"


def test_where_keeps_the_dtype(lib):
    """A number takes the other's dtype, and the place of the condition."""
    condition, d = lib.asarray(np.float32([0, 1])) == 0, lib.asarray(np.float32([[1], [2]]))
    got = where(condition, 0.5, d)
    assert got.dtype == lib.xp.float32
    assert tuple(got.shape) == (2, 1)
    if lib.has_values:
        np.testing.assert_array_equal(lib.to_numpy(got), [[0.5], [2.0]])


def test_clip_is_between(lib):
    """clip(x) is x within [low, high], in x's own dtype and library; NaN stays NaN."""
    x = lib.asarray(np.float32([-3.0, -0.25, math.nan, 0.5, 7.0]))
    got = arrays.clip(x, -1.0, 0.5)
    assert got.dtype == lib.xp.float32
    assert isinstance(got, type(x))
    if lib.has_values:
        np.testing.assert_array_equal(lib.to_numpy(got), [-1.0, -0.25, math.nan, 0.5, 0.5])


W = np.random.default_rng(0).standard_normal((3, 3))


def gradient(x, w):
    """Of Σ log cosh(x w): its Jacobian w diag(sech²(x w)) wᵀ is symmetric."""
    return array_namespace(x).tanh(x @ w) @ w.T


def pulled(x, u, w, f=gradient):
    out, pull = vjp(lambda x: f(x, w), x)
    return out, pull(u), pull(0.0 * u)


lazy_xp_function(pulled)


def test_vjp_is_the_jacobian(lib):
    """u -> Jᵀ u of a symmetric J: by the library's derivatives, or by differences."""
    x, u = np.random.default_rng(1).standard_normal((2, 4, 3)).astype(np.float32)
    out, found, zero = pulled(*map(lib.asarray, (x, u, W.astype(np.float32))))
    assert found.dtype == lib.xp.float32
    if lib.has_values:
        expected = u @ W / np.cosh(x @ W) ** 2 @ W.T
        np.testing.assert_allclose(lib.to_numpy(out), gradient(x, W), rtol=1e-5, atol=1e-5)
        # Differences have the square of h = eps^(1/3), and eps / h, times third derivatives.
        atol = 1e-4 if lib.name in ("torch", "jax") else 2e-2
        np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=0, atol=atol)
        np.testing.assert_array_equal(lib.to_numpy(zero), 0)


@pytest.mark.lanes("torch", "jax")
def test_vjp_transposes(lib):
    """Where the library differentiates, it is Jᵀ u also of a J that is not symmetric."""
    x, u = np.random.default_rng(1).standard_normal((2, 4, 3)).astype(np.float32)
    f = lambda x, w: array_namespace(x).tanh(x @ w)
    found = pulled(*map(lib.asarray, (x, u, W.astype(np.float32))), f)[1]
    np.testing.assert_allclose(
        lib.to_numpy(found), u / np.cosh(x @ W) ** 2 @ W.T, rtol=0, atol=1e-4
    )


@pytest.mark.lanes("torch")
def test_vjp_within_inference_mode(lib):
    """It differentiates where samples are drawn: README's loop runs in torch's inference mode."""
    x = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    net = importlib.import_module("torch").nn.Linear(3, 3)
    with importlib.import_module("torch").inference_mode():
        out, pull = vjp(net, lib.asarray(x))
        found = pull(lib.asarray(x))
    assert not out.requires_grad
    expected = x @ net.weight.detach().numpy()
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


@given(st.integers(0, 99), st.sampled_from([1e-8, 1.0, 1e8]))
def test_vjp_by_differences_knows_the_size_of_u(seed, size):
    """In float64 the error is eps^(2/3), whatever u is: the step shrinks as u grows."""
    x, u = np.random.default_rng(seed).standard_normal((2, 4, 3))
    found = pulled(x, size * u, W)[1]
    expected = size * u @ W / np.cosh(x @ W) ** 2 @ W.T
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e4 * EPS ** (2 / 3) * size)


def test_fit_of_a_table():
    """One value, one per sample, or an array that broadcasts to x; a number () of the library."""
    x = np.ones((2, 3))
    for table in (np.full((2, 3), 5.0), np.full((1, 3), 5.0), np.full((2, 1), 5.0)):
        np.testing.assert_array_equal(fit(table, x) * x, 5 * x)
    np.testing.assert_array_equal(fit(np.full(1, 5.0), x) * x, 5 * x)
    np.testing.assert_array_equal(fit(np.full(3, 5.0), np.ones(3)), np.full(3, 5.0))
    np.testing.assert_array_equal(fit(np.full(1, 5.0), np.ones(())), [5])
    with pytest.raises(ValueError, match=r"of shape \(2,\) does not fit x of shape \(3,\)"):
        fit(np.ones(2), np.ones(3))
    xp = array_api_strict
    assert fit(xp.asarray(5.0), xp.ones((2, 3))).shape == ()


def test_device_of():
    """The keyword that puts an array beside another; none where arrays have no device."""
    device = array_api_strict.Device("device1")
    x = array_api_strict.ones(2, device=device)
    assert arrays.device_of(array_api_strict, x) == {"device": device}
    assert arrays.device_of(array_api_strict, object()) == {}


def test_functions_of_numbers_at_their_borders():
    """log 0 is -inf, and a ratio by what is not positive another number."""
    assert arrays.log(0) == arrays.log(0.0) == -math.inf
    assert arrays.log(0.5) == math.log(0.5)
    np.testing.assert_array_equal(arrays.log(np.asarray([1.0, math.e])), [0, 1])
    np.testing.assert_array_equal(arrays.minimum(np.asarray([1.0, 3.0]), 2.0), [1, 2])
    found = arrays.ratio(3.0, np.asarray([0.0, 2.0, 0.5, -1.0]), 7.0)
    np.testing.assert_array_equal(found, [7, 1.5, 6, 7])


def test_beside_copies_nothing():
    """A table that is beside x already is itself."""
    x, table = np.ones(2, np.float32), np.ones(3, np.float32)
    assert np.shares_memory(arrays.beside(table, x), table)
    other = array_api_strict.ones(3)
    assert arrays.beside(other, x) is other


@pytest.mark.parametrize("value", [-0.5, 1.5, math.nan])
def test_shares_outside_are_named(value):
    """0 and 1 are shares."""
    arrays.check_share(eta=0.0, eta_b=1.0)
    with pytest.raises(ValueError, match=rf"eta must lie within 0 \.\. 1, but is {value}"):
        arrays.check_share(eta=value)


def test_take_is_rows(lib):
    """Rows of a table at integers of any dtype."""
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = arrays.take(lib.xp, lib.asarray(table), lib.asarray(np.asarray([2, 0, 2], np.int32)))
    assert tuple(found.shape) == (3, 2)
    if lib.has_values:
        np.testing.assert_array_equal(lib.to_numpy(found), table[[2, 0, 2]])


def test_logit_of_log_is_the_inverse(lib):
    logit = lib.asarray(np.float32([-3.0, 0.0, 2.0]))
    found = arrays.logit_of_log(arrays.log_sigmoid(logit))
    if lib.has_values:
        np.testing.assert_allclose(lib.to_numpy(found), [-3, 0, 2], rtol=1e-5, atol=1e-6)


def test_a_constant_is_itself_without_derivatives():
    x = np.ones(2)
    assert arrays.stop_gradient(x) is x


@pytest.mark.needs("torch")
def test_derivatives_of_torch():
    """Jᵀ u of a J that is not symmetric; a constant has no gradient."""
    torch = importlib.import_module("torch")
    a, x = torch.asarray([[1.0, 2.0], [3.0, 4.0]]), torch.ones(1, 2, requires_grad=True)
    out, pull = vjp(lambda x: x @ a, x.detach())
    np.testing.assert_array_equal(out, [[4, 6]])
    np.testing.assert_array_equal(pull(torch.asarray([[1.0, 0.0]])), [[1, 3]])
    assert not arrays.stop_gradient(x).requires_grad


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_steps_of_differences_are_of_the_size_of_x(size):
    """x³ has the error h² of a step h = eps^(1/3) (1 + |x|), and rounding no more."""
    x, u = np.full((1, 2), size), np.asarray([[1.0, -1.0]])
    _, pull = vjp(lambda x: x**3, x)
    np.testing.assert_allclose(pull(u), 3 * x**2 * u, rtol=16 * EPS ** (2 / 3))
