"""ONNX graphs of networks, their weights in them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ndonnx as ndx
import numpy as np
import onnx
import spox
from onnx import numpy_helper

import ddpm_core
from ddpm_core.checkpoints.onnx import SCALE
from ddpm_core.checkpoints.own import check_finite
from ddpm_core.nn import UNetConfig, frequencies, unet
from ddpm_core.nn.network import FREQUENCIES
from ddpm_core.typing import Array
from ddpm_core_onnx import ops

DTYPES = ("float32", "float16", "int8")
LARGEST = 2**31 - 2**24  #: bytes of weights; a file of ONNX has less than 2^31


@dataclass(frozen=True)
class Weights:
    """The weights of a network, while graphs of it are traced.

    stored: what a file holds, by name
    inputs: the same as inputs of the graph, until `build` makes initialisers of them
    params: in float32, made of those in the graph
    """

    stored: Mapping[str, Array] = field(default_factory=dict[str, Array])
    inputs: Mapping[str, Array] = field(default_factory=dict[str, Array])
    params: Mapping[str, Array] = field(default_factory=dict[str, Array])


def weights(params: Mapping[str, Array], dtype: str = "float32") -> Weights:
    """Weights as they are stored.

    dtype: "float32"; "float16"; or "int8": matrices and kernels times 127 / max |w| of each output
        channel, rounded, and biases and norms in float32. The graph computes in float32 always

    ValueError for another dtype, or if float16 does not hold a weight.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but is {dtype!r}")
    stored: dict[str, Array] = {}
    for name, p in params.items():
        p = np.asarray(p, np.float32)
        if dtype == "int8" and p.ndim > 1:
            stored[name], stored[name + SCALE] = _rounded(p)
        else:
            with np.errstate(over="ignore"):  # told by name below
                stored[name] = p.astype(np.float16) if dtype == "float16" else p
    check_finite(f"the network in {dtype}", stored)
    total = sum(p.nbytes for p in stored.values())
    if total > LARGEST:
        raise ValueError(
            f"the weights have {total:,} bytes, but a file of ONNX {LARGEST:,} at most"
        )
    inputs = {
        n: ndx.argument(shape=p.shape, dtype=_DTYPES[p.dtype.name]) for n, p in stored.items()
    }

    def ready(name: str) -> Array:
        p = inputs[name]
        if name + SCALE in inputs:
            q, scale = p.unwrap_spox(), inputs[name + SCALE].unwrap_spox()
            return ndx.asarray(ops.onnx.dequantize_linear(q, scale, axis=0))
        return p if p.dtype == ndx.float32 else ndx.astype(p, ndx.float32)

    return Weights(stored, inputs, {name: ready(name) for name in params})


_DTYPES = {"float32": ndx.float32, "float16": ndx.float16, "int8": ndx.int8}


def _rounded(p: Array) -> tuple[Array, Array]:
    """Integers within -127 .. 127, and the scale (O,) that makes them the weights (O, ...)."""
    scale = np.abs(p).reshape(len(p), -1).max(axis=1) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))
    q = np.rint(p / scale.reshape(-1, *[1] * (p.ndim - 1)))
    return q.astype(np.int8), scale


def network(held: Weights, config: UNetConfig) -> Callable[..., Array]:
    """The UNet on arrays of ndonnx, as (x_t, timestep, y=None) -> output."""
    rates = ndx.asarray(np.asarray(frequencies(config), np.float32))
    params = {**held.params, FREQUENCIES: rates}

    def net(x: Array, timestep: Array, y: Array | None = None) -> Array:
        return unet(params, x, timestep, y, config=config, ops=ops.OnnxOps())

    return net


def inputs_of(config: UNetConfig, size: tuple[int, int]) -> dict[str, Array]:
    """The inputs of a network for images of a size: x, timestep, and y if it has classes."""
    inputs = {
        "x": ndx.argument(shape=("batch", config.channels, *size), dtype=ndx.float32),
        "timestep": ndx.argument(shape=("batch",), dtype=ndx.float32),
    }
    if config.classes:
        inputs["y"] = ndx.argument(shape=("batch",), dtype=ndx.int64)
    return inputs


def build(
    held: Weights,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A file of ONNX, its weights initialisers, and the first axis of its outputs "batch"."""
    given = {name: a.unwrap_spox() for name, a in {**inputs, **held.inputs}.items()}
    model = spox.build(given, {name: a.unwrap_spox() for name, a in outputs.items()})
    graph: Any = model.graph
    del graph.input[len(inputs) :]
    for name, p in held.stored.items():
        graph.initializer.append(numpy_helper.from_array(p, name))
    for value in graph.output:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.producer_name, model.producer_version = "ddpm-core", ddpm_core.__version__
    onnx.helper.set_model_props(model, dict(metadata or {}))
    return model.SerializeToString()
