"""Writes solvers.md and orders.png: every solver, its measured order, and what it draws.

pip install -e '.[test]' && python docs/solvers.py
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.samplers.registry import ENTRIES, Entry

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from order_conditions import proof  # noqa: E402

STEPS = (20, 40, 80, 160, 320)

#: Options that are measured beside the defaults: (of which solver, how, the solver, its order).
OPTIONS = [
    ("ancestral", "large", partial(ddpm.ancestral, variance=ddpm.large), 1),
    ("ddim", "eta=0.5", partial(ddpm.ddim, eta=0.5), 1),
    ("unipc_2", 'b="bh1"', partial(ddpm.unipc_2, b="bh1"), 3),
    ("sa_solver", "stochasticity=0", partial(samplers.sa_solver, stochasticity=0.0), 4),
]

#: The panels of the figure: title, and the names of its lines.
PANELS = {
    "First order, Heun's method, and BDIA": ("ddim", "heun", "bdia"),
    "Adams-Bashforth": ("lms", "plms", "ipndm", "deis_2", "deis_3"),
    "DPM-Solver": ("dpm_solver_2", "dpm_solver_3", "dpm_solver_2m", "dpm_solver_3m"),
    "DPM-Solver++": ("dpmpp_2s", "dpmpp_2m", "dpmpp_3m"),
    "UniPC": ("unipc_1", "unipc_2", "unipc_3"),
    "With noise: distance of the law": (
        "ancestral", "sde_dpmpp_2m", "sde_dpmpp_3m", "sa_solver", "er_sde", "edm_stochastic", "restart",
    ),
}  # fmt: skip

REASONS = """\
- `plms` and `ipndm` use the coefficients of equal steps in σ / α, and no grid in use has those: order 2 at any number of readings.
- The order of `sde_dpmpp_3m`, `sa_solver` and `er_sde` is 2, not the degree of their polynomial plus one: the polynomial goes through
  readings at noisy points, whose spread around the mean path is of the order of the step. `er_sde` adds little noise, and measures higher
  at these steps.
