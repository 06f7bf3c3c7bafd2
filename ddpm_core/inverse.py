"""Inverse problems: samples of x_0 that agree with a measurement y = A x_0 + noise.

A method makes a denoiser of a denoiser, for every sampler, or a kernel, for `sample_kernel`. Each
says where it is exact; for known data the truth is the oracles' `given`. In the basis V of the
measurement's A = U Σ Vᵀ, ȳ = Vᵀ A⁺ y stands beside x̄ = Vᵀ x, and g is the diagonal of Σ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from ddpm_core.arrays import (
    beside,
    check_function,
    check_pair,
    check_share,
    clip,
    combine,
    fit,
    is_number,
    ratio,
    vjp,
    where,
)
from ddpm_core.denoisers import Denoiser, Wrapped, both
from ddpm_core.gaussians import Gaussian, sum_of_sample
from ddpm_core.kernels import Kernel, Reverse, where_clean
from ddpm_core.levels import Level, check_levels, is_without_data
from ddpm_core.measurements import Map, Measurement, check_measurement
from ddpm_core.process import Variance, q_posterior, q_sample, small
from ddpm_core.typing import Array, Scalar


def ddnm(denoise: Denoiser, measurement: Measurement) -> Wrapped:
    """x̂_0 with what was measured in its place (Wang et al. 2023).

    x_0 = x̂_0 + A⁺ (y - A x̂_0)

    The measurement must be without noise; then A x_0 = y.
    """
    check_function("a Predictor", denoise=denoise)
    measured = _singular(measurement, noise=False) > 0

    def consistent(x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        x_0, v = both(denoise, x_t, t, **cond)
        return _mixed(measurement, x_0, measured), v

    return Wrapped(consistent)


def diffpir(denoise: Denoiser, measurement: Measurement, lam: float = 1.0) -> Wrapped:
    """The point between x̂_0 and the measurement (Zhu et al. 2023).

    x_0 = argmin ‖y - A x_0‖² / var + lam (α / σ)² ‖x_0 - x̂_0‖²

    It is the mean of N(x̂_0, (σ / α)² / lam I) given y, and `ddnm` where var = 0.
    """
    check_function("a Predictor", denoise=denoise)
    if not lam > 0:
        raise ValueError(f"lam must be positive, but is {lam}")
    singular = _singular(measurement)

    def proximal(x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        x_0, v = both(denoise, x_t, t, **cond)
        g, measured, alpha, sigma = _ready(singular, x_t, t.alpha, t.sigma)
        gain = measured * sigma**2 * g**2 / (sigma**2 * g**2 + lam * measurement.var * alpha**2)
        return _mixed(measurement, x_0, gain), v

    return Wrapped(proximal)


def pigdm(
    denoise: Denoiser, measurement: Measurement, spread: Callable[[Level], Scalar] | None = None
) -> Denoiser:
    """E[x_0 | x_t, y] if x_0 given x_t has covariance r² I in y's likelihood (Song et al. 2023).

    x_0 = x̂_0 + (σ² / α) Jᵀ Aᵀ (r² A Aᵀ + var I)⁻¹ (y - A x̂_0),   J = ∂x̂_0 / ∂x_t

    spread: t -> r²; σ² by default

    Exact for N(m, I) data, and for N(m, c I) with its own r² = c σ² / (α² c + σ²). The paper adds
    the second term to DDIM's step, with a weight of its own; here it is in x_0, for every sampler.
    The derivative is that of `arrays.vjp`. Not for levels without data (α = 0).
    """
    check_function("a Predictor", denoise=denoise)
    if spread is not None:
        check_function("lambda t: t.sigma**2", spread=spread)
    singular = _singular(measurement)
    operator = measurement.operator

    def guided(x_t: Array, t: Level, **cond: Any) -> Array:
        x_0, cov = _covariance(denoise, x_t, t, cond)
        r2 = t.sigma**2 if spread is None else spread(t)
        g, measured, r2 = _ready(singular, x_t, r2)
        gain = beside(measured * g**2 / (r2 * g**2 + measurement.var), x_0)
        off = _y_in_basis(measurement, x_0) - operator.to_basis(x_0)
        return x_0 + cov(operator.from_basis(gain * off))

    return guided


def mmps(denoise: Denoiser, measurement: Measurement, iterations: int = 5) -> Denoiser:
    """E[x_0 | x_t, y] if x_0 given x_t is a Gaussian (Rozet et al. 2024).

    x_0 = x̂_0 + C Aᵀ (A C Aᵀ + var I)⁻¹ (y - A x̂_0),   C = (σ² / α) Jᵀ,   J = ∂x̂_0 / ∂x_t

    iterations: of conjugate gradients, each with one product by C; as many as y has numbers solve
        the equations, to sqrt(eps)

    Exact for Gaussian data, if solved. TMPD (Boys et al. 2023) has the diagonal of the sums of C's
    rows in place of C. The derivative is that of `arrays.vjp`. Not for levels without data (α = 0).
    A needs no basis.
    """
    check_function("a Predictor", denoise=denoise)
    check_measurement(measurement)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, but is {iterations}")
    operator = measurement.operator

    def guided(x_t: Array, t: Level, **cond: Any) -> Array:
        x_0, cov = _covariance(denoise, x_t, t, cond)

        def system(v: Array) -> Array:
            return operator.forward(cov(operator.transpose(v))) + measurement.var * v

        off = measurement.y_beside(x_0) - operator.forward(x_0)
        return x_0 + cov(operator.transpose(_solve(system, off, iterations)))

    return guided


class Drawn(NamedTuple):
    """A step of a kernel whose coordinates are not independent: see `kernels.Kernel`."""

    mean: Array
    draw: Map

    def reparameterise(self, z: Array) -> Array:
        """A draw, for z standard normal of the mean's shape."""
        check_pair(mean=self.mean, z=z)
        return self.draw(z)


