"""Checks of diffusion mathematics, for your own code: laws that must hold, and what fails if not.

`strategies` has the hypothesis strategies behind them, and needs hypothesis; the checks do not.
"""

from ddpm_core.testing.backends import check_backend
from ddpm_core.testing.samplers import check_sampler, examine_sampler
from ddpm_core.testing.schedules import check_schedule, examine_schedule

__all__ = [
    "check_backend",
    "check_sampler",
    "check_schedule",
    "examine_sampler",
    "examine_schedule",
]
