"""Winograd's F(m x m, 3 x 3), as the backends that convolve by it share it.

It makes m² outputs of a 3x3 convolution from (m + 2)² products instead of 9 m²: 2.25 times fewer
for m = 2, 4 times for m = 4 (Lavin & Gray 2016). Its transforms are matrix products too, and that
of the weights is made once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from ddpm_core.typing import Array


class Kernel:
    """The weights (O, C, 3, 3) of a convolution, in the forms that its algorithms multiply by.

    A form is made when it is first asked for: those of Winograd are up to four times as large.

    weight: a NumPy array
    place: moves a form to where the maps are
    """

    def __init__(self, weight: Array, place: Callable[[Array], Array] = np.asarray) -> None:
        self.weight = weight
        self._place = place
        self._forms: dict[int, Array] = {}

    def form(self, m: int) -> Array:
        """For tiles of m: G w Gᵀ at each of the (m + 2)² points, ((m + 2)², C, O).

        For patches, m = 0: (9 C, O).
        """
        if m not in self._forms:
            w = self.weight
            if m:
                _, G, _ = matrices(m)
                w = np.einsum("ai,bj,ocij->ocab", G, G, w.astype(np.float64))
            rows = np.ascontiguousarray(w.transpose(2, 3, 1, 0), self.weight.dtype)
            out_channels, channels = w.shape[:2]
            form = rows.reshape(*([-1, channels] if m else [-1]), out_channels)
            self._forms[m] = self._place(form)
        return self._forms[m]


@cache
def matrices(m: int) -> tuple[Array, Array, Array]:
    """Bᵀ, G and Aᵀ of F(m, 3) (Lavin & Gray 2016, sections 4.1 and 4.3): points 0, ±1, ±2, ∞."""
    if m == 2:
        return (
            np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float),
            np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
            np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float),
        )
    return (
        np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ],
            float,
        ),
        np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
        np.array(
            [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
            float,
        ),
    )
