"""Writes inverse-peers.json: methods of other libraries beside ours, for inverse.py.

    pip install -e '.[test]' azula==0.11.1 deepinv==0.5.0 && python docs/inverse_peers.py

Takes about two minutes. A library that is not installed is left out. Theirs are run as they are, in
float64, on our levels, with our noises in place of theirs.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from inverse import DATA, LINEAR, PROBLEMS, SHAPE, Apart, D, apart, law_of_steps, steps_of

import ddpm_core as ddpm
from ddpm_core import inverse
from ddpm_core.certificates import Law, law_of

MASK, BLUR = PROBLEMS["mask"], PROBLEMS["blur"]
KEEP = torch.from_numpy(MASK.measurement.operator.singular > 0)


def t(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


@contextmanager
def drawing(where: str, noise: ddpm.typing.Noise) -> Iterator[None]:
    """The noises of a module's function, in the order in which it asks for them."""
    asked = iter(range(1 << 20))

    def drawn(like: Any, **_: Any) -> torch.Tensor:
        return t(noise(next(asked), tuple(getattr(like, "shape", like))))

    with patch(where, drawn):
        yield


def drawn_by(step: Callable[[torch.Tensor], torch.Tensor], where: str) -> Any:
    """Their step as one of ours: (x, noise) -> x."""

    def run(x: np.ndarray, noise: ddpm.typing.Noise) -> np.ndarray:
        with drawing(where, noise):
            return step(t(x)).numpy()

    return run


def shown(cell: Apart) -> str:
    return f"W2 {cell.w2:.3f}, variance {cell.share:.2f}"


def gap(a: Law, b: Law) -> str:
    return f"{max(np.abs(a.mean - b.mean).max(), np.abs(a.cov - b.cov).max()):.0e}"


# diffusers. -------------------------------------------------------------------------------------


