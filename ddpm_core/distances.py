"""How far drawn samples are from real ones, in features of both.

A set of features is (N, D), one row a sample: what a network makes of an image, or its pixels. All
is computed on the host in float64; memory holds a few copies of the features and blocks of 32 MB.
Values in the features of two networks do not compare.

ValueError, from each function, if a set is not (N, D), has too few samples or a value that is not
finite, or if two sets differ in D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ddpm_core.noise import portable_noise
from ddpm_core.typing import Array


class Measured(NamedTuple):
    """A number estimated from samples, and its standard error."""

    value: float
    error: float


def frechet(a: Array, b: Array) -> Measured:
    """The squared Fréchet distance of two sets, each taken as a normal distribution of its mean and
    covariance (Dowson & Landau 1982; Heusel et al. 2017).

    F = ‖m_a - m_b‖² + tr(C_a + C_b - 2 (C_a^½ C_b C_a^½)^½)

    a: (N, D), N >= 2
    b: (M, D), M >= 2

    Few samples make F too large, by an amount that falls as 1 / N and 1 / M, grows with D, and is
    another for another model. Compare values of equal N and M, or see `frechet_limit`.

    The error comes from F's derivatives (Rippl et al. 2016): a bootstrap costs hundreds of times as
    much. With T the matrix that carries N(0, C_a) to N(0, C_b), and U the one back:

    error² = var(h) / N + var(g) / M
    h = (x - m_a)ᵀ (2 (m_a - m_b) + (I - T) (x - m_a)),   x in a
    g = (y - m_b)ᵀ (2 (m_b - m_a) + (I - U) (y - m_b)),   y in b

    N and M must be well above D. Between equal distributions the error is √2 times too large.

    >>> frechet([[0.0], [2.0]], [[5.0], [7.0]]).value
    25.0
    """
    a, b = _checked(2, a=a, b=b)
    shift = a.mean(axis=0) - b.mean(axis=0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    (q_a, r_a), (q_b, r_b) = _factors(a), _factors(b)
    # The trace is the least ‖r_a - turn @ r_b‖² over rotations, which loses no digits near 0.
    left, _, right = np.linalg.svd(r_a @ r_b.T)
    turn = left @ right
    gap = r_a - turn @ r_b
    # The rows of q_a @ gap are (I - T) (x - m_a): no inverse of C_a is needed.
    h = (a * (2 * shift + q_a @ gap)).sum(axis=1)
    g = -(b * (2 * shift + q_b @ (turn.T @ gap))).sum(axis=1)
    error = math.sqrt(h.var(ddof=1) / len(h) + g.var(ddof=1) / len(g))
    return Measured(float((shift**2).sum() + (gap**2).sum()), error)


def frechet_limit(a: Array, b: Array, seed: int = 0) -> Measured:
    """The squared Fréchet distance at N = M = ∞, on a line in 1 / N (Chong & Forsyth 2020).

    2 F(a, b) - (F(a', b') + F(a'', b'')) / 2

    a: (N, D), N >= 4
    b: (M, D), M >= 4
    seed: of the order in which the sets are split into halves a', a'' and b', b''

    Two points of the line suffice, all samples and half of them. What is left of the bias falls as
    1 / N²; N / 2 must be well above D. The value may be below 0. The error is that of `frechet`,
    and here it holds for equal distributions too.
    """
    a, b = _checked(4, a=a, b=b)
    whole, noise = frechet(a, b), portable_noise(seed)

    def halves(x: Array) -> list[Array]:
        return np.array_split(x[np.argsort(noise(0, (len(x),)), kind="stable")], 2)

    half = sum(frechet(*pair).value for pair in zip(halves(a), halves(b), strict=True)) / 2
    return Measured(2 * whole.value - half, whole.error)


def kernel_distance(a: Array, b: Array) -> Measured:
    """The squared maximum mean discrepancy of two sets by a cubic kernel, without bias: the
    estimator of KID (Bińkowski et al. 2018; Gretton et al. 2012, Lemma 6).

    MMD² = mean of k(x, x') over x ≠ x' + mean of k(y, y') over y ≠ y' - 2 mean of k(x, y)
    k(x, y) = (xᵀy / D + 1)³

    a: (N, D), N >= 2
    b: (M, D), M >= 2

    All pairs count, not those of random subsets. The value may be below 0. With φ the kernel's own
    features, k(x, y) = φ(x)ᵀφ(y), and means over the other samples,

    error² = 4 var(w) / N + 4 var(u) / M - q, and at least q
    w = mean of k(x, x') - mean of k(x, y), for each x; u the same for each y
    q = 2 (1 / N + 1 / M)² tr(Cov φ(x) Cov φ(y))

    The estimate has a part linear in φ and a part of products, whose variance is q if the two
    distributions are equal; w and u count it twice. There the error is up to a third too large.
    """
    a, b = _checked(2, a=a, b=b)
    n, m = len(a), len(b)
    cross, across, squares = _sums_of_kernel(a, b)
    w = _others(a) / (n - 1) - cross / m
    u = _others(b) / (m - 1) - across / n
    centred = squares - cross @ cross / m - across @ across / n + cross.sum() ** 2 / (n * m)
    q = 2 * centred / ((n - 1) * (m - 1)) * (1 / n + 1 / m) ** 2
    var = 4 * w.var(ddof=1) / n + 4 * u.var(ddof=1) / m - q
    return Measured(float(w.mean() + u.mean()), math.sqrt(max(var, q, 0.0)))


class PrecisionRecall(NamedTuple):
    """How many drawn samples lie among the real ones, and how many real ones among the drawn."""

    precision: Measured
    recall: Measured


def precision_recall(real: Array, drawn: Array, k: int = 3) -> PrecisionRecall:
    """Precision and recall by nearest neighbours (Kynkäänniemi et al. 2019, Eqs. 1-2).

    A sample lies among others if it is within the ball about one of them that reaches to that one's
    k-th nearest other. Precision is the share of `drawn` among `real`, recall that of `real` among
    `drawn`.

    real: (N, D), N > k
    drawn: (M, D), M > k

    Both depend on k, N and M: compare values of equal ones. A border belongs to its ball. The error
    is sqrt(p (1 - p) / n) of a share p of n samples, which a bootstrap over them tends to: 0 where
    p is 0 or 1. It takes the balls as given; with their chance it is 1.1 to 1.7 times as large for
    200 normal samples.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, but is {k}")
    real, drawn = _checked(k + 1, real=real, drawn=drawn)
    return PrecisionRecall(_share_among(real, drawn, k), _share_among(drawn, real, k))


class Scores(NamedTuple):
    """How far drawn samples are from real ones, by each measure of this module."""

    frechet: Measured
    kernel: Measured
    precision: Measured
    recall: Measured


def scores(real: Array, drawn: Array, features: Callable[[Array], Array] | None = None) -> Scores:
    """`frechet`, `kernel_distance` and `precision_recall` of two sets.

    real: (N, D), N >= 4, or what `features` takes
    drawn: (M, D), M >= 4, or what `features` takes
    features: what makes (N, D) of N images, such as a network; None where the sets are features

    Beside them belong the scores of `real` and M other real samples: what a perfect model has.
    """
    if features is not None:
        real, drawn = features(real), features(drawn)
    shares = precision_recall(real, drawn)
    return Scores(frechet(real, drawn), kernel_distance(real, drawn), *shares)


class Nearest(NamedTuple):
    """Where in another set the nearest sample to each one is, and how far away.

    index: (N,), int
    distance: (N,)
    """

    index: Array
    distance: Array


def nearest(samples: Array, real: Array) -> Nearest:
    """The nearest of the real samples to each sample: was it learnt by heart?

    samples: (N, D), what was drawn
    real: (M, D), what was trained on

    The distance is Euclidean, and 0 for a copy. `nearest(held_out, real)` says which distances are
    usual: drawn samples with smaller ones are memorised.

    >>> nearest([[1.0, 1.0], [4.0, 4.0]], [[4.0, 4.0], [1.0, 0.0]])
    Nearest(index=array([1, 0]), distance=array([1., 0.]))
    """
    samples, real = _checked(1, samples=samples, real=real)
    index = np.concatenate([d2.argmin(axis=1) for d2 in _squared_distances(samples, real)])
    # From the difference, which keeps the digits that d2 loses near a copy.
    return Nearest(index, np.sqrt(((samples - real[index]) ** 2).sum(axis=1)))


def data_copying(drawn: Array, held_out: Array) -> float:
    """The z-score of the data-copying test over the whole space (Meehan et al. 2020): far below 0
    if drawn samples lie nearer to the training samples than unseen real ones do.

    U = number of pairs with drawn_i > held_out_j, an equal one counting half
    z = (U - N M / 2) / sqrt(N M (N + M + 1) / 12)

    drawn: (N,), the distances of `nearest(samples, training)`
    held_out: (M,), those of `nearest(real, training)`, of real samples that were not trained on

    Of one distribution of distances z is about normal, of mean 0 and variance 1. Copies make it
    negative, and so do samples that are smoother than the data; copies among samples that are far
    from all data can hide. Look at the nearest pairs too.

    >>> data_copying([1.0, 2.0], [1.0, 2.0])
    0.0
    """
    sets = [np.asarray(x, dtype=np.float64) for x in (drawn, held_out)]
    for name, x in zip(("drawn", "held_out"), sets, strict=True):
        if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
            raise ValueError(f"{name} must be finite distances (N,), N >= 1, but is {x}")
    n, m = (len(x) for x in sets)
    order: Array = np.sort(sets[1])
    below: Array = np.searchsorted(order, sets[0], "left")
    up_to: Array = np.searchsorted(order, sets[0], "right")
    u = float((below + up_to).sum()) / 2
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


_AT_ONCE = 1 << 22  #: numbers in a block


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of so many rows that a block of them, of a width, is small."""
    rows = max(1, _AT_ONCE // width)
    return (slice(i, i + rows) for i in range(0, count, rows))


def _checked(least: int, **sets: Array) -> list[Array]:
    """Sets of features in float64, each of at least so many samples."""
    arrays = {name: np.asarray(x, dtype=np.float64) for name, x in sets.items()}
    for name, x in arrays.items():
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(f"{name} has shape {x.shape}, but features are (N, D), a row a sample")
        if len(x) < least:
            raise ValueError(f"{name} has {len(x)} samples, but at least {least} are needed")
        finite = np.isfinite(x).all(axis=1)
        if not finite.all():
            raise ValueError(f"{name}[{int(finite.argmin())}] is not finite: leave that sample out")
    if len({x.shape[1] for x in arrays.values()}) > 1:
        each = " and ".join(f"{name} has {x.shape[1]}" for name, x in arrays.items())
        raise ValueError(f"{each} features a sample: take both from one network")
    return list(arrays.values())


def _factors(x: Array) -> tuple[Array, Array]:
    """Q (N, D) and R (D, D) of centred samples x = Q R (N, D) with covariance Rᵀ R."""
    n, size = x.shape
    q, r = np.linalg.qr(np.pad(x, ((0, max(0, size - n)), (0, 0))))
    scale = math.sqrt(n - 1)
    return q[:n] * scale, r / scale


def _sums_of_kernel(a: Array, b: Array) -> tuple[Array, Array, float]:
    """Σ k(x, y) over y (N,) and over x (M,), and Σ k² over both."""
    rows, columns, squares = np.empty(len(a)), np.zeros(len(b)), 0.0
    for at in _blocks(len(a), len(b)):
        k = (a[at] @ b.T / a.shape[1] + 1) ** 3
        rows[at] = k.sum(axis=1)
        columns += k.sum(axis=0)
        squares += float((k**2).sum())
    return rows, columns, squares


def _others(x: Array) -> Array:
    """Σ k(x, x') over x' ≠ x: (N,)."""
    return _sums_of_kernel(x, x)[0] - ((x**2).mean(axis=1) + 1) ** 3


def _squared_distances(x: Array, y: Array) -> Iterator[Array]:
    """‖x - y‖², of a block of rows of x at a time and all of y."""
    x, y = x - y[0], y - y[0]  # an offset of all would cost digits
    squares = (y**2).sum(axis=1)
    for rows in _blocks(len(x), len(y)):
        yield (x[rows] ** 2).sum(axis=1)[:, None] + squares - 2 * x[rows] @ y.T


def _share_among(others: Array, samples: Array, k: int) -> Measured:
    """The share of the samples that lie among others."""
    reach = np.concatenate(  # each one's nearest, at 0, is itself
        [np.partition(d2, k, axis=1)[:, k] for d2 in _squared_distances(others, others)]
    )
    # By how much d2 may be wrong, so that a copy lies within a ball of radius 0 too.
    size = ((others - others[0]) ** 2).sum(axis=1).max()
    reach += 4 * others.shape[1] * np.finfo(np.float64).eps * size
    inside = np.concatenate(
        [(d2 <= reach).any(axis=1) for d2 in _squared_distances(samples, others)]
    )
    share = float(inside.mean())
    return Measured(share, math.sqrt(share * (1 - share) / len(inside)))
