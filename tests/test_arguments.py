"""Arguments of a wrong kind, or in a wrong order, are named in one line that says what to pass."""

from __future__ import annotations

import re

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import backend, samplers
from ddpm_core.certificates import law_of
from ddpm_core.nn import UNetConfig, initialise

SCHEDULE = ddpm.linear()
X = np.zeros((2, 1, 8, 8), np.float32)
PREDICT = ddpm.Predictor(lambda x, timestep: x, SCHEDULE)
DDIM, ANCESTRAL = ddpm.ddim(SCHEDULE, 2), ddpm.ancestral(SCHEDULE, 2)
NOISE = ddpm.portable_noise(0)

MISTAKES = {
    "sample: swapped": (
        lambda: ddpm.sample(DDIM, PREDICT, X),
        "sampler must be a Sampler, such as dpmpp_2m(schedule, steps=20), but is a ddpm_core Pred",
    ),
    "sample: a solver": (
        lambda: ddpm.sample(PREDICT, ddpm.ddim, X),
        "sampler must be a Sampler, such as dpmpp_2m(schedule, steps=20), but is a Python function",
    ),
    "sample: noise": (
        lambda: ddpm.sample(PREDICT, ANCESTRAL, X, X),
        "noise must be a function, such as portable_noise(seed), but is a numpy ndarray",
    ),
    "solver: T": (
        lambda: ddpm.ddim(1000, 20),
        "schedule must be a schedule, such as linear(1000), but is 1000",
    ),
    "solver: grid": (
        lambda: ddpm.ddim(SCHEDULE, 20, grid="trailing"),
        "grid must be a function, such as trailing, but is 'trailing'",
    ),
    "solver: steps": (
        lambda: ddpm.ddim(SCHEDULE, "20"),
        "steps must be an integer of at least 1, but is '20'",
    ),
    "schedule: betas": (
        lambda: ddpm.linear(np.linspace(1e-4, 0.02, 1000)),
        "T must be an integer of at least 1, but is a numpy ndarray",
    ),
    "level: times": (
        lambda: ddpm.q_sample(X, X, np.array([1, 2])),
        "t must be a Level, but is a numpy ndarray: pass schedule(t) if these are times",
    ),
    "predictor: a name": (
        lambda: ddpm.Predictor(PREDICT.net, SCHEDULE, "epsilon"),
        "predicts must be a function, such as eps, but is 'epsilon'",
    ),
    "predictor: swapped": (
        lambda: ddpm.Predictor(SCHEDULE, PREDICT.net),
        "schedule must be a schedule, such as linear(1000), but is a Python function",
    ),
    "target: a name": (
        lambda: ddpm.target(X, X, SCHEDULE(5), "v"),
        "predicts must be a function, such as eps, but is 'v'",
    ),
    "clip": (
        lambda: ddpm.clip(X),
        "denoise must be a function, such as a Predictor, but is a numpy ndarray",
    ),
    "reverse: no denoiser": (
        lambda: ddpm.reverse(SCHEDULE.T),
        "denoise must be a function, such as a Predictor, but is 1000",
    ),
    "reverse: a name": (
        lambda: ddpm.reverse(PREDICT, "large"),
        "variance must be a function, such as large, but is 'large'",
    ),
    "draw: how many": (
        lambda: ddpm.draw(SCHEDULE, 8),
        "u must be an array, but is a Python int",
    ),
    "draw: swapped": (
        lambda: ddpm.draw(np.zeros(2), SCHEDULE),
        "schedule must be a schedule, such as linear(1000), but is a numpy ndarray",
    ),
    "noise: a number": (
        lambda: NOISE(0, 5),
        "shape must be a tuple (B, *D), but is 5",
    ),
    "noise: no batch": (
        lambda: NOISE(0, ()),
        "shape must be a tuple (B, *D), but is ()",
    ),
    "noise: a name": (
        lambda: ddpm.portable_noise(0, "torch"),
        "xp must be a module of arrays, such as numpy, but is 'torch'",
    ),
    "bound: steps": (
        lambda: ddpm.elbo(ddpm.reverse(PREDICT), 10, X, NOISE, bins=None),
        "levels must be a Level, such as levels_of(schedule, steps), but is 10",
    ),
    "from_step: swapped": (
        lambda: samplers.from_step(ddpm.levels_of(SCHEDULE, 2), lambda i, x, y, z: x),
        "levels must be a Level, but is a Python function",
    ),
    "law: swapped": (
        lambda: ddpm.law(ddpm.GaussianOracle([0.0], 1.0), DDIM),
        "denoise must be a function, such as GaussianOracle(...), but is a ddpm_core Sampler",
    ),
    "law: data that are not Gaussian": (
        lambda: ddpm.law(DDIM, PREDICT, np.zeros(3)),
        "data must be the GaussianOracle that what is drawn is compared with, but is a numpy",
    ),
    "law_of: swapped": (
        lambda: law_of(ddpm.GaussianOracle([0.0], 1.0), lambda x, noise: x),
        "data must be the GaussianOracle that what is drawn is compared with, but is a Python",
    ),
    "convergence: a sampler": (
        lambda: ddpm.convergence(DDIM),
        "solver must be a function, such as ddim, but is a ddpm_core Sampler",
    ),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(call, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()


def network(library: str):
    config = UNetConfig(channels=1, out_channels=1, widths=(8,), groups=4, attention=(), classes=3)
    return backend(library).network(initialise(config, np.random.default_rng(0)), config)


def test_classes_are_integers():
    """Floats would be cut off, or refused in the words of each array library."""
    with pytest.raises(TypeError, match="y has dtype float64: convert it to integers"):
        network("numpy")(X, np.zeros(2, np.float32), np.array([1.0, 2.0]))


@pytest.mark.needs("torch")
def test_numpy_into_a_torch_network():
    with pytest.raises(TypeError, match=r"x is a numpy ndarray, .* torch Tensor: pass arrays"):
        network("torch")(X, np.zeros(2, np.float32))
