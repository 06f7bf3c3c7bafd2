"""The file of a training state: all that a run needs to go on, and a sum over it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_core.checkpoints.fields import cut
from ddpm_core.checkpoints.files import read_tensors, write_whole


class OtherRunError(ValueError):
    """A saved state belongs to another run than the trainer's.

    differences: by name, the state's value and the trainer's: of fields of the recipe and the
        network's configuration, of "predicts", "schedule" and "data"
    """

    def __init__(self, path: str | Path, differences: Mapping[str, tuple[Any, Any]]) -> None:
        told = "; ".join(
            f"{cut(k)} was {cut(old)} and is {cut(new)}" for k, (old, new) in differences.items()
        )
        super().__init__(f"{path} is of another run: {told}")
        self.differences = differences


class State(NamedTuple):
    """done: the steps taken; loss: their running mean; run: what a trainer must agree with.

    updates: of Adam, fewer than the steps where float16 overflowed
    scaler: of float16's loss scale; empty for other precisions
    tensors: by name: "net.", "ema.DECAY.", "power.WIDTH.", "exp_avg.", "exp_avg_sq." and a
        parameter's name; "levels.values" and "levels.count" of important levels
    """

    done: int
    loss: float
    updates: int
    scaler: dict[str, Any]
    run: dict[str, Any]
    tensors: dict[str, np.ndarray]


def write(path: str | Path, state: State) -> None:
    """Writes a state: whole, or not at all. FloatingPointError if a tensor is not finite."""
    from safetensors.numpy import save

    if bad := _fault(state.tensors):
        raise FloatingPointError(f"{bad} at step {state.done}")
    about = json.dumps({k: v for k, v in state._asdict().items() if k != "tensors"})
    # One entry, for safetensors writes several in an order that differs from file to file.
    metadata = {"training": f"{_sum(about, state.tensors)} {about}"}
    write_whole(path, save(state.tensors, metadata=metadata))


def read(path: str | Path) -> State:
    """The state in a file. ValueError if it is none, or damaged."""
    tensors, metadata = read_tensors(path)
    if "training" not in metadata:
        raise ValueError(f"{path} is not the state of a run, whose metadata has 'training'")
    checksum, _, text = metadata["training"].partition(" ")
    if checksum != _sum(text, tensors):
        raise ValueError(f"{path} is damaged: its checksum is another")
    try:
        about = json.loads(text)
        state = State(**about, tensors=tensors)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} has metadata that cannot be read: {cut(repr(error))}") from None
    for name in ("done", "updates"):
        if type(count := getattr(state, name)) is not int or not 0 <= count < 2**63:
            raise ValueError(
                f"{path} is damaged: {name} must be a count of steps, but is {count!r:.40}"
            )
    if type(state.loss) is not float or not math.isfinite(state.loss):
        raise ValueError(f"{path} is damaged: loss must be a number, but is {state.loss!r:.40}")
    for name in ("run", "scaler"):
        if not isinstance(value := getattr(state, name), dict):
            raise ValueError(f"{path} is damaged: {name} must be an object, but is {value!r:.40}")
    if bad := _fault(tensors):
        raise ValueError(f"{path} is damaged: {bad}")
    return state


def differences(state: State, run: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By name, what a state says of its run and what a trainer says, where that is not one."""
    both = {name: (state.run.get(name), run.get(name)) for name in {**run, **state.run}}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def _sum(about: str, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the text and the tensors, in the order of their names."""
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _fault(tensors: Mapping[str, np.ndarray]) -> str | None:
    """What is wrong with the numbers of a state, if anything."""
    for name, value in tensors.items():
        wanted = np.float64 if name.startswith("levels.") else np.float32
        if value.dtype != wanted:
            return f"{name} is {value.dtype} and not {np.dtype(wanted)}"
        if not np.isfinite(value).all():
            return f"{name} is not finite"
        if name.startswith("exp_avg_sq.") and (value < 0).any():
            return f"{name}, a mean of squares, is negative somewhere"
    return None


def host(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of torch as NumPy arrays of their own; sharded ones are gathered."""

    def one(tensor: Any) -> np.ndarray:
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        return whole.detach().cpu().numpy().copy()

    return {name: one(tensor) for name, tensor in tensors.items()}
