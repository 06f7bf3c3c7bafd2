"""The torch backend, as far as it goes without a GPU: waits, transfers, compiling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import Level, Predictor, advance, dpmpp_2m
from ddpm_core.arrays import vjp
from ddpm_core.nn import Ops, UNetConfig, initialise, unet
from ddpm_core.samplers import Row, State

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from ddpm_core_torch import Torch, UNet  # noqa: E402
from ddpm_core_torch.ops import ChannelsLastOps, TorchOps  # noqa: E402

CONFIG = UNetConfig(widths=(32, 64), blocks=1, attention=(1,), classes=3, scale_shift=True)
SCHEDULE = ddpm.linear(1000)
MAKERS = {torch.asarray, torch.as_tensor, torch.tensor, torch.from_numpy}
PARAMS = {
    name: p + 0.1 * np.random.default_rng(1).standard_normal(p.shape).astype(np.float32)
    for name, p in initialise(CONFIG, np.random.default_rng(0)).items()
}


class Watch(TorchDispatchMode):
    """Keeps the names of the operations that look at values, and those off the device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.looks, self.elsewhere = device, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.item")):
            self.looks.append(name)
        if isinstance(out, torch.Tensor) and out.ndim and out.device.type != self.device:
            self.elsewhere.append(name)
        return out


class Brought(TorchFunctionMode):
    """Keeps what of the host becomes a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.data = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in MAKERS and not isinstance(args[0], torch.Tensor):
            self.data.append(args[0])
        return func(*args, **(kwargs or {}))


def step_of(on: Any, net: Any) -> Any:
    """A step of DPM-Solver++(2M) on that network: its row, of tensors, is an input too."""
    predict = Predictor(net, SCHEDULE)

    def step(row: Row, x: Any, memory: Any, y: Any) -> Any:
        output = predict.output(x, row.level, y=y)[0]
        return advance(row, State(x, x, (memory,)), output, lincomb=on.lincomb)

    return step


def row_of(on: Any) -> Row:
    """The coefficients of its second step, on the device."""
    rows = dpmpp_2m(SCHEDULE, 4).given(ddpm.eps).rows_as(on.xp, on.xp.float32, on.device)
    return Row(
        Level(*(field[1] for field in rows.level)),
        *(tuple(c[1] for c in part) for part in (rows.read, rows.point, rows.anchor)),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_waits_for_nothing(dtype):
    """On the device without values, with a GPU's operations: a look is an error, and copies are
    seen, to the device and from it.
    """
    on = Torch(device="meta", dtype=dtype)
    assert isinstance(on.inference_ops(CONFIG), ChannelsLastOps)
    step = step_of(on, on.network(PARAMS, CONFIG))
    x = torch.empty(2, 3, 16, 16, device="meta")
    row, y = row_of(on), torch.zeros(2, dtype=torch.int64, device="meta")
    with Brought() as brought, Watch("meta") as watch:
        state = step(row, x, x, y)
    assert brought.data == []
    assert watch.looks == []
    assert watch.elsewhere == []
    assert state.point.dtype == torch.float32  # the state's, not the weights'


def test_the_watch_sees():
    """What the test above would find."""
    with FakeTensorMode(), Watch("cuda") as watch:
        x = torch.ones(3, device="cuda")
        (x.cpu() + 1).sum()
    assert watch.elsewhere == ["aten._to_copy.default", "aten.add.Tensor"]
    with Brought() as brought, Watch("cpu") as watch:
        torch.asarray([1.0, 2.0])
        float(torch.ones(()))
    assert brought.data == [[1.0, 2.0]]
    assert watch.looks == ["aten._local_scalar_dense.default"]


@pytest.fixture
def inputs() -> tuple[Row, Any, Any, Any]:
    rng = np.random.default_rng(2)
    x, memory = (torch.tensor(rng.standard_normal((2, 3, 16, 16), np.float32)) for _ in range(2))
    return row_of(Torch()), x, memory, torch.tensor([1, -1])


def plain(on: Torch, ops: Any) -> Any:
    """A step on the CPU with the operations of a GPU's network."""
    on.inference_ops = lambda config: ops
    return step_of(on, on.network(PARAMS, CONFIG))


