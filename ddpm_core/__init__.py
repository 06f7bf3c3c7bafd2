"""Denoising diffusion probabilistic models (Ho, Jain, Abbeel 2020) for every array library.

What a first hour needs is here. The rest is in the rooms `ddpm_core.schedules`, `grids`,
`parameterisations`, `guidance`, `kernels`, `losses`, `likelihood`, `samplers`, `certificates`,
`nn`, `checkpoints`, `backends` and `testing`.
"""

from ddpm_core.backends import backend
from ddpm_core.certificates import convergence, law
from ddpm_core.checkpoints import Checkpoint, load, save
from ddpm_core.denoisers import Denoiser, Predictor, clip
from ddpm_core.gaussians import Gaussian, kl
from ddpm_core.kernels import learned_range, optimal, reverse
from ddpm_core.levels import Level
from ddpm_core.likelihood import bits_per_dim, elbo, flow_log_prob
from ddpm_core.losses import hybrid, loss, min_snr, simple
from ddpm_core.nn import UNetConfig
from ddpm_core.noise import portable_noise
from ddpm_core.oracles import DatasetOracle, GaussianOracle, MixtureOracle
from ddpm_core.parameterisations import convert, eps, flow, score, target, to_eps, to_x0, v, x0
from ddpm_core.process import large, q_posterior, q_sample, q_step, small
from ddpm_core.samplers import (
    Sampler,
    advance,
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    levels_of,
    sample,
    sample_kernel,
    trajectory,
    unipc_2,
)
from ddpm_core.schedules import VP, Schedule, cosine, draw, from_betas, linear, zero_terminal_snr

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "DatasetOracle",
    "Denoiser",
    "Gaussian",
    "GaussianOracle",
    "Level",
    "MixtureOracle",
    "Predictor",
    "Sampler",
    "Schedule",
    "UNetConfig",
    "VP",
    "advance",
    "ancestral",
    "backend",
    "bits_per_dim",
    "clip",
    "convergence",
    "convert",
    "cosine",
    "ddim",
    "dpmpp_2m",
    "draw",
    "elbo",
    "eps",
    "flow",
    "flow_log_prob",
    "from_betas",
    "heun",
    "hybrid",
    "kl",
    "large",
    "law",
    "learned_range",
    "levels_of",
    "linear",
    "load",
    "loss",
    "min_snr",
    "optimal",
    "portable_noise",
    "q_posterior",
    "q_sample",
    "q_step",
    "reverse",
    "sample",
    "sample_kernel",
    "save",
    "score",
    "simple",
    "small",
    "target",
    "to_eps",
    "to_x0",
    "trajectory",
    "unipc_2",
    "v",
    "x0",
    "zero_terminal_snr",
]
