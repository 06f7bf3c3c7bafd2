"""Normal noise that is bit for bit the same on every array library.

A value is a pure function of (seed, sample id, step, element). It does not depend on how a batch
is split, chunked or sharded, so that sample 17 of seed 0 is the same picture on every machine.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_jax_namespace

from ddpm_core.arrays import astype, is_number, kind, shown, take
from ddpm_core.typing import Array

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_SHARE = 0.72  # of the first table in the sum: near it the distribution is closest to normal


def portable_noise(seed: int, xp: Any = np, device: Any = None, dtype: Any = None) -> PortableNoise:
    """Standard normal noise as a pure function (step, shape, ids=None) -> array.

    seed: 0 <= seed < 2^64
    xp: the namespace to draw in, such as numpy, torch or jax.numpy
    device, dtype: of the arrays; float32 by default, and another dtype holds the same values, cast
    step: 0 <= step < 2^31, an integer, or integers (B,), one per sample
    shape: (B, *D)
    ids: integers (B,) within 0 .. 2^31 - 1, which say which samples these are; by default
        0 .. B - 1

    The function pickles. To draw many samples at once, pass their ids, not many seeds.

    Threefry-2x32-20 (Salmon et al. 2011) in int32, with the key (seed, id) and the counter
    (element, step). Each of its 32-bit words picks one entry of each of two tables, and the sum of
    the two is the value: a single rounded addition, which no compiler can change. The distribution
    function is within 2.3e-7 of the normal's. The tails are light: P(|z| > 5) is 10 % too small,
    P(|z| > 6) 76 %, and |z| is at most 6.204.

    TypeError or ValueError for a seed, and for a step or ids on the host, that are not such
    integers; integers of the device are not checked.

    >>> noise = portable_noise(seed=0)
    >>> x = noise(0, (4, 2))
    >>> bool((noise(0, (2, 2), ids=np.array([2, 3])) == x[2:]).all())
    True
    """
    try:
        seed = operator.index(seed)
    except TypeError:  # also of a JAX tracer
        raise TypeError(
            f"seed must be an integer, but is {kind(seed)}: to draw many samples in one program, "
            f"keep the seed and pass ids or steps, one per sample"
        ) from None
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie within [0, 2^64), but is {seed}")
    if not hasattr(xp, "zeros"):
        raise TypeError(f"xp must be a module of arrays, such as numpy, but is {shown(xp)}")
    # The namespace of array-api-compat: plain torch, for one, lacks parts of the standard.
    xp = array_namespace(xp.zeros(1)) if not hasattr(xp, "__array_api_version__") else xp
    device = None if is_jax_namespace(xp) else device
    tables = [xp.asarray(t.copy(), **_on(device)) for t in normal_tables()]
    dtype = xp.float32 if dtype is None else dtype
    return PortableNoise((_signed(seed), _signed(seed >> 32)), tables, xp, device, dtype)


@dataclass(frozen=True, eq=False)
class PortableNoise:
    """What `portable_noise` returns: the function, with its seed and tables.

    seed: the low and the high 32 bits of the seed, as int32 in two's complement
    """

    seed: tuple[Any, Any]
    tables: list[Array]
    xp: Any
    device: Any
    dtype: Any

    def __deepcopy__(self, memo: Any) -> PortableNoise:
        return self  # nothing in it changes, and a module cannot be copied

    def __reduce__(self) -> Any:
        low, high = (word & 0xFFFFFFFF for word in self.seed)
        return _unpickled, (high << 32 | low, self.xp.__name__, self.device, self.dtype)

    def __call__(self, step: Any, shape: tuple[int, ...], ids: Any = None) -> Array:
        xp, place = self.xp, _on(self.device)
        if isinstance(shape, int) or not shape:
            raise TypeError(f"shape must be a tuple (B, *D), but is {shape}")
        batch: Any = shape[0]
        elements = math.prod(shape[1:])
        ids = xp.arange(batch, **place) if ids is None else self._checked("ids", ids)
        ids = xp.reshape(xp.astype(xp.asarray(ids, **place), xp.int32), (-1, 1))
        if ids.shape[0] != batch:
            raise ValueError(f"{ids.shape[0]} ids do not fit shape {shape}: pass one per sample")
        step = self._checked("step", step)
        if not isinstance(step, int):  # a number is a constant, which is not uploaded
            step = xp.reshape(xp.astype(xp.asarray(step, **place), xp.int32), (-1, 1))
            if step.shape[0] not in (1, batch):
                raise ValueError(
                    f"{step.shape[0]} steps do not fit shape {shape}: pass one, or one per sample"
                )
        key = threefry(*self.seed, ids, ids * 0)
        half = (elements + 1) // 2
        counter = xp.reshape(xp.arange(half, dtype=xp.int32, **place), (1, -1)) + ids * 0
        words = threefry(*key, counter, counter * 0 + step)
        # Elements 2 i and 2 i + 1 are the words of counter i, whatever the number of elements.
        batch = -1 if batch is None else batch  # None in a graph that takes any
        z = xp.stack([_normal(xp, self.tables, w, (batch, half)) for w in words], axis=-1)
        z = xp.reshape(z, (batch, 2 * half))[:, :elements]
        return astype(xp, xp.reshape(z, (batch, *shape[1:])), self.dtype)

    def _checked(self, name: str, values: Any) -> Any:
        """A step or ids as they come; those of the host are integers within [0, 2^31)."""
        if is_number(values):
            try:
                values = worst = operator.index(values)
            except TypeError:
                raise TypeError(f"{name} must be integers, but is {values}") from None
        elif isinstance(values, (np.ndarray, list, tuple, range)):
            host = np.asarray(values)
            if host.size and host.dtype.kind not in "iuO":  # O: Python's integers above 2^64
                raise TypeError(f"{name} must be integers, but is {values}")
            bad = (host < 0) | (host >= 2**31)
            worst = int(host.ravel()[int(np.argmax(bad))]) if bad.any() else 0
            values = host if bad.any() else host.astype(np.int32)
        elif self.xp.isdtype(values.dtype, "integral"):
            return values
        else:
            raise TypeError(f"{name} must be integers, but has dtype {values.dtype}")
        if not 0 <= worst < 2**31:
            raise ValueError(f"{name} must lie within [0, 2^31), but is {worst}")
        return values


def threefry(k0: Any, k1: Any, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), in int32 two's complement.

    k0, k1: the key, as Python integers of 32 bits or int32 arrays
    x0, x1: the counter, int32 arrays
    """
    # int32 and not uint32: torch has no uint32 addition, and default JAX no int64.
    if isinstance(k0, int):
        keys = tuple(_signed(k) for k in (k0, k1, k0 ^ k1 ^ _PARITY))
    else:
        keys = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for i in range(20):
        x0 = x0 + x1
        x1 = _rotate(x1, _ROTATIONS[i % 8]) ^ x0
        if i % 4 == 3:
            j = i // 4 + 1
            x0 = x0 + keys[j % 3]
            k = keys[(j + 1) % 3]
            x1 = x1 + (_signed(k + j) if isinstance(k, int) else k + j)
    return x0, x1


