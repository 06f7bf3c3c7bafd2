"""Exact denoisers: E[x_0 | x_t] in closed form, for data whose law is known.

They make samplers, losses and bounds testable to rounding, and run without weights. Their tables
are float64 on the host; a number of the device is made from them last. At a level (B,) of
the device the tables meet it there, in x_t's dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from ddpm_core._typing import Array, Scalar
from ddpm_core.gaussians import Gaussian, sum_of_sample
from ddpm_core.levels import Level, check_pair, device_of, fit, from_logsnr, sqrt, tau

_CLEAN = from_logsnr(math.inf, 0.0)


@dataclass(frozen=True, eq=False)
class GaussianOracle:
    """The denoiser of data N(mean, cov).

    E[x_0 | x_t] = m + α C V⁻¹ (x_t - α m),   V = α² C + σ² I

    mean: (*D)
    cov: the covariance: a number, (*D) for independent coordinates, or (D, D) with D the product
        of mean's shape

    >>> half = from_logsnr(0.0, time=0)  # α² = σ² = 1/2
    >>> GaussianOracle(np.zeros(1), 1.0)(np.ones((1, 1)), half).round(6)
    array([[0.707107]])
    """

    mean: Array
    cov: Any
    variances: Array = field(init=False, repr=False)  #: along the directions of `basis`
    basis: Array | None = field(init=False, repr=False)  #: (D, D), columns; None for the axes

    def __post_init__(self) -> None:
        mean = np.asarray(self.mean, dtype=np.float64)
        cov = np.asarray(self.cov, dtype=np.float64)
        basis = None
        if cov.shape in ((), mean.shape):
            variances = np.broadcast_to(cov, mean.shape)
        elif cov.shape == (mean.size, mean.size):
            if not np.allclose(cov, cov.T, rtol=1e-10, atol=1e-12 * np.abs(cov).max()):
                raise ValueError("cov is not symmetric")
            variances, basis = np.linalg.eigh(cov)
            # Directions without variance come out of eigh as roundings of 0, of either sign.
            tiny = variances.size * np.finfo(np.float64).eps * np.abs(variances).max(initial=0)
            variances = np.where(np.abs(variances) <= tiny, 0.0, variances)
        else:
            raise ValueError(
                f"cov must be a number, {mean.shape} or {(mean.size, mean.size)} for a mean of "
                f"shape {mean.shape}, but has shape {cov.shape}"
            )
        if not (variances >= 0).all() or not np.isfinite(mean).all():
            raise ValueError("mean must be finite, and cov must have no negative variance")
        for name, value in (("mean", mean), ("variances", variances), ("basis", basis)):
            object.__setattr__(self, name, value)

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        alpha, sigma, c = self._at(t, x_t)
        centred = self._centred(x_t, alpha)
        return _up(self.mean, x_t) + self._apply(alpha * c / (alpha**2 * c + sigma**2), centred)

    def log_prob(self, x: Array, t: Level = _CLEAN) -> Array:
        """Log q(x_t), exactly: (B,). At the default, clean data, the log density of x_0."""
        alpha, sigma, c = self._at(t, x)
        var = _up(alpha**2 * c + sigma**2, x)
        z = self._to_basis(self._centred(x, alpha))
        xp = array_namespace(x)
        return sum_of_sample(-0.5 * (z**2 / var + xp.log(2 * math.pi * var)) + 0.0 * z)

    def reverse(self, x_t: Array, t: Level, s: Level) -> Gaussian:
        """q(x_s | x_t), exactly, of independent coordinates, for any s < t.

        mean = α_s m + (α_t / α_s) (V_s / V_t) (x_t - α_t m),   var = τ σ_t² V_s / V_t

        ValueError with a (D, D) covariance, whose kernel is not of independent coordinates; draw
        from it with `reverse_sample`.
        """
        if self.basis is not None:
            raise ValueError("cov is a matrix: draw from the reverse kernel with reverse_sample")
        mean, gain, var = self._kernel(x_t, t, s)
        return Gaussian(mean + gain * self._centred(x_t, self._at(t, x_t)[0]), var)

    def reverse_sample(self, x_t: Array, z: Array, t: Level, s: Level) -> Array:
        """A draw from q(x_s | x_t), exactly, for any covariance.

        x_t, z: (B, *D), z standard normal
        """
        check_pair(x_t=x_t, z=z)
        mean, gain, var = self._kernel(x_t, t, s)
        along = gain * self._to_basis(self._centred(x_t, self._at(t, x_t)[0]))
        return mean + self._from_basis(along + sqrt(var) * self._to_basis(z), x_t.shape)

    def _kernel(self, x_t: Array, t: Level, s: Level) -> tuple[Array, Array, Array]:
        """The reverse kernel's α_s m, and its gain and variance along the basis."""
        alpha_t, sigma_t, c = self._at(t, x_t)
        alpha_s, sigma_s, _ = self._at(s, x_t)
        ratio = (alpha_s**2 * c + sigma_s**2) / (alpha_t**2 * c + sigma_t**2)
        added = self._along(tau(t, s), x_t)
        gain, var = alpha_t / alpha_s * ratio, added * sigma_t**2 * ratio
        return self._shift(x_t, alpha_s), _up(gain, x_t), _up(var, x_t)

    def _at(self, t: Level, x: Array) -> tuple[Scalar, Scalar, Array]:
        """α, σ and the variances: on the host if the level is there, else beside x."""
        alpha, sigma, c = self._along(t.alpha, x), self._along(t.sigma, x), self.variances[None, ...]
        return alpha, sigma, c if isinstance(alpha, float) else _up(c, x)

    def _along(self, c: Scalar, x: Array) -> Scalar:
        """A coefficient, ready to multiply what is along the basis: (B, *D), or (B, D)."""
        c = fit(c, x)
        if self.basis is None or isinstance(c, float) or not c.ndim:
            return c
        return array_namespace(x).reshape(c, (-1, 1))

    def _centred(self, x: Array, alpha: Scalar) -> Array:
        return x - self._shift(x, alpha)

    def _shift(self, x: Array, alpha: Scalar) -> Array:
        """Alpha m, where x is. Along a basis α is (B, 1), and m is not."""
        if not isinstance(alpha, (int, float)) and alpha.ndim:
            alpha = array_namespace(x).reshape(alpha, (-1,) + (1,) * (x.ndim - 1))
        return _scaled(alpha, self.mean, x)

    def _apply(self, gain: Array, centred: Array) -> Array:
        return self._from_basis(_up(gain, centred) * self._to_basis(centred), centred.shape)

    def _to_basis(self, x: Array) -> Array:
        if self.basis is None:
            return x
        return array_namespace(x).reshape(x, (x.shape[0], -1)) @ _up(self.basis, x)

    def _from_basis(self, x: Array, shape: tuple[int, ...]) -> Array:
        if self.basis is None:
            return x
        return array_namespace(x).reshape(x @ _up(self.basis.T, x), shape)


