"""Where objects are tried: levels, pairs of levels, and points x_t, the plainest first."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.noise import portable_noise
from ddpm_core.oracles import GaussianOracle, MixtureOracle
from ddpm_core.schedules import Discrete, Schedule
from ddpm_core.typing import Array


def some_levels(schedule: Schedule) -> list[Level]:
    """Noisy levels, both ends among them; those with as much data as noise first."""
    clean, noisiest = schedule.ends
    if isinstance(schedule, Discrete):
        T = schedule.T
        times = sorted({1, 2, *np.rint(np.linspace(1, T, 9)).astype(int).tolist(), T - 1, T} - {0})
        times = [time for time in times if time <= T]
    else:
        shares = np.concatenate([[1e-4, 1e-3], np.linspace(0, 1, 9)[1:]])
        times = (clean + (noisiest - clean) * shares).tolist()
    levels = [schedule(float(time)) for time in times]
    return sorted(levels, key=lambda t: abs(t.logsnr))


def some_pairs(schedule: Schedule) -> list[tuple[Level, Level]]:
    """Pairs (t, s) of noisy levels, s the cleaner: neighbours, and far apart."""
    levels = sorted(some_levels(schedule), key=lambda t: t.logsnr, reverse=True)
    ends = [(levels[-1], levels[0]), (levels[len(levels) // 2], levels[0])]
    pairs = [*zip(levels[1:], levels[:-1], strict=True), *ends]
    return sorted(pairs, key=lambda pair: abs(pair[0].logsnr))


def time_of(t: Level) -> str:
    return f"time {t.time:g}"


def times_of(pair: tuple[Level, Level]) -> str:
    return f"times {pair[0].time:g} and {pair[1].time:g}"


def data_of(oracle: Any, x_0: Any = None) -> Array:
    """Samples of the data (B, *D), B at most 4: those given, or the means of an oracle."""
    if x_0 is not None:
        return np.asarray(x_0, dtype=np.float64)[:4]
    if isinstance(oracle, GaussianOracle):
        return oracle.mean[None]
    if isinstance(oracle, MixtureOracle):
        return oracle.means[:4]
    raise TypeError("pass x_0, samples of the data (B, *D): this denoiser has no means to take")


def noisy(x_0: Array, t: Level) -> Array:
    """x_t of each sample without noise, and with two draws of it: (3 B, *D)."""
    x = np.concatenate([x_0, x_0, x_0])
    eps = portable_noise(0, dtype=np.float64)(0, x.shape)
    eps[: len(x_0)] = 0
    return t.alpha * x + t.sigma * eps


def roundings(t: Level) -> float:
    """How many roundings a reading of x_0 may lose at a level, from eps or from exponentials."""
    from_eps = 1 + t.sigma / t.alpha if t.alpha > 0 else 1.0
    return 64 * from_eps * (1 + t.alpha / t.sigma)
