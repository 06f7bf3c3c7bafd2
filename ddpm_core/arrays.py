"""Functions that take a number or an array, and checks of the caller's arrays.

A coefficient is a number, computed on the host, or an array of any library. Code that must know
which of the two it has, or which library an array comes from, asks here.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from array_api_compat import (
    array_namespace,
    is_jax_array,
    is_jax_namespace,
    is_ndonnx_namespace,
    is_numpy_array,
    is_numpy_namespace,
    is_torch_array,
)

from ddpm_core.typing import Array, Scalar


def fit(c: Scalar, x: Array) -> Scalar:
    """A coefficient, ready to multiply x: broadcast, cast and moved to x's device.

    c: a number; or an array of shape (), (B,) or one that broadcasts to x, of NumPy or x's library
    x: (B, *D)

    A number becomes a Python float, which takes x's dtype in every array library and copies
    nothing to the device. An array is cast to x's dtype, and if it is (B,), shaped (B, 1, ..., 1).
    """
    if is_number(c):
        return float(c)
    if is_numpy_array(c):
        xp = array_namespace(x)
        c = xp.asarray(c, dtype=x.dtype, **device_of(xp, x))
    else:
        xp = same_library(coefficient=c, x=x)
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
    """Whether c is one number: of Python, a NumPy scalar or a NumPy array of shape ()."""
    return isinstance(c, (int, float)) or (
        isinstance(c, (np.number, np.ndarray)) and cast(Any, c).ndim == 0
    )


def on_host(c: Scalar) -> bool:
    """Whether c is a number or a NumPy array: its values are at hand, and may be checked."""
    return is_number(c) or isinstance(c, np.ndarray)


def combine(*terms: tuple[Scalar, Array]) -> Array:
    """The linear combination Σ c x of terms (c, x); a coefficient that is the number 0 is free."""
    total = None
    for c, x in terms:
        if is_number(c) and c == 0:
            continue
        term = fit(c, x) * x
        total = term if total is None else total + term
    if total is None:
        x = terms[0][1]
        return array_namespace(x).zeros_like(x)
    return total


def expm1(c: Scalar) -> Scalar:
    return math.expm1(c) if is_number(c) else array_namespace(c).expm1(c)


def exp(c: Scalar) -> Scalar:
    return math.exp(c) if is_number(c) else array_namespace(c).exp(c)


def sqrt(c: Scalar) -> Scalar:
    return math.sqrt(c) if is_number(c) else array_namespace(c).sqrt(c)


def log(c: Scalar) -> Scalar:
    """log c, and -inf where c is 0."""
    if is_number(c):
        return math.log(c) if c > 0 else -math.inf
    return array_namespace(c).log(c)


def minimum(c: Scalar, d: float) -> Scalar:
    if is_number(c):
        return min(float(c), d)
    xp = array_namespace(c)
    return xp.minimum(c, xp.full_like(c, d))  # numbers are arguments of it since 2024.12 only


def ratio(a: Scalar, b: Array, otherwise: float) -> Array:
    """a / b where b is positive, and another number elsewhere."""
    xp = array_namespace(b)
    one = xp.ones_like(b)
    return xp.where(b > 0, a / xp.where(b > 0, b, one), otherwise * one)


def log_sigmoid(c: Scalar) -> Scalar:
    """log sigmoid(c) = min(c, 0) - log(1 + exp(-|c|)): no overflow, and exact at ±inf."""
    if is_number(c):
        return min(float(c), 0.0) - math.log1p(math.exp(-abs(c)))
    xp = array_namespace(c)
    return xp.minimum(c, xp.zeros_like(c)) - xp.log1p(xp.exp(-xp.abs(c)))


def logit_of_log(log_p: Scalar) -> Scalar:
    """log(p / (1 - p)) from log p <= 0; the inverse of `log_sigmoid`, +inf at p = 1."""
    if is_number(log_p):
        return math.inf if log_p == 0 else float(log_p) - math.log(-math.expm1(log_p))
    xp = array_namespace(log_p)
    if is_numpy_namespace(xp):
        with np.errstate(divide="ignore"):
            return log_p - np.log(-np.expm1(log_p))
    return log_p - xp.log(-xp.expm1(log_p))


def where(condition: Any, c: Scalar, d: Scalar) -> Scalar:
    """c where the condition holds, d elsewhere; a comparison of numbers chooses one of the two.

    condition: a bool, or an array of bools; with arrays c and d of more axes, (B,)
    """
    if isinstance(condition, (bool, np.bool_)):
        return c if condition else d
    xp = array_namespace(condition, *(a for a in (c, d) if not is_number(a)))
    rank = max([condition.ndim, *(a.ndim for a in (c, d) if not is_number(a))])
    like = d if is_number(c) else c
    dtype = None if is_number(like) else like.dtype

    def shaped(a: Scalar) -> Array:
        if is_number(a):
            return xp.full((1,) * rank, float(a), dtype=dtype, **device_of(xp, condition))
        return xp.reshape(a, a.shape + (1,) * (rank - a.ndim))

    return xp.where(shaped(condition), shaped(c), shaped(d))


def beside(table: Array, x: Array) -> Array:
    """A NumPy table as an array of x's library, device and dtype; any other array as it is."""
    if not is_numpy_array(table):
        return table
    if is_numpy_array(x):
        return table.astype(x.dtype, copy=False)
    xp = array_namespace(x)
    return xp.asarray(table, dtype=x.dtype, **device_of(xp, x))


