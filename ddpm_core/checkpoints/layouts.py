"""Published checkpoints: of diffusers, of the port of Ho et al.'s weights, and of OpenAI.

A layout is a change of names, and of a few shapes. What a file does not say of its network is what
the code that wrote it had.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_core.levels import steps_of
from ddpm_core.nn.network import UNetConfig
from ddpm_core.process import large
from ddpm_core.schedules import (
    Discrete,
    Schedule,
    beta_sigmoid,
    cosine,
    from_betas,
    linear,
    scaled_linear,
    zero_terminal_snr,
)
from ddpm_core.typing import Array

Tensors = dict[str, Array]


class Published(NamedTuple):
    """What a file of tensors alone comes to; its network predicts eps.

    params: under our names
    size: (H, W) of the images
    timestep_scale: multiplies the timestep that the network is told
    """

    params: Tensors
    config: UNetConfig
    schedule: Discrete
    size: tuple[int, int]
    timestep_scale: float = 1.0


# diffusers. -------------------------------------------------------------------------------------

#: Layers of a residual and of an attention block whose names differ, ours by theirs.
_RESIDUAL = {"time_emb_proj": "temb_proj", "conv_shortcut": "nin_shortcut"}
_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",  # until 2022
}


def from_diffusers(tensors: Mapping[str, Array], config: UNetConfig) -> Tensors:
    """diffusers' tensors under our names; what is unknown keeps its own."""
    prefixes = {theirs: ours for ours, theirs in _prefixes(config)}
    found: Tensors = {}
    for name, tensor in tensors.items():
        match = re.match(r"(\w+_blocks?\.(?:\d+\.)?\w+\.\d+|time_embedding\.\w+|\w+)\.(.+)", name)
        if match is None or match[1] not in prefixes:
            found[name] = tensor
            continue
        ours, (layer, leaf) = prefixes[match[1]], _split(match[2])
        attends = ".attn" in ours
        if attends and leaf == "weight" and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        layer = (_ATTENTION if attends else _RESIDUAL).get(layer, layer)
        found[_joined(ours, layer, leaf)] = tensor
    return found


def to_diffusers(params: Mapping[str, Array], config: UNetConfig) -> Tensors:
    """Our parameters under diffusers' present names."""
    prefixes = dict(_prefixes(config))
    residual = {ours: theirs for theirs, ours in _RESIDUAL.items()}
    attention = {ours: theirs for theirs, ours in reversed(_ATTENTION.items())}
    found: Tensors = {}
    for name, tensor in params.items():
        ours = next(prefix for prefix in prefixes if name.startswith(f"{prefix}."))
        layer, leaf = _split(name[len(ours) + 1 :])
        attends = ".attn" in ours
        layer = (attention if attends else residual).get(layer, layer)
        tensor = tensor[:, :, 0, 0] if attends and tensor.ndim == 4 else tensor
        found[_joined(prefixes[ours], layer, leaf)] = tensor
    return found


def _prefixes(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """The layers and blocks of the network: (our prefix, diffusers')."""
    yield from (
        ("temb.dense.0", "time_embedding.linear_1"),
        ("temb.dense.1", "time_embedding.linear_2"),
        ("mid.block_1", "mid_block.resnets.0"),
        ("mid.attn_1", "mid_block.attentions.0"),
        ("mid.block_2", "mid_block.resnets.1"),
        ("norm_out", "conv_norm_out"),
        *((name, name) for name in ("class_embedding", "conv_in", "conv_out")),
    )
    last = len(config.widths) - 1
    for i in range(last + 1):
        ways = (("down", i, config.blocks), ("up", last - i, config.blocks + 1))
        for way, index, count in ways:
            for j in range(count):
                yield f"{way}.{i}.block.{j}", f"{way}_blocks.{index}.resnets.{j}"
                yield f"{way}.{i}.attn.{j}", f"{way}_blocks.{index}.attentions.{j}"
            yield f"{way}.{i}.{way}sample", f"{way}_blocks.{index}.{way}samplers.0"


def _split(rest: str) -> tuple[str, str]:
    layer, _, leaf = rest.rpartition(".")
    return layer, leaf


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


#: What `UNet2DModel` has where its config.json is silent.
_UNET_2D: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "sample_size": None,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
#: What of it our network can be.
_ONLY = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "freq_shift": (0, 1),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}


