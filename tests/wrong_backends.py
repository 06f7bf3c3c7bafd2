"""Backends for tests: some of the checks, and NumPy with one part replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import ddpm_core as ddpm
from ddpm_core.testing import backends as suite
from ddpm_core_numpy import NumPy, NumPyOps


def verdicts(on: ddpm.backends.Backend, *names: str) -> dict[str, suite.Line]:
    """The line of each check, or of these alone."""
    return {line.check: line for line in suite.examined(on, names=names or None)}


class Namespace:
    """NumPy with something else in place of one function."""

    def __init__(self, **changed: Any) -> None:
        self.changed = changed

    def __getattr__(self, name: str) -> Any:
        return self.changed[name] if name in self.changed else getattr(np, name)


class Rough(np.ndarray):
    """An array whose products are of 11 bits."""

    def __mul__(self, other):
        return (
            np.multiply(np.asarray(self), other).astype(np.float16).astype(self.dtype).view(Rough)
        )

    __rmul__ = __mul__


def numpy(**methods: Any) -> Callable[[], NumPy]:
    """A NumPy backend with other methods."""
    return lambda: type("Wrong", (NumPy,), methods)()


def operations(**methods: Any) -> Callable[[], NumPy]:
    """A NumPy backend with other operations."""

    def make() -> NumPy:
        on = NumPy()
        on.ops = type("WrongOps", (NumPyOps,), methods)()
        return on

    return make


def namespace(**changed: Any) -> Callable[[], NumPy]:
    def make() -> NumPy:
        on = NumPy()
        on.xp = Namespace(**changed)
        return on

    return make


def noise(draw: Callable[..., np.ndarray]) -> Callable[[], NumPy]:
    """A NumPy backend whose noise is draw(seed, step, shape)."""

    def drawn(self, seed):
        def normal(step, shape):
            return np.asarray(draw(seed, step, shape), dtype=np.float32)

        return normal

    return numpy(noise=drawn)


def normal(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def network(wrap: Callable[..., Any]) -> Callable[[], NumPy]:
    """A NumPy backend whose networks are wrapped."""
    return numpy(network=lambda self, params, config: wrap(NumPy.network(self, params, config)))


def norm_of(variance: Callable[..., np.ndarray], silu: bool = True) -> Callable[[], NumPy]:
    """Operations whose group norm divides by variance(var, eps), a root of it taken already."""

    def _norm(self, h, weight, bias, groups, eps, silu_after):
        grouped = h.reshape(*h.shape[:3], groups, -1)
        centred = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
        var = (centred**2).mean(axis=(1, 2, 4), keepdims=True)
        out = (centred / variance(var, eps)).reshape(h.shape) * weight + bias
        return out / (1 + np.exp(-out)) if silu_after and silu else out

    def group_norm(self, h, weight, bias, groups, eps):
        return _norm(self, h, weight, bias, groups, eps, False)

    def group_norm_silu(self, h, weight, bias, groups, eps):
        return _norm(self, h, weight, bias, groups, eps, True)

    return operations(group_norm=group_norm, group_norm_silu=group_norm_silu)
