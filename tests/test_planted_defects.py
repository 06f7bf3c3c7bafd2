"""Defects that published diffusion code has had, planted in small objects: a named law finds each.

Each row has the law that is for it, what is planted, and the same without the defect, which passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import grids
from ddpm_core.arrays import log_sigmoid
from ddpm_core.gaussians import Gaussian
from ddpm_core.guidance import dynamic_threshold
from ddpm_core.levels import Level, steps_of, tau
from ddpm_core.measurements import mask, measure
from ddpm_core.process import posterior_row
from ddpm_core.samplers import from_step, table, terms
from ddpm_core.testing import (
    Report,
    examine_denoiser,
    examine_kernel,
    examine_noise,
    examine_parameterisation,
    examine_sampler,
    examine_schedule,
)

LINEAR = ddpm.linear()
DATA, WIDE = (ddpm.GaussianOracle([0.5, -0.5], var) for var in (0.25, 4.0))
MEAN = "x_0 known: the mean at each level is alpha x_0"
NOISE = "x_0 known: without fresh noise, each level has sigma eps"
VARIANCE = "x_0 known: the variance at each level is sigma²"
TOLD = "each level has the log-SNR, alpha and sigma of the schedule at its time"
LANDS = "at clean data the sample is the last x_0 as read, without noise"
MADE = "every count of steps makes a table of finite numbers"
EXACT = "x_0 is E[x_0 | x_t]"
ALONE = "a sample does not depend on those beside it"


class Row(NamedTuple):
    law: str
    planted: Callable[[], Report]
    right: Callable[[], Report]


# Samplers: an equation, as in the papers, or a step


def maker(equation, grid=grids.trailing):
    """A sampler of (schedule, steps, t, s, x_t, x_0, z) -> x_s, on a grid or on times."""

    def make(schedule, steps, times=None):
        levels = ddpm.levels_of(schedule, steps, grid, times)
        x_t, _, x_0, z = terms()
        t, s = steps_of(levels)
        return table("mine", levels, equation(schedule, steps, t, s, x_t, x_0, z))

    return make


def sampled(equation, order=None, grid=grids.trailing):
    return lambda: examine_sampler(maker(equation, grid), order)


def ddim(schedule, steps, t, s, x_t, x_0, z):
    return s.alpha * x_0 + s.sigma * (x_t - t.alpha * x_0) / t.sigma


def stride_back(schedule, steps, t, s, x_t, x_0, z):
    """The previous time is one stride below t, and not the next of the grid."""
    below = schedule(np.maximum(t.time - schedule.T // steps, 0))
    return ddim(schedule, steps, t, below, x_t, x_0, z)


def data_of_t(schedule, steps, t, s, x_t, x_0, z):
    """x_0 comes with the scale of t."""
    return t.alpha * x_0 + s.sigma * (x_t - t.alpha * x_0) / t.sigma


def prefactor(schedule, steps, t, s, x_t, x_0, z):
    """A norm that should be of s alone, sqrt(α_s² + σ_s²) = 1, takes σ of t."""
    return np.sqrt(s.alpha**2 + t.sigma**2) * ddim(schedule, steps, t, s, x_t, x_0, z)


def raw_eps(schedule, steps, t, s, x_t, x_0, z):
    """x_0 is clipped and eps is not: of a network that says 1.2 x_0, whose clip gives x_0 again."""
    return s.alpha * x_0 + s.sigma * (x_t - 1.2 * t.alpha * x_0) / t.sigma


def rounded(schedule, steps, t, s, x_t, x_0, z, dtype=np.float32):
    """The noise that is kept, a difference of squares, which rounding may put below 0."""
    k_t, k_s = ((u.sigma / u.alpha).astype(dtype) for u in (t, s))
    up = np.sqrt(k_s**2 * (k_t**2 - k_s**2) / k_t**2)
    kept = k_s**2 - up**2
    kept = np.sqrt(kept if dtype is np.float32 else np.maximum(kept, 0))
    return s.alpha * (x_0 + kept * (x_t - t.alpha * x_0) / t.sigma + up * z)


def third_order(factor):
    """Multistep DPM-Solver++ of order 3; its second derivative is factor times D2: 2 times."""

    def make(schedule, steps, times=None):
        levels = ddpm.levels_of(schedule, steps, times=times)
        t, s = steps_of(levels)
        x, _, m_0, m_1, m_2, _ = terms(3)
        with np.errstate(divide="ignore", invalid="ignore"):
            h = (s.logsnr - t.logsnr) / 2
        h = np.where(np.isfinite(h), h, 50.0)
        r_0, r_1 = (np.append(np.ones(k), h[:-k]) / h if k < steps else 0 * h + 1 for k in (1, 2))
        number = np.arange(steps)
        of_0 = (m_0 - m_1) / r_0
        of_1 = (m_1 - m_2) / r_1
        third = number >= 2
        first = of_0 + third * r_0 / (r_0 + r_1) * (of_0 - of_1)
        second = third * factor * (of_0 - of_1) / (r_0 + r_1)
        fell = -np.expm1(-h)
        point = s.sigma / t.sigma * x + s.alpha * fell * m_0
        point = point + (number >= 1) * s.alpha * (1 - fell / h) * first
        point = point + s.alpha * ((fell - h) / h**2 + 0.5) * second
        return table("third order", levels, point)

    return make


def float_grid(schedule, steps):
    """Times by arange of a fraction, whose rounding may add one more."""
    return np.append(np.round(np.arange(schedule.T, 0, -schedule.T / steps)), 0)


def fixed(variance):
    return lambda: examine_sampler(partial(ddpm.ancestral, variance=variance))


def with_noise_at_the_end(share):
    """Whether a row takes noise is asked of t, and not of s."""

    def make(schedule, steps):
        u = ddpm.ancestral(schedule, steps).unroll()
        z = u.z.copy()
        z[-1, -1] = share * ddpm.large(u.levels.take(-2), u.levels.take(-1)) ** 0.5
        return replace(u, z=z)

    return lambda: examine_sampler(make)


def walk(times, called=None, up=lambda t, s: (s.alpha / t.alpha, (tau(s, t)) ** 0.5 * s.sigma)):
    """Ancestral steps down and fresh noise up, along times; the network is told `called`."""
    path = [LINEAR(float(time)) for time in times]

    def step(i, x, y, z):
        t, s = path[i], path[i + 1]
        if s.logsnr < t.logsnr:
            on_x, on_z = up(t, s)
            return on_x * x + on_z * z
        on_x_0, on_x_t = posterior_row(t, s)
        return on_x_0 * y + on_x_t * x + ddpm.small(t, s) ** 0.5 * z

    levels = LINEAR(np.array(times if called is None else called, dtype=np.float64))
    return lambda: examine_sampler(from_step(step, levels))


def later_betas(t, s):
    """Noise from t up to s, n steps, by the n betas that come after s."""
    n = int(s.time - t.time)
    ends = LINEAR(np.arange(s.time, s.time + n + 1))
    low, high = ends.take(slice(None, -1)), ends.take(slice(1, None))
    kept = np.prod(1 - tau(high, low) * high.sigma**2)
    return kept**0.5, (1 - kept) ** 0.5


def started(scale):
    """A first row that scales x_T, and no more."""
    step = lambda i, x, y, z: scale * x if i == 0 else y
    return lambda: examine_sampler(from_step(step, LINEAR(np.array([1000.0, 1000, 0]))))


def unbound(schedule, steps):
    """A step size that only a second step sets."""
    for i in range(steps):
        if i > 0:
            h = 1.0
    assert h
    return ddpm.ddim(schedule, steps)


def told(times, table=False):
    """DDIM, whose network is told times(schedule, times)."""

    def make(schedule, steps):
        u = ddpm.ddim(schedule, steps).unroll()
        return replace(u, levels=u.levels._replace(time=times(schedule, u.levels.time)))

    if table:
        return lambda: examine_sampler(make(LINEAR, 5), schedule=LINEAR)
    return lambda: examine_sampler(make)


def index(schedule, times):
    """Counted from 0, where the schedule's clean data are at 0."""
    return np.append(times[:-1] - 1, 0)


