"""The UNet of Ho et al. 2020 as one pure function of a flat dict of parameters."""

from ddpm_core.nn.ops import Ops
from ddpm_core.nn.unet import UNetConfig, initialise, parameter_shapes, unet

__all__ = ["Ops", "UNetConfig", "initialise", "parameter_shapes", "unet"]
