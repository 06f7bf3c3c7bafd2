"""How far a command has come: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

INTERVAL = 10.0  #: seconds between two lines where stderr is no terminal


class Bar(Protocol):
    """What `progress` gives."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Says that so many more are done; a note such as "loss 0.031" is shown beside them."""
        ...


@contextmanager
def progress(total: int, label: str, *, done: int = 0, quiet: bool = False) -> Generator[Bar]:
    """Shows on stderr how many of `total` are done, and how long the others will take.

    done: how many were done before, as in a run that is resumed
    quiet: show nothing

    Where stderr is no terminal, as in a log, a plain line appears every ten seconds, and one at
    the end if there was one before.

    with progress(steps, "Training") as bar:
        for _ in range(steps):
            bar.advance(note=f"loss {step():.4f}")
    """
    if quiet:
        yield _Lines(total, label, done, float("inf"))
    elif not sys.stderr.isatty():
        lines = _Lines(total, label, done, INTERVAL)
        yield lines
        lines.end()
    else:
        from rich.console import Console
        from rich.progress import Progress, TextColumn, TimeElapsedColumn
        from rich.text import Text

        columns = (
            *Progress.get_default_columns(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task(Text(label).markup, total=total, completed=done, note="")

            class Drawn:
                def advance(self, count: int = 1, note: str = "") -> None:
                    fields: dict[str, Any] = {"note": note} if note else {}
                    shown.update(task, advance=count, **fields)

            yield Drawn()


def counted(items: Iterable[Any], bar: Bar) -> Iterable[Any]:
    """The items, each counted when the next one is asked for."""
    for item in items:
        yield item
        bar.advance()


class _Lines:
    def __init__(self, total: int, label: str, done: int, interval: float) -> None:
        self.total, self.label, self.interval = total, label, interval
        self.first = self.done = done
        self.began = self.last = time.monotonic()
        self.note = ""

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note or self.note
        if time.monotonic() - self.last >= self.interval:
            self._print()

    def end(self) -> None:
        if self.last > self.began:
            self._print()

    def _print(self) -> None:
        self.last = time.monotonic()
        spent = self.last - self.began
        left = spent / max(self.done - self.first, 1) * (self.total - self.done)
        words = [f"{self.label} {self.done}/{self.total}", self.note]
        words += [f"{_clock(spent)} elapsed", f"{_clock(left)} left"]
        print(", ".join(word for word in words if word), file=sys.stderr, flush=True)  # noqa: T201


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