- `edm_stochastic` and `restart` are `heun` between exact additions of noise. The churn of `edm_stochastic` is cut off at few steps.
- `bdia` with gamma below 1 is of order 1, with (1 - gamma) / (1 + gamma) of the error of `ddim`.
- `lms` starts with a step of order 1. It hardly shows here, and dominates at very many steps: the slope is 3.6 at 2560.
- `sa_solver` without noise is an Adams predictor and corrector; with three past readings in each its order is 4."""

OWN = '''\
```python
import numpy as np
import ddpm_core as ddpm
from ddpm_core.samplers import table, terms

def even_2m(schedule, steps, *, grid=ddpm.grids.trailing, times=None):
    """DPM-Solver++(2M) as it is where all steps are equal: D = m_0 + (m_0 - m_1) / 2."""
    levels = ddpm.levels_of(schedule, steps, grid, times)
    t, s = levels.take(slice(None, -1)), levels.take(slice(1, None))   # where steps begin and end
    x_t, anchor, m_0, m_1, z = terms(2)                       # unit vectors; 2 readings are kept
    half = np.where(np.arange(steps) > 0, 1 / 2, 0)           # the first step has no m_1
    D = m_0 + half * (m_0 - m_1)
    x_s = s.sigma / t.sigma * x_t + (s.alpha - s.sigma * t.alpha / t.sigma) * D
    return table("even_2m", levels, x_s)

print(ddpm.convergence(even_2m).slopes)                       # about 2, on grids even in log-SNR
x = np.random.default_rng(0).standard_normal((4, 2))
ddpm.sample(ddpm.DatasetOracle(np.eye(2)), even_2m(ddpm.linear(), 10), x)

same = ddpm.dpmpp_2m(ddpm.VP(), 10, times=ddpm.VP().at(np.linspace(-9, 9, 11)).time).unroll()
mine = even_2m(ddpm.VP(), 10, times=ddpm.VP().at(np.linspace(-9, 9, 11)).time).unroll()
assert np.allclose(mine.y, same.y)                            # one solver, if these matrices agree
```'''

FOREIGN = """\
```python
import numpy as np
import ddpm_core as ddpm
from ddpm_core.samplers import from_step

schedule = ddpm.linear()
levels = ddpm.levels_of(schedule, 10)

def step(i, x, y, z):                                         # Euler's method, in your own code
    t, s = levels.take(i), levels.take(i + 1)
    x_0 = (x - t.sigma * y) / t.alpha                         # y is the network's eps
    return s.alpha * x_0 + s.sigma * y

mine = from_step(step, levels, ddpm.eps)
assert np.allclose(mine.y, ddpm.ddim(schedule, 10).unroll().y)
print(ddpm.law(mine, ddpm.GaussianOracle([0.0], 0.25)).variances)   # 0.137 where the data has 0.25
```"""


class Measured(NamedTuple):
    entry: Entry
    option: str
    solver: samplers.registry.Solver
    p: int
    found: ddpm.certificates.Convergence


def measured() -> list[Measured]:
    """Every solver of the registry that goes from noise to data, with its options after it."""
    rows: list[Measured] = []
    for each in (each for each in ENTRIES if each.from_noise):
        cases = [("", each.solver, each.order)]
        cases += [case for name, *case in OPTIONS if name == each.name]
        for option, solver, p in cases:
            rows.append(Measured(each, option, solver, p, ddpm.convergence(solver, STEPS)))
    return rows


def spread(places: list[float], gap: float) -> list[float]:
    """The places, moved apart to at least a gap, in their order."""
    order = np.argsort(places)
    at = np.array(places)[order]
    for _ in range(200):
        close = np.maximum(gap - np.diff(at), 0) / 2
        at[:-1] -= close
        at[1:] += close
    return list(at[np.argsort(order)])


def plot(rows: list[Measured], path: Path) -> None:
    """A panel for each family, its lines named where they end; grey lines have slopes 1 to 4."""
    plain = {row.entry.name: row for row in rows if not row.option}
    assert sorted(plain) == sorted(name for names in PANELS.values() for name in names)
    figure, axes = plt.subplots(2, 3, figsize=(11, 7.4), sharex=True, sharey=True)
    for axis, (title, names) in zip(axes.flat, PANELS.items(), strict=True):
        guides = [0.3 * (np.array(STEPS) / 20.0) ** -p for p in (1, 2, 3, 4)]
        for guide in guides:
            axis.loglog(STEPS, guide, color="0.88", lw=1, zorder=0)
        ends = [np.log10(plain[name].found.errors[-1]) for name in names]
        if axis is axes[0, 0]:
            places = spread([*ends, *(np.log10(guide[-1]) for guide in guides)], 0.52)
            for p, place in enumerate(places[len(ends) :], start=1):
                where = {"va": "center", "fontsize": 8, "color": "0.5"}
                axis.annotate(f"slope {p}", (STEPS[-1], 1), (390, 10**place), **where)
        else:
            places = spread(ends, 0.52)
        for k, (name, place) in enumerate(zip(names, places[: len(ends)], strict=True)):
            found = plain[name].found
            colour = plt.cm.tab10(k)
            axis.loglog(STEPS, found.errors, "o-", color=colour, lw=1.8, ms=3.5)
            axis.annotate(
                name, (STEPS[-1], found.errors[-1]), (390, 10**place), color=colour, fontsize=9.5,
                va="center", annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0},
            )  # fmt: skip
        axis.set_title(title, loc="left", fontsize=11)
        axis.set(xticks=STEPS, xticklabels=STEPS, xlim=(17, 1500), ylim=(1e-8, 2))
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("steps", x=0.33)
    for axis in axes[:, 0]:
        axis.set_ylabel("error")
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def proved(name: str) -> str:
    """What is proved of a solver's order, in the table's words."""
    arbitrary, even, start, weak = proof(name)
    words = f"{even}" if arbitrary == even else f"{even} on even steps, else {arbitrary}"
    return (
        words
        + (", in law" if weak else "")
        + (f"; start {start}" if start and start < even else "")
    )


def rows_of(rows: list[Measured]) -> str:
    lines = []
    for each, option, solver, p, found in rows:
        law = ddpm.law(solver(ddpm.linear(1000), 10), ddpm.GaussianOracle([0.0], 0.25))
        slopes = " ".join(f"{slope:.2f}" for slope in found.slopes)
        calls = solver(ddpm.VP(), 100, times=np.linspace(1, 0.1, 101)).nfe / 100
        names = (
            " = ".join(f"`{name}`" for name in each.names)
            if not option
            else f"`{each.name}`, {option}"
        )
        noise = "z" if solver(ddpm.VP(), 3).stochastic else ""
        lines.append(
            f"| {names} | {each.reads} | {noise} | {'' if option else proved(each.name)} | {p} | {slopes} | {found.errors[-1]:.1e} | {calls:.3g} | "
            f"{law.variances[0]:.4f} | {law.kl:.2g} | {law.w2:.3f} | {'' if option else each.paper} |"
        )
    return "\n".join(lines)


def drawing() -> str:
    """The table of DPM-Solver++(2M) in four steps, as text."""
    sampler = ddpm.dpmpp_2m(ddpm.linear(1000), 4)
    assert np.all(sampler.read == [0, 1])
    lines = ["row  calls at  goes to     x_t    anchor      m_0      m_1        z"]
    for i, row in enumerate(sampler.rows()):
        x, anchor, m_0, m_1, z = (f"{c:.4f}" if c else "." for c in row.point)
        end = sampler.levels.time[i + 1]
        lines.append(
            f"{i:>3}  {row.level.time:>8.0f}  {end:>7.0f}  {x:>7} {anchor:>7}  {m_0:>7}  {m_1:>7}  {z:>7}"
        )
    return "\n".join(lines)


def page(rows: list[Measured]) -> str:
    return f"""\
# Solvers, measured