def config_of_diffusers(about: Mapping[str, Any]) -> UNetConfig:
    """The network of a `UNet2DModel`'s config.json. ValueError if it is none that we have."""
    about = {**_UNET_2D, **about}
    for name, only in _ONLY.items():
        if about[name] not in only:
            raise ValueError(f"{name} must be {' or '.join(map(repr, only))}, not {about[name]!r}")
    down, up = list(about["down_block_types"]), list(reversed(about["up_block_types"]))
    attention = [i for i, kind in enumerate(down) if kind == "AttnDownBlock2D"]
    if attention != [i for i, kind in enumerate(up) if kind == "AttnUpBlock2D"]:
        raise ValueError(f"attention must be the same down, {down}, and up, {up[::-1]}")
    # The innermost way down and the outermost way up do not resample.
    ways = [(kind, about["downsample_type"]) for kind in down[:-1]]
    ways += [(kind, about["upsample_type"]) for kind in up[1:]]
    resampling = {_RESAMPLING.get(kind, how) for kind, how in ways} or {"conv"}
    kinds = {*_RESAMPLING, "AttnDownBlock2D", "AttnUpBlock2D"}
    if len(resampling) > 1 or not resampling <= {"conv", "resnet"} or {*down, *up} - kinds:
        raise ValueError(
            f"blocks must all resample by a convolution or all by residual blocks, and be of "
            f"{', '.join(sorted(kinds))}, but are {down} and {up[::-1]}"
        )
    scale_shift = about["resnet_time_scale_shift"] == "scale_shift"
    if about["attn_norm_num_groups"] not in (about["norm_num_groups"], None) or (
        scale_shift and about["attn_norm_num_groups"] is None
    ):
        raise ValueError("attn_norm_num_groups must be norm_num_groups: all norms have one size")
    return UNetConfig(
        channels=about["in_channels"],
        out_channels=about["out_channels"],
        widths=tuple(about["block_out_channels"]),
        blocks=about["layers_per_block"],
        attention=tuple(attention),
        groups=about["norm_num_groups"],
        classes=about["num_class_embeds"] or 0,
        head_width=about["attention_head_dim"] or 0,
        scale_shift=scale_shift,
        residual_resampling=resampling == {"resnet"},
        symmetric_padding=about["downsample_padding"] == 1,
        cosine_first=about["flip_sin_to_cos"],
        endpoint=about["freq_shift"] == 1,
        eps=about["norm_eps"],
    )


_RESAMPLING = {
    "DownBlock2D": "conv",
    "UpBlock2D": "conv",
    "ResnetDownsampleBlock2D": "resnet",
    "ResnetUpsampleBlock2D": "resnet",
}


def config_to_diffusers(config: UNetConfig, size: tuple[int, int]) -> dict[str, Any]:
    """The config.json of the `UNet2DModel` that is this network. ValueError if there is none."""
    if config.heads != 1:
        raise ValueError(
            f"UNet2DModel has heads of one width, not {config.heads} heads on every map; with one "
            f"width of attention that is head_width={config.widths[-1] // config.heads}"
        )
    way = "resnet" if config.residual_resampling else "conv"

    def kinds(plain: str, attending: str) -> list[str]:
        each = range(len(config.widths))
        return [attending if i in config.attention else plain for i in each]

    plain = ("DownBlock2D", "UpBlock2D")
    if config.residual_resampling:
        plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    return {
        "_class_name": "UNet2DModel",
        **_UNET_2D,
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": config.channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.widths),
        "down_block_types": kinds(plain[0], "AttnDownBlock2D"),
        "up_block_types": kinds(plain[1], "AttnUpBlock2D")[::-1],
        "layers_per_block": config.blocks,
        "norm_num_groups": config.groups,
        "attn_norm_num_groups": config.groups,
        "num_class_embeds": config.classes or None,
        "attention_head_dim": config.head_width or None,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "downsample_type": way,
        "upsample_type": way,
        "downsample_padding": int(config.symmetric_padding),
        "flip_sin_to_cos": config.cosine_first,
        "freq_shift": int(config.endpoint),
        "norm_eps": config.eps,
    }


