"""What keeps a run whole: one process in its folder, and signals that end it after a save."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 2**20, os.SEEK_SET)  # beyond the pid, which others read
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keeps a folder for this process; ValueError that names the one which has it.

    The system holds the lock while the file is open: it ends with the process, however that ends.
    """
    path = folder / ".lock"
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
        except OSError as error:
            pid = os.read(file, 20).decode(errors="replace").strip()
            os.close(file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                why = f"cannot be locked on this file system ({error.strerror}); pass another --out"
                raise OSError(error.errno, why, str(path)) from None
            raise ValueError(
                f"{folder} is in use by process {pid or 'another'}: wait for it, or pass another "
                f"--out"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)  # of a process that ended between our two calls, and took its file away
    try:
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
        os.close(file)


#: The signals that end a run after it was saved; the last two are the warnings of batch systems.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


@contextmanager
def signals(stop: Callable[[], object]) -> Generator[list[int]]:
    """Lets the first signal call `stop`; a second one acts as if this were not here.

    Yields the list that the first one's number comes into. A signal that is ignored, as SIGHUP is
    under nohup, stays ignored.
    """
    caught: list[int] = []
    before: dict[int, object] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        stop()
        restore()

    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()
