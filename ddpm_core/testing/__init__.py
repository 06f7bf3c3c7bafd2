"""Checks of diffusion mathematics, for your own code: laws that must hold, and what fails if not.

Each `check_*` returns a `Report` of named laws, or raises an AssertionError with the simplest case
that breaks one; each `examine_*` returns the report in any case. `strategies` has the hypothesis
strategies behind them, and needs hypothesis; the checks do not.
"""

from ddpm_core.testing.backends import check_backend, examine_backend
from ddpm_core.testing.denoisers import check_denoiser, examine_denoiser
from ddpm_core.testing.kernels import check_kernel, examine_kernel
from ddpm_core.testing.networks import check_network, examine_network
from ddpm_core.testing.noises import check_noise, examine_noise
from ddpm_core.testing.parameterisations import check_parameterisation, examine_parameterisation
from ddpm_core.testing.report import Finding, Report
from ddpm_core.testing.samplers import check_sampler, examine_sampler
from ddpm_core.testing.schedules import check_schedule, examine_schedule

__all__ = [
    "Finding",
    "Report",
    "check_backend",
    "check_denoiser",
    "check_kernel",
    "check_network",
    "check_noise",
    "check_parameterisation",
    "check_sampler",
    "check_schedule",
    "examine_backend",
    "examine_denoiser",
    "examine_kernel",
    "examine_network",
    "examine_noise",
    "examine_parameterisation",
    "examine_sampler",
    "examine_schedule",
]
