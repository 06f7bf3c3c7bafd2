"""Samplers as one compiled program, whose size does not depend on the number of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.tree_util import register_dataclass

from ddpm_core.checkpoints.own import Scaled
from ddpm_core.denoisers import Clipped, Denoiser, Predictor
from ddpm_core.noise import PortableNoise
from ddpm_core.samplers import Row, Sampler, State, advance
from ddpm_core.samplers.run import check_run
from ddpm_core.typing import Noise

# So that weights are arguments of compiled functions and not constants in them; a network of
# `JAX.network` is a pytree too. On import, because JAX asks what a Predictor is made of before any
# function of this package is called.
register_dataclass(Predictor, ["net"], ["schedule", "predicts", "variance", "coordinates"])
register_dataclass(Clipped, ["denoise"], ["low", "high"])
register_dataclass(Scaled, ["net"], ["scale"])
register_dataclass(PortableNoise, ["seed", "tables"], ["xp", "device", "dtype"])


def sample(
    denoise: Denoiser, sampler: Sampler, x: Array, noise: Noise | None = None, **cond: Any
) -> Array:
    """A sample of the data: (B, *D), where the sampler ends; `ddpm_core.sample` as one `lax.scan`.

    denoise: any denoiser that can be traced, at levels () of the device. It is traced once for
        each shape. Its arrays are arguments if it is a pytree, such as a `Predictor` of
        `JAX.network`; otherwise it is a constant, which must not change, and another one is
        another program, even if it does the same
    sampler: its table is an argument, so that samplers of one shape are one program
    x: (B, *D), standard normal, or a draw of q at the sampler's first level; its sharding is kept
    noise: (step, shape) -> standard normal, step a traced integer from 1
    cond: passed to the denoiser, such as y; arrays and numbers in it are arguments

    The result has the dtype of x.
    """
    check_run(sampler, x, noise)
    inner: Any = denoise
    while isinstance(inner, Clipped):
        inner = inner.denoise
    if isinstance(inner, Predictor):
        # Levels are traced below: here they are of the host, and checked against its schedule.
        inner.timestep(np.empty(sampler.nfe), sampler.levels.take(slice(None, -1)))
    if isinstance(denoise, Predictor):
        sampler = sampler.given(denoise.predicts)
    rows = sampler.rows_as(jnp, jnp.promote_types(x.dtype, jnp.float32))
    parts = denoise, noise if sampler.stochastic else None, cond
    leaves, tree = jax.tree.leaves(parts), cast("Any", jax.tree).structure(parts)
    for leaf in leaves:
        if not (_is_array(leaf) or callable(getattr(leaf, "__hash__", None))):
            raise TypeError(
                f"{type(leaf).__name__} in the denoiser or its conditions can be no constant of a "
                f"program: register it as a pytree (jax.tree_util.register_dataclass)"
            )
    arrays = [leaf if _is_array(leaf) else None for leaf in leaves]
    fixed = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    # Within another's trace, what is not a pytree may hold tracers, which no cache may keep.
    run = _scan if isinstance(jnp.zeros(()), Tracer) else _compiled
    return run(sampler.start(x), rows, arrays, fixed, tree)


def _scan(
    state: State, rows: Row, arrays: list[Array | None], fixed: tuple[Any, ...], tree: Any
) -> Array:
    leaves = [b if a is None else a for a, b in zip(arrays, fixed, strict=True)]
    denoise, noise, cond = jax.tree.unflatten(tree, leaves)
    shape = state.point.shape

    def step(state: State, at: tuple[Row, Array]) -> tuple[State, None]:
        row, number = at
        if isinstance(denoise, Predictor):
            y = denoise.output(state.point, row.level, **cond)[0]
        else:
            y = denoise(state.point, row.level, **cond)
        z = None if noise is None else noise(number, shape)
        return advance(row, state, y, z), None

    numbers = jnp.arange(1, len(rows.read[0]) + 1)
    return lax.scan(step, state, (rows, numbers))[0].point


_compiled: Callable[..., Array] = jax.jit(_scan, static_argnums=(3, 4))


def _is_array(leaf: Any) -> bool:
    if type(leaf) is int:
        return -(2**31) <= leaf < 2**31  # JAX has no larger ones
    return isinstance(leaf, (jax.Array, np.ndarray, np.number)) or type(leaf) is float
