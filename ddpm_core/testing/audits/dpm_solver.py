"""The authors' DPM-Solver, of a checkout: its solvers, and the times that it tells a network."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from ddpm_core.levels import Level, from_logsnr
from ddpm_core.parameterisations import eps
from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.samplers.unrolled import from_loop
from ddpm_core.schedules import VP, cosine, linear
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import numbers, solver_laws
from ddpm_core.testing.foreign.torch_loops import as_array, as_tensor
from ddpm_core.testing.report import Finding

NOTES = {
    "third-order": Note(
        "defect",
        "Multistep DPM-Solver of order 3 is of order 2",
        "`multistep_dpm_solver_third_update`: `D2` is the second divided difference times h², "
        "which is half of h² times the second derivative, and `phi_3` is the weight of the "
        'whole. The single-step solver with `solver_type="taylor"` has the factor 2, and '
        "k-diffusion and diffusers have this code's.",
        "`order=2` loses no order; the single-step solver of order 3 has it",
        report="dpm-solver-third-order",
    ),
    "labels": Note(
        "defect",
        "With the cosine schedule the network is told too noisy a time",
        "`numerical_clip_alpha` drops the noisiest levels, N' of N stay, and times are i / N'; "
        "`get_model_input_time` makes (i / N' - 1 / N') * 1000 of it, where the network was "
        "trained with i - 1.",
        "pass a `model_fn` that undoes it: t * N' / 1000, rounded",
        "LuChengTHU/dpm-solver #60 (open) asks about the factor of 1000; #25 (open) sees cosine "
        "worse than DDIM, its cause was not named in what we saw",
        "dpm-solver-cosine-labels",
    ),
}


def subjects() -> list[Subject]:
    import torch

    library: Any = importlib.import_module("dpm_solver_pytorch")

    vp = VP()
    times = np.asarray(vp.at(np.linspace(vp(1.0).logsnr, vp(1e-3).logsnr, 25)).time)
    grid = vp(times)

    def on(algorithm: str, **options: Any) -> Callable[[Level], Unrolled]:
        def unrolled_on(levels: Level) -> Unrolled:
            process = library.NoiseScheduleVP("linear", dtype=torch.float64)
            ends = [float(vp.at(levels.logsnr[i]).time) for i in (0, -1)]

            def level_of(t: Any) -> Level:
                logsnr = 2 * float(process.marginal_lambda(t.reshape(-1)[:1]))
                return from_logsnr(logsnr, float(t.reshape(-1)[0]))

            def run(network: Any, x: Any, draw: Any) -> Any:
                made = library.DPM_Solver(network, process, algorithm_type=algorithm)
                return made.sample(
                    x, steps=len(levels.sigma) - 1, t_start=ends[0], t_end=ends[1],
                    skip_type="logSNR", lower_order_final=False, **options,
                )  # fmt: skip

            dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                last = level_of(torch.tensor([ends[1]]))
                return from_loop(run, level_of, last, eps, asarray=as_tensor, to_numpy=as_array)
            finally:
                torch.set_default_dtype(dtype)

        return unrolled_on

    table: list[Subject] = []
    third = {"it is": "third-order", "its order": "third-order"}
    for algorithm, names in {
        "dpmsolver++": ("ddim", "dpmpp_2m", "dpmpp_3m"),
        "dpmsolver": ("dpm_solver_1", "dpm_solver_2m", "dpm_solver_3m"),
    }.items():
        for i, name in enumerate(names):
            made = on(algorithm, order=i + 1, method="multistep")
            table.append(
                Subject(
                    f"{algorithm}, multistep, order {i + 1}",
                    partial(solver_laws, made, grid, by_name(name), name, p=i + 1, allowed=1e-6),
                    third if i == 2 else {},
                    name,
                )
            )
    for algorithm, order, name in (
        ("dpmsolver++", 2, "dpmpp_2s"),
        ("dpmsolver", 2, "dpm_solver_2"),
        ("dpmsolver", 3, "dpm_solver_3"),
        ("dpmsolver++", 3, ""),
    ):
        made = on(algorithm, order=order, method="singlestep_fixed")
        solver = by_name(name) if name else None
        laws = partial(solver_laws, made, grid, solver, name, p=order, allowed=1e-6,
                       at=slice(None, None, order))  # fmt: skip
        label = f"{algorithm}, singlestep_fixed, order {order}"
        table.append(Subject(label, laws, {}, name))
    return [
        *table,
        Subject("NoiseScheduleVP, linear", partial(_process, library)),
        *(
            Subject(f"model_wrapper, {name}", partial(_labels, library, schedule), {"": "labels"})
            for name, schedule in (("linear", linear()), ("cosine", cosine()))
        ),
    ]


def _process(library: Any) -> Iterable[Finding]:
    import torch

    t = np.linspace(1e-3, 1, 9)
    made = library.NoiseScheduleVP("linear", dtype=torch.float64)
    found = np.asarray(made.marginal_lambda(torch.tensor(t)))
    yield numbers("half the log-SNR", "Song et al. 2021b, Eq. 33", found, VP()(t).logsnr / 2, 1e-9,
                  lambda i: f"t = {t[i]:g}")  # fmt: skip


def _labels(library: Any, schedule: Any) -> Iterable[Finding]:
    """What a network is told at each training level that is kept."""
    import torch

    abar = torch.tensor(schedule(np.arange(1, schedule.T + 1.0)).alpha ** 2)
    made = library.NoiseScheduleVP("discrete", alphas_cumprod=abar, dtype=torch.float64)
    told: list[float] = []

    def network(x: Any, t: Any, **_: Any) -> Any:
        told.append(float(t[0]))
        return x

    wrapped = library.model_wrapper(network, made)
    for t in made.t_array.reshape(-1):
        wrapped(torch.zeros(1, 1), t.reshape(1))
    yield numbers("the network is told the index of its input", "Ho et al. 2020, section 4", told,
                  np.arange(len(told)), 0.01, lambda i: f"index {i} of {schedule.T}")  # fmt: skip
