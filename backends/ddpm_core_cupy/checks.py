"""What `ddpm_core.testing.check_backend` checks of CuPy alone."""

from __future__ import annotations

import numpy as np

from ddpm_core.backends import Backend
from ddpm_core.testing.backend_checks import (
    Check,
    Finding,
    allowed,
    difference,
    sampler_without_network,
    worst,
)


def graph_of_a_sampler(on: Backend, host: Backend) -> Finding:
    """A sampler without a network as a CUDA graph, which captures nothing that waits."""
    draw, inputs = sampler_without_network(on, host)
    captured = on.compile(draw)
    pairs = [(captured(x), on.to_numpy(draw(x)).astype(np.float64)) for x in inputs]
    return Finding(worst(difference(on, *pair) for pair in pairs), allowed(on, 84, 8))


CHECKS: dict[str, tuple[str, Check]] = {
    "sampler's graph": ("captured, and plain", graph_of_a_sampler),
}
