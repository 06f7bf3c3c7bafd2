"""What the tests of training runs share: options, the files of a run, and its exit status."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ddpm_core.cli import main

HEAD = (
    "step,loss,loss_1,loss_2,loss_3,loss_4,gradient_norm,learning_rate,images_per_second,seconds\n"
)

RESUME = ["train", "--resume", "run"]

SMALL = ["--widths", "8,8", "--groups", 4, "--blocks", 1, "--attention", "", "--batch", 4]
SMALL += ["--held-out", 0, "--precision", "float32"]


def files(folder: str | Path) -> dict[str, bytes]:
    """The files of a folder, of a log without the times."""
    found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    if "log.csv" in found:
        found["log.csv"] = re.sub(rb"(?m)^((?:[^,\n]*,){8}).*", rb"\1", found["log.csv"])
    return found


def status_of(*arguments: object) -> int:
    """Runs `main` and returns its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ddpm-core", *(str(a) for a in arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
    return caught.value.code


class Killed(BaseException):
    """Ends a run at a point, as a kill does: nothing catches it."""