def schedule_of_diffusers(about: Mapping[str, Any]) -> Discrete:
    """The schedule of a scheduler_config.json. ValueError if it is none that we have."""
    T, kind = about.get("num_train_timesteps", 1000), about.get("beta_schedule", "linear")
    ends = {"beta_1": about.get("beta_start", 1e-4), "beta_T": about.get("beta_end", 0.02)}
    made = {
        "linear": lambda: linear(T, rescale=False, **ends),
        "scaled_linear": lambda: scaled_linear(T, **ends),
        "squaredcos_cap_v2": lambda: cosine(T),
        "sigmoid": lambda: beta_sigmoid(T, **ends),
    }
    betas = about.get("trained_betas")
    if betas is not None and len(betas) > 1 and betas[-1] == 1:  # no data is left at T
        schedule = Discrete((*from_betas(betas[:-1]).logsnr, -math.inf))
    elif betas is not None:
        schedule = from_betas(betas)
    elif kind in made:
        schedule = made[kind]()
    else:
        raise ValueError(f"beta_schedule must be one of {', '.join(made)}, not {kind!r}")
    return zero_terminal_snr(schedule) if about.get("rescale_betas_zero_snr") else schedule


def schedule_to_diffusers(schedule: Schedule, predicts: str) -> dict[str, Any]:
    """The scheduler_config.json of a schedule and a target. ValueError if there is none."""
    targets = {ours: theirs for theirs, ours in _TARGETS.items()}
    if not isinstance(schedule, Discrete) or predicts not in targets:
        raise ValueError(
            f"diffusers has discrete schedules and the targets {', '.join(targets)}, not "
            f"{schedule!r} and {predicts!r}"
        )
    s, t = steps_of(schedule(np.arange(schedule.T + 1.0)))
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.T,
        "trained_betas": large(t, s).tolist(),
        "prediction_type": targets[predicts],
        "clip_sample": True,
    }


def target_of_diffusers(about: Mapping[str, Any]) -> str:
    """What the network predicts, by a scheduler_config.json; a name in `NAMED`."""
    kind = about.get("prediction_type", "epsilon")
    if kind not in _TARGETS:
        raise ValueError(f"prediction_type must be one of {', '.join(_TARGETS)}, not {kind!r}")
    return _TARGETS[kind]


_TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


# The port of Ho et al.'s weights, whose names are ours. ------------------------------------------


def config_of_names(tensors: Mapping[str, Array]) -> UNetConfig:
    """The network of Ho et al. 2020 that has these tensors, by their names and shapes."""

    def width(name: str) -> int:
        return int(tensors[name].shape[0])

    def count(pattern: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(pattern, name))})

    try:
        levels = count(r"down\.(\d+)\.")
        return UNetConfig(
            channels=int(tensors["conv_in.weight"].shape[1]),
            out_channels=width("conv_out.weight"),
            widths=tuple(width(f"down.{i}.block.0.conv1.weight") for i in range(levels)),
            blocks=count(r"down\.0\.block\.(\d+)\."),
            attention=tuple(i for i in range(levels) if f"down.{i}.attn.0.q.weight" in tensors),
        )
    except KeyError as error:
        raise ValueError(f"a network of Ho et al. 2020 has {error}, which is missing") from None


def pesser(tensors: Tensors) -> Published:
    """A checkpoint of the port: T = 1000, linear."""
    config = config_of_names(tensors)
    return Published(tensors, config, linear(1000), _size(config, 16))


def _size(config: UNetConfig, attending: int) -> tuple[int, int]:
    """Of the images, where maps of so many pixels are the finest that attend."""
    side = attending * 2 ** min(config.attention, default=0)
    return side, side


# OpenAI's improved-diffusion and guided-diffusion. -----------------------------------------------

_OPENAI_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "temb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "nin_shortcut",
}


def openai(tensors: Tensors) -> Published:
    """What the published models are, of whose tensors only the names and shapes say it.

    improved-diffusion at 32 and 64: cosine, T = 4000, told as 0 .. 999; its LSUN at 256, and
    guided-diffusion: linear, T = 1000; guided-diffusion at 64, with 192 channels: cosine, and the
    rows of qkv in the new order.
    """
    config = config_of_openai(tensors)
    guided_64 = config.residual_resampling and config.widths[0] == 192
    improved = not config.residual_resampling and len(config.widths) <= 4
    schedule = cosine(4000) if improved else cosine(1000) if guided_64 else linear(1000)
    size = _size(config, 32 if config.residual_resampling else 16)
    params = from_openai(tensors, config, new_order=guided_64)
    return Published(params, config, schedule, size, 1000 / schedule.T)


