"""The examples run, and show what they say they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddpm_core as ddpm
from ddpm_core.cli.datasets import read, to_range

pytestmark = pytest.mark.slow  # JAX compiles, examples train

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


def test_reward():
    """A reward rises by much more than the error of its mean over 512 samples, 0.02."""
    pytest.importorskip("torch")
    said = output("reward.py", "--steps", "1000", "--updates", "40")
    rewards = [float(value) for value in re.findall(r"reward (\S+)", said)]
    assert 0.1 < rewards[0] < 0.5  # of the spiral, a fifth lies in the circle
    assert rewards[-1] > rewards[0] + 0.3
    assert all(np.diff(rewards) > -0.05)


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").exists(), reason="apt: dataset-fashion-mnist"
)
def test_train_jax(tmp_path):
    """The example trains: its loss falls, and what it saved has that loss on NumPy too."""
    pytest.importorskip("optax")
    options = ["--steps", "12", "--batch", "16", "--widths", "8", "8", "--warmup", "4"]
    said = output("train_jax.py", *options, "--out", str(tmp_path))
    first, last = (float(value) for value in re.findall(r"loss (\S+)", said))
    assert first == pytest.approx(1, abs=0.03)  # a fresh network says 0: the mean square of eps
    assert last < 0.9
    checkpoint = ddpm.load(tmp_path / "model.safetensors")
    assert checkpoint.labels[0] == "T-shirt/top"

    held = read("/usr/share/datasets/fashion-mnist", "t10k")
    x_0 = to_range(held.images[:64])
    t = ddpm.draw(checkpoint.schedule, (np.arange(64) + 0.5) / 64)
    predict = checkpoint.predictor(ddpm.backend("numpy").network)
    eps = ddpm.portable_noise(1)(0, x_0.shape)
    loss = ddpm.loss(predict, x_0, eps, t, y=held.classes[:64]).mean()
    assert loss == pytest.approx(last, abs=2e-4)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (2 * 302, 2 * 122)  # ten columns, four rows, gaps of two


def test_every_example_is_tested():
    """No example without a test."""
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {name.removeprefix("test_") for name in globals() if name[5:] in names}
