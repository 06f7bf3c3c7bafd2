"""Gaussian diffusions in the style of OpenAI's: their schedule, kernels, posterior and samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_core.gaussians import Gaussian
from ddpm_core.levels import Level
from ddpm_core.parameterisations import Parameterisation, eps
from ddpm_core.samplers.unrolled import Unrolled, from_loop
from ddpm_core.schedules import Discrete, from_betas
from ddpm_core.testing.foreign.torch_loops import as_array, as_tensor, import_torch, noise_from
from ddpm_core.typing import Array


def schedule(diffusion: Any) -> Discrete:
    """The schedule of its `betas`, whose index 0 is time 1 here."""
    return from_betas(np.asarray(diffusion.betas, dtype=np.float64))


def posterior(diffusion: Any) -> Callable[[Array, Array, Level, Level], Gaussian]:
    """Its q(x_s | x_t, x_0) of neighbouring times, as a function (x_0, x_t, t, s) -> Gaussian.

    diffusion: has `q_posterior_mean_variance`, or `q_posterior`, of (x_start, x_t, t)
    """
    ask = getattr(diffusion, "q_posterior_mean_variance", None) or diffusion.q_posterior

    def found(x_0: Array, x_t: Array, t: Level, s: Level) -> Gaussian:
        check_neighbours(t, s)
        mean, var, _ = ask(as_batch(x_0), as_batch(x_t), index(t, len(x_0)))
        return Gaussian(np.asarray(mean).reshape(x_0.shape), np.asarray(var).reshape(-1)[0])

    return found


def q_sample(diffusion: Any) -> Callable[[Array, Array, Level], Array]:
    """Its x_t, as a function (x_0, eps, t) -> x_t."""

    def found(x_0: Array, eps: Array, t: Level) -> Array:
        x_t = diffusion.q_sample(as_batch(x_0), index(t, len(x_0)), as_batch(eps))
        return np.asarray(x_t).reshape(x_0.shape)

    return found


def as_batch(x: Array) -> Any:
    """(B, ...) as images (B, 1, 1, D), in float64."""
    return import_torch().tensor(np.asarray(x, dtype=np.float64)).reshape(len(x), 1, 1, -1)


def index(t: Level, count: int) -> Any:
    """The index, counted from 0, of a level whose time counts from 1."""
    return import_torch().full((count,), round(float(t.time)) - 1)


def check_neighbours(t: Level, s: Level) -> None:
    if float(t.time) - float(s.time) != 1:
        raise ValueError(
            f"s must be the time before t, as in these tables, but is {s.time:g} for {t.time:g}"
        )


def unrolled(
    diffusion: Any,
    step: str = "p_sample",
    predicts: Parameterisation = eps,
    *,
    times: Any = None,
    **options: Any,
) -> Unrolled:
    """What its loop over all times computes, call by call.

    step: the name of its method (model, x, t, clip_denoised=, ...) -> {"sample": x}, such as
        p_sample or ddim_sample
    times: (T,), the time that each index of a respaced diffusion has before respacing, plus 1; only
        a label
    options: of the step, such as eta

    ValueError for what `from_loop` refuses, and for a loop that clips.
    """
    torch, levels = import_torch(), schedule(diffusion)
    T = levels.T
    labels = np.arange(1, T + 1) if times is None else np.asarray(times)
    at = levels(np.arange(T + 1.0))
    called: list[int] = []

    def run(network: Any, x: Any, draw: Any) -> Any:
        with noise_from(draw), torch.no_grad():
            for i in reversed(range(T)):
                called[:] = [i + 1]
                t = torch.full((len(x),), i)
                x = getattr(diffusion, step)(network, x, t, clip_denoised=False, **options)[
                    "sample"
                ]
        return x

    def level_of(*_: Any) -> Level:
        return at.take(called[0])._replace(time=float(labels[called[0] - 1]))

    return from_loop(run, level_of, at.take(0), predicts, asarray=as_tensor, to_numpy=as_array)
