"""Averages of the weights over training."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ddpm_core.averages import exponent, power_decay
from ddpm_core_torch.training.recipe import Recipe


class Average:
    """A running average of parameters.

    decay: the share that stays at the step after n others
    """

    def __init__(self, parameters: Sequence[Tensor], decay: Callable[[int], float]) -> None:
        self.values = [p.detach().clone() for p in parameters]
        self._parameters, self._decay = parameters, decay

    def update(self, done: int) -> None:
        values, parameters = list(self.values), list(self._parameters)
        get_ema_multi_avg_fn(self._decay(done))(values, parameters, done)  # type: ignore[arg-type]

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Lets the network have the average for its weights, within the context."""
        own = [p.detach().clone() for p in self._parameters]
        try:
            _copy(self._parameters, self.values)
            yield
        finally:
            _copy(self._parameters, own)


@torch.no_grad()
def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def averages_of(recipe: Recipe, parameters: Sequence[Tensor]) -> dict[str, Average]:
    """The averages of a recipe by the names that a saved state has them under."""
    found = {f"ema.{decay}": Average(parameters, _ema(decay)) for decay in recipe.emas}
    for width in recipe.power:
        found[f"power.{width}"] = Average(parameters, _power(width))
    return found


def _ema(decay: float) -> Callable[[int], float]:
    return lambda done: min(decay, (1 + done) / (10 + done))


def _power(width: float) -> Callable[[int], float]:
    gamma = exponent(width)
    return lambda done: power_decay(done + 1, gamma)
