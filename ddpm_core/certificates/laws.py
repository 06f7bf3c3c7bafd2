"""What affine samplers and loops draw, exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddpm_core.arrays import check_function, kind
from ddpm_core.denoisers import Denoiser
from ddpm_core.gaussians import Gaussian, kl
from ddpm_core.levels import Level
from ddpm_core.oracles import GaussianOracle
from ddpm_core.samplers import Sampler, Unrolled
from ddpm_core.samplers.unrolled import mixed_signs
from ddpm_core.typing import Array, Noise


class Law(NamedTuple):
    """The normal distribution that is drawn, and how far it is from the data's.

    mean: (*D)
    variances: (D,), along the columns of the data's basis, or of each coordinate without one
    cov: the covariance, (D, D)
    kl: KL(data ‖ drawn) in nats; inf where just one of the two has variance 0 in some direction
    w2: the Wasserstein-2 distance between them
    """

    mean: Array
    variances: Array
    cov: Array
    kl: float
    w2: float


def law(
    sampler: Sampler | Unrolled,
    denoise: Denoiser,
    data: GaussianOracle | None = None,
    *,
    exact_start: bool = False,
) -> Law:
    """What a sampler draws with an affine denoiser: exactly, without drawing.

    denoise: at each level x_0 = G x_t + g, such as the exact denoiser of N(m, C), or a guided or
        conditioned one made of such. G and g are found by calls on NumPy arrays in float64
    data: what is compared with: q(x) of these data at the level where the sampler ends. By default
        it is the denoiser, if that is a `GaussianOracle`
    exact_start: x_T is a draw of the data's q(x_T) and not of N(0, I)

    With a `GaussianOracle` alone every coordinate along its basis is computed apart: D numbers a
    step. Any other denoiser is called D + 2 times a step, and takes D² numbers a step. There, what
    is less than 1e-10 of the largest mean and standard deviation counts as 0 in KL.

    ValueError if the denoiser is not affine, such as one that clips.

    >>> from ddpm_core import ddim, linear
    >>> round(float(law(ddim(linear(), 10), GaussianOracle([0.0], 0.25)).variances[0]), 6)
    0.136867
    """
    check_function("GaussianOracle(...)", denoise=denoise)
    table = sampler.unroll() if isinstance(sampler, Sampler) else sampler
    if isinstance(denoise, GaussianOracle) and (data is None or data is denoise):
        return _along_basis(table, denoise, exact_start)
    data = _checked(data)
    n, size = table.nfe, data.mean.size
    first, last = table.levels.take(0), table.levels.take(n)
    found = [_reading(denoise, table.levels.take(i), data) for i in range(n)]
    # By the chain rule, from the last reading to the first. Samples are rows: of_point[i] is what
    # point i adds to the sample through its reading, point @ of_point[i].
    of_point, one = np.empty((n, size, size)), np.eye(size)
    mean = np.zeros(size)
    for j in reversed(range(n)):
        of_reading = table.y[n, j] * one + np.tensordot(table.y[j + 1 : n, j], of_point[j + 1 :], 1)
        of_point[j] = found[j][0] @ of_reading
        mean += found[j][1] @ of_reading
    of_start = table.x[n] * one + np.tensordot(table.x[:n], of_point, 1)
    z = table.z[:, table.z.any(axis=0)].T
    of_noise = z[:, n, None, None] * one + np.tensordot(z[:, :n], of_point, 1)
    if exact_start:
        mean += first.alpha * data.mean.reshape(-1) @ of_start
        of_start = np.sqrt(_var(first, data.variances))[:, None] * _basis(data).T @ of_start
    return _compared(mean, np.concatenate([of_start, *of_noise]), data, last)


def law_of(draw: Callable[[Array, Noise], Array], data: GaussianOracle) -> Law:
    """What a loop draws that is affine in its start and in its noises, exactly, without drawing.

    draw: (x, noise) -> (B, *D), where x (B, *D) and noise(step, shape) are standard normal, NumPy
        arrays in float64; a step that is asked for twice gives the same noise twice
    data: what is compared with

    The loop is run once to see which noises it asks for, then with each element of x and of the
    noises in turn: about D (1 + noises) samples in all.

    ValueError if the loop is not affine.

    >>> from ddpm_core import levels_of, linear, reverse, sample_kernel
    >>> data = GaussianOracle([0.0], 0.25)
    >>> levels = levels_of(linear(), 10)
    >>> loop = lambda x, noise: sample_kernel(reverse(data), levels, x, noise)
    >>> round(float(law_of(loop, data).variances[0]), 6)
    0.111206
    """
    shape, size = _checked(data).mean.shape, data.mean.size
    sizes: dict[int, int] = {}

    def recorded(step: int, shape: tuple[int, ...]) -> Array:
        sizes[step] = max(sizes.get(step, 0), math.prod(shape[1:]))
        return np.zeros(shape)

    draw(np.zeros((1, *shape)), recorded)
    *starts, total = np.cumsum([size, *sizes.values()]).tolist()
    places = dict(zip(sizes, starts, strict=True))

    def ends(inputs: Array) -> Array:
        def noise(step: int, shape: tuple[int, ...]) -> Array:
            count = math.prod(shape[1:])
            if count > sizes.get(step, 0):
                raise ValueError(
                    f"the loop is not affine: what it asks of the noise of step {step} depends on x"
                )
            return inputs[:, places[step] : places[step] + count].reshape(shape)

        return draw(inputs[:, :size].reshape(-1, *shape), noise)

    rows, mean = _affine(ends, total, shape, "the loop")
    return _compared(mean, rows, data, None)


def _along_basis(table: Unrolled, oracle: GaussianOracle, exact_start: bool) -> Law:
    """The law with the exact denoiser of the data.

    In the basis of C's eigenvectors every coordinate of the sample is affine in its own x_T and
    noises, for the reading at a point x is m + gain (x - α m), gain = α c / (α² c + σ²).
    """
    n, c, basis = table.nfe, oracle.variances, _basis(oracle)
    m = oracle.mean.reshape(-1)
    m = m if oracle.basis is None else m @ oracle.basis
    first, points, last = (table.levels.take(i) for i in (0, slice(n), n))
    gain = points.alpha * c[:, None] / (points.alpha**2 * c[:, None] + points.sigma**2)  # (D, n)
    # By the chain rule, from the last reading to the first: how much of each is in the sample.
    of_reading = np.broadcast_to(table.y[n], gain.shape).copy()
    for j in reversed(range(n)):
        of_reading[:, j] += (of_reading * gain)[:, j + 1 :] @ table.y[j + 1 : n, j]
    of_point = of_reading * gain
    of_start = table.x[n] + of_point @ table.x[:n]
    of_noise = table.z[n] + of_point @ table.z[:n]
    start_mean, start_var = (first.alpha * m, _var(first, c)) if exact_start else (0.0, 1.0)
    mean = of_start * start_mean + m * (of_reading * (1 - gain * points.alpha)).sum(axis=1)
    var = of_start**2 * start_var + (of_noise**2).sum(axis=1)
    data = Gaussian((last.alpha * m)[None], _var(last, c)[None])
    w2 = np.sqrt(((mean - data.mean) ** 2 + (np.sqrt(var) - np.sqrt(data.var)) ** 2).sum())
    return Law(
        (basis @ mean).reshape(oracle.mean.shape),
        var,
        (basis * var) @ basis.T,
        float(kl(data, Gaussian(mean[None], var[None]))[0]),
        float(w2),
    )


def _checked(data: GaussianOracle | None) -> GaussianOracle:
    if not isinstance(data, GaussianOracle):
        raise TypeError(
            f"data must be the GaussianOracle that what is drawn is compared with, but is "
            f"{kind(data)}"
        )
    return data


_AT_ONCE = 1 << 22  #: numbers that are probed in one call


def _reading(denoise: Denoiser, t: Level, data: GaussianOracle) -> tuple[Array, Array]:
    """G, transposed, and g of a denoiser at a level."""
    shape = data.mean.shape
    what = f"the denoiser at log-SNR {t.logsnr:.4g}"
    return _affine(lambda x: denoise(x.reshape(-1, *shape), t), data.mean.size, shape, what)


def _affine(
    f: Callable[[Array], Array], size: int, shape: tuple[int, ...], what: str
) -> tuple[Array, Array]:
    """The matrix A (size, D) and the offset a (D,) of f(x) = x A + a, found by probing.

    f: (B, size) -> (B, *shape)

    ValueError, with the name in `what`, if f is not affine, as a mix of all inputs shows.
    """

    def probe(x: Array) -> Array:
        y = np.asarray(f(x), dtype=np.float64)
        if y.shape != (len(x), *shape):
            raise ValueError(
                f"{what} returned shape {y.shape}, but data of shape {shape} need "
                f"{(len(x), *shape)}"
            )
        return y.reshape(len(x), -1)

    # Far above 1, the scale of data, so that a clip to [-1, 1] shows.
    mix = mixed_signs(size) * np.linspace(8, 16, size)
    offset, together = probe(np.stack([np.zeros(size), mix]))
    count = max(1, _AT_ONCE // size)
    parts = [probe(np.eye(min(count, size - i), size, i)) for i in range(0, size, count)]
    matrix = np.concatenate(parts) - offset
    apart = mix @ matrix + offset
    i = int(np.argmax(np.abs(together - apart)))
    if not abs(together - apart)[i] <= 1e-6 * (np.abs(mix) @ np.abs(matrix) + np.abs(offset)).max():
        raise ValueError(
            f"{what} is not affine: of a sum of inputs it makes {together[i]:.6g}, but its results "
            f"for the parts sum to {apart[i]:.6g}; take off what clips, thresholds or squares"
        )
    return matrix, offset


def _compared(mean: Array, rows: Array, data: GaussianOracle, end: Level | None) -> Law:
    """The law of mean + z @ rows, beside that of the data at a level; clean if None.

    mean: (D,)
    rows: (K, D), z standard normal (K,)
    """
    basis = _basis(data)
    m, var = data.mean.reshape(-1), data.variances
    if end is not None:
        m, var = end.alpha * m, _var(end, var)
    # As few rows as columns: of the same covariance, rowsᵀ rows, and never squared.
    rows = np.linalg.qr(rows, mode="r") @ basis
    gap, std = (m - mean) @ basis, np.sqrt(var)
    _, spread, axes = np.linalg.svd(rows)
    least = 1e-10 * max(np.abs(a).max() for a in (spread, std, mean, m))
    wide = spread > least
    # The directions without spread must be those of the data, and the means must agree there.
    apart = axes[~wide] @ np.column_stack([gap, np.diag(std)])
    divergence = math.inf
    if wide.sum() == (std > least).sum() and np.all(np.abs(apart) <= least):
        white = axes[wide] / spread[wide, None]  # makes N(0, I) of what is drawn
        ratio = np.linalg.svd(white * std, compute_uv=False) ** 2
        off = (white @ gap)[None]
        divergence = float(kl(Gaussian(off, ratio[None]), Gaussian(np.zeros_like(off), 1.0))[0])
    # Bures: the least ‖diag(std) - turn @ rows‖ over rotations, which loses no digits near 0.
    left, _, right = np.linalg.svd(std[:, None] * rows.T)
    turned = left @ right @ rows
    return Law(
        mean.reshape(data.mean.shape),
        (rows**2).sum(axis=0),
        basis @ (rows.T @ rows) @ basis.T,
        divergence,
        float(np.sqrt((gap**2).sum() + ((np.diag(std) - turned) ** 2).sum())),
    )


def _basis(oracle: GaussianOracle) -> Array:
    return np.eye(oracle.mean.size) if oracle.basis is None else oracle.basis


def _var(t: Level, c: Array) -> Array:
    """The variance of x_t, for data of variance c."""
    return t.alpha**2 * c + t.sigma**2
