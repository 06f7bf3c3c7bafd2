"""What the tests of the JAX backend share: one network, and XLA without most optimisations."""

from __future__ import annotations

import numpy as np
import pytest
from networks import random_params

import ddpm_core as ddpm
from ddpm_core.nn import UNetConfig

jax = pytest.importorskip("jax")

jnp = jax.numpy
EPS = float(np.finfo(np.float32).eps)
SCHEDULE = ddpm.linear(1000)
SHAPE = (3, 1, 8, 4)
CONFIG = UNetConfig(
    channels=1, out_channels=1, widths=(8, 16), blocks=1, attention=(), groups=4, classes=3
)


@pytest.fixture(scope="module", autouse=True)
def few_optimisations():
    """Most of the time here goes to XLA's compiler; `test_eight_devices` has all of it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


TOY = ddpm.MixtureOracle([0.3, 0.7], [[-1.0, 0.2], [0.5, -0.4]], 0.2)


PARAMS = random_params(CONFIG, dtype="float32")


def predictor(name: str) -> ddpm.Predictor:
    """The same network on a backend, of v: x_0 is of unit size whatever the weights."""
    return ddpm.Predictor(ddpm.backend(name).network(PARAMS, CONFIG), SCHEDULE, ddpm.v)


@pytest.fixture(scope="module")
def predict():
    return predictor("jax")


def noises():
    return ddpm.portable_noise(7), ddpm.portable_noise(7, jnp)


def draws(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *shape))
