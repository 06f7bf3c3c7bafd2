"""The PyTorch port of Ho et al.'s weights (pesser/pytorch_diffusion), and DDIM's checkpoints.

Names are ours. The files hold tensors alone; the rest is as in Ho et al. 2020.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ddpm_core.checkpoints.files import check_names
from ddpm_core.checkpoints.own import Checkpoint
from ddpm_core.nn.network import UNetConfig, parameter_shapes
from ddpm_core.schedules import linear
from ddpm_core.typing import Array

MARK = "temb.dense.0.weight"  #: a name that only this layout has


def read(what: str | Path, tensors: Mapping[str, Array]) -> Checkpoint:
    """A checkpoint of the port: T = 1000, linear, and the network that its tensors tell."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = config_of_port(what, shapes)
    check_names(what, shapes, parameter_shapes(config))
    return Checkpoint(tensors, config, linear(1000), size_of(config, 16))


def config_of_port(what: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> UNetConfig:
    """The network of Ho et al. 2020 that has tensors of these names and shapes."""

    def count(pattern: str) -> int:
        return len({match[1] for name in shapes if (match := re.match(pattern, name))})

    levels = count(r"down\.(\d+)\.")
    try:
        return UNetConfig(
            channels=shapes["conv_in.weight"][1],
            out_channels=shapes["conv_out.weight"][0],
            widths=tuple(shapes[f"down.{i}.block.0.conv1.weight"][0] for i in range(levels)),
            blocks=count(r"down\.0\.block\.(\d+)\."),
            attention=tuple(i for i in range(levels) if f"down.{i}.attn.0.q.weight" in shapes),
        )
    except LookupError as error:
        raise not_a_network(what, "Ho et al. 2020", error) from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def not_a_network(what: str | Path, whose: str, error: LookupError) -> ValueError:
    """The error for a tensor that is missing (KeyError) or of too few axes (IndexError)."""
    if isinstance(error, KeyError):
        return ValueError(f"{what}: a network of {whose} has {error}, which is missing")
    return ValueError(f"{what}: a tensor has fewer axes than in a network of {whose}")


def size_of(config: UNetConfig, attending: int) -> tuple[int, int]:
    """The images' size, if the finest maps with attention have so many pixels a side."""
    side = attending * 2 ** min(config.attention, default=0)
    return side, side
