"""`unrolled`: what a step of your own on a table of betas computes, in numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_core.parameterisations import Parameterisation, eps
from ddpm_core.samplers.unrolled import Unrolled, from_step
from ddpm_core.schedules import from_betas
from ddpm_core.typing import Array


def unrolled(
    step: Callable[[Any, int, Any, Any], Any],
    betas: Any,
    indices: Any = None,
    predicts: Parameterisation = eps,
    *,
    asarray: Callable[[Array], Any] = np.asarray,
    to_numpy: Callable[[Any], Array] = np.asarray,
) -> Unrolled:
    """What a step (x, t, out, z) -> x computes, from the noisiest index to clean data.

    step: t is an index of the betas, counted from 0, out the network's output there, z a standard
        normal. One without noise is `lambda x, t, out, z: mine(x, t, out)`
    betas: β_1 .. β_T
    indices: falling, where the network is called; all by default
    predicts: what the step takes out for
    asarray, to_numpy: to and from the step's library

    ValueError for what `from_step` refuses.
    """
    schedule = from_betas(betas)
    visited = np.arange(schedule.T)[::-1] if indices is None else np.asarray(indices)
    levels = schedule(np.append(visited + 1.0, 0.0))
    return from_step(
        lambda i, x, y, z: step(x, int(visited[i]), y, z),
        levels,
        predicts,
        asarray=asarray,
        to_numpy=to_numpy,
    )
