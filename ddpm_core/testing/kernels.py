"""`check_kernel`: the laws of a reverse kernel p(x_s | x_t)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_core.denoisers import Denoiser
from ddpm_core.gaussians import Gaussian, kl
from ddpm_core.kernels import Kernel
from ddpm_core.levels import Level, tau
from ddpm_core.oracles import GaussianOracle
from ddpm_core.process import large, q_posterior, small
from ddpm_core.samplers import levels_of
from ddpm_core.schedules import Schedule, linear
from ddpm_core.testing.cases import Sides, tried
from ddpm_core.testing.probes import (
    data_of,
    noisy,
    roundings,
    some_levels,
    some_pairs,
    time_of,
    times_of,
)
from ddpm_core.testing.report import Finding, Report, raising
from ddpm_core.typing import Array

_MEAN, _VARIANCE = "Ho et al. 2020, Eqs. 7 and 11", "Ho et al. 2020, section 3.2"
_ALGORITHM_2, _BOUND = "Ho et al. 2020, Algorithm 2", "Ho et al. 2020, Eq. 5, L_{t-1}"

Pair = tuple[Level, Level]


def examine_kernel(
    kernel: Kernel,
    denoise: Denoiser,
    schedule: Schedule | None = None,
    *,
    x_0: Any = None,
    asarray: Callable[[Array], Any] = np.asarray,
    to_numpy: Callable[[Any], Array] = np.asarray,
) -> Report:
    """Which laws a reverse kernel obeys, and which it breaks.

    kernel: (x_t, t, s) -> p(x_s | x_t), with a mean and a variance or draws, as `Gaussian`
    denoise: whose x_0 the kernel is made of; with a `GaussianOracle` of independent coordinates
        also what a whole walk draws is checked
    schedule: by default `linear`, of whose levels some pairs are tried
    x_0: samples of the data (B, *D); by default the means of the oracle
    asarray, to_numpy: to and from the library of the kernel; the dtype that asarray makes says how
        exact it must be

    The variance must lie between that of known data, β̃, and the most that any data need; above β,
    that of N(0, I), it is a choice, and is noted.

    >>> from ddpm_core import GaussianOracle, large, reverse
    >>> data = GaussianOracle([0.5], 0.25)
    >>> check_kernel(reverse(data, large), data).broken
    ()
    >>> broken = examine_kernel(reverse(data, lambda t, s: np.sqrt(large(t, s))), data).broken
    >>> [finding.law for finding in broken]
    ['the variance is at most what any data need', \
"of Gaussian data the variance drawn tends to the data's as the steps grow"]
    """
    schedule = linear() if schedule is None else schedule
    data, pairs = data_of(denoise, x_0), some_pairs(schedule)
    precision = float(np.finfo(to_numpy(asarray(np.zeros(1))).dtype).eps)
    above: list[Pair] = []

    def points(t: Level) -> Array:
        return np.asarray(to_numpy(asarray(noisy(data, t))), dtype=np.float64)

    def step(x: Array, t: Level, s: Level) -> tuple[Array, Array]:
        """The mean and the variance on the host."""
        found: Any = kernel(asarray(x), t, s)
        mean = np.asarray(to_numpy(found.mean), dtype=np.float64)
        if hasattr(found, "var"):
            var = found.var
            return mean, np.asarray(var if np.isscalar(var) else to_numpy(var), dtype=np.float64)
        drawn = np.asarray(to_numpy(found.reparameterise(asarray(np.ones_like(mean)))))
        return mean, (drawn - mean) ** 2

    def said(x: Array, t: Level) -> Array:
        return np.asarray(to_numpy(denoise(asarray(x), t)), dtype=np.float64)

    def mean(pair: Pair) -> Sides:
        (t, s), x = pair, points(pair[0])
        x_0 = said(x, t)
        wanted = q_posterior(x_0, x, t, s).mean
        slack = precision * roundings(t) * max(1.0, np.abs(x_0).max(), np.abs(x).max())
        return Sides(step(x, t, s)[0], wanted, slack)

    def least(pair: Pair) -> Sides:
        found = step(points(pair[0]), *pair)[1]
        return Sides(found, small(*pair), 64 * precision * small(*pair), "at least")

    def most(pair: Pair) -> Sides:
        t, s = pair
        found = step(points(t), t, s)[1]
        if np.any(found > large(t, s) * (1 + 64 * precision)):
            above.append(pair)
        # No data need more: the error of x_0 is at most that of x_t / alpha, sigma² / alpha². That
        # is its mean over x_t; between two modes an exact variance is above it.
        of_x_0 = (t.sigma / t.alpha) ** 2 if t.alpha > 0 else np.inf
        bound = max(small(t, s) + (s.alpha * tau(t, s)) ** 2 * of_x_0, large(t, s))
        lowest = found.min(axis=0) if found.ndim else found
        return Sides(lowest, bound, 64 * precision * bound, "at most")

    def lands(t: Level) -> Sides:
        clean, x = schedule(float(schedule.ends[0])), points(t)
        found, var = step(x, t, clean)
        x_0 = said(x, t)
        slack = precision * roundings(t) * max(1.0, np.abs(x_0).max(), np.abs(x).max())
        if np.any(var < 0) or not np.all(np.isfinite(var)):
            raise ValueError(f"the variance at clean data is {var.min():.6g}")
        kept.append(float(var.max()))
        return Sides(found, x_0, slack)

    def divergence(pair: Pair) -> Sides:
        (t, s), x = pair, points(pair[0])
        known = np.concatenate([data, data, data])
        p_mean, p_var = step(x, t, s)
        var = np.broadcast_to(_beside(p_var, p_mean), p_mean.shape)
        found = kl(q_posterior(known, x, t, s), Gaussian(p_mean, var))
        return Sides(np.where(np.isfinite(found), found, -np.inf), 0.0, how="at least")

    kept: list[float] = []
    findings = [
        tried("the mean is that of q(x_s | x_t, x_0) at the denoiser's x_0", _MEAN, pairs, mean,
              at=times_of),
        tried("the variance is at least β̃, that of known data", _VARIANCE, pairs, least,
              at=times_of),
        tried("the variance is at most what any data need", _VARIANCE, pairs, most, at=times_of),
        tried("KL(q(x_s | x_t, x_0) ‖ p) is finite and not negative", _BOUND, pairs, divergence,
              at=times_of),
    ]  # fmt: skip
    if above:
        note = f"above β at {len(above)} pairs, which N(0, I) needs: a choice"
        findings[2] = findings[2]._replace(note=note)
    clean = float(schedule(float(schedule.ends[0])).sigma) == 0
    landing = tried(
        "on clean data it lands on the denoiser's x_0", _ALGORITHM_2,
        some_levels(schedule) if clean else [], lands, at=time_of,
        note="the schedule has no clean data",
    )  # fmt: skip
    if kept and max(kept) > 0:
        landing = landing._replace(note="it keeps a variance there, as a decoder's: a choice")
    findings.append(landing)
    findings += _composed(step, denoise, schedule, precision)
    return Report("this kernel", tuple(findings))


check_kernel = raising(examine_kernel)


def _beside(var: Array, mean: Array) -> Array:
    """A variance of one number per sample, with the axes of the mean."""
    if var.ndim == 1 and mean.ndim > 1 and len(var) == len(mean):
        return var.reshape(-1, *(1,) * (mean.ndim - 1))
    return var


def _composed(step: Any, denoise: Denoiser, schedule: Schedule, precision: float) -> list[Finding]:
    """Whole walks from q(x_T) of Gaussian data, by the kernel's slope, offset and variance."""
    names = (
        "a step takes the mean of q(x_t) to that of q(x_s)",
        "of Gaussian data the variance drawn tends to the data's as the steps grow",
    )
    if not isinstance(denoise, GaussianOracle) or denoise.basis is not None:
        note = "it needs a GaussianOracle of independent coordinates"
        return [Finding(name, _MEAN, note=note) for name in names]
    m, c = denoise.mean, denoise.variances.reshape(denoise.mean.shape)

    def moved(pair: Pair) -> Sides:
        t, s = pair
        found = step(t.alpha * m[None], t, s)[0]
        return Sides(found, s.alpha * m, roundings(t) * precision * max(1.0, np.abs(m).max()))

    def off(n: int) -> float:
        levels = levels_of(schedule, n)
        var = levels.alpha[0] ** 2 * c + levels.sigma[0] ** 2
        for i in range(n):
            t, s = levels.take(i), levels.take(i + 1)
            mean, own = step(np.stack([t.alpha * m, t.alpha * m + 1]), t, s)
            own = np.broadcast_to(_beside(own, mean), mean.shape)[0]
            var = (mean[1] - mean[0]) ** 2 * var + (own if s.sigma > 0 else 0)
        end = levels.take(-1)
        wanted = end.alpha**2 * c + end.sigma**2
        return float(np.abs(np.log(np.where(wanted > 0, var / wanted, 1.0))).max())

    top = getattr(schedule, "T", 1000)
    few, many = top // 100, top // 4
    note = "the schedule has too few steps"
    if few:
        last = levels_of(schedule, many).take(-2)
        if c.min() < (last.sigma / last.alpha) ** 2:
            few, note = 0, "the data vary less than the noise before the last step"
    return [
        tried(names[0], _MEAN, some_pairs(schedule), moved, at=times_of),
        tried(
            names[1], "Ho et al. 2020, section 2", [many] if few else [],
            lambda n: Sides(
                off(n), max(off(few), off(2 * few)) / 4 + 1e-8, 64 * n * precision, "at most"
            ),
            at=lambda n: f"{n} steps, beside a quarter of what it is off after {few} or {2 * few}",
            note=note,
        ),
    ]  # fmt: skip
