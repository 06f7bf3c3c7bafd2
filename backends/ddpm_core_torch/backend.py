"""What torch supplies: arrays, noise, the UNet by fast operations."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ddpm_core.arrays import fit
from ddpm_core.backends import Backend, Network
from ddpm_core.nn import Ops, UNetConfig, check_inputs
from ddpm_core_torch.convolution import Packed
from ddpm_core_torch.ops import ChannelsLastOps, InferenceOps, TorchOps, tf32

if TYPE_CHECKING:
    from ddpm_core.testing.backend_checks import Check


class Torch(Backend):
    """torch, on any of its devices.

    device: "cpu", "cuda", ...; None is torch's default
    dtype: "float32", "float64", "bfloat16". A network takes x of another dtype too, computes in
        this one and returns that one: keep the state in float32 when the weights are bfloat16
    compile: compile networks, at their first call for each shape
    """

    name = "torch"

    def __init__(
        self,
        device: Any = None,
        dtype: str = "float32",
        *,
        compile: bool = False,  # noqa: A002, its name in torch
    ) -> None:
        self.xp = xp
        self.compiled = compile
        self.dtype = getattr(torch, dtype, None)
        known = isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point
        if not known or self.dtype.itemsize < 2:  # those of 8 bits have no arithmetic
            raise ValueError(f"torch has no floating-point dtype {dtype!r}; float32 is one")
        try:
            self.device = torch.device(device) if device is not None else torch.get_default_device()
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # the second, of a torch without CUDA
            reason = str(error).partition("\n")[0].partition(". ")[0][:200]
            raise ValueError(f"torch cannot use device {device!r}: {reason}") from None
        self.ops = TorchOps()

    def to_numpy(self, x: Tensor) -> np.ndarray:
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()

    def noise(self, seed: int) -> Callable[[int, tuple[int, ...]], Tensor]:
        return functools.partial(self._normal, seed)

    def _normal(self, seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator(self.device)
        # Hashed, because the generator of the CPU reads the low 32 bits of a seed only.
        mixed = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)
        generator.manual_seed(int(mixed[0]))
        return torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)

    def lincomb(self, *terms: tuple[Any, Tensor]) -> Tensor:
        total = None
        for c, x in terms:
            c = fit(c, x)
            number = isinstance(c, float)
            if number and c == 0.0:
                continue
            if total is None:
                total = x.mul(c)
            elif number:
                total.add_(x, alpha=c)  # the product and the sum in one pass
            else:
                total.addcmul_(c, x)
        return torch.zeros_like(terms[0][1]) if total is None else total

    def asarray(self, a: Any, dtype: Any = None) -> Tensor:
        if self.device.type == "cuda" and not isinstance(a, Tensor):
            # From pinned memory the copy goes on while the host does.
            dtype = self.dtype if dtype is None else dtype
            a = torch.as_tensor(np.asarray(a), dtype=dtype, device="cpu")
            return a.pin_memory().to(self.device, non_blocking=True)
        return super().asarray(a, dtype)

    def compile(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled; on CUDA its calls are CUDA graphs, over buffers that stay.

        Tensors are inputs of a graph, and numbers too unless they are new at every call: what
        changes from step to step is better a tensor.
        """
        if self.device.type != "cuda":
            return torch.compile(f)
        fast = torch.compile(f, mode="reduce-overhead")

        @functools.wraps(f)
        def launched(*args: Any, **kwargs: Any) -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            # Copies, since the next call writes over them.
            return tree_map_only(Tensor, Tensor.clone, fast(*args, **kwargs))

        return launched

    def grad(self, f: Callable[[dict[str, Tensor]], Tensor]) -> Callable[..., dict[str, Tensor]]:
        def slopes(params: dict[str, Tensor]) -> dict[str, Tensor]:
            leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
            found = torch.autograd.grad(f(leaves), list(leaves.values()))
            return dict(zip(leaves, found, strict=True))

        return slopes

    def inference_ops(self, config: UNetConfig) -> Ops:
        if self.device.type != "cpu":
            return ChannelsLastOps()
        # Narrow maps are small enough to be faster in torch's own layout.
        wide = min(config.widths) >= 128 and not self.compiled
        return InferenceOps() if wide else self.ops

    def network(self, params: dict[str, Any], config: UNetConfig) -> TorchNetwork:
        """The UNet, without gradients; x may be of another dtype, which the output then has."""
        net: Any = super().network(params, config)
        return TorchNetwork(net, self)

    def describe(self) -> dict[str, str]:
        about = {"device": str(self.device), "library": f"torch {torch.__version__}"}
        if self.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(self.device)
            name = torch.cuda.get_device_name(self.device)
            about["device"] = f"{name} ({self.device}, {major}.{minor})"
            about["cuda"] = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        return about

    def exact_products(self) -> AbstractContextManager[None]:
        return tf32(False)

    def live_bytes(self) -> AbstractContextManager[Callable[[], int]]:
        if self.device.type == "cuda":
            return nullcontext(lambda: int(torch.cuda.memory_allocated(self.device)))

        def tensors() -> int:
            gc.collect()
            found = [a for a in gc.get_objects() if type(a) is Tensor]
            return sum(a.numel() * a.element_size() for a in found)

        return nullcontext(tensors)

    def checks(self) -> dict[str, tuple[str, Check]]:
        if self.device.type != "cuda":
            return {}
        from ddpm_core_torch.checks import CHECKS

        return CHECKS


class TorchNetwork:
    """The UNet for inference: x is cast to the backend's dtype, and the output back.

    It keeps what derivatives need only where x requires them, and then runs uncompiled.
    """

    def __init__(self, net: Network, on: Torch) -> None:
        self.net, self.on = net, on
        self._call = on.compile(net.__call__) if on.compiled else net

    def __call__(self, x: Tensor, timestep: Tensor, y: Tensor | None = None) -> Tensor:
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            check_inputs(x, timestep, y, self.net.config, next(iter(self.net.packed.values())))
        if len(x) == 0:  # which fast convolutions do not take
            check_inputs(x, timestep, y, self.net.config)
            return x.new_empty((0, self.net.config.out_channels, *x.shape[2:]))
        derived = x.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(derived):
            call = self._differentiable() if derived else self._call
            return call(x.to(self.on.dtype), timestep, y).to(x.dtype)

    def _differentiable(self) -> Network:
        """The same on the same weights, by operations that torch differentiates."""
        if not isinstance(self.net.ops, InferenceOps):
            return self.net
        packed = {k: p.weight if isinstance(p, Packed) else p for k, p in self.net.packed.items()}
        return Network(packed, self.net.config, ChannelsLastOps())

    def __reduce__(self) -> Any:
        return TorchNetwork, (self.net, self.on)  # what was compiled is compiled again
