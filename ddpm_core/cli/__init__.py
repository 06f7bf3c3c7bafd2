"""The command line: `ddpm-core sample`, `edit`, `train`, `plot`, `average`, `evaluate`, `convert`,
`export`, `verify`, `audit`, `info`.

Exit status: 0; 1 after a defect of ddpm-core, and of `verify` if a check fails; 2 for bad input, or
too little memory for it; 128 + the number of the signal that ended it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

LONGEST = 500  #: characters of an error

#: What errors of a library say when memory runs out: torch on CUDA, torch on the CPU, JAX.
_NO_MEMORY = ("OutOfMemoryError", "can't allocate memory", "RESOURCE_EXHAUSTED")


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where the program was, as SIGINT raises KeyboardInterrupt.

    args: the signal's number
    """


def main() -> None:
    """Runs the command line and exits; whatever goes wrong is one line on stderr.

    `--traceback`, anywhere, shows where it went wrong.
    """
    arguments = [word for word in sys.argv[1:] if word != "--traceback"]
    shown = len(arguments) < len(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a stream that a caller put there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with warnings.catch_warnings(), _signals():
        if not shown and not sys.warnoptions:
            warnings.simplefilter("ignore")  # of Pillow, torch and NumPy
        status = _run(arguments, shown)
    sys.exit(status)


def _run(arguments: list[str], shown: bool) -> int:
    """The exit status."""
    try:
        try:
            from ddpm_core.cli.app import run
        except ModuleNotFoundError as error:
            if (error.name or "ddpm_core").startswith("ddpm_core"):
                raise
            raise ImportError(
                f"the command line needs {error.name}: pip install 'ddpm-core[cli]'"
            ) from error
        status = run(arguments)
        if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
            sys.stdout.flush()
    except Terminated as stop:
        return _stopped(*stop.args)
    except KeyboardInterrupt:
        return _stopped(signal.SIGINT)
    except BrokenPipeError:
        return _no_reader()
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich's way
            return _no_reader()
        raise
    except Exception as error:
        if shown:
            traceback.print_exc()
        message = _expected(error)
        if message is not None:
            return _say(message, 2)
        return _say(
            f"this is a defect of ddpm-core: {type(error).__name__}: {error}; please report it, "
            f"with what the same command prints after `ddpm-core --traceback`",
            1,
        )
    return status


def _expected(error: Exception) -> str | None:
    """What an error says of the input; None if it says that our code is wrong."""
    if isinstance(error, OSError) and error.strerror is not None and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY):
        return (
            f"there is too little memory ({said}); a smaller --batch, if there is one, takes less"
        )
    # A KeyError or an IndexError is a LookupError too, but no answer.
    if isinstance(error, (OSError, ValueError, ImportError)) or type(error) is LookupError:
        return str(error)
    return None


def _say(message: str, status: int) -> int:
    """Prints one line that a terminal cannot misread, of bounded length; returns the status."""
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in " ".join(message.split())
    )
    limit = LONGEST - len("ddpm-core: ")
    if len(line) > limit:  # its end tells what to do
        line = f"{line[: limit - 205]} ... {line[-200:]}"
    with suppress(OSError, ValueError):  # of a stderr that is closed
        print(f"ddpm-core: {line}", file=sys.stderr)  # noqa: T201
    return status


def _stopped(number: int) -> int:
    return _say("interrupted" if number == signal.SIGINT else "terminated", 128 + number)


def _no_reader() -> int:
    """The status of a program that SIGPIPE ended; Python flushes stdout into nothing."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


@contextmanager
def _signals() -> Generator[None]:
    """Raises `Terminated` for the signals that would end the program without cleaning up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            # nohup ignores SIGHUP: so it stays.
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
