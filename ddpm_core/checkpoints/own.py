"""Checkpoints: weights as safetensors, with all that sampling needs in their metadata.

The metadata has one entry, `ddpm_core`, a JSON object: the network's configuration, the schedule,
what the network predicts, the image size, the class names, and free-form notes. Those of other
libraries are read too (`layouts`), and diffusers' are written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from ddpm_core.checkpoints import layouts
from ddpm_core.checkpoints.files import check_names, read_tensors, safetensors_module, write_whole
from ddpm_core.denoisers import Predictor
from ddpm_core.nn.network import UNetConfig, parameter_shapes
from ddpm_core.parameterisations import NAMED
from ddpm_core.schedules import VP, Discrete, LinearLogSNR, Schedule
from ddpm_core.typing import Array

_KEY, _SCHEDULER = "ddpm_core", "scheduler_config.json"
_SCHEDULES = {kind.__name__: kind for kind in (Discrete, VP, LinearLogSNR)}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network, with all that reading it takes.

    params: NumPy arrays by name
    size: (H, W) of the images that it was trained on
    predicts: a name in `parameterisations.NAMED`
    labels: the names of the classes, in order
    notes: anything a reader should know
    timestep_scale: multiplies the timestep that the network is told
    """

    params: Mapping[str, Array]
    config: UNetConfig
    schedule: Schedule
    size: tuple[int, int]
    predicts: str = "eps"
    labels: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    timestep_scale: float = 1.0

    def predictor(self, network: Callable[[dict[str, Array], UNetConfig], Any]) -> Predictor:
        """The network, ready to sample from.

        network: a backend's `network`, or any function (params, config) -> network
        """
        net = network(dict(self.params), self.config)
        if self.timestep_scale != 1:
            net = Scaled(net, self.timestep_scale)
        variance = self.config.out_channels == 2 * self.config.channels
        return Predictor(net, self.schedule, NAMED[self.predicts], variance)


@dataclass(frozen=True)
class Scaled:
    """A network that is told of times in other units."""

    net: Callable[..., Array]
    scale: float

    def __call__(self, x: Array, timestep: Array, y: Array | None = None) -> Array:
        return self.net(x, timestep * self.scale, y)


def save(path: str | Path, checkpoint: Checkpoint, dtype: str = "float32") -> None:
    """Writes a checkpoint, its weights cast to dtype.

    The file appears whole or not at all: OSError if it cannot be written.
    """
    to_bytes = safetensors_module("safetensors.numpy").save

    schedule = checkpoint.schedule
    if type(schedule).__name__ not in _SCHEDULES or checkpoint.predicts not in NAMED:
        raise ValueError(
            f"a checkpoint holds a schedule of {', '.join(_SCHEDULES)} and a target of "
            f"{', '.join(NAMED)}, not {type(schedule).__name__} and {checkpoint.predicts!r}"
        )
    about = {
        "config": dataclasses.asdict(checkpoint.config),
        "schedule": {type(schedule).__name__: dataclasses.asdict(schedule)},  # type: ignore[call-overload]
        "predicts": checkpoint.predicts,
        "size": checkpoint.size,
        "labels": checkpoint.labels,
        "timestep_scale": checkpoint.timestep_scale,
        "notes": dict(checkpoint.notes),
    }
    shapes = {name: tuple(p.shape) for name, p in checkpoint.params.items()}
    check_names("the checkpoint", shapes, parameter_shapes(checkpoint.config))
    tensors = {name: np.ascontiguousarray(p, dtype) for name, p in checkpoint.params.items()}
    write_whole(path, to_bytes(tensors, metadata={_KEY: json.dumps(about)}))


def load(path: str | Path) -> Checkpoint:
    """Reads a checkpoint, its weights in float32.

    path: a file of `save`; a folder of a diffusers `UNet2DModel`, with its config.json and
        scheduler_config.json; or a file of tensors in the layout of Ho et al.'s port (pesser, DDIM)
        or of OpenAI's improved- and guided-diffusion. .pt, .ckpt and .bin need torch, and are
        read without running code of theirs

    FileNotFoundError or OSError if it cannot be read; ValueError if it is not a checkpoint, is
    truncated, or its tensors are not those of its configuration.
    """
    path = Path(path)
    if path.is_dir():
        return _load_diffusers(path)
    tensors, metadata = read_tensors(path)
    if _KEY not in metadata:
        return _load_published(path, tensors)
    try:
        about = json.loads(metadata[_KEY])
        ((kind, fields),) = about["schedule"].items()
        config = UNetConfig(**about["config"])
        schedule = _SCHEDULES[kind](**fields)
        size = (int(about["size"][0]), int(about["size"][1]))
        predicts = NAMED[about["predicts"]].__name__
        labels, notes = tuple(about["labels"]), about["notes"]
        scale = float(about.get("timestep_scale", 1.0))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} has metadata that cannot be read: {error!r}") from None
    return _checked(path, tensors, config, schedule, size, predicts, labels, notes, scale)


