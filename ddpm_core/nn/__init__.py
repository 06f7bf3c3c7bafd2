"""The UNet of Ho et al. 2020 as one pure function of a flat dict of parameters."""

from ddpm_core.nn.ops import ChannelsLast, Ops
from ddpm_core.nn.unet import UNetConfig, frequencies, initialise, parameter_shapes, unet

__all__ = [
    "ChannelsLast",
    "Ops",
    "UNetConfig",
    "frequencies",
    "initialise",
    "parameter_shapes",
    "unet",
]
