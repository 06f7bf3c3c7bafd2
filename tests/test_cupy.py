"""The CuPy backend without a GPU, on a stand-in for CuPy (`fakecupy`): networks, noise, devices.

What this cannot show: speed, memory, and what real streams do at the same time.
"""

from __future__ import annotations

import pickle
from typing import Any

import cupy_standin
import numpy as np
import pytest
import readme
from cupy_standin import CONFIGS, REAL, backend, dtypes, values
from fakecupy import CUDARuntimeError, gpu
from networks import random_params

import ddpm_core as ddpm
from ddpm_core.nn import Ops, UNetConfig, unet
from ddpm_core.testing import backends as suite
from ddpm_core.testing.backend_checks import CHECKS
from ddpm_core_numpy import convolution

cp, on = cupy_standin.cp, cupy_standin.on


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_unet(name, cp):
    """The reference's output in float64, of every switch and every form of convolution."""
    config = CONFIGS[name]
    size = {"winograd": (16, 16), "uneven": (10, 26)}.get(name, (4, 4))
    params, rng = random_params(config), np.random.default_rng(1)
    x = rng.standard_normal((3, config.channels, *size))
    time, y = np.array([0.0, 500.0, 999.0], np.float32), np.array([-1, 0, 2])
    if name == "winograd":
        assert convolution.tile((3, 16, 16, 32), 32) == 4
        assert convolution.tile((3, 8, 8, 64), 64) == 2
    if name == "uneven":  # whose last tiles are cut, so that what follows is given a view
        assert convolution.tile((3, 10, 26, 32), 32) == 4
        assert convolution.tile((3, 5, 13, 64), 64) == 2
    cond = y if config.classes else None
    wanted = unet(params, x, time, cond, config=config, ops=Ops())
    net = backend(dtype="float64").network(params, config)
    found = net(*(None if a is None else cp.asarray(a) for a in (x, time, cond)))
    np.testing.assert_allclose(values(found), wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())


SAMPLERS = {"ancestral": ddpm.ancestral, "dpmpp_2m": ddpm.dpmpp_2m, "unipc_2": ddpm.unipc_2}


def picture(on: Any, noise: Any, solver: Any, steps: int = 4) -> Any:
    """Schedule, network, sampler: all of it, as (array, what was counted after each step)."""
    schedule, config = ddpm.linear(1000), CONFIGS["winograd"]
    net = on.network(random_params(config), config)
    predict = ddpm.clip(ddpm.Predictor(net, schedule, ddpm.x0))
    y = on.asarray(np.array([-1, 0, 2]), on.xp.int64)
    x, counts = noise(0, (3, 1, 16, 16)), [(gpu.synchronisations, gpu.uploads)]
    sampler = solver(schedule, steps)
    for step in ddpm.trajectory(predict, sampler, x, noise, lincomb=on.lincomb, y=y):
        x = step.x
        counts.append((gpu.synchronisations, gpu.uploads))
    return x, counts


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_whole_path(name, on):
    """From the schedule to the picture: NumPy's, and no step waits for the GPU.

    The first step copies what it needs to the GPU, such as a convolution's transforms; no other
    step copies anything.
    """
    found, counts = picture(on, on.portable_noise(3), SAMPLERS[name])
    wanted, _ = picture(ddpm.backend("numpy"), ddpm.portable_noise(3), SAMPLERS[name])
    np.testing.assert_allclose(values(found), wanted, rtol=0, atol=1e-5)
    waits, uploads = (np.diff(column) for column in zip(*counts, strict=True))
    assert waits.tolist() == [0] * len(waits)
    assert uploads[1:].tolist() == [0] * (len(uploads) - 1)
    assert uploads[0] > 0  # so it is counted


@pytest.mark.slow
def test_page(on, monkeypatch):
    """The code of docs/cupy.md, with a small model: NumPy's picture."""
    config = UNetConfig(1, 1, (4, 8), blocks=1, attention=(), groups=2, classes=10)
    model = ddpm.Checkpoint(random_params(config), config, ddpm.linear(1000), (8, 4), "x0")
    monkeypatch.setattr(ddpm, "load", lambda path: model)
    (block,) = readme.blocks("python", readme.ROOT / "docs" / "cupy.md")
    names: dict[str, Any] = {}
    exec(compile(block, "docs/cupy.md", "exec"), names)
    denoise = ddpm.clip(model.predictor(ddpm.backend("numpy").network))
    x, y = ddpm.portable_noise(0)(0, (4, 1, 8, 4)), np.array([0, 1, 7, 9])
    wanted = ddpm.sample(denoise, ddpm.dpmpp_2m(model.schedule, 10), x, y=y)
    np.testing.assert_allclose(values(names["x"]), wanted, rtol=0, atol=1e-5)
    net = ddpm.backend("numpy").network(dict(model.params), config)
    wanted = net(wanted, np.full(4, 3.0), y)
    atol = 1e-4 * np.abs(wanted).max()
    np.testing.assert_allclose(values(names["eps"]), wanted, rtol=0, atol=atol)


