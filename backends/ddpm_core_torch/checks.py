"""What `ddpm_core.testing.check_backend` checks of torch on CUDA alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_core.backends import Backend
from ddpm_core.nn import UNetConfig
from ddpm_core.samplers import ancestral, sample
from ddpm_core.testing.backend_checks import (
    SCHEDULE,
    Check,
    Finding,
    NotApplicable,
    allowed,
    both,
    difference,
    halved,
    network,
    random_params,
    sampler_without_network,
    step_with_network,
    worst,
)
from ddpm_core_torch.ops import tf32
from ddpm_core_torch.unet import UNet


def tensor_float(on: Backend, host: Backend) -> Finding:
    """The UNet with products of 11 bits."""
    if on.dtype != torch.float32:
        raise NotApplicable("of float32 alone")
    with tf32(True):
        return Finding(network(on, host).largest, 1e-2)


def graph_of_a_sampler(on: Backend, host: Backend) -> Finding:
    """A sampler without a network as a CUDA graph, and with noise where a wait is an error."""
    draw, inputs = sampler_without_network(on, host)
    table, noise = ancestral(SCHEDULE, 8), on.noise(0)
    unwaited(lambda x: sample(halved, table, x, noise, lincomb=on.lincomb), inputs[0])
    unwaited(draw, inputs[0])
    return replayed(on, draw, inputs)


def graph_of_a_network(on: Backend, host: Backend) -> Finding:
    """A step with a UNet, likewise."""
    step, inputs = step_with_network(on, host)
    unwaited(step, inputs[0])
    return replayed(on, step, inputs)


def unwaited(f: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Calls f(x); RuntimeError where the host would wait for the device."""
    f(x)  # what is made once may wait
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        f(x)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def replayed(on: Backend, f: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> Finding:
    """f captured as a CUDA graph at the first input and replayed on each, beside plain calls."""
    x = inputs[0].clone()
    stream: Any = torch.cuda.Stream(on.device)
    stream.wait_stream(torch.cuda.current_stream(on.device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            f(x)
    torch.cuda.current_stream(on.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = f(x)
    found: list[float] = []
    for value in inputs:
        x.copy_(value)
        graph.replay()
        found.append(difference(on, out, on.to_numpy(f(value)).astype(np.float64)))
    return Finding(worst(found), allowed(on, 84, 8))


def peak(on: Backend, host: Backend) -> Finding:
    """The most memory of a UNet call at batch 8, beside the module's: a report, no verdict."""
    config = UNetConfig(widths=(64, 128, 128), blocks=2)
    params = random_params(on, config)
    x, t = both(on, host, 8, 3, 32, 32)[0], on.asarray(np.zeros(8), torch.float32)

    def megabytes(net: Callable[..., Any]) -> float:
        net(x, t)
        torch.cuda.reset_peak_memory_stats(on.device)
        before = torch.cuda.memory_allocated(on.device)
        net(x, t)
        return (torch.cuda.max_memory_allocated(on.device) - before) / 2**20

    ours = megabytes(on.network(params, config))
    module = UNet(config, params).to(on.device, on.dtype)
    weights = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20
    with torch.no_grad():
        theirs = megabytes(module)
    note = f"{ours:.1f} MiB above {weights:.1f} of weights; the module {theirs:.1f}"
    return Finding(note=note)


CHECKS: dict[str, tuple[str, Check]] = {
    "UNet in TF32": ("the UNet's networks", tensor_float),
    "sampler's graph": ("captured, and plain", graph_of_a_sampler),
    "UNet's graph": ("captured, and plain", graph_of_a_network),
    "memory peak": ("of a UNet call, batch 8", peak),
}
