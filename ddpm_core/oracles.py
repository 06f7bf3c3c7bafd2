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
from array_api_compat import array_namespace, is_numpy_array

from ddpm_core.arrays import check_pair, device_of, fit, is_number, on_host, sqrt
from ddpm_core.gaussians import Gaussian
from ddpm_core.levels import Level, check_levels, from_logsnr, tau
from ddpm_core.typing import Array, Scalar

_CLEAN = from_logsnr(math.inf, 0.0)


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
            if not np.allclose(cov, cov.T, rtol=1e-10, atol=1e-12 * np.abs(cov).max()):
                i, j = np.unravel_index(np.argmax(np.abs(cov - cov.T)), cov.shape)
                raise ValueError(
                    f"cov must be symmetric, but cov[{i}, {j}] = {cov[i, j]} and cov[{j}, {i}] = "
                    f"{cov[j, i]}"
                )
            variances, basis = np.linalg.eigh(cov)
            # For directions without variance eigh returns roundings of 0, of either sign.
            tiny = variances.size * np.finfo(np.float64).eps * np.abs(variances).max(initial=0)
            variances = np.where(np.abs(variances) <= tiny, 0.0, variances)
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
        return self._back(_up(m, x_t) + _up(gain, x_t) * self._centred(x_t, alpha, m), x_t)

    def log_prob(self, x: Array, t: Level = _CLEAN) -> Array:
        """log q(x_t), exactly: (B,). At the default, clean data, the log density of x_0."""
        xp = _check(x, t, self.mean.shape)
        check_density(self.variances, t)
        alpha, sigma, m, c = self._at(t, x)
        var = _up(alpha**2 * c + sigma**2, x)
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
        gain = _up(alpha_t / alpha_s * ratio, x_t)
        var = self._number(tau(t, s), x_t) * sigma_t**2 * ratio
        return _up(alpha_s * m, x_t) + gain * self._centred(x_t, alpha_t, m), _up(var, x_t)

    def _at(self, t: Level, x: Array) -> tuple[Scalar, Scalar, Array, Array]:
        """α and σ, numbers or (B, 1), and m and c (1, D) along the basis, of the library of α."""
        alpha, sigma = self._number(t.alpha, x), self._number(t.sigma, x)
        m = self.mean.reshape(1, -1)
        m = m if self.basis is None else m @ self.basis
        c = self.variances.reshape(1, -1)
        return (alpha, sigma, m, c) if is_number(alpha) else (alpha, sigma, _up(m, x), _up(c, x))

    def _number(self, c: Scalar, x: Array) -> Scalar:
        return fit(c, array_namespace(x).reshape(x, (x.shape[0], self.mean.size)))

    def _centred(self, x: Array, alpha: Scalar, m: Array) -> Array:
        return self._along(x) - _up(alpha * m, x)

    def _along(self, x: Array) -> Array:
        """(B, *D) to coordinates along the basis (B, D)."""
        x = array_namespace(x).reshape(x, (x.shape[0], self.mean.size))
        return x if self.basis is None else x @ _up(self.basis, x)

    def _back(self, z: Array, like: Array) -> Array:
        """Coordinates along the basis (B, D) to (B, *D)."""
        z = z if self.basis is None else z @ _up(self.basis.T, like)
        return array_namespace(z).reshape(z, like.shape)


