"""The processes of one command, as torchrun, `accelerate launch` and others start them."""

from __future__ import annotations

import os
from collections.abc import Generator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ddpm_core.typing import Array


class Process(NamedTuple):
    """One process of a command: its number, from 0, and how many there are."""

    rank: int
    world: int


def process() -> Process:
    """This process, by RANK and WORLD_SIZE of the environment; the only one where neither is set.

    ValueError if one of them is missing or out of range.
    """
    said = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if said["RANK"] is None and said["WORLD_SIZE"] is None:
        return Process(0, 1)
    rank, world = (int(n) if n and n.isdecimal() else -1 for n in said.values())
    if not 0 <= rank < world:
        raise ValueError(
            f"of several processes each has RANK, 0 .. WORLD_SIZE - 1, and WORLD_SIZE in its "
            f"environment, but here they are {said['RANK']} and {said['WORLD_SIZE']}"
        )
    return Process(rank, world)


def own_device(device: str | None) -> str | None:
    """The device of this process: of several on a machine, cuda is the GPU of LOCAL_RANK."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device


def blocks(ids: Array, size: int) -> Generator[Array]:
    """Rising ids, cut where id // size changes: which are together does not depend on the first."""
    starts = np.flatnonzero(np.diff(ids // size, prepend=-1))
    for start, end in pairwise(np.append(starts, len(ids))):
        yield ids[start:end]


def share(ids: Array, size: int) -> Array:
    """The ids that are this process's: of every so many of the `blocks` one."""
    rank, world = process()
    return ids[ids // size % world == rank]
