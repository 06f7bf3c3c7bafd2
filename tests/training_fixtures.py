"""Fixtures of the tests of training runs; a module of tests names this one as its plugin."""

from __future__ import annotations

import numpy as np
import pytest
from command import run
from training_runs import SMALL, files


@pytest.fixture(scope="session")
def started(tmp_path_factory) -> list[object]:
    """The command of a run in ./run that saves each second step, and draws each sixth."""
    path = tmp_path_factory.mktemp("data") / "a.npz"
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4), dtype=np.uint8)
    np.savez(path, images=images, classes=np.arange(8) % 2)
    levels = ["--schedule", "cosine", "--T", 4]  # so that samples take four steps
    options = ["--data", path, "--out", "run", *SMALL, *levels, "--warmup", 2]
    return ["train", *options, "--save-every", 2, "--sample-every", 6]


@pytest.fixture(scope="session")
def through(started, tmp_path_factory) -> dict[str, bytes]:
    """The files of that run after six steps without a stop, on one thread as in each test."""
    torch = pytest.importorskip("torch")
    folder, threads = tmp_path_factory.mktemp("through"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(*started, "--steps", 6)
    torch.set_num_threads(threads)
    return files(folder / "run")
