"""Writes inverse.md and inverse.png: what each method for inverse problems draws, beside the truth.

    pip install -e '.[test]' && python docs/inverse.py

Takes about six minutes. The numbers of other libraries are those of inverse_peers.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

import ddpm_core as ddpm
from ddpm_core import inverse
from ddpm_core.certificates import Law, law_of
from ddpm_core.measurements import Measurement, average_pool, blur, mask, measure

HERE = Path(__file__).parent
STEPS = (10, 20, 50, 100, 250, 1000)
SHAPE, SIDE, D = (1, 8, 8), 8, 64
LINEAR, NOISE = ddpm.linear(), ddpm.portable_noise(0, dtype=np.float64)


def covariance() -> np.ndarray:
    """Cov[pixel, pixel] = exp(-distance / 4) / 4, the distance in pixels."""
    places = np.stack(np.divmod(np.arange(D), SIDE), axis=1)
    return np.exp(-np.linalg.norm(places[:, None] - places, axis=2) / 4) / 4


DATA = ddpm.GaussianOracle(np.zeros(SHAPE), covariance())


class Problem(NamedTuple):
    """A measurement, the true posterior, and the directions in which that has a variance."""

    measurement: Measurement
    truth: ddpm.GaussianOracle
    free: np.ndarray


def problem(name: str) -> Problem:
    keep = np.ones(SHAPE, dtype=bool)
    keep[:, 2:6, 2:6] = False
    operator, var = {
        "mask": (mask(keep), 0.0),
        "blur": (blur(SHAPE, 1.0), 0.01),
        "upscaling": (average_pool(SHAPE, 2), 0.0),
    }[name]
    x_0 = (np.linalg.cholesky(covariance()) @ NOISE(0, (1, D))[0]).reshape(1, *SHAPE)
    eps = NOISE(1, (1, *operator.y_shape)) if var else None
    measurement = measure(operator, x_0, eps, var)
    rows, rank = np.linalg.svd(operator.matrix())[2], int((operator.singular > 0).sum())
    return Problem(measurement, DATA.given(measurement), np.eye(D) if var else rows[rank:].T)


PROBLEMS = {name: problem(name) for name in ("mask", "blur", "upscaling")}


class Apart(NamedTuple):
    """How far what is drawn is from the truth.

    kl: KL(truth ‖ drawn) in nats, of the directions in which the truth has a variance
    w2: the Wasserstein-2 distance, of all directions
    share: the total variance that is drawn / the true one, of the directions as for kl
    misfit: the root mean square of A x_0 - y where the measurement has no noise
    """

    kl: float
    w2: float
    share: float
    misfit: float


def apart(law: Law, case: Problem) -> Apart:
    free, a = case.free, case.measurement.operator.matrix()
    true, drawn = (free.T @ cov @ free for cov in (case.truth.cov, law.cov))
    gap = (law.mean - case.truth.mean).reshape(-1)
    logs = np.linalg.slogdet(drawn)[1] - np.linalg.slogdet(true)[1]
    inner = np.linalg.solve(drawn, np.column_stack([true, free.T @ gap]))
    kl = (np.trace(inner[:, :-1]) - len(true) + gap @ free @ inner[:, -1] + logs) / 2
    kl = law.kl if case.measurement.var else float(kl)
    misfit = ((a @ gap) ** 2).sum() + max(0.0, np.trace(a @ law.cov @ a.T))
    share = float(np.trace(drawn) / np.trace(true))
    return Apart(kl, law.w2, share, float(np.sqrt(misfit / len(a))))


def root(cov: np.ndarray) -> np.ndarray:
    values, axes = np.linalg.eigh(cov)
    return axes * np.sqrt(np.maximum(values, 0)) @ axes.T


Step = Callable[[np.ndarray, ddpm.typing.Noise], np.ndarray]


def law_of_steps(steps: Sequence[Step], truth: ddpm.GaussianOracle) -> Law:
    """`law_of` a loop of any length: of one step after another, each from the law before it."""

    def after(step: Step, mean: np.ndarray, half: np.ndarray) -> Law:
        start = lambda x: (mean + x.reshape(-1, D) @ half).reshape(x.shape)
        return law_of(lambda x, noise: step(start(x), noise), truth)

    law = after(steps[0], np.zeros(D), np.eye(D))
    for step in steps[1:]:
        law = after(step, law.mean.reshape(-1), root(law.cov))
    return law


def steps_of(kernel: ddpm.Kernel, levels: ddpm.Level) -> list[Step]:
    """The steps of `sample_kernel`."""
    pairs = [levels.take(slice(i, i + 2)) for i in range(len(levels.sigma) - 1)]
    return [partial(ddpm.sample_kernel, kernel, pair) for pair in pairs]


def own_error(t: ddpm.Level) -> float:
    """r², the mean over pixels of Var[x_0 | x_t]."""
    return float(DATA.error(t).mean())


#: Denoiser to denoiser, of a problem.
DENOISERS: dict[str, Callable[[Problem], ddpm.Denoiser]] = {
    "given": lambda case: case.truth,
    "ddnm": lambda case: inverse.ddnm(DATA, case.measurement),
    "diffpir": lambda case: inverse.diffpir(DATA, case.measurement),
    "pigdm": lambda case: inverse.pigdm(DATA, case.measurement),
    "pigdm, own r²": lambda case: inverse.pigdm(DATA, case.measurement, own_error),
}
KERNELS: dict[str, Callable[[Problem], ddpm.Kernel]] = {
    "ddrm": lambda case: inverse.ddrm(DATA, case.measurement),
    "replaced": lambda case: inverse.replaced(ddpm.reverse(DATA), case.measurement),
}
NOISELESS = {"ddnm", "replaced"}


@cache
def measured(name: str, solver: str, method: str, steps: int) -> Apart:
    """A cell; solver: of `ddpm`, or "" for a kernel."""
    case = PROBLEMS[name]
    if solver:
        sampler = getattr(ddpm, solver)(LINEAR, steps)
        return apart(ddpm.law(sampler, DENOISERS[method](case), case.truth), case)
    levels = ddpm.levels_of(LINEAR, steps)
    return apart(law_of_steps(steps_of(KERNELS[method](case), levels), case.truth), case)


def repaint(steps: int, jump: int, repeats: int) -> tuple[int, Apart]:
    """The network calls of RePaint with the mask, and its cell."""
    case = PROBLEMS["mask"]
    levels = inverse.walk(ddpm.levels_of(LINEAR, steps), jump, repeats)
    calls = int((np.diff(levels.logsnr) > 0).sum())
    return calls, apart(law_of_steps(steps_of(KERNELS["replaced"](case), levels), case.truth), case)


#: Steps, jump and repeats.
REPAINTS = [
    *((50, 10, r) for r in (1, 2, 5, 10)),
    *((100, 10, r) for r in (1, 2, 5, 10)),
    *((250, 10, r) for r in (1, 2, 5, 10)),
    *((1000, 40, r) for r in (1, 2, 5, 10)),
]


def rows_of(name: str) -> list[tuple[str, str]]:
    """(method, solver) of a problem's table."""
    noisy = PROBLEMS[name].measurement.var
    rows = [("given", "ancestral"), ("given", "ddim"), ("given", "dpmpp_2m")]
    methods = ["diffpir" if noisy else "ddnm", "pigdm", "pigdm, own r²"]
    rows += [(method, solver) for method in methods for solver in ("ancestral", "ddim")]
    return rows + [(kernel, "") for kernel in KERNELS if not noisy or kernel not in NOISELESS]