@dataclass(frozen=True, eq=False)
class MixtureOracle:
    """The denoiser of a mixture of Gaussians with independent coordinates.

    E[x_0 | x_t] = Σ_k r_k [m_k + α c_k (x_t - α m_k) / V_k],   V_k = α² c_k + σ²
    r = softmax_k(log w_k + log N(x_t; α m_k, V_k))

    weights: (K,), positive; normalised
    means: (K, *D)
    var: the variances c_k: a number, (K,), or (K, *D); 0 is a point

    Costs memory for B K D numbers.
    """

    weights: Array
    means: Array
    var: Any

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, dtype=np.float64)
        means = np.asarray(self.means, dtype=np.float64)
        var = np.asarray(self.var, dtype=np.float64)
        if means.ndim < 2 or weights.shape != means.shape[:1] or not len(weights):
            raise ValueError(
                f"means must be (K, *D) and weights (K,), but are {means.shape} and {weights.shape}"
            )
        if var.shape not in ((), means.shape[:1], means.shape):
            raise ValueError(
                f"var must be a number, {means.shape[:1]} or {means.shape}, but has shape "
                f"{var.shape}"
            )
        if not (weights > 0).all() or not (var >= 0).all() or not np.isfinite(means).all():
            raise ValueError("weights must be positive, var not negative, and means finite")
        if var.ndim < means.ndim:
            var = var.reshape((-1,) + (1,) * (means.ndim - 1))
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "var", var)

    def __call__(self, x_t: Array, t: Level, **cond: Any) -> Array:
        xp = array_namespace(x_t)
        log_r, difference = self._responsibilities(x_t, t)
        r = xp.exp(log_r)
        flat = xp.reshape(_up(self.means, x_t), (self.means.shape[0], -1))
        x_0 = xp.reshape(r @ flat, x_t.shape)
        if not self.var.any():
            return x_0
        alpha, sigma, c = self._at(t, x_t)
        gain = _up(alpha * c / (alpha**2 * c + sigma**2), x_t)
        return x_0 + xp.sum(_beside(r, x_t) * gain * difference, axis=1)

    def log_prob(self, x: Array, t: Level = _CLEAN) -> Array:
        """Log q(x_t), exactly: (B,). At the default, clean data, the log density of x_0."""
        xp = array_namespace(x)
        joint, _ = self._joint(x, t)
        top = xp.max(joint, axis=1, keepdims=True)
        return xp.log(xp.sum(xp.exp(joint - top), axis=1)) + top[:, 0]

    def reverse(self, x_t: Array, t: Level, s: Level) -> tuple[Array, Gaussian]:
        """q(x_s | x_t), exactly, for any s < t: itself a mixture.

        log weights: (B, K), the log of each component's share given x_t
        Gaussian: means (B, K, *D), and variances that broadcast to them
        """
        log_r, difference = self._responsibilities(x_t, t)
        alpha_t, sigma_t, c = self._at(t, x_t)
        alpha_s, sigma_s, _ = self._at(s, x_t)
        ratio = (alpha_s**2 * c + sigma_s**2) / (alpha_t**2 * c + sigma_t**2)
        host = isinstance(t.logsnr, float)
        added = tau(t, s) if host else fit(tau(t, s), difference)
        gain, var = _up(alpha_t / alpha_s * ratio, x_t), _up(added * sigma_t**2 * ratio, x_t)
        mean = _scaled(alpha_s, self.means[None, ...], x_t) + gain * difference
        return log_r, Gaussian(mean, var)

    def _responsibilities(self, x: Array, t: Level) -> tuple[Array, Array]:
        xp = array_namespace(x)
        joint, difference = self._joint(x, t)
        joint = joint - xp.max(joint, axis=1, keepdims=True)
        return joint - xp.log(xp.sum(xp.exp(joint), axis=1, keepdims=True)), difference

    def _joint(self, x: Array, t: Level) -> tuple[Array, Array]:
        """Log w_k + log N(x; α m_k, V_k): (B, K), and x - α m_k: (B, K, *D)."""
        xp = array_namespace(x)
        alpha, sigma, c = self._at(t, x)
        difference = x[:, None, ...] - _scaled(alpha, self.means[None, ...], x)
        var = _up(alpha**2 * c + sigma**2, x)
        axes = tuple(range(2, difference.ndim))
        square = xp.sum(difference**2 / var, axis=axes)
        size = math.prod(self.means.shape[1:])
        # A variance of one number per component stands for each of the D coordinates.
        volume = xp.sum(xp.log(2 * math.pi * var), axis=axes) * (size / math.prod(c.shape[2:]))
        return _up(np.log(self.weights)[None, :], x) - 0.5 * (square + volume), difference

    def _at(self, t: Level, x: Array) -> tuple[Scalar, Scalar, Array]:
        """α, σ and the variances (1, K, ...): on the host if the level is there, else beside x."""
        c = self.var[None, ...]
        if isinstance(t.alpha, (int, float)):
            return t.alpha, t.sigma, c
        alpha, sigma = (fit(field, x) for field in (t.alpha, t.sigma))
        if alpha.ndim:
            alpha, sigma = alpha[:, None, ...], sigma[:, None, ...]
        return alpha, sigma, _up(c, x)


