"""The variational bound in nats per sample, bits per coordinate, and a denoiser's errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from ddpm_core.arrays import check_pair, fit, is_number, shown
from ddpm_core.denoisers import Denoiser
from ddpm_core.gaussians import Gaussian, kl, mean_of_sample
from ddpm_core.kernels import Reverse, is_clean
from ddpm_core.levels import Level, from_logsnr, tau
from ddpm_core.losses import divergence
from ddpm_core.process import q_marginal, q_posterior, q_sample, small
from ddpm_core.typing import Array, Noise, Scalar


class Elbo(NamedTuple):
    """The terms of the bound on -log p(x_0), in nats per sample (Ho et al. 2020, Eq. 5).

    prior: (B,), L_T
    steps: (B, m), L_{T-1} .. L_1; in an estimate, each times its weight, so that their sum is
        unbiased
    data: (B,), L_0
    index: (B, m), NumPy: steps[b, j] goes from levels[index[b, j]] to the next level
    weight: (B, m), NumPy: how many terms steps[b, j] stands for; 1 where all terms are computed
    error: (B, m + 1), the mean over coordinates of (x_0 - x̂_0)² at levels[index], then at the last
        noisy level
    """

    prior: Array
    steps: Array
    data: Array
    index: Array
    weight: Array
    error: Array

    @property
    def total(self) -> Array:
        """The bound: (B,)."""
        xp = array_namespace(self.steps)
        return self.prior + xp.sum(self.steps, axis=1) + self.data


def elbo(
    kernel: Reverse,
    levels: Level,
    x_0: Array,
    noise: Noise,
    u: Any = None,
    *,
    bins: int | None = 256,
    decoder_var: Scalar | None = None,
    progress: Callable[[list[int]], Iterable[int]] = iter,
    **cond: Any,
) -> Elbo:
    """The variational bound on -log p(x_0), term by term (Ho et al. 2020, Eq. 5).

    kernel: `reverse(...)`, `learned_range(...)`, or any other
    levels: host levels (n + 1,), the noisiest first, as from `levels_of`: those of a schedule or
        some of them. Clean data is appended if it is not the last
    x_0: (B, *D), float32 or float64; the bound is computed in its dtype
    noise: (step, shape) -> standard normal, called once a term, with steps 1, 2, ...
    u: None computes all terms. (B, m), NumPy, uniform in [0, 1), gives an unbiased estimate from m
        terms a sample: the log-SNR from the noisiest level to the last noisy one is cut into m
        equal parts, and each gives one term
    bins: how many grey values x_0 has, scaled to [-1, 1]; None takes the decoder as a density
    decoder_var: the variance of p(x_0 | x_1). By default it is the kernel's own; for a `reverse`
        kernel, which has 0 there, it is Ho et al.'s: β̃ of the step before
    progress: wraps the iteration over the terms, as a progress bar does
    cond: passed to the kernel

    TypeError if x_0 is in half precision. ValueError if x_0 is a NumPy array with other values than
    the grey ones, if u is not as above, or if L_0 needs a decoder_var.
    """
    xp = check_pair(x_0=x_0)
    if cast(float, xp.finfo(x_0.dtype).bits) < 32:
        raise TypeError(f"x_0 is {x_0.dtype}: the bound is computed in float32 or float64")
    if not isinstance(levels, Level):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"levels must be a Level, such as levels_of(schedule, steps), but is {shown(levels)}"
        )
    _check_greys(x_0, bins)
    if levels.sigma[-1] > 0:
        clean = from_logsnr(math.inf, 0.0)
        levels = Level(*(np.append(a, c) for a, c in zip(levels, clean, strict=True)))
    n, shape = len(levels.sigma) - 1, tuple(x_0.shape)
    index, weight = _terms_of(levels, shape[0], u)
    ho = small(levels.take(n - 2), levels.take(n - 1)) if n > 1 else None

    def term(j: int, t: Level, s: Level, var: Scalar | None = None) -> tuple[Array, Array]:
        x_t = q_sample(x_0, noise(j + 1, shape), t)
        p = kernel(x_t, t, s, **cond)
        if var is None and is_clean(s) and is_number(p.var) and p.var == 0:
            var = ho
        # A kernel does not say what x_0 it read, but its mean is linear in it.
        off = mean_of_sample((q_posterior(x_0, x_t, t, s).mean - p.mean) ** 2)
        error = fit((s.alpha * tau(t, s)) ** -2, off) * off
        return divergence(p, x_0, x_t, t, s, bins, var), error

    steps: list[Array] = []
    errors: list[Array] = []
    for j in progress(list(range(index.shape[1]))):
        at: Any = j if u is None else index[:, j]
        nats, error = term(j, levels.take(at), levels.take(at + 1))
        steps.append(nats if u is None else fit(weight[:, j], nats) * nats)
        errors.append(error)
    data, error = term(index.shape[1], levels.take(n - 1), levels.take(n), decoder_var)
    prior = kl(q_marginal(x_0, levels.take(0)), Gaussian(xp.zeros_like(x_0), 1.0))
    empty = xp.reshape(data, (-1, 1))[:, :0]
    return Elbo(
        prior,
        xp.stack(steps, axis=1) if steps else empty,
        data,
        index,
        weight,
        xp.stack([*errors, error], axis=1),
    )


def _terms_of(levels: Level, batch: int, u: Any) -> tuple[Array, Array]:
    """Which terms each sample computes, and how many terms each stands for: (B, m) both.

    A term is drawn in proportion to its Δ log-SNR, since L_{t-1} is about Δ log-SNR / 2 times the
    squared error of eps, which has much the same size at all levels.
    """
    count = len(levels.sigma) - 2
    index: Array
    if u is None:
        return np.broadcast_to(np.arange(count), (batch, count)), np.ones((batch, count))
    u = cast(Array, np.asarray(u, dtype=np.float64))
    if u.ndim != 2 or u.shape[0] != batch or not 1 <= u.shape[1] <= count:
        raise ValueError(f"u must be ({batch}, m), m within 1 .. {count}, but is {u.shape}")
    bad = ~((u >= 0) & (u < 1))
    if bad.any():
        raise ValueError(f"u must lie within [0, 1), but is {u[bad][0]:g}")
    m = int(u.shape[1])
    share: Array = levels.logsnr[1:-1] - levels.logsnr[:-2]
    # The step from a level without data has no finite share: any will do, and 1 is a usual one.
    share = np.where(np.isfinite(share), share, 1.0)
    edges: Array = np.cumsum(share)
    wanted: Array = (np.arange(m) + u) / m * edges[-1]
    index = cast(Array, np.searchsorted(edges, wanted, side="right")).clip(max=count - 1)
    return index, edges[-1] / (m * share[index])


def _check_greys(x_0: Array, bins: int | None) -> None:
    if bins is None or not is_numpy_array(x_0):
        return
    grey: Array = (x_0 + 1) * ((bins - 1) / 2)
    off = (np.abs(grey - np.rint(grey)) > 1e-3) | (np.abs(x_0) > 1 + 1e-6)
    if off.any():
        raise ValueError(
            f"x_0 = {float(x_0[off][0]):g} is none of {bins} grey values 2 k / {bins - 1} - 1: "
            f"scale the data to them, or pass bins=None to take the decoder as a density"
        )


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float


def bits_per_dim(nats: Array, dims: int, bins: int | None = None) -> Estimate:
    """Bits per coordinate, from nats per sample: mean and standard error over samples.

    nats: (B,), -log p of each sample
    dims: how many coordinates a sample has
    bins: None if p is a probability, as `elbo` has it with bins. If p is a density of data that was
        `dequantised`, the number of grey values: a bin is 2 / (bins - 1) wide, and that width turns
        the density into a probability

    The standard error is nan for one sample.
    """
    host: Array = np.asarray(nats.tolist(), dtype=np.float64) / (dims * math.log(2))
    if bins is not None:
        host = host - math.log2(2 / (bins - 1))
    spread = float(host.std(ddof=1)) if len(host) > 1 else math.nan
    return Estimate(float(host.mean()), spread / math.sqrt(len(host)))


def dequantised(x_0: Array, u: Array, bins: int = 256) -> Array:
    """x_0 spread evenly over its bin: x_0 + (2 u - 1) / (bins - 1) (Theis et al. 2016).

    x_0: (B, *D), grey values scaled to [-1, 1]
    u: (B, *D), uniform in [0, 1)

    By Jensen's inequality the mean over u of -log p - log w, w the width of a bin, is at least
    -log P(bin).
    """
    check_pair(x_0=x_0, u=u)
    return x_0 + (2 * u - 1) / (bins - 1)


def errors_at(denoise: Denoiser, levels: Level, x_0: Array, noise: Noise, **cond: Any) -> Array:
    """E (x_0 - x̂_0)² at each level, the mean over samples, coordinates and noise: (n,), NumPy.

    levels: host levels (n,) with noise
    x_0: (B, *D)
    noise: (step, shape) -> standard normal, called once a level, with steps 1, 2, ...
    cond: passed to the denoiser
    """
    errors: list[float] = []
    for i in range(len(levels.sigma)):
        t = levels.take(i)
        x_t = q_sample(x_0, noise(i + 1, tuple(x_0.shape)), t)
        each = mean_of_sample((x_0 - denoise(x_t, t, **cond)) ** 2)
        errors.append(math.fsum(each.tolist()) / each.shape[0])
    return np.array(errors)


def interpolated(levels: Level, errors: Array) -> Callable[[Level], Scalar]:
    """Errors of x_0 at some levels, as a function of any host level, for `optimal`.

    error / σ² is linear in log-SNR between two levels, and constant beyond the ends. For standard
    normal data that ratio is constant. Between two levels it is 0 only if both errors are.

    levels: host levels (n,) with noise, in any order
    errors: (n,), as from `errors_at`
    """
    order: Array = np.argsort(levels.logsnr)
    at: Array = levels.logsnr[order]
    shares: Array = (np.asarray(errors) / levels.sigma**2)[order]

    def error(t: Level) -> Scalar:
        return cast(Scalar, np.interp(t.logsnr, at, shares)) * t.sigma**2

    return error