# Drawn, not computed. ---------------------------------------------------------------------------

Draw = Callable[[np.ndarray, ddpm.typing.Noise], np.ndarray]


def moments(draw: Draw, count: int, at_once: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) and covariance (D, D) of samples."""
    rng = np.random.default_rng(1)
    total, squares = np.zeros(D), np.zeros((D, D))
    for _ in range(count // at_once):
        x = draw(
            rng.standard_normal((at_once, *SHAPE)), lambda _, shape: rng.standard_normal(shape)
        ).reshape(-1, D)
        total, squares = total + x.sum(axis=0), squares + x.T @ x
    mean = total / count
    return mean, squares / count - np.outer(mean, mean)


def sampled(draw: Draw, count: int, case: Problem) -> str:
    """W2 between the truth and the Gaussian of the samples' moments, and the share of variance."""
    mean, cov = moments(draw, count)
    half, true, free = root(case.truth.cov), case.truth.cov, case.free
    squared = np.trace(true + cov - 2 * root(half @ cov @ half))
    w2 = np.sqrt(((mean - case.truth.mean.reshape(-1)) ** 2).sum() + max(squared, 0.0))
    share = np.trace(free.T @ cov @ free) / np.trace(free.T @ true @ free)
    return f"{w2:.2f} / {share:.2f}"