def replaced(kernel: Kernel, measurement: Measurement) -> Kernel:
    """The kernel's x_s with what was measured drawn from q(x_s | y) (Lugmayr et al. 2022, Eq. 8).

    x̄_s = α_s ȳ + σ_s z̄ where s > 0, and the kernel's elsewhere

    The measurement must be without noise. RePaint is this kernel on a `walk`; on falling levels it
    is the replacement of Song et al. 2021. Its draws tend to p(x_0 | y) as repeats grow and steps
    shrink. The kernel's variance should be one number, unless A is a mask.

    >>> from ddpm_core import GaussianOracle, levels_of, linear, portable_noise, reverse
    >>> from ddpm_core import sample_kernel
    >>> from ddpm_core.measurements import Measurement, mask
    >>> left = Measurement(mask(np.array([True, False])), np.array([[0.5, 0.0]]))
    >>> kernel = replaced(reverse(GaussianOracle(np.zeros(2), [[1.0, 0.9], [0.9, 1.0]])), left)
    >>> noise = portable_noise(0, dtype=np.float64)
    >>> levels = walk(levels_of(linear(), 50), jump=5, repeats=2)
    >>> sample_kernel(kernel, levels, noise(0, (3, 2)), noise)[:, 0]
    array([0.5, 0.5, 0.5])
    """
    check_function("reverse(denoise)", kernel=kernel)
    measured = _singular(measurement, noise=False) > 0

    def with_y(x_t: Array, t: Level, s: Level, **cond: Any) -> Drawn:
        step = kernel(x_t, t, s, **cond)

        def put(x_s: Array, z: Array) -> Array:
            y, noise = _y_in_basis(measurement, z), measurement.operator.to_basis(z)
            known = fit(s.alpha, z) * y + fit(s.sigma, z) * noise
            return _mixed(measurement, x_s, measured, known)

        def draw(z: Array) -> Array:
            return put(step.reparameterise(z), z)

        return Drawn(put(step.mean, array_namespace(x_t).zeros_like(x_t)), draw)

    return with_y


