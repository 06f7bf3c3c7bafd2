"""Arguments of a wrong kind, or in a wrong order, are named in one line that says what to pass."""

from __future__ import annotations

import re

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import backend, guidance, inverse, samplers
from ddpm_core.certificates import law_of
from ddpm_core.denoisers import straight
from ddpm_core.levels import from_logsnr
from ddpm_core.measurements import Measurement, average_pool, mask, measure
from ddpm_core.nn import UNetConfig, initialise

SCHEDULE = ddpm.linear()
X = np.zeros((2, 1, 8, 8), np.float32)
PREDICT = ddpm.Predictor(lambda x, timestep: x, SCHEDULE)
DDIM, ANCESTRAL = ddpm.ddim(SCHEDULE, 2), ddpm.ancestral(SCHEDULE, 2)
NOISE = ddpm.portable_noise(0)
FLAT, T = np.zeros((2, 4)), SCHEDULE(500)
ORACLE, MIXTURE, DATASET = (
    ddpm.GaussianOracle(np.zeros(4), 1.0),
    ddpm.MixtureOracle([1.0], np.zeros((1, 4)), 1.0),
    ddpm.DatasetOracle(np.zeros((3, 4))),
)
KEEP = mask(np.array([True, False, True, False]))
SEEN, LONGER = Measurement(KEEP, FLAT[:1]), Measurement(mask(np.ones(5, bool)), np.zeros((1, 5)))
THREE = Measurement(KEEP, np.zeros((3, 4)), 0.1)
KERNEL = ddpm.reverse(ORACLE)

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
    "guided: nothing": (
        lambda: guidance.guided(None, PREDICT, 2.0),
        "denoise must be a function, such as a Predictor, but is a Python NoneType",
    ),
    "guided: scale second": (
        lambda: guidance.guided(PREDICT, 2.0, PREDICT),
        "against must be a function, such as a Predictor, but is 2.0",
    ),
    "projected: scale second": (
        lambda: guidance.projected(PREDICT, 2.0, PREDICT),
        "against must be a function, such as a Predictor, but is 2.0",
    ),
    "dynamic_threshold": (
        lambda: guidance.dynamic_threshold(X),
        "denoise must be a function, such as a Predictor, but is a numpy ndarray",
    ),
    "classifier_free: swapped": (
        lambda: guidance.classifier_free(2.0, PREDICT, {"y": -1}),
        "denoise must be a function, such as a Predictor, but is 2.0",
    ),
    "classifier_free: null of nothing": (
        lambda: guidance.classifier_free(PREDICT, 2.0, {"y": None}),
        "null['y'] must be a number or an array, but is a Python NoneType",
    ),
    "classifier: a gradient": (
        lambda: guidance.classifier(PREDICT, X),
        "log_prob_grad must be a function, such as a classifier's gradient, but is a numpy ndarray",
    ),
    "classifier: a number": (
        lambda: guidance.classifier(ORACLE, lambda x, t: 0.0)(FLAT, T),
        "log_prob_grad must be an array, but is a Python float",
    ),
    "measurement: a list": (
        lambda: Measurement(KEEP, [[0.0, 0.0, 0.0, 0.0]]),
        "y must be an array, but is a Python list",
    ),
    "measure: one sample": (
        lambda: measure(KEEP, FLAT[0]),
        "x_0 must have shape (B, 4), as the data of the operator, but has (4,)",
    ),
    "measure: what is measured": (
        lambda: measure(average_pool((4, 4), 2), np.zeros((1, 2, 2))),
        "x_0 must have shape (B, 4, 4), as the data of the operator, but has (1, 2, 2)",
    ),
    "average_pool": (lambda: average_pool((4, 4), 0), "factor 0 does not divide (4, 4)"),
    "given: y": (
        lambda: ORACLE.given(FLAT[:1]),
        "measurement must be a Measurement, such as measure(mask(keep), x_0), but is a numpy",
    ),
    "given: longer data": (
        lambda: ORACLE.given(LONGER),
        "means must have shape (B, 5), as the data of the operator, but has (1, 4)",
    ),
    "mixture given: longer data": (
        lambda: MIXTURE.given(LONGER),
        "means must have shape (B, 5), as the data of the operator, but has (1, 4)",
    ),
    "dataset given: longer data": (
        lambda: DATASET.given(LONGER),
        "means must have shape (B, 5), as the data of the operator, but has (3, 4)",
    ),
    "ddnm: swapped": (
        lambda: inverse.ddnm(SEEN, ORACLE),
        "denoise must be a function, such as a Predictor, but is a ddpm_core Measurement",
    ),
    "ddnm: an operator": (
        lambda: inverse.ddnm(ORACLE, KEEP),
        "measurement must be a Measurement, such as measure(mask(keep), x_0), but is a ddpm_core O",
    ),
    "mmps: an operator": (
        lambda: inverse.mmps(ORACLE, KEEP),
        "measurement must be a Measurement, such as measure(mask(keep), x_0), but is a ddpm_core O",
    ),
    "dps: an operator": (
        lambda: inverse.dps(ORACLE, KEEP),
        "measurement must be a Measurement, such as measure(mask(keep), x_0), but is a ddpm_core O",
    ),
    "diffpir: swapped": (
        lambda: inverse.diffpir(SEEN, ORACLE),
        "denoise must be a function, such as a Predictor, but is a ddpm_core Measurement",
    ),
    "pigdm: swapped": (
        lambda: inverse.pigdm(SEEN, ORACLE),
        "denoise must be a function, such as a Predictor, but is a ddpm_core Measurement",
    ),
    "pigdm: spread": (
        lambda: inverse.pigdm(ORACLE, SEEN, 1.0),
        "spread must be a function, such as lambda t: t.sigma**2, but is 1.0",
    ),
    "pigdm: a level without data": (
        lambda: inverse.pigdm(ORACLE, SEEN)(FLAT, from_logsnr(np.array([0.0, -np.inf]), T)),
        "at a level without data (alpha = 0)",
    ),
    "mmps: swapped": (
        lambda: inverse.mmps(SEEN, ORACLE),
        "denoise must be a function, such as a Predictor, but is a ddpm_core Measurement",
    ),
    "replaced: swapped": (
        lambda: inverse.replaced(SEEN, KERNEL),
        "kernel must be a function, such as reverse(denoise), but is a ddpm_core Measurement",
    ),
    "ddrm: swapped": (
        lambda: inverse.ddrm(SEEN, ORACLE),
        "denoise must be a function, such as a Predictor, but is a ddpm_core Measurement",
    ),
    "dps: swapped": (
        lambda: inverse.dps(SEEN, ORACLE),
        "denoise must be a function, such as a Predictor, but is a ddpm_core Measurement",
    ),
    "dps: a name": (
        lambda: inverse.dps(ORACLE, SEEN, variance="large"),
        "variance must be a function, such as large, but is 'large'",
    ),
    "ddnm: longer data": (
        lambda: inverse.ddnm(lambda x, t: x, LONGER)(FLAT, T),
        "x must have shape (B, 5), as the data of the operator, but has (2, 4)",
    ),
    "mmps: y of another batch": (
        lambda: inverse.mmps(ORACLE, THREE)(FLAT, T),
        "y has shape (3, 4), but x (2, 4): pass one y, or one for each sample",
    ),
    "ddrm: longer data": (
        lambda: inverse.ddrm(lambda x, t: x, LONGER)(FLAT, T, SCHEDULE(400)),
        "x must have shape (B, 5), as the data of the operator, but has (2, 4)",
    ),
    "walk: a schedule": (
        lambda: inverse.walk(SCHEDULE),
        "levels must be a Level, but is a ddpm_core Discrete",
    ),
    "walk: one level": (
        lambda: inverse.walk(T),
        "levels must be (n + 1,), such as those of a sampler, but are one level",
    ),
    "sample_kernel: no noise": (
        lambda: ddpm.sample_kernel(KERNEL, ddpm.levels_of(SCHEDULE, 2), FLAT, None),
        "noise must be a function, such as portable_noise(seed), but is a Python NoneType",
    ),
    "sample_kernel: steps": (
        lambda: ddpm.sample_kernel(KERNEL, 10, FLAT, NOISE),
        "levels must be a Level, but is 10",
    ),
    "predictor: coordinates": (
        lambda: ddpm.Predictor(PREDICT.net, SCHEDULE, coordinates=straight),
        "coordinates must be Coordinates, such as straight(), but is a Python function",
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
