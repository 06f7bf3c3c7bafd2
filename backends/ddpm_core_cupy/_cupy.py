"""CuPy, for the rest of this package: typed as Any, since most of its names have no types."""

from typing import Any

import cupy as _cupy  # pyright: ignore[reportMissingTypeStubs]

cupy: Any = _cupy
