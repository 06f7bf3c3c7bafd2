"""Every solver against its paper's own form, its other names, and what all tables have in common.

The papers' loops are written in the paper's coordinates: x or x / α, λ = log(α / σ) or k = σ / α.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy.integrate import quad
from scipy.linalg import sqrtm

import ddpm_core as ddpm
from ddpm_core import grids, samplers
from ddpm_core.levels import Level
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
LINEAR, COSINE = ddpm.linear(), ddpm.cosine()
few, fewer = settings(max_examples=15), settings(max_examples=6)


# Paths, and what roundings come to on them. -----------------------------------------------------


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


# Papers' loops: (denoise, path, x, noise) -> where it ends. -------------------------------------


def beta_of(bar_t, rest_t, bar_s, rest_s):
    """β = 1 - ᾱ_t / ᾱ_s, from ᾱ or from 1 - ᾱ, whichever is smaller and cancels less."""
    return 1 - bar_t / bar_s if bar_t < 0.5 else (rest_t - rest_s) / bar_s


def song_ddim(D, g, x, z, eta=0.0):
    """Song et al. 2021, Eqs. 12 and 16, in their ᾱ."""
    bar, rest = g.a**2, g.s**2  # ᾱ and 1 - ᾱ
    for i in g.noisy:
        beta = beta_of(bar[i], rest[i], bar[i + 1], rest[i + 1])
        std = eta * math.sqrt(rest[i + 1] / rest[i] * beta)
        e = noise_of(D)(x, g.t[i])
        x_0 = (x - math.sqrt(rest[i]) * e) / math.sqrt(bar[i])
        e = math.sqrt(max(rest[i + 1] - std**2, 0)) * e
        x = math.sqrt(bar[i + 1]) * x_0 + e + std * z(i + 1, x.shape)
    return g.end(D, x)


def ho_ancestral(D, g, x, z):
    """Ho et al. 2020, Eq. 7, with β = 1 - ᾱ_t / ᾱ_s, and β̃ (its section 3.2)."""
    bar, rest = g.a**2, g.s**2
    for i in g.noisy:
        t, s = i, i + 1
        beta = beta_of(bar[t], rest[t], bar[s], rest[s])
        mean = math.sqrt(bar[s]) * beta / rest[t] * D(x, g.t[t])
        mean = mean + math.sqrt(bar[t] / bar[s]) * rest[s] / rest[t] * x
        x = mean + math.sqrt(rest[s] / rest[t] * beta) * z(i + 1, x.shape)
    return g.end(D, x)


def kdiffusion_ancestral(D, g, x, z):
    """Euler down to σ_down, and noise of σ_up (k-diffusion, `sample_euler_ancestral`)."""
    denoise, y = k_denoise(D, g), x / g.a[0]
    for i in g.noisy:
        k, to = g.k[i], g.k[i + 1]
        up = math.sqrt(to**2 * (k**2 - to**2) / k**2)
        down = math.sqrt(to**2 - up**2)
        y = y + (down - k) * (y - denoise(y, k)) / k + up * z(i + 1, x.shape)
    return g.end(D, g.a[len(g.noisy)] * y)


def euler(D, g, x, z):
    """d(x / α) / dk = eps (Song et al. 2021, Eq. 14)."""
    y = x / g.a[0]
    for i in g.noisy:
        y = y + (g.k[i + 1] - g.k[i]) * noise_of(D)(g.a[i] * y, g.t[i])
    return g.end(D, g.a[len(g.noisy)] * y)


def k_denoise(D, g):
    """D(x; σ) of Karras et al. 2022: their x is our x / α, their σ our k."""

    def denoise(y, k):
        t = g.at(-math.log(k))
        return D(t.alpha * y, t)

    return denoise


def heun_step(denoise, y, k, to):
    """Karras et al. 2022, Algorithm 1, lines 4-8, where t is σ."""
    d = (y - denoise(y, k)) / k
    trial = y + (to - k) * d
    return y + (to - k) * (d / 2 + (trial - denoise(trial, to)) / to / 2)


def karras_1(D, g, x, z):
    """Karras et al. 2022, Algorithm 1."""
    denoise, y = k_denoise(D, g), x / g.a[0]
    for i in g.noisy:
        y = heun_step(denoise, y, g.k[i], g.k[i + 1])
    return g.end(D, g.a[len(g.noisy)] * y)


def karras_2(D, g, x, z, churn=3.0, s_min=0.0, s_max=math.inf, s_noise=1.0):
    """Karras et al. 2022, Algorithm 2: noise before each step, ours in the row before it.

    There is no row before the first step, and so no noise.
    """
    denoise = k_denoise(D, g)
    noisiest = g.schedule(g.schedule.ends[1])
    most = noisiest.sigma / noisiest.alpha
    for i in range(g.n):
        there = i > 0 and s_min <= g.k[i] <= s_max
        gamma = min(churn / g.n, math.sqrt(2) - 1) if there else 0.0
        k = min(g.k[i] * (1 + gamma), most)
        if i == 0:
            y = x / g.a[0]
        else:
            y = y + math.sqrt(max(k**2 - g.k[i] ** 2, 0)) * s_noise * z(2 * i, x.shape)
        if g.k[i + 1] == 0:
            return denoise(y, k)
        y = heun_step(denoise, y, k, g.k[i + 1])
    return g.a[-1] * y


def xu_restart(D, g, x, z, repeats=1, interval=None):
    """Restart (Xu et al. 2023): noise from k_j back to k_i, and the steps between them again."""
    first, last = (max(0, g.n - 3), g.n - 1) if interval is None else interval
    denoise, y, calls = k_denoise(D, g), x / g.a[0], 0
    for i in g.noisy:
        y, calls = heun_step(denoise, y, g.k[i], g.k[i + 1]), calls + 2
        if i + 1 == last:
            for _ in range(repeats):
                y = y + math.sqrt(g.k[first] ** 2 - g.k[last] ** 2) * z(calls, x.shape)
                for j in range(first, last):
                    y, calls = heun_step(denoise, y, g.k[j], g.k[j + 1]), calls + 2
    return g.end(D, g.a[len(g.noisy)] * y)


def kdiffusion_midpoint(D, g, x, z):
    """The midpoint method over k, its middle at log k (k-diffusion, `sample_dpm_2`)."""
    denoise, y = k_denoise(D, g), x / g.a[0]
    for i in g.noisy:
        middle = math.sqrt(g.k[i] * g.k[i + 1])
        trial = y + (middle - g.k[i]) * (y - denoise(y, g.k[i])) / g.k[i]
        y = y + (g.k[i + 1] - g.k[i]) * (trial - denoise(trial, middle)) / middle
    return g.end(D, g.a[len(g.noisy)] * y)


def lu_single_2(D, g, x, z, r=0.5):
    """DPM-Solver-2 (Lu et al. 2022a, Algorithm 4): any r_1, of which 1/2 is Algorithm 1."""
    eps = noise_of(D)
    for i in g.noisy:
        t, s, h = g.t[i], g.t[i + 1], g.lam[i + 1] - g.lam[i]
        m, e = g.at(g.lam[i] + r * h), eps(x, g.t[i])
        u = m.alpha / t.alpha * x - m.sigma * math.expm1(r * h) * e
        x = s.alpha / t.alpha * x - s.sigma * math.expm1(h) * (e + (eps(u, m) - e) / (2 * r))
    return g.end(D, x)


def lu_single_3(D, g, x, z):
    """DPM-Solver-3 (Lu et al. 2022a, Algorithm 2)."""
    eps, (r1, r2) = noise_of(D), (1 / 3, 2 / 3)
    for i in g.noisy:
        t, s, h = g.t[i], g.t[i + 1], g.lam[i + 1] - g.lam[i]
        one, two = (g.at(g.lam[i] + r * h) for r in (r1, r2))
        e = eps(x, t)
        u = one.alpha / t.alpha * x - one.sigma * math.expm1(r1 * h) * e
        D1 = eps(u, one) - e
        u = (
            two.alpha / t.alpha * x
            - two.sigma * math.expm1(r2 * h) * e
            - two.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * D1
        )
        D2 = eps(u, two) - e
        x = (
            s.alpha / t.alpha * x
            - s.sigma * math.expm1(h) * e
            - s.sigma / r2 * (math.expm1(h) / h - 1) * D2
        )
    return g.end(D, x)


def lu_2s(D, g, x, z, r=0.5):
    """DPM-Solver++(2S) (Lu et al. 2022b, Algorithm 1)."""
    for i in g.noisy:
        t, s, h = g.t[i], g.t[i + 1], g.lam[i + 1] - g.lam[i]
        m, x_0 = g.at(g.lam[i] + r * h), D(x, t)
        u = m.sigma / t.sigma * x - m.alpha * math.expm1(-r * h) * x_0
        mixed = (1 - 1 / (2 * r)) * x_0 + 1 / (2 * r) * D(u, m)
        x = s.sigma / t.sigma * x - s.alpha * math.expm1(-h) * mixed
    return g.end(D, x)


def differences(g, m, i, h, order):
    """D_1 and D_2, h f' and h² f'' of the parabola (Lu et al. 2022b, Appendix, D_2 corrected)."""
    if i == 0 or order == 1:
        return None, None
    r0 = (g.lam[i] - g.lam[i - 1]) / h
    D10 = (m[0] - m[1]) / r0
    if i == 1 or order == 2:
        return D10, None
    r1 = (g.lam[i - 1] - g.lam[i - 2]) / h
    D11 = (m[1] - m[2]) / r1
    return D10 + r0 / (r0 + r1) * (D10 - D11), 2 * (D10 - D11) / (r0 + r1)


