"""Measurements: each operator against its definition, its transpose and its decomposition."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_extra.testing import lazy_xp_function
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from ddpm_core.measurements import (
    Measurement,
    along_axes,
    average_pool,
    blur,
    grey,
    mask,
    matrix,
    measure,
)

EPS = np.finfo(np.float64).eps

rng = np.random.default_rng(0)
FLAT = np.outer(rng.standard_normal(4), rng.standard_normal(6))  # of rank 1
OPERATORS = {
    "mask": mask(rng.random((3, 4, 4)) < 0.5),
    "average_pool": average_pool((2, 4, 6), 2),
    "blur": blur((2, 4, 3), 0.7),
    "grey": grey((3, 2, 4)),
    "matrix": matrix(rng.standard_normal((4, 6)), (2, 3)),
    "tall": matrix(rng.standard_normal((6, 4)), (4,)),
    "flat": matrix(FLAT, (6,)),
    "along_axes": along_axes([rng.standard_normal((2, 3)), rng.standard_normal((5, 4))]),
}
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def transposed(operator, y):
    return operator.transpose(y)


def in_basis(operator, x, y):
    """A x, V Vᵀ x and V Vᵀ A⁺ y."""
    back = operator.from_basis
    return operator.forward(x), back(operator.to_basis(x)), back(operator.y_to_basis(y))


lazy_xp_function(transposed)
lazy_xp_function(in_basis)


def columns(operator, of) -> np.ndarray:
    """The matrix of a linear function on (B, *D)."""
    D = operator.singular.size
    return of(np.eye(D).reshape(D, *operator.shape)).reshape(D, -1).T


@pytest.mark.parametrize("name", OPERATORS)
def test_transpose_is_the_adjoint(lib, name):
    """<A x, y> = <x, Aᵀ y>, for every x and y: Aᵀ on any library is A's transposed matrix."""
    operator = OPERATORS[name]
    y = rng.standard_normal((3, *operator.y_shape)).astype(np.float32)
    found = transposed(operator, lib.asarray(y))
    assert tuple(found.shape) == (3, *operator.shape)
    assert found.dtype == lib.xp.float32
    if lib.has_values:
        expected = (y.reshape(3, -1) @ operator.matrix()).reshape(found.shape)
        np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_decomposition_on_every_library(lib, name):
    """A x is the matrix times x, V Vᵀ is the identity, and V Vᵀ A⁺ y the pseudo-inverse's y."""
    operator = OPERATORS[name]
    x = rng.standard_normal((3, *operator.shape)).astype(np.float32)
    y = rng.standard_normal((3, *operator.y_shape)).astype(np.float32)
    a, pinv = operator.matrix(), np.linalg.pinv(operator.matrix(), rcond=1e-12)
    wanted = [x.reshape(3, -1) @ a.T, x, y.reshape(3, -1) @ pinv.T]
    size = np.abs(pinv).max() + 1
    for found, b in zip(in_basis(operator, lib.asarray(x), lib.asarray(y)), wanted, strict=True):
        assert found.dtype == lib.xp.float32
        if lib.has_values:
            found = lib.to_numpy(found)
            np.testing.assert_allclose(found, b.reshape(found.shape), rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("name", OPERATORS)
def test_decomposition_reconstructs(name):
    """V is orthogonal, V Σ² Vᵀ = Aᵀ A, and Σ Vᵀ A⁺ = Uᵀ on what is measured."""
    operator = OPERATORS[name]
    a, s = operator.matrix(), operator.singular.reshape(-1)
    into, back = columns(operator, operator.to_basis), columns(operator, operator.from_basis)
    close = {"rtol": 0, "atol": 64 * EPS * (1 + np.abs(a).max() ** 2)}
    np.testing.assert_allclose(back @ into, np.eye(s.size), **close)
    np.testing.assert_allclose(into, back.T, **close)
    np.testing.assert_allclose(back * s**2 @ into, a.T @ a, **close)
    y_into = operator.y_to_basis(np.eye(len(a)).reshape(len(a), *operator.y_shape))
    u = y_into.reshape(len(a), -1) * s  # (M, D), U with 0 for what is not measured
    np.testing.assert_allclose(u * s @ into, a, **close)
    np.testing.assert_allclose(u.T @ u, np.diag(s > 0), **close)


def test_values_that_are_rounding_are_none():
    """A matrix of rank 1 measures one coordinate."""
    assert (OPERATORS["flat"].singular > 0).sum() == 1


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rank_does_not_depend_on_scale(scale):
    """What is rounding is so beside the largest value; of a matrix of 0 nothing is measured."""
    for a, rank in ((FLAT, 1), (np.eye(4), 4), (np.zeros((4, 6)), 0)):
        operator = matrix(scale * a)
        assert (operator.singular > 0).sum() == rank
        assert (operator.y_to_basis(np.ones((1, 4))) != 0).sum() == rank


def test_data_of_one_number():
    """A sample may be a number, without axes; a batch has an axis."""
    operator = mask(np.array(True))
    np.testing.assert_array_equal(measure(operator, np.ones(3)).y, np.ones(3))
    for call in (lambda x: measure(operator, x), lambda y: Measurement(operator, y)):
        with pytest.raises(ValueError, match="shape"):
            call(np.ones(()))


@given(rng=seeds)
def test_average_pool_is_the_mean_of_blocks(rng):
    x = rng.standard_normal((2, 3, 4, 6))
    expected = x.reshape(2, 3, 2, 2, 3, 2).mean((3, 5))
    np.testing.assert_allclose(average_pool((3, 4, 6), 2).forward(x), expected, atol=8 * EPS)
    signal = average_pool((6,), 3).forward(x[:, 0, 0])
    np.testing.assert_allclose(signal, x[:, 0, 0].reshape(2, 2, 3).mean(2), atol=8 * EPS)
    np.testing.assert_array_equal(average_pool((3, 4, 6), 1).forward(x), x)


@given(rng=seeds, width=st.floats(0.3, 4.0))
@example(rng=np.random.default_rng(0), width=4.0)
def test_blur_is_scipys(rng, width):
    """Along the last two axes, with weights cut at 6 widths, and SciPy's edge "reflect"."""
    x = rng.standard_normal((2, 3, 5, 4))
    radius = int(np.ceil(6 * width))
    expected = gaussian_filter(x, (0, 0, width, width), mode="reflect", radius=radius)
    np.testing.assert_allclose(blur((3, 5, 4), width).forward(x), expected, rtol=0, atol=64 * EPS)


@given(rng=seeds)
def test_grey_is_the_weighted_sum(rng):
    x = rng.standard_normal((2, 3, 2, 2))
    expected = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    np.testing.assert_allclose(grey((3, 2, 2)).forward(x), expected, atol=8 * EPS)


@given(rng=seeds)
def test_measure(rng):
    """y = A x_0 + sqrt(var) eps; the values of y behind a mask are not read, even if not finite."""
    operator = OPERATORS["matrix"]
    x, eps = rng.standard_normal((2, 2, 3)), rng.standard_normal((2, 4))
    found = measure(operator, x, eps, 0.25)
    np.testing.assert_array_equal(found.y, operator.forward(x) + 0.5 * eps)
    assert found.var == 0.25
    without = measure(operator, x)
    np.testing.assert_array_equal(without.y, operator.forward(x))
    assert without.var == Measurement(operator, without.y).var == 0
    hidden = mask(np.array([True, False]))
    np.testing.assert_array_equal(hidden.y_to_basis(np.array([[2.0, np.nan]])), [[2.0, 0.0]])


def test_y_goes_beside_x(lib):
    """A measurement of NumPy, or of x's library, comes in x's dtype; another's is refused."""
    operator, y = OPERATORS["matrix"], np.arange(4.0)[None]
    x = lib.asarray(np.zeros((2, 2, 3), np.float32))
    with lib.precision("float64"):
        wide = lib.asarray(y, lib.xp.float32 if lib.name == "mlx" else lib.xp.float64)
    for mine in (y, wide):
        found = Measurement(operator, mine).y_beside(x)
        assert found.dtype == x.dtype
        assert type(found) is type(x)
        if lib.has_values:
            np.testing.assert_array_equal(lib.to_numpy(found), y)
    other = pytest.importorskip("dask.array" if "strict" in lib.name else "array_api_strict")
    with pytest.raises(TypeError, match="pass arrays of one library"):
        Measurement(operator, other.asarray(y.tolist())).y_beside(x)


def test_refusals():
    """Shapes, masks and variances that are none are errors that name them."""
    operator = OPERATORS["grey"]
    with pytest.raises(ValueError, match=r"y has shape \(1, 2, 4\), .* measures \(1, 2, 4\)"):
        Measurement(operator, np.zeros((1, 2, 4)))
    for var in (-1.0, np.inf, np.nan, np.ones(2)):
        with pytest.raises(ValueError, match="var must be a finite number"):
            Measurement(operator, np.zeros((1, 1, 2, 4)), var)
    with pytest.raises(TypeError, match="keep must be an array of bool, but has dtype float64"):
        mask(np.ones(3))
    with pytest.raises(ValueError, match=r"factor 3 does not divide \(4, 6\)"):
        average_pool((2, 4, 6), 3)
    with pytest.raises(ValueError, match="width must be positive, but is 0"):
        blur((4,), 0.0)
    with pytest.raises(ValueError, match="3 weights do not fit 1 channels"):
        grey((1, 2, 4))
    with pytest.raises(ValueError, match=r"must be \(M, D\), but are \[\(2,\)\]"):
        matrix(np.ones(2))
    with pytest.raises(ValueError, match=r"matrices of \(6,\) columns do not fit .* \(2, 2\)"):
        matrix(np.ones((2, 6)), (2, 2))
    with pytest.raises(ValueError, match="eps has shape"):
        measure(operator, np.zeros((2, 3, 2, 4)), np.zeros((2, 4)), 1.0)
