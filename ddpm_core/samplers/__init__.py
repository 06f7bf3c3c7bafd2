"""Samplers: tables (`table`), loops that run them (`run`), and one file per family of solvers."""

from ddpm_core.samplers.ancestral import ancestral, ddim
from ddpm_core.samplers.dpm_solver import dpmpp_2m
from ddpm_core.samplers.run import Noise, Step, sample, sample_kernel, trajectory
from ddpm_core.samplers.table import Row, Sampler, State, advance, levels_of, table

__all__ = [
    "Noise",
    "Row",
    "Sampler",
    "State",
    "Step",
    "advance",
    "ancestral",
    "ddim",
    "dpmpp_2m",
    "levels_of",
    "sample",
    "sample_kernel",
    "table",
    "trajectory",
]
