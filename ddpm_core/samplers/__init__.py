"""Samplers: tables (`table`), loops that run them (`run`), and one file per family of solvers.

The solvers, and their other names, are listed in `registry`.
"""

from ddpm_core.samplers import registry
from ddpm_core.samplers.extended import er_sde_5
from ddpm_core.samplers.registry import *  # noqa: F403  (an editor follows its __all__)
from ddpm_core.samplers.reversible import decode, encode
from ddpm_core.samplers.run import Noise, Step, sample, sample_kernel, trajectory
from ddpm_core.samplers.tables import (
    Row,
    Sampler,
    State,
    advance,
    levels_of,
    log_prob_of_step,
    table,
    terms,
)
from ddpm_core.samplers.unrolled import Unrolled, from_loop, from_step

__all__ = [
    "Noise",
    "Row",
    "Sampler",
    "State",
    "Step",
    "Unrolled",
    "advance",
    "decode",
    "encode",
    "er_sde_5",
    "from_loop",
    "from_step",
    "levels_of",
    "log_prob_of_step",
    "sample",
    "sample_kernel",
    "table",
    "terms",
    "trajectory",
]
__all__ += registry.__all__
