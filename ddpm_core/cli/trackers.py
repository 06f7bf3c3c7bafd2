"""The log of a run, told to trackers such as TensorBoard."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm_core.cli.log import Row


@contextmanager
def tracked(
    names: str | None, folder: Path, options: Mapping[str, Any]
) -> Generator[Callable[[Row], object]]:
    """What tells rows to trackers of accelerate, for as long as the context lasts.

    names: separated by commas; None for none
    folder: of the run: its name is the run's, and trackers that write files write there
    options: what the run was told

    ValueError if there is no such tracker; ImportError if its package is not installed.
    """
    if names is None:
        yield lambda row: None
        return
    library: Any = importlib.import_module("accelerate.tracking")  # which has no types
    known: dict[str, Any] = {str(name): made for name, made in library.LOGGER_TYPE_TO_CLASS.items()}
    installed = [str(name) for name in library.get_available_trackers()]
    trackers: list[Any] = []
    for name in (part.strip() for part in names.split(",")):
        if name not in known:
            raise ValueError(f"no tracker {name!r}; accelerate knows {', '.join(known)}")
        if name not in installed:
            raise ImportError(f"--track {name} needs its package: pip install {name}")
        made: Any = known[name]
        whole = folder.resolve()  # files come into its parent's folder of the run's name: there
        place = {"logging_dir": str(whole.parent)} if made.requires_logging_directory else {}
        trackers.append(made(whole.name, **place))
    told = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in options.items()}
    for tracker in trackers:
        tracker.start()
        tracker.store_init_configuration(told)

    def follow(row: Row) -> None:
        values = {name: value for name, value in row._asdict().items() if value == value}
        step = values.pop("step")
        for tracker in trackers:
            tracker.log(values, step=step)

    try:
        yield follow
    finally:
        for tracker in trackers:
            tracker.finish()
