"""What a step minimises: from a batch to one number an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ddpm_core.denoisers import Predictor
from ddpm_core.kernels import decoder_variance, learned_range
from ddpm_core.levels import Level
from ddpm_core.losses import Weight, bound, hybrid, loss, min_snr, native, p2, vlb
from ddpm_core.schedules import Discrete

#: (predict, x_0, eps, t, **cond) -> (B,)
Objective = Callable[..., Tensor]


def objective(name: str, predict: Predictor) -> Objective:
    """An objective of `Recipe`, for a predictor with this one's target, schedule and variance."""
    schedule = predict.schedule
    assert isinstance(schedule, Discrete)  # a Trainer has no other
    if name == "vlb" and predict.variance:
        return partial(_bound, schedule=schedule)
    weights: dict[str, Callable[[], Weight]] = {
        "simple": lambda: native(predict.predicts),
        "vlb": lambda: _scaled(schedule.T / math.log(2), vlb(schedule)),
        "min-snr": min_snr,
        "p2": p2,
    }
    return partial(hybrid if predict.variance else loss, weight=weights[name]())


def _scaled(factor: float, weight: Weight) -> Weight:
    return lambda t: factor * weight(t)


def _bound(
    predict: Predictor, x_0: Tensor, eps: Tensor, t: Level, schedule: Discrete, **cond: Any
) -> Tensor:
    """L_vlb by a learned variance, with its gradient to the mean (Nichol & Dhariwal 2021)."""
    kernel = learned_range(predict, decoder_variance(schedule))
    nats: Any = bound(kernel, x_0, eps, t, schedule(t.time - 1), **cond)
    return schedule.T / (math.log(2) * math.prod(x_0.shape[1:])) * nats
