"""score_sde_pytorch, of a checkout: its SDEs, samplers, losses and bits per dimension."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.parameterisations import eps as eps_of
from ddpm_core.parameterisations import x0
from ddpm_core.process import large
from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.samplers.unrolled import from_loop
from ddpm_core.schedules import from_betas
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import (
    ANY,
    LAST,
    MEAN,
    numbers,
    on_levels,
    process_laws,
    same,
    table_laws,
)
from ddpm_core.testing.foreign.torch_loops import as_array, as_tensor, level_of_ratio, noise_from
from ddpm_core.testing.report import Finding

NOTES = {
    "labels": Note(
        "defect",
        "A discrete VP model is told times between those of its training",
        "`get_pc_sampler` visits T .. eps, and `get_score_fn` tells t (N - 1): 1.998 for the "
        "index 1, of which β and the scale of the score are. `get_ddpm_loss_fn` trains on whole "
        "numbers alone. Rounding would give 2 there, and one too many in all of the second half.",
        "a model that takes `labels.long()`",
        "yang-song/score_sde_pytorch #2 (open): its author agrees that rounding would be better, "
        "expects little change, and keeps the times for likelihoods, which take the other branch",
        "score-sde-labels",
    ),
    "flow": Note(
        "defect",
        "`euler_maruyama` does not run with `probability_flow=True`",
        "`RSDE.sde` then returns the number 0 for the diffusion, of which `update_fn` takes "
        "`[:, None, None, None]`.",
        "`reverse_diffusion`",
        report="score-sde-probability-flow",
    ),
    "sub-vp": Note(
        "defect",
        "The Langevin corrector does not run for the sub-VP SDE, which it accepts",
        "It reads `sde.alphas`, which `subVPSDE` has not.",
        "`corrector=none`",
        "yang-song/score_sde_pytorch #8 (closed by its author, unanswered)",
    ),
    "inpaint": Note(
        "defect",
        "Inpainting returns the noise of its last step, in spite of `denoise=True`",
        "`x_mean = x * (1 - mask) + ..` takes x, which has the noise, and not the mean that the "
        "predictor returned. The colorizer has the same line.",
        "denoise once more, at eps",
        report="score-sde-inpainting",
    ),
    "euler": Note(
        "difference",
        "Steps of Euler's kind are not exact for a known x_0",
        "`euler_maruyama` and `reverse_diffusion` discretise the SDE, as Song et al. 2021 has "
        "it, and `euler_maruyama` takes steps of 1 / N where its times are (1 - eps) / (N - 1) "
        "apart. `ancestral_sampling` is exact.",
    ),
}
N = 100
_SAME: Callable[[Any], Any] = lambda x: x
_NORMAL: Callable[[Any, Any], Any] = lambda x, t: -x  # the score of N(0, I)


def subjects() -> list[Subject]:
    lib = importlib.import_module("sde_lib")
    euler = {MEAN: "euler", "x_0 known: the variance": "euler", LAST: "euler"}
    table = [Subject(f"{kind}SDE", partial(_marginal, lib, kind)) for kind in ("VP", "VE", "subVP")]
    for kind in ("VP", "VE"):
        name = "ancestral, variance=large" if kind == "VP" else "ancestral"
        table.append(
            Subject(f"{kind}, ancestral_sampling", partial(_ancestral, lib, kind, name), {}, name)
        )
        table.append(
            Subject(f"{kind}, reverse_diffusion",
                    lambda kind=kind: table_laws(_unrolled(lib, kind)), euler)
        )  # fmt: skip
    predict = partial(_update, "euler_maruyama")
    return [
        *table,
        Subject("VP, euler_maruyama", partial(predict, lib.VPSDE(N=N))),
        Subject("VP, euler_maruyama, probability_flow", partial(predict, lib.VPSDE(N=N), True),
                {"it runs": "flow"}),
        Subject("VP, langevin", partial(_update, "langevin", lib.VPSDE(N=N))),
        Subject("subVP, langevin", partial(_update, "langevin", lib.subVPSDE(N=N)),
                {"it runs": "sub-vp"}),
        Subject("get_score_fn, VP, not continuous", partial(_labels, lib), {"": "labels"}),
        Subject("losses", partial(_losses, lib)),
        Subject("get_likelihood_fn", partial(_bits, lib)),
        Subject("get_pc_inpainter", partial(_inpaint, lib), {"": "inpaint"}),
    ]  # fmt: skip


def _in_0_1(x: Any) -> Any:
    return (x + 1) / 2


def _first(x: Any, shape: Any) -> Any:
    return x


class _Net:
    """A network that is a function (x, labels)."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def eval(self) -> None: ...

    def __call__(self, x: Any, labels: Any) -> Any:
        return self.call(x, labels)


