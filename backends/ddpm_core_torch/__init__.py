"""The PyTorch backend: arrays, noise, the UNet as a module, training."""

from ddpm_core_torch.backend import Torch
from ddpm_core_torch.ops import TorchOps
from ddpm_core_torch.unet import UNet

__all__ = ["Torch", "TorchOps", "UNet"]
