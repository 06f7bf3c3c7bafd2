"""The ONNX backend: the UNet by onnxruntime, on arrays of NumPy."""

from __future__ import annotations

import os
import pickle
import signal
import sys

import numpy as np
import pytest
from onnx_files import CONFIGS, batch, checkpoint
from wrong_backends import verdicts

import ddpm_core as ddpm
from ddpm_core_numpy import NumPy

pytest.importorskip("ndonnx")
pytest.importorskip("onnxruntime")

import ddpm_core_onnx.backend as onnx_backend
from ddpm_core_onnx import ONNX


def network(on: NumPy, name: str = "ho"):
    return on.network(dict(checkpoint(name).params), CONFIGS[name])


def inputs(count: int, name: str = "ho"):
    return tuple(batch(checkpoint(name), count).values())


def graph() -> ONNX:
    """The backend whose networks are onnxruntime's, whatever they take."""
    return ONNX(measure=False)


@pytest.mark.slow
def test_onnx_passes():
    """It passes the checks of what it does not have of NumPy; its own is of the graphs alone."""
    lines = verdicts(graph(), "transfers", "sampling") | verdicts(ONNX(), "UNet by onnxruntime")
    assert [line.verdict for line in lines.values()] == ["ok"] * 3, lines
    assert graph().checks() == {}


@pytest.mark.parametrize(("best", "kept"), [(0, graph), (1, NumPy)])
def test_the_faster_is_kept(best, kept, monkeypatch):
    """Once for each size of images: bit for bit what it gives that was the faster."""
    asked = []

    def fastest(networks, *given):
        asked.append([net(*given) for net in networks])
        return best

    monkeypatch.setattr(onnx_backend, "fastest", fastest)
    net, alone, given = network(ONNX(), "odd"), network(kept(), "odd"), inputs(2, "odd")
    for images in (given, inputs(3, "odd")):
        np.testing.assert_array_equal(net(*images), alone(*images), strict=True)
    assert len(asked) == 1
    np.testing.assert_allclose(*asked[0], rtol=0, atol=1e-5 * np.abs(asked[0][0]).max())
    wide = (np.concatenate([given[0]] * 2, axis=3), *given[1:])
    np.testing.assert_array_equal(net(*wide), alone(*wide), strict=True)
    assert len(asked) == 2
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(again(*given), alone(*given), strict=True)
    assert len(asked) == 2


def test_pickles():
    """A backend, and a network that has been called: the same bits from the copies."""
    on, given = graph(), inputs(2)
    net = network(on)
    wanted = net(*given)
    again, net = pickle.loads(pickle.dumps((on, net)))
    assert (repr(again), again.measure, again.xp) == (repr(on), False, np)
    np.testing.assert_array_equal(net(*given), wanted, strict=True)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_another_dtype(dtype):
    """x of another dtype is computed in float32, and comes back in its own."""
    net, (x, timestep, y) = network(graph()), inputs(2)
    x = x.astype(np.float16)
    wanted = net(x.astype(np.float32), timestep, y).astype(dtype)
    found = net(x.astype(dtype), timestep.astype(np.float64), y.astype(np.int8))
    np.testing.assert_array_equal(found, wanted, strict=True)


def test_no_class():
    """Without y a network of classes is told -1."""
    net, (x, timestep, _) = network(graph()), inputs(2)
    np.testing.assert_array_equal(net(x, timestep), net(x, timestep, np.int64([-1, -1])))


def test_no_images():
    """A batch of 0 images has 0 results."""
    found = network(graph(), "nichol")(*inputs(0, "nichol"))
    assert (found.shape, found.dtype) == ((0, 4, 8, 12), np.float32)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, and rightly
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")  # of JAX, if another test loaded it
def test_fork():
    """A child of a process that has called the network calls it too."""
    net, given = network(graph()), inputs(2)
    wanted = net(*given)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hang ends the child, and not its parent
        os._exit(0 if np.array_equal(net(*given), wanted) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "tpu"}, r"\Athe ONNX backend has no device 'tpu'; cpu, cuda and cuda:1 are\Z"),
        ({"device": "cpu:1"}, "no device 'cpu:1'"),
        ({"device": "cuda:x"}, "no device 'cuda:x'"),
        ({"dtype": "float64"}, r"\Athe ONNX backend computes in float32, not float64\Z"),
    ],
)
def test_wrong_device_or_dtype(wrong, message):
    """What it lacks is a ValueError of one line."""
    with pytest.raises(ValueError, match=message):
        ddpm.backend("onnx", **wrong)


def test_a_gpu(monkeypatch):
    """CUDA is refused by an onnxruntime that lacks it, and by one that cannot load it."""
    library = onnx_backend.onnxruntime
    monkeypatch.setattr(library, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=r"cannot use device 'cuda': it has CPUExecutionProvider"):
        ONNX("cuda")
    made = []

    class Session:
        provider = "CUDAExecutionProvider"

        def __init__(self, file, options, providers):
            made.append(providers)

        def get_providers(self):
            return [self.provider, "CPUExecutionProvider"]

    monkeypatch.setattr(library, "InferenceSession", Session)
    monkeypatch.setattr(library, "get_available_providers", lambda: [Session.provider])
    on = ONNX("cuda:1")
    assert made == [[(Session.provider, {"device_id": "1", "use_tf32": "0"})]]
    assert (on.describe()["device"], on.device, on.measure) == ("cuda:1", "cpu", False)
    monkeypatch.setattr(Session, "get_providers", lambda self: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=r"'cuda:0': CUDAExecutionProvider does not load\Z"):
        ONNX("cuda")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"timestep": np.zeros(4)}, r"timestep must be \(3,\).* but is \(4,\)"),
        ({"y": np.zeros(2, int)}, r"y must be \(3,\), one class per image, but is \(2,\)"),
        ({"y": np.array([0, 5, 0])}, r"y must lie within \[-1, 4\], but has 0 to 5"),
        ({"x": np.zeros((3, 8, 9, 1))}, r"has shape \(3, 8, 9, 1\)"),
    ],
)
def test_wrong_inputs(wrong, message):
    """They are refused as the other backends refuse them, before any graph."""
    given = dict(zip(("x", "timestep", "y"), inputs(3), strict=True)) | wrong
    with pytest.raises(ValueError, match=message):
        network(graph())(**given)
    with pytest.raises(TypeError, match="x must be an array, but is a Python list"):
        network(graph())(**given | {"x": given["x"].tolist()})


def test_missing_library(monkeypatch):
    """Without onnxruntime it is an ImportError with the line that installs it."""
    for module in [m for m in sys.modules if m.split(".")[0] == "ddpm_core_onnx"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs onnxruntime: pip install 'ddpm-core\[onnx\]'"):
        ddpm.backend("onnx")
