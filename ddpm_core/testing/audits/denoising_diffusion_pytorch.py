"""denoising-diffusion-pytorch: its schedules, its diffusion and its samplers."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.parameterisations import eps as eps_of
from ddpm_core.parameterisations import v as v_of
from ddpm_core.parameterisations import x0
from ddpm_core.process import q_posterior
from ddpm_core.process import q_sample as q_sample_of
from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.samplers.unrolled import from_loop
from ddpm_core.schedules import alphabar_sigmoid, cosine, linear
from ddpm_core.testing.audits.denoising_notes import NOTES
from ddpm_core.testing.audits.found import Subject
from ddpm_core.testing.audits.solvers import fails_for, numbers, on_levels, same, table_laws
from ddpm_core.testing.foreign import openai
from ddpm_core.testing.foreign.torch_loops import as_array, as_tensor, noise_from
from ddpm_core.testing.report import Finding

__all__ = ["NOTES", "subjects"]

_PARAMETERISATIONS = {"pred_noise": eps_of, "pred_x0": x0, "pred_v": v_of}
T = 100


def subjects() -> list[Subject]:
    main = _module("denoising_diffusion_pytorch")

    table = [*_schedules(main)]
    for objective in _PARAMETERISATIONS:
        table.append(Subject(f"GaussianDiffusion, {objective}", partial(_diffusion, objective)))
        table.append(
            Subject(f"p_sample, {objective}", partial(_sampler, objective, "ancestral"),
                    {}, "ancestral")
        )  # fmt: skip
        for eta in (0.0, 1.0):
            table.append(
                Subject(f"ddim_sample, {objective}, eta={eta:g}",
                        partial(_sampler, objective, "ddim", eta), {}, f"ddim, eta={eta:g}")
            )  # fmt: skip
    return [
        *table,
        Subject("linear_beta_schedule, few timesteps", partial(_few, main), {"": "few"}),
        Subject("ddim_sample, its times", _times),
        Subject("GaussianDiffusion.interpolate", _interpolate, {"": "interpolate"}),
        Subject("GaussianDiffusion, immiscible", _immiscible, {"": "immiscible"}),
        Subject("RePaint, resampling", _repaint, {"": "repaint"}),
        Subject("LearnedGaussianDiffusion, DDIM", _learned, {"": "learned"}),
        Subject("LearnedGaussianDiffusion, pred_x0", _objective, {"": "objective"}),
        Subject("WeightedObjectiveGaussianDiffusion.sample", _weighted, {"": "weighted"}),
        Subject("classifier_free_guidance, cond_scale=1", _scale_one, {"": "scale-one"}),
        Subject("classifier_free_guidance, cond_scale=3", _scale_three, {"": "parallel"}),
    ]


def _module(name: str) -> Any:
    return importlib.import_module(f"denoising_diffusion_pytorch.{name}")


def _net(out: int = 1, value: Callable[[Any], Any] | None = None) -> Any:
    """A network that says zeros, or `value` of x, and keeps what it was asked."""
    import torch

    class Net(torch.nn.Module):
        channels, out_dim, self_condition = 1, out, False

        def __init__(self) -> None:
            super().__init__()
            self.asked: list[tuple[Any, int]] = []

        def forward(self, x: Any, t: Any, *_: Any) -> Any:
            self.asked.append((x, int(t[0])))
            return torch.zeros(len(x), out, *x.shape[2:]).to(x) if value is None else value(x)

    return Net()


def _made(net: Any = None, kind: str = "GaussianDiffusion", **options: Any) -> Any:
    library: Any = importlib.import_module("denoising_diffusion_pytorch")
    given: dict[str, Any] = {"image_size": 4, "timesteps": T, "beta_schedule": "linear",
               "objective": "pred_noise", "auto_normalize": False} | options  # fmt: skip
    return getattr(library, kind)(_net() if net is None else net, **given)


def _quiet(run: Callable[[], Any]) -> Any:
    with contextlib.redirect_stderr(io.StringIO()):  # of progress bars
        return run()


def _schedules(main: Any) -> Iterable[Subject]:
    ours = {
        "linear_beta_schedule": (linear(T, rescale=True), 1e-12),
        "cosine_beta_schedule": (cosine(T), 1e-12),
        "sigmoid_beta_schedule": (alphabar_sigmoid(T), 1e-5),
    }
    for name, (schedule, allowed) in ours.items():

        def found(name: str = name, schedule: Any = schedule, rounding: float = allowed) -> Any:
            betas = getattr(main, name)(T).numpy()
            abar = np.append(1.0, schedule(np.arange(1, T + 1.0)).alpha ** 2)
            wanted = 1 - abar[1:] / abar[:-1]
            slack = rounding * np.maximum(wanted[:-1], 1e-2)
            law = "its betas, but the last, which it keeps below 0.999"
            return [numbers(law, "the paper that it names", betas[:-1], wanted[:-1],
                            slack, lambda i: f"index {i}")]  # fmt: skip

        yield Subject(name, found)


def _diffusion(objective: str) -> Iterable[Finding]:
    made = _made(objective=objective).double()
    schedule = openai.schedule(made)
    rng = np.random.default_rng(0)
    x_0, eps = rng.standard_normal((2, 3, 4))
    cases = [1, 2, 50, 100]
    ask, posterior = openai.q_sample(made), openai.posterior(made)
    noisy = [np.abs(ask(x_0, eps, schedule(t)) - q_sample_of(x_0, eps, schedule(t))).max()
             for t in cases]  # fmt: skip
    where: Callable[[int], str] = lambda i: f"time {cases[i]}"
    yield numbers("q(x_t | x_0), to float32", "Ho et al. 2020, Eq. 4", noisy, 0, 1e-5, where)
    off: list[float] = []
    for t in cases:
        theirs = posterior(x_0, eps, schedule(t), schedule(t - 1))
        mine = q_posterior(x_0, eps, schedule(t), schedule(t - 1))
        off.append(max(np.abs(theirs.mean - mine.mean).max(), abs(theirs.var - mine.var)))
    yield numbers("q(x_s | x_t, x_0), to float32", "Ho et al. 2020, Eq. 7", off, 0, 1e-4, where)


def _sampler(objective: str, ours: str, eta: float | None = None) -> Iterable[Finding]:
    u = _unrolled(objective, eta)
    mine = on_levels(linear(T, rescale=True), by_name(ours), u.levels,
                     **({} if eta is None else {"eta": eta}))  # fmt: skip
    yield same(u, mine, ours, allowed=1e-3)
    yield from table_laws(u, precision=1e-6)


def _unrolled(objective: str, eta: float | None) -> Unrolled:
    """Its loop, with probes that are too small for its clip of x_0 to [-1, 1]."""
    import torch

    ddim: dict[str, Any] = (
        {} if eta is None else {"sampling_timesteps": 10, "ddim_sampling_eta": eta}
    )
    told: list[int] = []
    levels = linear(T, rescale=True)(np.arange(T + 1.0))

    def run(network: Any, x: Any, draw: Any) -> Any:
        def ask(x: Any, t: Any, *_: Any) -> Any:
            told[:] = [int(t[0]) + 1]
            return network(x)

        net = _net()
        net.forward = ask
        made = _made(net, objective=objective, **ddim).double()
        first = [x]  # what the loop takes for its first draw

        def drawn() -> Any:
            return first.pop() if first else draw()

        with noise_from(drawn), torch.no_grad():
            return _quiet(
                lambda: (made.p_sample_loop if eta is None else made.ddim_sample)(x.shape)
            )

    def level_of(*_: Any) -> Level:
        return levels.take(told[0])

    return from_loop(
        run, level_of, levels.take(0), _PARAMETERISATIONS[objective],
        size=2.0**-16, asarray=as_tensor, to_numpy=as_array,
    )  # fmt: skip


def _few(main: Any) -> Iterable[Finding]:
    def wrong(timesteps: int) -> str | None:
        betas = main.linear_beta_schedule(timesteps).numpy()
        return None if betas.max() < 1 else f"the last beta is {betas.max():.3f}"

    law = "betas are below 1, or refused"
    yield fails_for(law, "Ho et al. 2020, Eq. 2", range(1, 41), wrong)


def _times() -> Iterable[Finding]:
    def wrong(steps: int) -> str | None:
        net = _net()
        made = _made(net, timesteps=200, sampling_timesteps=steps)
        _quiet(lambda: made.ddim_sample((1, 1, 4, 4)))
        times = [t for _, t in net.asked]
        falls = all(a > b for a, b in pairwise(times))
        return None if falls and len(times) == steps and times[0] == 199 else f"times {times[:4]}"

    law = "S steps are S calls at falling times, from T - 1"
    yield fails_for(law, "Song et al. 2021, section 4.2", range(1, 200, 7), wrong)


def _interpolate() -> Iterable[Finding]:
    import torch

    net = _net()
    made = _made(net)
    x = torch.zeros(1, 1, 4, 4)
    _quiet(lambda: made.interpolate(x, x, t=50))
    yield numbers(
        "the network is told the time to which x was noised", "Ho et al. 2020, Figure 8",
        net.asked[0][1], 50, 0, lambda i: "the first call of interpolate(t=50)",
    )  # fmt: skip


def _immiscible() -> Iterable[Finding]:
    import torch

    net = _net()
    made = _made(net, immiscible=True)
    shape = (64, 1, 4, 4)
    x_0, noise = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    made.p_losses(x_0, torch.full((64,), 50), noise=noise)
    x_t = net.asked[-1][0]
    inside = (x_t - made.sqrt_alphas_cumprod[50] * x_0) / made.sqrt_one_minus_alphas_cumprod[50]
    yield numbers(
        "the target of the loss is the noise in x_t", "Li et al. 2024, Algorithm 1",
        float((inside - noise).square().mean().sqrt()), 0.0, 1e-3,
        lambda i: "the root mean square difference, of 64 samples",
    )  # fmt: skip


def _repaint() -> Iterable[Finding]:
    import torch

    net = _net()
    made = _module("repaint").GaussianDiffusion(
        net, image_size=4, timesteps=T, beta_schedule="linear", objective="pred_noise"
    )
    x = torch.zeros(1, 1, 4, 4)
    options = {"gt": x, "mask": x, "resample_iter": 1, "resample_every": 50}
    _quiet(lambda: made.p_sample_loop(x.shape, **options))
    times = [t for _, t in net.asked]
    again = times[times.index(50) + 1 : times.index(49)]  # after time 50, before going on
    yield numbers(
        "resampling goes on from the time that was reached", "Lugmayr et al. 2022, Algorithm 1",
        again, [52, 51, 50], 0, lambda i: f"call {i} of a jump of 3 at time 50",
    )  # fmt: skip


def _learned() -> Iterable[Finding]:
    made = _made(_net(2), "LearnedGaussianDiffusion", sampling_timesteps=10)
    _quiet(lambda: made.sample(1))
    yield Finding("it runs", "", 1)


def _objective() -> Iterable[Finding]:
    """Of x_t = 0.5 and an output of 0, x_0 is 0 where the output is x_0."""
    import torch

    made = _made(_net(2), "LearnedGaussianDiffusion", objective="pred_x0")
    x = torch.full((1, 1, 4, 4), 0.5)
    x_0 = made.p_mean_variance(x=x, t=torch.tensor([50]), clip_denoised=False)[3]
    law = "p_mean_variance takes the output for what the objective says"
    yield numbers(law, "Ho et al. 2020, section 3.2", float(x_0.mean()), 0.0, 1e-6,
                  lambda i: "an output of 0, as x_0")  # fmt: skip


def _weighted() -> Iterable[Finding]:
    kind = _module("weighted_objective_gaussian_diffusion").WeightedObjectiveGaussianDiffusion
    _quiet(lambda: kind(_net(4), image_size=4, timesteps=T).sample(1))
    yield Finding("it runs", "", 1)


def _guided() -> tuple[Any, Any]:
    module = _module("classifier_free_guidance")
    net = module.Unet(dim=8, num_classes=3, dim_mults=(1, 2), channels=1).eval()
    return net, module.GaussianDiffusion(net, image_size=8, timesteps=T, objective="pred_noise")


def _scale_one() -> Iterable[Finding]:
    import torch

    _, made = _guided()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def wrong(batch: int) -> str | None:
        t, classes = torch.full((batch,), 50), torch.zeros(batch, dtype=torch.long)
        try:
            x_0 = made.model_predictions(x[:batch], t, classes, cond_scale=1.0).pred_x_start
            alone = [
                made.model_predictions(x[[i, i]], t[[i, i]], classes[[i, i]], 1.0).pred_x_start[0]
                for i in range(batch)
            ]
        except ValueError as error:
            return f"ValueError: {error}"
        same = torch.allclose(x_0, torch.stack(alone), atol=1e-4)
        return None if same else "samples of a batch depend on each other"

    law = "cond_scale=1 is the conditional prediction, of each sample alone"
    yield fails_for(law, "Ho & Salimans 2022, Eq. 6, w = 0", (1, 2, 3), wrong)


def _scale_three() -> Iterable[Finding]:
    import torch

    torch.manual_seed(0)
    net, _ = _guided()
    x, t, c = torch.randn(2, 1, 8, 8), torch.tensor([3, 3]), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        on, off = (net(x, t, c, cond_drop_prob=p) for p in (0.0, 1.0))
        found = net.forward_with_cond_scale(x, t, c, cond_scale=3.0)[0]
    gap = float((found - (off + 3 * (on - off))).abs().max())
    law = "guidance is off + w (on - off)"
    yield numbers(law, "Ho & Salimans 2022, Eq. 6", gap, 0.0, 1e-5,
                  lambda i: "the largest difference")  # fmt: skip