def _marginal(lib: Any, kind: str) -> Iterable[Finding]:
    import torch

    t = np.linspace(0.05, 1, 20)
    made = getattr(lib, f"{kind}SDE")()
    one = torch.ones(len(t), 1, 1, 1, dtype=torch.float64)

    def scales(times: Any) -> tuple[Any, Any]:
        mean, std = made.marginal_prob(one, torch.tensor(times))
        return mean.reshape(-1).numpy(), std.numpy()

    abar = np.exp(-0.1 * t - 19.9 * t**2 / 2)
    wanted = {
        "VP": (np.sqrt(abar), np.sqrt(1 - abar)),
        "subVP": (np.sqrt(abar), 1 - abar),
        "VE": (np.ones_like(t), 0.01 * 5000**t),
    }[kind]
    drift, g = (np.asarray(value).reshape(-1) for value in made.sde(one, torch.tensor(t)))
    yield from process_laws(scales, "Song et al. 2021b, Eq. 29", t, wanted, (drift, g**2))


def _unrolled(lib: Any, kind: str, predictor: str = "reverse_diffusion") -> Unrolled:
    """Its loop, of the network that its loss for discrete times trains."""
    import torch

    sampling = importlib.import_module("sampling")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        made = getattr(lib, f"{kind}SDE")(N=N)
        levels = _levels(made)

        def index(labels: Any) -> int:
            label = float(labels.reshape(-1)[0])
            return int(label) if kind == "VP" else N - 1 - round(label)

        def level_of(labels: Any) -> Level:
            return levels.take(index(labels) + 1)

        def run(network: Any, x: Any, draw: Any) -> Any:
            def ask(x: Any, labels: Any) -> Any:
                y = network(x, labels)
                return y if kind == "VP" else (y - x) / made.discrete_sigmas[index(labels)] ** 2

            made.prior_sampling = partial(_first, x)
            loop = sampling.get_pc_sampler(
                made, x.shape, sampling.get_predictor(predictor), None, _SAME, 0.0,
                eps=1e-3 if kind == "VP" else 1e-5, device="cpu",
            )  # fmt: skip
            with noise_from(draw):
                return loop(_Net(ask))[0]

        return from_loop(
            run, level_of, levels.take(0),
            eps_of if kind == "VP" else x0,
            scale=(lambda t: 1.0) if kind == "VP" else lambda t: 1 / t.alpha,
            asarray=as_tensor, to_numpy=as_array,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(dtype)


def _levels(made: Any) -> Level:
    if hasattr(made, "discrete_betas"):
        return from_betas(made.discrete_betas.numpy())(np.arange(N + 1.0))
    return level_of_ratio(np.append(0.0, made.discrete_sigmas.numpy()), np.arange(N + 1.0))


def _ancestral(lib: Any, kind: str, name: str) -> Iterable[Finding]:
    u = _unrolled(lib, kind, "ancestral_sampling")
    options = {"variance": large} if kind == "VP" else {}
    yield same(u, on_levels(ANY, by_name("ancestral"), u.levels, **options), name, allowed=1e-7)
    yield from table_laws(u)


def _update(name: str, made: Any, flow: bool = False) -> Iterable[Finding]:
    """One step, of the exact score of N(0, 1)."""
    import torch

    sampling = importlib.import_module("sampling")
    x, t = torch.ones(4, 1, 2, 2), torch.full((4,), 0.5)
    if name == "langevin":
        step = sampling.get_corrector(name)(made, _NORMAL, 0.16, 1)
    else:
        step = sampling.get_predictor(name)(made, _NORMAL, flow)
    step.update_fn(x, t)
    yield Finding("it runs", "", 1)


def _labels(lib: Any) -> Iterable[Finding]:
    import torch

    made, told = lib.VPSDE(), list[float]()

    def network(x: Any, labels: Any) -> Any:
        told.append(float(labels[0]))
        return x

    score = importlib.import_module("models.utils").get_score_fn(made, _Net(network))
    for t in torch.linspace(1, 1e-3, made.N, dtype=torch.float64):
        score(torch.zeros(1, 1, 1, 1), t.reshape(1))
    yield numbers("the network is told the index of its input", "Ho et al. 2020, section 4", told,
                  np.floor(told), 0.01, lambda i: f"call {i} of {made.N}")  # fmt: skip


def _losses(lib: Any) -> Iterable[Finding]:
    """Of the exact network of data that are 0."""
    import torch

    losses = importlib.import_module("losses")
    batch = torch.zeros(64, 1, 2, 2)
    for kind, name in (("VP", "sde"), ("subVP", "sde"), ("VE", "sde"), ("VP", "ddpm"),
                       ("VE", "smld")):  # fmt: skip
        made = getattr(lib, f"{kind}SDE")()

        def exact(x: Any, labels: Any, made: Any = made, kind: str = kind, name: str = name) -> Any:
            if name == "ddpm":
                return x / made.sqrt_1m_alphas_cumprod[labels][:, None, None, None]
            if name == "smld":
                return -x / made.discrete_sigmas.flip(0)[labels][:, None, None, None] ** 2
            if kind == "VE":
                return -x / labels[:, None, None, None] ** 2
            return x / made.marginal_prob(x, labels / 999)[1][:, None, None, None]

        options = {"likelihood_weighting": False} if name == "sde" else {}
        loss = getattr(losses, f"get_{name}_loss_fn")(made, False, **options)
        law = f"the exact network has no error: get_{name}_loss_fn, {kind}"
        yield numbers(law, "Song et al. 2021b, Eq. 7", loss(_Net(exact), batch), 0.0, 1e-4)


def _bits(lib: Any) -> Iterable[Finding]:
    """Of N(0, 1/4), by the exact score, where one probe of the trace is exact too."""
    import torch

    likelihood = importlib.import_module("likelihood")
    for kind in ("VP", "subVP", "VE"):
        made = getattr(lib, f"{kind}SDE")()

        def exact(x: Any, labels: Any, made: Any = made, kind: str = kind) -> Any:
            if kind == "VE":
                return -x / (0.25 + labels[:, None, None, None] ** 2)
            alpha, std = made.marginal_prob(torch.ones_like(x), labels / 999)
            std = std[:, None, None, None]
            return x * std / (0.25 * alpha**2 + std**2)

        x = torch.full((2, 1, 2, 2), 0.5)
        found, *_ = likelihood.get_likelihood_fn(made, _in_0_1)(_Net(exact), x)
        nats = 0.5 * (math.log(2 * math.pi * 0.25) + 0.25 / 0.25)
        law = f"bits per dimension of N(0, 1/4): {kind}"
        wanted = nats / math.log(2) + 7
        yield numbers(law, "Song et al. 2021b, Eq. 39", found, wanted, 5e-3)


def _inpaint(lib: Any) -> Iterable[Finding]:
    """Of data that are 0, whose exact score makes every mean 0 in the last step."""
    import torch

    sampling = importlib.import_module("sampling")
    inpainting = importlib.import_module("controllable_generation")
    made = lib.VPSDE(N=N)

    def exact(x: Any, labels: Any) -> Any:
        return x / made.sqrt_1m_alphas_cumprod[labels.long()][:, None, None, None]

    loop = inpainting.get_pc_inpainter(
        made, sampling.get_predictor("ancestral_sampling"), None, _SAME, 0.0, eps=1e-3
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = loop(_Net(exact), torch.zeros(64, 1, 4, 4), torch.zeros(64, 1, 4, 4))
    yield numbers("the unknown part has no noise", "Ho et al. 2020, Algorithm 2", x.std(), 0.0,
                  1e-3, lambda i: "its standard deviation, of data that are 0")  # fmt: skip
