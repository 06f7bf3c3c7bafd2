"""What `ddpm_core.testing.check_backend` checks of JAX alone."""

from __future__ import annotations

from ddpm_core.backends import Backend
from ddpm_core.testing.backend_checks import Check, Finding, sampled
from ddpm_core_jax.sampling import sample


def scanned(on: Backend, host: Backend) -> Finding:
    """Whole samples of a UNet by `ddpm_core_jax.sample`."""
    return sampled(on, host, sample)


CHECKS: dict[str, tuple[str, Check]] = {
    "sampling by scan": ("2 whole samples of a UNet", scanned),
}
