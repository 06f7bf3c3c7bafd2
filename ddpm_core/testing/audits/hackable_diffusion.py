"""Google's hackable_diffusion, of a checkout: its schedules, conversions and steps, in float32."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.process import q_posterior
from ddpm_core.schedules import VP
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import numbers, process_laws
from ddpm_core.testing.report import Finding

NOTES = {
    "addim": Note(
        "defect",
        "`AdjustedDDIMStep` scales x_0 by α of the level that it leaves",
        "Heek et al. 2024, Algorithm 3, has α_s x_0, where s is the next time, as DDIM has. From "
        "t = 1, where α is almost 0, the step then loses x_0.",
        "`DDIMStep(stoch_coeff=0)`",
        report="hackable-diffusion-addim",
    ),
    "batch": Note(
        "defect",
        "The samples of a batch depend on each other in `AdjustedDDIMStep`",
        "The mean of eps² is over the whole batch. In Heek et al. 2024, Algorithm 3, it is the "
        "norm of one sample over its dimension.",
        "a batch of one",
        report="hackable-diffusion-addim",
    ),
    "prior": Note(
        "defect",
        "Sampling with `GeometricSchedule` starts from N(0, 1)",
        "`GaussianProcess.sample_from_invariant` draws it whatever the schedule is. With α = 1, "
        "x at the first time is N(x_0, σ_max²).",
        "multiply the noise by `schedule.sigma(1)`",
        report="hackable-diffusion-prior",
    ),
}
_TIMES = np.linspace(0.05, 0.95, 13)


def subjects() -> list[Subject]:
    lib: Any = importlib.import_module("hackable_diffusion.lib.corruption.schedules")
    cos, v = np.pi * _TIMES / 2, np.arccos(2 * _TIMES - 1) / np.pi
    schedules = {
        "RF": (lib.RFSchedule(), (1 - _TIMES, _TIMES)),
        "Cosine": (lib.CosineSchedule(), (np.cos(cos), np.sin(cos))),
        "InverseCosine": (lib.InverseCosineSchedule(), (np.sqrt(v), np.sqrt(1 - v))),
        "LinearDiffusion": (lib.LinearDiffusionSchedule(), VP()(_TIMES)[2:]),
        "Geometric": (lib.GeometricSchedule(sigma_min=0.01, sigma_max=80.0),
                      (np.ones(13), 0.01 * 8000**_TIMES)),
    }  # fmt: skip
    geometric, linear = schedules["Geometric"][0], schedules["LinearDiffusion"][0]
    table = [
        Subject(f"{name}Schedule", partial(_process, *kind)) for name, kind in schedules.items()
    ]
    for name, coefficient in (("ddim", 0.0), ("ancestral", 1.0)):
        table.append(
            Subject(f"DDIMStep, stoch_coeff={coefficient:g}",
                    partial(_ddim, linear, coefficient), {}, name)
        )  # fmt: skip
    return [
        *table,
        Subject("convert_predictions", partial(_conversions, linear)),
        Subject("AdjustedDDIMStep", partial(_addim, linear),
                {"its x_0": "addim", "a sample": "batch"}),
        Subject("sample_from_invariant, LinearDiffusionSchedule", partial(_prior, linear)),
        Subject("sample_from_invariant, GeometricSchedule", partial(_prior, geometric),
                {"": "prior"}),
    ]  # fmt: skip


def _gaussian(schedule: Any) -> Any:
    module: Any = importlib.import_module("hackable_diffusion.lib.corruption.gaussian")
    return module.GaussianProcess(schedule=schedule)


def _process(made: Any, wanted: Any) -> Iterable[Finding]:
    import jax

    with jax.enable_x64(True):

        def of(name: str, t: Any) -> Any:
            return np.asarray(getattr(made, name)(jax.numpy.asarray(t)), dtype=np.float64)

        def scales(t: Any) -> Any:
            return of("alpha", t), of("sigma", t)

        f = np.zeros(13) if (wanted[0] == 1).all() else of("f", _TIMES)
        sde = (f, of("g", _TIMES) ** 2)
        source = "the paper that it names"
        yield from process_laws(scales, source, _TIMES, wanted, sde, allowed=1e-7)
        back = made.inverse_logsnr(jax.numpy.asarray(of("logsnr", _TIMES)))
        yield numbers("the time of a log-SNR is the one that has it", source, back, _TIMES, 1e-6,
                      lambda i: f"t = {_TIMES[i]:g}")  # fmt: skip


def _step(kind: str, schedule: Any, x_0: Any, x: Any, t: float, s: float, **options: Any) -> Any:
    """One step from t to s, without its noise, of a network that says x_0."""
    import jax

    lib: Any = importlib.import_module("hackable_diffusion.lib.sampling.gaussian_step_sampler")
    base: Any = importlib.import_module("hackable_diffusion.lib.sampling.base")
    step = getattr(lib, kind)(corruption_process=_gaussian(schedule), **options)
    x_0, x = (jax.numpy.asarray(a, dtype="float32") for a in (x_0, x))

    def info(i: int, time: float) -> Any:
        times = jax.numpy.full((len(x), 1), time, dtype="float32")
        return base.StepInfo(step=i, time=times, rng=jax.random.PRNGKey(0))

    now = base.DiffusionStep(xt=x, step_info=info(0, t), aux={})
    last = kind == "DDIMStep"
    return np.asarray((step.finalize if last else step.update)({"x0": x_0}, now, info(1, s)).xt)


def _levels(t: float, s: float) -> tuple[Level, Level]:
    return VP()(t), VP()(s)


def _ddim(schedule: Any, coefficient: float) -> Iterable[Finding]:
    x_0, x = np.array([[0.7], [-0.4]]), np.array([[0.3], [1.5]])
    for t, s in ((0.9, 0.5), (0.3, 0.1)):
        found = _step("DDIMStep", schedule, x_0, x, t, s, stoch_coeff=coefficient)
        now, then = _levels(t, s)
        eps = (x - now.alpha * x_0) / now.sigma
        wanted = {
            0.0: then.alpha * x_0 + then.sigma * eps,
            1.0: q_posterior(x_0, x, now, then).mean,
        }[coefficient]
        yield numbers(f"its mean, from {t:g} to {s:g}", "Song et al. 2021, Eq. 12",
                      found.ravel(), wanted.ravel(), 1e-5)  # fmt: skip


def _addim(schedule: Any) -> Iterable[Finding]:
    """Of one eps and two x_0, what the step makes of x_0; and a sample alone, and with another."""
    eps, (now, then) = np.array([[1.0, -1.0]]), _levels(0.9, 0.5)

    def step(x_0: Any, eps: Any) -> Any:
        x = now.alpha * x_0 + now.sigma * eps
        return _step("AdjustedDDIMStep", schedule, x_0, x, 0.9, 0.5)

    one = np.ones_like(eps)
    yield numbers("its x_0 is scaled by alpha of where it goes", "Heek et al. 2024, Algorithm 3",
                  (step(one, eps) - step(0 * one, eps)).ravel(), then.alpha, 1e-4,
                  lambda i: "from t = 0.9 to 0.5")  # fmt: skip
    both = step(np.concatenate([one, one]), np.concatenate([eps, 0.1 * eps]))
    yield numbers("a sample does not depend on the others", "Heek et al. 2024, Algorithm 3",
                  both[1] - step(one, 0.1 * eps)[0], 0.0, 1e-5,
                  lambda i: "one with a tenth of the noise, beside another")  # fmt: skip


def _conversions(schedule: Any) -> Iterable[Finding]:
    import jax

    made, t = _gaussian(schedule), VP()(0.5)
    x_0, eps = np.array([[0.7]]), np.array([[-0.3]])
    x = t.alpha * x_0 + t.sigma * eps
    exact = {"x0": x_0, "epsilon": eps, "score": -eps / t.sigma, "v": t.alpha * eps - t.sigma * x_0}
    arrays = {key: jax.numpy.asarray(each, dtype="float32") for key, each in exact.items()}
    time = jax.numpy.full((1, 1), 0.5, dtype="float32")
    for name, said in arrays.items():
        found = made.convert_predictions(
            prediction={name: said}, xt=jax.numpy.asarray(x, dtype="float32"), time=time
        )
        off = [float(found[key][0, 0]) - float(value[0, 0]) for key, value in exact.items()]
        yield numbers(f"all that follows from the exact {name}", "Salimans & Ho 2022, appendix D",
                      off, 0.0, 1e-4, lambda i: list(exact)[i])  # fmt: skip


def _prior(schedule: Any) -> Iterable[Finding]:
    import jax

    x = _gaussian(schedule).sample_from_invariant(
        jax.random.PRNGKey(0), data_spec=jax.numpy.zeros((1000, 10))
    )
    wanted = float(schedule.sigma(jax.numpy.ones((1, 1)))[0, 0])
    law = "sampling starts from noise of its first level"
    yield numbers(law, "Song et al. 2021b, section 2.1", float(x.std()), wanted, 0.03 * wanted,
                  lambda i: "standard deviation")  # fmt: skip