def of_diffusers() -> list[list[str]]:
    module = importlib.import_module("diffusers.schedulers.scheduling_repaint")
    name = "`RePaintScheduler`"

    def run(schedule: Any, steps: int, jump: int, repeats: int) -> tuple[Law, Law, Any]:
        """Their law, ours on the levels that they mean to visit, and the scheduler."""
        alpha_bars = np.array(schedule(np.arange(1, schedule.T + 1)).alpha) ** 2
        betas = 1 - alpha_bars / np.concatenate([[1.0], alpha_bars[:-1]])
        theirs = module.RePaintScheduler(
            num_train_timesteps=schedule.T, trained_betas=betas, eta=1.0, clip_sample=False
        )
        theirs.set_timesteps(steps, jump, repeats)
        y, times = t(MASK.measurement.y), [int(i) for i in theirs.timesteps]
        taken, visits, last = [], [times[0] + 1], times[0] + 1
        for time in times:  # as their pipeline walks
            if time < last:
                level = schedule(time + 1)

                def step(x: Any, time: int = time, level: Any = level) -> Any:
                    eps = (x - level.alpha * DATA(x, level)) / level.sigma
                    return theirs.step(eps, time, x, y, KEEP.double()).prev_sample

                visits.append(max(0, time + 1 - schedule.T // steps))
            else:

                def step(x: Any, last: int = last) -> Any:
                    return theirs.undo_step(x, last)

                visits.append(last + 1)
            taken.append(drawn_by(step, f"{module.__name__}.randn_tensor"))
            last = time
        kernel = inverse.replaced(ddpm.reverse(DATA), MASK.measurement)
        levels = schedule(np.array(visits, dtype=float))
        return (
            law_of_steps(taken, MASK.truth),
            law_of_steps(steps_of(kernel, levels), MASK.truth),
            theirs,
        )

    few = ddpm.schedules.from_alpha_bars(np.array(LINEAR(np.arange(20, 1001, 20)).alpha) ** 2)
    theirs, ours, _ = run(few, 50, 10, 10)
    rows = [
        [name, "50 steps of a schedule of T = 50, `eta=1`, no clipping, (10, 10)",
         shown(apart(theirs, MASK)), shown(apart(ours, MASK)),
         f"the same: laws equal to {gap(theirs, ours)}"]
    ]  # fmt: skip
    for steps in (50, 250):
        theirs, ours, scheduler = run(LINEAR, steps, 10, 10)
        n, a = 1000 // steps, scheduler.alphas_cumprod
        low, high = float(1 - a[9 * n]), float(1 - a[10 * n - 1])
        rows.append(
            [name, f"{steps} steps of T = 1000, else the same",
             shown(apart(theirs, MASK)), shown(apart(ours, MASK)),
             f"defect: `undo_step` at t multiplies by the betas t .. t + {n - 1}, where the jump from "
             f"t - {n} to t needs t - {n - 1} .. t; the jump from clean data ends at noise of variance {high:.3f}, and the "
             f"network is told {low:.3f}"]
        )  # fmt: skip
    return rows


# azula. -----------------------------------------------------------------------------------------


def of_azula() -> list[list[str]]:
    guidance = importlib.import_module("azula.guidance")
    base = importlib.import_module("azula.denoise")
    covariances = importlib.import_module("azula.linalg.covariance")

    class Exact(base.Denoiser):
        """DATA, on flat pixels; times are those of LINEAR, and the schedule is its."""

        def forward(self, x_t: Any, time: Any) -> Any:
            return base.DiracPosterior(
                DATA(x_t.reshape(-1, *SHAPE), self.level(time)).reshape(x_t.shape)
            )

        def level(self, time: Any) -> Any:
            return LINEAR(float(time))

        def schedule(self, time: Any) -> Any:
            level = self.level(time)
            return tuple(torch.tensor(a, dtype=torch.float64) for a in (level.alpha, level.sigma))

    exact = Exact()
    where = "torch.randn_like"

    def parts(case: Any) -> tuple[Any, Any, Any, float]:
        """y, A and A⁺ of what is measured, and the noise."""
        a = case.measurement.operator.matrix()
        seen = np.abs(a).sum(1) > 0
        a, y = a[seen], case.measurement.y.reshape(-1)[seen]
        forward, inverted = t(a.T), t(np.linalg.pinv(a).T)
        return t(y), lambda x: x @ forward, lambda v: v @ inverted, case.measurement.var

    def law_of_sampler(sampler: Any, case: Any, steps: int) -> Law:
        levels, y = ddpm.levels_of(LINEAR, steps), sampler.y

        def step(i: int) -> Any:
            times = [torch.tensor(float(time)) for time in levels.time[i : i + 2]]

            def flat(x: Any) -> Any:
                sampler.y = y.expand(len(x), len(y))  # RePaint draws noise of its shape
                return sampler.step(x.reshape(-1, D), *times).reshape(x.shape)

            return drawn_by(flat, where)

        return law_of_steps([step(i) for i in range(steps)], case.truth)

    def denoiser(theirs: Any) -> Any:
        """Their denoiser as one of ours."""

        def denoise(x_t: Any, level: Any) -> Any:
            x = t(x_t.reshape(-1, D))
            return (
                theirs(x, torch.tensor(float(level.time))).mean.detach().numpy().reshape(x_t.shape)
            )

        return denoise

    rows: list[list[str]] = []
    y, A, _, _ = parts(MASK)
    full = torch.zeros(D).double()
    full[KEEP.reshape(-1)] = y
    mask = KEEP.reshape(-1)

    # RePaint: each step, the last too, `iterations` times.
    levels = ddpm.levels_of(LINEAR, 50)
    order = [0]
    for i in range(50):
        order += [i + 1, i] * 9 + [i + 1]
    kernel = inverse.replaced(ddpm.reverse(DATA), MASK.measurement)
    ours = law_of_steps(steps_of(kernel, levels.take(np.array(order))), MASK.truth)
    make = guidance.RePaintSampler
    theirs = law_of_sampler(make(exact, full, mask, 10, eta=1.0), MASK, 50)
    rows.append(["`RePaintSampler`", "50 steps, `iterations=10`, `eta=1`", shown(apart(theirs, MASK)), shown(apart(ours, MASK)),
                 f"the same: laws equal to {gap(theirs, ours)}; a jump is one step long"])  # fmt: skip
    theirs = law_of_sampler(make(exact, full, mask), MASK, 50)
    ours_2 = law_of_steps(steps_of(kernel, inverse.walk(levels, 1, 3)), MASK.truth)
    rows.append(["`RePaintSampler`", "50 steps, as it is (`iterations=3`, `eta=0`)", shown(apart(theirs, MASK)), shown(apart(ours_2, MASK)),
                 "convention: DDIM without noise between the jumps, where the paper (and ours, `walk(levels, 1, 3)`) draws"])  # fmt: skip

    # PiGDM: its own weight of the gradient.
    why = (
        "other weight: after the step it adds α_s α_t Jᵀ A⁺ (y - A x̂_0); DDIM with the posterior mean for x̂_0 adds "
        "(α_s / α_t - σ_s / σ_t) of it, which shrinks with the step"
    )
    for name in ("mask", "upscaling"):
        case = PROBLEMS[name]
        y_, A_, A_inv_, _ = parts(case)
        for steps in (50, 250):
            theirs = law_of_sampler(guidance.PGDMSampler(exact, y_, A_, A_inv_), case, steps)
            ours = ddpm.law(
                ddpm.ddim(LINEAR, steps), inverse.pigdm(DATA, case.measurement), case.truth
            )
            rows.append(["`PGDMSampler`", f"{name}, {steps} steps, DDIM", shown(apart(theirs, case)), shown(apart(ours, case)),
                         why])  # fmt: skip
            why = "the same weight"

    # DPS: not affine; one step.
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((2, 100, D))
    with drawing(where, lambda i, shape: z):
        got = guidance.DPSSampler(exact, y, A, zeta=1.0).step(
            t(x), *map(torch.tensor, (500.0, 480.0))
        )
    # Theirs takes one norm of the whole batch, so that samples go one by one.
    one = []
    for k in range(20):
        with drawing(where, lambda i, shape, k=k: z[k : k + 1]):
            one.append(
                guidance.DPSSampler(exact, y, A, zeta=1.0)
                .step(t(x[k : k + 1]), *map(torch.tensor, (500.0, 480.0)))
                .numpy()
            )
    step = inverse.dps(DATA, MASK.measurement, zeta=0.5)(
        x[:20].reshape(-1, *SHAPE), LINEAR(500), LINEAR(480)
    )
    ours_x = step.reparameterise(z[:20].reshape(-1, *SHAPE)).reshape(-1, D)
    off, of_batch = (
        np.abs(np.concatenate(one) - ours_x).max(),
        np.abs(got.numpy()[:20] - ours_x).max(),
    )
    rows.append(["`DPSSampler`", "one step, `zeta=1`, one sample", "", "",
                 f"convention: the gradient of ‖y - A x̂_0‖, half of Algorithm 1's: our `zeta=0.5`, to {off:.0e}"])  # fmt: skip
    rows.append(["`DPSSampler`", "one step, `zeta=1`, a batch of 100", "", "",
                 f"defect: one norm for the whole batch, so that a sample depends on its neighbours: off by {of_batch:.1g}, "
                 "for the guidance is about a tenth of that of one sample"])  # fmt: skip

    # MMPS, TMPD and DiffPIR: denoisers, with the blur.
    y, A, _, var = parts(BLUR)
    some, times = rng.standard_normal((5, *SHAPE)), (1000, 500, 100, 10)
    worst = lambda a, b: max(np.abs(a(some, LINEAR(i)) - b(some, LINEAR(i))).max() for i in times)
    noise = covariances.IsotropicCovariance(torch.tensor(var).double())
    for solver in ("cg", "gmres"):
        theirs = denoiser(guidance.MMPSDenoiser(exact, y, A, noise, solver=solver, iterations=64))
        rows.append(["`MMPSDenoiser`", f'blur, `solver="{solver}"`, `iterations=64`', "", "",
                     f"the same: at {len(times)} levels within {worst(theirs, BLUR.truth):.0e} of the exact posterior mean (ours: "
                     f"{worst(inverse.mmps(DATA, BLUR.measurement, 64), BLUR.truth):.0e})"])  # fmt: skip
    theirs = denoiser(guidance.MMPSDenoiser(exact, y, A, noise))
    rows.append(["`MMPSDenoiser`", "blur, as it is (`iterations=1`, gmres)", "", "",
                 f"convention: one iteration by default, ours five: off by {worst(theirs, BLUR.truth):.2f}, ours by "
                 f"{worst(inverse.mmps(DATA, BLUR.measurement), BLUR.truth):.2f}"])  # fmt: skip
    theirs = denoiser(guidance.TMPDenoiser(exact, y, A, var))
    exactly = ddpm.law(ddpm.ancestral(LINEAR, 250), BLUR.truth)
    law = ddpm.law(ddpm.ancestral(LINEAR, 250), theirs, BLUR.truth)
    rows.append(["`TMPDenoiser`", "blur, 250 steps, ancestral", shown(apart(law, BLUR)), f"{shown(apart(exactly, BLUR))} (`given`)",
                 "not in this library: the sums of the covariance's rows in place of it"])  # fmt: skip
    for count in (1, 64):
        theirs = denoiser(guidance.DiffPIRDenoiser(exact, y, A, var, iterations=count))
        ours = ddpm.law(
            ddpm.ancestral(LINEAR, 250),
            inverse.diffpir(DATA, BLUR.measurement, lam=10.0),
            BLUR.truth,
        )
        try:
            cell = shown(apart(ddpm.law(ddpm.ancestral(LINEAR, 250), theirs, BLUR.truth), BLUR))
        except ValueError:
            cell = "not affine"
        difference = worst(theirs, inverse.diffpir(DATA, BLUR.measurement, lam=10.0))
        rows.append(["`DiffPIRDenoiser`", f"blur, 250 steps, ancestral, `iterations={count}`", cell, shown(apart(ours, BLUR)),
                     f"the same as `lam=10`, their default, to {difference:.0e}" if count > 1 else
                     "convention: one iteration of gmres by default, which depends on x_t as no affine function does"])  # fmt: skip
    return rows


# deepinv. ---------------------------------------------------------------------------------------


def of_deepinv() -> list[list[str]]:
    deepinv = importlib.import_module("deepinv")
    k = np.geomspace(50, 0.01, 50)
    levels = ddpm.levels.from_logsnr(np.array([*(-2 * np.log(k)), np.inf]), np.arange(50.0, -1, -1))

    def exact(x: Any, k: Any) -> Any:
        level = ddpm.levels.from_logsnr(-2 * float(np.log(k)), 0.0)
        return DATA(level.alpha * x, level)

    rows, std = [], 0.1
    keep = MASK.measurement.operator
    measurement = inverse.Measurement(keep, MASK.measurement.y, std**2)
    truth = DATA.given(measurement)
    physics = deepinv.physics.Inpainting(
        SHAPE, mask=KEEP.double(), noise_model=deepinv.physics.GaussianNoise(std)
    )
    physics.noise_model.sigma = torch.tensor(std, dtype=torch.float64)
    y = t(MASK.measurement.y)

    def law(factor: float) -> Law:
        model = deepinv.sampling.DDRM(exact, sigmas=k, eps=0.0)

        def draw(x: Any, noise: Any) -> Any:
            ask = lambda i, shape: factor * (noise(i, shape) if i else x)
            with drawing("torch.randn_like", ask):
                return model(y.expand(len(x), *SHAPE).clone(), physics).numpy()

        return law_of(draw, truth)

    kernel = inverse.ddrm(DATA, measurement)
    inside = KEEP.numpy()
    first = levels.take(0)

    def ours(x: Any, noise: Any) -> Any:
        # As in the paper, x_T is about y where y is.
        spread = np.where(inside, np.sqrt(k[0] ** 2 - std**2), k[0])
        x = first.alpha * (np.where(inside, MASK.measurement.y, 0.0) + spread * x)
        return ddpm.sample_kernel(kernel, levels, x, noise)

    case = MASK._replace(measurement=measurement, truth=truth, free=np.eye(D))
    own = law_of(ours, truth)
    rows.append(["`DDRM`", f"mask with noise of {std}, 50 levels σ / α from 50 to 0.01, `eps=0`",
                 shown(apart(law(1.0), case)), shown(apart(own, case)),
                 "defect: each noise is divided by sqrt(2), so that half of the variance is drawn that the paper has and that the denoiser is told"])  # fmt: skip
    rows.append(["`DDRM`", "the same, its noises multiplied by sqrt(2)", shown(apart(law(np.sqrt(2.0)), case)), shown(apart(own, case)),
                 f"the same: laws equal to {gap(law(np.sqrt(2.0)), own)}"])  # fmt: skip
    return rows


def main() -> None:
    found = {}
    for name, rows in (("diffusers", of_diffusers), ("azula", of_azula), ("deepinv", of_deepinv)):
        try:
            version = importlib.import_module(name).__version__
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        found[f"{name} {version}"] = rows()
    path = Path(__file__).parent / "inverse-peers.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
