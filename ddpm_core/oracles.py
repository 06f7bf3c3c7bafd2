"""Exact denoisers: E[x_0 | x_t] in closed form, for data whose distribution is known.

With them samplers, losses and bounds are tested to rounding, without a network. Their tables are
float64 on the host. The coefficients of x_t are computed where the level is: at a host level on the
host, and cast last; at a device level (B,) on the device, in x_t's dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import beside, check_pair, fit, is_number, on_host, sqrt
from ddpm_core.gaussians import Gaussian
from ddpm_core.levels import Level, check_levels, from_logsnr, tau
from ddpm_core.measurements import Measurement, Operator, check_measurement
from ddpm_core.typing import Array, Scalar

_CLEAN = from_logsnr(math.inf, 0.0)
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class GaussianOracle:
    """The denoiser of data N(mean, cov).

    E[x_0 | x_t] = m + α C V⁻¹ (x_t - α m),   V = α² C + σ² I

    mean: (*D)
    cov: the covariance: a number, (*D) for independent coordinates, or (D, D), where D is the
        number of coordinates

    >>> half = from_logsnr(0.0, time=0)  # α² = σ² = 1/2
    >>> GaussianOracle(np.zeros(1), 1.0)(np.ones((1, 1)), half).round(6)
    array([[0.707107]])
    """

    mean: Array
    cov: Any
    variances: Array = field(init=False, repr=False)  #: (D,), along `basis`
    basis: Array | None = field(init=False, repr=False)  #: (D, D), in columns, of a (D, D) cov

    def __post_init__(self) -> None:
        mean = np.array(self.mean, dtype=np.float64)
        cov = np.array(self.cov, dtype=np.float64)
        basis = None
        if cov.shape in ((), mean.shape):
            variances = np.array(np.broadcast_to(cov, mean.shape)).reshape(-1)
        elif cov.shape == (mean.size, mean.size):
            variances, basis = _eigen("cov", cov)
        else:
            raise ValueError(
                f"cov must be a number, {mean.shape} or {(mean.size, mean.size)} for a mean of "
                f"shape {mean.shape}, but has shape {cov.shape}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(variances).all()):
            raise ValueError("mean and cov must be finite")
        if not (variances >= 0).all():
            raise ValueError(f"no variance may be negative, but one is {variances.min():g}")
        for name, value in (("mean", mean), ("variances", variances), ("basis", basis)):
            object.__setattr__(self, name, value)

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        _check(x_t, t, self.mean.shape)
        alpha, sigma, m, c = self._at(t, x_t)
        gain = alpha * c / (alpha**2 * c + sigma**2)
        return self._back(beside(m, x_t) + beside(gain, x_t) * self._centred(x_t, alpha, m), x_t)

    def log_prob(self, x: Array, t: Level = _CLEAN) -> Array:
        """log q(x_t), exactly: (B,). At the default, clean data, the log density of x_0."""
        xp = _check(x, t, self.mean.shape)
        check_density(self.variances, t)
        alpha, sigma, m, c = self._at(t, x)
        var = beside(alpha**2 * c + sigma**2, x)
        return -0.5 * xp.sum(
            self._centred(x, alpha, m) ** 2 / var + xp.log(2 * math.pi * var), axis=1
        )

    def error(self, t: Level) -> Array:
        """E (x_0 - x̂_0)² = Var[x_0 | x_t] = c σ² / V, per coordinate: (*D), or (n, *D).

        t: a host level of shape () or (n,)

        With a (D, D) covariance it is (D,) or (n, D), along the columns of `basis`. `optimal` takes
        the error of each coordinate, or the mean over them.
        """
        shape = self.mean.shape if self.basis is None else (-1,)
        c, axes = self.variances.reshape(shape), (1,) * (self.mean.ndim if shape != (-1,) else 1)
        alpha, sigma = (np.reshape(a, (*np.shape(a), *axes)) for a in (t.alpha, t.sigma))
        return c * sigma**2 / (alpha**2 * c + sigma**2)

    def given(self, measurement: Measurement) -> GaussianOracle:
        """The denoiser E[x_0 | x_t, y] of the data given one measurement, itself Gaussian.

        mean = m + K (y - A m),   cov = C - K A C,   K = C Aᵀ (A C Aᵀ + var I)⁻¹

        measurement: with y (1, *M), and any var; 0 is the limit, with a pseudo-inverse

        Memory: of A and of the covariance as matrices.
        """
        _check_one(measurement, self.mean[None])
        root = np.sqrt(self.variances)
        root = np.diag(root) if self.basis is None else self.basis * root
        mean, root, _, log_p = _condition(self.mean.reshape(-1), root, measurement)
        if log_p == -math.inf:
            raise ValueError(_NEVER)
        return GaussianOracle(mean.reshape(self.mean.shape), root @ root.T)

    def reverse(self, x_t: Array, t: Level, s: Level, **cond: Any) -> Gaussian:
        """q(x_s | x_t), exactly, for any s < t.

        mean = α_s m + (α_t / α_s) (V_s / V_t) (x_t - α_t m),   var = τ σ_t² V_s / V_t

        ValueError with a (D, D) covariance: the kernel then has dependent coordinates, and
        `reverse_sample` draws from it.
        """
        if self.basis is not None:
            raise ValueError(
                "with a (D, D) cov the reverse kernel is no Gaussian of independent coordinates: "
                "draw from it with reverse_sample"
            )
        mean, var = self._kernel(x_t, t, s)
        shape = (-1, *self.mean.shape)
        return Gaussian(self._back(mean, x_t), array_namespace(x_t).reshape(var, shape))

    def reverse_sample(self, x_t: Array, z: Array, t: Level, s: Level) -> Array:
        """A draw from q(x_s | x_t) for any covariance.

        x_t, z: (B, *D), z standard normal
        """
        check_pair(x_t=x_t, z=z)
        mean, var = self._kernel(x_t, t, s)
        return self._back(mean + sqrt(var) * self._along(z), x_t)

    def _kernel(self, x_t: Array, t: Level, s: Level) -> tuple[Array, Array]:
        """The reverse kernel's mean (B, D) and variance (1 or B, D), along the basis."""
        _check(x_t, t, self.mean.shape)
        alpha_t, sigma_t, m, c = self._at(t, x_t)
        alpha_s, sigma_s, _, _ = self._at(s, x_t)
        ratio = (alpha_s**2 * c + sigma_s**2) / (alpha_t**2 * c + sigma_t**2)
        gain = beside(alpha_t / alpha_s * ratio, x_t)
        var = self._number(tau(t, s), x_t) * sigma_t**2 * ratio
        return beside(alpha_s * m, x_t) + gain * self._centred(x_t, alpha_t, m), beside(var, x_t)

    def _at(self, t: Level, x: Array) -> tuple[Scalar, Scalar, Array, Array]:
        """α and σ, numbers or (B, 1), and m and c (1, D) along the basis, of the library of α."""
        alpha, sigma = self._number(t.alpha, x), self._number(t.sigma, x)
        m = self.mean.reshape(1, -1)
        m = m if self.basis is None else m @ self.basis
        c = self.variances.reshape(1, -1)
        return (
            (alpha, sigma, m, c) if is_number(alpha) else (alpha, sigma, beside(m, x), beside(c, x))
        )

    def _number(self, c: Scalar, x: Array) -> Scalar:
        return fit(c, array_namespace(x).reshape(x, (x.shape[0], self.mean.size)))

    def _centred(self, x: Array, alpha: Scalar, m: Array) -> Array:
        return self._along(x) - beside(alpha * m, x)

    def _along(self, x: Array) -> Array:
        """(B, *D) to coordinates along the basis (B, D)."""
        x = array_namespace(x).reshape(x, (x.shape[0], self.mean.size))
        return x if self.basis is None else x @ beside(self.basis, x)

    def _back(self, z: Array, like: Array) -> Array:
        """Coordinates along the basis (B, D) to (B, *D)."""
        z = z if self.basis is None else z @ beside(self.basis.T, like)
        return array_namespace(z).reshape(z, like.shape)


