"""Noise levels: the only notion of time that the mathematics knows.

A level says how much of x_t is data and how much is noise. Integer index, continuous time and
sigma are ways to make one (see `schedules`); every formula of the library is between two levels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_jax_namespace, is_numpy_array, is_numpy_namespace

from ddpm_core._typing import Array, Scalar


class Level(NamedTuple):
    """A noise level t: q(x_t | x_0) = N(α x_0, σ² I), with α² + σ² = 1.

    The fields share one shape: Python floats for a level of the host, or arrays of shape (),
    (B,) for one level per sample, or (n,) for a grid.

    Clean data is an ordinary level: log-SNR +inf, α = 1, σ = 0. It is where a sampler ends;
    nothing is ever read there.

    >>> from_logsnr(0.0, time=500).alpha  # as much data as noise
    0.7071067811865476
    """

    time: Scalar  #: a label for networks and people; the mathematics never reads it
    logsnr: Scalar  #: λ = log(α² / σ²), falling as time rises (Kingma et al. 2021)
    alpha: Scalar  #: α = sqrt(ᾱ), the scale of the data (Ho et al. 2020)
    sigma: Scalar  #: σ = sqrt(1 - ᾱ), the scale of the noise


def from_logsnr(logsnr: Scalar, time: Scalar) -> Level:
    """The level of a given log-SNR λ: α² = sigmoid(λ), σ² = sigmoid(-λ).

    logsnr: float or array, -inf and +inf included
    """
    alpha = exp(0.5 * log_sigmoid(logsnr))
    sigma = exp(0.5 * log_sigmoid(-logsnr))
    return Level(time, logsnr, alpha, sigma)


def tau(t: Level, s: Level) -> Scalar:
    """The share of x_t's noise that was added after s < t: τ = 1 - SNR_t / SNR_s = σ²_{t|s} / σ²_t.

    In (0, 1], and 1 at s = clean data. From levels of the device in float32, τ of neighbours of a
    schedule of 1000 steps carries a relative error of up to 2e-4; levels of the host are float64.

    ValueError if t is cleaner than s, where they are of the host.
    """
    _check_order(t, s)
    return -expm1(t.logsnr - s.logsnr)


def _check_order(t: Level, s: Level) -> None:
    if isinstance(t.logsnr, float) and isinstance(s.logsnr, float):
        swapped = t.logsnr > s.logsnr
    elif all(isinstance(level.logsnr, (float, np.ndarray)) for level in (t, s)):
        swapped = bool(np.any(t.logsnr > s.logsnr))
    else:
        return  # of the device
    if swapped:
        at_t, at_s = (np.ravel(a) for a in np.broadcast_arrays(t.logsnr, s.logsnr))
        i = int(np.argmax(at_t > at_s))
        raise ValueError(
            f"s must be cleaner than t, but log-SNR is {at_s[i]:.6g} at s and {at_t[i]:.6g} at t; "
            f"are they swapped?"
        )


def level_at(levels: Level, index: Any) -> Level:
    """The levels at an index or a slice of a grid of levels."""
    time, logsnr, alpha, sigma = levels
    return Level(time[index], logsnr[index], alpha[index], sigma[index])


def steps_of(levels: Level) -> tuple[Level, Level]:
    """The levels (n + 1,) of a grid as the pairs of its steps: all t (n,), and all s < t (n,)."""
    return level_at(levels, slice(None, -1)), level_at(levels, slice(1, None))


def fit(c: Scalar, x: Array) -> Scalar:
    """A coefficient, ready to multiply x: the one place that broadcasts, casts and moves.

    c: a number, or an array of shape (), (B,) or that of x; of the host, or of x's library
    x: (B, *D)

    A number stays a Python float, which takes x's dtype in every array library and moves nothing
    to the device. An array is cast to x's dtype, last, and shaped (B, 1, ..., 1).
    """
    if isinstance(c, (int, float)):
        return float(c)
    if is_numpy_array(c):
        if c.ndim == 0:
            return float(c)
        xp = array_namespace(x)
        c = xp.asarray(c, dtype=x.dtype, **device_of(xp, x))
    else:
        xp = same_library(c=c, x=x)
        c = astype(xp, c, x.dtype)
    if c.ndim in (0, x.ndim) and c.ndim != 1:
        return c
    if c.ndim != 1 or (x.ndim > 0 and c.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"a coefficient of shape {tuple(c.shape)} does not fit x of shape {tuple(x.shape)}: "
            f"a level has one value, or one value per sample"
        )
    return xp.reshape(c, (-1,) + (1,) * (x.ndim - 1))


def is_number(c: Scalar) -> bool:
    """Whether a coefficient is a number of the host."""
    return isinstance(c, (int, float))


def combine(*terms: tuple[Scalar, Array]) -> Array:
    """The linear combination Σ c x of terms (c, x); host coefficients that are 0 cost nothing."""
    total = None
    for c, x in terms:
        if isinstance(c, (int, float)) and c == 0:
            continue
        term = fit(c, x) * x
        total = term if total is None else total + term
    if total is None:
        x = terms[0][1]
        return array_namespace(x).zeros_like(x)
    return total


# Functions of a coefficient: a number of the host, or an array of any library. ------------------


def expm1(c: Scalar) -> Scalar:
    return math.expm1(c) if isinstance(c, (int, float)) else array_namespace(c).expm1(c)


def exp(c: Scalar) -> Scalar:
    return math.exp(c) if isinstance(c, (int, float)) else array_namespace(c).exp(c)


def sqrt(c: Scalar) -> Scalar:
    return math.sqrt(c) if isinstance(c, (int, float)) else array_namespace(c).sqrt(c)


def log(c: Scalar) -> Scalar:
    if isinstance(c, (int, float)):
        return math.log(c) if c > 0 else -math.inf
    return array_namespace(c).log(c)


def minimum(c: Scalar, d: float) -> Scalar:
    return min(c, d) if isinstance(c, (int, float)) else array_namespace(c).minimum(c, d)


def log_sigmoid(c: Scalar) -> Scalar:
    """log sigmoid(c) = min(c, 0) - log(1 + exp(-|c|)): no overflow, and exact at ±inf."""
    if isinstance(c, (int, float)):
        return min(c, 0.0) - math.log1p(math.exp(-abs(c)))
    xp = array_namespace(c)
    return xp.minimum(c, xp.zeros_like(c)) - xp.log1p(xp.exp(-xp.abs(c)))


def logit_of_log(log_p: Scalar) -> Scalar:
    """log(p / (1 - p)) from log p <= 0; the inverse of `log_sigmoid`, +inf at p = 1."""
    if isinstance(log_p, (int, float)):
        return math.inf if log_p == 0 else log_p - math.log(-math.expm1(log_p))
    xp = array_namespace(log_p)
    if is_numpy_namespace(xp):
        with np.errstate(divide="ignore"):
            return log_p - np.log(-np.expm1(log_p))
    return log_p - xp.log(-xp.expm1(log_p))


# The caller's arrays. ---------------------------------------------------------------------------


def device_of(xp: Any, x: Array) -> dict[str, Any]:
    """The `device=` keyword that puts a new array beside x, if its library has one to give."""
    # A JAX array may be sharded, and its device then does not fit an array of another rank;
    # uncommitted arrays follow their operands there. dask and MLX have no device attribute.
    device = None if is_jax_namespace(xp) else getattr(x, "device", None)
    return {} if device is None else {"device": device}


def same_library(**arrays: Array) -> Any:
    """The namespace of the arrays, which must come from one library."""
    try:
        return array_namespace(*arrays.values())
    except TypeError:
        kinds = ", ".join(f"{name} is {_kind(a)}" for name, a in arrays.items())
        raise TypeError(f"{kinds}: pass arrays of one library") from None


def same_shape(**arrays: Array) -> Any:
    """The namespace of arrays that must have one library and one shape."""
    xp = same_library(**arrays)
    (first, x), *rest = arrays.items()
    for name, a in rest:
        if tuple(a.shape) != tuple(x.shape):
            raise ValueError(
                f"{name} has shape {tuple(a.shape)} but {first} has shape {tuple(x.shape)}: "
                f"they must be the same"
            )
    return xp


def check_pair(**arrays: Array) -> Any:
    """The namespace of arrays that must have one library, one shape and one real dtype."""
    xp = same_shape(**arrays)
    (first, x), *rest = arrays.items()
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(f"{first} has dtype {x.dtype}: convert it to floating point, e.g. float32")
    for name, a in rest:
        if a.dtype != x.dtype:
            raise TypeError(
                f"{name} has dtype {a.dtype} but {first} has dtype {x.dtype}: cast one of them"
            )
    return xp


def astype(xp: Any, x: Array, dtype: Any) -> Array:
    """x in a dtype; itself, if that is its own."""
    return x if x.dtype == dtype else xp.astype(x, dtype)  # MLX's has no copy=False


def is_half(dtype: Any) -> bool:
    """Whether a dtype is float16 or bfloat16, in which no sum of products is taken."""
    # Not by finfo, which takes longer than a sum of small arrays; MLX has `size`, and
    # array_api_strict, without half precision, neither.
    size = getattr(dtype, "itemsize", None)
    return (getattr(dtype, "size", 4) if size is None else size) < 4


def widen(xp: Any, x: Array) -> Array:
    """x, in float32 if it is in half precision."""
    return xp.astype(x, xp.float32) if is_half(x.dtype) else x


def _kind(a: Any) -> str:
    module = type(a).__module__.partition(".")[0].replace("builtins", "Python")
    return f"a {module} {type(a).__name__}"
