"""Samplers: tables (`table`), loops that run them (`run`), and one file per family of solvers."""

from ddpm_core.samplers.adams import deis_2, deis_3, ipndm, lms, plms
from ddpm_core.samplers.dpm_solver import (
    dpm_solver_2,
    dpm_solver_2m,
    dpm_solver_3,
    dpm_solver_3m,
    dpmpp_2m,
    dpmpp_2s,
    dpmpp_3m,
    midpoint,
    sde_dpmpp_2m,
    sde_dpmpp_3m,
)
from ddpm_core.samplers.edm import edm_stochastic, heun, restart
from ddpm_core.samplers.extended import er_sde
from ddpm_core.samplers.first_order import (
    ancestral,
    ddim,
    ddim_inversion,
    deis_1,
    dpm_solver_1,
    euler,
    euler_ancestral,
    sde_dpmpp_1,
)
from ddpm_core.samplers.run import Noise, Step, sample, sample_kernel, trajectory
from ddpm_core.samplers.tables import Row, Sampler, State, advance, levels_of, table
from ddpm_core.samplers.unipc import sa_solver, unipc_1, unipc_2, unipc_3
from ddpm_core.samplers.unrolled import Unrolled, from_step

__all__ = [
    "Noise",
    "Row",
    "Sampler",
    "State",
    "Step",
    "Unrolled",
    "advance",
    "ancestral",
    "ddim",
    "ddim_inversion",
    "deis_1",
    "deis_2",
    "deis_3",
    "dpm_solver_1",
    "dpm_solver_2",
    "dpm_solver_2m",
    "dpm_solver_3",
    "dpm_solver_3m",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "edm_stochastic",
    "er_sde",
    "euler",
    "euler_ancestral",
    "from_step",
    "heun",
    "ipndm",
    "levels_of",
    "lms",
    "midpoint",
    "plms",
    "restart",
    "sa_solver",
    "sample",
    "sample_kernel",
    "sde_dpmpp_1",
    "sde_dpmpp_2m",
    "sde_dpmpp_3m",
    "table",
    "trajectory",
    "unipc_1",
    "unipc_2",
    "unipc_3",
]
