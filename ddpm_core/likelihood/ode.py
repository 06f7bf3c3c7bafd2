"""Solvers of ordinary differential equations dy/ds = f(s, y), for y a tuple of arrays."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import combine, device_of
from ddpm_core.typing import Array

#: What is solved for: arrays of any shapes.
State: TypeAlias = tuple[Array, ...]

#: (f, a, b, y at a) -> y at b, for a < b and f(s, y) = dy/ds.
Solve: TypeAlias = Callable[[Callable[[float, State], State], float, float, State], State]


def rk4(steps: int) -> Solve:
    """The classical Runge-Kutta method in equal steps: order 4, 4 calls of f a step.

    It runs on any array library, and under `jax.jit`.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")

    def solve(f: Callable[[float, State], State], a: float, b: float, y: State) -> State:
        h = (b - a) / steps

        def moved(*terms: tuple[float, State]) -> State:
            return tuple(x + combine(*((c, k[i]) for c, k in terms)) for i, x in enumerate(y))

        for step in range(steps):
            s = a + step * h
            end = b if step + 1 == steps else a + (step + 1) * h  # rounding must not pass b
            k_1 = f(s, y)
            k_2 = f(s + h / 2, moved((h / 2, k_1)))
            k_3 = f(s + h / 2, moved((h / 2, k_2)))
            k_4 = f(end, moved((h, k_3)))
            y = moved((h / 6, k_1), (h / 3, k_2), (h / 3, k_3), (h / 6, k_4))
        return y

    return solve


def dop853(rtol: float = 1e-8, atol: float = 1e-8) -> Solve:
    """SciPy's Dormand-Prince 8(5,3), adaptive, in float64 on the host; needs scipy.

    ValueError where SciPy gives up, as at a pole.
    """
    try:
        integrate: Any = importlib.import_module("scipy.integrate")
    except ModuleNotFoundError:
        raise ImportError("dop853 needs scipy: pip install scipy") from None

    def solve(f: Callable[[float, State], State], a: float, b: float, y: State) -> State:
        ends = np.cumsum([math.prod(x.shape) for x in y])

        def flat(s: float, packed: Array) -> Array:
            # SciPy's last point may round past b, where the schedule ends.
            return _packed(f(min(max(float(s), a), b), unpacked(packed)))

        def unpacked(packed: Array) -> State:
            return tuple(map(_like, y, np.split(packed, ends[:-1])))

        found = integrate.solve_ivp(flat, (a, b), _packed(y), method="DOP853", rtol=rtol, atol=atol)
        if not found.success:
            raise ValueError(f"dop853 failed: {found.message}")
        return unpacked(found.y[:, -1])

    return solve


def _packed(y: State) -> Array:
    """All arrays as one float64 vector on the host."""
    rows = [array_namespace(x).reshape(x, (-1,)).tolist() for x in y]
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])


def _like(x: Array, values: Array) -> Array:
    """Host values as an array of x's library, shape and dtype."""
    xp = array_namespace(x)
    return xp.asarray(values.reshape(x.shape).tolist(), dtype=x.dtype, **device_of(xp, x))
