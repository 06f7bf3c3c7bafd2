"""The NumPy backend: arrays, noise, and the UNet's inference."""

from ddpm_core_numpy.backend import NumPy, NumPyOps

__all__ = ["NumPy", "NumPyOps"]