def test_operations_of_a_gpu_agree(inputs):
    """Channels last and the fused attention, run on the CPU, against NumPy."""
    found = plain(Torch(), ChannelsLastOps())(*inputs).point
    on = ddpm.backend("numpy", dtype="float64")
    x, memory, y = (a.numpy() for a in inputs[1:])
    step = step_of(on, on.network(PARAMS, CONFIG))
    wanted = step(row_of(on), x.astype(float), memory.astype(float), y).point
    assert np.abs(found.numpy() - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("heads", [1, 4])
def test_fused_attention(heads):
    """The branch of other devices, on the CPU and by value, against the reference."""
    q, k, v = (torch.tensor(a) for a in np.random.default_rng(0).standard_normal((3, 2, 8, 3, 5)))
    wanted = Ops().attention(q.numpy(), k.numpy(), v.numpy(), heads)
    for found in (
        TorchOps().fused_attention(q, k, v, heads),
        TorchOps().attention(q, k, v, heads),
        ChannelsLastOps().attention(*map(ChannelsLastOps().enter, (q, k, v)), heads),
    ):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ops", [TorchOps(), ChannelsLastOps()], ids=["training", "inference"])
def test_layouts_of_a_gpu(ops, inputs, monkeypatch):
    """Convolutions for inference are given channels last, and attention a head's channels side by
    side, as its fused kernels must have them; with the norm of CUDA, which returns channels first.
    """
    norm, attention, conv = torch.group_norm, F.scaled_dot_product_attention, F.conv2d
    seen = {"attention": [], "conv": []}

    def attend(q, k, v):
        seen["attention"] += [a.stride(-1) == 1 for a in (q, k, v)]
        return attention(q, k, v)

    def convolve(h, weight, *args, **kwargs):
        layout = {"memory_format": torch.channels_last}
        seen["conv"].append(h.is_contiguous(**layout) and weight.is_contiguous(**layout))
        return conv(h, weight, *args, **kwargs)

    monkeypatch.setattr(torch, "group_norm", lambda *a: norm(*a).contiguous())
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(F, "conv2d", convolve)
    monkeypatch.setattr("ddpm_core_torch.ops.pointwise", lambda h, *p: F.conv2d(h, *p))
    monkeypatch.setattr(TorchOps, "attention", TorchOps.fused_attention)
    plain(Torch(), ops)(*inputs)
    assert len(seen["attention"]) > 0
    assert all(seen["attention"])
    assert len(seen["conv"]) > 0
    if type(ops) is ChannelsLastOps:
        assert all(seen["conv"])


@pytest.mark.parametrize("widths", [(32, 64), (128,)])
def test_inference_has_derivatives_by_x(widths):
    """Those of the reference, where its input asks for them; elsewhere it keeps no graph."""
    config = UNetConfig(widths=widths, blocks=1, attention=(0,))
    rng = np.random.default_rng(0)
    params = {
        name: p + 0.02 * rng.standard_normal(p.shape).astype(np.float32)
        for name, p in initialise(config, rng).items()
    }
    net = Torch().network(params, config)
    x, u = torch.from_numpy(rng.standard_normal((2, 2, 3, 8, 8), dtype=np.float32))
    t = torch.tensor([3.0, 7.0])
    weights = {name: torch.from_numpy(p).requires_grad_() for name, p in params.items()}
    reference = lambda x: unet(weights, x, t, config=config, ops=Ops())
    assert not net(x, t).requires_grad
    with torch.inference_mode():  # as samples are drawn
        out, pull = vjp(lambda x: net(x, t), x)
    expected, wanted = vjp(reference, x)
    expected, wanted = expected.detach(), wanted(u).detach()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(pull(u), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_weights_of_a_graph_are_read_in_place():
    """Parameters are static inputs of CUDA graphs; other tensors would be copied at each call."""
    packed = ChannelsLastOps().pack({n: torch.tensor(p) for n, p in PARAMS.items()})
    assert all(isinstance(p, torch.nn.Parameter) for p in packed.values())
    assert not any(p.requires_grad for p in packed.values())


def test_bfloat16_weights_and_float32_state(inputs):
    """The state keeps its dtype, and the output is float32's to 8 bits, added up over layers."""
    ours = Torch(dtype="bfloat16").network(PARAMS, CONFIG)
    _, x, _, y = inputs
    t = torch.tensor([999.0, 10.0])
    found, wanted = ours(x, t, y), Torch().network(PARAMS, CONFIG)(x, t, y)
    assert found.dtype == torch.float32
    off = (found - wanted).abs().max() / wanted.abs().max()
    assert 1e-4 < off < 5e-2  # computed in bfloat16 indeed, and well


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lru_cache")  # of array_api_compat's
def test_a_step_is_one_graph(inputs):
    """torch.compile finds no place where it must go back to Python, and the numbers stay."""
    step = plain(Torch(), ChannelsLastOps())
    torch.compiler.reset()
    about = torch._dynamo.explain(step)(*inputs)
    assert (about.graph_count, about.graph_break_count) == (1, 0), about.break_reasons
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs).point, step(*inputs).point, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lru_cache")
def test_a_step_of_the_host_is_one_graph(inputs):
    """Likewise with a row of numbers, and a whole x_0 read."""
    on = Torch()
    on.inference_ops = lambda config: ChannelsLastOps()
    predict = ddpm.clip(Predictor(on.network(PARAMS, CONFIG), SCHEDULE, ddpm.v))
    row = dpmpp_2m(SCHEDULE, 4).rows()[1]

    def step(x: Any, memory: Any, y: Any) -> Any:
        return advance(row, State(x, x, (memory,)), predict(x, row.level, y=y), lincomb=on.lincomb)

    torch.compiler.reset()
    about = torch._dynamo.explain(step)(*inputs[1:])
    assert (about.graph_count, about.graph_break_count) == (1, 0), about.break_reasons


@pytest.mark.slow
def test_a_step_exports(inputs):
    """torch.export keeps one step as a program of tensors, which gives the same numbers."""
    step = plain(Torch(), ChannelsLastOps())

    class Step(torch.nn.Module):
        def forward(self, row: Row, x: Any, memory: Any, y: Any) -> Any:
            return step(row, x, memory, y).point

    program = torch.export.export(Step(), inputs)
    found = program.module()(*inputs)
    torch.testing.assert_close(found, step(*inputs).point, rtol=0, atol=1e-5)


def test_compiled_networks(inputs, monkeypatch):
    """compile=True compiles what `network` makes, without operations that cannot be."""
    calls = []

    def compiled(f: Any, **options: Any) -> Any:
        calls.append(options)
        return f

    monkeypatch.setattr(torch, "compile", compiled)
    on = ddpm.backend("torch", compile=True)
    assert on.inference_ops(UNetConfig()) is on.ops
    _, x, _, y = inputs
    found = on.network(PARAMS, CONFIG)(x, torch.tensor([3.0, 7.0]), y)
    wanted = Torch().network(PARAMS, CONFIG)(x, torch.tensor([3.0, 7.0]), y)
    torch.testing.assert_close(found, wanted)
    assert calls == [{}]


def test_compiled_calls_on_cuda_keep_their_results(monkeypatch):
    """A graph writes over its buffers at the next call: what was returned must not change."""
    buffer = torch.zeros(2)
    steps = []

    def compiled(f: Any, mode: str) -> Any:
        assert mode == "reduce-overhead"
        return lambda x: (State(buffer.copy_(x), (buffer, 3), ()), [{"x": buffer}])

    monkeypatch.setattr(torch, "compile", compiled)
    mark = torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1)
    monkeypatch.setattr(*mark)
    on = Torch()
    on.device = torch.device("cuda")
    fast = on.compile(lambda x: x)
    first = fast(torch.ones(2))
    second = fast(2 * torch.ones(2))
    assert isinstance(first[0], State)
    assert first[0].anchor[1] == 3
    for (state, (named,)), value in ((first, 1.0), (second, 2.0)):
        for result in (state.point, state.anchor[0], named["x"]):
            assert result.tolist() == [value, value]
    assert steps == [1, 1]


