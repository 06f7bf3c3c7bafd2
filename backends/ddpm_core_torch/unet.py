"""`torch.nn.Module` around the pure UNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_core.nn import UNetConfig, frequencies, initialise, unet
from ddpm_core.nn.network import FREQUENCIES
from ddpm_core_torch.ops import TorchOps


class UNet(nn.Module):
    """A module whose parameters are the flat dict of `ddpm_core.nn.unet`, under the same names.

    config: its shape
    params: NumPy arrays by name, or None to draw them as Ho et al. 2020 did
    dropout: the rate in every residual block, in training mode
    seed: of the drawn parameters
    """

    def __init__(
        self,
        config: UNetConfig,
        params: Mapping[str, Any] | None = None,
        *,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        if params is None:
            params = initialise(config, np.random.default_rng(seed))
        for name, value in params.items():
            self._place(name, nn.Parameter(torch.as_tensor(np.array(value))))
        self._tabulate()
        self.register_load_state_dict_post_hook(_tabulated)  # assign=True may move parameters

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """What `to`, `cuda` and `bfloat16` go through; a cast would round the frequencies."""
        super()._apply(fn, recurse)
        self._tabulate()
        return self

    def _tabulate(self) -> None:
        """The sinusoids' frequencies, where the parameters are: a step brings none of its own."""
        like = next(self.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        rates = torch.tensor(frequencies(self.config), dtype=dtype, device=like.device)
        self.register_buffer("rates", rates, persistent=False)

    def _place(self, name: str, parameter: nn.Parameter) -> None:
        """Registers a parameter under a dotted name, which state_dict then has too."""
        module: nn.Module = self
        *path, leaf = name.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, parameter)

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's output: (B, out_channels, H, W); see `ddpm_core.nn.unet`."""
        drop = self.training and self.dropout > 0
        return unet(
            {FREQUENCIES: self.rates, **dict(self.named_parameters())},
            x,
            timestep,
            y,
            config=self.config,
            ops=OPS,
            dropout=(lambda h: F.dropout(h, self.dropout)) if drop else None,
        )


def _tabulated(net: UNet, _: Any) -> None:
    net._tabulate()  # pyright: ignore[reportPrivateUsage]


OPS = TorchOps()
