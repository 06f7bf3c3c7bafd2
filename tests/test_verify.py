"""`ddpm-core verify`: right backends pass, and each wrong one fails the check that is for it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import arrays, backends
from ddpm_core.cli import app, main, verify
from ddpm_core_numpy import NumPy, NumPyOps

#: What is said of torch on CUDA only.
CUDA = {"UNet in TF32", "sampler's graph", "UNet's graph", "memory peak"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal in which no line of the table is folded."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def register(monkeypatch):
    """Puts a class among the backends that are installed, by its name in this module."""
    found = backends.discover()
    monkeypatch.setattr(backends, "discover", lambda: found)

    def add(name: str) -> None:
        sys.modules.setdefault(__name__, sys.modules[Distorted.__module__])
        found[name] = EntryPoint(name, f"{__name__}:{name}", backends.GROUP)

    return add


def verdicts(on: ddpm.backends.Backend, *names: str) -> dict[str, verify.Line]:
    """The line of each check, or of these."""
    checks = {name: verify.CHECKS[name] for name in names or verify.CHECKS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "CHECKS", checks)
        return {line.check: line for line in verify.examined(on)}


# Right backends. ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_passes(dtype):
    """NumPy, beside the operations of the standard, passes all that says something of it."""
    lines = verdicts(ddpm.backend("numpy", dtype=dtype))
    silent = CUDA | {"gradients", "compiled step"}
    wanted = {name: "not applicable" if name in silent else "ok" for name in verify.CHECKS}
    assert {name: line.verdict for name, line in lines.items()} == wanted, lines
    assert all(lines[name].note for name in silent)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, on import
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_torch_passes(dtype):
    """So does torch; what compiles here only traces: the whole takes a compiler a minute."""
    torch = pytest.importorskip("torch")
    from ddpm_core_torch import Torch

    class Traced(Torch):
        def compile(self, f):
            return torch.compile(f, backend="aot_eager") if dtype == "float32" else lambda x: f(x)

    torch.compiler.reset()
    names = [name for name in verify.CHECKS if name != "memory kept" or dtype == "float32"]
    lines = verdicts(Traced("cpu", dtype), *names)
    silent = CUDA | ({"gradients"} if dtype == "bfloat16" else set())
    wanted = {name: "not applicable" if name in silent else "ok" for name in names}
    assert {name: line.verdict for name, line in lines.items()} == wanted, lines


@pytest.mark.skipif("jax" not in backends.discover(), reason="no backend of JAX is registered")
def test_jax_passes():
    """So does JAX, in what it does not compile for half a minute."""
    pytest.importorskip("jax")
    names = [name for name in verify.CHECKS if name not in {"UNet", "sampling", "gradients"}]
    lines = verdicts(ddpm.backend("jax"), *names)
    wanted = {name: "not applicable" if name in CUDA else "ok" for name in names}
    assert {name: line.verdict for name, line in lines.items()} == wanted, lines


# Wrong ones. --------------------------------------------------------------------------------------


class Namespace:
    """NumPy with something else in place of one function."""

    def __init__(self, **changed: Any) -> None:
        self.changed = changed

    def __getattr__(self, name: str) -> Any:
        return self.changed[name] if name in self.changed else getattr(np, name)


class Rough(np.ndarray):
    """An array whose products are of 11 bits."""

    def __mul__(self, other):
        return (
            np.multiply(np.asarray(self), other).astype(np.float16).astype(self.dtype).view(Rough)
        )

    __rmul__ = __mul__


def numpy(**methods: Any) -> Callable[[], NumPy]:
    """A NumPy backend with other methods."""
    return lambda: type("Wrong", (NumPy,), methods)()


def operations(**methods: Any) -> Callable[[], NumPy]:
    """A NumPy backend with other operations."""

    def make() -> NumPy:
        on = NumPy()
        on.ops = type("WrongOps", (NumPyOps,), methods)()
        return on

    return make


def namespace(**changed: Any) -> Callable[[], NumPy]:
    def make() -> NumPy:
        on = NumPy()
        on.xp = Namespace(**changed)
        return on

    return make


def noise(draw: Callable[..., np.ndarray]) -> Callable[[], NumPy]:
    """A NumPy backend whose noise is draw(seed, step, shape)."""

    def drawn(self, seed):
        def normal(step, shape):
            return np.asarray(draw(seed, step, shape), dtype=np.float32)

        return normal

    return numpy(noise=drawn)


def normal(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def network(wrap: Callable[..., Any]) -> Callable[[], NumPy]:
    """A NumPy backend whose networks are wrapped."""
    return numpy(network=lambda self, params, config: wrap(NumPy.network(self, params, config)))


def remembering(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function that says again what it said first of such a shape."""
    said: dict[Any, Any] = {}
    return lambda *args: said.setdefault(args[0].shape, f(*args))


