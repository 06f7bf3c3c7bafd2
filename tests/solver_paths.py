"""Grids to run solvers on, what roundings come to on them, and every solver with its options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.levels import Level
from ddpm_core.samplers.registry import ENTRIES
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
LINEAR, COSINE = ddpm.linear(), ddpm.cosine()
few, fewer = settings(max_examples=15), settings(max_examples=6)
X, SEED = strategies.normals((3, 2)), st.integers(0, 99)


@dataclass(frozen=True)
class Path:
    """A schedule and falling times of it, as the papers see them."""

    schedule: object
    times: np.ndarray

    def __post_init__(self):
        levels = ddpm.levels_of(self.schedule, len(self.times) - 1, times=self.times)
        with np.errstate(divide="ignore"):
            lam = np.log(levels.alpha) - np.log(levels.sigma)
        clean = bool(levels.sigma[-1] == 0)
        for name, value in {
            "n": len(self.times) - 1,
            "t": [Level(*map(float, levels.take(i))) for i in range(len(self.times))],
            "a": levels.alpha,
            "s": levels.sigma,
            "k": levels.sigma / levels.alpha,
            "lam": lam,
            "clean": clean,
            "noisy": range(len(self.times) - 1 - clean),  # steps that end in noise
        }.items():
            object.__setattr__(self, name, value)

    def build(self, solver, **options) -> ddpm.Sampler:
        return solver(self.schedule, self.n, times=self.times, **options)

    def at(self, lam) -> Level:
        """The level of a λ = log(α / σ)."""
        return self.schedule.at(float(max(2 * lam, self.schedule(self.schedule.ends[1]).logsnr)))

    def end(self, denoise, x):
        """The step into clean data: x_0 as it is read, in every solver."""
        return denoise(x, self.t[self.n - 1]) if self.clean else x


SCHEDULES = st.builds(ddpm.VP) | st.sampled_from([LINEAR, COSINE]) | strategies.discrete_schedules()


@st.composite
def paths(draw, schedules=SCHEDULES, clean=(False, True), least=2):
    """Up to 7 steps whose sizes in log-SNR are within a factor of 4, and maybe one to clean data.

    Weights of multistep methods are then of order 1, and a difference of log-SNR over a step keeps
    all but a few bits.
    """
    schedule = draw(schedules)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gaps = rng.uniform(0.3, 1.2, draw(st.integers(least, 7)))
    noisiest = schedule(schedule.ends[1])
    top = max(noisiest.logsnr, -24.0) + rng.integers(0, 2) * rng.uniform(0, 2)
    times = np.array(schedule.at(top + np.append(0.0, np.cumsum(gaps))).time)
    times[0] = min(times[0], noisiest.time)  # the inverse rounds
    return Path(schedule, np.append(times, 0.0) if draw(st.sampled_from(clean)) else times)


def curved(x, t):
    """A nonlinear denoiser within [-1, 1], of slopes within [0, 1], that looks at the level."""
    return np.tanh(x + t.logsnr / 8)


def noise_of(denoise):
    """eps = (x_t - α x_0) / σ."""
    return lambda x, t: (x - t.alpha * denoise(x, t)) / t.sigma


def draws(seed: int):
    """Noise that is a function of (row, shape)."""
    return lambda row, shape: np.random.default_rng((seed, row)).standard_normal(shape)


def lost(sampler: ddpm.Sampler, x: float = 6.0) -> float:
    """EPS of each term of each row, carried to the end by the sampler itself, with `curved`.

    x: bounds |x_T| and every |z|
    """

    def fresh(point: float, anchor: float) -> np.ndarray:
        """What the points make of a disturbance of each row."""
        columns = sampler.point.copy(), sampler.anchor.copy()
        columns[0][:, -1], columns[1][:, -1] = point, anchor
        return np.abs(replace(sampler, point=columns[0], anchor=columns[1]).unroll().z)

    u, n = sampler.unroll(), sampler.nfe
    y = np.abs(u.y)
    size = (np.abs(u.x) * x + y.sum(axis=1) + np.abs(u.z).sum(axis=1) * x).max()
    read = np.abs(sampler.read) @ [size, 1.0]

    def local(columns: np.ndarray) -> np.ndarray:
        """The sizes of each row's terms."""
        on_x, on_anchor, *on_m, on_z = np.abs(columns).T
        total = (on_x + on_anchor) * size + on_z * x
        for j, on in enumerate(on_m):
            total[j:] += on[j:] * read[: max(n - j, 0)]
        return total

    own = fresh(1, 0) @ local(sampler.point) + fresh(0, 1) @ local(sampler.anchor)
    error = np.zeros(n + 1)
    for i in range(1, n + 1):
        error[i] = own[i] + y[i, :i] @ error[:i]  # a reading is at most as wrong as its point
    return EPS * error[n]


