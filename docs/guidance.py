"""Writes guidance.md, guidance.png and guidance-samples.png: what guidance draws, exactly.

    pip install -e '.[test]' && python docs/guidance.py

Takes a minute or two. The shares of the bundled model are those of guidance-samples.txt, which

    python benchmarks/recognised.py --count 1000 --guidance 0.5 1 1.5 2 3 4

printed (about ten minutes on two cores).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import guiders
from matplotlib.patches import Ellipse

import ddpm_core as ddpm
from ddpm_core import guidance, samplers
from ddpm_core.backends import backend
from ddpm_core.certificates import Law
from ddpm_core.checkpoints import load
from ddpm_core.cli import pictures
from ddpm_core.cli.drawing import draw, parse_classes

HERE = Path(__file__).parent
SHARES = HERE / "guidance-samples.txt"
LINEAR = ddpm.linear(1000)
STEPS = (10, 20, 50, 250)
SOLVERS = ("ddim", "dpmpp_2m", "heun", "ancestral")
SCALES = (1, 1.5, 2, 3, 5)
SCALE, LOW, HIGH, STRENGTH = 2.0, -3.0, 3.0, 0.6

#: Two classes, and the Gaussian of the mean and covariance of both together.
MEAN, COV = np.array([1.0, 0.5]), np.array([[0.4, 0.2], [0.2, 0.3]])
OTHER_MEAN, OTHER_COV = np.array([-1.0, -0.5]), np.array([[0.8, -0.1], [-0.1, 0.6]])
HALF = (MEAN - OTHER_MEAN) / 2
A = ddpm.GaussianOracle(MEAN, COV)
AGAINST = {
    "the union": ddpm.GaussianOracle(
        (MEAN + OTHER_MEAN) / 2, (COV + OTHER_COV) / 2 + np.outer(HALF, HALF)
    ),
    "the other class": ddpm.GaussianOracle(OTHER_MEAN, OTHER_COV),
}

CODE = """\
```python
import ddpm_core as ddpm
from ddpm_core.guidance import guided

c, u = ddpm.GaussianOracle([0.0], 1.0), ddpm.GaussianOracle([0.0], 2.0)
tilted = ddpm.GaussianOracle([0.0], 2 / 3)                    # p(x | c)^2 p(x)^-1
law = ddpm.law(ddpm.ddim(ddpm.linear(), 50), guided(c, u, 2.0), tilted)
print(law.variances, law.kl, law.w2)                          # 0.456, where the tilted law has 0.667
```"""


# Exact laws. ------------------------------------------------------------------------------------


def tilted(against: ddpm.GaussianOracle, scale: float) -> ddpm.GaussianOracle:
    """p(x | c)^scale p(x)^(1 - scale): precisions, and precisions times means, add up."""
    P, Q = np.linalg.inv(COV), np.linalg.inv(against.cov)
    cov = np.linalg.inv(scale * P + (1 - scale) * Q)
    mean = cov @ (scale * P @ MEAN + (1 - scale) * Q @ against.mean)
    return ddpm.GaussianOracle(mean, (cov + cov.T) / 2)


def limit_of_flow(w: float) -> float:
    return 2 ** (1 - w)


def limit_of_sde(w: float) -> float:
    return (2 - 2 ** (2 - 2 * w)) / (2 * w - 1)


def variance(name: str, steps: int, w: float) -> float:
    """Of what is drawn by N(0, 1) guided against N(0, 2)."""
    c, u = (ddpm.GaussianOracle([0.0], var) for var in (1.0, 2.0))
    sampler = samplers.by_name(name)(LINEAR, steps)
    return float(ddpm.law(sampler, guidance.guided(c, u, w), c).variances[0])


#: How the scale is made for a sampler.
GUIDERS: dict[str, Callable[[ddpm.Sampler], guidance.Scale]] = {
    f"scale {SCALE:g}": lambda sampler: SCALE,
    f"scale {SCALE:g} within {LOW:g} .. {HIGH:g}": lambda sampler: guidance.within(
        SCALE, LOW, HIGH
    ),
    f"CFG++ {STRENGTH:g}": lambda sampler: guidance.cfg_pp(STRENGTH, sampler.levels),
}
CONSTANT, WITHIN, CFG_PP = GUIDERS


def denoiser(against: str, guider: str, sampler: ddpm.Sampler) -> ddpm.Denoiser:
    return guidance.guided(A, AGAINST[against], GUIDERS[guider](sampler))


def law_of(against: str, guider: str, name: str, steps: int) -> Law:
    sampler = samplers.by_name(name)(LINEAR, steps)
    wanted = tilted(AGAINST[against], SCALE)
    return ddpm.law(sampler, denoiser(against, guider, sampler), wanted)


def by_a_classifier(against: str) -> float:
    """How far its mean and covariance are from those of `guided`, at most."""
    oracle, worst = AGAINST[against], 0.0

    def score(x: Any, t: ddpm.Level, data: ddpm.GaussianOracle) -> Any:
        V = t.alpha**2 * data.cov + t.sigma**2 * np.eye(2)
        return np.linalg.solve(V, (t.alpha * data.mean - x).T).T

    def gradient(x: Any, t: ddpm.Level) -> Any:
        return score(x, t, A) - score(x, t, oracle)

    for name in SOLVERS:
        for steps in STEPS:
            sampler = samplers.by_name(name)(LINEAR, steps)
            found = ddpm.law(sampler, guidance.classifier(oracle, gradient, SCALE), A)
            same = law_of(against, CONSTANT, name, steps)
            for p, q in ((found.mean, same.mean), (found.cov, same.cov)):
                worst = max(worst, float(np.abs(p - q).max()))
    return worst


def checked(against: str, guider: str, name: str, steps: int, count: int = 10**6) -> str:
    """A row: the law, the moments of samples, and how many standard errors lie between."""
    sampler = samplers.by_name(name)(LINEAR, steps)
    rng = np.random.default_rng(0)
    x = ddpm.sample(
        denoiser(against, guider, sampler), sampler, rng.standard_normal((count, 2)),
        lambda step, shape: rng.standard_normal(shape),
    )  # fmt: skip
    found, mean, cov = law_of(against, guider, name, steps), x.mean(0), np.cov(x.T)
    var = np.diag(found.cov)
    pairs = [
        *zip(found.mean, mean, np.sqrt(var / count), strict=True),
        *(
            (found.cov[i, j], cov[i, j], np.sqrt((var[i] * var[j] + found.cov[i, j] ** 2) / count))
            for i, j in ((0, 0), (0, 1), (1, 1))
        ),
    ]
    off = max(abs(exact - drawn) / error for exact, drawn, error in pairs)
    if not off < 4:
        raise SystemExit(f"{name} {guider}: the samples are {off:.1f} standard errors from the law")
    cells = [f"{exact:.5f} / {drawn:.5f} ± {error:.5f}" for exact, drawn, error in pairs]
    return f"| {against}, {guider}, `{name}`, {steps} | {' | '.join(cells)} | {off:.1f} |"


# Other people's guiders. ------------------------------------------------------------------------


def constant(x_0: Any) -> ddpm.Denoiser:
    return lambda x_t, t, **cond: x_0


def beside() -> str:
    """Rows: guiders of diffusers and ours on one network's outputs, 8 images of 3 x 8 x 8, float64.

    The largest difference of x_0, where the network's output is x_0, eps or v.
    """
    rng = np.random.default_rng(0)
    x_0, other, x_t = rng.standard_normal((3, 8, 3, 8, 8))
    t, s, eta, norm, share = LINEAR(500), 4.0, 0.3, 8.0, 0.7

    def ours(made: Callable[..., Any], scale: float, **options: Any) -> Any:
        return made(constant(x_0), constant(other), scale, **options)(x_t, t)

    def difference(guider: Any, predicts: Any, wanted: Any) -> float:
        outputs = (ddpm.convert(x, x_t, t, ddpm.x0, predicts) for x in (x_0, other))
        found = guider.forward(*map(torch.tensor, outputs)).pred.numpy()
        return float(np.abs(ddpm.to_x0(found, x_t, t, predicts) - wanted).max())

    cfg, apg = guiders.ClassifierFreeGuidance, guiders.AdaptiveProjectedGuidance
    guided, projected = partial(ours, guidance.guided), partial(ours, guidance.projected)
    original = {"use_original_formulation": True}
    limit = {"adaptive_projected_guidance_rescale": norm}
    skipped = {"auto_guidance_layers": 0, "dropout": 0.1}
    cases = [
        ("ClassifierFreeGuidance(4)", cfg(s), "guided(4)", guided(s)),
        (
            "ClassifierFreeGuidance(4, use_original_formulation=True)", cfg(s, **original),
            "guided(5)", guided(1 + s),
        ),
        ("AutoGuidance(4).forward", guiders.AutoGuidance(s, **skipped), "guided(4)", guided(s)),
        (
            "ClassifierFreeGuidance(4, guidance_rescale=0.7)", cfg(s, guidance_rescale=share),
            "guided(4, rescale=0.7)", guided(s, rescale=share),
        ),
        (
            "AdaptiveProjectedGuidance(4, rescale=0)",
            apg(s, adaptive_projected_guidance_rescale=0.0),
            "projected(4, parallel=1)", projected(s, parallel=1.0),
        ),
        (
            "AdaptiveProjectedGuidance(4, eta=0.3, rescale=8, use_original_formulation=True)",
            apg(s, eta=eta, **limit, **original),
            "projected(5, parallel=0.3, norm=8)", projected(1 + s, parallel=eta, norm=norm),
        ),
        (
            "AdaptiveProjectedGuidance(4, eta=0.3, rescale=8)", apg(s, eta=eta, **limit),
            "projected(4, parallel=0.3, norm=8)", projected(s, parallel=eta, norm=norm),
        ),
    ]  # fmt: skip
    lines = []
    for theirs, guider, name, wanted in cases:
        gaps = [difference(guider, predicts, wanted) for predicts in (ddpm.x0, ddpm.eps, ddpm.v)]
        lines.append(f"| `{theirs}` | `{name}` | {' | '.join(map(gap_of, gaps))} |")
    wide = 4 * x_0
    wanted = guidance.dynamic_threshold(constant(wide))(x_t, t)
    for most, option in ((float("inf"), ", sample_max_value=inf"), (1.0, "")):
        scheduler = diffusers.DDIMScheduler(
            prediction_type="sample", thresholding=True, sample_max_value=most, clip_sample=False
        )
        scheduler.set_timesteps(20)
        step = scheduler.step(torch.tensor(wide), scheduler.timesteps[0], torch.tensor(x_t))
        gap = float(np.abs(step.pred_original_sample.numpy() - wanted).max())
        theirs = f"DDIMScheduler(thresholding=True{option})"
        lines.append(f"| `{theirs}` | `dynamic_threshold(...)` | {gap_of(gap)} | | |")
    return "\n".join(lines)


def gap_of(gap: float) -> str:
    return f"{gap:.0e}" if gap < 1e-12 else f"**{gap:.1f}**"


def guided_steps() -> str:
    """Rows: the log-SNR that a share of the steps means, and that `within` finds the same steps."""
    start, stop, lines = 0.25, 0.75, []
    for name, grid in (("trailing", ddpm.grids.trailing), ("karras", ddpm.grids.karras)):
        for steps in (10, 20, 50):
            guider = guiders.ClassifierFreeGuidance(2.0, start=start, stop=stop)
            levels = ddpm.levels_of(LINEAR, steps, grid)
            on = []
            for i in range(steps):
                guider.set_state(i, steps, None)
                on.append(guider.num_conditions == 2)
            logsnr = levels.logsnr[:-1]
            low, high = logsnr[on].min(), logsnr[np.max(np.nonzero(on)) + 1]
            scale = guidance.within(2.0, low, high)
            same = [scale(levels.take(i)) == 2 for i in range(steps)]
            if same != on:
                raise SystemExit(f"within({low}, {high}) is not steps {start} .. {stop} of {steps}")
            lines.append(f"| `{name}` | {steps} | {sum(on)} | {low:.2f} .. {high:.2f} |")
    return "\n".join(lines)


# The page. --------------------------------------------------------------------------------------


def number(value: float) -> str:
    if value > 1000:
        return "> 1000"
    return f"{value:#.3g}".rstrip(".") if value >= 0.1 else f"{value:#.2g}"


def one_dimension() -> str:
    lines = []
    for w in SCALES:
        for name in SOLVERS:
            end = (limit_of_sde if name == "ancestral" else limit_of_flow)(w)
            cells = " | ".join(f"{variance(name, n, w):.3f}" for n in STEPS)
            lines.append(f"| {w:g} | {2 / (w + 1):.3f} | `{name}` | {cells} | {end:.3f} |")
    return "\n".join(lines)


def two_dimensions() -> str:
    lines = []
    for against, oracle in AGAINST.items():
        cov = tilted(oracle, SCALE).cov
        lines.append(
            f"| {against} | *the tilted law* | | | | | | {described(tilted(oracle, SCALE).mean, cov)} |"
        )
        for guider in (CONSTANT, WITHIN, CFG_PP):
            for name in SOLVERS if guider != CFG_PP else ("ddim",):
                laws = [law_of(against, guider, name, n) for n in STEPS]
                cells = " | ".join(f"{number(law.kl)}, {number(law.w2)}" for law in laws)
                last = described(laws[-1].mean, laws[-1].cov)
                lines.append(f"| {against} | {guider} | `{name}` | {cells} | {last} |")
    return "\n".join(lines)


def described(mean: Any, cov: Any) -> str:
    std = np.sqrt(np.diag(cov))
    return (
        f"{mean[0]:.2f}, {mean[1]:.2f} | {std[0]:.3f}, {std[1]:.3f} | {cov[0, 1] / std.prod():.2f}"
    )


def scales_of_cfg_pp() -> str:
    lines = []
    for steps in STEPS:
        sampler = ddpm.ddim(LINEAR, steps)
        scale = guidance.cfg_pp(STRENGTH, sampler.levels)
        w = [scale(row.level) for row in sampler.rows()]
        lines.append(f"{np.mean(w):.1f} in {steps} steps (from {min(w):.1f} to {max(w):.1f})")
    return ", ".join(lines)


def plot(path: Path) -> None:
    """Variances by scale in one dimension; ellipses of one standard deviation in two."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4))
    axis, w = axes[0, 0], np.linspace(0.55, 5, 90)
    lines = {
        "tilted law": (2 / (w + 1), "k"),
        "with noise": (limit_of_sde(w), "C0"),
        "without noise": (limit_of_flow(w), "C3"),
    }
    for name, (values, colour) in lines.items():
        axis.semilogy(w, values, color=colour, lw=2)
        where = {"va": "center", "fontsize": 9.5, "annotation_clip": False}
        axis.annotate(name, (5.15, values[-1]), color=colour, **where)
    at = np.arange(1, 5.01, 0.5)
    for name, colour in (("dpmpp_2m", "C3"), ("ancestral", "C0")):
        drawn = [variance(name, 20, s) for s in at]
        axis.plot(at, drawn, "o", color=colour, ms=4, mfc="w", clip_on=False)
    axis.set(xlabel="scale", xlim=(0.5, 5), xticks=range(1, 6), yticks=(0.05, 0.1, 0.2, 0.5, 1))
    axis.set_yticklabels(["0.05", "0.1", "0.2", "0.5", "1"])
    axis.minorticks_off()
    axis.set_title("N(0, 1) against N(0, 2): variance", loc="left", fontsize=11)
    solvers = (("dpmpp_2m", 250, "C3", "-"), ("ancestral", 250, "C0", "-"))
    panels = {
        CONSTANT: solvers,
        WITHIN: solvers,
        CFG_PP: (("ddim", 10, "C2", "-"), ("ddim", 20, "C2", "--")),
    }
    for axis, (guider, cells) in zip(axes.flat[1:], panels.items(), strict=True):
        shown: list[tuple[str, Any, str, str]] = [
            ("class", A, "0.65", "-"), ("tilted law", tilted(AGAINST["the union"], SCALE), "k", "-"),
        ]  # fmt: skip
        for name, steps, colour, style in cells:
            law = law_of("the union", guider, name, steps)
            shown.append((f"{name}, {steps} steps", law, colour, style))
        for name, drawn, colour, style in shown:
            values, basis = np.linalg.eigh(drawn.cov)
            angle = np.degrees(np.arctan2(basis[1, 1], basis[0, 1]))
            wide, high = 2 * np.sqrt(values[::-1])
            look = {"fill": False, "ec": colour, "ls": style, "lw": 1.8, "label": name}
            axis.add_patch(Ellipse(tuple(drawn.mean), wide, high, angle=angle, **look))
        axis.set(xlim=(-0.4, 1.8), ylim=(-0.1, 1.3), aspect="equal")
        axis.legend(loc="upper left", frameon=False, fontsize=9)
        axis.set_title(f"Against the union: {guider}", loc="left", fontsize=11)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def strip(path: Path) -> None:
    """The bundled model: a row for each scale, a column for each class, the same noise in a column."""
    model, scales = load("fashion-mnist"), shares_of()[0]
    y, solver = parse_classes(None, model, 10), ddpm.dpmpp_2m(model.schedule, 20)
    rows = [
        draw(model, backend("numpy"), solver, 10, y, 0, 10, guidance=w, quiet=True)[-1]
        for w in scales
    ]
    sheet = pictures.grid(pictures.to_bytes(np.concatenate(rows)), 10)
    pictures.write_png(path, sheet, 2, rows=[f"{w:g}" for w in scales])


