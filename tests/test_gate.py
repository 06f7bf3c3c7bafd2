"""The gate: every function of the core, on every array library, equals itself on float64 NumPy.

A case is a function of arrays x, y, z (3, 2, 2) and levels t > s. It runs at levels of the host,
one for all or one per sample, and at levels of the device; with the same numbers the result must
be that of NumPy in float64 to c eps, where c is how far the formula amplifies a rounding of its
inputs. Under JAX every case runs both eagerly and under `jax.jit`, under dask without computing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from array_api_extra.testing import lazy_xp_function

import ddpm_core as ddpm
from ddpm_core import Level
from ddpm_core.levels import fit
from ddpm_core.nn import Ops, parameter_shapes, unet

SHAPE = (3, 2, 2)
SCHEDULE = ddpm.linear(1000)
TIMES = np.array([700.0, 500.0, 300.0]), np.array([350.0, 100.0, 0.0])
CLEAN = SCHEDULE(0)


def run(case: Callable[..., Any], *args: Any) -> Any:
    """What `lazy_xp_function` sees: under JAX this call is jitted, under dask it may not compute."""
    return case(*args)


lazy_xp_function(run)


def inputs(count: int = 3, shape: tuple[int, ...] = SHAPE) -> list[np.ndarray]:
    """Float32 arrays, so that both sides start from the same numbers."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(count)]


def agree(lib: Any, case: Callable[..., Any], arrays: Any, host: Any, device: Any, c: float,
          dtype: str = "float32") -> None:
    """The case on `lib`, at its arrays and `device`, is the case on float64 NumPy, at `host`."""
    xp = lib.xp
    expected = flat(case(*(a.astype(np.float64) for a in arrays), *host))
    with lib.float64() if dtype == "float64" else lib.float32():
        wanted = getattr(xp, dtype)
        mine = [lib.asarray(a, wanted) for a in arrays]
        device = device(lib) if callable(device) else device
        results = [run(case, *mine, *device)]
        if lib.name == "jax":
            results.append(case(*mine, *device))
        for result in results:
            got = flat(result)
            assert len(got) == len(expected)
            for a, b in zip(got, expected, strict=True):
                close(lib, a, b, c, wanted)
        if lib.has_values:  # the inputs are what they were
            for a, b in zip(mine, arrays, strict=True):
                assert (lib.to_numpy(a) == b).all()


def close(lib: Any, actual: Any, expected: Any, c: float, dtype: Any) -> None:
    """An array of the library, dtype and device asked for, within c eps of the expected."""
    xp = lib.xp
    assert isinstance(actual, type(lib.asarray(np.zeros(1), dtype)))
    assert actual.dtype == dtype
    assert tuple(actual.shape) == expected.shape
    if lib.device is not None:
        assert str(actual.device) == str(lib.device)
    if lib.has_values:
        scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
        eps = float(xp.finfo(dtype).eps)
        np.testing.assert_allclose(lib.to_numpy(actual), expected, rtol=0, atol=c * eps * scale)


def flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


# The cases. -------------------------------------------------------------------------------------

CUSTOM = {"mu": ddpm.mu(SCHEDULE)}
TARGETS = {f.__name__: f for f in (ddpm.x0, ddpm.eps, ddpm.v, ddpm.score, ddpm.flow)} | CUSTOM


def net(x: Any, timestep: Any, **cond: Any) -> Any:
    return 0.5 * x + 1e-3 * fit(timestep, x)


def net_of_two(x: Any, timestep: Any) -> Any:
    from array_api_compat import array_namespace

    y = net(x, timestep)
    return array_namespace(x).concat([y, 2.0 * y], axis=1)


rng = np.random.default_rng(1)
MEAN, VAR = rng.standard_normal(SHAPE[1:]), rng.uniform(0.1, 2.0, SHAPE[1:])
FACTOR = rng.standard_normal((4, 4))
GAUSSIAN = ddpm.GaussianOracle(MEAN, VAR)
FULL = ddpm.GaussianOracle(MEAN, FACTOR @ FACTOR.T)
MIXTURE = ddpm.MixtureOracle([0.3, 0.7], rng.standard_normal((2, *SHAPE[1:])), [0.5, 0.1])
DATASET = ddpm.DatasetOracle(rng.standard_normal((5, *SHAPE[1:])))
PREDICT = ddpm.Predictor(net, SCHEDULE)


def fitted(g: ddpm.Gaussian) -> tuple[Any, Any]:
    """A Gaussian's mean and variance as arrays: a variance of the host stays there."""
    return g.mean, fit(g.var, g.mean) + 0.0 * g.mean


def on_batch(c: Any, x: Any) -> Any:
    return fit(c, x) + 0.0 * x


class Case(NamedTuple):
    f: Callable[..., Any]
    c: float