def other_grid(schedule, times):
    """The points are on a trailing grid, the times on an even one with both ends."""
    return grids.linspace(schedule, len(times) - 1)


def right_times(schedule, times):
    return times


class Shared:
    """A maker that goes on from the table before, by a counter that is nobody's own."""

    def __init__(self):
        self.count = 0

    def __call__(self, schedule, steps, times=None):
        u = ddpm.ddim(schedule, steps).unroll()
        self.count += 1
        return u if self.count == 1 else replace(u, x=u.x * (1 + 1e-3 * self.count))


SAMPLERS = {
    "third order without its factor": Row(
        "the measured order of convergence is at least 3",
        lambda: examine_sampler(third_order(1), 3),
        lambda: examine_sampler(third_order(2), 3),
    ),
    "a grid of float steps": Row(
        MADE,
        lambda: examine_sampler(lambda s, n: ddpm.ddim(s, n, grid=float_grid)),
        lambda: examine_sampler(lambda s, n: ddpm.ddim(s, n, grid=grids.trailing)),
    ),
    "one call too many": Row(
        "one step more is as many network calls more",
        lambda: examine_sampler(lambda s, n: ddpm.ddim(s, min(n + (n == 13), s.T))),
        lambda: examine_sampler(ddpm.ddim),
    ),
    "the previous time by a stride": Row(MEAN, sampled(stride_back), sampled(ddim)),
    "the same on linspace": Row(
        MEAN, sampled(stride_back, grid=grids.linspace), sampled(ddim, grid=grids.linspace)
    ),
    "noise in the last step": Row(LANDS, with_noise_at_the_end(1.0), with_noise_at_the_end(0.0)),
    "a log variance as a variance": Row(
        MADE, fixed(lambda t, s: np.log(ddpm.large(t, s))), fixed(ddpm.large)
    ),
    "a standard deviation as a variance": Row(
        VARIANCE, fixed(lambda t, s: ddpm.small(t, s) ** 0.5), fixed(ddpm.small)
    ),
    "the prefactor of a step": Row(MEAN, sampled(prefactor, 1), sampled(ddim, 1)),
    "and its order": Row(
        "the measured order of convergence", sampled(prefactor, 1), sampled(ddim, 1)
    ),
    "x_0 at the scale of t": Row(MEAN, sampled(data_of_t), sampled(ddim)),
    "eps from before the clip": Row(MEAN, sampled(raw_eps), sampled(ddim)),
    "a negative radicand": Row(
        MADE,
        lambda: examine_sampler(maker(rounded), schedule=ddpm.cosine(4000), steps=range(4, 11)),
        lambda: examine_sampler(
            maker(partial(rounded, dtype=np.float64)),
            schedule=ddpm.cosine(4000),
            steps=range(4, 11),
            precision=1e-13,
        ),
    ),
    "noise back by later betas": Row(
        MEAN,
        walk([800, 600, 700, 300, 0], up=later_betas),
        walk([800, 600, 700, 300, 0]),
    ),
    "a level too clean": Row(MEAN, walk([500, 500, 300, 0], [500, 499, 300, 0]),
                             walk([500, 300, 0])),
    "a jump back that stays at one level": Row(
        MEAN,
        walk([6, 5, 4, 3, 6, 5, 4, 3, 0], [6, 5, 4, 3, 3, 3, 3, 3, 0]),
        walk([6, 5, 4, 3, 6, 5, 4, 3, 0]),
    ),
    "a start with too little noise": Row(NOISE, started(1 / 80), started(1.0)),
    "a step size that one step lacks": Row(
        MADE, lambda: examine_sampler(unbound), lambda: examine_sampler(ddpm.ddim)
    ),
    "times that are indices": Row(TOLD, told(index), told(right_times)),
    "times of another grid": Row(TOLD, told(other_grid), told(right_times)),
    "times that are indices, in one table": Row(TOLD, told(index, True), told(right_times, True)),
    "state between calls": Row(
        "a pure function: the same arguments give the same table again",
        lambda: examine_sampler(Shared(), threads=False),
        lambda: examine_sampler(ddpm.ddim),
    ),
}  # fmt: skip