def shares_of() -> tuple[list[float], dict[str, list[str]], str]:
    """Scales, rows by name, and the title of what recognised.py printed."""
    title, header, *lines = SHARES.read_text("utf-8").splitlines()
    scales = [float(word) for word in header.split() if word.replace(".", "").isdigit()]
    rows: dict[str, list[str]] = {}
    for line in lines:
        name = line[:14].strip()
        rows[name if name not in rows else f"{name} of the spread"] = line[14:].split()
    return scales, rows, title


def bundled() -> str:
    scales, rows, title = shares_of()
    lines = []
    for i, name in enumerate(["test images", *(f"{w:g}" for w in scales)]):
        share, error = rows["all"][i], rows["standard error"][i]
        spread, of = rows["spread"][i], rows["standard error of the spread"][i]
        cells = " | ".join(rows[label][i] for label in ("Shirt", "Coat"))
        lines.append(f"| {name} | {share} ± {error} | {cells} | {spread} ± {of} |")
    table = "\n".join(lines)
    return f"""\
{title}, on torch. The classifier of `benchmarks/recognised.py` says of how many images it recognises the class that was asked for.
The spread is the root of the mean square distance of an image from the mean of its class, over images and pixels, in grey levels of 0 .. 255.
Both have their standard error; the scales share their noise, so that differences between them are more certain than that.

| scale | recognised | of shirts | of coats | spread |
|---|---|---|---|---|
{table}

![Samples of the bundled model: a row for each scale, a column for each class](guidance-samples.png)

Each column starts from the same noise. `python benchmarks/recognised.py --count 1000 --guidance {" ".join(f"{w:g}" for w in scales)}` printed the numbers,
which are kept in `docs/{SHARES.name}`."""


