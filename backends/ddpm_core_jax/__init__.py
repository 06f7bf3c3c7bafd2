"""The JAX backend: arrays, noise, the UNet, and samplers by `lax.scan`."""

from ddpm_core_jax.backend import JAX, JAXOps
from ddpm_core_jax.sampling import sample

__all__ = ["JAX", "JAXOps", "sample"]