class DatasetOracle(MixtureOracle):
    """The denoiser of a finite data set: N equiprobable points, a mixture without variance.

    E[x_0 | x_t] = Σ_i softmax_i(-‖x_t - α x_i‖² / 2σ²) x_i

    points: (N, *D)

    Inside the convex hull of the points, and at the nearest one as σ -> 0: a sampler
    with it ends on a point of the data.
    """

    def __init__(self, points: Any) -> None:
        super().__init__(np.ones(len(points)), points, 0.0)


def _up(table: Array, x: Array) -> Array:
    """A table of the host beside x, in its dtype; an array that is there already stays."""
    if not is_numpy_array(table):
        return table
    xp = array_namespace(x)
    if is_numpy_array(x):
        return np.asarray(table, dtype=x.dtype)
    return xp.asarray(table.tolist(), dtype=x.dtype, **device_of(xp, x))


def _scaled(alpha: Scalar, table: Array, x: Array) -> Array:
    """Alpha times a table of the host, beside x; finished on the host if alpha is there."""
    if isinstance(alpha, (int, float)):
        return _up(alpha * table, x)
    return alpha * _up(table, x)


def _beside(r: Array, x: Array) -> Array:
    return array_namespace(x).reshape(r, (*r.shape, *(1,) * (x.ndim - 1)))
