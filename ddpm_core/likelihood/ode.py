"""Solvers of ordinary differential equations, for the probability flow."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import device_of
from ddpm_core.typing import Array

#: (f, a, b, y) -> (y at b, the integral of f's second value), f(s, y) -> (dy / ds, a rate (B,)).
Solve: TypeAlias = Callable[
    [Callable[[float, Array], tuple[Array, Array]], float, float, Array], tuple[Array, Array]
]


def heun(steps: int) -> Solve:
    """Heun's method in equal steps of log-SNR: second order, 2 rates a step, any array library."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")

    def solve(f: Any, a: float, b: float, y: Array) -> tuple[Array, Array]:
        total: Any = 0.0
        h = (b - a) / steps
        for i in range(steps):
            slope, rate = f(a + i * h, y)
            # The last point is b itself: no rounding may take it past the schedule's end.
            later = b if i + 1 == steps else a + (i + 1) * h
            slope_2, rate_2 = f(later, y + h * slope)
            y = y + 0.5 * h * (slope + slope_2)
            total = total + 0.5 * h * (rate + rate_2)
        return y, total

    return solve


def dop853(rtol: float = 1e-8, atol: float = 1e-8) -> Solve:
    """SciPy's Dormand-Prince 8(5,3), adaptive, in float64 on the host; needs scipy."""
    try:
        integrate: Any = importlib.import_module("scipy.integrate")
    except ModuleNotFoundError:
        raise ImportError("dop853 needs scipy: pip install scipy") from None

    def solve(f: Any, a: float, b: float, y: Array) -> tuple[Array, Array]:
        xp, batch, size = array_namespace(y), y.shape[0], math.prod(y.shape)
        place = device_of(xp, y)

        def host(x: Array) -> Array:
            return np.asarray(xp.reshape(x, (-1,)).tolist(), dtype=np.float64)

        def back(x: Array, shape: tuple[int, ...]) -> Array:
            return xp.asarray(x.reshape(shape).tolist(), dtype=y.dtype, **place)

        def flat(s: float, packed: Array) -> Array:
            slope, rate = f(min(max(float(s), a), b), back(packed[:size], y.shape))
            return np.concatenate([host(slope), host(rate)])

        first = np.concatenate([host(y), np.zeros(batch)])
        found = integrate.solve_ivp(flat, (a, b), first, method="DOP853", rtol=rtol, atol=atol)
        if not found.success:
            raise ValueError(f"dop853 failed: {found.message}")
        last = found.y[:, -1]
        return back(last[:size], y.shape), back(last[size:], (batch,))

    return solve