def checked(draw: Draw, law: Law, case: Problem, count: int = 1_000_000) -> str:
    """The largest deviations from a law, in standard errors, where it has a variance."""
    mean, cov = moments(draw, count)
    free = case.free
    gap, P = free.T @ (mean - law.mean.reshape(-1)), free.T @ law.cov @ free
    var = np.diag(P)
    off = np.abs(gap) / np.sqrt(var / count)
    errors = np.sqrt((np.outer(var, var) + P**2) / count)
    entries = (np.abs(free.T @ cov @ free - P) / errors)[np.triu_indices(len(P))]
    both = np.concatenate([off, entries])
    if both.max() > 5:
        raise SystemExit(f"the samples do not have the law: {both.max()} standard errors")
    return f"{off.max():.2f} (of {len(off)}) | {entries.max():.2f} (of {len(entries)}) | {np.sqrt((entries**2).mean()):.3f}"


def checks() -> str:
    case = PROBLEMS["mask"]
    sampler = ddpm.ancestral(LINEAR, 50)
    denoise = inverse.ddnm(DATA, case.measurement)
    first = checked(
        lambda x, noise: ddpm.sample(denoise, sampler, x, noise),
        ddpm.law(sampler, denoise, case.truth),
        case,
    )
    kernel = KERNELS["replaced"](case)
    levels = inverse.walk(ddpm.levels_of(LINEAR, 20), 5, 2)
    second = checked(
        lambda x, noise: ddpm.sample_kernel(kernel, levels, x, noise),
        law_of_steps(steps_of(kernel, levels), case.truth),
        case,
    )
    return f"""\
| mask: `ddnm`, `ancestral`, 50 steps | {first} |
| mask: RePaint, 20 steps, jump 5, repeats 2 | {second} |"""


def not_affine() -> str:
    """The rows of the methods whose law is no Gaussian."""
    levels, sampler = ddpm.levels_of(LINEAR, 100), ddpm.ancestral(LINEAR, 100)
    lines = []
    for zeta in (0.5, 1.0):
        cells = []
        for case in PROBLEMS.values():
            kernel = inverse.dps(DATA, case.measurement, zeta)
            try:
                law_of_steps(steps_of(kernel, levels), case.truth)
            except ValueError:
                draw = partial(ddpm.sample_kernel, kernel, levels)
                cells.append(sampled(draw, 100_000, case))
        lines.append(f"| `dps`, zeta {zeta}, {100_000:,} samples | {' | '.join(cells)} |")
    cells = []
    for case in PROBLEMS.values():
        draw = partial(ddpm.sample, inverse.mmps(DATA, case.measurement), sampler)
        cells.append(sampled(draw, 20_000, case))
    lines.append(f"| `mmps`, 5 iterations, {20_000:,} samples | {' | '.join(cells)} |")
    exact = [measured(name, "ancestral", "given", 100) for name in PROBLEMS]
    cells = [f"{cell.w2:.2f} / {cell.share:.2f}" for cell in exact]
    return "\n".join([*lines, f"| `given`, exactly | {' | '.join(cells)} |"])


def solved(name: str) -> float:
    """The largest difference between `mmps`, solved, and the exact posterior mean."""
    case = PROBLEMS[name]
    numbers = int((case.measurement.operator.singular > 0).sum())
    denoise, x = inverse.mmps(DATA, case.measurement, numbers), NOISE(2, (5, *SHAPE))
    levels = ddpm.levels_of(LINEAR, 100)
    at = [levels.take(i) for i in range(100)]
    return max(float(np.abs(denoise(x, t) - case.truth(x, t)).max()) for t in at)


# The page. --------------------------------------------------------------------------------------

COLOURS = {"given": "black", "ddnm": "C0", "diffpir": "C0", "pigdm": "C1", "pigdm, own r²": "C3"}
COLOURS |= {"ddrm": "C4", "replaced": "C2"}
AXES = {
    "kl": ("KL (nats)", (1e-3, 1e3)),
    "w2": ("W2", (5e-3, 5)),
    "share": ("variance drawn / true", (0, 2)),
}