def clip(x: Array, low: float, high: float) -> Array:
    """x, within [low, high]."""
    # By the library's own method where it has one: compat's function waits for the device on
    # CuPy, and goes through float64 on dask.
    return x.clip(low, high) if hasattr(x, "clip") else array_namespace(x).clip(x, low, high)


def device_of(xp: Any, x: Array) -> dict[str, Any]:
    """The keyword `device=` that puts a new array beside x; empty where x's library needs none."""
    # A JAX array may be sharded, and its device then does not fit an array of another rank;
    # uncommitted arrays follow their operands there. dask and MLX have no device attribute.
    device = None if is_jax_namespace(xp) else getattr(x, "device", None)
    return {} if device is None else {"device": device}


def same_library(**arrays: Array) -> Any:
    """The namespace of the arrays, which must come from one library."""
    for name, a in arrays.items():
        if not hasattr(a, "dtype"):
            raise TypeError(f"{name} must be an array, but is {kind(a)}")
    try:
        return array_namespace(*arrays.values())
    except TypeError:
        kinds = ", ".join(f"{name} is {kind(a)}" for name, a in arrays.items())
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
    """x in a dtype; x itself if it has that dtype."""
    return x if x.dtype == dtype else xp.astype(x, dtype)  # MLX's has no copy=False


def take(xp: Any, table: Array, index: Array) -> Array:
    """Rows of a table at integers (n,), of any dtype."""
    # NumPy's own indexing is faster than its take; ndonnx takes int64 alone.
    if is_numpy_namespace(xp):
        return table[index]
    return xp.take(table, xp.astype(index, xp.int64) if is_ndonnx_namespace(xp) else index, axis=0)


def is_half(dtype: Any) -> bool:
    """Whether a dtype is float16 or bfloat16, in which no sum of products is computed."""
    # Not by finfo, which takes longer than a sum of small arrays; MLX has `size`, and
    # array_api_strict, without half precision, neither.
    size = getattr(dtype, "itemsize", None)
    return (getattr(dtype, "size", 4) if size is None else size) < 4


def widen(xp: Any, x: Array) -> Array:
    """x, cast to float32 if it is in half precision."""
    return xp.astype(x, xp.float32) if is_half(x.dtype) else x


def stop_gradient(x: Array) -> Array:
    """x as a constant, on the libraries that differentiate: torch and JAX."""
    if is_torch_array(x):
        return x.detach()
    if is_jax_array(x):  # JAX is imported already
        return importlib.import_module("jax").lax.stop_gradient(x)
    return x


def vjp(f: Callable[[Array], Array], x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """f(x), and u -> Jᵀ u, where J = ∂f/∂x, by the derivatives of torch and JAX.

    f: x -> an array of x's shape, each sample from its own
    x, u: (B, *D)

    Elsewhere it is J u, by a central difference: the same where J is symmetric, as that of an exact
    denoiser is, and a network's only roughly. The difference is that of f at x ± h u, of root mean
    square eps^(1/3) (1 + |x|): f may have no features much finer than 1.
    """
    if is_torch_array(x):
        out, pull = importlib.import_module("torch").func.vjp(f, x)
        return out, lambda u: pull(u)[0]
    if is_jax_array(x):
        out, pull = importlib.import_module("jax").vjp(f, x)
        return out, lambda u: pull(u)[0]
    xp, axes = array_namespace(x), tuple(range(1, x.ndim))

    def size(a: Array) -> Array:
        return xp.sqrt(xp.mean(a**2, axis=axes, keepdims=True))

    def along(u: Array) -> Array:
        scale = size(u)
        h = float(xp.finfo(x.dtype).eps) ** (1 / 3) * (1 + size(x))
        h = h / xp.where(scale == 0, xp.ones_like(scale), scale)
        return (f(x + h * u) - f(x - h * u)) / (2 * h)

    return f(x), along


def kind(a: Any) -> str:
    """What an argument is, in words: "a torch Tensor"."""
    module = type(a).__module__.partition(".")[0].replace("builtins", "Python")
    return f"a {module} {type(a).__name__}"


def shown(a: Any) -> str:
    """An argument in a message: a number or a text as it is, and of all else what it is."""
    return repr(a) if is_number(a) or isinstance(a, str) else kind(a)


def check_share(**numbers: float) -> None:
    """ValueError unless each number lies within 0 .. 1."""
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie within 0 .. 1, but is {value}")


def check_function(such_as: str, **functions: Any) -> None:
    """TypeError unless each argument can be called.

    >>> check_function("eps", predicts="v")
    Traceback (most recent call last):
    TypeError: predicts must be a function, such as eps, but is 'v'
    """
    for name, f in functions.items():
        if not callable(f):
            raise TypeError(f"{name} must be a function, such as {such_as}, but is {shown(f)}")