def test_host_data_goes_by_pinned_memory(monkeypatch):
    """And the host does not wait for it."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (calls.append("pin"), self)[1])
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *to, **how: (calls.append((*to, how)), self)[1]
    )
    on = Torch(dtype="bfloat16")
    on.device = torch.device("cuda")
    x = on.asarray(np.ones((2, 3)))
    assert calls == ["pin", (on.device, {"non_blocking": True})]
    assert (x.dtype, x.shape) == (torch.bfloat16, (2, 3))
    assert on.asarray([1, 2], torch.int64).dtype == torch.int64
    with torch.device("meta"):  # as if it were the default, where nothing can be pinned
        assert on.asarray([1.0]).device.type == "cpu"


@pytest.mark.parametrize("config", [CONFIG, UNetConfig(widths=(128,), blocks=1, attention=())])
def test_no_images(config):
    """A batch of 0 images has 0 results, of a network and of a module."""
    params = initialise(config, np.random.default_rng(0))
    x, t = torch.zeros(0, 3, 16, 16), torch.zeros(0)
    for net in (Torch().network(params, config), UNet(config, params)):
        assert net(x, t).shape == (0, 3, 16, 16)


def test_one_line_of_a_device(monkeypatch):
    """Of what torch says of a device that it lacks: the first sentence, and not its table."""

    def refuse(*args, **kwargs):
        raise NotImplementedError("Could not run 'aten::empty'. This could be because ...\nCPU: ok")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(ValueError, match=r"cannot use device 'mps': Could not run 'aten::empty'$"):
        Torch("mps")
