"""OpenAI's improved- and guided-diffusion (Nichol & Dhariwal 2021, Dhariwal & Nichol 2021).

The files hold tensors alone. What their names and shapes leave open is as in the published models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ddpm_core.checkpoints.files import check_names
from ddpm_core.checkpoints.own import Checkpoint
from ddpm_core.checkpoints.port import not_a_network, size_of
from ddpm_core.nn.network import UNetConfig, parameter_shapes, plan
from ddpm_core.schedules import cosine, linear
from ddpm_core.typing import Array

MARK = "input_blocks.0.0.weight"  #: a name that only this layout has

#: Theirs by ours.
_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "temb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "nin_shortcut": "skip_connection",
    "q": "qkv",
    "k": "qkv",
    "v": "qkv",
}
_ENDS = {
    "temb.dense.0": "time_embed.0",
    "temb.dense.1": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}


def read(what: str | Path, tensors: Mapping[str, Array]) -> Checkpoint:
    """A checkpoint of a published model, which its tensors' names and shapes tell.

    improved-diffusion at 32 and 64: cosine, T = 4000, timesteps scaled to 0 .. 1000
    improved-diffusion at 256 (LSUN), and guided-diffusion: linear, T = 1000
    guided-diffusion at 64, which has 192 channels: cosine, T = 1000, another order of qkv

    Networks of classes were not trained without one.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = config_of_openai(what, shapes)
    guided_64 = config.residual_resampling and config.widths[0] == 192
    improved = not config.residual_resampling and len(config.widths) <= 4
    schedule = cosine(4000) if improved else cosine(1000) if guided_64 else linear(1000)
    check_names(what, shapes, theirs_of(config))
    return Checkpoint(
        params=from_openai(tensors, config, new_order=guided_64),
        config=config,
        schedule=schedule,
        size=size_of(config, 32 if config.residual_resampling else 16),
        timestep_scale=1000 / schedule.T,
        unconditional=config.classes == 0,
    )


def config_of_openai(what: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> UNetConfig:
    """The network of improved- or guided-diffusion that has tensors of these names and shapes.

    The number of heads is not in the file. Networks that resample by residual blocks have heads of
    64 channels; the others have 4 heads, or 1 where the time embedding is added. Those are the
    flags of the published models.
    """
    up = re.compile(r"output_blocks\.(\d+)\.[12]\.(?:conv|in_layers\.0)\.weight")
    try:
        ups = sorted(int(match[1]) for match in map(up.match, shapes) if match)
        count = len({name.split(".")[1] for name in shapes if name.startswith("output_blocks.")})
        if count == 0:
            raise KeyError("output_blocks.0.0")
        blocks = ups[0] if ups else count - 1
        firsts = [1 + i * (blocks + 1) for i in range(count // (blocks + 1))]
        widths = [shapes[f"input_blocks.{k}.0.out_layers.3.weight"][0] for k in firsts]
        residual = f"input_blocks.{blocks + 1}.0.in_layers.0.weight" in shapes
        time = shapes["input_blocks.1.0.emb_layers.1.weight"][0]
        scale_shift = bool(widths) and time == 2 * widths[0]
        return UNetConfig(
            channels=shapes["input_blocks.0.0.weight"][1],
            out_channels=shapes["out.2.weight"][0],
            widths=tuple(widths),
            blocks=blocks,
            attention=tuple(
                i for i, k in enumerate(firsts) if f"input_blocks.{k}.1.qkv.weight" in shapes
            ),
            classes=shapes.get("label_emb.weight", (0,))[0],
            heads=4 if scale_shift and not residual else 1,
            head_width=64 if residual else 0,
            scale_shift=scale_shift,
            residual_resampling=residual,
            symmetric_padding=True,
            cosine_first=True,
            endpoint=False,
            eps=1e-5,
        )
    except LookupError as error:
        raise not_a_network(what, "OpenAI", error) from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def from_openai(
    tensors: Mapping[str, Array], config: UNetConfig, new_order: bool
) -> dict[str, Array]:
    """OpenAI's tensors, which must be those of `theirs_of`, under our names.

    new_order: the rows of qkv are all q, all k, all v; otherwise q, k and v of each head in turn
    """
    params: dict[str, Array] = {}
    names = names_of(config)
    for name, shape in parameter_shapes(config).items():
        tensor = tensors[names[name]]
        if ".qkv." in names[name]:
            heads = 1 if new_order else config.heads_of(shape[0])
            parts = tensor.reshape(heads, 3, shape[0] // heads, -1)
            tensor = parts[:, "qkv".index(name.split(".")[-2])]
        params[name] = tensor.reshape(shape)
    return params


def theirs_of(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of OpenAI's tensors of a network."""
    names, shapes = names_of(config), dict[str, tuple[int, ...]]()
    for name, shape in parameter_shapes(config).items():
        theirs = names[name]
        if ".qkv." in theirs:
            shape = (3 * shape[0], *shape[1:3])
        elif "proj_out" in name:
            shape = shape[:3]
        shapes[theirs] = shape
    return shapes


def names_of(config: UNetConfig) -> dict[str, str]:
    """OpenAI's name of each of our parameters; q, k and v have one.

    Their names number the groups of blocks on each way, and the blocks of a group.
    """
    down, middle, up = plan(config)
    ways = [
        ("input_blocks.{}", down, 1),
        ("middle_block", [middle], 0),
        ("output_blocks.{}", up, 0),
    ]
    prefixes = dict(_ENDS)
    for way, groups, first in ways:
        for i, group in enumerate(groups, first):
            for j, block in enumerate(group):
                prefixes[block.name] = f"{way.format(i)}.{j}"
    found: dict[str, str] = {}
    for name in parameter_shapes(config):
        ours, _, leaf = name.rpartition(".")
        if ours in prefixes:
            found[name] = f"{prefixes[ours]}.{leaf}"
            continue
        block, _, layer = ours.rpartition(".")
        if layer == "conv" and block.endswith("downsample"):
            layer = "op"
        found[name] = f"{prefixes[block]}.{_LAYERS.get(layer, layer)}.{leaf}"
    return found
