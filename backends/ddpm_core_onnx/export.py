"""Networks as files of ONNX."""

from __future__ import annotations

import ndonnx as ndx

from ddpm_core.checkpoints.own import KEY, Checkpoint, described, read
from ddpm_core.typing import Array
from ddpm_core_onnx.graphs import build, network, weights


def export_network(checkpoint: Checkpoint, dtype: str = "float32") -> bytes:
    """A file of ONNX that computes what `checkpoint.predictor` asks its network for.

    dtype: of the stored weights: "float32", "float16" or "int8"; all else is float32

    inputs: x (batch, C, H, W); timestep (batch,), which the checkpoint's timestep_scale multiplies
        in the graph; and of a model of classes y (batch,) in int64, -1 for no class
    output: output (batch, out_channels, H, W)

    Any batch will do; H and W are the checkpoint's. Weights are initialisers under the names of
    `parameter_shapes`, those of int8 beside their scale, NAME.scale. The metadata has what a file
    of `ddpm_core.save` has.

    ValueError if the checkpoint is none that `ddpm_core.load` reads, or is larger than 2 GB.
    """
    about = described(checkpoint)
    read("the checkpoint", checkpoint.params, about)
    held = weights(checkpoint.params, dtype)
    net = network(held, checkpoint.config)
    inputs = batch_of(checkpoint)
    x, timestep, *y = inputs.values()
    if checkpoint.timestep_scale != 1:
        timestep = timestep * checkpoint.timestep_scale
    return build(held, inputs, {"output": net(x, timestep, *y)}, {KEY: about})


def batch_of(checkpoint: Checkpoint) -> dict[str, Array]:
    """The inputs of a network: x, timestep, and y if it has classes."""
    shape = ("batch", checkpoint.config.channels, *checkpoint.size)
    inputs = {
        "x": ndx.argument(shape=shape, dtype=ndx.float32),
        "timestep": ndx.argument(shape=("batch",), dtype=ndx.float32),
    }
    if checkpoint.config.classes:
        inputs["y"] = ndx.argument(shape=("batch",), dtype=ndx.int64)
    return inputs
