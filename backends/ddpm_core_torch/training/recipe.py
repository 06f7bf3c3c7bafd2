"""How to train: numbers and names, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddpm_core.averages import WIDEST

#: What is minimised: the plain squared error of the target, or the error under another weight.
OBJECTIVES = ("simple", "vlb", "min-snr", "p2")

#: How the noise levels of a batch are drawn.
LEVELS = ("uniform", "important")

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Recipe:
    """How to train. Batch, rate, warm-up, decay and clip are those of Ho et al. 2020 on CIFAR-10.

    batch: images per step, those of all processes together
    lr: Adam's learning rate, reached linearly over the first `warmup` steps
    lr_decay: from this step on, the rate falls as 1 / sqrt(step) (Karras et al. 2024); 0: it stays
    ema: decays of averages of the weights; samples are drawn from the first. The step after n
        others takes (1 + n) / (10 + n) where that is less, as TensorFlow's
        ExponentialMovingAverage does with num_updates = n. (The code of Ho et al. takes 0 at the
        first step and the decay from then on.)
    power: relative widths of power-function averages, for `averages.combine` (Karras et al. 2024)
    clip: the largest norm of the gradient
    objective: "simple", the plain squared error of the target, which for eps is L_simple (Ho et
        al. 2020, Eq. 14); "vlb", the bound in bits per coordinate; "min-snr" (Hang et al. 2023);
        "p2" (Choi et al. 2022). A network that learns its variance learns it from the bound: by
        `hybrid` (Nichol & Dhariwal 2021, Eq. 16), or for "vlb" from the bound alone
    levels: "uniform", or "important": in proportion to their last losses (Nichol & Dhariwal 2021,
        section 3.3), which lowers the variance of "vlb"
    dropout: the rate in every residual block
    flip: mirror half of the images
    drop_label: the share of labels left out, so that one network also samples without a class
    precision: of the network's products; the state and the loss stay in float32
    seed: of the first weights, the order of the images, and all that a step draws
    """

    batch: int = 128
    lr: float = 2e-4
    warmup: int = 5000
    lr_decay: int = 0
    ema: float | tuple[float, ...] = 0.9999
    power: tuple[float, ...] = ()
    clip: float = 1.0
    objective: str = "simple"
    levels: str = "uniform"
    dropout: float = 0.0
    flip: bool = False
    drop_label: float = 0.1
    precision: str = "float32"
    seed: int = 0

    @property
    def emas(self) -> tuple[float, ...]:
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)

    def __post_init__(self) -> None:
        for name, least in {"batch": 1, "warmup": 0, "lr_decay": 0, "seed": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, but is {value}")
        several = all(0 <= decay < 1 for decay in self.emas) and bool(self.emas)
        widths = all(0 < width <= WIDEST for width in self.power)
        ranges = {
            # Adam divides it by 0.1 in float32.
            "lr": (0 < self.lr <= 1e30, "above 0 and at most 1e30"),
            "ema": (several, "one or more decays, at least 0 and below 1"),
            "power": (widths, f"widths above 0 and at most 1 / sqrt(12) = {WIDEST:.6f}"),
            "clip": (self.clip > 0, "above 0"),
            "dropout": (0 <= self.dropout < 1, "at least 0 and below 1"),
            "drop_label": (0 <= self.drop_label <= 1, "within 0 and 1"),
        }
        for name, known in (
            ("objective", OBJECTIVES),
            ("levels", LEVELS),
            ("precision", PRECISIONS),
        ):
            ranges[name] = (getattr(self, name) in known, f"one of {', '.join(known)}")
        for name in ("ema", "power"):
            values = self.emas if name == "ema" else self.power
            if len(set(values)) < len(values):
                ranges[name] = (False, "different numbers")
        for name, (good, wanted) in ranges.items():
            if not good:
                raise ValueError(f"{name} must be {wanted}, but is {getattr(self, name)!r}")

    def rate(self, done: int) -> float:
        """The learning rate of the step after `done` others."""
        rate = self.lr * min(1.0, (done + 1) / max(self.warmup, 1))
        if self.lr_decay and done >= self.lr_decay:
            rate *= math.sqrt(self.lr_decay / (done + 1))
        return rate
