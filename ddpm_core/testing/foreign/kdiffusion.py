"""`unrolled`: what a loop in the style of k-diffusion computes, in numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.samplers.unrolled import Unrolled, from_loop
from ddpm_core.testing.foreign.torch_loops import (
    as_array,
    as_tensor,
    import_torch,
    level_of_ratio,
    noise_from,
)


def unrolled(loop: Callable[..., Any], sigmas: Any, **options: Any) -> Unrolled:
    """What a loop (model, x, sigmas, **options) -> x computes, in variance-preserving coordinates.

    loop: model(x, sigma, ...) -> x_0, and x has α = 1, as in Karras et al. 2022: such as
        `sample_dpmpp_2m` of k-diffusion or of ComfyUI. One that takes other arguments goes into a
        lambda
    sigmas: of the loop, σ / α of each level, falling; the last, where the loop ends, may be 0
    options: of the loop, such as eta

    It runs with its own noise: `torch.randn_like` gives the probes, and so does a
    `BrownianTreeNoiseSampler`, along one path. The time of a level is its sigma.

    ValueError for what `from_loop` refuses.
    """
    torch = import_torch()
    if "disable" in inspect.signature(loop).parameters:
        options = {"disable": True, **options}
    k = np.asarray(sigmas, dtype=np.float64)

    def level_of(sigma: Any) -> Level:
        value = float(sigma.reshape(-1)[0])
        return level_of_ratio(value, value)

    def run(network: Any, x: Any, draw: Any) -> Any:
        with noise_from(draw):
            return loop(network, x, torch.tensor(k), **options)

    return from_loop(
        run,
        level_of,
        level_of_ratio(k[-1], k[-1]),
        scale=lambda t: 1 / t.alpha,
        asarray=as_tensor,
        to_numpy=as_array,
    )
