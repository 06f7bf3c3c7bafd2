"""Gaussians with independent coordinates, and the divergences between them, in nats."""

from __future__ import annotations

import math
from typing import NamedTuple

from array_api_compat import array_namespace

from ddpm_core._typing import Array, Scalar
from ddpm_core.levels import check_pair, expm1, fit, log, sqrt


class Gaussian(NamedTuple):
    """N(mean, var I), or N(mean, diag(var)).

    mean: (B, *D)
    var: a number or (B,), or an array that broadcasts to mean; 0 is the point mass at the mean
    """

    mean: Array
    var: Scalar

    def draw(self, z: Array) -> Array:
        """mean + sqrt(var) z: a draw, for z standard normal of mean's shape."""
        check_pair(mean=self.mean, z=z)
        return self.mean + fit(sqrt(self.var), self.mean) * z


def log_prob(gaussian: Gaussian, x: Array) -> Array:
    """log N(x; mean, var), summed over the coordinates: (B,).

    x: (B, *D)
    """
    check_pair(mean=gaussian.mean, x=x)
    var = fit(gaussian.var, x)
    return sum_of_sample(-0.5 * ((x - gaussian.mean) ** 2 / var + log(var) + math.log(2 * math.pi)))


def kl(q: Gaussian, p: Gaussian) -> Array:
    """KL(q ‖ p) = ½ Σ [log(v_p / v_q) + v_q / v_p + (m_q - m_p)² / v_p - 1], per sample: (B,).

    Never negative, and 0 only where q = p.
    """
    check_pair(q=q.mean, p=p.mean)
    x = q.mean
    v_q, v_p = fit(q.var, x), fit(p.var, x)
    ratio = log(v_q) - log(v_p)  # r - 1 - log r at log r: it cannot cancel below 0
    return sum_of_sample(0.5 * ((x - p.mean) ** 2 / v_p + (expm1(ratio) - ratio)))


def sum_of_sample(x: Array) -> Array:
    """The sum over every axis but the first: (B, *D) -> (B,)."""
    xp = array_namespace(x)
    return xp.sum(x, axis=tuple(range(1, x.ndim))) if x.ndim > 1 else x


def mean_of_sample(x: Array) -> Array:
    """The mean over every axis but the first: (B, *D) -> (B,)."""
    xp = array_namespace(x)
    return xp.mean(x, axis=tuple(range(1, x.ndim))) if x.ndim > 1 else x