def plot_methods(path: Path) -> None:
    figure, axes = plt.subplots(3, 3, figsize=(11, 9), sharex=True, sharey="row")
    for axis, (words, _) in zip(axes[:, 0], AXES.values(), strict=True):
        axis.set_ylabel(words)
    for column, name in zip(axes.T, PROBLEMS, strict=True):
        column[0].set_title(name, loc="left")
        column[2].axhline(1, color="0.8", lw=1, zorder=0)
        for method, solver in rows_of(name):
            style = {"ddim": "--", "dpmpp_2m": ":"}.get(solver, "-")
            cells = [measured(name, solver, method, n) for n in STEPS]
            for axis, (field, (_, limits)) in zip(column, AXES.items(), strict=True):
                axis.plot(STEPS, [getattr(cell, field) for cell in cells], style, lw=1.6,
                          color=COLOURS[method], label=f"{method}, {solver}" if solver else method)  # fmt: skip
                axis.set(xscale="log", ylim=limits, xticks=STEPS, xticklabels=STEPS)
                if field != "share":
                    axis.set_yscale("log")
                axis.minorticks_off()
                axis.spines[["top", "right"]].set_visible(False)
        column[2].set_xlabel("steps")
    lines = {}
    for axis in axes[0]:
        lines |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(
        lines.values(), lines.keys(), ncols=5, loc="lower center", frameon=False, fontsize=9
    )
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def plot_repaint(found: dict[tuple[int, int, int], tuple[int, Apart]], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True)
    for axis, field in zip(axes, ("kl", "w2"), strict=True):
        for k, steps in enumerate((50, 100, 250, 1000)):
            some = [cell for (n, _, _), cell in found.items() if n == steps]
            axis.loglog([c for c, _ in some], [getattr(cell, field) for _, cell in some], "o-",
                        color=f"C{k}", label=f"RePaint on {steps} steps, repeats 1, 2, 5, 10")  # fmt: skip
        for method, solver, style in (("replaced", "", "--"), ("given", "ancestral", ":")):
            cells = [measured("mask", solver, method, n) for n in STEPS[2:]]
            axis.loglog(STEPS[2:], [getattr(cell, field) for cell in cells], style, color="0.4",
                        label={"replaced": "replaced, falling levels", "given": "given, ancestral"}[method])  # fmt: skip
        axis.set(xlabel="network calls", ylabel=AXES[field][0], ylim=(1e-2, 1))
        axis.yaxis.set_minor_formatter(plt.NullFormatter())
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=3, loc="lower center", frameon=False, fontsize=9)  # fmt: skip
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def number(x: float) -> str:
    return "> 10⁴" if x > 1e4 else f"{x:.2g}" if x < 100 else f"{x:.0f}"


def table(name: str) -> str:
    head = f"| method | {' | '.join(f'KL, {n}' for n in STEPS)} | W2, 50 | 250 | 1000 | variance, 50 | 250 | 1000 |"
    lines = [head, "|---" * 13 + "|"]
    for method, solver in rows_of(name):
        cells = {n: measured(name, solver, method, n) for n in STEPS}
        some = [cells[n] for n in (50, 250, 1000)]
        lines.append(
            f"| `{method.split(',')[0]}`{method[len(method.split(',')[0]) :]}{f', {solver}' if solver else ''} | "
            + " | ".join(
                [number(cell.kl) for cell in cells.values()]
                + [f"{cell.w2:.3f}" if cell.w2 < 100 else number(cell.w2) for cell in some]
                + [f"{cell.share:.2f}" for cell in some]
            )
            + " |"
        )
    return "\n".join(lines)


def repaint_table(found: dict[tuple[int, int, int], tuple[int, Apart]]) -> str:
    return "\n".join(
        f"| {steps} | {jump} | {repeats} | {calls} | {number(cell.kl)} | {cell.w2:.3f} | {cell.share:.2f} |"
        for (steps, jump, repeats), (calls, cell) in found.items()
    )


def peers() -> str:
    parts = []
    for name, rows in json.loads((HERE / "inverse-peers.json").read_text(encoding="utf-8")).items():
        parts.append(
            f"**{name}**\n\n| object | how | theirs | ours | what differs |\n|---|---|---|---|---|"
        )
        parts[-1] += "".join(f"\n| {' | '.join(row)} |" for row in rows)
    return "\n\n".join(parts)


def size(name: str) -> str:
    case = PROBLEMS[name]
    op = case.measurement.operator
    prior = np.sqrt(((case.truth.mean) ** 2).sum() + np.trace(DATA.cov + case.truth.cov - 2 * root(root(DATA.cov) @ case.truth.cov @ root(DATA.cov))))  # fmt: skip
    return f"{int((op.singular > 0).sum())} | {np.trace(case.truth.cov):.2f} | {prior:.2f}"


