"""Folders of diffusers: a pipeline's, with unet/ and scheduler/, or a `UNet2DModel`'s alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_core.checkpoints.fields import Fields, shown
from ddpm_core.checkpoints.files import (
    check_names,
    read_json,
    read_tensors,
    safetensors_module,
    write_folder,
)
from ddpm_core.checkpoints.own import MAX_SIDE, Checkpoint, check_finite
from ddpm_core.levels import steps_of
from ddpm_core.nn.network import UNetConfig, parameter_shapes
from ddpm_core.process import large
from ddpm_core.schedules import (
    Discrete,
    beta_sigmoid,
    cosine,
    from_betas,
    linear,
    scaled_linear,
    zero_terminal_snr,
)
from ddpm_core.typing import Array

CONFIG, SCHEDULER, STEM = "config.json", "scheduler_config.json", "diffusion_pytorch_model"
MARK = "down_blocks.0.resnets.0.conv1.weight"  #: a name that only this layout has
MAX_T = 10**5


def read(folder: Path) -> Checkpoint:
    """The `UNet2DModel` in a folder, with its scheduler.

    folder: of a pipeline; or of a network, with scheduler_config.json in it or in ../scheduler

    Networks of classes may have learned one that means "no class", but config.json does not say
    which: the checkpoint has unconditional=False.
    """
    network = folder if (folder / CONFIG).is_file() else folder / "unet"
    places = (folder / "scheduler", network, network.parent / "scheduler")
    place = next((p for p in places if (p / SCHEDULER).is_file()), None)
    if place is None:
        raise FileNotFoundError(
            f"no {SCHEDULER} in {network}, nor in a folder scheduler beside it, where pipelines of "
            f"diffusers have it: copy the scheduler's folder as well"
        )
    about, scheduler = read_json(network / CONFIG), read_json(place / SCHEDULER)
    try:
        config, size = config_of_diffusers(about), size_of_diffusers(about)
    except ValueError as error:
        raise ValueError(f"{network / CONFIG}: {error}") from None
    try:
        schedule, predicts = schedule_of_diffusers(scheduler), target_of_diffusers(scheduler)
    except ValueError as error:
        raise ValueError(f"{place / SCHEDULER}: {error}") from None
    files = [network / f"{STEM}.{end}" for end in ("safetensors", "bin")]
    file = next((file for file in files if file.is_file()), files[0])
    tensors, _ = read_tensors(file)
    tensors = {_present(name): tensor for name, tensor in tensors.items()}
    check_names(file, {name: t.shape for name, t in tensors.items()}, theirs_of(config))
    return Checkpoint(
        from_diffusers(tensors, config),
        config,
        schedule,
        size,
        predicts,
        unconditional=config.classes == 0,
    )


def save_diffusers(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a folder for diffusers' `DDPMPipeline.from_pretrained`: a UNet2DModel, a scheduler.

    The folder appears whole or not at all. Names of classes, notes, and having been trained
    without a class have no place there; a network of classes works as a UNet2DModel, but
    DDPMPipeline passes none.

    FileExistsError if something is there already; ValueError if diffusers has no such network or
    schedule.
    """
    to_bytes = safetensors_module("safetensors.numpy").save
    config = checkpoint.config
    about = config_to_diffusers(config, checkpoint.size)
    scheduler = scheduler_to_diffusers(checkpoint)
    if checkpoint.timestep_scale != 1:
        raise ValueError(
            f"diffusers does not scale timesteps, but this network's are multiplied by "
            f"{checkpoint.timestep_scale}"
        )
    shapes = {name: tuple(p.shape) for name, p in checkpoint.params.items()}
    check_names("the checkpoint", shapes, parameter_shapes(config))
    check_finite("the checkpoint", checkpoint.params)
    tensors = to_diffusers(checkpoint.params, config)
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    contents = {
        "model_index.json": _json(index),
        f"scheduler/{SCHEDULER}": _json(scheduler),
        f"unet/{CONFIG}": _json(about),
        f"unet/{STEM}.safetensors": to_bytes(tensors, metadata={"format": "pt"}),
    }
    write_folder(folder, contents)


def _json(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, indent=2).encode()


