"""Backends: what an array library supplies beyond the Array API standard.

The mathematics needs none: it works on the arrays that it is given. A backend makes arrays, draws
noise and runs the UNet. It is an object that is passed, never a global.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
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


@dataclass(frozen=True, eq=False)
class Network:
    """The UNet on packed parameters, as (x_t, timestep, y=None) -> output."""

    packed: Mapping[str, Any]
    config: UNetConfig
    ops: Ops

    def __call__(self, x: Array, timestep: Array, y: Array | None = None) -> Array:
        return unet(self.packed, x, timestep, y, config=self.config, ops=self.ops)


class Backend:
    """What a backend supplies; a third party subclasses it and registers the entry point.

    xp: the namespace of the Array API standard
    device, dtype: of the arrays that it makes
    ops: the operations of the UNet; by default the reference's
    measure: whether a network may choose its operations by their time, and results depend on it, by
        rounding; where several processes shall have the same bits, it is set to False

    A subclass must set name, xp, device and dtype, and define `noise`; the rest has defaults. It is
    made by name as kind(device=..., dtype=..., **options), and raises ValueError for a device or
    dtype that it does not have. Backends, and the networks and noises of ours, pickle.
    """

    name: ClassVar[str]
    xp: Any
    device: Any
    dtype: Any
    ops: Ops = Ops()
    measure: bool = False

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        """Host data as an array of this library, device and dtype."""
        dtype = self.dtype if dtype is None else dtype
        return self.xp.asarray(a, dtype=dtype, device=self.device)

    def to_numpy(self, x: Array) -> Array:
        """An array of this library as a NumPy array."""
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

    def grad(self, f: Callable[[dict[str, Array]], Array]) -> Callable[..., Any] | None:
        """The derivatives of a number by each array of a dict, as a function; None without them."""
        return None

    def inference_ops(self, config: UNetConfig) -> Ops:
        """The operations of `network`, which needs no gradients."""
        return self.ops

    def network(self, params: dict[str, Array], config: UNetConfig) -> Callable[..., Array]:
        """The UNet on host parameters, as (x_t, timestep, y=None) -> output; packed once."""
        ops = self.inference_ops(config)
        packed = ops.pack({name: self.asarray(value) for name, value in params.items()})
        # Made once, so that a step of a sampler copies nothing to the device.
        dtype = self.dtype if self.dtype == self.xp.float64 else self.xp.float32
        packed[FREQUENCIES] = self.asarray(frequencies(config), dtype)
        return Network(packed, config, ops)

    def describe(self) -> dict[str, str]:
        """What results depend on, in words: "device", "library" and its version, and any others."""
        version = getattr(self.xp, "__version__", "(no version)")
        return {"device": str(self.device), "library": f"{self.name} {version}"}

    def exact_products(self) -> AbstractContextManager[Any]:
        """Where products of float32 are computed in float32, and not in fewer bits."""
        return nullcontext()

    def live_bytes(self) -> AbstractContextManager[Callable[[], int]] | None:
        """Gives a function that counts the bytes of living arrays; None if they are not known."""
        return None

    def checks(self) -> Mapping[str, tuple[str, Callable[..., Any]]]:
        """What `ddpm_core.testing.check_backend` checks of this backend alone."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(device={self.device!r}, dtype={self.dtype!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {k: _Module(v) if isinstance(v, ModuleType) else v for k, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value.load() if isinstance(value, _Module) else value)


class _Module:
    """A module in a pickle: its name."""

    def __init__(self, module: ModuleType) -> None:
        self.name = module.__name__

    def load(self) -> ModuleType:
        return importlib.import_module(self.name)


def fastest(networks: Sequence[Callable[..., Array]], *given: Array) -> int:
    """Which network is the fastest, on as many images of a batch as there are processors.

    Each is called once, and then timed twice, in turn.
    """
    some = [a[: os.cpu_count()] for a in given]
    times: list[list[float]] = []
    for _ in range(3):
        times.append([])
        for net in networks:
            start = time.perf_counter()
            net(*some)
            times[-1].append(time.perf_counter() - start)
    return int(np.argmin(np.min(times[1:], axis=0)))


def backend(name: str, *, device: Any = None, dtype: str = "float32", **options: Any) -> Backend:
    """The backend of a name: numpy, torch, jax, cupy, onnx, or one registered by another package.

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
