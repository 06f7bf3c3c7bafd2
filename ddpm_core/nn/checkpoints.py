"""Checkpoints: weights as safetensors, with all that sampling needs in their metadata.

The metadata has one entry, `ddpm_core`, a JSON object: the network's configuration, the schedule,
what the network predicts, the image size, the class names, and free-form notes.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_core._typing import Array
from ddpm_core.denoisers import Predictor
from ddpm_core.nn.unet import UNetConfig, parameter_shapes
from ddpm_core.parameterisations import NAMED
from ddpm_core.schedules import VP, Discrete, LinearLogSNR, Schedule

if TYPE_CHECKING:
    from ddpm_core.backends import Backend

_KEY = "ddpm_core"
_SCHEDULES = {kind.__name__: kind for kind in (Discrete, VP, LinearLogSNR)}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network, with all that reading it takes.

    params: NumPy arrays by name
    size: (H, W) of the images that it was trained on
    predicts: a name in `parameterisations.NAMED`
    labels: the names of the classes, in order
    notes: anything a reader should know
    """

    params: Mapping[str, Array]
    config: UNetConfig
    schedule: Schedule
    size: tuple[int, int]
    predicts: str = "eps"
    labels: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def predictor(self, backend: Backend) -> Predictor:
        """The network on a backend, ready to sample from."""
        net = backend.network(dict(self.params), self.config)
        variance = self.config.out_channels == 2 * self.config.channels
        return Predictor(net, self.schedule, NAMED[self.predicts], variance)


def save(path: str | Path, checkpoint: Checkpoint, dtype: str = "float32") -> None:
    """Writes a checkpoint, its weights cast to dtype.

    The file appears whole or not at all: OSError if it cannot be written.
    """
    to_bytes = _safetensors("safetensors.numpy").save

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
        "notes": dict(checkpoint.notes),
    }
    shapes = {name: tuple(p.shape) for name, p in checkpoint.params.items()}
    check_names("the checkpoint", shapes, parameter_shapes(checkpoint.config))
    tensors = {name: np.ascontiguousarray(p, dtype) for name, p in checkpoint.params.items()}
    write_whole(path, to_bytes(tensors, metadata={_KEY: json.dumps(about)}))


def load(path: str | Path) -> Checkpoint:
    """Reads a checkpoint of `save`, its weights in float32.

    FileNotFoundError or OSError if it cannot be read; ValueError if it is not a checkpoint, is
    truncated, or its tensors are not those of its configuration.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    if _KEY not in metadata:
        raise ValueError(f"{path} is not a checkpoint of ddpm-core: its metadata lacks {_KEY!r}")
    try:
        about = json.loads(metadata[_KEY])
        ((kind, fields),) = about["schedule"].items()
        config = UNetConfig(**about["config"])
        schedule = _SCHEDULES[kind](**fields)
        size = (int(about["size"][0]), int(about["size"][1]))
        factor = 2 ** (len(config.widths) - 1)
        if any(n < 1 or n % factor for n in size):
            raise ValueError(f"a size {size} that {len(config.widths)} resolutions cannot halve")
        predicts = NAMED[about["predicts"]].__name__
        labels, notes = tuple(about["labels"]), about["notes"]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} has metadata that cannot be read: {error!r}") from None
    check_names(path, {n: t.shape for n, t in tensors.items()}, parameter_shapes(config))
    params = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return Checkpoint(params, config, schedule, size, predicts, labels, notes)


def read_tensors(path: str | Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and the metadata of a safetensors file. Errors as of `load`."""
    library = _safetensors("safetensors")

    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        opened: Any = library.safe_open(path, framework="np")
        with opened as file:
            names: list[str] = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (library.SafetensorError, TypeError) as error:  # the second, of types that NumPy lacks
        raise ValueError(f"{path} is not a safetensors file, or is truncated ({error})") from None


def _safetensors(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ImportError("checkpoints need safetensors: pip install 'ddpm-core[cli]'") from None


def check_names(
    what: str | Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """ValueError that lists which tensors are missing, unexpected, or of a wrong shape."""
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of a wrong shape": [
            f"{name} {tuple(found[name])} for {expected[name]}"
            for name in sorted(expected.keys() & found.keys())
            if tuple(found[name]) != expected[name]
        ],
    }
    complaints = [
        f"{len(names)} {how}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for how, names in wrong.items()
        if names
    ]
    if complaints:
        raise ValueError(f"{what} does not hold the network it describes; {'; '.join(complaints)}")


def write_whole(path: str | Path, data: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames: whole, or not at all.

    An OSError names the file, not the temporary one.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
