"""The types of arrays, numbers and functions of them, as every signature names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

#: An array of any library that follows the Array API standard. Docstrings state the shapes: B is
#: the batch, *D the data.
# Any, since a protocol finds nothing here. Tried with arithmetic, comparisons, indexing, shape,
# dtype and ndim, and Scalar as float | Array: pyright reports 1,166 errors, 36 of them in levels,
# process, gaussians, parameterisations, denoisers, kernels and losses. All 36 were read, and none
# is a mistake: most want a cast after `is_number`, or on the way into NumPy.
Array: TypeAlias = Any

#: A number on the host, or an array.
Scalar: TypeAlias = Any
#: (c, x), (c, x), ... -> Σ c x, a new array; the x have one shape, and each c is a coefficient.
Lincomb: TypeAlias = Callable[..., Array]
#: (step, shape) -> a standard normal array; those of different steps are independent.
Noise: TypeAlias = Callable[[int, tuple[int, ...]], Array]
