"""Gaussians with independent coordinates, and the divergences between them, in nats."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from ddpm_core.arrays import astype, check_pair, expm1, fit, is_number, log, sqrt, where, widen
from ddpm_core.typing import Array, Scalar


class Gaussian(NamedTuple):
    """N(mean, var I), or N(mean, diag(var)).

    mean: (B, *D)
    var: a number or (B,), or an array that broadcasts to mean; 0 is the point mass at the mean
    """

    mean: Array
    var: Scalar

    def reparameterise(self, z: Array) -> Array:
        """mean + sqrt(var) z: a draw, for z standard normal of mean's shape."""
        check_pair(mean=self.mean, z=z)
        return self.mean + fit(sqrt(self.var), self.mean) * z


def log_prob(gaussian: Gaussian, x: Array) -> Array:
    """log N(x; mean, var), summed over the coordinates: (B,).

    gaussian: var > 0
    x: (B, *D)
    """
    check_pair(mean=gaussian.mean, x=x)
    var = fit(gaussian.var, x)
    return sum_of_sample(-0.5 * ((x - gaussian.mean) ** 2 / var + log(var) + math.log(2 * math.pi)))


def discretised_log_prob(gaussian: Gaussian, x: Array, bins: int = 256) -> Array:
    """log of the mass that N(mean, var) has in the bin of x, summed over coordinates: (B,).

    P(x) = Φ((x + h - mean) / sqrt(var)) - Φ((x - h - mean) / sqrt(var)),   h = 1 / (bins - 1)

    The first and the last bin reach to infinity, so that the masses sum to 1: the decoder of Ho et
    al. 2020, Eq. 13. The value and its gradient are finite however far x is from the mean.

    gaussian: var > 0
    x: (B, *D), grey values scaled to [-1, 1]: centres 2 k h - 1 of bins
    bins: the number of grey values, at least 2; 256 for bytes

    The mass has a relative error of about eps(dtype) sqrt(var) / h where h is far below sqrt(var).
    """
    xp = check_pair(mean=gaussian.mean, x=x)
    if bins < 2:
        raise ValueError(f"bins must be at least 2, but is {bins}")
    dtype, mean, x = x.dtype, widen(xp, gaussian.mean), widen(xp, x)
    h, scale = 1.0 / (bins - 1), sqrt(fit(gaussian.var, x))
    top, bottom = x > 1 - h, x < h - 1
    # The distance of x from the mean; for the two outer bins, signed towards their infinite edge.
    far = xp.where(top, x - mean, xp.where(bottom, mean - x, xp.abs(x - mean)))
    near_edge, far_edge = (far - h) / scale, (far + h) / scale
    inner = _scaled_upper_tail(xp, near_edge)
    outer = xp.where(top | bottom, xp.zeros_like(x), _scaled_upper_tail(xp, far_edge))
    # If the mean lies within the bin, the mass is 1 minus both tails; if not, it is the difference
    # of two tails, from which the larger one's exponential is factored out.
    within = near_edge < 0
    tails = xp.exp(-0.5 * near_edge**2) * inner + xp.exp(-0.5 * far_edge**2) * outer
    ratio = xp.exp(-2 * h * xp.where(within, xp.zeros_like(far), far) / scale**2)
    # The branch that is not chosen must have finite gradients too.
    inside = xp.log1p(-xp.where(within, tails, xp.zeros_like(tails)))
    beyond = xp.log(xp.where(within, xp.ones_like(tails), inner - ratio * outer))
    log_p = xp.where(within, inside, beyond - 0.5 * near_edge**2)
    return astype(xp, sum_of_sample(log_p), dtype)


def _scaled_upper_tail(xp: Any, z: Array) -> Array:
    """exp(z² / 2) (1 - Φ(|z|)) = erfcx(|z| / sqrt(2)) / 2, in terms that are all positive.

    erfc(y) = (2 y / π) exp(-y²) ∫_0^∞ exp(-t²) / (t² + y²) dt (DLMF 7.7.1) by the midpoint rule, to
    which the poles at t = ±i y add 2 / (1 + exp(2 π y / step)) (Hunter & Regan 1972). The relative
    error is exp(-(π / step)²) = 7e-18. (The array API standard has no erf.)
    """
    step = 0.5
    y = xp.abs(z) * math.sqrt(0.5)
    total = xp.zeros_like(y)
    for k in range(12):
        t = (k + 0.5) * step
        total = total + math.exp(-t * t) / (t * t + y * y)
    period = 2 * math.pi / step
    low = xp.minimum(y, xp.full_like(y, period / 2))
    pole = xp.exp(low * (low - period)) / (1 + xp.exp(-period * low))
    return step / math.pi * y * total + xp.where(y < period / 2, pole, xp.zeros_like(y))


def kl(q: Gaussian, p: Gaussian) -> Array:
    """KL(q ‖ p) = ½ Σ [log(v_p / v_q) + v_q / v_p + (m_q - m_p)² / v_p - 1], per sample: (B,).

    Never negative, and 0 only where q = p. A variance of 0 is a point: KL is 0 of two equal points,
    and inf of two others, or of a point and a density.
    """
    xp = check_pair(q=q.mean, p=p.mean)
    off = (q.mean - p.mean) ** 2
    v_q, v_p = fit(q.var, off), fit(p.var, off)
    numbers = is_number(v_q) and is_number(v_p)
    if not numbers:
        v_q, v_p = (v + xp.zeros_like(off) for v in (v_q, v_p))
    point_q, point_p = v_q == 0, v_p == 0
    v_q, v_p = where(point_q, 1.0, v_q), where(point_p, 1.0, v_p)
    ratio = log(v_q) - log(v_p)
    each = off / v_p + (expm1(ratio) - ratio)  # r - 1 - log r, from log r: never below 0
    if not numbers or point_q or point_p:
        infinite = xp.full_like(off, math.inf)
        of_points = where(off == 0, xp.zeros_like(off), infinite)
        each = where(point_q & point_p, of_points, where(point_q | point_p, infinite, each))
    return sum_of_sample(0.5 * each)


def sum_of_sample(x: Array) -> Array:
    """The sum over all axes but the first: (B, *D) -> (B,)."""
    xp = array_namespace(x)
    return xp.sum(x, axis=tuple(range(1, x.ndim))) if x.ndim > 1 else x


def mean_of_sample(x: Array) -> Array:
    """The mean over all axes but the first: (B, *D) -> (B,)."""
    xp = array_namespace(x)
    return xp.mean(x, axis=tuple(range(1, x.ndim))) if x.ndim > 1 else x
