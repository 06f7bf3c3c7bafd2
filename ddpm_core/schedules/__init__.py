"""Noise schedules: functions from a time to a noise level.

A schedule is immutable and hashable. Its numbers are computed on the host, in float64; a level of
device times is looked up in them in float32 or wider, and cast to its dtype last.
"""

from ddpm_core.schedules.continuous import EDM, VP, Flow, LinearLogSNR
from ddpm_core.schedules.discrete import Discrete, from_alpha_bars, from_betas
from ddpm_core.schedules.drawing import (
    Losses,
    draw,
    draw_important,
    no_losses,
    probabilities,
    recorded,
)
from ddpm_core.schedules.named import (
    alphabar_sigmoid,
    beta_sigmoid,
    cosine,
    linear,
    quadratic,
    scaled_linear,
    zero_terminal_snr,
)
from ddpm_core.schedules.protocol import Schedule

__all__ = [
    "EDM",
    "VP",
    "Discrete",
    "Flow",
    "LinearLogSNR",
    "Losses",
    "Schedule",
    "alphabar_sigmoid",
    "beta_sigmoid",
    "cosine",
    "draw",
    "draw_important",
    "from_alpha_bars",
    "from_betas",
    "linear",
    "no_losses",
    "probabilities",
    "quadratic",
    "recorded",
    "scaled_linear",
    "zero_terminal_snr",
]