@dataclass(frozen=True, eq=False)
class MixtureOracle:
    """The denoiser of a mixture of Gaussians with independent coordinates.

    E[x_0 | x_t] = Σ_k r_k [m_k + α c_k (x_t - α m_k) / V_k],   V_k = α² c_k + σ²
    r = softmax_k(log w_k + log N(x_t; α m_k, V_k))

    weights: (K,), positive; normalised
    means: (K, *D)
    var: the variances c_k: a number, (K,), or (K, *D); 0 is a point

    A call needs memory for B K D numbers.
    """

    weights: Array
    means: Array
    var: Any

    def __post_init__(self) -> None:
        weights = np.array(self.weights, dtype=np.float64)
        means = np.array(self.means, dtype=np.float64)
        var = np.array(self.var, dtype=np.float64)
        if means.ndim < 2 or weights.shape != means.shape[:1] or not len(weights):
            raise ValueError(
                f"means must be (K, *D) and weights (K,), but are {means.shape} and {weights.shape}"
            )
        if var.shape not in ((), means.shape[:1], means.shape):
            raise ValueError(
                f"var must be a number, {means.shape[:1]} or {means.shape}, but has shape "
                f"{var.shape}"
            )
        if not ((weights > 0).all() and (var >= 0).all()):
            raise ValueError("weights must be positive, and var not negative")
        if not all(np.isfinite(table).all() for table in (weights, means, var)):
            raise ValueError("weights, means and var must be finite")
        for name, value in (("weights", weights / weights.sum()), ("means", means), ("var", var)):
            object.__setattr__(self, name, value)

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        xp = _check(x_t, t, self.means.shape[1:])
        alpha, sigma, m, c = self._at(t, x_t)
        log_r, centred = self._responsibilities(x_t, t)
        r = xp.exp(log_r)[:, :, None]
        each = _up(m, x_t)
        if self.var.any():
            each = each + _up(alpha * c / (alpha**2 * c + sigma**2), x_t) * centred
        return xp.reshape(xp.sum(r * each, axis=1), x_t.shape)

    def log_prob(self, x: Array, t: Level = _CLEAN) -> Array:
        """log q(x_t), exactly: (B,). At the default, clean data, the log density of x_0."""
        _check(x, t, self.means.shape[1:])
        check_density(self.var, t)
        return _log_sum_exp(self._joint(x, t)[0])[:, 0]

    def reverse_mixture(self, x_t: Array, t: Level, s: Level) -> tuple[Array, Gaussian]:
        """q(x_s | x_t), exactly, for any s < t; it is a mixture too.

        log weights: (B, K), the log of each component's probability given x_t
        Gaussian: means (B, K, *D), and variances that broadcast to them
        """
        xp = _check(x_t, t, self.means.shape[1:])
        log_r, centred = self._responsibilities(x_t, t)
        alpha_t, sigma_t, m, c = self._at(t, x_t)
        alpha_s, sigma_s, _, _ = self._at(s, x_t)
        ratio = (alpha_s**2 * c + sigma_s**2) / (alpha_t**2 * c + sigma_t**2)
        mean = _up(alpha_s * m, x_t) + _up(alpha_t / alpha_s * ratio, x_t) * centred
        var = _up(fit(tau(t, s), centred) * sigma_t**2 * ratio, x_t)
        shape = self.means.shape[1:]
        one = shape if var.shape[2] > 1 else (1,) * len(shape)
        return log_r, Gaussian(
            xp.reshape(mean, (*mean.shape[:2], *shape)), xp.reshape(var, (*var.shape[:2], *one))
        )

    def _responsibilities(self, x: Array, t: Level) -> tuple[Array, Array]:
        """log r: (B, K), and x - α m: (B, K, D)."""
        joint, centred = self._joint(x, t)
        # The largest is subtracted first. Far from the data its rounding would otherwise be in Σ r.
        joint = joint - array_namespace(x).max(joint, axis=1, keepdims=True)
        return joint - _log_sum_exp(joint), centred

    def _joint(self, x: Array, t: Level) -> tuple[Array, Array]:
        """log w_k + log N(x; α m_k, V_k): (B, K), and x - α m_k: (B, K, D)."""
        xp = array_namespace(x)
        alpha, sigma, m, c = self._at(t, x)
        centred = xp.reshape(x, (x.shape[0], 1, m.shape[2])) - _up(alpha * m, x)
        var = _up(alpha**2 * c + sigma**2, x)
        # A variance of one number per component stands for each of the D coordinates.
        volume = xp.sum(xp.log(2 * math.pi * var), axis=2) * (m.shape[2] / c.shape[2])
        log_w = _up(np.log(self.weights)[None, :], x)
        return log_w - 0.5 * (xp.sum(centred**2 / var, axis=2) + volume), centred

    def _at(self, t: Level, x: Array) -> tuple[Scalar, Scalar, Array, Array]:
        """α and σ, numbers or (B, 1, 1), m (1, K, D), c (1, K or 1, D or 1), of α's library."""
        count = len(self.means)
        m = self.means.reshape(1, count, -1)
        c = self.var.reshape(1, count if self.var.ndim else 1, -1)
        like = array_namespace(x).reshape(x, (x.shape[0], 1, m.shape[2]))
        alpha, sigma = fit(t.alpha, like), fit(t.sigma, like)
        return (alpha, sigma, m, c) if is_number(alpha) else (alpha, sigma, _up(m, x), _up(c, x))


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


def _up(table: Array, x: Array) -> Array:
    """A NumPy table as an array of x's library, device and dtype; any other array as it is."""
    if not is_numpy_array(table):
        return table
    if is_numpy_array(x):
        return table.astype(x.dtype, copy=False)
    xp = array_namespace(x)
    return xp.asarray(table, dtype=x.dtype, **device_of(xp, x))


def _log_sum_exp(a: Array) -> Array:
    """log Σ exp(a) over axis 1, kept: (B, K) to (B, 1)."""
    xp = array_namespace(a)
    top = xp.max(a, axis=1, keepdims=True)
    return xp.log(xp.sum(xp.exp(a - top), axis=1, keepdims=True)) + top