def config_of_openai(tensors: Mapping[str, Array]) -> UNetConfig:
    """The network of improved- or guided-diffusion that has these tensors.

    Heads are not in the file. Networks that resample by residual blocks have heads of 64 channels,
    others 4 heads, or 1 where the time is added: the flags of the published models.
    """
    up = re.compile(r"output_blocks\.(\d+)\.[12]\.(?:conv|in_layers\.0)\.weight")
    try:
        ups = sorted(int(match[1]) for match in map(up.match, tensors) if match)
        count = len({name.split(".")[1] for name in tensors if name.startswith("output_blocks.")})
        if count == 0:
            raise KeyError("output_blocks.0.0")
        blocks = ups[0] if ups else count - 1
        firsts = [1 + i * (blocks + 1) for i in range(count // (blocks + 1))]
        widths = [int(tensors[f"input_blocks.{k}.0.out_layers.3.weight"].shape[0]) for k in firsts]
        time = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0]
        residual = f"input_blocks.{blocks + 1}.0.in_layers.0.weight" in tensors
        scale_shift = int(time) == 2 * widths[0]
        classes = tensors.get("label_emb.weight")
        return UNetConfig(
            channels=int(tensors["input_blocks.0.0.weight"].shape[1]),
            out_channels=int(tensors["out.2.weight"].shape[0]),
            widths=tuple(widths),
            blocks=blocks,
            attention=tuple(
                i for i, k in enumerate(firsts) if f"input_blocks.{k}.1.qkv.weight" in tensors
            ),
            classes=0 if classes is None else int(classes.shape[0]),
            heads=4 if scale_shift and not residual else 1,
            head_width=64 if residual else 0,
            scale_shift=scale_shift,
            residual_resampling=residual,
            symmetric_padding=True,
            cosine_first=True,
            endpoint=False,
            eps=1e-5,
        )
    except KeyError as error:
        raise ValueError(f"a network of OpenAI has {error}, which is missing") from None


def from_openai(tensors: Mapping[str, Array], config: UNetConfig, new_order: bool) -> Tensors:
    """OpenAI's tensors under our names; what is unknown keeps its own.

    new_order: of the rows of qkv: all q, all k, all v; else q, k and v of each head
    """
    prefixes = dict(_openai_prefixes(config))
    found: Tensors = {}
    for name, tensor in tensors.items():
        theirs = next((p for p in prefixes if name.startswith(f"{p}.")), None)
        if theirs is None:
            found[name] = tensor
            continue
        ours, (layer, leaf) = prefixes[theirs], _split(name[len(theirs) + 1 :])
        if layer == "qkv":
            channels = tensor.shape[0] // 3
            heads = 1 if new_order else config.heads_of(channels)
            shape = (heads, 3, channels // heads, *tensor.shape[1:])
            parts = tensor.reshape(shape).swapaxes(0, 1).reshape(3, *(channels, *tensor.shape[1:]))
            for part, rows in zip("qkv", parts, strict=True):
                found[f"{ours}.{part}.{leaf}"] = rows[..., None] if leaf == "weight" else rows
            continue
        if layer == "proj_out" and leaf == "weight":
            tensor = tensor[..., None]
        layer = {"op": "conv", **_OPENAI_RESIDUAL}.get(layer, layer)
        found[_joined(ours, layer, leaf)] = tensor
    return found


def _openai_prefixes(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """The layers and blocks of the network: (OpenAI's prefix, ours), the longer prefixes first."""
    last, each = len(config.widths) - 1, config.blocks + 1
    yield from {
        "time_embed.0": "temb.dense.0",
        "time_embed.2": "temb.dense.1",
        "label_emb": "class_embedding",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid.block_1",
        "middle_block.1": "mid.attn_1",
        "middle_block.2": "mid.block_2",
        "out.0": "norm_out",
        "out.2": "conv_out",
    }.items()
    for i in range(last + 1):
        for j in range(config.blocks):
            yield f"input_blocks.{1 + i * each + j}.0", f"down.{i}.block.{j}"
            yield f"input_blocks.{1 + i * each + j}.1", f"down.{i}.attn.{j}"
        yield f"input_blocks.{(i + 1) * each}.0", f"down.{i}.downsample"
        attends = i in config.attention
        for j in range(each):
            k = (last - i) * each + j
            yield f"output_blocks.{k}.0", f"up.{i}.block.{j}"
            if attends:
                yield f"output_blocks.{k}.1", f"up.{i}.attn.{j}"
        yield f"output_blocks.{(last - i) * each + config.blocks}.{1 + attends}", f"up.{i}.upsample"