def _checked(
    path: Path, tensors: Mapping[str, Array], config: UNetConfig, *rest: Any, **named: Any
) -> Checkpoint:
    """The checkpoint of these tensors, if they are those of its configuration."""
    check_names(path, {n: t.shape for n, t in tensors.items()}, parameter_shapes(config))
    params = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
    found = Checkpoint(params, config, *rest, **named)
    factor = 2 ** (len(config.widths) - 1)
    if any(n < 1 or n % factor for n in found.size):
        raise ValueError(
            f"{path} has a size {found.size} that {len(config.widths)} resolutions cannot halve"
        )
    return found


def _load_diffusers(folder: Path) -> Checkpoint:
    """A `UNet2DModel` and its scheduler, of a pipeline's folder or of the network's own."""
    network = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (network / "config.json").is_file():
        raise FileNotFoundError(f"no checkpoint at {folder}: diffusers' folders have a config.json")
    about = _json(network / "config.json")
    places = [folder / "scheduler" / _SCHEDULER, folder / _SCHEDULER]
    scheduler = _json(next((place for place in places if place.is_file()), places[1]))
    try:
        config = layouts.config_of_diffusers(about)
        size = about.get("sample_size")
        if size is None:
            raise ValueError("sample_size is missing")
        size = (size, size) if isinstance(size, int) else tuple(size)
        schedule = layouts.schedule_of_diffusers(scheduler)
        predicts = layouts.target_of_diffusers(scheduler)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}: {error}") from None
    stem = "diffusion_pytorch_model"
    files = [network / f"{stem}.{end}" for end in ("safetensors", "bin")]
    file = next((file for file in files if file.is_file()), files[0])
    tensors = layouts.from_diffusers(read_tensors(file)[0], config)
    return _checked(file, tensors, config, schedule, size, predicts)


def _load_published(path: Path, tensors: dict[str, Array]) -> Checkpoint:
    """A file of tensors alone, by the layout that their names are in."""
    of = {"input_blocks.0.0.weight": layouts.openai, "temb.dense.0.weight": layouts.pesser}
    for name, layout in of.items():
        if name in tensors:
            try:
                found = layout(tensors)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            params, config, schedule, size, scale = found
            return _checked(path, params, config, schedule, size, timestep_scale=scale)
    if "down_blocks.0.resnets.0.conv1.weight" in tensors:
        raise ValueError(
            f"{path} holds a network of diffusers: load its folder, where config.json and "
            f"{_SCHEDULER} say what it is"
        )
    if any("init_conv.weight" in name for name in tensors):
        raise ValueError(
            f"{path} is a checkpoint of denoising-diffusion-pytorch, whose network is another: "
            f"7x7 first convolution, RMS norms, linear attention with memory tokens"
        )
    some = ", ".join(list(tensors)[:3])
    raise ValueError(
        f"{path} is not a checkpoint of ddpm-core, whose metadata has {_KEY!r}, nor in a layout "
        f"that is known, with tensors such as {some}; known are those of Ho et al.'s port (pesser, "
        f"DDIM), of OpenAI, and folders of diffusers"
    )


def save_diffusers(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a folder that diffusers reads: UNet2DModel's config.json and weights, and a scheduler.

    The names of the classes and the notes have no place there.

    FileExistsError if it is there already; ValueError if diffusers has no such network or schedule.
    """
    to_bytes = safetensors_module("safetensors.numpy").save
    about = layouts.config_to_diffusers(checkpoint.config, checkpoint.size)
    scheduler = layouts.schedule_to_diffusers(checkpoint.schedule, checkpoint.predicts)
    if checkpoint.timestep_scale != 1:
        raise ValueError("diffusers tells a network its timestep unscaled; this one's is scaled")
    tensors = layouts.to_diffusers(checkpoint.params, checkpoint.config)
    folder = Path(folder)
    folder.mkdir(parents=True)
    write_whole(folder / "config.json", json.dumps(about, indent=2).encode())
    write_whole(folder / _SCHEDULER, json.dumps(scheduler, indent=2).encode())
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    data = to_bytes(tensors, metadata={"format": "pt"})
    write_whole(folder / "diffusion_pytorch_model.safetensors", data)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object")
    return cast(dict[str, Any], found)
