"""The papers' loops: (denoise, path, x, noise) -> where it ends.

In the paper's own coordinates: x or x / α, λ = log(α / σ) or k = σ / α.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
from numpy.polynomial import Polynomial
from scipy.integrate import quad
from solver_paths import beta_of, noise_of

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.schedules import Discrete


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
    """DEIS tAB (Zhang & Chen 2023): ∫ (dk / dt) l_j(t) dt, dk / dt in closed form.

    k² = e^B - 1 with B = -log ᾱ: of VP ∫ β dt, of a discrete schedule linear between integers.
    """
    if isinstance(g.schedule, Discrete):
        B = np.logaddexp(0.0, -np.array(g.schedule.logsnr))

        def exponent(t):
            i = min(int(t), g.schedule.T - 1)
            return B[i] + (t - i) * (B[i + 1] - B[i]), B[i + 1] - B[i]

    else:
        b0, b1 = g.schedule.beta_min, g.schedule.beta_max

        def exponent(t):
            return b0 * t + (b1 - b0) * t**2 / 2, b0 + (b1 - b0) * t

    def rate(t):
        total, slope = exponent(t)
        return math.exp(total) * slope / (2 * math.sqrt(math.expm1(total)))

    def integral(f, t, s):
        """Down from t to s, over each unit of a discrete schedule by itself."""
        cuts = (
            np.arange(math.floor(s) + 1, math.ceil(t)) if isinstance(g.schedule, Discrete) else []
        )
        ends = [t, *reversed(cuts), s]
        each = (quad(f, a, b, epsabs=0, epsrel=1e-13)[0] for a, b in itertools.pairwise(ends))
        return math.fsum(each)

    m, y = [], x / g.a[0]
    for i in g.noisy:
        m = [noise_of(D)(g.a[i] * y, g.t[i]), *m][:order]
        nodes = g.times[i::-1][:order]
        for j, m_j in enumerate(m):
            f = lambda t, j=j, nodes=nodes: rate(t) * lagrange(nodes, j, t)
            y = y + integral(f, g.times[i], g.times[i + 1]) * m_j
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
    ("unipc_1", samplers.unipc_1, partial(zhao_unipc, order=1), {}),
    ("unipc_2", ddpm.unipc_2, zhao_unipc, {}),
    ("unipc_3", samplers.unipc_3, partial(zhao_unipc, order=3), {}),
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