def lu_multistep(D, g, x, z, order=2, half=1.0):
    """DPM-Solver++(2M) and (3M), x_0 (Lu et al. 2022b, Algorithm 2 and appendix).

    half: 1/2 for the published D_2
    """
    m = []
    for i in g.noisy:
        m, h = [D(x, g.t[i]), *m], g.lam[i + 1] - g.lam[i]
        E, (D1, D2) = math.expm1(-h), differences(g, m, i, h, order)
        step = E * m[0]
        if D2 is not None:
            step = step - (E / h + 1) * D1 + ((E + h) / h**2 - 0.5) * half * D2
        elif D1 is not None:
            step = E * (m[0] + D1 / 2)
        x = g.s[i + 1] / g.s[i] * x - g.a[i + 1] * step
    return g.end(D, x)


def lu_multistep_eps(D, g, x, z, order=2):
    """The same of eps, where the weight is e^{h - u} (Lu et al. 2022a, Eq. 3.4)."""
    m = []
    for i in g.noisy:
        m, h = [noise_of(D)(x, g.t[i]), *m], g.lam[i + 1] - g.lam[i]
        E, (D1, D2) = math.expm1(h), differences(g, m, i, h, order)
        step = E * m[0]
        if D2 is not None:
            step = step + (E / h - 1) * D1 + ((E - h) / h**2 - 0.5) * D2
        elif D1 is not None:
            step = E * (m[0] + D1 / 2)
        x = g.a[i + 1] / g.a[i] * x - g.s[i + 1] * step
    return g.end(D, x)


def lu_sde(D, g, x, z, order=2):
    """SDE-DPM-Solver++ (Lu et al. 2022b): (1), (2M), and the (3M) of k-diffusion with D_2 whole."""
    m = []
    for i in g.noisy:
        m, h = [D(x, g.t[i]), *m], g.lam[i + 1] - g.lam[i]
        D1, D2 = differences(g, m, i, h, order)
        step = -math.expm1(-2 * h) * m[0]
        if D2 is not None:
            phi_2 = math.expm1(-2 * h) / (2 * h) + 1
            step = step + phi_2 * D1 - (phi_2 / (2 * h) - 0.5) * D2
        elif D1 is not None:
            step = -math.expm1(-2 * h) * (m[0] + D1 / 2)
        x = g.s[i + 1] / g.s[i] * math.exp(-h) * x + g.a[i + 1] * step
        x = x + g.s[i + 1] * math.sqrt(-math.expm1(-2 * h)) * z(i + 1, x.shape)
    return g.end(D, x)


def zhao_unipc(D, g, x, z, order=2, b="bh2", corrector=True):
    """UniPC by R ρ = b (Zhao et al. 2023, Algorithms 5-8, data prediction)."""

    def phi(n, h):
        """φ_n(h) = ∫_0^1 e^{(1 - δ) h} δ^{n - 1} / (n - 1)! dδ."""
        f = lambda d: math.exp((1 - d) * h) * d ** (n - 1) / math.factorial(n - 1)
        return quad(f, 0, 1, epsabs=0, epsrel=1e-13)[0]

    def step(i, x, m_0, others):
        """From t_i, by the reading there and others at λ_j."""
        h = g.lam[i + 1] - g.lam[i]
        B, total = (-h if b == "bh1" else math.expm1(-h)), 0.0
        r = [(g.lam[j] - g.lam[i]) / h for j, _ in others]
        rho = [0.5]  # as in the paper, for one difference
        if len(r) > 1:
            R = np.array([np.power(r, n) for n in range(len(r))])
            rhs = [-h * math.factorial(n) * phi(n + 1, -h) / B for n in range(1, len(r) + 1)]
            rho = np.linalg.solve(R, rhs)
        for (_, m_j), r_j, rho_j in zip(others, r, rho, strict=False):
            total = total + rho_j * (m_j - m_0) / r_j
        return g.s[i + 1] / g.s[i] * x - g.a[i + 1] * (math.expm1(-h) * m_0 + B * total)

    m, corrected = {}, x
    for i in g.noisy:
        m[i] = D(x, g.t[i])
        if i > 0:
            past = [(i - 1 - j, m[i - 1 - j]) for j in range(1, min(order, i))]
            corrected = step(i - 1, corrected, m[i - 1], [*past, (i, m[i])]) if corrector else x
        past = [(i - j, m[i - j]) for j in range(1, min(order, i + 1))]
        x = step(i, corrected, m[i], past)
    return g.end(D, x)


def lagrange(nodes, j, u):
    """l_j(u) through the nodes."""
    others = [v for m, v in enumerate(nodes) if m != j]
    return math.prod((u - v) / (nodes[j] - v) for v in others)


def xue_sa(D, g, x, z, stochasticity=1.0, predictor=3, corrector=3):
    """SA-Solver (Xue et al. 2023, Algorithm 1): its integrals by quadrature, τ by step."""
    tau = np.broadcast_to(stochasticity, (g.n,))

    def readings(i, nodes, m):
        a, b, rate = g.lam[i], g.lam[i + 1], tau[i] ** 2
        total = 0.0
        for j, m_j in enumerate(m):
            f = lambda u, j=j: math.exp(rate * (u - b) + u) * (1 + rate) * lagrange(nodes, j, u)
            total = total + quad(f, a, b, epsabs=0, epsrel=1e-13)[0] * m_j
        return g.s[i + 1] * total

    m, without = [], None
    for i in g.noisy:
        m = [D(x, g.t[i]), *m]
        if corrector and i > 0:
            c = min(corrector, i) + 1
            x = without + readings(i - 1, g.lam[i::-1][:c], m[:c])
        h, p = g.lam[i + 1] - g.lam[i], min(predictor, i + 1)
        without = g.s[i + 1] / g.s[i] * math.exp(-(tau[i] ** 2) * h) * x
        std = math.sqrt(-math.expm1(-2 * tau[i] ** 2 * h))
        without = without + g.s[i + 1] * std * z(i + 1, x.shape)
        x = without + readings(i, g.lam[i::-1][:p], m[:p])
    return g.end(D, x)


def kutta_lms(D, g, x, z, order=4):
    """Adams-Bashforth over k: integrals of Lagrange's polynomials, in exact arithmetic of NumPy."""
    m, y = [], x / g.a[0]
    for i in g.noisy:
        m = [noise_of(D)(g.a[i] * y, g.t[i]), *m][:order]
        step = g.k[i + 1] - g.k[i]
        nodes = (g.k[i::-1][:order] - g.k[i]) / step
        for j, m_j in enumerate(m):
            others = np.delete(nodes, j)
            basis = Polynomial.fromroots(others) if len(others) else Polynomial([1.0])
            y = y + step * basis.integ()(1.0) / np.prod(nodes[j] - others) * m_j
    return g.end(D, g.a[len(g.noisy)] * y)


#: Zhang & Chen 2023, appendix, and Liu et al. 2022, PNDM, Eq. 12.
PRINTED = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


def transfer(g, i, x, e):
    """φ of PNDM, Eq. 11: DDIM with a given eps."""
    return g.a[i + 1] * (x - g.s[i] * e) / g.a[i] + g.s[i + 1] * e


