"""What torch supplies: arrays, noise, the UNet by fast operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor

from ddpm_core.backends import Backend
from ddpm_core.levels import fit
from ddpm_core.nn import Ops, UNetConfig
from ddpm_core_torch.ops import ChannelsLastOps, TorchOps


class Torch(Backend):
    """torch, on any of its devices.

    device: "cpu", "cuda", ...; None is torch's default
    dtype: "float32", "float64", "bfloat16"
    """

    name = "torch"

    def __init__(self, device: Any = None, dtype: str = "float32") -> None:
        self.xp = xp
        self.dtype = getattr(torch, dtype, None)
        if not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise ValueError(f"torch has no floating-point dtype {dtype!r}; float32 is one")
        try:
            self.device = torch.device(device) if device is not None else torch.get_default_device()
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # the second, of a torch without CUDA
            reason = str(error).splitlines()[0]
            raise ValueError(f"torch cannot use device {device!r}: {reason}") from None
        self.ops = TorchOps()

    def to_numpy(self, x: Tensor) -> np.ndarray:
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()

    def noise(self, seed: int) -> Callable[[int, tuple[int, ...]], Tensor]:
        def normal(step: int, shape: tuple[int, ...]) -> Tensor:
            generator = torch.Generator(self.device)
            # Hashed, because the generator of the CPU reads the low 32 bits of a seed only.
            mixed = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)
            generator.manual_seed(int(mixed[0]))
            return torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)

        return normal

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

    def compile(self, f: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(f)

    def inference_ops(self, config: UNetConfig) -> Ops:
        # Narrow maps are small enough to be faster in torch's own layout.
        wide = self.device.type == "cpu" and min(config.widths) >= 128
        return ChannelsLastOps() if wide else self.ops

    def network(self, params: dict[str, Any], config: UNetConfig) -> Callable[..., Tensor]:
        return torch.inference_mode()(super().network(params, config))
