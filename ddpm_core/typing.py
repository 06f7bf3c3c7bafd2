"""The one type that the whole library speaks about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

#: An array of any library that follows the Array API standard. Its protocol cannot be checked
#: statically across libraries, so shapes are stated in docstrings: B is the batch, *D the data.
Array: TypeAlias = Any

#: An array, or a Python float on the host.
Scalar: TypeAlias = Any
#: (c, x), (c, x), ... -> Σ c x, a new array; x of one shape, c a coefficient.
Lincomb: TypeAlias = Callable[..., Array]
#: (step, shape) -> standard normal; different steps are independent.
Noise: TypeAlias = Callable[[int, tuple[int, ...]], Array]
