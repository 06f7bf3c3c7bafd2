"""What the tests of the CuPy backend share: the stand-in as `cupy`, and small networks."""

from __future__ import annotations

import importlib
import os
import shutil
from typing import Any

import numpy as np
import pytest
from fakecupy import installed

from ddpm_core.nn import UNetConfig

REAL = pytest.importorskip("cupy", reason="its names are the stand-in's; no GPU is needed")
NVRTC = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
if shutil.which("g++") is None and not os.environ.get("CI"):
    pytest.skip("g++ runs the kernels on the CPU", allow_module_level=True)

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
dtypes = pytest.mark.parametrize("dtype", list(EPS))


@pytest.fixture(scope="module", autouse=True)
def cp(tmp_path_factory):
    """The stand-in, as `cupy`; kernels are compiled once for all modules."""
    folder = tmp_path_factory.getbasetemp() / "kernels"
    folder.mkdir(exist_ok=True)
    with installed(folder) as cp:
        yield cp


@pytest.fixture
def on(cp):
    return backend()


def backend(**kwargs: Any) -> Any:
    return importlib.import_module("ddpm_core_cupy").CuPy(**kwargs)


def kernels() -> Any:
    return importlib.import_module("ddpm_core_cupy.kernels")


def values(x: Any) -> np.ndarray:
    """What an array of the stand-in holds, with nothing counted."""
    return x._a.copy()


CONFIGS = {
    "winograd": UNetConfig(1, 1, (32, 64), blocks=1, attention=(0,), groups=4, classes=3),
    "uneven": UNetConfig(*(1, 1, (32, 64)), blocks=1, attention=(), groups=4, scale_shift=True),
    "switches": UNetConfig(
        *(2, 4, (6, 12)),
        blocks=1,
        groups=3,
        heads=3,
        scale_shift=True,
        residual_resampling=True,
        symmetric_padding=True,
        cosine_first=True,
        endpoint=False,
        eps=1e-5,
    ),
    "ho": UNetConfig(3, 3, (4, 8), blocks=2, groups=2),
}