@dataclass(frozen=True, eq=False)
class MixtureOracle:
    """The denoiser of a mixture of Gaussians.

    E[x_0 | x_t] = Σ_k r_k [m_k + α C_k V_k⁻¹ (x_t - α m_k)],   V_k = α² C_k + σ² I
    r = softmax_k(log w_k + log N(x_t; α m_k, V_k))

    weights: (K,), positive; normalised
    means: (K, *D)
    var: the covariances C_k: for independent coordinates their variances, a number, (K,) or
        (K, *D), 0 being a point; or (K, D, D), where D is the number of coordinates

    A call needs memory for B K D numbers.
    """

    weights: Array
    means: Array
    var: Any
    variances: Array = field(init=False, repr=False)  #: (1 or K, 1 or D), along `basis`
    basis: Array | None = field(init=False, repr=False)  #: (K, D, D), in columns, of such a var

    def __post_init__(self) -> None:
        weights = np.array(self.weights, dtype=np.float64)
        means = np.array(self.means, dtype=np.float64)
        var = np.array(self.var, dtype=np.float64)
        if means.ndim < 2 or weights.shape != means.shape[:1] or not len(weights):
            raise ValueError(
                f"means must be (K, *D) and weights (K,), but are {means.shape} and {weights.shape}"
            )
        K, D = len(means), math.prod(means.shape[1:])
        if not all(np.isfinite(table).all() for table in (weights, means, var)):
            raise ValueError("weights, means and var must be finite")
        basis = None
        if var.shape in ((), (K,), means.shape):
            variances = var.reshape(K if var.ndim else 1, -1)
        elif var.shape == (K, D, D):
            each = [_eigen(f"var[{k}]", cov) for k, cov in enumerate(var)]
            variances, basis = (np.stack(part) for part in zip(*each, strict=True))
        else:
            raise ValueError(
                f"var must be a number, {(K,)}, {means.shape} or {(K, D, D)}, but has shape "
                f"{var.shape}"
            )
        if not ((weights > 0).all() and (variances >= 0).all()):
            raise ValueError("weights must be positive, and var not negative")
        fields = {"weights": weights / weights.sum(), "means": means, "var": var}
        for name, value in (fields | {"variances": variances, "basis": basis}).items():
            object.__setattr__(self, name, value)

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        xp = _check(x_t, t, self.means.shape[1:])
        alpha, sigma, m, c = self._at(t, x_t)
        log_r, centred = self._responsibilities(x_t, t)
        each = beside(m, x_t)
        if self.variances.any():
            each = each + beside(alpha * c / (alpha**2 * c + sigma**2), x_t) * centred
        each = xp.exp(log_r)[:, :, None] * each
        if self.basis is None:
            return xp.reshape(xp.sum(each, axis=1), x_t.shape)
        back = beside(np.swapaxes(self.basis, 1, 2), x_t)
        return xp.reshape(xp.sum(xp.permute_dims(each, (1, 0, 2)) @ back, axis=0), x_t.shape)

    def given(self, measurement: Measurement) -> MixtureOracle:
        """The denoiser E[x_0 | x_t, y] of the data given one measurement, itself a mixture.

        Each component is conditioned as in `GaussianOracle.given`; w_k goes to w_k N(y; A m_k,
        A C_k Aᵀ + var I), and a component without weight is left out. Points stay points.

        measurement: with y (1, *M), and any var; 0 is the limit, in which a component that is
            certain to give y leaves nothing to those that are not

        Memory: of A and of K covariances as matrices, unless the components are points.
        """
        _check_one(measurement, self.means)
        if not self.variances.any():
            means, var = self.means, np.zeros(len(self.means))
            log_p = self._fit_of_points(measurement)
        else:
            K, D = len(self.means), math.prod(self.means.shape[1:])
            roots = np.sqrt(np.broadcast_to(self.variances, (K, D)))[:, None, :]
            roots = roots * (np.eye(D) if self.basis is None else self.basis)
            found = [
                _condition(m.reshape(-1), r, measurement)
                for m, r in zip(self.means, roots, strict=True)
            ]
            means, roots, rank, log_p = (np.stack(part) for part in zip(*found, strict=True))
            means, var = means.reshape(self.means.shape), roots @ np.swapaxes(roots, 1, 2)
            possible = rank[log_p > -math.inf]
            log_p[rank > possible.min(initial=rank.max())] = -math.inf
        if log_p.max() == -math.inf:
            raise ValueError(_NEVER)
        log_w = np.log(self.weights) + log_p
        weights = np.exp(log_w - log_w.max())
        some = weights > 0
        return MixtureOracle(weights[some], means[some], var[some])

    def _fit_of_points(self, measurement: Measurement) -> Array:
        """log N(y; A m_k, var I) up to a constant, (K,); without noise 0, or -inf if y differs."""
        operator, y, var = _at_hand(measurement)
        seen = operator.forward(self.means)
        if var:
            return -0.5 * ((y - seen) ** 2).reshape(len(seen), -1).sum(1) / var
        off = np.abs(operator.transpose(y - seen)).reshape(len(seen), -1).max(1)
        slack = 64 * np.finfo(y.dtype).eps * np.abs(operator.transpose(seen)).max()
        return np.where(off <= slack, 0.0, -math.inf)

    def log_prob(self, x: Array, t: Level = _CLEAN) -> Array:
        """log q(x_t), exactly: (B,). At the default, clean data, the log density of x_0."""
        _check(x, t, self.means.shape[1:])
        check_density(self.variances, t)
        return _log_sum_exp(self._joint(x, t)[0])[:, 0]

    def reverse_mixture(self, x_t: Array, t: Level, s: Level) -> tuple[Array, Gaussian]:
        """q(x_s | x_t), exactly, for any s < t; it is a mixture too.

        log weights: (B, K), the log of each component's probability given x_t
        Gaussian: means (B, K, *D), and variances that broadcast to them

        ValueError with (K, D, D) covariances: its coordinates are then dependent.
        """
        if self.basis is not None:
            raise ValueError("with a (K, D, D) var the reverse kernel has dependent coordinates")
        xp = _check(x_t, t, self.means.shape[1:])
        log_r, centred = self._responsibilities(x_t, t)
        alpha_t, sigma_t, m, c = self._at(t, x_t)
        alpha_s, sigma_s, _, _ = self._at(s, x_t)
        ratio = (alpha_s**2 * c + sigma_s**2) / (alpha_t**2 * c + sigma_t**2)
        mean = beside(alpha_s * m, x_t) + beside(alpha_t / alpha_s * ratio, x_t) * centred
        var = beside(fit(tau(t, s), centred) * sigma_t**2 * ratio, x_t)
        shape = self.means.shape[1:]
        one = shape if var.shape[2] > 1 else (1,) * len(shape)
        return log_r, Gaussian(
            xp.reshape(mean, (*mean.shape[:2], *shape)), xp.reshape(var, (*var.shape[:2], *one))
        )

    def _responsibilities(self, x: Array, t: Level) -> tuple[Array, Array]:
        """log r: (B, K), and x - α m along the bases: (B, K, D)."""
        joint, centred = self._joint(x, t)
        # The largest is subtracted first. Far from the data its rounding would otherwise be in Σ r.
        joint = joint - array_namespace(x).max(joint, axis=1, keepdims=True)
        return joint - _log_sum_exp(joint), centred

    def _joint(self, x: Array, t: Level) -> tuple[Array, Array]:
        """log w_k + log N(x; α m_k, V_k): (B, K), and x - α m_k along the bases: (B, K, D)."""
        xp = array_namespace(x)
        alpha, sigma, m, c = self._at(t, x)
        if self.basis is None:
            along = xp.reshape(x, (x.shape[0], 1, m.shape[2]))
        else:
            along = xp.reshape(x, (1, x.shape[0], m.shape[2])) @ beside(self.basis, x)
            along = xp.permute_dims(along, (1, 0, 2))
        centred = along - beside(alpha * m, x)
        var = beside(alpha**2 * c + sigma**2, x)
        # A variance of one number per component stands for each of the D coordinates.
        volume = xp.sum(xp.log(2 * math.pi * var), axis=2) * (m.shape[2] / c.shape[2])
        log_w = beside(np.log(self.weights)[None, :], x)
        return log_w - 0.5 * (xp.sum(centred**2 / var, axis=2) + volume), centred

    def _at(self, t: Level, x: Array) -> tuple[Scalar, Scalar, Array, Array]:
        """α and σ, numbers or (B, 1, 1), m (1, K, D) and c (1, 1 or K, 1 or D) along the bases."""
        m, c = self.means.reshape(1, len(self.means), -1), self.variances[None, ...]
        if self.basis is not None:
            m = np.einsum("okd,kde->oke", m, self.basis)
        like = array_namespace(x).reshape(x, (x.shape[0], 1, m.shape[2]))
        alpha, sigma = fit(t.alpha, like), fit(t.sigma, like)
        if is_number(alpha):
            return alpha, sigma, m, c
        return alpha, sigma, beside(m, x), beside(c, x)


