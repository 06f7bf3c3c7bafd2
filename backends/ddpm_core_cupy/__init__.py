"""The CuPy backend: arrays on a GPU, noise, the UNet's inference, CUDA graphs."""

from ddpm_core_cupy.backend import CuPy, CuPyOps
from ddpm_core_cupy.cublas import matmul

__all__ = ["CuPy", "CuPyOps", "matmul"]
