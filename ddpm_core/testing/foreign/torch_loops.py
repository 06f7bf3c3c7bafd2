"""What the adapters of torch loops share: float64 arrays, and their noise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from ddpm_core.levels import Level, from_logsnr
from ddpm_core.parameterisations import Parameterisation, x0
from ddpm_core.samplers.unrolled import Unrolled, from_loop
from ddpm_core.typing import Array


def import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError("torch is missing: pip install 'ddpm-core[torch]'") from None
    return torch


def level_of_ratio(k: Any, time: Any) -> Level:
    """The level of k = σ / α."""
    with np.errstate(divide="ignore"):
        return from_logsnr(-2 * np.log(k), time)


def as_tensor(a: Array) -> Any:
    """float64, (1, 1, 1, size): an image of one row."""
    return import_torch().tensor(a, dtype=import_torch().float64)[None, None, None]


def as_array(x: Any) -> Array:
    return x.detach().reshape(-1).numpy()


def along_a_path(draw: Callable[[], Any]) -> Callable[[Any, Any], Any]:
    """In place of a Brownian tree over σ: each new stretch of the path takes one draw."""
    path: list[tuple[float, Any]] = []

    def noise(start: Any, end: Any) -> Any:
        a, b = float(start), float(end)
        if not path:
            path.append((a, 0.0))
        low, at_low = path[-1]
        if b < low:
            path.append((b, at_low + np.sqrt(low - b) * draw()))
        at_a, at_b = (min(path, key=lambda point: abs(point[0] - s))[1] for s in (a, b))
        return (at_b - at_a) / np.sqrt(a - b)

    return noise


def timed(
    loop: Callable[[Callable[..., Any], Any], Any],
    scales: Callable[[float], tuple[float, float]],
    end: float,
    predicts: Parameterisation = x0,
) -> Unrolled:
    """What a loop (network, x) -> x computes, of a process x = α x_0 + σ eps in a time of its own.

    loop: calls network(x, t) -> y; t is a number or an array of one
    scales: time -> α, σ
    end: the time where it ends

    ValueError for what `from_loop` refuses.
    """

    def level_of(time: Any) -> Level:
        t = float(np.asarray(time).reshape(-1)[0])
        alpha, sigma = scales(t)
        return level_of_ratio(sigma / alpha, t)

    def run(network: Any, x: Any, draw: Any) -> Any:
        with noise_from(draw), import_torch().no_grad():
            return loop(network, x)

    def scale(t: Level) -> Any:
        return np.hypot(*scales(float(t.time)))

    return from_loop(
        run, level_of, level_of(end), predicts, scale=scale, asarray=as_tensor, to_numpy=as_array
    )


class Wide:
    """A library whose float32 is float64."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, "float64" if name == "float32" else name)


@contextmanager
def noise_from(draw: Callable[[], Any]) -> Generator[None]:
    """Inside, torch draws by `draw`, and so does any module's `BrownianTreeNoiseSampler`."""

    def like(x: Any, *_: Any, **__: Any) -> Any:
        return draw()

    def tree(*_: Any, **__: Any) -> Any:
        return along_a_path(draw)

    with ExitStack() as stack:
        stack.enter_context(patch.object(import_torch(), "randn_like", like))
        stack.enter_context(patch.object(import_torch(), "randn", like))
        for module in list(sys.modules.values()):
            if "BrownianTreeNoiseSampler" in getattr(module, "__dict__", {}):
                stack.enter_context(patch.object(module, "BrownianTreeNoiseSampler", tree))
        yield