@dtypes
def test_native_noise(dtype):
    """A function of (seed, step) in the backend's dtype, and drawn without a wait."""
    on, before = backend(dtype=dtype), gpu.synchronisations
    first = on.noise(1)(2, (4, 5))
    assert first.dtype == dtype
    assert gpu.synchronisations == before
    np.testing.assert_array_equal(values(on.noise(1)(2, (4, 5))), values(first))
    for other in (on.noise(1)(3, (4, 5)), on.noise(2)(1, (4, 5)), on.noise(2**40)(2, (4, 5))):
        assert (values(other) != values(first)).all()


@dtypes
def test_there_and_back(dtype):
    """`to_numpy` undoes `asarray`, and is what waits."""
    on, before = backend(dtype=dtype), gpu.synchronisations
    a = np.random.default_rng(0).standard_normal((3, 4)).astype(dtype)
    there = on.asarray(a)
    assert gpu.synchronisations == before
    np.testing.assert_array_equal(on.to_numpy(there), a, strict=True)
    assert gpu.synchronisations == before + 1


@pytest.mark.slow
def test_verify(on):
    """What `ddpm-core verify --backend cupy` says on a right GPU, but for its larger networks."""
    about = suite.environment(backend(device="cuda:1"))
    assert about["device"] == "stand-in 1 (cuda:1)"
    assert about["library"] == f"cupy {REAL.__version__}"
    long = {"UNet", "sampling", "memory kept"}  # minutes on the stand-in
    names = [name for name in (*CHECKS, "sampler's graph") if name not in long]
    found = {line.check: line for line in suite.examined(on, names=names)}
    wanted = {name: "not applicable" if name == "gradients" else "ok" for name in names}
    assert {name: line.verdict for name, line in found.items()} == wanted, found


@pytest.mark.parametrize(
    ("device", "number"), [(None, 0), (0, 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), (1, 1)]
)
def test_devices(device, number):
    """The device is made the current one, where CuPy's own arrays are too."""
    on = backend(device=device)
    assert on.device.id == number
    assert gpu.events[-1] == f"device {number} is current"
    assert backend(device=on.device).device == on.device


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "cuda:2"}, "CuPy has no device 'cuda:2', but 2"),
        ({"device": -1}, "CuPy has no device -1"),
        ({"device": "cpu"}, "CuPy has no device 'cpu'"),
        ({"device": "0"}, "CuPy has no device '0'"),
        ({"dtype": "float16"}, "float32 or float64, not float16"),
        ({"dtype": "int32"}, "float32 or float64, not int32"),
    ],
)
def test_wrong_device_or_dtype(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        backend(**wrong)
    assert "\n" not in str(caught.value)


def test_no_driver(cp, monkeypatch):
    """What CUDA says, in one line, also by the real CuPy, where there is none."""

    def fails() -> int:
        raise CUDARuntimeError("cudaErrorInsufficientDriver: version is insufficient")

    monkeypatch.setattr(cp.cuda.runtime, "getDeviceCount", fails)
    with pytest.raises(ValueError, match=r"finds no GPU.*\(cudaErrorInsufficientDriver"):
        backend()
    if not REAL.cuda.is_available():
        monkeypatch.setattr(cp.cuda, "runtime", REAL.cuda.runtime)
        with pytest.raises(
            ValueError, match="finds no GPU: the NVIDIA driver is missing"
        ) as caught:
            backend(device="cuda")
        assert "\n" not in str(caught.value)


def test_pickles(on, cp):
    """A backend on its device, its noises and its operations: the same arrays from the copies."""
    there = backend(device="cuda:1")
    again, noise, drawn = pickle.loads(
        pickle.dumps((there, there.portable_noise(3), there.noise(3)))
    )
    assert again.device.id == 1
    assert again.xp is there.xp
    assert type(again.ops) is type(there.ops)
    np.testing.assert_array_equal(values(noise(1, (2, 3))), ddpm.portable_noise(3)(1, (2, 3)))
    np.testing.assert_array_equal(values(drawn(1, (2, 3))), values(there.noise(3)(1, (2, 3))))