def printed_adams(D, g, x, z, order=4, start=False):
    """iPNDM, and PLMS: `start` for its first step, a pseudo improved Euler one."""
    m = []
    for i in g.noisy:
        m = [noise_of(D)(x, g.t[i]), *m][:order]
        e = sum(c * m_j for c, m_j in zip(PRINTED[len(m) - 1], m, strict=True))
        if start and i == 0 and g.n > 1:
            e = (e + noise_of(D)(transfer(g, 0, x, e), g.t[1])) / 2
        x = transfer(g, i, x, e)
    return g.end(D, x)


def zhang_tab(D, g, x, z, order=2):
    """DEIS tAB (Zhang & Chen 2023): ∫ (dk / dt) l_j(t) dt, in closed form of VP."""
    b0, b1 = g.schedule.beta_min, g.schedule.beta_max

    def rate(t):
        noise = math.expm1(b0 * t + (b1 - b0) * t**2 / 2)
        return (1 + noise) * (b0 + (b1 - b0) * t) / (2 * math.sqrt(noise))

    m, y = [], x / g.a[0]
    for i in g.noisy:
        m = [noise_of(D)(g.a[i] * y, g.t[i]), *m][:order]
        nodes = g.times[i::-1][:order]
        for j, m_j in enumerate(m):
            f = lambda t, j=j, nodes=nodes: rate(t) * lagrange(nodes, j, t)
            y = y + quad(f, g.times[i], g.times[i + 1], epsabs=0, epsrel=1e-13)[0] * m_j
    return g.end(D, g.a[len(g.noisy)] * y)


def er_sde_5(k):
    return k * (math.exp(k**0.3) + 10)


def cui_er(D, g, x, z, order=3, phi=er_sde_5):
    """ER-SDE-Solver (Cui et al. 2023): Taylor terms, the derivatives those of the polynomial."""
    m, y = [], x / g.a[0]
    for i in g.noisy:
        t, s = g.k[i], g.k[i + 1]
        m, r, step = [D(g.a[i] * y, g.t[i]), *m][:order], phi(s) / phi(t), s - t
        integral = lambda f, a=s, b=t: quad(f, a, b, epsabs=0, epsrel=1e-13)[0]
        y = r * y + (1 - r) * m[0] + math.sqrt(s**2 - (r * t) ** 2) * z(i + 1, x.shape)
        if len(m) > 1:
            slope = (m[0] - m[1]) / (t - g.k[i - 1])
            if len(m) > 2:
                older = (m[1] - m[2]) / (g.k[i - 1] - g.k[i - 2])
                bend = (slope - older) / (t - g.k[i - 2])  # half the second derivative
                slope = slope + bend * (t - g.k[i - 1])
                inner = integral(lambda k, t=t: (k - t) / phi(k))
                y = y + (step**2 / 2 + phi(s) * inner) * 2 * bend
            y = y + (step + phi(s) * integral(lambda k: 1 / phi(k))) * slope
    return g.end(D, g.a[len(g.noisy)] * y)


PLMS = partial(printed_adams, start=True)
#: Name, solver, loop, options of both.
PAPERS = [
    ("ddim", ddpm.ddim, song_ddim, {}),
    ("ddim eta=0.4", partial(ddpm.ddim, eta=0.4), partial(song_ddim, eta=0.4), {}),
    ("ancestral", ddpm.ancestral, ho_ancestral, {}),
    ("euler", samplers.by_name("euler"), euler, {}),
    ("heun", ddpm.heun, karras_1, {}),
    ("midpoint", samplers.dpm_solver_2, kdiffusion_midpoint, {}),
    ("dpm_solver_1", ddpm.ddim, partial(lu_multistep_eps, order=1), {}),
    ("dpm_solver_2", samplers.dpm_solver_2, lu_single_2, {}),
    ("dpm_solver_3", samplers.dpm_solver_3, lu_single_3, {}),
    ("dpm_solver_2m", samplers.dpm_solver_2m, lu_multistep_eps, {}),
    ("dpm_solver_3m", samplers.dpm_solver_3m, partial(lu_multistep_eps, order=3), {}),
    ("dpmpp_2s", samplers.dpmpp_2s, lu_2s, {}),
    ("dpmpp_2m", ddpm.dpmpp_2m, lu_multistep, {}),
    ("dpmpp_3m", samplers.dpmpp_3m, partial(lu_multistep, order=3), {}),
    ("sde_dpmpp_1", ddpm.ancestral, partial(lu_sde, order=1), {}),
    ("sde_dpmpp_2m", samplers.sde_dpmpp_2m, lu_sde, {}),
    ("sde_dpmpp_3m", samplers.sde_dpmpp_3m, partial(lu_sde, order=3), {}),
    ("plms", samplers.plms, PLMS, {}),
    ("er_sde", samplers.er_sde, cui_er, {}),
    ("sa_solver", samplers.sa_solver, xue_sa, {}),
    ("restart", samplers.restart, xu_restart, {}),
    ("edm_stochastic", samplers.edm_stochastic, partial(karras_2, churn=30.0), {}),
]
PAPERS += [
    (
        f"unipc_{p} {b} {corrector}",
        solver,
        partial(zhao_unipc, order=p),
        {"b": b, "corrector": corrector},
    )
    for p, solver in enumerate((samplers.unipc_1, ddpm.unipc_2, samplers.unipc_3), start=1)
    for b in ("bh1", "bh2")
    for corrector in (True, False)
]
PAPERS += [(f"lms {p}", samplers.lms, kutta_lms, {"order": p}) for p in (1, 2, 3, 4)]
PAPERS += [(f"ipndm {p}", samplers.ipndm, printed_adams, {"order": p}) for p in (1, 2, 3, 4)]
PAPERS += [(f"plms {p}", samplers.plms, PLMS, {"order": p}) for p in (1, 2, 3)]
PAPERS += [(f"er_sde {p}", samplers.er_sde, cui_er, {"order": p}) for p in (1, 2)]
PAPERS += [("er_sde k^1.5", samplers.er_sde, cui_er, {"phi": lambda k: k**1.5})]
PAPERS += [
    (
        f"sa_solver {n} {p} {c}",
        samplers.sa_solver,
        xue_sa,
        {"stochasticity": n, "predictor": p, "corrector": c},
    )
    for n, p, c in [(0.0, 3, 3), (0.6, 1, 0), (1.0, 1, 1), (1.3, 2, 3), (0.5, 4, 2)]
]
PAPERS += [
    ("edm few", samplers.edm_stochastic, karras_2, {"churn": 1.5, "s_noise": 1.1}),
    (
        "edm range",
        samplers.edm_stochastic,
        karras_2,
        {"churn": 9.0, "s_min": 0.3, "s_max": 40.0},
    ),
    ("restart none", samplers.restart, karras_1, {"repeats": 0}),
]


DEIS = (ddpm.ddim, samplers.deis_2, samplers.deis_3)
X, SEED = strategies.normals((3, 2)), st.integers(0, 99)


def check_paper(solver, paper, options, g, x, seed):
    sampler, noise = g.build(solver, **options), draws(seed)
    expected = paper(curved, g, x, noise, **({} if paper is karras_1 else options))
    found = ddpm.sample(curved, sampler, x, noise)
    np.testing.assert_allclose(found, expected, rtol=0, atol=OFF * lost(sampler))


@pytest.mark.parametrize("case", PAPERS, ids=[case[0] for case in PAPERS])
@few
@given(path=paths(), x=X, seed=SEED)
def test_paper(case, path, x, seed):
    """The table does what the paper's equations say, with a nonlinear denoiser."""
    check_paper(*case[1:], path, x, seed)


@pytest.mark.parametrize(("order", "solver"), list(enumerate(DEIS, 1)))
@few
@given(path=paths(st.builds(ddpm.VP, st.floats(0.05, 1), st.floats(5, 25))), x=X)
def test_deis_is_tab(order, solver, path, x):
    """Its polynomials are in time; over VP dk / dt has a closed form."""
    check_paper(solver, partial(zhang_tab, order=order), {}, path, x, 0)


@few
@given(path=paths(), x=X, seed=SEED, repeats=st.integers(0, 2), data=st.data())
def test_restart_interval(path, x, seed, repeats, data):
    """Any interval of the grid, any number of times."""
    j = data.draw(st.integers(1, path.n - 1))
    options = {"repeats": repeats, "interval": (data.draw(st.integers(0, j - 1)), j)}
    check_paper(samplers.restart, xu_restart, options, path, x, seed)