CASES: dict[str, Case] = {
    "q_sample": Case(lambda x, y, z, t, s: ddpm.q_sample(x, y, t), 4),
    "q_sample clean": Case(lambda x, y, z, t, s: ddpm.q_sample(x, y, CLEAN), 4),
    "q_marginal": Case(lambda x, y, z, t, s: fitted(ddpm.q_marginal(x, t)), 4),
    "q_step": Case(lambda x, y, z, t, s: ddpm.q_step(x, y, s, t), 8),
    "q_posterior": Case(lambda x, y, z, t, s: fitted(ddpm.q_posterior(x, y, t, s)), 8),
    "q_posterior clean": Case(lambda x, y, z, t, s: fitted(ddpm.q_posterior(x, y, t, CLEAN)), 8),
    "small": Case(lambda x, y, z, t, s: on_batch(ddpm.small(t, s), x), 8),
    "large": Case(lambda x, y, z, t, s: on_batch(ddpm.large(t, s), x), 8),
    "tau": Case(lambda x, y, z, t, s: on_batch(ddpm.tau(t, s), x), 8),
    "log_prob": Case(lambda x, y, z, t, s: ddpm.log_prob(ddpm.q_marginal(x, t), y), 8),
    "kl": Case(lambda x, y, z, t, s: ddpm.kl(ddpm.q_marginal(x, t), ddpm.q_marginal(y, t)), 8),
    "predictor": Case(lambda x, y, z, t, s: PREDICT(x, t), 8),
    "predictor learned": Case(
        lambda x, y, z, t, s: ddpm.Predictor(net_of_two, SCHEDULE, variance=True).both(x, t), 8
    ),
    "predictor continuous": Case(
        lambda x, y, z, t, s: ddpm.Predictor(net, ddpm.VP(), predicts=ddpm.v)(x, t), 8
    ),
    "clip": Case(lambda x, y, z, t, s: ddpm.clip(PREDICT)(x, t), 8),
    "reverse": Case(lambda x, y, z, t, s: fitted(ddpm.reverse(GAUSSIAN)(x, t, s)), 8),
    "reverse large": Case(
        lambda x, y, z, t, s: fitted(ddpm.reverse(GAUSSIAN, ddpm.large)(x, t, s)), 8
    ),
    "gaussian": Case(lambda x, y, z, t, s: GAUSSIAN(x, t), 8),
    "gaussian log_prob": Case(lambda x, y, z, t, s: GAUSSIAN.log_prob(x, t), 8),
    "gaussian reverse": Case(lambda x, y, z, t, s: fitted(GAUSSIAN.reverse(x, t, s)), 8),
    "gaussian reverse clean": Case(
        lambda x, y, z, t, s: fitted(GAUSSIAN.reverse(x, t, CLEAN)), 8
    ),
    "gaussian reverse_sample": Case(lambda x, y, z, t, s: GAUSSIAN.reverse_sample(x, z, t, s), 8),
    "full": Case(lambda x, y, z, t, s: FULL(x, t), 8),
    "full log_prob": Case(lambda x, y, z, t, s: FULL.log_prob(x, t), 8),
    "full reverse_sample": Case(lambda x, y, z, t, s: FULL.reverse_sample(x, z, t, s), 8),
    "mixture": Case(lambda x, y, z, t, s: MIXTURE(x, t), 8),
    "mixture log_prob": Case(lambda x, y, z, t, s: MIXTURE.log_prob(x, t), 8),
    "mixture reverse": Case(
        lambda x, y, z, t, s: (lambda w, g: (w, g.mean, g.var + 0.0 * g.mean))(
            *MIXTURE.reverse(x, t, s)
        ),
        8,
    ),
    "mixture log_prob of data": Case(lambda x, y, z, t, s: MIXTURE.log_prob(x), 8),
    "dataset": Case(lambda x, y, z, t, s: DATASET(x, t), 8),
    "dataset log_prob": Case(lambda x, y, z, t, s: DATASET.log_prob(x, t), 8),
    "loss denoiser": Case(lambda x, y, z, t, s: ddpm.loss(DATASET, x, y, t), 8),
    "loss p2": Case(lambda x, y, z, t, s: ddpm.loss(PREDICT, x, y, t, ddpm.p2()), 8),
    "loss min_snr": Case(lambda x, y, z, t, s: ddpm.loss(PREDICT, x, y, t, ddpm.min_snr()), 8),
    "loss native": Case(
        lambda x, y, z, t, s: ddpm.loss(PREDICT, x, y, t, ddpm.native(ddpm.eps)), 8
    ),
}
for name, predicts in TARGETS.items():
    c = 8
    CASES |= {
        f"target {name}": Case(lambda x, y, z, t, s, p=predicts: ddpm.target(x, y, t, p), c),
        f"to_x0 {name}": Case(lambda x, y, z, t, s, p=predicts: ddpm.to_x0(x, y, t, p), c),
        f"to_eps {name}": Case(lambda x, y, z, t, s, p=predicts: ddpm.to_eps(x, y, t, p), c),
        f"convert {name}": Case(
            lambda x, y, z, t, s, p=predicts: ddpm.convert(x, y, t, ddpm.v, p), c
        ),
        f"loss {name}": Case(
            lambda x, y, z, t, s, p=predicts: ddpm.loss(
                ddpm.Predictor(net, SCHEDULE, predicts=p), x, y, t
            ),
            c,
        ),
    }

ONE = SCHEDULE(700), SCHEDULE(350)
EACH = tuple(SCHEDULE(time) for time in TIMES)
LEVELS = {
    "host": (ONE, ONE),
    "host each": (EACH, EACH),
    "device each": (EACH, lambda lib: [lib.level(t, lib.xp.float32) for t in EACH]),
}


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", CASES)
def test_is_float64_numpy(lib: Any, name: str, levels: str) -> None:
    """f of any library = f of NumPy in float64, to c eps; dtype, device and arguments are kept."""
    agree(lib, CASES[name].f, inputs(), *LEVELS[levels], c=CASES[name].c)
