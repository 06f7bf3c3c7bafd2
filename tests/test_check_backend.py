"""`check_backend`: right backends pass, and each wrong one fails the check that is for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from wrong_backends import (
    Rough,
    namespace,
    network,
    noise,
    norm_of,
    normal,
    numpy,
    operations,
    verdicts,
)

import ddpm_core as ddpm
from ddpm_core import arrays
from ddpm_core.testing import backends as suite
from ddpm_core.testing import check_backend
from ddpm_core.testing.backend_checks import CHECKS, Finding
from ddpm_core_numpy import NumPy, NumPyOps

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_passes(dtype):
    """NumPy, beside the operations of the standard, passes all that says something of it."""
    lines = verdicts(ddpm.backend("numpy", dtype=dtype))
    silent = {"gradients", "compiled step"}
    wanted = {name: "not applicable" if name in silent else "ok" for name in CHECKS}
    assert {name: line.verdict for name, line in lines.items()} == wanted, lines
    assert all(lines[name].note for name in silent)


@pytest.mark.slow
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
    names = [name for name in CHECKS if name != "memory kept" or dtype == "float32"]
    lines = verdicts(Traced("cpu", dtype), *names)
    silent = {"gradients"} if dtype == "bfloat16" else set()
    wanted = {name: "not applicable" if name in silent else "ok" for name in names}
    assert {name: line.verdict for name, line in lines.items()} == wanted, lines


@pytest.mark.slow
def test_jax_passes():
    """So does JAX, in what it does not compile for half a minute."""
    pytest.importorskip("jax")
    names = [name for name in CHECKS if name not in {"UNet", "sampling", "gradients"}]
    lines = verdicts(ddpm.backend("jax"), *names, "sampling by scan")
    assert {line.verdict for line in lines.values()} == {"ok"}, lines


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


def test_noise_of_nan():
    """Is said to be that, and not to be other numbers the second time."""
    line = verdicts(noise(lambda *key: np.full(key[2], np.nan))(), "native noise")["native noise"]
    assert (line.verdict, line.note) == ("failed", "")
    assert math.isnan(line.largest)


class Mine(ddpm.backends.Backend):
    """No more than a third party must give."""

    name, xp, device, dtype = "mine", np, "cpu", np.dtype("float32")

    def noise(self, seed):
        return lambda step, shape: self.asarray(normal(seed, step).standard_normal(shape))


def test_a_small_backend():
    """One that gives what it must passes, and what it does not give is not applicable."""
    silent = {"gradients", "compiled step", "memory kept"}
    report = check_backend(Mine())
    found = {finding.law.partition(":")[0]: finding for finding in report.findings}
    wanted = {name: "does not apply" if name in silent else "holds" for name in CHECKS}
    assert {name: finding.verdict for name, finding in found.items()} == wanted, report
    assert found["gradients"].note == "mine has no gradients"
    assert found["lincomb"].error <= found["lincomb"].allowed


def test_the_report():
    """AssertionError names the backend, and each failed check with its numbers or its error."""

    class Wrong(Mine):
        def lincomb(self, *terms):
            return super().lincomb(*terms) * np.float32(1.001)

        def noise(self, seed):
            raise RuntimeError("no generator\nat all")

        def network(self, params, config):
            raise RuntimeError("no network")

    with pytest.raises(AssertionError) as caught:
        check_backend(Wrong())
    first, *rest = str(caught.value).splitlines()
    assert first == "6 laws of Wrong(device='cpu', dtype=dtype('float32')) fail"
    where = "(beside NumPy in float64)"
    noise = f"- native noise: moments, in standard errors {where}: RuntimeError: no generator"
    assert rest[0] == noise
    assert rest[1].startswith(f"- lincomb: one to six terms {where}: off by 0.00")
    assert rest[1].endswith(", where 4.8e-07 is allowed")


@pytest.mark.parametrize(
    ("numbers", "said"), [((12.0, None), "12"), ((1.5, 2.0), "1.5, allowed 2"), ((None, None), "")]
)
def test_a_line_in_words(numbers, said):
    """With the numbers that there are."""
    assert (
        str(suite.Line("peak", "MiB", *numbers, "reported", "")) == f"peak: reported (MiB: {said})"
    )


@pytest.mark.parametrize("largest", [12.0, None])
def test_what_is_only_reported(monkeypatch, largest):
    """Has its word, in the table and in JSON, and what there is of numbers and notes."""

    class Peak(Mine):
        def checks(self):
            return {"peak": ("MiB, of a call", lambda on, host: Finding(largest, None, "12 MiB"))}

    monkeypatch.setattr(suite, "CHECKS", {})
    report = check_backend(Peak())
    assert str(report).splitlines()[-2].endswith("  reported")
    assert str(report).splitlines()[-1] == "peak: MiB, of a call: 12 MiB"
    assert report.to_json()["findings"] == [
        {
            "law": "peak: MiB, of a call",
            "source": "beside NumPy in float64",
            "cases": 0,
            "error": largest,
            "allowed": None,
            "failure": "",
            "note": "12 MiB",
            "verdict": "reported",
        }
    ]
