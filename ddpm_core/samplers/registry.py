"""Every solver, once: its order, what it reads, what it costs, its other names and its paper.

The exports of `ddpm_core.samplers`, the command line's list, the solvers' page and the tables of
the tests are made from this list. A new solver is a function in a file of its own or its family's,
and here an import, a line of `__all__` and an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ddpm_core.samplers.adams import deis_2, deis_3, ipndm, lms, plms
from ddpm_core.samplers.dpm_solver import (
    dpm_solver_2,
    dpm_solver_2m,
    dpm_solver_3,
    dpm_solver_3m,
    dpmpp_2m,
    dpmpp_2s,
    dpmpp_3m,
    sde_dpmpp_2m,
    sde_dpmpp_3m,
)
from ddpm_core.samplers.edm import edm_stochastic, heun, restart
from ddpm_core.samplers.extended import er_sde
from ddpm_core.samplers.first_order import ancestral, ddim, ddim_inversion
from ddpm_core.samplers.reversible import bdia, bdia_inversion
from ddpm_core.samplers.tables import Sampler
from ddpm_core.samplers.unipc import sa_solver, unipc_1, unipc_2, unipc_3

#: What `from ddpm_core.samplers.registry import *` gives `ddpm_core.samplers`.
__all__ = [
    "ancestral",
    "bdia",
    "bdia_inversion",
    "by_name",
    "ddim",
    "ddim_inversion",
    "deis_2",
    "deis_3",
    "dpm_solver_2",
    "dpm_solver_2m",
    "dpm_solver_3",
    "dpm_solver_3m",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "edm_stochastic",
    "er_sde",
    "heun",
    "ipndm",
    "lms",
    "plms",
    "restart",
    "sa_solver",
    "sde_dpmpp_2m",
    "sde_dpmpp_3m",
    "unipc_1",
    "unipc_2",
    "unipc_3",
]

#: (schedule, steps, *, grid=, times=) -> its table
Solver: TypeAlias = Callable[..., Sampler]


@dataclass(frozen=True)
class Entry:
    """What is known of a solver with its default options.

    solver: the function
    order: of convergence, in the weak sense where it takes noise; `convergence` measures it
    paper: where it is from
    reads: what its table takes from a prediction. Those that read eps cannot start at alpha = 0
    calls: network calls a step, between two noisy levels and after the first step
    takes_noise: whether its rows take noise
    aliases: other names of the same table, in other papers and libraries
    from_noise: whether it goes from noise to data; False for the inversion, which goes back
    """

    solver: Solver
    order: int
    paper: str
    reads: Literal["x_0", "eps"] = "x_0"
    calls: int = 1
    takes_noise: bool = False
    aliases: tuple[str, ...] = ()
    from_noise: bool = True

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.solver.__name__

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return self.name, *self.aliases


_DDIM = "Song et al. 2021, DDIM"
_DPM, _DPMPP = "Lu et al. 2022a, DPM-Solver", "Lu et al. 2022b, DPM-Solver++"
_DEIS = "Zhang & Chen 2023, DEIS"
_UNIPC = "Zhao et al. 2023, UniPC"
_BDIA = "Zhang et al. 2023, BDIA"

ENTRIES = (
    Entry(dpmpp_2m, 2, _DPMPP),
    Entry(dpmpp_3m, 3, _DPMPP),
    Entry(dpmpp_2s, 2, _DPMPP, calls=2),
    Entry(unipc_1, 2, _UNIPC),
    Entry(unipc_2, 3, _UNIPC),
    Entry(unipc_3, 4, _UNIPC),
    # Euler's method on the probability flow, in x / α over k = σ / α (Song et al. 2021, Eq. 14).
    Entry(ddim, 1, _DDIM, aliases=("euler", "dpm_solver_1", "deis_1")),
    Entry(bdia, 2, _BDIA),
    Entry(heun, 2, "Karras et al. 2022, EDM", reads="eps", calls=2),
    Entry(lms, 4, "Hairer et al. 1993, III.5", reads="eps"),
    Entry(plms, 2, "Liu et al. 2022, PNDM", reads="eps"),
    Entry(ipndm, 2, _DEIS, reads="eps"),
    Entry(deis_2, 2, _DEIS, reads="eps"),
    Entry(deis_3, 3, _DEIS, reads="eps"),
    # The midpoint method over k = σ / α, its middle in log k (k-diffusion's DPM2).
    Entry(dpm_solver_2, 2, _DPM, reads="eps", calls=2, aliases=("midpoint",)),
    Entry(dpm_solver_3, 3, _DPM, reads="eps", calls=3),
    Entry(dpm_solver_2m, 2, _DPMPP, reads="eps"),
    Entry(dpm_solver_3m, 3, _DPMPP, reads="eps"),
    # Euler's step down to k_s² / k_t, and noise up to k_s (k-diffusion's Euler ancestral).
    Entry(
        ancestral,
        1,
        "Ho et al. 2020, DDPM",
        takes_noise=True,
        aliases=("euler_ancestral", "sde_dpmpp_1"),
    ),
    Entry(sde_dpmpp_2m, 2, _DPMPP, takes_noise=True),
    Entry(sde_dpmpp_3m, 2, _DPMPP, takes_noise=True),
    Entry(sa_solver, 2, "Xue et al. 2023, SA-Solver", takes_noise=True),
    Entry(er_sde, 2, "Cui et al. 2023, ER-SDE", takes_noise=True),
    Entry(edm_stochastic, 2, "Karras et al. 2022, EDM", reads="eps", calls=2, takes_noise=True),
    Entry(restart, 2, "Xu et al. 2023, Restart", reads="eps", calls=2, takes_noise=True),
    Entry(ddim_inversion, 1, _DDIM, from_noise=False),
    Entry(bdia_inversion, 2, _BDIA, from_noise=False),
)

_BY_NAME = {name: entry for entry in ENTRIES for name in entry.names}


def by_name(name: str) -> Solver:
    """The solver of a name or of an alias, such as "euler" for `ddim`; LookupError if none has it.

    >>> by_name("midpoint").__name__
    'dpm_solver_2'
    """
    if name not in _BY_NAME:
        raise LookupError(f"no solver {name!r}; there are {', '.join(_BY_NAME)}")
    return _BY_NAME[name].solver
