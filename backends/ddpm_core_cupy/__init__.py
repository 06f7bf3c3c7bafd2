"""The CuPy backend: arrays on a GPU, noise, the UNet's inference, CUDA graphs."""

from ddpm_core_cupy.backend import CuPy, CuPyOps

__all__ = ["CuPy", "CuPyOps"]
