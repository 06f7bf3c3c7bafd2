"""Linear measurements of data, y = A x_0 + noise: what inverse problems start from.

Ready-made are `mask`, `average_pool`, `blur`, `grey` and `matrix`, all with their singular value
decomposition; an `Operator` of two functions is any other A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import (
    astype,
    beside,
    check_pair,
    device_of,
    is_number,
    same_library,
    shown,
)
from ddpm_core.typing import Array

#: A linear function of whole batches.
Map: TypeAlias = Callable[[Array], Array]


def _same(x: Array) -> Array:
    return x


@dataclass(frozen=True, eq=False)
class Operator:
    """A linear map A from data (B, *D) to what is measured (B, *M).

    shape, y_shape: *D and *M
    forward, transpose: A and Aᵀ
    singular: the diagonal of Σ in A = U Σ Vᵀ, or None if it is not known: (*D), float64 of the
        host, and 0 for the coordinates that are not measured
    to_basis, from_basis: Vᵀ and V, on (B, *D)
    y_to_basis: Vᵀ A⁺, from (B, *M) to (B, *D): the measured coordinates as y has them, else 0
    seen: y with 0 for what is 0 in every A x, as behind a mask

    >>> half = mask(np.array([True, False]))
    >>> half.forward(np.array([[3.0, 5.0]]))
    array([[3., 0.]])
    """

    shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    forward: Map
    transpose: Map
    singular: Array | None = None
    to_basis: Map = _same
    from_basis: Map = _same
    y_to_basis: Map = _same
    seen: Map = _same

    def check(self, **data: Array) -> None:
        """ValueError unless each array is (B, *D)."""
        for name, x in data.items():
            if tuple(x.shape[1:]) != self.shape or x.ndim == 0:
                raise ValueError(
                    f"{name} must have shape (B, {', '.join(map(str, self.shape))}), as the data "
                    f"of the operator, but has {tuple(x.shape)}"
                )

    def matrix(self) -> Array:
        """A, (M, D), of the host."""
        D = math.prod(self.shape)
        return self.forward(np.eye(D).reshape(D, *self.shape)).reshape(D, -1).T


@dataclass(frozen=True, eq=False)
class Measurement:
    """y = A x_0 + noise of variance var.

    y: (1, *M), for all samples, or (B, *M); of NumPy, or of the library of the samples
    var: a number; 0 is a measurement without noise
    """

    operator: Operator
    y: Array
    var: float = 0.0

    def __post_init__(self) -> None:
        same_library(y=self.y)
        if tuple(self.y.shape[1:]) != self.operator.y_shape or self.y.ndim == 0:
            raise ValueError(
                f"y has shape {tuple(self.y.shape)}, but its operator measures "
                f"{self.operator.y_shape}: pass (1, *M) or (B, *M)"
            )
        if not is_number(self.var) or not 0 <= self.var < math.inf:
            raise ValueError(f"var must be a finite number, at least 0, but is {self.var!r}")
        object.__setattr__(self, "var", float(self.var))
        object.__setattr__(self, "y", self.operator.seen(self.y))

    def y_beside(self, x: Array) -> Array:
        """y, of x's library, dtype and device.

        x: (B, *D), the data that y is compared with
        """
        self.operator.check(x=x)
        if self.y.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"y has shape {tuple(self.y.shape)}, but x {tuple(x.shape)}: pass one y, or one "
                f"for each sample"
            )
        y = beside(self.y, x)
        return astype(same_library(y=y, x=x), y, x.dtype)


def measure(
    operator: Operator, x_0: Array, eps: Array | None = None, var: float = 0.0
) -> Measurement:
    """The measurement of x_0 with given noise: y = A x_0 + sqrt(var) eps.

    x_0: (B, *D)
    eps: (B, *M), standard normal; None adds no noise, whatever var says of it
    """
    operator.check(x_0=x_0)
    y = operator.forward(x_0)
    if eps is not None:
        check_pair(y=y, eps=eps)
        y = y + math.sqrt(var) * eps
    return Measurement(operator, y, var)


def check_measurement(measurement: Measurement) -> None:
    """TypeError unless it is a `Measurement`."""
    if not isinstance(measurement, Measurement):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"measurement must be a Measurement, such as measure(mask(keep), x_0), but is "
            f"{shown(measurement)}"
        )


def mask(keep: Array) -> Operator:
    """The coordinates that are kept; y has the shape of x_0, and 0 elsewhere.

    keep: (*D), bool, of the host

    What y has elsewhere is not read.
    """
    keep = np.array(keep)
    if keep.dtype != bool:
        raise TypeError(f"keep must be an array of bool, but has dtype {keep.dtype}")

    def kept(x: Array) -> Array:
        xp = array_namespace(x)
        return xp.where(xp.asarray(keep, **device_of(xp, x)), x, xp.zeros_like(x))

    singular = keep.astype(np.float64)
    return Operator(keep.shape, keep.shape, kept, kept, singular, y_to_basis=kept, seen=kept)


def average_pool(shape: tuple[int, ...], factor: int) -> Operator:
    """The means of blocks of factor x factor pixels: a picture made smaller.

    shape: (*D), whose last two axes are pooled, or the only one
    """
    if factor < 1 or any(n % factor for n in shape[-2:]):
        raise ValueError(f"factor {factor} does not divide {shape[-2:]}")
    return along_axes(
        [np.eye(n) for n in shape[:-2]]
        + [np.kron(np.eye(n // factor), np.full((1, factor), 1 / factor)) for n in shape[-2:]]
    )


def blur(shape: tuple[int, ...], width: float) -> Operator:
    """A Gaussian blur, reflected at the edges.

    shape: (*D), whose last two axes are blurred, or the only one
    width: the standard deviation in pixels

    Its least singular values are tiny: what is computed from a y without noise amplifies roundings.
    """
    return along_axes(
        [np.eye(n) for n in shape[:-2]] + [_gaussian_rows(n, width) for n in shape[-2:]]
    )


def _gaussian_rows(n: int, width: float) -> Array:
    """(n, n), each row the weights of a Gaussian about its pixel, in the order ...1 0 | 0 1 2..."""
    if not width > 0:
        raise ValueError(f"width must be positive, but is {width}")
    reach = math.ceil(6 * width)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / width) ** 2)
    places = (np.arange(n)[:, None] + offsets) % (2 * n)
    rows = np.zeros((n, n))
    for row, place in zip(rows, np.minimum(places, 2 * n - 1 - places), strict=True):
        np.add.at(row, place, weights / weights.sum())
    return rows


def grey(shape: tuple[int, ...], weights: Sequence[float] = (0.299, 0.587, 0.114)) -> Operator:
    """The weighted sum of the channels, by default the luma of red, green and blue (BT.601).

    shape: (*D), channels first
    """
    if shape[0] != len(weights):
        raise ValueError(f"{len(weights)} weights do not fit {shape[0]} channels of shape {shape}")
    return along_axes([[weights], *(np.eye(n) for n in shape[1:])])


def matrix(a: Array, shape: tuple[int, ...] | None = None) -> Operator:
    """The matrix a, (M, D), of the host, on data of D coordinates of any shape."""
    return along_axes([a], shape)


def along_axes(matrices: Sequence[Array], shape: tuple[int, ...] | None = None) -> Operator:
    """A matrix along each axis of the data: A_1 ⊗ A_2 ⊗ ...

    matrices: (M_i, D_i) each, of the host
    shape: of the data, if it is not (D_1, D_2, ...)

    The singular value decomposition is the product of those of the matrices. A value below the
    rounding of the largest counts as 0.
    """
    matrices = [np.array(a, dtype=np.float64) for a in matrices]
    if any(a.ndim != 2 for a in matrices):
        raise ValueError(f"matrices must be (M, D), but are {[a.shape for a in matrices]}")
    rows, columns = zip(*(a.shape for a in matrices), strict=True)
    shape = columns if shape is None else shape
    if math.prod(shape) != math.prod(columns):
        raise ValueError(f"matrices of {columns} columns do not fit data of shape {shape}")
    values, into, y_into = zip(*map(_svd, matrices), strict=True)

    def applied(each: Sequence[Array], given: tuple[int, ...], out: tuple[int, ...]) -> Map:
        def apply(x: Array) -> Array:
            xp = array_namespace(x)
            x = xp.reshape(x, (x.shape[0], *given))
            for a in each:  # contracts the first axis, and appends its image as the last
                x = xp.tensordot(x, beside(a, x), axes=((1,), (1,)))
            return xp.reshape(x, (x.shape[0], *out))

        return apply

    return Operator(
        shape,
        rows,
        applied(matrices, columns, rows),
        applied([a.T for a in matrices], rows, shape),
        reduce(np.multiply.outer, values).reshape(shape),
        applied(into, columns, shape),
        applied([a.T for a in into], columns, shape),
        applied(y_into, rows, shape),
    )


def _svd(a: Array) -> tuple[Array, Array, Array]:
    """The singular values (D,), Vᵀ (D, D) and Vᵀ A⁺ (D, M) of a matrix (M, D)."""
    u, found, into = np.linalg.svd(a)
    found = found[found > max(a.shape) * np.finfo(np.float64).eps * found.max(initial=0)]
    values, inverse = np.zeros(a.shape[1]), np.zeros(a.shape[::-1])
    values[: len(found)] = found
    inverse[: len(found)] = u.T[: len(found)] / found[:, None]
    return values, into, inverse
