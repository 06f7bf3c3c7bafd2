"""The UNet by onnxruntime, on arrays and noise of NumPy."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ndonnx as ndx
import numpy as np

from ddpm_core.backends import Backend, fastest
from ddpm_core.nn import UNetConfig, check_inputs
from ddpm_core.typing import Array
from ddpm_core_numpy import NumPy
from ddpm_core_onnx.graphs import Weights, build, inputs_of, network, weights

if TYPE_CHECKING:
    from ddpm_core.testing.backend_checks import Check, Finding

#: By name, since it has no types.
onnxruntime: Any = importlib.import_module("onnxruntime")

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class ONNX(NumPy):
    """onnxruntime, on the CPU or a GPU; arrays are NumPy's, on the host.

    device: "cpu" or None; "cuda", or "cuda:1" for the second GPU, with onnxruntime-gpu
    dtype: only "float32". A network takes x of another dtype too, computes in this one and returns
        that one
    measure: on the CPU, a network is timed beside NumPy's own at its first call for each size of
        images, and the faster one is kept; results then depend on the times, by rounding
    """

    name = "onnx"

    def __init__(self, device: Any = None, dtype: str = "float32", *, measure: bool = True) -> None:
        if dtype != "float32":
            raise ValueError(f"the ONNX backend computes in float32, not {dtype}")
        super().__init__(dtype=dtype)
        kind, _, number = str(device or "cpu").partition(":")
        if kind not in PROVIDERS or not (number or "0").isdecimal() or (number and kind == "cpu"):
            raise ValueError(f"the ONNX backend has no device {device!r}; cpu, cuda and cuda:1 are")
        found: list[str] = onnxruntime.get_available_providers()
        if PROVIDERS[kind] not in found:
            raise ValueError(
                f"this onnxruntime cannot use device {device!r}: it has {', '.join(found)}; "
                f"onnxruntime-gpu has {PROVIDERS[kind]}"
            )
        self.place = f"{kind}:{number or 0}" if kind == "cuda" else kind
        self.measure = measure and kind == "cpu"
        if kind != "cpu":
            x = ndx.argument(shape=(1,), dtype=ndx.float32)
            self.session(build(Weights(), {"x": x}, {"y": x + x}))

    def session(self, file: bytes) -> Any:
        """A file of ONNX, ready to run on the device; ValueError if it would run elsewhere."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is told below
        kind, _, number = self.place.partition(":")
        # In float32, not in TensorFloat-32.
        about = {"device_id": number, "use_tf32": "0"} if number else {}
        found = onnxruntime.InferenceSession(file, options, [(PROVIDERS[kind], about)])
        if found.get_providers()[0] != PROVIDERS[kind]:
            raise ValueError(
                f"onnxruntime cannot use device {self.place!r}: {PROVIDERS[kind]} does not load"
            )
        return found

    def network(self, params: dict[str, Array], config: UNetConfig) -> Any:
        """The UNet, as a graph for each size of images."""
        return ONNXNetwork(self, params, config)

    def describe(self) -> dict[str, str]:
        return {"device": self.place, "library": f"onnxruntime {onnxruntime.__version__}"}

    def checks(self) -> Mapping[str, tuple[str, Check]]:
        if not self.measure:
            return {}
        from ddpm_core.testing.backend_checks import network

        def graphs(on: Backend, host: Backend) -> Finding:
            return network(ONNX(self.place, measure=False), host)

        return {"UNet by onnxruntime": ("the same, where NumPy is faster too", graphs)}

    def __repr__(self) -> str:
        return f"ONNX(device={self.place!r}, dtype={self.dtype!r})"


class ONNXNetwork:
    """The UNet as (x_t, timestep, y=None) -> output, for images of any size."""

    def __init__(
        self,
        on: ONNX,
        params: dict[str, Array],
        config: UNetConfig,
        kept: dict[tuple[int, ...], int] | None = None,
    ) -> None:
        self.on, self.config = on, config
        self.params = {name: np.array(p, np.float32) for name, p in params.items()}
        self._kept = dict(kept or {})  # by size: which of `_ways` is the faster
        self._ready: dict[tuple[int, ...], Callable[..., Array]] = {}

    def __call__(self, x: Array, timestep: Array, y: Array | None = None) -> Array:
        like = next(iter(self.params.values()))
        check_inputs(x, timestep, y, self.config, like)
        if len(x) == 0:
            return np.empty((0, self.config.out_channels, *x.shape[2:]), x.dtype)
        if y is None and self.config.classes:
            y = np.full(len(x), -1)
        given = [x.astype(np.float32, copy=False), timestep.astype(np.float32, copy=False)]
        if y is not None:
            given.append(y.astype(np.int64, copy=False))
        return self._way(given)(*given).astype(x.dtype, copy=False)

    def _way(self, given: list[Array]) -> Callable[..., Array]:
        """What computes images of this size; a forked process has no threads, and makes its own."""
        size = given[0].shape[2:]
        key = (os.getpid(), *size)
        if key not in self._ready:
            ways = [self._graph, self._numpy] if self.on.measure else [self._graph]
            if size in self._kept:
                ways = [ways[self._kept[size]]]
            made = [way(size) for way in ways]
            best = 0
            if len(made) > 1:
                best = self._kept.setdefault(size, fastest(made, *given))
            self._ready.setdefault(key, made[best])
        return self._ready[key]

    def _graph(self, size: tuple[int, int]) -> Callable[..., Array]:
        held = weights(self.params)
        inputs = inputs_of(self.config, size)
        output = network(held, self.config)(*inputs.values())
        session = self.on.session(build(held, inputs, {"output": output}))
        return lambda *given: session.run(None, dict(zip(inputs, given, strict=True)))[0]

    def _numpy(self, size: tuple[int, int]) -> Callable[..., Array]:
        return NumPy().network(self.params, self.config)

    def __reduce__(self) -> Any:
        return ONNXNetwork, (self.on, self.params, self.config, self._kept)
