"""`unrolled`: what a sampler of azula computes, in numbers; `levels`, of its schedules."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.samplers.unrolled import Unrolled
from ddpm_core.testing.foreign.torch_loops import import_torch, level_of_ratio, timed


def levels(schedule: Any, times: Any) -> Level:
    """The levels of a schedule (time) -> (alpha, sigma), where x / sqrt(α² + σ²) is what is meant.

    times: (n,) of the schedule
    """
    alpha, sigma = _scales(schedule, times)
    return level_of_ratio(sigma / alpha, np.asarray(times, dtype=np.float64))


def unrolled(sampler: Any) -> Unrolled:
    """What a sampler computes, call by call, in variance-preserving coordinates.

    sampler: has `timesteps`, `denoiser.schedule`, and is called with x. It is copied, and its
        denoiser is replaced; of that, the schedule alone is used

    ValueError for what `from_loop` refuses.
    """
    torch, schedule = import_torch(), sampler.denoiser.schedule
    made = copy.copy(sampler)
    made.silent, made.dtype, made.device = True, torch.float64, None
    end = float(made.timesteps[-1])

    def loop(network: Any, x: Any) -> Any:
        made.denoiser = _Denoiser(schedule, network)
        return made(x)

    return timed(loop, partial(_scales, schedule), end)


class _Denoiser:
    """azula's, of which a sampler reads the schedule and the mean."""

    def __init__(self, schedule: Any, network: Any) -> None:
        self.schedule, self._network = schedule, network

    def __call__(self, x: Any, t: Any, **_: Any) -> Any:
        return SimpleNamespace(mean=self._network(x, t))


def _scales(schedule: Any, times: Any) -> Any:
    torch = import_torch()
    return [np.asarray(a) for a in schedule(torch.as_tensor(times, dtype=torch.float64))]