# Schedules


class Mine:
    """VP with a change of its levels, or of its inverse."""

    ends = (0.0, 1.0)

    def __init__(self, change=lambda level: level, at=lambda level: level):
        self.change, self.change_at = change, at

    def __call__(self, time, dtype=None):
        return self.change(ddpm.VP()(time))

    def at(self, logsnr):
        return self.change_at(ddpm.VP().at(logsnr))


def scheduled(**given):
    return lambda: examine_schedule(**given)


def cast_first(level, dtype=np.float16):
    """ᾱ is cast, and then 1 - ᾱ."""
    abar = np.asarray(level.alpha**2, dtype=dtype).astype(np.float64)
    return level._replace(sigma=np.sqrt(1 - abar))


def root_too_many(level):
    """α² is the root of sigmoid(log-SNR)."""
    abar = np.exp(0.5 * log_sigmoid(level.logsnr))
    return Level(level.time, level.logsnr, np.sqrt(abar), np.sqrt(1 - abar))


def clipped_label(level):
    """The times of the noisiest levels are those of a clipped range."""
    return level._replace(time=np.minimum(level.time, 0.995))


ENDS = np.linspace(1e-4, 0.02, 1000)
SCHEDULES = {
    "alpha-bar cast first": Row(
        "sigma² = sigmoid(-logsnr)", scheduled(schedule=Mine(cast_first)),
        scheduled(schedule=Mine()),
    ),
    "a root of alpha-bar": Row(
        "alpha² = sigmoid(logsnr)", scheduled(schedule=Mine(root_too_many)),
        scheduled(schedule=Mine()),
    ),
    "labels of a clipped range": Row(
        "at() inverts the schedule", scheduled(schedule=Mine(at=clipped_label)),
        scheduled(schedule=Mine()),
    ),
    "a last beta of 1": Row(
        "these numbers are a schedule", scheduled(betas=1 / np.arange(100.0, 0, -1)),
        scheduled(betas=1 / np.arange(100.0, 1, -1)),
    ),
    "rescaled betas above 1": Row(
        "these numbers are a schedule", scheduled(betas=ENDS[::100] * 100),
        scheduled(betas=ENDS[::10] * 10),
    ),
    "eps where no data are left": Row(
        "the target and x_t determine x_0",
        lambda: examine_parameterisation(ddpm.eps, ddpm.zero_terminal_snr(LINEAR)),
        lambda: examine_parameterisation(ddpm.v, ddpm.zero_terminal_snr(LINEAR)),
    ),
}  # fmt: skip