@few
@given(path=paths(), data=st.data(), x=X, seed=SEED)
def test_sa_solver_noise_per_step(path, data, x, seed):
    """τ is a function of time in the paper, constant over a step in its examples."""
    noise = data.draw(
        st.lists(st.just(0.0) | st.floats(0.01, 1.5), min_size=path.n, max_size=path.n)
    )
    check_paper(samplers.sa_solver, xue_sa, {"stochasticity": noise}, path, x, seed)


@few
@given(path=paths(clean=[False]), x=X)
def test_ddim_inversion(path, x):
    """x_s = α_s x_0 + σ_s eps, s the noisier (Song et al. 2021, section 4.3)."""
    rising = path.times[::-1]
    sampler, expected = samplers.ddim_inversion(path.schedule, path.n, times=rising), x
    for i in reversed(range(path.n)):
        t, s = path.t[i + 1], path.t[i]
        x_0, e = curved(expected, t), noise_of(curved)(expected, t)
        expected = s.alpha * x_0 + s.sigma * e
    found = ddpm.sample(curved, sampler, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=OFF * lost(sampler))
    np.testing.assert_array_equal(sampler.levels.time, rising)


@few
@given(path=paths(clean=[False]), x=X, m=st.floats(-2, 2), log_c=st.floats(-6, 6))
def test_encoding_and_decoding(path, x, m, log_c):
    """Of N(m, c), both ways multiply x - α m by Π cos²(φ_s - φ_t), φ = atan2(σ, α sqrt(c))."""
    oracle = ddpm.GaussianOracle(np.full(2, m), math.exp(log_c))
    phi = np.arctan2(path.s, path.a * math.exp(log_c / 2))
    there = samplers.ddim_inversion(path.schedule, path.n, times=path.times[::-1])
    code = ddpm.sample(oracle, there, x)
    found = ddpm.sample(oracle, path.build(ddpm.ddim), code)
    expected = path.a[-1] * m + np.prod(np.cos(np.diff(phi)) ** 2) * (x - path.a[-1] * m)
    # A Gaussian's reading has slopes within [0, α c / V], not above 1 / 2 σ sqrt(V).
    size = (1 + np.abs(code).max() + abs(m)) / path.s.min()
    np.testing.assert_allclose(found, expected, rtol=0, atol=64 * EPS * path.n * size)


def test_ddim_inversion_grids():
    """By default the times of the grid but the clean one; nothing is read at clean data."""
    for grid in (ddpm.grids.trailing, ddpm.grids.linspace, ddpm.grids.leading, grids.quad):
        sampler = samplers.ddim_inversion(LINEAR, 10, grid=grid)
        np.testing.assert_array_equal(sampler.levels.time, grid(LINEAR, 11)[10::-1])
        assert sampler.nfe == 10


def test_ddim_inversion_from_clean_data():
    """Nothing is read there: an error, and nothing before it."""
    with pytest.raises(ValueError, match="clean data"):
        samplers.ddim_inversion(LINEAR, 2, times=[0, 500, 1000])


# Other names. -----------------------------------------------------------------------------------


def probed(paper, g, calls, **options) -> samplers.Unrolled:
    """The matrix of a paper's loop, found by basis vectors in place of x_T, readings and noises."""
    basis, points, levels = np.eye(1 + 2 * calls), [], []

    def denoise(x, t):
        points.append(x)
        levels.append(t)
        return basis[len(points)]

    points.append(paper(denoise, g, basis[0], lambda row, shape: basis[calls + row], **options))
    levels.append(g.t[-1])
    matrix = np.stack(points)
    levels = Level(*map(np.array, zip(*levels, strict=True)))
    return samplers.Unrolled(levels, matrix[:, 0], matrix[:, 1 : 1 + calls], matrix[:, 1 + calls :])


def check_same(a: samplers.Unrolled, b: samplers.Unrolled, atol: float):
    """x, y and z, and where the network looks: a level's log-SNR, which its time determines."""
    clean = np.isinf(a.levels.logsnr)
    np.testing.assert_array_equal(clean, np.isinf(b.levels.logsnr))
    mine, theirs = a.levels.logsnr[~clean], b.levels.logsnr[~clean]
    assert np.all(np.abs(mine - theirs) <= OFF * EPS * (1 + np.abs(mine)))
    for name in ("x", "y", "z"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=atol)


ALIASES = {
    "euler": (ddpm.ddim, euler, {}),
    "dpm_solver_1": (ddpm.ddim, lu_multistep_eps, {"order": 1}),
    "dpm++ 1": (ddpm.ddim, lu_multistep, {"order": 1}),
    "euler_ancestral": (ddpm.ancestral, kdiffusion_ancestral, {}),
    "sde_dpmpp_1": (ddpm.ancestral, lu_sde, {"order": 1}),
    "ddim eta=1": (ddpm.ancestral, song_ddim, {"eta": 1.0}),
    "midpoint": (samplers.dpm_solver_2, kdiffusion_midpoint, {}),
    "dpm_solver_2": (samplers.dpm_solver_2, lu_single_2, {}),
    "heun": (ddpm.heun, karras_1, {}),
    "unipc_2": (ddpm.dpmpp_2m, zhao_unipc, {"order": 2, "corrector": False, "b": "bh2"}),
}


@pytest.mark.parametrize("case", ALIASES.values(), ids=ALIASES)
@few
@given(path=paths())
def test_alias_is_its_own_formula(case, path):
    """The matrix of another name's loop is the table's, unrolled."""
    solver, paper, options = case
    sampler = path.build(solver)
    check_same(probed(paper, path, sampler.nfe, **options), sampler.unroll(), OFF * lost(sampler))


@few
@given(path=paths(st.builds(ddpm.VP)))
def test_deis_1_is_ddim(path):
    sampler = path.build(ddpm.ddim)
    found = probed(zhang_tab, path, sampler.nfe, order=1)
    check_same(found, sampler.unroll(), OFF * lost(sampler))


EQUAL = {
    "unip_1": (partial(samplers.unipc_1, corrector=False), ddpm.ddim),
    "unip_2": (partial(ddpm.unipc_2, corrector=False), ddpm.dpmpp_2m),
    "unip_3": (partial(samplers.unipc_3, corrector=False), samplers.dpmpp_3m),
    "no churn": (partial(samplers.edm_stochastic, churn=0), ddpm.heun),
    "no restart": (partial(samplers.restart, repeats=0), ddpm.heun),
    "no churn there": (partial(samplers.edm_stochastic, s_min=1e9), ddpm.heun),
    "sa 0": (partial(samplers.sa_solver, stochasticity=0, predictor=1, corrector=0), ddpm.ddim),
    "sa 1": (
        partial(samplers.sa_solver, stochasticity=1, predictor=1, corrector=0),
        ddpm.ancestral,
    ),
    "er k": (partial(samplers.er_sde, order=1, phi=lambda k: k), ddpm.ddim),
    "er k^2": (partial(samplers.er_sde, order=1, phi=lambda k: k**2), ddpm.ancestral),
    "lms 1": (partial(samplers.lms, order=1), ddpm.ddim),
    "ipndm 1": (partial(samplers.ipndm, order=1), ddpm.ddim),
    "eta 0": (partial(ddpm.ddim, eta=0.0), ddpm.ddim),
    "eta 1": (partial(ddpm.ddim, eta=1.0), ddpm.ancestral),
}


@pytest.mark.parametrize("pair", EQUAL.values(), ids=EQUAL)
@few
@given(path=paths())
def test_equal(pair, path):
    """Two solvers that are one, by their matrices: the columns of their tables may differ."""
    one, other = (path.build(solver) for solver in pair)
    check_same(one.unroll(), other.unroll(), OFF * (lost(one) + lost(other)))


@few
@given(path=paths(clean=[False]))
def test_sa_solver_is_sde_dpmpp_3m(path):
    """With τ = 1 and no corrector, but in the second row: SDE-DPM-Solver++(2M)'s 1/2 there."""
    sa = path.build(samplers.sa_solver, stochasticity=1.0, predictor=3, corrector=0)
    sde, lost_ = path.build(samplers.sde_dpmpp_3m), OFF * max(lost(sa), EPS)
    others = np.arange(path.n) != 1
    np.testing.assert_allclose(sa.point[others], sde.point[others], rtol=0, atol=lost_)
    h = np.diff(path.lam)[:2]
    all_of_it = -math.expm1(-2 * h[1])
    moments = {"sa": h[1] - all_of_it / 2, "sde": h[1] / 2 * all_of_it}
    for sampler, moment in ((sa, moments["sa"]), (sde, moments["sde"])):
        m_0, m_1 = sampler.point[1, 2:4] / path.a[2]
        assert m_1 == pytest.approx(-moment / h[0], rel=OFF * EPS / h[1])
        assert m_0 == pytest.approx(all_of_it + moment / h[0], rel=OFF * EPS)