#: What a coefficient may be off by, in EPS: a step of λ, of 0.15 at least, is a difference of
#: numbers up to 16, and so is the paper's: 2 * 16 / 0.15 < 2^8.
OFF = 2.0**8


def beta_of(bar_t, rest_t, bar_s, rest_s):
    """β = 1 - ᾱ_t / ᾱ_s, from ᾱ or from 1 - ᾱ, whichever is smaller and cancels less."""
    return 1 - bar_t / bar_s if bar_t < 0.5 else (rest_t - rest_s) / bar_s


def check_same(a: samplers.Unrolled, b: samplers.Unrolled, atol: float):
    """x, y and z, and where the network looks: a level's log-SNR, which its time determines."""
    clean = np.isinf(a.levels.logsnr)
    np.testing.assert_array_equal(clean, np.isinf(b.levels.logsnr))
    mine, theirs = a.levels.logsnr[~clean], b.levels.logsnr[~clean]
    assert np.all(np.abs(mine - theirs) <= OFF * EPS * (1 + np.abs(mine)))
    for name in ("x", "y", "z"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=atol)


#: Every solver with its default options, and with others.
SOLVERS = {each.name: each.solver for each in ENTRIES if each.from_noise} | {
    "ancestral large": partial(ddpm.ancestral, variance=ddpm.large),
    "ddim eta=0.5": partial(ddpm.ddim, eta=0.5),
    "lms 1": partial(samplers.lms, order=1),
    "lms 2": partial(samplers.lms, order=2),
    "lms 3": partial(samplers.lms, order=3),
    "plms 2": partial(samplers.plms, order=2),
    "ipndm 2": partial(samplers.ipndm, order=2),
    "ipndm 3": partial(samplers.ipndm, order=3),
    "unipc_2 bh1": partial(ddpm.unipc_2, b="bh1"),
    "unipc_3 predictor": partial(samplers.unipc_3, corrector=False),
    "sa_solver 0": partial(samplers.sa_solver, stochasticity=0.0),
    "sa_solver 0.5 2 1": partial(samplers.sa_solver, stochasticity=0.5, predictor=2, corrector=1),
    "er_sde 1": partial(samplers.er_sde, order=1),
    "er_sde 2": partial(samplers.er_sde, order=2),
    "restart twice": partial(samplers.restart, repeats=2),
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@st.composite
def uneven(draw):
    """Any times of a schedule, down to clean data."""
    schedule = draw(SCHEDULES)
    times = draw(strategies.grids(schedule, 8).filter(lambda times: len(times) > 2))
    return Path(schedule, times)


def excess(g, variance) -> np.ndarray:
    """Of the variance over σ², where each step adds variance - β̃ (Ho et al. 2020, Eq. 7)."""
    more = np.zeros(g.n + 1)
    for i in g.noisy:
        t, s = g.t[i], g.t[i + 1]
        more[i + 1] = ((t.alpha / s.alpha) * (s.sigma / t.sigma) ** 2) ** 2 * more[i]
        beta = beta_of(t.alpha**2, t.sigma**2, s.alpha**2, s.sigma**2)
        more[i + 1] += variance(t, s) - s.sigma**2 / t.sigma**2 * beta
    return more


def check_marginals(sampler, more=0.0):
    """With x_0 = 1 known, each point is N(α, σ²) at its level, from the first's."""
    u, levels = sampler.unroll(), sampler.levels
    mean = u.x * levels.alpha[0] + u.y.sum(axis=1)
    var = (u.x * levels.sigma[0]) ** 2 + (u.z**2).sum(axis=1)
    atol = OFF * lost(sampler, 1.0)
    np.testing.assert_allclose(mean, levels.alpha, rtol=0, atol=atol)
    size = np.abs(u.x) + np.abs(u.z).sum(axis=1)
    assert np.all(np.abs(var - levels.sigma**2 - more) <= 2 * atol * size)


def variance_of(c):
    """Of q(x_s | x_t) for data N(0, c)."""

    def exact(t, s):
        V_t, V_s = (u.alpha**2 * c + u.sigma**2 for u in (t, s))
        return ddpm.levels.tau(t, s) * t.sigma**2 * V_s / V_t

    return exact
