"""Networks, and samplers with a network in them, as files of ONNX."""

from __future__ import annotations

from typing import Any

import ndonnx as ndx
import numpy as np

from ddpm_core.checkpoints.own import KEY, Checkpoint, described, read
from ddpm_core.denoisers import Denoiser, Predictor, clip
from ddpm_core.guidance import guided
from ddpm_core.levels import Level
from ddpm_core.noise import PortableNoise, portable_noise
from ddpm_core.samplers import Row, Sampler, State, advance
from ddpm_core.samplers.run import check_run
from ddpm_core.typing import Array
from ddpm_core_onnx import ops
from ddpm_core_onnx.graphs import build, inputs_of, network, weights


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
    inputs = inputs_of(checkpoint.config, checkpoint.size)
    x, timestep, *y = inputs.values()
    if checkpoint.timestep_scale != 1:
        timestep = timestep * checkpoint.timestep_scale
    return build(held, inputs, {"output": net(x, timestep, *y)}, {KEY: about})


def export_sampler(
    checkpoint: Checkpoint,
    sampler: Sampler,
    guidance: float | None = None,
    dtype: str = "float32",
) -> bytes:
    """A file of ONNX that draws pictures: noise, table and network in one graph.

    sampler: on the checkpoint's schedule; its rows are a loop in the graph, which has the network
        once, however many there are
    guidance: the scale of classifier-free guidance, if any
    dtype: of the stored weights, as in `export_network`

    inputs: seed () in int64, whose 64 bits are those of a seed of `portable_noise`; ids (batch,)
        in int64; and of a model of classes y (batch,) in int64, -1 for no class
    output: images (batch, C, H, W), each x_0 clipped to [-1, 1]

    They are what `ddpm-core sample` draws of the same seed, ids and classes, but for rounding; the
    noise is the same to the bit.

    ValueError as in `export_network`, or for guidance of a model that has no classes or was never
    trained without one.
    """
    about, config = described(checkpoint), checkpoint.config
    read("the checkpoint", checkpoint.params, about)
    if guidance is not None and not (config.classes and checkpoint.unconditional):
        raise ValueError("guidance needs a model of classes that was also trained without one")
    held = weights(checkpoint.params, dtype)
    predict = checkpoint.predictor(lambda params, config: network(held, config))
    # Refused here, since in the graph no number can be looked at: no sampler, or foreign levels.
    check_run(sampler, np.empty(1), portable_noise)
    predict.timestep(np.empty(sampler.nfe), sampler.levels.take(slice(None, -1)))
    predict = _Traced(predict.net, predict.schedule, predict.predicts, predict.variance)
    denoise = clip(predict if guidance in (None, 1) else _guided(predict, guidance))

    inputs = {"seed": ndx.argument(shape=(), dtype=ndx.int64)}
    for name in ("ids", "y") if config.classes else ("ids",):
        inputs[name] = ndx.argument(shape=("batch",), dtype=ndx.int64)
    noise, ids, cond = _noise(inputs["seed"]), inputs["ids"], {"y": inputs.get("y")}
    shape = (config.channels, *checkpoint.size)

    def drawn(step: int | Array) -> Array:
        batch: Any = None
        return noise(step, (batch, *shape), ids)

    def carried(state: State) -> list[Any]:
        arrays = (state.point, state.anchor, *state.memory)
        return [ndx.reshape(a, (-1, *shape)).unwrap_spox() for a in arrays]

    rows = sampler.rows_as(ndx, ndx.float32)

    def step(i: Any, going: Any, *before: Any) -> list[Any]:
        i = ndx.reshape(ndx.asarray(i), ())
        row = _at(rows, i)
        point, anchor, *memory = (ndx.asarray(a) for a in before)
        x_0 = denoise(point, row.level, **cond)
        z = drawn(i + 1) if sampler.stochastic else None
        return [going, *carried(advance(row, State(point, anchor, tuple(memory)), x_0, z))]

    count, going = (ops.onnx.const(np.asarray([a])) for a in (sampler.nfe, True))
    images, *_ = ops.onnx.loop(count, going, carried(sampler.start(drawn(0))), body=step)
    return build(held, inputs, {"images": ndx.asarray(images)}, {KEY: about})


class _Traced(Predictor):
    """A `Predictor` on batches whose size is known when the graph runs."""

    def timestep(self, x_t: Array, t: Level) -> Array:
        one = super().timestep(ndx.zeros((1, 1), dtype=ndx.float32), t)
        return ndx.broadcast_to(one, x_t.dynamic_shape[:1])


def _guided(predict: Predictor, scale: float) -> Denoiser:
    """`classifier_free`, in one call, on batches whose size is known when the graph runs."""

    def denoise(x_t: Array, t: Level, **cond: Any) -> Array:
        y = cond["y"]
        both = predict(ndx.concat([x_t, x_t]), t, y=ndx.concat([y, -ndx.ones_like(y)]))
        halves: Array = ndx.reshape(both, (2, -1, *x_t.shape[1:]))

        def half(i: int) -> Denoiser:
            return lambda x_t, t, **cond: halves[i, ...]

        return guided(half(0), half(1), scale)(x_t, t)

    return denoise


def _noise(seed: Array) -> PortableNoise:
    """The portable noise of a seed that is an input of the graph."""
    low, high = seed & 0xFFFFFFFF, seed >> 32
    # In two's complement: what a cast makes of numbers that do not fit is not said by ONNX.
    low = ndx.where(low >= 2**31, low - 2**32, low)
    words = ndx.astype(low, ndx.int32), ndx.astype(high, ndx.int32)
    tables = portable_noise(0, ndx).tables
    return PortableNoise(words, tables, ndx, None, ndx.float32)


def _at(rows: Row, i: Array) -> Row:
    """A row of a table."""

    def number(column: Array) -> Array:
        return ops.node(ops.onnx.gather, column, i)

    level, *rest = rows
    return Row(level.map(number), *(tuple(map(number, part)) for part in rest))
