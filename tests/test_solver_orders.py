"""The measured order of convergence of every solver, and their registry."""

from __future__ import annotations

import inspect
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from solver_papers import Stateful
from solver_paths import EPS
from solver_paths import Path as SolverPath

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.samplers import (
    adams,
    dpm_solver,
    edm,
    extended,
    first_order,
    registry,
    reversible,
    unipc,
)
from ddpm_core.samplers.registry import ENTRIES

REGISTERED = {each.name: each for each in ENTRIES}
STEPS = (80, 160, 320)
SA = partial(samplers.sa_solver, stochasticity=0.0)
#: Name: solver, order. With default options the order is the registry's.
ORDERS = {each.name: (each.solver, each.order) for each in ENTRIES if each.from_noise} | {
    "ddim eta=0.5": (partial(ddpm.ddim, eta=0.5), 1),
    "unipc_1 bh1": (partial(samplers.unipc_1, b="bh1"), 2),
    "unipc_2 bh1": (partial(ddpm.unipc_2, b="bh1"), 3),
    "unipc_1 predictor": (partial(samplers.unipc_1, corrector=False), 1),
    "unipc_2 predictor": (partial(ddpm.unipc_2, corrector=False), 2),
    "unipc_2 bh1 predictor": (partial(ddpm.unipc_2, corrector=False, b="bh1"), 2),
    "unipc_3 predictor": (partial(samplers.unipc_3, corrector=False), 3),
    "plms 2": (partial(samplers.plms, order=2), 2),
    "plms 3": (partial(samplers.plms, order=3), 2),
    "ipndm 2": (partial(samplers.ipndm, order=2), 2),
    "ipndm 3": (partial(samplers.ipndm, order=3), 2),
    "lms 1": (partial(samplers.lms, order=1), 1),
    "lms 2": (partial(samplers.lms, order=2), 2),
    "lms 3": (partial(samplers.lms, order=3), 3),
    "er_sde 1": (partial(samplers.er_sde, order=1), 1),
    "er_sde 2": (partial(samplers.er_sde, order=2), 2),
}
ORDERS |= {
    f"sa_solver 1 {p} {c}": (partial(samplers.sa_solver, predictor=p, corrector=c), 2)
    for p, c in ((2, 0), (3, 0), (1, 1), (2, 2), (3, 3))
}
#: A predictor from p readings has order p; with a corrector through c of them and the new one,
#: which was read where the predictor came to, min(p, c) + 1.
ORDERS |= {
    f"sa_solver 0 {p} {c}": (partial(SA, predictor=p, corrector=c), min(p, c) + 1 if c else p)
    for p, c in ((1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (3, 3))
}
#: Where the leading error is small, at 80 steps the next one shows still.
FINER = dict.fromkeys(("sa_solver 0 2 1", "sa_solver 0 3 2"), (640, 1280))
FINER |= {"lms 3": (160, 320), "lms": (320, 640)}


@pytest.mark.parametrize("name", ORDERS)
def test_order(name):
    """Halving the step in log-SNR divides the error by at least 2^p."""
    solver, p = ORDERS[name]
    found = ddpm.convergence(solver, FINER.get(name, STEPS))
    assert found.errors.min() > 1e-11  # above what the reference and rounding can tell
    assert found.slopes.min() >= p - 0.15, found.slopes
    # Not an order more either, save that er_sde adds little noise and shows 3 at these steps.
    if name in REGISTERED and name != "er_sde":
        assert found.slopes[-1] <= p + 0.5, found.slopes


FAMILIES = (adams, dpm_solver, edm, extended, first_order, reversible, unipc)


def test_every_solver_is_registered():
    """Each function (schedule, steps, ...) of a family's file has an entry, and is exported."""
    found = {
        name
        for family in FAMILIES
        for name, value in vars(family).items()
        if inspect.isfunction(value)
        and value.__module__ == family.__name__
        and [*inspect.signature(value).parameters][:2] == ["schedule", "steps"]
    }
    assert found == set(REGISTERED)
    assert {*REGISTERED, "by_name"} == set(registry.__all__)
    assert set(registry.__all__) < set(samplers.__all__)
    for name, each in REGISTERED.items():
        assert getattr(samplers, name) is each.solver is samplers.by_name(name)


def test_every_file_of_solvers_is_a_family():
    """So that the test before this one sees the solvers of a new file."""
    others = {"__init__", "interchange", "multistep", "registry", "run", "tables", "unrolled"}
    files = {path.stem for path in Path(samplers.__file__).parent.glob("*.py")} - others
    assert files == {family.__name__.rpartition(".")[2] for family in FAMILIES}


def test_aliases():
    """Names of other papers and libraries are found; they are of one solver each, and no solver."""
    for alias, solver in {
        "euler": ddpm.ddim,
        "dpm_solver_1": ddpm.ddim,
        "deis_1": ddpm.ddim,
        "euler_ancestral": ddpm.ancestral,
        "sde_dpmpp_1": ddpm.ancestral,
        "midpoint": samplers.dpm_solver_2,
    }.items():
        assert samplers.by_name(alias) is solver
        assert not hasattr(samplers, alias)
    names = [name for each in ENTRIES for name in each.names]
    assert len(names) == len(set(names))


def test_unknown_solver():
    """The error lists all names."""
    with pytest.raises(LookupError, match=r"no solver 'ddpm'; there are dpmpp_2m, .*euler"):
        samplers.by_name("ddpm")


@pytest.mark.parametrize("name", REGISTERED)
def test_entries(name):
    """What an entry says of noise, readings and calls is what the table does."""
    each = REGISTERED[name]
    times = np.linspace(0.01, 1.0, 31) if not each.from_noise else np.linspace(1.0, 0.01, 31)
    sampler = each.solver(ddpm.VP(), 30, times=times)
    assert sampler.stochastic == each.takes_noise
    assert np.any(sampler.read != [0, 1]) == (each.reads == "eps")
    extra = {"plms": 1, "restart": 4}.get(name, 0)  # its first step, and two steps again
    assert sampler.nfe == 30 * each.calls + extra


def stateful(order, half=1.0):
    """`Stateful` as a solver that `order` measures."""

    def solver(schedule, steps, times):
        g = SolverPath(schedule, times)
        levels = ddpm.levels_of(schedule, steps, times=times)
        return samplers.from_step(Stateful(g, "x0", order, half), levels)

    return solver


def test_published_third_order_is_second():
    """With half of D_2, as in published code, the multistep third order is none; whole, it is."""
    half, whole = (ddpm.convergence(stateful(3, share), (80, 160)).slopes for share in (0.5, 1.0))
    assert half.max() < 2.7
    assert whole.min() >= 2.85


def test_order_of_inversion():
    """DDIM from data to noise, against the flow of N(1, 1/4), whose marginals it keeps: order 1."""
    schedule = ddpm.VP()
    errors = []
    for n in STEPS:
        logsnr = np.linspace(schedule(1e-3).logsnr, schedule(1.0).logsnr, n + 1)
        times = np.minimum(schedule.at(logsnr).time, 1.0)
        sampler = samplers.ddim_inversion(schedule, n, times=times)
        found = ddpm.law(sampler, ddpm.GaussianOracle([1.0], 0.25), exact_start=True)
        errors.append(found.w2)
    assert np.diff(np.log2(errors)).max() <= -0.85


def test_order_of_its_own_errors():
    """The slopes are those of the errors over the steps that were asked for."""
    found = ddpm.convergence(ddpm.ddim, (10, 20))
    assert found.steps.tolist() == [10, 20]
    slope = -math.log2(found.errors[1] / found.errors[0])
    assert found.slopes == pytest.approx([slope], rel=4 * EPS)
