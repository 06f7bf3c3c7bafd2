"""What several test modules share: the command line in this process, and as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_core.cli import app, main

COMMAND = Path(sys.executable).with_name("ddpm-core")

LIMITED = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def run(*arguments: object) -> None:
    assert app.run([str(a) for a in arguments]) == 0


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs `main`, which must say one line on stderr and exit with 2; returns the line."""
    capsys.readouterr()
    before = sys.argv
    sys.argv = ["ddpm-core", *(str(a) for a in arguments)]
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert err.startswith("ddpm-core: ")
    assert err.count("\n") == 1
    assert out == ""
    return err


def executable(
    *arguments: object, cwd: Path, limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """The installed command, as a user runs it; limit: of the size of a file, in bytes."""
    limited = [] if limit is None else [sys.executable, "-c", LIMITED, str(limit)]
    return subprocess.run(
        [*limited, COMMAND, *(str(a) for a in arguments)], cwd=cwd, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"},
    )  # fmt: skip


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened)