# Kernels, denoisers and noise

SEEN = measure(mask(np.array([True, False])), np.array([[0.9, 0.0]]), np.zeros((1, 2)), 0.1)
GIVEN = DATA.given(SEEN)


def of_log(read):
    """A network that returns the log of its variance, β, and how that is read."""

    def kernel(x_t, t, s):
        said = np.full_like(x_t, np.log(ddpm.large(t, s)))
        return Gaussian(ddpm.reverse(DATA)(x_t, t, s).mean, read(said))

    return lambda: examine_kernel(kernel, DATA)


def gradient_at_x_t(x_t, t, s):
    """Guidance adds variance times ∇ log p(y | ·), of x_t and not of where the step goes."""
    mean, var = DATA.reverse(x_t, t, s)
    score = lambda data: (t.alpha * data(x_t, t) - x_t) / t.sigma**2
    return Gaussian(mean + var * (score(GIVEN) - score(DATA)), var)


def guided(right):
    """Classifier-free guidance at scale 1; the wrong one unpacks its result as two."""

    def denoise(x_t, t):
        found = DATA(x_t, t)
        if right or len(found) != 2:
            return found
        on, off = found
        return np.broadcast_to(off + 1.0 * (on - off), x_t.shape)

    return lambda: examine_denoiser(denoise, DATA)


def thresholded(least):
    """The quantile that x_0 is divided by lies within [1, least]."""

    def denoise(x_t, t):
        x_0 = WIDE(x_t, t)
        s = np.clip(np.abs(x_0).max(axis=1, keepdims=True), 1.0, least)
        return np.clip(x_0, -s, s) / s

    return lambda: examine_denoiser(denoise, dynamic_threshold(WIDE, 1.0), x_0=WIDE.mean[None])


def of_norm(axis):
    """A correction by the size of eps: of each sample, or of the whole batch."""

    def denoise(x_t, t):
        eps = ddpm.to_eps(DATA(x_t, t), x_t, t, ddpm.x0)
        return DATA(x_t, t) * (1 + 1e-3 * (eps**2).mean(axis=axis, keepdims=True))

    return denoise


def permuted(right):
    """Noise that a batch is assigned in another order than it was drawn."""
    noise = ddpm.portable_noise(0)
    return lambda: examine_noise(lambda i, shape: noise(i, shape)[:: 1 if right else -1])


OTHERS = {
    "a learned log variance as a variance": Row(
        "the variance is at least β̃", of_log(lambda said: said), of_log(np.exp)
    ),
    "a condition's gradient at x_t": Row(
        "the mean is that of q(x_s | x_t, x_0)",
        lambda: examine_kernel(gradient_at_x_t, GIVEN),
        lambda: examine_kernel(ddpm.reverse(GIVEN), GIVEN),
    ),
    "guidance at scale 1": Row(ALONE, guided(False), guided(True)),
    "a dynamic threshold that is static": Row(EXACT, thresholded(1.0), thresholded(np.inf)),
    "a norm over the batch": Row(
        ALONE,
        lambda: examine_denoiser(of_norm(None), DATA),
        lambda: examine_denoiser(of_norm(1), of_norm(1), x_0=DATA.mean[None]),
    ),
    "noise in another order": Row(
        "a batch begins with the samples of a smaller one", permuted(False), permuted(True)
    ),
}


ROWS = SAMPLERS | SCHEDULES | OTHERS
SLOW = ("third order without its factor", "the prefactor of a step", "and its order")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ROWS]
)
def test_planted(name):
    """The law finds the defect, and nothing is found without it."""
    row = ROWS[name]
    found = row.planted()
    assert any(finding.law.startswith(row.law) for finding in found.broken), found
    assert not row.right().broken, row.right()


def test_the_simplest_counterexample():
    """Of the stride, three steps of T = 4; of the float grid, the least T that has it."""
    found = {f.law: f.failure for f in SAMPLERS["the previous time by a stride"].planted().broken}
    assert found[MEAN].startswith("at T = 4, 3 steps, point 2: ")
    found = {f.law: f.failure for f in SAMPLERS["a grid of float steps"].planted().broken}
    assert found[MADE].startswith("at T = 15, 13 steps: ")