def page(found: dict[tuple[int, int, int], tuple[int, Apart]]) -> str:
    at = lambda name, method, solver="ancestral", n=1000: measured(name, solver, method, n)
    w2 = lambda *which, n=1000: f"{at(*which, n=n).w2:.2f}"
    few, many = found[250, 10, 1], found[250, 10, 10]
    best, middle = found[1000, 40, 10], found[250, 10, 5]
    longer = at("mask", "replaced", "")
    misfit = {n: at("mask", "pigdm", "ddim", n).misfit for n in (50, 1000)}
    kept = (1 + np.sqrt(1 - 0.85**2)) / 2
    return f"""\
# Inverse problems, measured

Generated by `python docs/inverse.py` from `ddpm_core/inverse.py`; `tests/test_inverse_laws.py` asserts what is said to be exact. The numbers of other
libraries are made by `python docs/inverse_peers.py`.

How far is what a method draws from the true posterior p(x_0 | y)? For Gaussian data both are Gaussian and can be computed: the truth by
`GaussianOracle.given`, what is drawn by `law` and `law_of`. No number here is estimated from samples, but for those that say so.

```python
import numpy as np
import ddpm_core as ddpm
from ddpm_core import inverse
from ddpm_core.measurements import mask, measure

data = ddpm.GaussianOracle(np.zeros(2), [[1.0, 0.9], [0.9, 1.0]])
left = measure(mask(np.array([True, False])), np.array([[0.5, 0.0]]))
law = ddpm.law(ddpm.ancestral(ddpm.linear(), 250), inverse.ddnm(data, left), data.given(left))
print(law.mean, law.variances, law.w2)
```

## What comes out

**Tend to the truth as steps grow**

- `given`, the exact posterior mean as a denoiser: KL falls with steps², the order of `ancestral` and `ddim`, and faster with `dpmpp_2m`. It is the floor: what
  remains at 50 steps, W2 {w2("mask", "given", n=50)} with the mask and `ancestral`, is the steps' doing. It has to be known, and for a network it is not.
- `mmps`, if its equations are solved: for Gaussian data it is the exact posterior mean, as its docstring says. Here it is within {max(map(solved, PROBLEMS)):.0e} of
  it at 100 levels, so that its rows are those of `given`. Conjugate gradients stop at an error of sqrt(eps), which `law` sees, and
  refuses as not affine. The default of five iterations is further from affine, and draws nearly the same (below).
- RePaint, as repeats *and* steps grow: W2 {few[1].w2:.2f} on 250 falling levels, {many[1].w2:.2f} with ten repeats, and {best[1].w2:.2f} with ten repeats of 1000.
  In a stretch that is walked often enough, the hole comes to agree with the rest at that level of noise, and what was drawn above is forgotten.

**Have a bias that no number of steps removes** (W2 at 1000 steps, mask; the floor is {at("mask", "given").w2:.3f})

- `ddnm`, {w2("mask", "ddnm")} with `ancestral` and {w2("mask", "ddnm", "ddim")} with `ddim`, and `replaced` on falling levels, {w2("mask", "replaced", "")}. Both keep y exactly. But the hole
  is denoised by E[x_0 | x_t], which sees y only through the noise of x_t: at high noise hardly, and later steps cannot make up for it. The hole gets
  {at("mask", "ddnm").share:.2f} and {at("mask", "replaced", "").share:.2f} times its true variance. With the upscaling, where every pixel is measured in part, the bias is smaller: {w2("upscaling", "ddnm")} and
  {w2("upscaling", "replaced", "")}. Song et al. 2021 offer replacement as an approximation; DDNM asks for agreement with y and a realistic picture.
- `pigdm`, {w2("mask", "pigdm")} (`ancestral`) and {w2("mask", "pigdm", "ddim")} (`ddim`). It takes r² I for Cov[x_0 | x_t], which is exact for N(m, I) data; these are correlated, with
  variances from 0.03 to 6.5. With r² the model's own mean error (own r²) it is nearer, {w2("mask", "pigdm, own r²")}, but unstable: where r² is below the covariance
  the guidance overshoots, and with few steps it explodes (W2 {at("mask", "pigdm, own r²", n=10).w2:.0f} at 10). It keeps a y without noise only roughly: A x_0 is
  off by {misfit[50]:.1g} (RMS) at 50 steps of `ddim`, and by {misfit[1000]:.1g} at 1000.
- `diffpir` is `ddnm` where y has no noise. With the blur: {w2("blur", "diffpir")} (`ancestral`) and {w2("blur", "diffpir", "ddim")} (`ddim`). It mixes A⁺ y in with a weight, not with a covariance, and
  at high noise the weight is 1, so that the noise of y is amplified.
- `ddrm` draws too little. Where nothing is measured each step draws its noise about x̂_0, eta = 0.85 of it anew, however short the
  step: of a large variance (1 + sqrt(1 - eta²)) / 2 = {kept:.2f} is left in the limit, and {at("mask", "ddrm", "").share:.2f} here. Where the level is below the noise of y, each step moves towards y by a
  share that does not shrink with the step: with the blur x_0 tends to A⁺ y, noise and all, and W2 *grows* from {w2("blur", "ddrm", "", n=20)} at 20 steps to {w2("blur", "ddrm", "")} at 1000. The
  paper takes 20 steps.

A denoiser that is not the exact one has another limit with each solver: in every row here that of `ancestral` is nearer to the truth than that of `ddim`.

**What RePaint's repeats buy for each network call.** On falling levels nothing is bought above 250 steps: four times the calls take KL from {few[1].kl:.2f} to {longer.kl:.2f}, and W2
from {few[1].w2:.2f} to {longer.w2:.2f}. The same calls as repeats ({middle[0]} calls: 250 steps, 5 repeats) give {middle[1].kl:.2f} and {middle[1].w2:.2f}. On 50 steps repeats buy W2, but little KL: there the
steps are too long. `given` with 250 calls has {at("mask", "given", n=250).kl:.2f} and {at("mask", "given", n=250).w2:.2f}; no number of repeats on the page is worth a posterior mean.

![KL, W2 and variance by steps, a column for each measurement](inverse.png)

## What is measured

- Data: 8 x 8 pixels, N(0, C), C = exp(-distance / 4) / 4 between two pixels. y is measured from one x_0 of them.
- Steps of `linear()`, grid `trailing`, from N(0, I), float64; the denoiser is the exact one of the data.
- KL(truth ‖ drawn) in nats, in the directions in which the truth has a variance: all of them with the blur, else those that are not measured.
- W2 in all directions.
- Variance: the total variance that is drawn / the true one, in the directions as for KL. 1 is calibrated.

| measurement | numbers measured | total variance of the truth | W2 of the data to the truth |
|---|---|---|---|
| mask: a hole of 4 x 4 | {size("mask")} |
| blur of width 1, noise of variance 0.01 | {size("blur")} |
| upscaling: means of 2 x 2 pixels | {size("upscaling")} |

### Mask

{table("mask")}

### Blur with noise

`ddnm` and `replaced` are for y without noise. KL is beyond all bounds where a direction gets almost no variance.

{table("blur")}

### Upscaling

{table("upscaling")}

`given` ends at a floor of KL about 1e-5: `linear()` ends at alpha = 0.006, so that N(0, I) is not quite the law of x_T.

### RePaint

With the mask: `replaced(reverse(denoise), measurement)` on `walk(levels, jump, repeats)`.

![KL and W2 by network calls](inverse-repaint.png)

| steps | jump | repeats | network calls | KL | W2 | variance |
|---|---|---|---|---|---|---|
{repaint_table(found)}

### Not affine

`law` and `law_of` refuse `dps`, which divides by ‖y - A x̂_0‖, and `mmps` with fewer iterations than it needs. Their W2 / variance are estimated from samples,
100 steps of the ancestral kernel; W2 between Gaussians of the same moments is at most that between the distributions.

| method | {" | ".join(PROBLEMS)} |
|---|---|---|---|
{not_affine()}

### Checked by samples

The moments of 10^6 samples, in the hole, in standard errors of the law: the largest of the means, the largest of the covariances, and the root mean
square of the latter, about 1 if the law is right. The largest of 136 is below 4.0 in 99 of 100 cases.

| cell | largest, of the means | of the covariances | RMS |
|---|---|---|---|
{checks()}

## Beside other libraries

Their objects, run on the same data and levels, with the same noises, in float64. W2 and variance are as above.

{peers()}

`RePaintScheduler` also jumps from other levels than the authors' schedule: from clean data, where theirs starts at the last level before it; ours in the table
walks as it does. deepinv's `DiffPIR` clips x̂_0, so that no law can be computed.
"""


def main() -> None:
    found = {each: repaint(*each) for each in REPAINTS}
    plot_methods(HERE / "inverse.png")
    plot_repaint(found, HERE / "inverse-repaint.png")
    (HERE / "inverse.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
