"""Small checkpoints of every kind of network, and files of ONNX as onnxruntime runs them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from networks import random_params

import ddpm_core as ddpm
from ddpm_core.checkpoints import Checkpoint
from ddpm_core.nn import UNetConfig

#: Every switch of UNetConfig is on in one network and off in another.
CONFIGS = {
    "ho": UNetConfig(1, 1, (8, 16), blocks=1, groups=4, classes=5),
    "nichol": UNetConfig(
        *(2, 4, (12, 8)),
        blocks=1,
        attention=(),
        groups=4,
        heads=2,
        middle_norm=False,
        symmetric_padding=True,
        cosine_first=True,
        endpoint=False,
        eps=1e-2,  # large enough to be seen
    ),
    "dhariwal": UNetConfig(
        *(3, 3, (8, 16)),
        blocks=2,
        attention=(0, 1),
        groups=2,
        head_width=4,
        scale_shift=True,
        residual_resampling=True,
    ),
    "odd": UNetConfig(1, 1, (9,), blocks=1, attention=(), groups=3),
}


def checkpoint(name: str = "ho", **fields) -> Checkpoint:
    """A network of random weights, for images of 8 x 12 pixels."""
    config = CONFIGS[name]
    fields = {"schedule": ddpm.linear(), "size": (8, 12)} | fields
    return Checkpoint(random_params(config, dtype="float32"), config, **fields)


def batch(of: Checkpoint, count: int) -> dict[str, np.ndarray]:
    """x, timesteps and classes, by the names that a file gives its inputs."""
    rng = np.random.default_rng(count)
    x = rng.standard_normal((count, of.config.channels, *of.size), dtype=np.float32)
    given = {"x": x, "timestep": rng.uniform(0, 999, count).astype(np.float32)}
    if of.config.classes:
        given["y"] = np.arange(count) % (of.config.classes + 1) - 1
    return given


def runner(file: bytes) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """A file of ONNX as a function, which the checker of ONNX finds sound."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    onnx.checker.check_model(onnx.load_from_string(file), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options)
    return lambda given: session.run(None, given)[0]