#: Layers of a block whose names differ, theirs by ours.
_RESIDUAL = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_NAMES = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "mid.block_1": "mid_block.resnets.0",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.block_2": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
}
_PARTS = {"block": "resnets", "attn": "attentions"}
#: Of the attention until 2022.
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _present(name: str) -> str:
    """The present name of a tensor, which may have one of before 2022."""
    block, _, leaf = name.rpartition(".")
    block, _, layer = block.rpartition(".")
    return f"{block}.{_FORMER[layer]}.{leaf}" if layer in _FORMER else name


def name_of(name: str, resolutions: int) -> str:
    """diffusers' name of one of our parameters."""
    ours, _, leaf = name.rpartition(".")
    match ours.split("."):
        case [("down" | "up") as way, level, *place]:
            i = int(level) if way == "down" else resolutions - 1 - int(level)
            if place[0] in _PARTS:
                kind, j, layer = place
                block = f"{way}_blocks.{i}.{_PARTS[kind]}.{j}"
            else:
                kind, layer = "block", place[1]
                block = f"{way}_blocks.{i}.{way}samplers.0"
        case ["mid", block, layer]:
            kind, block = block[:-2], _NAMES[f"mid.{block}"]
        case _:
            return f"{_NAMES.get(ours, ours)}.{leaf}"
    names = _ATTENTION if kind == "attn" else _RESIDUAL
    return f"{block}.{names.get(layer, layer)}.{leaf}"


def theirs_of(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of diffusers' tensors of a network."""
    return {
        name_of(name, len(config.widths)): shape[:2] if ".attn" in name else shape
        for name, shape in parameter_shapes(config).items()
    }


def from_diffusers(tensors: Mapping[str, Array], config: UNetConfig) -> dict[str, Array]:
    """diffusers' tensors, which must be those of `theirs_of`, under our names."""
    return {
        name: tensors[name_of(name, len(config.widths))].reshape(shape)
        for name, shape in parameter_shapes(config).items()
    }


def to_diffusers(params: Mapping[str, Array], config: UNetConfig) -> dict[str, Array]:
    """Our parameters under diffusers' names."""
    shapes = theirs_of(config)
    names = {name: name_of(name, len(config.widths)) for name in params}
    return {
        theirs: np.ascontiguousarray(np.reshape(params[name], shapes[theirs]))
        for name, theirs in names.items()
    }


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
#: The values of it that our network can have.
_ONLY: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "freq_shift": (0, 1),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1, 1.0),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
_RESAMPLING = {
    "DownBlock2D": "conv",
    "UpBlock2D": "conv",
    "ResnetDownsampleBlock2D": "resnet",
    "ResnetUpsampleBlock2D": "resnet",
}


def config_of_diffusers(given: Fields) -> UNetConfig:
    """The network of a `UNet2DModel`'s config.json. ValueError if our network cannot be it."""
    about = Fields({**_UNET_2D, **given.about}, given.what)
    only = {name: about.one_of(name, values) for name, values in _ONLY.items()}
    down, up = about.texts("down_block_types"), about.texts("up_block_types")[::-1]
    widths = about.entries("block_out_channels")
    if not len(down) == len(up) == len(widths):
        raise ValueError(
            f"down_block_types, up_block_types and block_out_channels must be of one length, but "
            f"have {len(down)}, {len(up)} and {len(widths)} entries"
        )
    attention = [i for i, kind in enumerate(down) if kind == "AttnDownBlock2D"]
    if attention != [i for i, kind in enumerate(up) if kind == "AttnUpBlock2D"]:
        raise ValueError(
            f"attention must be at the same resolutions down, {shown(down)}, and up, "
            f"{shown(up[::-1])}"
        )
    # The innermost block on the way down and the outermost on the way up do not resample.
    ways = [(kind, only["downsample_type"]) for kind in down[:-1]]
    ways += [(kind, only["upsample_type"]) for kind in up[1:]]
    resampling = {_RESAMPLING.get(kind, how) for kind, how in ways} or {"conv"}
    kinds = {*_RESAMPLING, "AttnDownBlock2D", "AttnUpBlock2D"}
    if len(resampling) > 1 or {*down, *up} - kinds:
        raise ValueError(
            f"blocks must all resample by a convolution or all by residual blocks, and be of "
            f"{', '.join(sorted(kinds))}, but are {shown(down)} and {shown(up[::-1])}"
        )
    groups, middle = about.value("norm_num_groups"), about.value("attn_norm_num_groups")
    if middle is not None and middle != groups:
        raise ValueError(
            f"attn_norm_num_groups must be null or norm_num_groups = {shown(groups)}, since all "
            f"group norms here have the same number of groups, but is {shown(middle)}"
        )
    scale_shift = only["resnet_time_scale_shift"] == "scale_shift"
    classes, head_width = "num_class_embeds", "attention_head_dim"
    return UNetConfig(
        channels=about.value("in_channels"),
        out_channels=about.value("out_channels"),
        widths=tuple(widths),
        blocks=about.value("layers_per_block"),
        attention=tuple(attention),
        groups=groups,
        classes=0 if about.value(classes) is None else about.integer(classes, 1, 10**8),
        head_width=0 if about.value(head_width) is None else about.integer(head_width, 1, 10**5),
        scale_shift=scale_shift,
        residual_resampling=resampling == {"resnet"},
        middle_norm=middle is not None or not scale_shift,  # as UNetMidBlock2D has it
        symmetric_padding=only["downsample_padding"] == 1,
        cosine_first=about.flag("flip_sin_to_cos"),
        endpoint=only["freq_shift"] == 1,
        eps=about.number("norm_eps"),
    )