def walk(levels: Level, jump: int = 10, repeats: int = 10) -> Level:
    """The levels of RePaint's resampling, in the order in which they are visited: (n + 1,).

    levels: of the host, the noisiest first, the last one clean data
    jump: how many levels a jump back to noise goes up; 1 is the paper's Algorithm 1
    repeats: how often each stretch of `jump` levels is walked down; 1 is no resampling

    As in the authors' schedule, stretches start at the last level before clean data. One of fewer
    levels is left at the noisy end, and is walked once.
    """
    check_levels(levels=levels)
    if getattr(levels.sigma, "ndim", 0) != 1:
        raise ValueError("levels must be (n + 1,), such as those of a sampler, but are one level")
    if jump < 1 or repeats < 1:
        raise ValueError(f"jump and repeats must be at least 1, but are {jump} and {repeats}")
    last, order = len(levels.sigma) - 1, list[int]()
    for i in range(last):
        order.append(i)
        if i >= jump and (last - 1 - i) % jump == 0:
            order += [*range(i - jump, i + 1)] * (repeats - 1)
    return levels.take(np.array([*order, last]))


def ddrm(
    denoise: Denoiser, measurement: Measurement, eta: float = 0.85, eta_b: float = 1.0
) -> Kernel:
    """The restoration kernel along the basis of A (Kawar et al. 2022), k = σ / α at each level.

    x̄_s / α_s has mean
        x̄_0 + sqrt(1 - eta²) k_s eps̄                       and variance eta² k_s², if g = 0
        x̄_0 + sqrt(1 - eta²) k_s (ȳ - x̄_0) / (sqrt(var) / g)  and eta² k_s², if k_s < sqrt(var) / g
        (1 - eta_b) x̄_0 + eta_b ȳ                    and k_s² - eta_b² var / g², elsewhere

    eps̄: the noise in x̄_t, as the denoiser sees it

    With x̂_0 = x_0, x_s has variance σ_s² about α_s x_0 in every case: that of q. The paper draws
    x_T about α_T ȳ; here it is what the caller gives.
    """
    check_function("a Predictor", denoise=denoise)
    check_share(eta=eta, eta_b=eta_b)
    singular = _singular(measurement)
    operator, std = measurement.operator, math.sqrt(measurement.var)
    keep = math.sqrt(1 - eta**2)

    def kernel(x_t: Array, t: Level, s: Level, **cond: Any) -> Drawn:
        x_0 = denoise(x_t, t, **cond)
        g, measured, alpha, sigma = _ready(singular, x_0, s.alpha, s.sigma)
        off = alpha * std / g  # sqrt(var) / g, in the units of x_s
        noisy = sigma < off
        by_eps = keep * sigma * (1 - measured)
        by_y = where(noisy, ratio(keep * sigma, off, 0.0), eta_b)
        rest = clip(sigma**2 - (eta_b * off) ** 2, 0.0, math.inf) ** 0.5
        scale = where(noisy | (measured == 0), eta * sigma, rest)
        towards = _y_in_basis(measurement, x_0) - operator.to_basis(x_0)
        eps = operator.to_basis(combine((1 / t.sigma, x_t), (-t.alpha / t.sigma, x_0)))
        moved = beside(by_eps, x_0) * eps + beside(alpha * measured * by_y, x_0) * towards
        mean = fit(s.alpha, x_0) * x_0 + operator.from_basis(moved)

        def draw(z: Array) -> Array:
            return mean + operator.from_basis(beside(scale, z) * operator.to_basis(z))

        return Drawn(mean, draw)

    return kernel


def dps(
    denoise: Denoiser, measurement: Measurement, zeta: float = 1.0, variance: Variance = small
) -> Reverse:
    """The reverse kernel, moved down the gradient of the misfit (Chung et al. 2023, Algorithm 1).

    mean = μ̃(x_t, x̂_0) - zeta / ‖y - A x̂_0‖ ∇ ‖y - A x̂_0‖²,   the gradient by x_t

    variance: as in `reverse`

    Exact for no data: zeta is to be tuned, and var is not read. It is not affine in x_t. The
    derivative is that of `arrays.vjp`. A needs no basis.
    """
    check_function("a Predictor", denoise=denoise)
    check_function("large", variance=variance)
    check_measurement(measurement)
    operator = measurement.operator

    def kernel(x_t: Array, t: Level, s: Level, **cond: Any) -> Gaussian:
        x_0, pull = vjp(lambda x: denoise(x, t, **cond), x_t)
        off = measurement.y_beside(x_0) - operator.forward(x_0)
        weight = ratio(2 * zeta, sum_of_sample(off**2) ** 0.5, 0.0)
        mean = q_posterior(x_0, x_t, t, s).mean
        mean = mean + fit(weight, x_t) * pull(operator.transpose(off))
        return Gaussian(mean, where_clean(s, 0.0, variance(t, s)))

    return kernel


