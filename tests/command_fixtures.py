"""Fixtures of the tests of the command line; a module of tests names this one as its plugin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command import tiny
from PIL import Image

from ddpm_core.checkpoints import save


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(path, tiny())
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Eight small pictures in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(8):
        place = folder / ("cat" if i % 2 else "dog") / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(place)
    return folder


@pytest.fixture
def one_thread_of_processes(one_thread, monkeypatch):
    """One thread in this process, and in those that a test starts."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
