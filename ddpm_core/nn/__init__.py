"""The UNet of Ho et al. 2020 as one pure function of a flat dict of parameters."""

from ddpm_core.nn.network import (
    UNetConfig,
    check_inputs,
    frequencies,
    initialise,
    parameter_shapes,
    unet,
)
from ddpm_core.nn.ops import ChannelsLast, Ops

__all__ = [
    "ChannelsLast",
    "Ops",
    "UNetConfig",
    "check_inputs",
    "frequencies",
    "initialise",
    "parameter_shapes",
    "unet",
]