Generated by `python docs/solvers.py` from `ddpm_core/samplers/registry.py`; `tests/test_solver_orders.py` asserts the orders,
`tests/test_order_conditions.py` proves them.

Every solver of the library is a table of numbers, so that its order can be measured and its law computed, not estimated:

```python
import ddpm_core as ddpm

ddpm.convergence(ddpm.unipc_2).slopes                            # the order, between 40, 80 and 160 steps
ddpm.law(ddpm.ddim(ddpm.linear(), 10), ddpm.GaussianOracle([0.0], 0.25))   # mean, covariance, KL and W2
ddpm.samplers.by_name("euler")                                   # a solver by its name, or by one of its other names
```

![Errors by steps, log-log, a panel for each family of solvers, over grey lines of slope 1 to 4](orders.png)

**Order.** On even grids in log-SNR of `VP()`, t from 1 to 0.001, float64. Without noise: the RMS distance from the probability flow of the
mixture 0.3 N(-1, 0.09) + 0.7 N(0.5, 0.16), by DOP853 at 1e-13. With noise (z): the Wasserstein-2 distance of the solver's law from the
exact marginal of N(1, 1/4). The slopes are between {", ".join(map(str, STEPS))} steps; p is the order that the tests hold.

**Order proved.** By computer algebra, from the same tables: `tests/order_conditions.py` runs the solver's own code on power series in the step and
compares what the table gives with the path's Taylor series. Without noise it is for any smooth denoiser, any level, any ratios of steps; *on even
steps* is even in log-SNR. *In law* is for Gaussian data only, where the weak order is one
of means and variances: for other data, methods with memory need moments of readings at noisy points, which are not worked out here. There the last step's ratio is any and older ones are some. In `er_sde`, φ(k) is k^(3/2) there, and any power of k where steps are even.
`start q` says that the first steps, which have fewer readings, leave an error of the power q of the step, once. Near pure noise, where the
readings hardly change, it is far below the rest and hardly shows in the slopes. The inversions `ddim_inversion`
and `bdia_inversion` are proved too: order 1, and 2 on even steps, else 1.

**Law.** What 10 steps of `linear(1000)`, grid `trailing`, draw when the data is N(0, 0.25): the variance, KL(data | sampler) in nats, and W2.

| solver | reads | noise | order proved | p | slopes | error at {STEPS[-1]} | calls a step | variance | KL | W2 | paper |
|---|---|---|---|---|---|---|---|---|---|---|---|
{rows_of(rows)}

Solvers that read eps, and `er_sde`, cannot start at alpha = 0. `ddim_inversion` and `bdia_inversion` go from data to noise and are not
in the table.

Reasons for p, where a paper's name promises another:

{REASONS}

## How a table reads

DPM-Solver++(2M) in 4 steps of `linear(1000)`, `ddpm.dpmpp_2m(ddpm.linear(), 4)`:

```text
{drawing()}
```

Each row is one network call. Row 1 calls the network at time 750, with the point x_t that row 0 made. The reading m_0 is `u x_t + v y`, y the denoiser's
output; here (u, v) = (0, 1), so that m_0 is x_0. m_1 is the m_0 of row 0. The new point, x_s at time 500, is the sum of the columns, each
times its number; the equation of the paper gives them:

```text
x_s = (σ_s / σ_t) x_t - α_s (e^(-h) - 1) D        on x_t:  σ_s / σ_t
D   = m_0 + (h / 2 h_prev) (m_0 - m_1)            on m_0:  -α_s (e^(-h) - 1) (1 + h / 2 h_prev)
                                                  on m_1:   α_s (e^(-h) - 1) h / 2 h_prev
```

Row 0 has no m_1 and is of order 1. Row 3 goes into clean data: x_0 as it is read, in every table. A stochastic solver has numbers under z.
A solver that calls the network more than once a step keeps the point where the step began as its anchor; `sampler.anchor` has, like
`sampler.point` above, a row of such numbers for it. Here it stays what it is.

## Write your own solver

Write the equation in unit vectors. `terms(K)` gives x, the anchor, the last K readings and z; a coefficient (n,) holds one number for each
step, and `table` does the rest: checks, the row into clean data, `unroll`, every array library.

{OWN}

A solver that reads eps passes `read=(1 / t.sigma, -t.alpha / t.sigma)`. To add it to the library: a function in a file of
`ddpm_core/samplers/`, an entry in `registry.py`, and the paper's loop in `tests/solver_papers.py`, against which the table is compared.

## A solver that exists already

`from_step` takes the step function of any solver, with whatever state it keeps, and finds its matrices by probing; `law` and `convergence`
take them. It refuses a step that is not linear, such as one that clips.

{FOREIGN}
"""


def main() -> None:
    rows = measured()
    for each, option, _, p, found in rows:
        if not found.slopes[-2:].min() >= p - (0.6 if p == 4 else 0.15):
            raise SystemExit(f"{each.name} {option} is not of order {p}: {found.slopes}")
    plot(rows, HERE / "orders.png")
    (HERE / "solvers.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