def summary() -> str:
    scales, rows, _ = shares_of()
    share = dict(zip((0, *scales), rows["all"], strict=True))
    spread = dict(zip((0, *scales), rows["spread"], strict=True))
    return f"""\
A classifier recognises {share[1]} of its images at scale 1, {share[1.5]} at 1.5, {share[2]} at 2 and
  {share[4]} at 4, where it recognises {share[0]} of test images. The spread within a class falls from {spread[1]} to {spread[1.5]}, {spread[2]} and {spread[4]}; test images
  have {spread[0]}. Beyond 2 the images are more typical of their class than real ones are, and look it: bright and smooth."""


def page() -> str:
    steps = " | ".join(f"{n} steps" for n in STEPS)
    w = 3
    classifier_gap = max(by_a_classifier(against) for against in AGAINST)
    return f"""\
# Guidance, measured

Generated by `python docs/guidance.py`; `tests/test_guidance_laws.py` holds the limits and the identities below.

A guided denoiser of Gaussian data is affine, so that what a sampler draws with it is computed and not estimated:

{CODE}

What is found, with reasons and tables below:

- **No solver draws the tilted law** p(x | c)^w p(x)^(1 - w), which a scale w is often said to draw. With w > 1 what is drawn is too narrow: for
  two Gaussians of variances 1 and 2 and w = {w}, {limit_of_flow(w):.3f} without noise and {limit_of_sde(w):.3f} with it, where the tilted law has {2 / (w + 1):.3f}. More steps
  do not help: these are the limits. Bradley & Nakkiran (2024) found them.
- **It is exact where the two covariances are equal**: then guidance moves the mean, and every solver draws with it what it draws with the
  tilted law's own exact denoiser.
- **Solvers with noise come nearer, if there are many steps.** In two dimensions the KL of `ancestral` is about a sixth of that of `dpmpp_2m`
  in 250 steps, half of it in 50, and no better in 20: its own error, of order 1, is towards too little variance as well.
- **An interval helps here.** With guidance within log-SNR {LOW:g} .. {HIGH:g} alone, KL from 20 steps on is about half of what it is with guidance
  everywhere, or less, for every solver. W2 falls too, if not everywhere against the other class.
- **A strength of CFG++ belongs to a number of steps.** It acts once a step, so that the scale that it amounts to grows with the steps, without
  a limit. Against the union, strength {STRENGTH:g} happens to be close to scale {SCALE:g} in 10 steps; in 250 no variance is left. Against the other class
  the mean runs away.
- **On the bundled model guidance buys recognition with spread.** {summary()}

![The variance by scale in one dimension, and ellipses of one standard deviation in two: the tilted law, and what is drawn](guidance.png)

## One dimension

The conditional data is N(0, 1), the unconditional N(0, 2). The table has the variance that is drawn, with `linear(1000)`. With a = α² the guided score is
-x (1 + w a) / (1 + a); the probability flow and the reverse SDE, solved with it from noise to data, give

```text
tilted law       2 / (w + 1)
without noise    2^(1 - w)
with noise       (2 - 2^(2 - 2w)) / (2w - 1)
```

| scale | tilted law | solver | {steps} | its limit |
|---|---|---|{"---|" * len(STEPS)}---|
{one_dimension()}

In the figure circles are 20 steps of `dpmpp_2m` and of `ancestral`, lines are limits.

## Two dimensions

One class is N(({MEAN[0]:g}, {MEAN[1]:g}), [{COV[0, 0]:g} {COV[0, 1]:g}; {COV[1, 0]:g} {COV[1, 1]:g}]), the other N(({OTHER_MEAN[0]:g}, {OTHER_MEAN[1]:g}), [{OTHER_COV[0, 0]:g} {OTHER_COV[0, 1]:g}; {OTHER_COV[1, 0]:g} {OTHER_COV[1, 1]:g}]). The first is guided by scale {SCALE:g} against the other, or against
the Gaussian of both classes' mean and covariance. Each cell has KL(tilted law ‖ drawn) in nats, and W2; mean, standard deviations and correlation
are those that 250 steps draw.

| against | guidance | solver | {steps} | mean | std | corr |
|---|---|---|{"---|" * len(STEPS)}---|---|---|
{two_dimensions()}

- A classifier is not in the table, because it is the same law: `classifier(against, ∇ log q(x_t | c) - ∇ log q(x_t), {SCALE:g})` draws what `guided` draws, to
  {classifier_gap:.0e} in mean and covariance over all solvers and steps above.
- CFG++ of strength {STRENGTH:g} is DDIM with a scale that depends on the level; it is on average {scales_of_cfg_pp()}.
- `rescale`, `projected` and `dynamic_threshold` divide by lengths or quantiles of the sample. They are not affine, no exact law is known of
  them, and `law` refuses them.

## Checked by samples

10^6 samples each: exact / drawn ± the standard error, and the largest of the five differences in standard errors.

| cell | mean 1 | mean 2 | cov 11 | cov 12 | cov 22 | |
|---|---|---|---|---|---|---|
{checked("the union", CONSTANT, "ancestral", 10)}
{checked("the other class", WITHIN, "dpmpp_2m", 20)}

## The guiders of diffusers

`diffusers.guiders` of diffusers {diffusers.__version__}, and ours, on the same two random predictions at time 500 of `linear(1000)`: the largest difference of x_0, for networks
that predict x_0, eps or v. Where it is bold, the two do different things.

| diffusers | ours | x_0 | eps | v |
|---|---|---|---|---|
{beside()}

What differs:

- **`use_original_formulation=True`** is Ho & Salimans' w, off at 0: our scale is theirs plus 1.
- **Rescaling, and projection, act on the network's output there**, and on x_0 here. Lengths and standard deviations of eps, v and x_0 are
  not the same, so that one setting means another thing for each kind of network. The paper of the projection (Sadat et al. 2024) is about x_0.
- **Projection, by default, is not the paper's.** Theirs starts from the unconditional prediction, where the paper's x_0 + (scale - 1) (...) starts from
  the conditional one: what projection or the limit of length takes out of the difference is lacking once more, and the result jumps where the
  scale passes 1, at which they leave guidance out. With `use_original_formulation=True` it is the paper's, and their scale the paper's less 1.
- **Their momentum** adds up differences over the steps, which a denoiser cannot: it has no memory. Ours has none.
- **AutoGuidance** is `guided` too. There the worse network is the same one with layers skipped or dropped out, by hooks; here it is any denoiser.
- **Thresholding** of their schedulers has `sample_max_value=1`, at which nothing is left of it but a clip to [-1, 1].
- **Their interval is a share of the steps**, `start` .. `stop`, so that it is another interval of noise on another grid. Ours is an interval of log-SNR. What
  `start=0.25, stop=0.75` means on `linear(1000)`; `within` of these log-SNR guides the same steps:

| grid | steps | guided | log-SNR |
|---|---|---|---|
{guided_steps()}

## The bundled model

{bundled()}
"""


def main() -> None:
    logging.disable(logging.WARNING)  # guiders of diffusers call themselves experimental, each time
    plot(HERE / "guidance.png")
    strip(HERE / "guidance-samples.png")
    (HERE / "guidance.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
