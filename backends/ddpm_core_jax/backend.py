"""What JAX supplies: arrays, noise, compiled and differentiable operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.sharding import AxisType
from jax.tree_util import register_dataclass

from ddpm_core.backends import Backend
from ddpm_core.nn import ChannelsLast, UNetConfig, check_inputs, unet

if TYPE_CHECKING:
    from ddpm_core.testing.backend_checks import Check


class JAXOps(ChannelsLast):
    """The UNet's operations on JAX, differentiable; maps are (B, H, W, C).

    Weights are not packed: what is trained is what a checkpoint holds.
    """

    def conv2d(
        self,
        h: Array,
        weight: Array,
        bias: Array,
        stride: int = 1,
        symmetric: bool = True,
    ) -> Array:
        before, after = (0, 0) if weight.shape[2] == 1 else (1 if symmetric else 0, 1)
        layout = ("NHWC", "HWIO", "NHWC")
        strides, pads = (stride, stride), ((before, after),) * 2
        weight = weight.transpose(2, 3, 1, 0)  # as a loop's convolutions on a CPU must have them
        return lax.conv_general_dilated(h, weight, strides, pads, dimension_numbers=layout) + bias

    def group_norm(self, h: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
        batch, height, width, channels = h.shape
        each, wide = channels // groups, jnp.promote_types(h.dtype, jnp.float32)

        def mean(a: Array) -> Array:
            # Over pixels first: sums along whole rows of channels are the fast ones.
            of_group = a.mean(axis=1).reshape(batch, groups, each).mean(axis=2)
            return of_group.repeat(each, axis=1)[:, None]

        pixels = h.reshape(batch, height * width, channels).astype(wide)
        centred = pixels - mean(pixels)
        scale = lax.rsqrt(mean(centred**2) + eps) * weight
        return (centred * scale + bias).reshape(h.shape).astype(h.dtype)

    def silu(self, x: Array) -> Array:
        return jax.nn.silu(x)

    def attention(self, q: Array, k: Array, v: Array, heads: int = 1) -> Array:
        # Not jax.nn.dot_product_attention, which rounds float64 to float32.
        batch, height, width, channels = q.shape
        each, wide = channels // heads, jnp.promote_types(q.dtype, jnp.float32)
        q, k, v = (a.reshape(batch, height * width, heads, each) for a in (q, k, v))
        logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=wide)
        weights = jax.nn.softmax(logits * (1 / math.sqrt(each))).astype(v.dtype)
        return jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(batch, height, width, channels)


@register_dataclass
@dataclass(frozen=True)
class Normal:
    """(step, shape) -> standard normal, of a key that each step is folded into.

    It is a pytree, so that another seed is another argument of a compiled function. step may be
    traced.
    """

    key: Array
    dtype: Any = field(metadata={"static": True})

    def __call__(self, step: Any, shape: tuple[int, ...]) -> Array:
        # In float32 at least, and cast: bfloat16's own has 128 values, whose mean is off.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return random.normal(random.fold_in(self.key, step), shape, wide).astype(self.dtype)


class JAX(Backend):
    """JAX, on any of its devices.

    device: "cpu", "cuda" or "gpu", or "tpu"; "cuda:1" for the second GPU; or a `jax.Device`. None
        is JAX's default: arrays then follow those on a chosen device, where the two are combined
    dtype: "float32", "bfloat16", "float64"
    """

    name = "jax"

    def __init__(self, device: Any = None, dtype: str = "float32") -> None:
        if dtype not in ("float32", "bfloat16", "float64"):
            raise ValueError(
                f"the JAX backend computes in float32, bfloat16 or float64, not {dtype}"
            )
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                'JAX has no float64 until jax.config.update("jax_enable_x64", True), or with '
                "JAX_ENABLE_X64=1 in the environment"
            )
        self.xp = jnp
        self.dtype = jnp.dtype(dtype)
        self.device = device
        if isinstance(device, str):
            platform, _, number = device.partition(":")
            try:
                found = cast("list[Any]", jax.local_devices(backend=platform))
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"JAX cannot use device {device!r}: {reason}") from None
            if not (number or "0").isdecimal() or int(number or 0) >= len(found):
                raise ValueError(
                    f"JAX cannot use device {device!r}; {platform!r} has {len(found)}, from "
                    f"'{platform}:0' on"
                )
            self.device = found[int(number or 0)]
        elif not (device is None or isinstance(device, jax.Device)):
            raise ValueError(f"JAX has no device {device!r}; give a name, a jax.Device or None")
        self.ops = OPS

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        """Host data as an array of this device and dtype; integers of 64 bits as JAX has them."""
        dtype = jnp.dtype(self.dtype if dtype is None else dtype)
        if jnp.issubdtype(dtype, jnp.integer):
            dtype = jax.dtypes.canonicalize_dtype(dtype)
        return jnp.asarray(a, dtype=dtype, device=self.device)

    def to_numpy(self, x: Array) -> np.ndarray:
        return np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)

    def noise(self, seed: int) -> Normal:
        # Hashed, because a key reads the low 32 bits of a seed only.
        low, high = np.random.SeedSequence(seed).generate_state(2).tolist()
        key = random.fold_in(random.key(low), high)
        return Normal(key if self.device is None else jax.device_put(key, self.device), self.dtype)

    def compile(self, f: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(f)

    def grad(self, f: Callable[[dict[str, Array]], Array]) -> Callable[..., dict[str, Array]]:
        return cast(Any, jax).grad(f)

    def network(self, params: dict[str, Any], config: UNetConfig) -> JAXNetwork:
        """The UNet, compiled; params may be traced."""
        return JAXNetwork({n: self.asarray(p) for n, p in params.items()}, config)

    def describe(self) -> dict[str, str]:
        at = self._place()
        return {
            "device": f"{at.device_kind} ({at.platform}:{at.id})",
            "library": f"jax {jax.__version__}",
        }

    def exact_products(self) -> AbstractContextManager[Any]:
        return jax.default_matmul_precision("highest")

    def live_bytes(self) -> AbstractContextManager[Callable[[], int]]:
        platform = self._place().platform
        live_arrays: Any = cast(Any, jax).live_arrays
        return nullcontext(lambda: sum(int(a.nbytes) for a in live_arrays(platform)))

    def checks(self) -> Mapping[str, tuple[str, Check]]:
        from ddpm_core_jax.checks import CHECKS

        return CHECKS

    def _place(self) -> Any:
        """The device of new arrays."""
        return self.device or next(iter(jnp.zeros(0).devices()))

    def __repr__(self) -> str:
        at = self._place()
        return f"JAX(device='{at.platform}:{at.id}', dtype={self.dtype!r})"

    def __reduce__(self) -> Any:
        at = self.device and f"{self.device.platform}:{self.device.id}"  # a Device does not pickle
        return type(self), (at, str(self.dtype))


@register_dataclass
@dataclass(frozen=True, eq=False)
class JAXNetwork:
    """The UNet as (x_t, timestep, y=None) -> output, compiled: a pytree of its parameters.

    It takes x of any floating-point dtype, and computes in that of its parameters.

    y: a NumPy array is checked. The values of a JAX array are not looked at: a negative class is no
        class, and one that the network does not have gives NaN
    """

    params: dict[str, Any]
    config: UNetConfig = field(metadata={"static": True})

    def __call__(self, x: Array, timestep: Array, y: Array | None = None) -> Array:
        if isinstance(y, np.ndarray):  # beside it, shapes are all that must be known
            x_shape, t_shape = (np.broadcast_to(np.float32(0), a.shape) for a in (x, timestep))
            check_inputs(x_shape, t_shape, y, self.config)
        return cast(Any, _call)(self.params, x, timestep, y, config=self.config)


@partial(jax.jit, static_argnames="config")
def _call(
    params: dict[str, Array], x: Array, timestep: Array, y: Array | None, *, config: UNetConfig
) -> Array:
    """One program for each configuration and shape."""

    def run(params: dict[str, Array], x: Array, timestep: Array, y: Array | None) -> Array:
        x = x.astype(params["conv_in.weight"].dtype)
        return unet(params, x, timestep, y, config=config, ops=OPS)

    place = jax.typeof(x).sharding
    if AxisType.Explicit not in place.mesh.axis_types:
        return run(params, x, timestep, y)
    # Within, XLA finds the way, as it does on other meshes; the batch stays as it was split.
    auto = cast("Any", jax.sharding).auto_axes(run, out_sharding=place)
    return auto(params, x, timestep, y)


OPS = JAXOps()
