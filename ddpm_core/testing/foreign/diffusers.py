"""`unrolled`: what a scheduler of Hugging Face diffusers computes, in numbers."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest.mock import patch

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.parameterisations import Pair, Parameterisation, edm, eps, flow, v, x0
from ddpm_core.samplers.unrolled import Unrolled, from_step
from ddpm_core.schedules import Flow
from ddpm_core.testing.foreign.torch_loops import Wide, along_a_path, level_of_ratio
from ddpm_core.typing import Array

_PREDICTS: dict[str, Parameterisation] = {"epsilon": eps, "sample": x0, "v_prediction": v}


def unrolled(
    scheduler: Any, steps: int | None = None, *, timesteps: Any = None, **step: Any
) -> Unrolled:
    """What a scheduler of diffusers computes, call by call, in variance-preserving coordinates.

    scheduler: is copied, not changed. With steps or timesteps it is made anew from its config;
        without them it is taken as it stands, with the float32 tables that it has
    steps, timesteps: of its `set_timesteps`
    step: options of its `step`, such as eta

    While it runs, `float32` in the scheduler's module is `float64`, and its noise is ours. x_T is
    what the network sees first: `init_noise_sigma`, which scales a draw to it, is left out.

    levels: those at which the network is called, and then the one where the scheduler ends. Their
        time is the timestep that the network is given, plus 1 where -1 would be clean data

    ValueError for what is not linear, such as clip_sample.
    """
    kind, config = cast(Any, type(scheduler)), scheduler.config
    for name in (
        "clip_sample",
        "thresholding",
        "use_flow_sigmas",
        "invert_sigmas",
        "variance_type",
    ):
        value = config.get(name)
        if value and not str(value).startswith("fixed"):
            raise ValueError(f"{name} must be off, but is {value}")
    straight = kind.__name__.startswith("FlowMatch")
    if not (straight or hasattr(scheduler, "scale_model_input")):
        raise ValueError(f"{kind.__name__} is not of a variance-preserving, EDM or flow process")
    predicts = flow if straight else _predicts(config)
    with _in_float64(kind) as (torch, draws):
        made: Any = copy.deepcopy(scheduler)
        if steps is not None or timesteps is not None:
            made = kind.from_config(config)
            custom = {} if timesteps is None else {"timesteps": timesteps}
            made.set_timesteps(steps, **custom)
        dry = copy.deepcopy(made)
        for each in (made, dry):
            if hasattr(each, "noise_sampler"):
                each.noise_sampler = along_a_path(draws.pop)

        def call(of: Any, i: int, x: Any, y: Any, z: Any) -> Any:
            draws[:] = [z]
            if not straight:
                of.scale_model_input(x, of.timesteps[i])
            return of.step(y, of.timesteps[i], x, **step).prev_sample

        if straight:
            levels, scales = _levels_of_flow(dry)
        else:
            levels, scales = _levels(dry, call, predicts, torch.ones(1, 1))
        return from_step(
            lambda i, x, y, z: call(made, i, x / scales[i], y, z) * scales[i + 1],
            levels,
            predicts,
            asarray=lambda a: torch.tensor(a)[None],
            to_numpy=lambda x: x[0].numpy(),
        )


def _predicts(config: Any) -> Parameterisation:
    name: str = config.get("prediction_type", "v_prediction")  # IPNDM does not say it
    if name not in _PREDICTS:
        raise ValueError(f"prediction_type must be one of {', '.join(_PREDICTS)}, but is {name}")
    if "sigma_data" not in config:
        return _PREDICTS[name]
    raw = edm(float(config["sigma_data"]))

    def negated(t: Level) -> Pair:
        a, b = raw(t)
        return -a, -b

    return negated if name == "v_prediction" else raw


def _levels_of_flow(made: Any) -> tuple[Level, Array]:
    """The levels of a straight path, and what multiplies the scheduler's x there."""
    levels = Flow()(np.asarray(made.sigmas))._replace(time=np.append(made.timesteps, 0.0))
    return levels, levels.alpha + levels.sigma


def _levels(
    dry: Any, call: Callable[..., Any], predicts: Parameterisation, one: Any
) -> tuple[Level, Array]:
    """The levels, and what multiplies the scheduler's x there: from a run on x_0 = 1, eps = 0."""
    n, counts = len(dry.timesteps), hasattr(dry, "alphas_cumprod")
    k, scales, alpha = np.zeros(n + 1), np.ones(n + 1), 0.0
    for i in range(n):
        seen = float(dry.scale_model_input(one, dry.timesteps[i]))
        k[i] = _ratio(dry, i, seen)
        if k[i] == 0:
            raise ValueError(f"call {i} looks at clean data, where nothing is read")
        t = level_of_ratio(k[i], 0.0)
        scales[i] = 1.0 if seen == 1 else t.alpha
        x_0 = one * float(predicts(t)[0])
        alpha = float(call(dry, i, one * (t.alpha / scales[i]), x_0, 0 * one))
    times = np.append(np.asarray(dry.timesteps, dtype=np.float64) + counts, 0.0)
    if hasattr(dry, "sigmas") or not counts:
        k[n] = _ratio(dry, n, 1.0)
        alpha = 1 / np.sqrt(1 + k[n] ** 2)
    if counts:
        abar = np.append(1.0, dry.alphas_cumprod)
        times[n] = end = int(np.argmin(np.abs(abar - alpha**2)))
        k[n] = k[n] if hasattr(dry, "sigmas") else np.sqrt((1 - abar[end]) / abar[end])
    levels = level_of_ratio(k, times)
    scales[n] = levels.alpha[n] if scales[0] != 1 else 1.0
    return levels, scales


def _ratio(made: Any, i: int, seen: float) -> float:
    """σ / α at call i, before which x is scaled by `seen`."""
    if seen != 1:
        return float(np.sqrt(seen**-2 - made.config.get("sigma_data", 1.0) ** 2))
    if hasattr(made, "sigmas"):
        return float(made.sigmas[i])
    if not hasattr(made, "alphas_cumprod"):  # IPNDM, whose betas are sigmas
        return float(made.betas[i] / made.alphas[i])
    index, abar = int(made.timesteps[i]), made.alphas_cumprod
    if hasattr(made, "initial_alpha_cumprod"):  # inversion computes with where it comes from
        index -= made.config.num_train_timesteps // made.num_inference_steps
        if index < 0:
            index, abar = 0, made.initial_alpha_cumprod[None]
    return float(((1 - abar[index]) / abar[index]) ** 0.5)


@contextmanager
def _in_float64(kind: Any) -> Generator[tuple[Any, list[Any]]]:
    """torch, and a list from which the scheduler takes its noise."""
    try:
        import torch
    except ImportError:
        raise ImportError("torch is missing: pip install 'ddpm-core[diffusers]'") from None
    draws: list[Any] = []

    def drawn(*_: Any, **__: Any) -> Any:
        return draws.pop()

    wide: dict[str, Any] = {"torch": Wide(torch), "np": Wide(np), "randn_tensor": drawn}
    bases = {base.__module__ for base in kind.__mro__}
    dtype = torch.get_default_dtype()
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated options, which their owner has seen
        for module in (sys.modules[name] for name in bases if ".schedulers." in name):
            for name in wide.keys() & vars(module).keys():
                stack.enter_context(patch.object(module, name, wide[name]))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float64)
        yield torch, draws
