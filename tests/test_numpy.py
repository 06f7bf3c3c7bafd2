"""The NumPy network: an image's result in any batch, thread or process, and what it refuses."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import ddpm_core_numpy.backend as numpy_backend
from ddpm_core.nn import UNetConfig, initialise
from ddpm_core_numpy import NumPy

#: Wide enough for Winograd's tiles of both sizes, and with every operation.
CONFIGS = {
    "ho": UNetConfig(
        channels=1, out_channels=1, widths=(32, 64), blocks=1, attention=(1,), groups=4, classes=5
    ),
    "dhariwal": UNetConfig(
        *(2, 4, (8, 32)),
        blocks=1,
        groups=4,
        head_width=4,
        scale_shift=True,
        residual_resampling=True,
        symmetric_padding=True,
    ),
}


def network(name: str = "ho", dtype: str = "float32"):
    config = CONFIGS[name]
    rng = np.random.default_rng(0)
    params = initialise(config, rng)
    params = {n: p + rng.uniform(-0.1, 0.1, p.shape).astype(p.dtype) for n, p in params.items()}
    return NumPy(dtype=dtype).network(params, config)


def inputs(count: int, name: str = "ho", dtype: str = "float32"):
    """x, timesteps and classes of a batch of 28 x 28 images."""
    config = CONFIGS[name]
    x = np.random.default_rng(1).standard_normal((count, config.channels, 28, 28)).astype(dtype)
    y = np.arange(count) % 6 - 1 if config.classes else None
    return x, np.linspace(0, 999, count, dtype=np.float32), y


def some(batch, part: slice):
    return tuple(None if a is None else a[part] for a in batch)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_in_any_batch(name, dtype):
    """The same bits alone, among others, and in whatever parts the batch is computed."""
    net, batch = network(name, dtype), inputs(7, name, dtype)
    whole = net(*batch)
    for part in (slice(0, 1), slice(6, 7), slice(0, 2), slice(1, 6), slice(2, 5)):
        np.testing.assert_array_equal(net(*some(batch, part)), whole[part])


@pytest.mark.parametrize("count", [1, 2, 16])
def test_any_number_of_processors(count, monkeypatch):
    """The same bits on one processor, on two, and on more than there are images."""
    net, batch = network(), inputs(3)
    wanted = net(*batch)
    monkeypatch.setattr(numpy_backend.os, "cpu_count", lambda: count)
    np.testing.assert_array_equal(net(*batch), wanted)


def threads_of_blas() -> list[int]:
    info = pytest.importorskip("threadpoolctl").threadpool_info()
    return [library["num_threads"] for library in info if library["user_api"] == "blas"]


@pytest.fixture
def two_threads():
    """BLAS with two threads, as threads other than the main one may set it."""
    pytest.importorskip("threadpoolctl")
    before = [(lib, lib.num_threads) for lib in numpy_backend._blas()]
    for lib, _ in before:
        numpy_backend._set_threads(lib, 2)
    if 2 not in threads_of_blas():
        pytest.skip("this BLAS has one thread")
    yield
    for lib, count in before:
        numpy_backend._set_threads(lib, count)


def test_calls_from_many_threads(two_threads):
    """Their results are those of calls in turn, bit for bit, and BLAS has its threads again."""
    net, batch, before = network(), inputs(5), threads_of_blas()
    whole = net(*batch)
    assert threads_of_blas() == before
    found: dict[int, list[np.ndarray]] = {}
    seen = set()

    def job(count: int) -> None:
        found[count] = [net(*some(batch, slice(count))) for _ in range(3)]
        seen.add(tuple(threads_of_blas()))

    threads = [threading.Thread(target=job, args=(count,)) for count in (1, 2, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for count, results in found.items():
        for result in results:
            np.testing.assert_array_equal(result, whole[:count])
    assert threads_of_blas() == before


def test_one_thread_until_the_last_leaves(two_threads):
    """In whatever order threads enter and leave, and whichever thread it is."""
    limit, before = numpy_backend.OneThread(), threads_of_blas()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with limit:
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(60)
    assert set(threads_of_blas()) == {1}
    with limit:
        leave.set()
        thread.join()
        assert set(threads_of_blas()) == {1}
    assert threads_of_blas() == before


def test_threads_of_openmp(monkeypatch):
    """Where each thread has a number of its own, the workers set theirs, and nobody else's."""
    counts: list[int] = []
    lib = SimpleNamespace(threading_layer="openmp", num_threads=8, set_num_threads=counts.append)
    monkeypatch.setattr(numpy_backend, "_blas", lambda: [lib])
    with numpy_backend.OneThread():
        assert counts == []
    numpy_backend._start_worker()
    assert counts == [1]