# What every table has. --------------------------------------------------------------------------

SOLVERS = {
    "ancestral": ddpm.ancestral,
    "ancestral large": partial(ddpm.ancestral, variance=ddpm.large),
    "ddim": ddpm.ddim,
    "ddim eta=0.5": partial(ddpm.ddim, eta=0.5),
    "heun": ddpm.heun,
    "midpoint": samplers.dpm_solver_2,
    "lms 1": partial(samplers.lms, order=1),
    "lms 2": partial(samplers.lms, order=2),
    "lms 3": partial(samplers.lms, order=3),
    "lms": samplers.lms,
    "edm_stochastic": samplers.edm_stochastic,
    "plms 2": partial(samplers.plms, order=2),
    "plms": samplers.plms,
    "ipndm 2": partial(samplers.ipndm, order=2),
    "ipndm 3": partial(samplers.ipndm, order=3),
    "ipndm": samplers.ipndm,
    "dpm_solver_2": samplers.dpm_solver_2,
    "dpm_solver_3": samplers.dpm_solver_3,
    "dpm_solver_2m": samplers.dpm_solver_2m,
    "dpm_solver_3m": samplers.dpm_solver_3m,
    "dpmpp_2s": samplers.dpmpp_2s,
    "dpmpp_2m": ddpm.dpmpp_2m,
    "dpmpp_3m": samplers.dpmpp_3m,
    "sde_dpmpp_2m": samplers.sde_dpmpp_2m,
    "sde_dpmpp_3m": samplers.sde_dpmpp_3m,
    "unipc_1": samplers.unipc_1,
    "unipc_2": ddpm.unipc_2,
    "unipc_2 bh1": partial(ddpm.unipc_2, b="bh1"),
    "unipc_3": samplers.unipc_3,
    "unip_3": partial(samplers.unipc_3, corrector=False),
    "deis_2": samplers.deis_2,
    "deis_3": samplers.deis_3,
    "sa_solver": samplers.sa_solver,
    "sa_solver 0": partial(samplers.sa_solver, stochasticity=0.0),
    "sa_solver 0.5 2 1": partial(samplers.sa_solver, stochasticity=0.5, predictor=2, corrector=1),
    "er_sde 1": partial(samplers.er_sde, order=1),
    "er_sde 2": partial(samplers.er_sde, order=2),
    "er_sde": samplers.er_sde,
    "restart": samplers.restart,
    "restart twice": partial(samplers.restart, repeats=2),
}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
#: Those that read eps.
EPS_SOLVERS = {"heun", "midpoint", "edm_stochastic", "er_sde 1", "er_sde 2", "er_sde", "restart"}
EPS_SOLVERS |= {name for name in SOLVERS if name.split()[0] in ("lms", "plms", "ipndm", "deis_2")}
EPS_SOLVERS |= {"dpm_solver_2", "dpm_solver_3", "dpm_solver_2m", "dpm_solver_3m", "deis_3"}
EPS_SOLVERS |= {"restart twice"}
RESTARTS = (SOLVERS["restart"], SOLVERS["restart twice"])


@st.composite
def uneven(draw):
    """Any times of a schedule, down to clean data."""
    schedule = draw(st.builds(ddpm.VP) | st.sampled_from([LINEAR, COSINE]))
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


@solvers
@fewer
@given(path=paths() | uneven())
def test_marginals_are_kept(solver, path):
    """A known x_0 keeps q(x_t | x_0), in the middle of a step too; `large` adds large - small."""
    large = solver is SOLVERS["ancestral large"]
    check_marginals(path.build(solver), excess(path, ddpm.large) if large else 0.0)


@few
@given(path=paths(), log_c=st.floats(-6, 6))
def test_excess_of_any_variance(path, log_c):
    """`ancestral` with the exact variance of N(0, c) spreads points by exactly what it adds."""
    exact = variance_of(math.exp(log_c))
    check_marginals(path.build(ddpm.ancestral, variance=exact), excess(path, exact))


def variance_of(c):
    """Of q(x_s | x_t) for data N(0, c)."""

    def exact(t, s):
        V_t, V_s = (u.alpha**2 * c + u.sigma**2 for u in (t, s))
        return ddpm.levels.tau(t, s) * t.sigma**2 * V_s / V_t

    return exact


@solvers
@fewer
@given(path=paths(clean=[True]) | uneven(), x=X, seed=SEED)
def test_row_into_clean_data(solver, path, x, seed):
    """It is x_0 as read, in each table: one point of data is hit exactly, from any start."""
    sampler, x_0 = path.build(solver), np.array([[0.3, -1.7]] * 3)
    assert sampler.levels.sigma[-1] == 0
    np.testing.assert_array_equal(sampler.read[-1], [0, 1])
    np.testing.assert_array_equal(np.flatnonzero(sampler.point[-1]), [2])
    assert sampler.point[-1, 2] == 1
    assert sampler.anchor[-1, -1] == 0
    found = ddpm.sample(lambda x_t, t: x_0, sampler, 100 * x, draws(seed))
    np.testing.assert_array_equal(found, x_0)


def calls(name: str, n: int, clean: bool) -> int:
    if name in ("heun", "midpoint", "dpm_solver_2", "dpmpp_2s", "edm_stochastic"):
        return 2 * n - clean
    if name == "dpm_solver_3":
        return 3 * n - 2 * clean
    if name.startswith("plms"):
        return n + (n > 1)
    if name.startswith("restart"):  # the two steps before the last, or one of two
        return 2 * n - clean + 2 * min(2, n - 1) * (1 + ("twice" in name))
    return n


@pytest.mark.parametrize("name", SOLVERS)
def test_number_of_calls(name):
    """As the docstrings say; the step into clean data makes one."""
    for n in range(2 if name.startswith("restart") else 1, 9):
        assert SOLVERS[name](LINEAR, n).nfe == calls(name, n, True)
        noisy = np.linspace(1000, 100, n + 1)
        assert SOLVERS[name](LINEAR, n, times=noisy).nfe == calls(name, n, False)


GRIDS = (
    ddpm.grids.trailing,
    ddpm.grids.linspace,
    ddpm.grids.leading,
    grids.quad,
    ddpm.grids.karras,
    ddpm.grids.log_snr,
)


@solvers
def test_finite(solver):
    """Every number of steps, schedule and grid; nothing is divided by 0 on the way."""
    counts = dict.fromkeys(GRIDS, (1, 2, 3, 10, 50))
    counts |= {ddpm.grids.trailing: (*range(1, 61), 1000), ddpm.grids.log_snr: (1, 2, 4, 25, 1000)}
    with np.errstate(all="raise", under="ignore"):
        for grid, numbers in counts.items():
            for schedule in (LINEAR, COSINE):
                for n in numbers[solver in RESTARTS :]:
                    sampler = solver(schedule, n, grid=grid)
                    for columns in (sampler.point, sampler.anchor, sampler.read):
                        assert np.isfinite(columns).all(), (grid.__name__, n)


# No data at the first level. --------------------------------------------------------------------

ZERO = ddpm.zero_terminal_snr(LINEAR)


@pytest.mark.parametrize("name", sorted(EPS_SOLVERS))
def test_eps_says_nothing_at_alpha_0(name):
    family = name.split()[0].replace("midpoint", "dpm_solver_2")
    with pytest.raises(ValueError, match=rf"{family} works in x / alpha, but alpha = 0"):
        SOLVERS[name](ZERO, 10)


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - EPS_SOLVERS))
def test_first_step_from_alpha_0(name):
    """Its h is infinite: x_s = α_s x_0 + σ_s (eps or z), and no later step looks back to it."""
    for n in (1, 2, 3, 10, 50, 1000):
        with np.errstate(all="raise", under="ignore"):
            sampler = SOLVERS[name](ZERO, n)
        for columns in (sampler.point, sampler.anchor, sampler.read):
            assert np.isfinite(columns).all()
        if n == 1000:
            continue
        u, (alpha, sigma) = sampler.unroll(), (sampler.levels.alpha, sampler.levels.sigma)
        if n > 1:
            assert u.y[1, 0] == pytest.approx(alpha[1], rel=4 * EPS)
            assert math.hypot(u.x[1], u.z[1, 0]) == pytest.approx(
                {"ancestral large": 1.0}.get(name, sigma[1]), rel=4 * EPS
            )
            if sampler.stochastic and name not in ("ddim eta=0.5", "ancestral large"):
                assert u.x[1] == 0
        if n > 2 and name != "dpmpp_2s":
            assert not np.any(sampler.point[1, 3:-1])
        if name != "ancestral large":
            check_marginals(sampler)


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - EPS_SOLVERS))
def test_smoke_samples_from_alpha_0(name):
    x = np.random.default_rng(0).standard_normal((4, 2))
    found = ddpm.sample(curved, SOLVERS[name](ZERO, 12), x, draws(0))
    assert np.abs(found).max() <= 1  # the last step is a reading


