"""Checkpoints: weights as safetensors, with all that sampling needs in their metadata.

The metadata has one entry, `ddpm_core`, a JSON object: the network's configuration, the schedule,
what the network predicts, the image size, the names of the classes, and free-form notes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_core.checkpoints.fields import Fields, cut, parse
from ddpm_core.checkpoints.files import check_names, safetensors_module, write_whole
from ddpm_core.denoisers import Predictor
from ddpm_core.nn.network import UNetConfig, parameter_shapes
from ddpm_core.parameterisations import TARGETS, mu, named
from ddpm_core.schedules import EDM, VP, Discrete, Flow, LinearLogSNR, Schedule
from ddpm_core.typing import Array

KEY = "ddpm_core"
DTYPES = ("float32", "float16", "float64")
MAX_SIDE = 2**14  #: pixels
_CONTINUOUS = {kind.__name__: kind for kind in (VP, LinearLogSNR, Flow, EDM)}
_SCHEDULES = {Discrete.__name__: Discrete, **_CONTINUOUS}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network, with all that reading it takes.

    params: NumPy arrays by name
    size: (H, W) of the images that it was trained on
    predicts: a name in `parameterisations.TARGETS`
    labels: the names of the classes, in order
    notes: anything a reader should know
    timestep_scale: multiplies the timestep that the network is told
    unconditional: whether a network of classes was also trained without one, which is y = -1
    """

    params: Mapping[str, Array]
    config: UNetConfig
    schedule: Schedule
    size: tuple[int, int]
    predicts: str = "eps"
    labels: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    timestep_scale: float = 1.0
    unconditional: bool = True

    def predictor(self, network: Callable[[dict[str, Array], UNetConfig], Any]) -> Predictor:
        """The network, ready to sample from.

        network: a backend's `network`, or any function (params, config) -> network
        """
        net = network(dict(self.params), self.config)
        if self.timestep_scale != 1:
            net = Scaled(net, self.timestep_scale)
        variance = self.config.out_channels == 2 * self.config.channels
        return Predictor(net, self.schedule, named(self.predicts, self.schedule), variance)


@dataclass(frozen=True)
class Scaled:
    """A network whose timesteps are multiplied by `scale`."""

    net: Callable[..., Array]
    scale: float

    def __call__(self, x: Array, timestep: Array, y: Array | None = None) -> Array:
        return self.net(x, timestep * self.scale, y)


def save(path: str | Path, checkpoint: Checkpoint, dtype: str = "float32") -> None:
    """Writes a checkpoint, its weights cast to dtype.

    dtype: "float32", "float16" or "float64"

    The file appears whole or not at all: OSError if it cannot be written, ValueError if `load`
    would refuse it.
    """
    to_bytes = safetensors_module("safetensors.numpy").save
    text = described(checkpoint)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but is {dtype!r}")
    with np.errstate(over="ignore"):  # told by name below
        tensors = {name: np.ascontiguousarray(p, dtype) for name, p in checkpoint.params.items()}
    read("the checkpoint", tensors, text)
    write_whole(path, to_bytes(tensors, metadata={KEY: text}))


def described(checkpoint: Checkpoint) -> str:
    """All of a checkpoint but its weights, as JSON. ValueError if a file has no words for it."""
    schedule, predicts = checkpoint.schedule, checkpoint.predicts
    if not isinstance(schedule, (Discrete, VP, LinearLogSNR, Flow, EDM)) or predicts not in TARGETS:
        raise ValueError(
            f"a checkpoint holds a schedule of {', '.join(_SCHEDULES)} and a target of "
            f"{', '.join(TARGETS)}, not {type(schedule).__name__} and {predicts!r}"
        )
    about = {
        "config": dataclasses.asdict(checkpoint.config),
        "schedule": {type(schedule).__name__: dataclasses.asdict(schedule)},
        "predicts": predicts,
        "size": checkpoint.size,
        "labels": checkpoint.labels,
        "timestep_scale": checkpoint.timestep_scale,
        "unconditional": checkpoint.unconditional,
        "notes": dict(checkpoint.notes),
    }
    return json.dumps(about)


def read(what: str | Path, tensors: Mapping[str, Array], metadata: str) -> Checkpoint:
    """The checkpoint of a file of `save`, with that entry of its metadata."""
    try:
        about = parse(metadata, "metadata")
        config = UNetConfig(**_known(about.fields("config"), UNetConfig))
        labels = tuple(about.texts("labels"))
        if labels and len(labels) != config.classes:
            raise ValueError(f"labels are {len(labels)} names for {config.classes} classes")
        height, width = about.integers("size", 2, 1, MAX_SIDE)
        predicts = about.one_of("predicts", TARGETS)
        schedule = _schedule(about.fields("schedule"))
        if predicts == mu.__name__ and not isinstance(schedule, Discrete):
            raise ValueError(f"mu is of a discrete schedule, not of a {type(schedule).__name__}")
        scale = about.number("timestep_scale", 1.0)
        if scale <= 0:
            raise ValueError(f"timestep_scale must be positive, not {scale}")
        found = Checkpoint(
            params=tensors,
            config=config,
            schedule=schedule,
            size=(height, width),
            predicts=predicts,
            labels=labels,
            notes=about.fields("notes").about,
            timestep_scale=scale,
            unconditional=about.flag("unconditional", True),
        )
    except ValueError as error:
        raise ValueError(f"{what} cannot be read: {error}") from None
    check_names(what, {n: t.shape for n, t in tensors.items()}, parameter_shapes(config))
    return checked(what, found)


def _schedule(about: Fields) -> Schedule:
    if len(about.about) != 1 or (kind := next(iter(about.about))) not in _SCHEDULES:
        raise ValueError(f"{about.what} must be one of {', '.join(_SCHEDULES)}")
    fields = about.fields(kind)
    names = _known(fields, _SCHEDULES[kind])
    if kind == Discrete.__name__:
        return Discrete(tuple(fields.numbers("logsnr")))
    return _CONTINUOUS[kind](**{name: fields.number(name) for name in names})


def _known(about: Fields, kind: type) -> dict[str, Any]:
    """The entries, if all are fields of a dataclass."""
    unknown = about.about.keys() - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise ValueError(f"{about.what} has no field {cut(min(unknown))}")
    return about.about


def checked(what: str | Path, checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of the right tensors, in float32. ValueError if it cannot sample."""
    config, size = checkpoint.config, checkpoint.size
    factor = 2 ** (len(config.widths) - 1)
    if any(n < 1 or n % factor for n in size):
        raise ValueError(
            f"{what} has a size {size} that {len(config.widths)} resolutions cannot halve"
        )
    params = {name: np.asarray(p, np.float32) for name, p in checkpoint.params.items()}
    check_finite(what, params)
    return dataclasses.replace(checkpoint, params=params)


def check_finite(what: str | Path, params: Mapping[str, Array]) -> None:
    """ValueError that names a tensor which holds NaN or infinity."""
    for name, p in params.items():
        if not np.isfinite(p).all():
            raise ValueError(f"{what} has weights that are not finite numbers, in {name}")
