"""The log of a run, told to trackers such as TensorBoard."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm_core.cli.log import Row


def trackers(names: str | None) -> dict[str, Any]:
    """The classes of trackers of accelerate, by names that are separated by commas.

    ValueError if there is no such tracker; ImportError if its package is not installed.
    """
    if names is None:
        return {}
    try:
        library: Any = importlib.import_module("accelerate.tracking")  # which has no types
    except ModuleNotFoundError as error:
        raise ImportError(f"--track needs {error.name}: pip install 'ddpm-core[train]'") from None
    known: dict[str, Any] = {str(name): made for name, made in library.LOGGER_TYPE_TO_CLASS.items()}
    installed = [str(name) for name in library.get_available_trackers()]
    wanted = [part.strip() for part in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ValueError(f"no tracker {name!r}; accelerate knows {', '.join(known)}")
        if name not in installed:
            raise ImportError(f"--track {name} needs its package: pip install {name}")
    return {name: known[name] for name in wanted}


@contextmanager
def tracked(
    names: str | None, folder: Path, options: Mapping[str, Any]
) -> Generator[Callable[[Row], object]]:
    """What tells rows to `trackers`, for as long as the context lasts.

    folder: of the run: its name is the run's, and trackers that write files write there
    options: what the run was told
    """
    whole = folder.resolve()  # files come into its parent's folder of the run's name: there
    started: list[Any] = []
    told = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in options.items()}
    for made in trackers(names).values():
        place = {"logging_dir": str(whole.parent)} if made.requires_logging_directory else {}
        started.append(made(whole.name, **place))
        started[-1].start()
        started[-1].store_init_configuration(told)

    def follow(row: Row) -> None:
        values = {name: value for name, value in row._asdict().items() if value == value}
        step = values.pop("step")
        for tracker in started:
            tracker.log(values, step=step)

    try:
        yield follow
    finally:
        for tracker in started:
            tracker.finish()
