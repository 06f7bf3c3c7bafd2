"""How the tests run: array libraries as lanes of the fixture `lib`, a quick run, worker processes.

pytest                            everything, on all processors
pytest --quick                    few examples, no test marked `slow`, no lane that compiles
pytest --lanes=numpy,strict       only these lanes; all by default
pytest --require-lanes=torch      a lane named here fails, and does not skip, if it cannot be
                                  imported; also DDPM_REQUIRE_LANES; "all" is every lane
pytest tests/test_x.py::test_y    in this process; so are --pdb and -n 0
"""

from __future__ import annotations

import os

# Read when NumPy, torch and JAX are first imported, by subprocesses too. The arrays of the tests
# are small, so the threads of a library would wait for each other and for those of other workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")  # XLA's

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from ddpm_core import Level

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=10)

#: The module of each lane. What each alone can catch:
LANES = {
    "numpy": "array_api_compat.numpy",  # its arrays are read-only: a write in place
    "strict": "array_api_strict",  # what the standard does not promise
    "strict-oldest": "array_api_strict",  # what the standard promises only since 2024
    "strict-device1": "array_api_strict",  # an array made without device=
    "torch": "array_api_compat.torch",
    "torch-meta": "array_api_compat.torch",  # no values: any look at them
    "jax": "jax.numpy",  # any Python branch on values, under jit
    "dask": "array_api_compat.dask.array",  # any computation that is not lazy
    "ndonnx": "ndonnx",  # what no ONNX graph has: its tests trace one, and name this lane
    "mlx": "mlx.core",  # whatever needs __array_api_version__ or x.device
}
#: Versions of the standard: the first that has all that the core needs, and the last.
OLDEST, NEWEST = "2023.12", "2025.12"
#: Left out by --quick, unless --lanes names them: JAX compiles every case, dask plans it.
SLOW_LANES = ("jax", "dask", "ndonnx")
#: Only of the tests that name them: each operation on values runs a graph of its own.
NAMED_LANES = ("ndonnx",)


@dataclass(frozen=True)
class Lib:
    """An array library, as a test sees it."""

    name: str
    xp: Any
    kw: dict[str, Any] = field(default_factory=dict)  #: the device= of new arrays

    @property
    def device(self) -> Any:
        return self.kw.get("device")

    @property
    def has_values(self) -> bool:
        return self.name != "torch-meta"

    def asarray(self, a: Any, dtype: Any = None) -> Any:
        """A fresh array of this library. Its dtype is that of the NumPy array, or dtype."""
        a = np.array(a)
        if dtype is None:
            dtype = getattr(self.xp, a.dtype.name)
        if self.name == "dask":  # in two chunks, so that a batch is never one block
            chunks = (2,) * min(a.ndim, 1) + (-1,) * max(a.ndim - 1, 0)
            return self.xp.asarray(a.astype(dtype), chunks=chunks)
        x = self.xp.asarray(a, dtype=dtype, **self.kw)
        if self.name == "numpy":
            x.flags.writeable = False
        return x

    def level(self, level: Level, dtype: Any = None) -> Level:
        """A level of the host as arrays of this library."""
        return Level(*(self.asarray(np.asarray(value), dtype) for value in level))

    def to_numpy(self, x: Any) -> np.ndarray:
        """The values of an array of this library; bfloat16 comes as float32."""
        if self.name == "ndonnx":
            return x.unwrap_numpy()
        if self.name.startswith("strict"):
            x = self.xp.asarray(x, device=self.xp.Device("CPU_DEVICE"))
        if str(x.dtype).endswith("bfloat16"):
            x = x.astype(self.xp.float32) if self.name in ("jax", "mlx") else x.float()
        return np.asarray(x)

    def precision(self, dtype: str) -> AbstractContextManager[Any]:
        """Where this library has that dtype."""
        if self.name == "jax":
            return importlib.import_module("jax").enable_x64(dtype == "float64")
        return nullcontext()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="what matters most, within a minute")
    parser.addoption("--lanes", default="", help=f"of {','.join(LANES)}; default: all")
    parser.addoption(
        "--require-lanes",
        default=os.environ.get("DDPM_REQUIRE_LANES", ""),
        help="lanes that must import; default: $DDPM_REQUIRE_LANES, or none",
    )


def lanes_of(config: pytest.Config, option: str) -> list[str]:
    names = [name for name in config.getoption(option).split(",") if name]
    if option == "--lanes" and not names:
        skipped = SLOW_LANES if config.getoption("--quick") else ()
        return [name for name in LANES if name not in skipped]
    if names == ["all"]:
        return list(LANES)
    if unknown := [name for name in names if name not in LANES]:
        raise pytest.UsageError(f"{option}: no lane {', '.join(unknown)} among {', '.join(LANES)}")
    return names


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lanes(*names): the only lanes that a test is about")
    config.addinivalue_line("markers", "slow: compiles, trains or takes seconds; not in --quick")
    config.addinivalue_line("markers", "needs(*modules): skipped where one of them is missing")
    for option in ("--lanes", "--require-lanes"):
        lanes_of(config, option)
    if config.getoption("--quick"):
        settings.load_profile("quick")
    elif not config.getoption("--hypothesis-profile"):
        settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for module in mark.args:
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{module} is not installed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No workers for single tests: their output and debugger are those of this process."""
    return 0 if config.args and all("::" in arg for arg in config.args) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "lib" in metafunc.fixturenames:
        lanes, marks = (
            lanes_of(metafunc.config, "--lanes"),
            list(metafunc.definition.iter_markers("lanes")),
        )
        for mark in marks:
            lanes = [name for name in lanes if name in mark.args]
        if not marks:
            lanes = [name for name in lanes if name not in NAMED_LANES]
        metafunc.parametrize("lib", lanes, indirect=True)


@pytest.fixture
def lib(request: pytest.FixtureRequest) -> Iterator[Lib]:
    """The library of a lane; functions that the test module tags as lazy run lazily on it."""
    name = request.param
    try:
        xp = importlib.import_module(LANES[name])
    except ImportError as error:
        if name in lanes_of(request.config, "--require-lanes"):
            pytest.fail(f"lane {name} is required: {error}", pytrace=False)
        pytest.skip(f"lane {name}: {error}")
    if name in ("jax", "dask"):
        from array_api_extra.testing import patch_lazy_xp_functions

        with patch_lazy_xp_functions(request, xp=xp):
            yield Lib(name, xp)
    elif name.startswith("strict"):
        xp.set_array_api_strict_flags(
            api_version=OLDEST if name == "strict-oldest" else NEWEST,
            boolean_indexing=False,
            data_dependent_shapes=False,
        )
        yield Lib(name, xp, {"device": xp.Device("device1")} if name == "strict-device1" else {})
        xp.reset_array_api_strict_flags()
    else:
        yield Lib(name, xp, {"device": "meta"} if name == "torch-meta" else {})


@pytest.fixture
def one_thread() -> None:
    """One thread of torch, also where the environment said otherwise before the tests."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