class DatasetOracle(MixtureOracle):
    """The denoiser of N equally likely points: a mixture without variance.

    E[x_0 | x_t] = Σ_i softmax_i(-‖x_t - α x_i‖² / 2σ²) x_i

    points: (N, *D)

    x_0 lies in the convex hull of the points, and tends to the nearest one as σ -> 0, so that a
    sampler ends on a point of the data.
    """

    def __init__(self, points: Any) -> None:
        super().__init__(np.ones(len(points)), points, 0.0)


def _check(x: Array, t: Level, shape: tuple[int, ...]) -> Any:
    """The namespace of x, which must be (B, *D) of the oracle's data; t must be a level."""
    xp = check_pair(x=x)
    check_levels(t=t)
    if tuple(x.shape[1:]) != shape or x.ndim != 1 + len(shape):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but the data of this oracle have shape {shape}: pass "
            f"(B, {', '.join(map(str, shape))})"
        )
    return xp


def check_density(var: Array, t: Level) -> None:
    """ValueError if data without variance has no density at a host level, for want of noise."""
    if on_host(t.sigma) and np.any(np.asarray(t.sigma) == 0) and not var.all():
        raise ValueError(
            "data without variance has no density of its own: pass a level t with noise"
        )


def _eigen(name: str, cov: Array) -> tuple[Array, Array]:
    """The eigenvalues (D,) and eigenvectors (D, D), in columns, of a covariance of that name."""
    if not np.allclose(cov, cov.T, rtol=1e-10, atol=1e-12 * np.abs(cov).max()):
        i, j = np.unravel_index(np.argmax(np.abs(cov - cov.T)), cov.shape)
        raise ValueError(
            f"{name} must be symmetric, but {name}[{i}, {j}] = {cov[i, j]} and {name}[{j}, {i}] = "
            f"{cov[j, i]}"
        )
    variances, basis = np.linalg.eigh(cov)
    # For directions without variance eigh returns roundings of 0, of either sign.
    tiny = variances.size * _EPS * np.abs(variances).max(initial=0)
    return np.where(np.abs(variances) <= tiny, 0.0, variances), basis