# Bad arguments. ---------------------------------------------------------------------------------

BAD = [
    (samplers.lms, {"order": 5}, "order must be 1, 2, 3 or 4, but is 5"),
    (samplers.lms, {"order": 0}, "order must be 1, 2, 3 or 4, but is 0"),
    (samplers.ipndm, {"order": 5}, "order must be 1, 2, 3 or 4, but is 5"),
    (samplers.plms, {"order": 0}, "order must be 1, 2, 3 or 4, but is 0"),
    (samplers.er_sde, {"order": 4}, "order must be 1, 2 or 3, but is 4"),
    (samplers.er_sde, {"phi": lambda k: k**0.5}, r"phi\(k\) / k not fall as k rises"),
    (samplers.er_sde, {"phi": lambda k: k - 1}, "phi must be positive"),
    (samplers.er_sde, {"phi": lambda k: -k}, "phi must be positive"),
    (samplers.unipc_1, {"b": "bh3"}, "b must be bh1 or bh2, but is 'bh3'"),
    (ddpm.unipc_2, {"b": ""}, "b must be bh1 or bh2, but is ''"),
    (samplers.unipc_3, {"b": None}, "b must be bh1 or bh2, but is None"),
    (
        samplers.edm_stochastic,
        {"churn": -1.0},
        "churn, s_min and s_noise must be .*, but are -1.0",
    ),
    (samplers.edm_stochastic, {"churn": math.nan}, "must be at least 0, but are nan"),
    (samplers.edm_stochastic, {"s_noise": -0.5}, "but are 30.0, 0.0 and -0.5"),
    (samplers.edm_stochastic, {"s_min": -0.1}, "but are 30.0, -0.1 and 1.0"),
    (samplers.restart, {"repeats": -1}, "repeats must be an integer of at least 0, but is -1"),
    (
        samplers.restart,
        {"repeats": 1.5},
        "repeats must be an integer of at least 0, but is 1.5",
    ),
    (
        samplers.restart,
        {"interval": (2, 2)},
        r"0 <= i < j < steps, but is \(2, 2\) of 6 steps",
    ),
    (samplers.restart, {"interval": (-1, 2)}, r"but is \(-1, 2\) of 6 steps"),
    (samplers.restart, {"interval": (3, 6)}, r"but is \(3, 6\) of 6 steps"),
    (
        samplers.sa_solver,
        {"predictor": 0},
        "predictor must be an integer of at least 1, but is 0",
    ),
    (
        samplers.sa_solver,
        {"predictor": 2.0},
        "predictor must be an integer of at least 1, but is 2.0",
    ),
    (
        samplers.sa_solver,
        {"corrector": -1},
        "corrector must be an integer of at least 0, but is -1",
    ),
    (
        samplers.sa_solver,
        {"corrector": 0.5},
        "corrector must be an integer of at least 0, but is 0.5",
    ),
    (
        samplers.sa_solver,
        {"stochasticity": -0.1},
        "stochasticity must be at least 0, .* but is -0.1",
    ),
    (
        samplers.sa_solver,
        {"stochasticity": math.inf},
        "stochasticity must be at least 0, .* but is inf",
    ),
    (
        samplers.sa_solver,
        {"stochasticity": [1.0, 0.5]},
        r"a number or one per step, but is \[1.0, 0.5\]",
    ),
    (ddpm.ddim, {"eta": -0.1}, "eta must be at least 0 .* but eta = -0.1"),
]


@pytest.mark.parametrize(("solver", "options", "message"), BAD)
def test_bad_arguments(solver, options, message):
    with pytest.raises(ValueError, match=message):
        solver(LINEAR, 6, **options)


def test_restart_of_one_step():
    with pytest.raises(ValueError, match="at least 2 steps"):
        samplers.restart(LINEAR, 1)


@solvers
def test_bad_grids(solver):
    """Each solver asks `levels_of` for its levels."""
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, but is 0"):
        solver(LINEAR, 0)
    with pytest.raises(ValueError, match=r"steps = 3 needs 4 times.*shape \(3,\)"):
        solver(LINEAR, 3, times=[1000, 500, 0])
    with pytest.raises(ValueError, match=r"times\[2\] = 700 is not cleaner than times\[1\] = 500"):
        solver(LINEAR, 3, times=[1000, 500, 700, 0])


# Edges. -----------------------------------------------------------------------------------------


def test_sa_solver_with_next_to_no_noise():
    """A τ whose square underflows is none."""
    sampler = samplers.sa_solver(LINEAR, 4, 1e-200)
    check_same(sampler.unroll(), samplers.sa_solver(LINEAR, 4, 0.0).unroll(), 0.0)


def test_er_sde_far_into_noise():
    """The default φ(k) at k = 1e13, which a schedule may reach, is not a number of float64."""
    schedule = ddpm.schedules.Discrete((math.inf, *np.linspace(5, -60, 100)))
    with pytest.raises(ValueError, match=r"finite, .* another phi, or a later time to start at"):
        samplers.er_sde(schedule, 50)
    assert np.isfinite(samplers.er_sde(schedule, 50, phi=lambda k: k**1.5).point).all()


def test_er_sde_of_the_flow_takes_no_noise():
    """With φ(k) = k no rounding of k_s² - r² k_t² is taken for noise; with next to k, noise is."""
    for n in (3, 10, 50, 1000):
        assert not samplers.er_sde(LINEAR, n, phi=lambda k: k).stochastic
    assert samplers.er_sde(LINEAR, 10, phi=lambda k: k**1.0001).stochastic


# Unrolled. --------------------------------------------------------------------------------------


def run(u: samplers.Unrolled, denoise, x, noise):
    """Where an unrolled sampler ends."""
    said, fresh = np.zeros((u.nfe, *x.shape)), np.zeros((u.nfe, *x.shape))
    for i in range(u.nfe + 1):
        point = u.x[i] * x + np.tensordot(u.y[i], said, 1) + np.tensordot(u.z[i], fresh, 1)
        if i < u.nfe:
            said[i] = denoise(point, u.levels.take(i))
            fresh[i] = noise(i + 1, x.shape)
    return point


@solvers
@fewer
@given(path=paths(), x=X, seed=SEED)
def test_unrolled_is_the_sampler(solver, path, x, seed):
    """The matrix does what the rows do, with a nonlinear denoiser."""
    sampler = path.build(solver)
    u = sampler.unroll()
    found = run(u, curved, x, draws(seed))
    expected = ddpm.sample(curved, sampler, x, draws(seed))
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * path.n * lost(sampler))
    assert (u.nfe, u.stochastic) == (sampler.nfe, sampler.stochastic)
    assert u.levels is sampler.levels


@solvers
@fewer
@given(path=paths())
def test_from_step_finds_the_table(solver, path):
    """A loop of `advance` over rows for x_0, eps or v, probed, has the matrix of the sampler."""
    sampler = path.build(solver)
    u, levels = sampler.unroll(), sampler.levels
    for predicts in (ddpm.x0, ddpm.eps, ddpm.v):
        rows = sampler.given(predicts).rows()
        state = None

        def step(i, x, y, z, rows=rows):
            nonlocal state
            state = sampler.start(x) if state is None else state
            np.testing.assert_array_equal(x, state.point)
            state = ddpm.advance(rows[i], state, y, z)
            return state.point

        found = samplers.from_step(step, levels, predicts)
        # Through eps, x_0 is divided by α and multiplied again, and x_t by 1 / α.
        grown = 1 if predicts is ddpm.x0 else 1 / levels.alpha.min()
        check_same(found, u, 8 * sampler.nfe * grown * lost(sampler))


