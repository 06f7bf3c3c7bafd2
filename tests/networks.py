"""Parameters of a network that the tests of several backends share."""

from __future__ import annotations

import math

import numpy as np

from ddpm_core.nn import UNetConfig, parameter_shapes


def random_params(
    config: UNetConfig, seed: int = 0, dtype: str = "float64"
) -> dict[str, np.ndarray]:
    """Every parameter random, also those that start at 0 or 1, which would hide a defect."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in parameter_shapes(config).items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 25
        params[name] = (rng.standard_normal(shape) / math.sqrt(fan_in)).astype(dtype)
        params[name] += "norm" in name and name.endswith("weight")
    return params