def test_no_threadpoolctl(monkeypatch):
    """Without it the batch is one part, and its results are the same to rounding."""
    net, batch = network(dtype="float64"), inputs(3, dtype="float64")
    wanted = net(*batch)
    monkeypatch.setattr(numpy_backend, "_workers", None)
    monkeypatch.setitem(__import__("sys").modules, "threadpoolctl", None)
    monkeypatch.setattr(numpy_backend, "_blas", numpy_backend._blas.__wrapped__)
    assert numpy_backend._blas() is None
    np.testing.assert_allclose(net(*batch), wanted, rtol=0, atol=1e-12)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, and rightly
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")  # of JAX, if another test loaded it
def test_fork(two_threads):
    """A child of a process that has called the network calls it too, even from within a call."""
    net, batch, before = network(), inputs(2), threads_of_blas()
    wanted = net(*batch)
    with numpy_backend._ONE_THREAD:
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a hang ends the child, and not its parent
            same = np.array_equal(net(*batch), wanted) and threads_of_blas() == before
            os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    np.testing.assert_array_equal(net(*batch), wanted)


def called(net, batch):
    return net(*batch)


@pytest.mark.slow
def test_spawned_process():
    """A network is sent to a fresh process, which gives the same bits."""
    net, batch = network(), inputs(2)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(called, (net, batch)).get(timeout=120)
    np.testing.assert_array_equal(found, net(*batch))


def test_pickled_noise():
    noise = NumPy().noise(3)
    again = pickle.loads(pickle.dumps(noise))
    np.testing.assert_array_equal(again(2, (3, 4)), noise(2, (3, 4)))


def test_no_images():
    """A batch of 0 images has 0 results."""
    found = network("dhariwal")(*inputs(0, "dhariwal"))
    assert found.shape == (0, 4, 28, 28)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"timestep": np.zeros(4)}, r"timestep must be \(3,\).* but is \(4,\)"),
        ({"timestep": np.zeros(2)}, r"timestep must be \(3,\).* but is \(2,\)"),
        ({"y": np.zeros(4, int)}, r"y must be \(3,\), one class per image, but is \(4,\)"),
        ({"y": np.zeros(2, int)}, r"y must be \(3,\), one class per image, but is \(2,\)"),
        ({"y": np.array([0, 5, 0])}, r"y must lie within \[-1, 4\], but has 0 to 5"),
        ({"x": np.zeros((3, 28, 28))}, r"has shape \(3, 28, 28\)"),
        ({"x": np.zeros((3, 28, 28, 1))}, r"has shape \(3, 28, 28, 1\)"),
    ],
)
def test_wrong_shapes(wrong, message):
    """The batch is checked as it was given, and not the parts that it is computed in."""
    x, timestep, y = inputs(3)
    given = {"x": x, "timestep": timestep, "y": y} | wrong
    with pytest.raises(ValueError, match=message):
        network()(**given)


@pytest.mark.parametrize("name", ["x", "timestep", "y"])
@pytest.mark.parametrize("library", ["list", "torch", "dask.array"])
def test_no_array_of_numpy(name, library):
    """A list, and arrays of other libraries, are refused by name and kind."""
    given = dict(zip(("x", "timestep", "y"), inputs(2), strict=True))
    if library == "list":
        given[name] = given[name].tolist()
    else:
        given[name] = pytest.importorskip(library).asarray(given[name])
    wanted = (
        "must be an array, but is a Python list" if library == "list" else rf"is a {library[:4]}"
    )
    with pytest.raises(TypeError, match=rf"{name} {wanted}"):
        network()(**given)