class Stateful:
    """A solver as other libraries write one: it converts the output, and keeps the last x_0.

    half: of D_2, as published for the third order
    """

    def __init__(self, g, predicts, order=2, half=1.0):
        self.g, self.predicts, self.order, self.half, self.m = g, predicts, order, half, []

    def __call__(self, i, x, y, z):
        a, s, g = self.g.a, self.g.s, self.g
        x_0 = {"eps": lambda: (x - s[i] * y) / a[i], "v": lambda: a[i] * x - s[i] * y}.get(
            self.predicts, lambda: y
        )()
        if s[i + 1] == 0:
            return x_0
        self.m, h = [x_0, *self.m], g.lam[i + 1] - g.lam[i]
        E, (D1, D2) = math.expm1(-h), differences(g, self.m, i, h, self.order)
        if D2 is not None:
            D = E * x_0 - (E / h + 1) * D1 + ((E + h) / h**2 - 0.5) * self.half * D2
        else:
            D = E * (x_0 if D1 is None else x_0 + D1 / 2)
        return s[i + 1] / s[i] * x - a[i + 1] * D


@pytest.mark.parametrize("predicts", [ddpm.x0, ddpm.eps, ddpm.v], ids=["x0", "eps", "v"])
@pytest.mark.parametrize(
    ("order", "solver"), [(1, ddpm.ddim), (2, ddpm.dpmpp_2m), (3, samplers.dpmpp_3m)]
)
@few
@given(path=paths())
def test_from_step_of_a_foreign_class(order, solver, predicts, path):
    sampler = path.build(solver)
    step = Stateful(path, predicts.__name__, order)
    found = samplers.from_step(step, sampler.levels, predicts)
    grown = 1 if predicts is ddpm.x0 else 1 / path.a.min()
    check_same(found, sampler.unroll(), OFF * grown * lost(sampler))


def test_from_step_converts_arrays():
    """To the foreign library and back, each call once and in order; noise is z."""
    g, seen = Path(LINEAR, np.array([1000.0, 500.0, 100.0])), []

    def step(i, x, y, z):
        seen.append(i)
        assert all(isinstance(a, list) for a in (x, y, z))
        return [a + 2 * b + 3 * c for a, b, c in zip(x, y, z, strict=True)]

    levels = ddpm.levels_of(LINEAR, 2, times=g.times)
    to = lambda a: np.array(a, dtype=np.float32)
    u = samplers.from_step(step, levels, asarray=lambda a: a.tolist(), to_numpy=to)
    assert seen == [0, 1]
    np.testing.assert_array_equal(u.x, [1, 1, 1])
    np.testing.assert_array_equal(u.y, [[0, 0], [2, 0], [2, 2]])
    np.testing.assert_array_equal(u.z, [[0, 0], [3, 0], [3, 3]])
    assert u.x.dtype == np.float64
    assert u.stochastic


def test_unrolled_of_wrong_shape():
    """Shapes that disagree, and a point that knows the future, cannot be."""
    good = ddpm.ancestral(LINEAR, 3).unroll()
    for name, shape in (("x", "(4,)"), ("y", "(4, 3)"), ("z", "(4, 3)")):
        bad = getattr(good, name)[:-1]
        said = f"{name} has shape {bad.shape}, but 4 levels need {shape}"
        with pytest.raises(ValueError, match=re.escape(said)):
            replace(good, **{name: bad})
    for name in ("y", "z"):
        for i, j in ((0, 0), (1, 2), (2, 2)):
            ahead = getattr(good, name).copy()
            ahead[i, j] = 0.1
            said = f"point {i} depends on reading or noise {j}, which comes after it"
            with pytest.raises(ValueError, match=said):
                replace(good, **{name: ahead})


# Laws. ------------------------------------------------------------------------------------------

#: As in tests/test_samplers.py, where it says how they were computed: DDIM, eta = 1, large.
GOLDEN = {
    5: (0.068929, 0.061660, 0.129560),
    10: (0.136867, 0.111206, 0.243938),
    50: (0.222220, 0.197225, 0.261857),
    100: (0.235659, 0.219229, 0.256767),
    1000: (0.248498, 0.246125, 0.250752),
}
QUARTER = ddpm.GaussianOracle([0.0], 0.25)


@pytest.mark.parametrize("K", GOLDEN)
def test_golden_variances(K):
    times = np.round(np.linspace(1000, 0, K + 1))
    options = ({}, {"eta": 1.0}, {"variance": ddpm.large})
    for solver, kw, expected in zip(
        (ddpm.ddim, ddpm.ddim, ddpm.ancestral), options, GOLDEN[K], strict=True
    ):
        found = ddpm.law(solver(LINEAR, K, times=times, **kw), QUARTER)
        assert found.variances.shape == (1,)
        assert found.cov.shape == (1, 1)
        assert found.variances[0] == pytest.approx(expected, rel=0, abs=5e-7 + 1e-12)
        ratio = 0.25 / found.variances[0]
        # Three terms of order 1 cancel.
        assert found.kl == pytest.approx((ratio - 1 - math.log(ratio)) / 2, rel=0, abs=8 * EPS)
        apart = 0.5 - math.sqrt(found.variances[0])
        assert found.w2 == pytest.approx(abs(apart), rel=0, abs=8 * EPS)


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (ddpm.ddim, 9.1e-6),
        (ddpm.ancestral, 6.1e-5),
        (partial(ddpm.ancestral, variance=ddpm.large), 2.3e-6),
    ],
)
def test_golden_divergences(solver, expected):
    """Of K = 1000, computed with `GOLDEN`, apart from this library, to two digits."""
    assert ddpm.law(solver(LINEAR, 1000), QUARTER).kl == pytest.approx(expected, abs=5e-8, rel=6e-3)


def pushed(sampler, oracle, start_cov, start_mean):
    """Mean and covariance (D, D) of where a sampler ends, by basis vectors through `sample`."""
    D, n = oracle.mean.size, sampler.nfe
    inputs = np.eye((n + 1) * D).reshape(-1, n + 1, D)
    batch = np.concatenate([np.zeros((1, n + 1, D)), inputs])
    ends = ddpm.sample(oracle, sampler, batch[:, 0] + start_mean, lambda i, _: batch[:, i])
    A = ends[1:] - ends[0]
    on_x, on_z = A[:D], A[D:]
    return ends[0], on_x.T @ start_cov @ on_x + on_z.T @ on_z


LAW_PATHS = {
    "clean": Path(LINEAR, ddpm.grids.trailing(LINEAR, 6)),
    "noisy": Path(COSINE, np.linspace(980, 100, 6)),
    "VP": Path(ddpm.VP(), np.linspace(0.9, 0.01, 7)),
}


@solvers
@pytest.mark.parametrize("path", LAW_PATHS.values(), ids=LAW_PATHS)
@pytest.mark.parametrize("exact", [False, True], ids=["N(0, I)", "exact start"])
def test_law_is_what_samples_do(solver, path, exact):
    """Mean and covariance of samples, without drawing; KL and W2 by the formulas of matrices."""
    mean = np.array([0.5, -1.0, 0.2])
    C = np.array([[1.0, 0.6, 0.2], [0.6, 0.5, 0.0], [0.2, 0.0, 0.8]])
    oracle, sampler = ddpm.GaussianOracle(mean, C), path.build(solver)
    start, end = (sampler.levels.take(i) for i in (0, -1))
    marginal = lambda t: t.alpha**2 * C + t.sigma**2 * np.eye(3)
    m_T, C_T = (start.alpha * mean, marginal(start)) if exact else (np.zeros(3), np.eye(3))
    found = ddpm.law(sampler, oracle, exact_start=exact)
    m, P = pushed(sampler, oracle, C_T, m_T)
    # eps divides by σ what x_0 then gets back, and x / α by α.
    lost_ = OFF * EPS * sampler.nfe / (sampler.levels.sigma[:-1] * sampler.levels.alpha[:-1]).min()
    np.testing.assert_allclose(found.mean, m, rtol=0, atol=lost_)
    np.testing.assert_allclose(found.cov, P, rtol=0, atol=lost_)
    np.testing.assert_allclose(np.sort(found.variances), np.linalg.eigvalsh(P), rtol=0, atol=lost_)

    V, gap, inverse = marginal(end), m - end.alpha * mean, np.linalg.inv(P)
    kl = np.trace(inverse @ V) - 3 + gap @ inverse @ gap
    kl = (kl + np.linalg.slogdet(P)[1] - np.linalg.slogdet(V)[1]) / 2
    least = np.linalg.eigvalsh(P).min()
    assert found.kl == pytest.approx(kl, rel=0, abs=8 * lost_ / least**2)
    root = sqrtm(V)
    w2 = gap @ gap + np.trace(V + P - 2 * sqrtm(root @ P @ root))
    assert found.w2**2 == pytest.approx(w2, rel=0, abs=8 * lost_ / math.sqrt(least))


