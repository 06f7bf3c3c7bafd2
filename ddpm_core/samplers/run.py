"""Loops that execute samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ddpm_core.arrays import check_function, check_pair, combine, kind
from ddpm_core.denoisers import Denoiser
from ddpm_core.kernels import Kernel
from ddpm_core.levels import Level, check_levels
from ddpm_core.process import q_step
from ddpm_core.samplers.tables import Row, Sampler, advance
from ddpm_core.typing import Array, Lincomb, Noise


class Step(NamedTuple):
    """Where a trajectory stands after a row.

    number: of the row, from 1
    level: of x: where the network is called next, or where the sampler ends
    x: (B, *D), the point; within a step of several rows, a trial point
    x_0: (B, *D), what the denoiser returned in this row
    """

    number: int
    level: Level
    x: Array
    x_0: Array


def check_run(sampler: Sampler, x: Array, noise: Noise | None) -> None:
    """TypeError or ValueError, which names the argument, if these cannot be run together."""
    check_pair(x=x)
    if not isinstance(sampler, Sampler):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"sampler must be a Sampler, such as dpmpp_2m(schedule, steps=20), but is "
            f"{kind(sampler)}"
        )
    if noise is not None:
        check_function("portable_noise(seed)", noise=noise)
    elif sampler.stochastic:
        raise ValueError(f"{sampler.name} takes noise: pass noise=, such as portable_noise(seed)")


def trajectory(
    denoise: Denoiser,
    sampler: Sampler,
    x: Array,
    noise: Noise | None = None,
    *,
    lincomb: Lincomb = combine,
    progress: Callable[[list[Row]], Iterable[Row]] = iter,
    **cond: Any,
) -> Iterator[Step]:
    """The steps of `sample`, one by one: for pictures of the process, or to stop early.

    >>> from ddpm_core import DatasetOracle, ddim, linear
    >>> import numpy as np
    >>> steps = trajectory(DatasetOracle(np.eye(2)), ddim(linear(), 3), np.ones((1, 2)))
    >>> [round(float(step.level.sigma), 3) for step in steps]
    [0.994, 0.824, 0.0]
    """
    check_run(sampler, x, noise)
    state = sampler.start(x)
    rows, shape = sampler.rows(), tuple(x.shape)
    end = sampler.levels.take(-1)
    levels = [*(row.level for row in rows[1:]), end]
    for i, row in enumerate(progress(rows), start=1):
        x_0 = denoise(state.point, row.level, **cond)
        z = None
        if noise is not None and (row.point[-1] != 0 or row.anchor[-1] != 0):
            z = noise(i, shape)
        state = advance(row, state, x_0, z, lincomb=lincomb)
        yield Step(i, levels[i - 1], state.point, x_0)


def sample(
    denoise: Denoiser,
    sampler: Sampler,
    x: Array,
    noise: Noise | None = None,
    *,
    lincomb: Lincomb = combine,
    progress: Callable[[list[Row]], Iterable[Row]] = iter,
    **cond: Any,
) -> Array:
    """A sample of the data: (B, *D), where the sampler ends.

    x: (B, *D), standard normal, or a draw of q at the sampler's first level
    noise: (step, shape) -> standard normal, for samplers that take noise; called with steps from 1
    lincomb: a `Backend`'s, to be faster than plain operators
    progress: wraps the rows, as a progress bar does
    cond: passed to the denoiser, such as y

    The result has the library, device and dtype of x, and x is not changed.
    """
    for step in trajectory(denoise, sampler, x, noise, lincomb=lincomb, progress=progress, **cond):
        x = step.x
    return x


def sample_kernel(
    reverse: Kernel,
    levels: Level,
    x: Array,
    noise: Noise,
    *,
    progress: Callable[[list[int]], Iterable[int]] = iter,
    **cond: Any,
) -> Array:
    """Algorithm 2 of Ho et al. 2020 for any reverse kernel, such as one with a learned variance.

    levels: (n + 1,) of the host, the noisiest first, as `levels_of` makes them. They may rise, as
        `inverse.walk` does: x then gets fresh noise, as in q(x_t | x_s)
    x, noise, progress, cond: as in `sample`

    The step into clean data takes the kernel's mean, and draws no noise.
    """
    check_pair(x=x)
    check_function("reverse(denoise)", reverse=reverse)
    check_function("portable_noise(seed)", noise=noise)
    check_levels(levels=levels)
    last = len(levels.sigma) - 1
    pairs = [levels.take(i) for i in range(last + 1)]
    for i in progress(list(range(1, last + 1))):
        t, s = pairs[i - 1], pairs[i]
        if s.logsnr < t.logsnr:
            x = q_step(x, noise(i, tuple(x.shape)), s, t)
            continue
        step = reverse(x, t, s, **cond)
        x = step.reparameterise(noise(i, tuple(x.shape))) if s.sigma > 0 else step.mean
    return x
