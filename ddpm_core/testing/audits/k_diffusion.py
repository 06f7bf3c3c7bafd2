"""k-diffusion: its loops, its sigmas and its discrete schedules."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.samplers import Unrolled, by_name
from ddpm_core.schedules import VP, linear
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.solvers import ANY, LAST, named, numbers, solver_laws
from ddpm_core.testing.foreign.kdiffusion import unrolled
from ddpm_core.testing.foreign.torch_loops import level_of_ratio
from ddpm_core.testing.report import Finding

NOTES = {
    "third-order": Note(
        "defect",
        "`sample_dpmpp_3m_sde` is of order 2 without noise",
        "`d2` is the second divided difference times h², half of h² times the second derivative, "
        "and `phi_3` is the weight of the whole: the integral of e^λ (λ - λ_t)² / 2 over a step. "
        "With `eta=0`, where the solver is the multistep DPM-Solver++ of order 3, twice `phi_3` "
        "gives order 3. With `eta=1` the order is 2 either way, since the readings are at noisy "
        "points. (Its second step, of two readings, also differs from the table here, by a "
        "choice: it integrates the line exactly.)",
        "`sample_dpmpp_2m_sde` has the same order",
        report="k-diffusion-third-order",
    ),
    "one-step": Note(
        "defect",
        "One step into clean data does not run",
        "`sample_dpmpp_2m_sde` and `sample_dpmpp_3m_sde` read `h` where no step has set it.",
        "two steps",
        "crowsonkb/k-diffusion #72, #88 and PR #80 (open), PR #104 (closed)",
    ),
    "extrapolates": Note(
        "difference",
        "The last step of LMS into clean data",
        "It extrapolates the derivative from four readings; here `lms` takes x_0 as it is read.",
    ),
}


def subjects() -> list[Subject]:
    external: Any = importlib.import_module("k_diffusion.external")
    k: Any = importlib.import_module("k_diffusion.sampling")

    def loop(name: str, **options: Any) -> Callable[[Level], Unrolled]:
        def on(levels: Level) -> Unrolled:
            return unrolled(getattr(k, name), levels.sigma / levels.alpha, **options)

        return on

    sigmas = np.append(np.geomspace(80, 0.02, 13), 0.0)
    grid = level_of_ratio(sigmas, sigmas)
    two = np.r_[0:25:2, 25]  # where a step of two calls begins, the last being Euler's
    table: list[Subject] = []

    def add(name: str, ours: str = "", notes: Any = None, with_: Any = None, **laws: Any) -> None:
        options = laws.pop("options", {})
        label = ", ".join([name, *(f"{key}={value}" for key, value in options.items())])
        ours_with: dict[str, Any] = with_ or {}
        solver = partial(by_name(ours), **ours_with) if ours else None
        said = ", ".join([ours, *(f"{key}={named(value)}" for key, value in ours_with.items())])
        findings = partial(solver_laws, loop(name, **options), grid, solver, said, **laws)
        table.append(Subject(label, findings, notes or {}, said))

    add("sample_euler", "euler", p=1)
    add("sample_euler_ancestral", "ancestral", p=1)
    for eta in (0.5,):
        options = {"eta": eta}
        add("sample_euler_ancestral", "ddim", options=options, with_=options, p=1)
    add("sample_heun", "heun", p=2, at=two)
    add("sample_dpm_2", "midpoint", p=2, at=two)
    add("sample_lms", "lms", {"it is": "extrapolates", LAST: "extrapolates"}, p=3, allowed=1e-6)
    add("sample_dpmpp_2s_ancestral", "dpmpp_2s", options={"eta": 0.0}, p=2, at=two)
    add("sample_dpmpp_sde", "dpmpp_2s", options={"eta": 0.0}, p=2, at=two)
    add("sample_dpmpp_2m", "dpmpp_2m", p=2)
    add("sample_dpmpp_2m_sde", "sde_dpmpp_2m", p=2)
    add("sample_dpmpp_2m_sde", "dpmpp_2m", options={"eta": 0.0}, p=2)
    add("sample_dpmpp_2m_sde", options={"solver_type": "heun"}, p=2)
    third = {"it is": "third-order", "its order": "third-order"}
    add("sample_dpmpp_3m_sde", "sde_dpmpp_3m", third, p=2)
    add("sample_dpmpp_3m_sde", "dpmpp_3m", third, options={"eta": 0.0}, p=3)
    add("sample_dpm_2_ancestral", p=2)
    add("sample_dpmpp_2s_ancestral", p=2)
    add("sample_dpmpp_sde", p=2)
    for name in ("sample_heun", "sample_euler"):
        table.append(Subject(f"{name}, s_churn=5", partial(_churn, getattr(k, name), name)))

    def fast(model: Any, x: Any, s: Any, n: int) -> Any:
        return k.sample_dpm_fast(model, x, float(s[-1]), float(s[0]), n, disable=True)

    for n in (24, 25, 26):
        table.append(Subject(f"sample_dpm_fast, n={n}", partial(_fast, fast, n)))
    for name in ("sample_dpmpp_2m", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde", "sample_heun"):
        table.append(
            Subject(
                f"{name}, one step",
                lambda name=name: [_one_step(loop(name))],
                {"it runs": "one-step"},
            )
        )
    return [*table, *_sigmas(k), *_discrete(external)]


def _churn(loop: Any, name: str) -> Iterable[Finding]:
    """Karras et al. 2022, Algorithm 2: noise, then a call at the raised level, then a step."""
    k = np.geomspace(80, 0.02, 13)
    u = unrolled(loop, k, s_churn=5.0, s_tmax=50.0)
    raised = np.where(k <= 50, np.minimum(5.0 / 12, 2**0.5 - 1) + 1, 1.0) * k
    calls = u.levels.time[: u.nfe : 2 if "heun" in name else 1]
    yield numbers(
        "each step calls the network at the raised sigma", "Karras et al. 2022, Algorithm 2",
        calls, raised[:-1], 1e-12, lambda i: f"step {i}",
    )  # fmt: skip
    spread = np.sqrt((u.levels.sigma[0] * u.x) ** 2 + (u.z**2).sum(axis=1))
    yield numbers(
        "of one point of data, the standard deviation at each level is sigma",
        "Karras et al. 2022, Algorithm 2, line 6",
        spread, u.levels.sigma, 1e-9, lambda i: f"point {i}",
    )  # fmt: skip


def _fast(loop: Any, n: int) -> Iterable[Finding]:
    u = unrolled(loop, [80.0, 0.02], n=n)
    yield numbers("n is the number of network calls", "its documentation", u.nfe, n, 0)
    mean = u.levels.alpha[0] * u.x + u.y.sum(axis=1)
    yield numbers(
        "of one point of data, the mean at each level is alpha", "Song et al. 2021, Eq. 7",
        mean, u.levels.alpha, 1e-9, lambda i: f"point {i}",
    )  # fmt: skip


def _one_step(on: Callable[[Level], Unrolled]) -> Finding:
    u = on(level_of_ratio(np.array([80.0, 0.0]), np.zeros(2)))
    return numbers("it runs, and returns x_0", "every solver's last step", u.y[1, 0], 1.0, 1e-12)


def _sigmas(k: Any) -> Iterable[Subject]:
    def karras() -> list[Finding]:
        found = np.asarray(k.get_sigmas_karras(10, 0.02, 80.0), dtype=np.float64)
        i = np.arange(10) / 9
        wanted = np.append((80 ** (1 / 7) + i * (0.02 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0)
        where: Callable[[int], str] = lambda j: f"sigma {j}"
        return [numbers("the sigmas", "Karras et al. 2022, Eq. 5", found, wanted, 1e-5 * 80, where)]

    def vp() -> list[Finding]:
        t = np.linspace(1, 1e-3, 10)
        levels = VP(0.1, 20.0)(t)
        found = np.asarray(k.get_sigmas_vp(10), dtype=np.float64)[:-1]
        wanted = levels.sigma / levels.alpha
        return [
            numbers("sigma is that of the VP process", "Song et al. 2021b, Eq. 33", found, wanted,
                    1e-3 * wanted, lambda j: f"t = {t[j]:g}")
        ]  # fmt: skip

    yield Subject("get_sigmas_karras", karras)
    yield Subject("get_sigmas_vp", vp)


def _discrete(external: Any) -> Iterable[Subject]:
    import torch

    schedule = linear()
    levels = schedule(np.arange(1, 1001.0))

    def labels() -> list[Finding]:
        abar = torch.tensor(levels.alpha**2)
        made = external.DiscreteEpsDDPMDenoiser(None, abar, False)
        k = np.append(np.asarray(made.get_sigmas(1000)), [])[:-1]
        wanted = (levels.sigma / levels.alpha)[::-1]
        back = np.asarray(made.sigma_to_t(torch.tensor(wanted.copy())))
        where: Callable[[int], str] = lambda i: f"call {i} of 1000"
        return [
            numbers("get_sigmas(T) are all training levels", "Ho et al. 2020, Eq. 4", k, wanted,
                    1e-9 * wanted, where),
            numbers("sigma_to_t inverts t_to_sigma", "Ho et al. 2020, Eq. 4", back,
                    np.arange(1000)[::-1], 1e-6, where),
        ]  # fmt: skip

    def denoises(kind: Any, v: bool) -> Callable[[], list[Finding]]:
        def found() -> list[Finding]:
            """Of the exact denoiser of N(0, 1/4), x_0 = x / (1 + 4 σ²) in x with α = 1."""
            k = np.geomspace(0.01, 80, 9)
            t = ANY.at(-2 * np.log(k))

            def network(x: Any, label: Any) -> Any:
                x_0 = 0.25 / (0.25 + torch.tensor(k) ** 2) * x_1
                eps = (x_1 - x_0) / torch.tensor(k)
                alpha, sigma = torch.tensor(t.alpha), torch.tensor(t.sigma)
                return alpha * eps - sigma * x_0 if v else eps

            x_1 = torch.ones(9, dtype=torch.float64)
            made = kind(network)
            x_0 = np.asarray(made(x_1, torch.tensor(k)))
            law = "a network of the exact target gives the exact x_0"
            source = "Salimans & Ho 2022, appendix D" if v else "Ho et al. 2020, Eq. 9"
            return [numbers(law, source, x_0, 0.25 / (0.25 + k**2), 1e-6,
                            lambda i: f"sigma = {k[i]:.3g}")]  # fmt: skip

        return found

    yield Subject("DiscreteSchedule", labels)
    abar = torch.tensor(levels.alpha**2)
    discrete = partial(external.DiscreteEpsDDPMDenoiser, alphas_cumprod=abar, quantize=False)
    yield Subject("DiscreteEpsDDPMDenoiser", denoises(discrete, False))
    yield Subject("VDenoiser", denoises(external.VDenoiser, True))