def test_law_of_shapes():
    """The mean has the data's shape, the covariance its coordinates; an `Unrolled` does as well."""
    mean, c = np.arange(4.0).reshape(2, 2), np.arange(1.0, 5.0).reshape(2, 2)
    sampler = ddpm.ancestral(LINEAR, 5)
    found = ddpm.law(sampler, ddpm.GaussianOracle(mean, c))
    for row, value, mu in zip(found.cov, c.flat, mean.flat, strict=True):
        alone = ddpm.law(sampler.unroll(), ddpm.GaussianOracle([mu], value))
        assert row.sum() == pytest.approx(alone.cov[0, 0], rel=8 * EPS)
        i = np.argmax(row)
        assert (row[i], found.mean.flat[i]) == (found.variances[i], alone.mean[0])
    np.testing.assert_array_equal(found.cov, np.diag(found.variances))


@few
@given(path=paths(), log_c=st.floats(-6, 6), m=st.floats(-2, 2))
def test_law_of_ddim_is_a_product_of_cosines(path, log_c, m):
    """P = (V_s / V_T) Π cos²(φ_s - φ_t), and the mean is off by as much as that of the start."""
    c = math.exp(log_c)
    V = path.a**2 * c + path.s**2
    cos = np.cos(np.diff(np.arctan2(path.s, path.a * math.sqrt(c))))
    gain = math.sqrt(V[-1] / V[0]) * cos.prod()
    found, off = ddpm.law(path.build(ddpm.ddim), ddpm.GaussianOracle([m], c)), gain * path.a[0] * m
    # All terms of the gain are positive; a weight of x_0 cancels as a step of λ, cos at π / 2.
    P, lost_ = gain**2, OFF * path.n * EPS / cos.min()
    assert found.variances[0] == pytest.approx(P, rel=lost_)
    assert found.mean[0] == pytest.approx(path.a[-1] * m - off, rel=0, abs=lost_ * (1 + abs(m)))
    kl = (V[-1] / P - 1 - math.log(V[-1] / P) + off**2 / P) / 2
    wrong = lost_ * (1 + abs(m))
    worst = lost_ * (1 + (V[-1] + off**2) / P) + (2 * abs(off) + wrong) * wrong / P
    assert found.kl == pytest.approx(kl, rel=8 * EPS, abs=worst)
    w2 = off**2 + (gain - math.sqrt(V[-1])) ** 2
    assert found.w2**2 == pytest.approx(w2, rel=0, abs=8 * lost_ * (1 + m**2 + c))


@few
@given(path=paths(clean=[False]), log_c=st.floats(-6, 6), m=st.floats(-2, 2))
def test_exact_variance_is_exact(path, log_c, m):
    """From an exact start the kernels of q(x_s | x_t) draw q(x_s), whatever the grid: KL is 0."""
    c = math.exp(log_c)
    sampler = path.build(ddpm.ancestral, variance=variance_of(c))
    found = ddpm.law(sampler, ddpm.GaussianOracle([m], c), exact_start=True)
    V = path.a[-1] ** 2 * c + path.s[-1] ** 2
    lost_ = 64 * path.n * EPS * (1 + c) / V
    assert found.variances[0] == pytest.approx(V, rel=lost_)
    assert found.mean[0] == pytest.approx(path.a[-1] * m, abs=lost_ * (1 + abs(m)))
    assert 0 <= found.kl + 4 * EPS <= 8 * EPS + lost_
    assert found.w2 <= lost_ * (1 + abs(m)) * math.sqrt(V) + lost_ * (1 + abs(m))
    # N(0, I) in place of the start is another law.
    other = ddpm.law(sampler, ddpm.GaussianOracle([m + 3], c))
    assert other.kl > found.kl


@solvers
def test_law_of_a_point(solver):
    """All samples are the point: two equal point masses, KL 0 and W2 0; spread or shift is inf."""
    point = ddpm.GaussianOracle([0.3, -2.0], 0.0)
    found = ddpm.law(solver(LINEAR, 6), point)
    np.testing.assert_array_equal(found.mean, [0.3, -2.0])
    np.testing.assert_array_equal(found.cov, np.zeros((2, 2)))
    assert (found.kl, found.w2) == (0.0, 0.0)
    noisy = solver(LINEAR, 6, times=np.linspace(1000, 100, 7))
    found = ddpm.law(noisy, point, exact_start=True)
    end = noisy.levels.take(-1)
    more = excess(Path(LINEAR, np.linspace(1000, 100, 7)), ddpm.large)[-1]
    more = more if solver is SOLVERS["ancestral large"] else 0.0
    np.testing.assert_allclose(
        found.cov, (end.sigma**2 + more) * np.eye(2), rtol=0, atol=OFF * lost(noisy)
    )
    np.testing.assert_allclose(found.mean, end.alpha * point.mean, atol=OFF * lost(noisy), rtol=0)


def test_law_of_points_apart():
    """A solver that ends at a point which is not the data's."""
    good = ddpm.ddim(LINEAR, 3).unroll()
    y = good.y.copy()
    y[-1, -1] = 2.0
    found = ddpm.law(replace(good, y=y), ddpm.GaussianOracle([1.0], 0.0))
    assert (found.mean[0], found.kl, found.w2) == (2.0, math.inf, 1.0)
    spread = ddpm.law(good, ddpm.GaussianOracle([1.0, 1.0], [0.0, 1.0]))
    assert np.isfinite(spread.kl)


# Orders. ----------------------------------------------------------------------------------------

STEPS = (80, 160, 320)
SA = partial(samplers.sa_solver, stochasticity=0.0)
#: Name: solver, order.
ORDERS = {
    "ddim": (ddpm.ddim, 1),
    "ddim eta=0.5": (partial(ddpm.ddim, eta=0.5), 1),
    "ancestral": (ddpm.ancestral, 1),
    "heun": (ddpm.heun, 2),
    "midpoint": (samplers.dpm_solver_2, 2),
    "dpm_solver_2": (samplers.dpm_solver_2, 2),
    "dpm_solver_3": (samplers.dpm_solver_3, 3),
    "dpm_solver_2m": (samplers.dpm_solver_2m, 2),
    "dpm_solver_3m": (samplers.dpm_solver_3m, 3),
    "dpmpp_2s": (samplers.dpmpp_2s, 2),
    "dpmpp_2m": (ddpm.dpmpp_2m, 2),
    "dpmpp_3m": (samplers.dpmpp_3m, 3),
    "unipc_1": (samplers.unipc_1, 2),
    "unipc_1 bh1": (partial(samplers.unipc_1, b="bh1"), 2),
    "unipc_2": (ddpm.unipc_2, 3),
    "unipc_2 bh1": (partial(ddpm.unipc_2, b="bh1"), 3),
    "unipc_3": (samplers.unipc_3, 4),
    "unip_1": (partial(samplers.unipc_1, corrector=False), 1),
    "unip_2": (partial(ddpm.unipc_2, corrector=False), 2),
    "unip_2 bh1": (partial(ddpm.unipc_2, corrector=False, b="bh1"), 2),
    "unip_3": (partial(samplers.unipc_3, corrector=False), 3),
    "deis_2": (samplers.deis_2, 2),
    "deis_3": (samplers.deis_3, 3),
    "plms 2": (partial(samplers.plms, order=2), 2),
    "plms 3": (partial(samplers.plms, order=3), 2),
    "plms": (samplers.plms, 2),
    "ipndm 2": (partial(samplers.ipndm, order=2), 2),
    "ipndm 3": (partial(samplers.ipndm, order=3), 2),
    "ipndm": (samplers.ipndm, 2),
    "lms 1": (partial(samplers.lms, order=1), 1),
    "lms 2": (partial(samplers.lms, order=2), 2),
    "lms 3": (partial(samplers.lms, order=3), 3),
    "lms": (samplers.lms, 4),
    "sde_dpmpp_2m": (samplers.sde_dpmpp_2m, 2),
    "sde_dpmpp_3m": (samplers.sde_dpmpp_3m, 2),
    "er_sde 1": (partial(samplers.er_sde, order=1), 1),
    "er_sde 2": (partial(samplers.er_sde, order=2), 2),
    "er_sde": (samplers.er_sde, 2),
    "edm_stochastic": (samplers.edm_stochastic, 2),
    "restart": (samplers.restart, 2),
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


def stateful(order, half=1.0):
    """`Stateful` as a solver that `order` measures."""

    def solver(schedule, steps, times):
        g = Path(schedule, times)
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
