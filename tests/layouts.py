"""Networks of diffusers and published names and shapes, for the tests of checkpoints' layouts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core.checkpoints.fields import Fields

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
KEYS = Path(__file__).parent / "checkpoint-keys"


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published checkpoint."""
    lines = (KEYS / f"keys_{name}.txt").read_text().splitlines()
    pairs = (line.split(" ", 1) for line in lines if line)
    return {name: tuple(map(int, re.findall(r"\d+", shape))) for name, shape in pairs}


def empty(name: str) -> dict[str, np.ndarray]:
    """Tensors of those shapes that take no memory."""
    zero = np.zeros((), np.float32)
    return {name: np.broadcast_to(zero, shape) for name, shape in shapes_of(name).items()}


def fields(about) -> Fields:
    """A configuration of diffusers as its JSON file has it."""
    return Fields(json.loads(json.dumps(dict(about))), "config")


def shapes(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


#: The network of google/ddpm-cifar10-32, as its config.json has it.
CIFAR = {
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "sample_size": 32,
}


#: A small one.
SMALL = {
    "sample_size": 8,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
    "attn_norm_num_groups": 4,
}


def network(about, seed: int = 0):
    """diffusers' own network with weights that are far from their initial ones."""
    torch.manual_seed(seed)
    net = diffusers.UNet2DModel(**about).eval()
    for p in net.parameters():
        std = p[0].numel() ** -0.5 if p.ndim > 1 else 0.3
        torch.nn.init.normal_(p, 0.0 if p.ndim > 1 else 0.5, std)
    return net


def outputs(net, checkpoint, backend: str):
    """What diffusers' network and ours make of the same input, on the scale of the first."""
    config = checkpoint.config
    x = torch.randn(2, config.channels, *checkpoint.size)
    t = torch.tensor([7, 903])
    y = torch.tensor([2, 0]) if config.classes else None
    on = ddpm.backend(backend)
    ours = on.network(dict(checkpoint.params), config)
    with torch.inference_mode():
        wanted = net(x, t, class_labels=y).sample.numpy()
        found = ours(
            on.asarray(x.numpy()),
            on.asarray(t.numpy(), on.xp.float32),
            None if y is None else on.asarray(y.numpy(), on.xp.int64),
        )
    scale = np.abs(wanted).max()
    return on.to_numpy(found) / scale, wanted / scale