def size_of_diffusers(about: Fields) -> tuple[int, int]:
    """The (H, W) of a config.json's sample_size, which may be one number."""
    if isinstance(about.value("sample_size"), (list, tuple)):
        height, width = about.integers("sample_size", 2, 1, MAX_SIDE)
        return height, width
    side = about.integer("sample_size", 1, MAX_SIDE)
    return side, side


def config_to_diffusers(config: UNetConfig, size: tuple[int, int]) -> dict[str, Any]:
    """The config.json of the `UNet2DModel` that is this network. ValueError if there is none."""
    if config.heads != 1:
        raise ValueError(
            f"UNet2DModel has heads of one width, not {config.heads} heads on every map; with one "
            f"width of attention that is head_width={config.widths[-1] // config.heads}"
        )
    if not config.middle_norm and not config.scale_shift:
        raise ValueError("UNet2DModel lacks the middle norm only where it has scale_shift")
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
        "attn_norm_num_groups": config.groups if config.middle_norm else None,
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


_TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def schedule_of_diffusers(about: Fields) -> Discrete:
    """The schedule of a scheduler_config.json. ValueError if it is none that we have."""
    if about.value("trained_betas", None) is not None:
        betas = about.numbers("trained_betas")
        if len(betas) > 1 and betas[-1] == 1:  # no data is left at T
            schedule = Discrete((*from_betas(betas[:-1]).logsnr, -math.inf))
        else:
            schedule = from_betas(betas)
    else:
        T = about.integer("num_train_timesteps", 1, MAX_T, 1000)
        first, last = about.number("beta_start", 1e-4), about.number("beta_end", 0.02)
        made: dict[str, Callable[[], Discrete]] = {
            "linear": lambda: linear(T, rescale=False, beta_1=first, beta_T=last),
            "scaled_linear": lambda: scaled_linear(T, beta_1=first, beta_T=last),
            "squaredcos_cap_v2": lambda: cosine(T),
            "sigmoid": lambda: beta_sigmoid(T, beta_1=first, beta_T=last),
        }
        schedule = made[about.one_of("beta_schedule", made, "linear")]()
    zero = about.flag("rescale_betas_zero_snr", False)
    return zero_terminal_snr(schedule) if zero else schedule


def target_of_diffusers(about: Fields) -> str:
    """What the network predicts, by a scheduler_config.json; a name in `NAMED`."""
    return _TARGETS[about.one_of("prediction_type", _TARGETS, "epsilon")]


def scheduler_to_diffusers(checkpoint: Checkpoint) -> dict[str, Any]:
    """The scheduler_config.json of a schedule and a target. ValueError if there is none."""
    schedule, predicts = checkpoint.schedule, checkpoint.predicts
    targets = {ours: theirs for theirs, ours in _TARGETS.items()}
    if not isinstance(schedule, Discrete) or predicts not in targets:
        raise ValueError(
            f"diffusers has discrete schedules and the targets {', '.join(targets)}, not "
            f"{schedule!r} and {predicts!r}"
        )
    s, t = steps_of(schedule(np.arange(schedule.T + 1.0)))
    about = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.T,
        "trained_betas": large(t, s).tolist(),
        "prediction_type": targets[predicts],
        "clip_sample": True,
    }
    if checkpoint.config.out_channels == 2 * checkpoint.config.channels:
        about["variance_type"] = "learned_range"
    return about
