"""The examples run, and show what they say they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_core as ddpm

FOLDER = Path(__file__).parents[1] / "examples"


def output(name: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / name, *arguments],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_spiral():
    """With the data as its own denoiser, every solver's samples come to lie on the data."""
    rows = [line.split() for line in output("spiral.py").splitlines()[2:]]
    assert [row[0] for row in rows] == ["5", "10", "20", "50", "200"]
    for first, last in zip(rows[0][1:], rows[-1][1:], strict=True):
        # What is left is less than the noise of the last level looked at: time 5 of 1000.
        assert float(last) < ddpm.linear()(5).sigma
        assert float(last) < float(first) / 2


def test_train_torch():
    """A loop of one's own trains: the loss starts at 1, a net that says nothing, and falls."""
    pytest.importorskip("torch")
    said = output("train_torch.py", "--steps", "50")
    losses = [float(value) for value in re.findall(r"loss (\S+)", said)]
    # The mean square of 1024 standard normal numbers has deviation sqrt(2 / 1024) = 0.044, and a
    # fresh net says about 0.1.
    assert losses[0] == pytest.approx(1, abs=0.3)
    assert float(re.search(r"distance to the spiral: (\S+)", said)[1]) < 1


def test_every_example_is_tested():
    """No example without a test, here or in `test_jax`."""
    names = {path.stem for path in FOLDER.glob("*.py")}
    here = {name.removeprefix("test_") for name in globals() if name[5:] in names}
    assert names == here | {"train_jax"}
