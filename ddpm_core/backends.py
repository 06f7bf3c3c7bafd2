"""Backends: what an array library supplies beyond the standard.

Mathematics needs none of this: it follows the arrays that it is given. A backend makes arrays,
draws noise and runs the UNet; it is an object that is passed, never a global.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ddpm_core.arrays import combine
from ddpm_core.nn import Ops, UNetConfig, frequencies, unet
from ddpm_core.nn.network import FREQUENCIES
from ddpm_core.noise import portable_noise
from ddpm_core.typing import Array, Scalar

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "ddpm_core.backends"


class Backend:
    """What a backend supplies; a third party subclasses it and registers the entry point.

    xp: the namespace of the Array API standard
    device, dtype: of the arrays that it makes
    ops: the operations of the UNet; the reference's, unless it has faster ones

    Made by name as kind(device=..., dtype=..., **options), with ValueError for what it lacks.
    """

    name: ClassVar[str]
    xp: Any
    device: Any
    dtype: Any
    ops: Ops = Ops()

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        """Host data as an array of this library, device and dtype."""
        dtype = self.dtype if dtype is None else dtype
        return self.xp.asarray(a, dtype=dtype, device=self.device)

    def to_numpy(self, x: Array) -> Array:
        """An array of this library on the host."""
        return np.asarray(x)

    def noise(self, seed: int) -> Callable[[int, tuple[int, ...]], Array]:
        """The library's own generator as (step, shape) -> standard normal.

        Reproducible for one library, device and batch; `portable_noise` is for all of them.
        """
        raise NotImplementedError

    def portable_noise(self, seed: int) -> Callable[..., Array]:
        """`ddpm_core.portable_noise` of this library, device and dtype: the same bits on all."""
        return portable_noise(seed, self.xp, self.device, self.dtype)

    def lincomb(self, *terms: tuple[Scalar, Array]) -> Array:
        """Σ c x of terms (c, x) of one shape and dtype, as `advance` asks for it: a new array.

        c: a Python float, or an array of shape () or (B,)
        """
        return combine(*terms)

    def compile(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled if this library does that."""
        return f

    def inference_ops(self, config: UNetConfig) -> Ops:
        """The operations of `network`, which needs no gradients."""
        return self.ops

    def network(self, params: dict[str, Array], config: UNetConfig) -> Callable[..., Array]:
        """The UNet on host parameters, as (x_t, timestep, y=None) -> output; packed once."""
        ops = self.inference_ops(config)
        packed = ops.pack({name: self.asarray(value) for name, value in params.items()})
        # Made once: a step of a sampler copies nothing to the device.
        dtype = self.dtype if self.dtype == self.xp.float64 else self.xp.float32
        packed[FREQUENCIES] = self.asarray(frequencies(config), dtype)

        def net(x: Array, timestep: Array, y: Array | None = None) -> Array:
            return unet(packed, x, timestep, y, config=config, ops=ops)

        return net

    def __repr__(self) -> str:
        return f"{type(self).__name__}(device={self.device!r}, dtype={self.dtype!r})"


def backend(name: str, *, device: Any = None, dtype: str = "float32", **options: Any) -> Backend:
    """The backend of a name: numpy, torch, jax, cupy, or one registered by another package.

    device: as the library names it; None is its default
    dtype: "float32", "float64", or another name the library has
    options: what this backend alone takes, such as compile= of torch

    LookupError if there is none of that name, ImportError with the line that installs what it
    needs if its library is missing.
    """
    found = discover()
    if name not in found:
        raise LookupError(
            f"no backend {name!r}; there are {', '.join(sorted(found))} (packages add others as "
            f"entry points of group {GROUP!r})"
        )
    try:
        kind = found[name].load()
    except ModuleNotFoundError as error:
        dist = found[name].dist
        ours = dist is not None and dist.name == "ddpm-core"
        advice = f": pip install 'ddpm-core[{name}]'" if ours else ", which is not installed"
        raise ImportError(f"backend {name!r} needs {error.name}{advice}") from None
    return kind(device=device, dtype=dtype, **options)


def discover() -> dict[str, EntryPoint]:
    """The registered backends, by name; nothing of them is imported."""
    from importlib.metadata import entry_points  # a third of the whole import's time, if at the top

    return {entry.name: entry for entry in entry_points(group=GROUP)}