def _check_one(measurement: Measurement, means: Array) -> None:
    """TypeError or ValueError unless it is a measurement, with one y, of data as the means are."""
    check_measurement(measurement)
    measurement.operator.check(means=means)
    if measurement.y.shape[0] != 1:
        raise ValueError(
            f"an oracle is given one y, of shape (1, *M), but y has {tuple(measurement.y.shape)}"
        )


def _at_hand(measurement: Measurement) -> tuple[Operator, Array, float]:
    """The operator, y and var of a measurement, y on the host."""
    return measurement.operator, np.asarray(measurement.y), measurement.var


def _condition(m: Array, root: Array, measurement: Measurement) -> tuple[Array, Array, int, float]:
    """N(m, R Rᵀ) given y = A x_0 + noise: mean, root of the covariance, rank and log N(y).

    With A R = U G Wᵀ the mean is m + R W [g / (g² + var)] Uᵀ (y - A m), and the root is
    R W [var / (g² + var)]^½. Without noise the density is over the directions with g > 0, rank in
    number, and -inf if y differs in another; with noise it is over all, and rank is 0.
    """
    operator, y, var = _at_hand(measurement)
    a, y = operator.matrix(), y.reshape(-1)
    u, g, w = np.linalg.svd(a @ root)
    size = np.linalg.norm
    rank = int((g > max(a.shape) * _EPS * size(a) * size(root)).sum())
    z = u.T @ (y - a @ m)
    g, left = g[:rank], np.ones(len(m))
    mean = m + root @ w[:rank].T @ (g / (g**2 + var) * z[:rank])
    left[:rank] = var / (g**2 + var)
    root = root @ w.T * np.sqrt(left)
    if var:
        spread = np.full(len(y), var)
        spread[:rank] += g**2
        return mean, root, 0, _log_normal(z, spread)
    # What y has that A x never has, says nothing of x: Aᵀ removes it.
    slack = 64 * np.finfo(y.dtype).eps * (size(a.T @ y) + size(a.T @ a @ m))
    fits = size(a.T @ u[:, rank:] @ z[rank:]) <= slack
    return mean, root, rank, _log_normal(z[:rank], g**2) if fits else -math.inf


def _log_normal(z: Array, var: Array) -> float:
    return float(-0.5 * (z**2 / var + np.log(2 * math.pi * var)).sum())


_NEVER = "the data of this oracle never have this y: give the measurement a var"


def _log_sum_exp(a: Array) -> Array:
    """log Σ exp(a) over axis 1, kept: (B, K) to (B, 1)."""
    xp = array_namespace(a)
    top = xp.max(a, axis=1, keepdims=True)
    return xp.log(xp.sum(xp.exp(a - top), axis=1, keepdims=True)) + top