@lru_cache(maxsize=1)
def normal_tables() -> tuple[Array, Array]:
    """Two float32 tables of 65536 entries; the sum of a random entry of each is standard normal.

    Both hold the means of N(0, 1) over 65536 bins of equal probability, scaled to unit variance
    and then by 0.72 and sqrt(1 - 0.72²): unequal shares, so that 0 is no more likely than others.
    """
    from statistics import NormalDist

    n, normal = 1 << 16, NormalDist()
    edges = [normal.inv_cdf(i / n) for i in range(1, n)]
    density = [0.0, *(math.exp(-0.5 * q * q) for q in edges), 0.0]
    means = [(a - b) * n / math.sqrt(2 * math.pi) for a, b in pairwise(density)]
    means = [(m - w) / 2 for m, w in zip(means, reversed(means), strict=True)]
    scale = 1 / math.sqrt(math.fsum(m * m for m in means) / n)
    shares = (_SHARE, math.sqrt(1 - _SHARE**2))
    first, second = (np.asarray([s * scale * m for m in means], dtype=np.float32) for s in shares)
    first.flags.writeable = second.flags.writeable = False
    return first, second


def tables_digest() -> str:
    """SHA-256 of the tables in little-endian order: equal digests mean equal noise."""
    return hashlib.sha256(b"".join(t.astype("<f4").tobytes() for t in normal_tables())).hexdigest()


def _normal(xp: Any, tables: list[Array], word: Array, shape: tuple[int, ...]) -> Array:
    low, high = xp.reshape(word, (-1,)) & 0xFFFF, (xp.reshape(word, (-1,)) >> 16) & 0xFFFF
    return xp.reshape(take(xp, tables[0], low) + take(xp, tables[1], high), shape)


def _unpickled(seed: int, xp: str, device: Any, dtype: Any) -> PortableNoise:
    return portable_noise(seed, importlib.import_module(xp), device, dtype)


def _on(device: Any) -> dict[str, Any]:
    return {} if device is None else {"device": device}


def _rotate(x: Array, r: int) -> Array:
    return (x << r) | ((x >> (32 - r)) & ((1 << r) - 1))  # >> is arithmetic: mask the sign


def _signed(k: int) -> int:
    k &= 0xFFFFFFFF
    return k - (1 << 32) if k & 0x80000000 else k
