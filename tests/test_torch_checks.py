"""The checks of torch on CUDA, pretended: what is captured is recorded, and runs when replayed."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from wrong_backends import verdicts

import ddpm_core as ddpm
from ddpm_core.testing import backends as suite
from ddpm_core.testing.backend_checks import Finding

torch = pytest.importorskip("torch")

from ddpm_core_torch import Torch, checks  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cuda(monkeypatch):
    """torch's CPU in the role of CUDA, where data from the host and values for it are waits."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    waits = {torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default}

    class Graph(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.calls = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in waits:
                raise RuntimeError("called a synchronizing CUDA operation")
            out = func(*args, **(kwargs or {}))
            self.calls.append((func, args, kwargs or {}, out))
            return out

        def replay(self):
            with torch.inference_mode():
                for func, args, kwargs, out in self.calls:
                    again = func(*args, **kwargs)
                    for kept, new in zip(*map(tree_leaves, (out, again)), strict=True):
                        kept.copy_(new)

    modes: list[Any] = []

    def set_sync_debug_mode(mode):
        if mode == "error":
            modes.append(Graph())
            modes[-1].__enter__()
        else:
            modes.pop().__exit__(None, None, None)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": Graph,
        "graph": lambda graph: graph,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": set_sync_debug_mode,
        "memory_allocated": lambda device: 3 * 2**20,
        "max_memory_allocated": lambda device: 5 * 2**20,
        "reset_peak_memory_stats": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Torch, "checks", lambda self: checks.CHECKS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["sampler's graph", "UNet's graph"])
def test_sampler_as_a_graph(cuda, name):
    """A captured step gives the plain one's numbers, and nothing in it waits."""
    line = verdicts(ddpm.backend("torch", device="cpu"), name)[name]
    assert line.verdict == "ok", line


def asks(on, terms, total):
    return total * float(total.sum() != 0)


def brings(on, terms, total):
    return total * on.asarray([1.0])


def decides(on, terms, total):
    return total.mul(1.0 + next(on.calls) % 3)


def remembers(on, terms, total):
    key = tuple(c for c, _ in terms), terms[0][1].data_ptr()
    return on.known.setdefault(key, (terms, total))[1]  # the terms too, which keep their addresses


@pytest.mark.parametrize("wrong", [asks, brings, decides, remembers])
def test_sampler_that_is_no_graph(cuda, wrong):
    """A step that waits, that is another one at each call, or that looks at addresses, is found."""

    class Waiting(Torch):
        calls, known = iter(range(10**6)), {}

        def lincomb(self, *terms):
            return wrong(self, terms, super().lincomb(*terms))

    line = verdicts(Waiting("cpu"), "sampler's graph")["sampler's graph"]
    assert line.verdict == "failed", line
    assert ("synchronizing" in line.note) == (wrong in (asks, brings))


def test_noise_that_waits(cuda):
    """Noise is no part of the graph, and must not wait either."""

    class Waiting(Torch):
        def noise(self, seed):
            normal = super().noise(seed)
            return lambda step, shape: asks(self, (), normal(step, shape))

    line = verdicts(Waiting("cpu"), "sampler's graph")["sampler's graph"]
    assert "synchronizing" in line.note


def test_memory_is_reported(cuda):
    """The peak of a call is a report in MiB, without a verdict."""
    line = verdicts(ddpm.backend("torch", device="cpu"), "memory peak")["memory peak"]
    assert line.verdict == "reported", line
    assert line.note.startswith("2.0 MiB above ")


def test_tensor_float_is_undone(cuda, request):
    """Products are float32's in all checks but one, and afterwards what they were."""
    request.addfinalizer(
        partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    )
    seen = []

    def record(on, host):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return Finding(0.0, 1.0)

    with pytest.MonkeyPatch.context() as patch:
        torch.set_float32_matmul_precision("medium")
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        patch.setattr(checks, "network", record)
        patch.setattr(suite, "CHECKS", {"UNet": ("", record)})
        on = ddpm.backend("torch", device="cpu")
        lines = list(suite.examined(on, names=["UNet", "UNet in TF32"]))
        record(None, None)
    assert [line.verdict for line in lines] == ["ok", "ok"]
    assert seen == [("highest", False), ("high", True), ("medium", False)]