def hoarding(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function that keeps what it returned."""
    kept = []
    return lambda *args: kept.append(f(*args)) or kept[-1]


def replaying(f: Callable[..., Any]) -> Callable[..., Any]:
    """As a CUDA graph: two calls to warm up and to capture, then one memory for all results."""
    results = []

    def called(x: np.ndarray) -> np.ndarray:
        results.append(f(x))
        if len(results) > 2:
            results[2][...] = results[-1]
            return results[2]
        return results[-1]

    return called


def lincomb_remembering(self, *terms):
    if not all(isinstance(c, float) for c, _ in terms):
        return NumPy.lincomb(self, *terms)
    known = self.__dict__.setdefault("known", {})
    key = tuple(c for c, _ in terms), terms[0][1].shape
    return known.setdefault(key, NumPy.lincomb(self, *terms)).copy()


def lincomb_in_place(self, *terms):
    (c, x), *rest = terms
    x *= arrays.fit(c, x)
    for c, y in rest:
        x += arrays.fit(c, y) * y
    return x


def without_noise(self, seed):
    raise NotImplementedError


def norm_of(variance: Callable[..., np.ndarray], silu: bool = True) -> Callable[[], NumPy]:
    """Operations whose group norm divides by variance(var, eps), a root of it taken already."""

    def _norm(self, h, weight, bias, groups, eps, silu_after):
        grouped = h.reshape(*h.shape[:3], groups, -1)
        centred = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
        var = (centred**2).mean(axis=(1, 2, 4), keepdims=True)
        out = (centred / variance(var, eps)).reshape(h.shape) * weight + bias
        return out / (1 + np.exp(-out)) if silu_after and silu else out

    def group_norm(self, h, weight, bias, groups, eps):
        return _norm(self, h, weight, bias, groups, eps, False)

    def group_norm_silu(self, h, weight, bias, groups, eps):
        return _norm(self, h, weight, bias, groups, eps, True)

    return operations(group_norm=group_norm, group_norm_silu=group_norm_silu)


WRONG: dict[str, tuple[str, Callable[[], ddpm.backends.Backend]]] = {
    "asarray in float64": (
        "transfers", numpy(asarray=lambda self, a, dtype=None: np.asarray(a, dtype or np.float64)),
    ),
    "asarray through float16": (
        "transfers",
        numpy(
            asarray=lambda self, a, dtype=None: np.asarray(
                np.asarray(a, np.float16 if dtype is None else dtype), dtype or self.dtype
            )
        ),
    ),
    "asarray in the order of memory": (
        "transfers",
        numpy(
            asarray=lambda self, a, dtype=None: np.asarray(
                np.ravel(a, order="K").reshape(np.shape(a)), dtype or self.dtype
            )
        ),
    ),
    "arange from 1": (
        "portable noise", namespace(arange=lambda n, **kw: np.arange(1, n + 1, **kw)),
    ),
    "words in the other order": (
        "portable noise", namespace(stack=lambda a, axis: np.stack(a[::-1], axis=axis)),
    ),
    "own portable noise of another seed": (
        "portable noise",
        numpy(portable_noise=lambda self, seed: ddpm.portable_noise(seed + 1, np)),
    ),
    "own portable noise without ids": (
        "portable noise",
        numpy(
            portable_noise=lambda self, seed: lambda step, shape, ids=None: ddpm.portable_noise(
                seed
            )(step, shape)
        ),
    ),
    "no noise": ("native noise", numpy(noise=without_noise)),
    "noise without a step": (
        "native noise", noise(lambda seed, step, shape: normal(seed).standard_normal(shape)),
    ),
    "noise without a seed": (
        "native noise", noise(lambda seed, step, shape: normal(step).standard_normal(shape)),
    ),
    "noise of the low bits of the seed": (
        "native noise",
        noise(lambda seed, step, shape: normal(seed % 2**32, step).standard_normal(shape)),
    ),
    "noise of the clock": (
        "native noise",
        noise(lambda seed, step, shape: np.random.default_rng().standard_normal(shape)),
    ),
    "noise too loud": (
        "native noise",
        noise(lambda seed, step, shape: 1.02 * normal(seed, step).standard_normal(shape)),
    ),
    "noise off zero": (
        "native noise",
        noise(lambda seed, step, shape: 0.03 + normal(seed, step).standard_normal(shape)),
    ),
    "uniform noise": (
        "native noise",
        noise(lambda seed, step, shape: normal(seed, step).uniform(-(3**0.5), 3**0.5, shape)),
    ),
    "noise of pairs": (
        "native noise",
        noise(
            lambda seed, step, shape: normal(seed, step)
            .standard_normal((shape[0], shape[1] // 2))
            .repeat(2, axis=1)
        ),
    ),
    "rough products": (
        "forward process",
        numpy(
            asarray=lambda self, a, dtype=None: NumPy.asarray(self, a, dtype).view(Rough),
        ),
    ),
    "lincomb off by 1e-3": (
        "lincomb",
        numpy(lincomb=lambda self, *terms: NumPy.lincomb(self, *terms) * np.float32(1.001)),
    ),
    "lincomb of five terms": (
        "lincomb", numpy(lincomb=lambda self, *terms: NumPy.lincomb(self, *terms[:5])),
    ),
    "lincomb in place": ("lincomb", numpy(lincomb=lincomb_in_place)),
    "lincomb in float64": (
        "lincomb",
        numpy(lincomb=lambda self, *terms: NumPy.lincomb(self, *terms).astype(np.float64)),
    ),
    "lincomb of one coefficient for all samples": (
        "lincomb",
        numpy(
            lincomb=lambda self, *terms: NumPy.lincomb(
                self, *((float(np.ravel(c)[0]), x) for c, x in terms)
            )
        ),
    ),
    "lincomb that remembers": ("samplers", numpy(lincomb=lincomb_remembering)),
    "eps of its own": ("UNet", norm_of(lambda var, eps: np.sqrt(var + np.float32(1e-6)))),
    "eps outside the root": ("UNet", norm_of(lambda var, eps: np.sqrt(var) + np.float32(eps))),
    "no silu": ("UNet", norm_of(lambda var, eps: np.sqrt(var + np.float32(eps)), silu=False)),
    "nan": ("UNet", operations(silu=lambda self, x: x * np.float32(np.nan))),
    "one head": (
        "UNet",
        operations(attention=lambda self, q, k, v, heads=1: NumPyOps.attention(self, q, k, v)),
    ),
    "padding of one kind": (
        "UNet",
        operations(
            conv2d=lambda self, h, weight, bias, stride=1, symmetric=True: NumPyOps.conv2d(
                self, h, weight, bias, stride
            )
        ),
    ),
    "scale without its 1": (
        "UNet",
        operations(
            scale_shift=lambda self, h, scale, shift: h * scale[:, None, None]
            + shift[:, None, None]
        ),
    ),
    "upsampling in tiles": ("UNet", operations(upsample=lambda self, h: np.tile(h, (1, 2, 2, 1)))),
    "downsampling by one pixel": ("UNet", operations(downsample=lambda self, h: h[:, ::2, ::2])),
    "the skip first": (
        "UNet", operations(concat=lambda self, h, skip: np.concatenate([skip, h], axis=-1)),
    ),
    "no classes": ("UNet", network(lambda net: lambda x, t, y=None: net(x, t))),
    "outputs in float64": (
        "UNet", network(lambda net: lambda x, t, y=None: net(x, t, y).astype(np.float64)),
    ),
    "outputs of a longer shape": (
        "UNet", network(lambda net: lambda x, t, y=None: net(x, t, y)[None]),
    ),
    "one time for all": (
        "UNet", network(lambda net: lambda x, t, y=None: net(x, t[:1].repeat(len(t)), y)),
    ),
    "a network that remembers": ("sampling", network(remembering)),
    "compiled, and written over": (
        "compiled step",
        numpy(compile=lambda self, f: replaying(f)),
    ),
    "compiled, and remembers": ("compiled step", numpy(compile=lambda self, f: remembering(f))),
    "compiled to float16": (
        "compiled step",
        numpy(compile=lambda self, f: lambda x: f(x).astype(np.float16).astype(x.dtype)),
    ),
    "a network that keeps its outputs": ("memory kept", network(hoarding)),
}  # fmt: skip


def test_numpy_made_here_is_right():
    """What the wrong backends are made of passes: norms as they should be, and other parts."""
    right = norm_of(lambda var, eps: np.sqrt(var + np.float32(eps)))()
    lines = verdicts(right, "UNet") | verdicts(namespace()(), "portable noise", "transfers")
    drawn = noise(lambda seed, step, shape: normal(seed, step).standard_normal(shape))
    lines |= verdicts(drawn(), "native noise")
    lines |= verdicts(network(lambda net: net)(), "sampling", "memory kept")
    assert {line.verdict for line in lines.values()} == {"ok"}, lines


@pytest.mark.parametrize("what", WRONG)
def test_wrong_backend(what):
    """A backend that is wrong fails the check that is for it."""
    name, make = WRONG[what]
    line = verdicts(make(), name)[name]
    assert line.verdict == "failed", line
    assert line.note or not line.largest <= line.allowed


@pytest.mark.parametrize("share", [0.0, 0.99])
def test_wrong_gradient(share):
    """A value that is right, with a gradient that is not, fails the check of gradients alone."""
    pytest.importorskip("torch")
    from ddpm_core_torch import Torch, TorchOps

    class Detached(TorchOps):
        def silu(self, x):
            y = super().silu(x)
            return share * y + (1 - share) * y.detach()

    on = Torch("cpu")
    on.ops = Detached()
    lines = verdicts(on, "UNet", "gradients")
    assert (lines["UNet"].verdict, lines["gradients"].verdict) == ("ok", "failed")


# CUDA, pretended: what is captured is recorded, and run again when it is replayed. ----------------


@pytest.fixture
def cuda(monkeypatch):
    """torch's CPU in the role of CUDA, where data from the host and values for it are waits."""
    torch = pytest.importorskip("torch")
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
    monkeypatch.setattr(verify, "_on_cuda", lambda on: True)
    return torch


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
    from ddpm_core_torch import Torch

    class Waiting(Torch):
        calls, known = iter(range(10**6)), {}

        def lincomb(self, *terms):
            return wrong(self, terms, super().lincomb(*terms))

    line = verdicts(Waiting("cpu"), "sampler's graph")["sampler's graph"]
    assert line.verdict == "failed", line
    assert ("synchronizing" in line.note) == (wrong in (asks, brings))


def test_noise_that_waits(cuda):
    """Noise is no part of the graph, and must not wait either."""
    from ddpm_core_torch import Torch

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
    torch = cuda
    request.addfinalizer(
        partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    )
    seen = []

    def record(on, host):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return verify.Finding(0.0, 1.0)

    with pytest.MonkeyPatch.context() as patch:
        torch.set_float32_matmul_precision("medium")
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        patch.setattr(verify, "network", record)
        patch.setattr(
            verify, "CHECKS", {"UNet": ("", record), "UNet in TF32": ("", verify.tensor_float)}
        )
        lines = list(verify.examined(ddpm.backend("torch", device="cpu")))
        record(None, None)
    assert [line.verdict for line in lines] == ["ok", "ok"]
    assert seen == [("highest", False), ("high", True), ("medium", False)]


# The command. -------------------------------------------------------------------------------------


class Distorted(NumPy):
    """A sum that is off by a thousandth."""

    def lincomb(self, *terms):
        return super().lincomb(*terms) * np.float32(1.001)


def some(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(verify, "CHECKS", {name: verify.CHECKS[name] for name in names})


def test_command_passes(tmp_path, capsys, monkeypatch):
    """All well: the table, exit status 0, and the same in JSON."""
    some(monkeypatch, "transfers", "lincomb", "gradients")
    path = tmp_path / "found.json"
    assert app.run(["verify", "--backend", "numpy", "--dtype", "float64", "--json", str(path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"numpy {np.__version__}" in shown[0]
    assert "float64" in shown[0]
    assert [line.split()[0] for line in shown[2:5]] == ["transfers", "lincomb", "gradients"]
    assert [line.split()[-1] for line in shown[2:5]] == ["ok", "ok", "applicable"]
    assert "numpy has no gradients" in shown[4]
    assert shown[-1] == "2 ok, 1 not applicable"
    found = json.loads(path.read_text())
    assert found["environment"]["library"] == f"numpy {np.__version__}"
    assert [check["verdict"] for check in found["checks"]] == ["ok", "ok", "not applicable"]
    assert found["checks"][1]["allowed"] == 4 * np.finfo(np.float64).eps


def test_command_fails(capsys, monkeypatch, register):
    """A wrong backend: exit status 1, and the failed checks by name, in the last line too."""
    register("Distorted")
    some(monkeypatch, "transfers", "lincomb", "samplers")
    monkeypatch.setattr(sys, "argv", ["ddpm-core", "verify", "--backend", "Distorted"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in shown[2:5]] == ["ok", "failed", "failed"]
    assert shown[-1] == "1 ok, 2 failed (lincomb, samplers)"
    name, *_, largest, allowed, _ = shown[3].split()
    assert name == "lincomb"
    assert float(largest) == pytest.approx(1e-3, rel=0.1)
    assert float(allowed) == pytest.approx(4 * np.finfo(np.float32).eps, rel=0.1)


def test_noise_of_nan():
    """Is said to be that, and not to be other numbers the second time."""
    line = verdicts(noise(lambda *key: np.full(key[2], np.nan))(), "native noise")["native noise"]
    assert (line.verdict, line.note) == ("failed", "")
    assert math.isnan(line.largest)


def test_no_permission(monkeypatch, tmp_path):
    """A folder that cannot be written to is found out before the work."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"is not ours to write found\.json in"):
        app.run(["verify", "--backend", "numpy", "--json", str(tmp_path / "found.json")])


def test_nan_in_json(tmp_path, monkeypatch):
    """A NaN fails, and the file is JSON by the standard, which has none."""
    nan = ("none", lambda on, host: verify.Finding(math.nan, 1.0))
    monkeypatch.setattr(verify, "CHECKS", {"transfers": nan})
    assert app.run(["verify", "--backend", "numpy", "--json", str(tmp_path / "f.json")]) == 1

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((tmp_path / "f.json").read_text(), parse_constant=refuse)
    assert found["checks"][0]["largest"] == "nan"
    assert found["checks"][0]["verdict"] == "failed"


def test_failure_says_why(capsys, monkeypatch):
    """An exception in a check is its failure, with the first line of what it says."""

    def breaks(on, host):
        raise RuntimeError("the device fell off\nat the back")

    monkeypatch.setattr(verify, "CHECKS", {"transfers": ("arrays", breaks)})
    assert app.run(["verify", "--backend", "numpy"]) == 1
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert shown[3:] == ["RuntimeError: the device fell off", "1 failed (transfers)"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "tf"], "no backend 'tf'; there are "),
        (["--backend", "numpy", "--device", "cuda"], "NumPy has no device 'cuda'"),
        (["--device", "nowhere"], "torch cannot use device 'nowhere'"),
        (["--dtype", "float31"], "torch has no floating-point dtype 'float31'"),
        (["--backend", "numpy", "--dtype", "bfloat16"], "float32 or float64, not bfloat16"),
        (["--json", "found.txt"], "found.txt must end in .json"),
        (["--json", "none/found.json"], "there is no folder none"),
    ],
)
def test_bad_arguments(capsys, monkeypatch, tmp_path, arguments, said):
    """A backend, device, dtype or file that is not there: one line, status 2, nothing checked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ddpm-core", "verify", *arguments])
    monkeypatch.setattr(verify, "CHECKS", {})
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())