def interpolate(
    x_0: Array, other: Array, eps: Array, other_eps: Array, share: Scalar, t: Level
) -> Array:
    """The x_t between those of two data and two noises, for a sampler that starts at t: (B, *D).

    x_t = α ((1 - share) x_0 + share other) + σ (cos(share π/2) eps + sin(share π/2) other_eps)

    share: a number or (B,), 0 to 1

    The noise has variance σ² at every share. Ho et al. 2020 (section 4.3) mix it linearly too, and
    halfway have only half of it.
    """
    check_pair(x_0=x_0, other=other, eps=eps, other_eps=other_eps)
    share = fit(share, x_0)
    xp: Any = math if is_number(share) else array_namespace(share)
    angle = share * (math.pi / 2)
    mixed = (1 - share) * x_0 + share * other
    return q_sample(mixed, xp.cos(angle) * eps + xp.sin(angle) * other_eps, t)


def _singular(measurement: Measurement, *, noise: bool = True) -> Array:
    """The singular values of A, and ValueError where a method cannot take the measurement."""
    check_measurement(measurement)
    singular = measurement.operator.singular
    if singular is None:
        raise ValueError(
            "this method needs the singular value decomposition of A, which this operator has not: "
            "use mmps or dps"
        )
    if measurement.var and not noise:
        raise ValueError(
            f"this method is for measurements without noise, but var = {measurement.var}: use "
            f"diffpir, pigdm, mmps or ddrm"
        )
    return singular


def _ready(singular: Array, x: Array, *scalars: Scalar) -> tuple[Any, ...]:
    """g, 1 where A has 0; 1 where it has not; and scalars, all ready to multiply (B, *D).

    If the scalars are numbers, all are of the host, so that what is computed of them is cast last.
    """
    measured = (singular[None] > 0).astype(np.float64)
    tables = np.where(measured > 0, singular[None], 1.0), measured
    fitted = [fit(c, x) for c in scalars]
    if not all(map(is_number, fitted)):
        tables = [beside(table, x) for table in tables]
    return (*tables, *fitted)


def _y_in_basis(measurement: Measurement, x: Array) -> Array:
    return measurement.operator.y_to_basis(measurement.y_beside(x))


def _mixed(measurement: Measurement, x: Array, gain: Array, known: Array | None = None) -> Array:
    """V [(1 - gain) x̄ + gain known], where known is ȳ if it is not given."""
    gain, operator = beside(gain, x), measurement.operator
    known = _y_in_basis(measurement, x) if known is None else known
    return operator.from_basis((1 - gain) * operator.to_basis(x) + gain * known)


def _covariance(denoise: Denoiser, x_t: Array, t: Level, cond: dict[str, Any]) -> tuple[Array, Map]:
    """x̂_0, and u -> Cov[x_0 | x_t] u = (σ² / α) Jᵀ u (Tweedie's second formula)."""
    if is_without_data(t):
        raise ValueError(
            "at a level without data (alpha = 0) a denoiser has no derivative: start at a cleaner "
            "one"
        )
    x_0, pull = vjp(lambda x: denoise(x, t, **cond), x_t)
    return x_0, lambda u: fit(t.sigma**2 / t.alpha, u) * pull(u)


def _solve(system: Map, b: Array, iterations: int) -> Array:
    """The x with system(x) = b, (B, *M), by conjugate gradients, each sample for itself.

    A sample is solved where the residual is sqrt(eps) b: beyond it a difference quotient is noise,
    which a singular system would amplify without bound.
    """
    xp = array_namespace(b)
    x, r, p = xp.zeros_like(b), b, b
    size = sum_of_sample(r * r)
    least = size * float(xp.finfo(b.dtype).eps)
    for _ in range(iterations):
        q = system(p)
        unsolved = xp.where(size > least, size, xp.zeros_like(size))
        step = fit(ratio(unsolved, sum_of_sample(p * q), 0.0), b)
        x, r = x + step * p, r - step * q
        before, size = size, sum_of_sample(r * r)
        p = r + fit(ratio(size, before, 0.0), b) * p
    return x
