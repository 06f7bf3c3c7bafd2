"""How likely data is: the variational bound, and the probability flow.

All in nats per sample; `bits_per_dim` turns them into bits per coordinate.
"""

from ddpm_core.likelihood.flow import flow_log_prob
from ddpm_core.likelihood.ode import dop853, rk4
from ddpm_core.likelihood.variational import (
    Elbo,
    Estimate,
    bits_per_dim,
    dequantised,
    elbo,
    errors_at,
    interpolated,
)

__all__ = [
    "Elbo",
    "Estimate",
    "bits_per_dim",
    "dequantised",
    "dop853",
    "elbo",
    "errors_at",
    "flow_log_prob",
    "interpolated",
    "rk4",
]
