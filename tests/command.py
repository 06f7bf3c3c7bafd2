"""What the tests of the command line share: a small model, and ways to run a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddpm_core as ddpm
from ddpm_core.checkpoints import Checkpoint
from ddpm_core.cli import app, main
from ddpm_core.nn import UNetConfig, initialise, parameter_shapes

COMMAND = Path(sys.executable).with_name("ddpm-core")
LABELS = ("cat", "dog", "2")  # the last is a name, not the number of itself


def tiny(**changes) -> Checkpoint:
    """A network of random weights, so that its pictures depend on all that they should."""
    config = UNetConfig(channels=1, out_channels=1, widths=(8, 8), blocks=1, groups=4, classes=3)
    config = changes.pop("config", config)
    rng = np.random.default_rng(0)
    params = initialise(config, rng)
    for name, shape in parameter_shapes(config).items():
        if any(part in name for part in ("conv2", "conv_out", "class_embedding")):  # begin near 0
            params[name] = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    schedule = ddpm.linear(100, rescale=True)
    return Checkpoint(
        **{"params": params, "config": config, "schedule": schedule, "size": (4, 6)}
        | {"labels": LABELS}
        | changes
    )


def mild(channels: int) -> Checkpoint:
    """A network without classes, whose pictures are seldom black or white."""
    config = UNetConfig(channels=channels, out_channels=channels, widths=(8, 8), blocks=1, groups=4)
    checkpoint = tiny(config=config, labels=(), predicts="x0")
    checkpoint.params["conv_out.weight"][:] *= 0.1
    checkpoint.params["conv_out.bias"][:] = 0
    return checkpoint


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened)


def run(*arguments: object) -> None:
    assert app.run([str(a) for a in arguments]) == 0


def sample(model: Path, *arguments: object, out: str = "s.png") -> np.ndarray:
    """Three pictures beside each other, of one class, so that no names stand above them."""
    options = ["--steps", 2, "--grid", "1x3", "--classes", "cat", "--out", out]
    run("sample", "--model", model, *options, *arguments)
    return pixels(out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    """Runs `main`, which must say one line on stderr and exit with a status; returns the line."""
    capsys.readouterr()
    before = sys.argv
    sys.argv = ["ddpm-core", *(str(a) for a in arguments)]
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    assert caught.value.code == status
    assert err.startswith("ddpm-core: ")
    assert err.count("\n") == 1
    assert out == ""
    return err


NO_TORCH = """
import sys
class NoTorch:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, NoTorch)
from ddpm_core.cli import main
main()
"""  #: the command, where there is no torch

LIMITED = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def executable(*arguments: object, cwd: Path, limit: int | None = None):
    """The installed command, as a user runs it; limit: of the size of a file, in bytes."""
    limited = [] if limit is None else [sys.executable, "-c", LIMITED, str(limit)]
    return subprocess.run(
        [*limited, COMMAND, *(str(a) for a in arguments)], cwd=cwd, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"},
    )  # fmt: skip


def several(world: int, *words: object) -> list[subprocess.CompletedProcess[str]]:
    """The command as so many processes at the same time: what each one said."""
    running = [
        subprocess.Popen(
            [COMMAND, *map(str, words)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world)},
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [one.communicate(timeout=60) for one in running]
    return [
        subprocess.CompletedProcess(words, one.returncode, *each)
        for one, each in zip(running, said, strict=True)
    ]
