"""The files of `sample --shards`, drawn by the workers of a dask scheduler."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

import typer

from ddpm_core.cli.drawing import Drawing
from ddpm_core.cli.processes import blocks
from ddpm_core.cli.progress import progress
from ddpm_core.cli.shards import Layout
from ddpm_core.typing import Array

_T = TypeVar("_T")


def files(
    address: str, drawing: Drawing, layout: Layout, ids: Array
) -> Generator[tuple[Array, bytes]]:
    """The ids and the bytes of each file of some ids, in whichever order they are drawn.

    A file is a task. What a lost worker drew, dask has another one draw. The bytes come here, so
    that no worker needs a folder. When the generator is closed, the workers stop.

    OSError if there is no scheduler at the address, or a file cannot be drawn.
    """
    dask = _distributed()
    with (
        dask.Client(address, set_as_default=False) as client,
        progress(len(ids), "Sampling") as bar,
    ):
        if not client.scheduler_info()["workers"]:
            typer.echo(f"Waiting for workers of {address}", err=True)
        # A task too: what is scattered to a worker is lost with it.
        shared = client.submit(_same, drawing, pure=False)
        todo = {
            client.submit(_file, shared, layout, part, pure=False): part
            for part in blocks(ids, layout.size)
        }
        for future in dask.as_completed(todo, loop=client.loop):
            part = todo.pop(future)
            try:
                data = future.result()
            except (OSError, ValueError, MemoryError):
                raise
            except Exception as error:
                raise OSError(
                    f"{address} did not draw {layout.name(part)} ({type(error).__name__}: "
                    f"{error}); --resume draws what lacks"
                ) from error
            yield part, data
            bar.advance(len(part))


def _same(drawing: Drawing) -> Drawing:
    return drawing


def _file(drawing: Drawing, layout: Layout, ids: Array) -> bytes:
    drawn = _while_asked(drawing.batches(ids, whole=True, quiet=True))
    ((_, data),) = layout.files(drawn, ids, drawing.dealt)
    return data


def _while_asked(items: Iterable[_T]) -> Generator[_T]:
    """The items, until this task of dask is cancelled."""
    worker: Any = _distributed().get_worker()
    key = worker.get_current_task()
    for item in items:
        yield item
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise RuntimeError("cancelled")


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ModuleNotFoundError:
        raise ImportError("--scheduler needs distributed: pip install 'ddpm-core[dask]'") from None
