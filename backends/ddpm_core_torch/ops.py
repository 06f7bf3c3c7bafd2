"""The UNet's operations on torch."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_core.nn import Ops
from ddpm_core_torch.convolution import Packed, convolve


class TorchOps(Ops):
    """The UNet's operations on torch, differentiable; maps are (B, C, H, W).

    Attention is two matrix products on the CPU, where they are faster backwards than the fused
    kernel, and the fused kernel elsewhere.
    """

    def conv2d(
        self,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        stride: int = 1,
        symmetric: bool = True,
    ) -> Tensor:
        if not symmetric:
            return F.conv2d(F.pad(h, (0, 1, 0, 1)), weight, bias, stride)
        if weight.shape[-1] == 1 and h.device.type == "cpu":
            return pointwise(h, weight, bias)
        return F.conv2d(h, weight, bias, stride, padding=weight.shape[-1] // 2)

    def group_norm(
        self, h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        # Not F.group_norm, which refuses groups of one value: their result is the bias.
        return torch.group_norm(h, groups, weight, bias, eps)

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int = 1) -> Tensor:
        if q.device.type != "cpu":
            return self.fused_attention(q, k, v, heads)
        batch, channels, height, width = q.shape
        each = channels // heads
        q, k, v = (a.reshape(batch * heads, each, height * width) for a in (q, k, v))
        weights = torch.softmax(q.mT @ k * (1 / math.sqrt(each)), dim=-1)
        return (v @ weights.mT).reshape(batch, channels, height, width)

    def fused_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """By torch's own kernel, which needs the channels of a head side by side in memory."""
        batch, channels, height, width = q.shape
        shape = (batch, height * width, heads, channels // heads)
        q, k, v = (
            a.permute(0, 2, 3, 1).contiguous().view(shape).transpose(1, 2) for a in (q, k, v)
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return out.reshape(batch, height, width, channels).permute(0, 3, 1, 2)

    def downsample(self, h: Tensor) -> Tensor:
        return F.avg_pool2d(h, 2)

    def upsample(self, h: Tensor) -> Tensor:
        return F.interpolate(h, scale_factor=2.0, mode="nearest")


def pointwise(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution of one pixel as a matrix product: faster on a CPU, backwards above all."""
    weights = weight.flatten(1).expand(len(h), -1, -1)
    out = torch.baddbmm(bias[:, None], weights, h.flatten(2))
    return out.reshape(len(h), len(bias), *h.shape[2:])


class ChannelsLastOps(TorchOps):
    """The same with channels last in memory: the layout of a GPU's fast convolutions."""

    def pack(self, params: dict[str, Tensor]) -> dict[str, Any]:
        """As parameters, which a CUDA graph reads in place; of other tensors it takes copies."""
        return {
            name: nn.Parameter(self.enter(p) if p.ndim == 4 else p, requires_grad=False)
            for name, p in params.items()
        }

    def enter(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    def leave(self, h: Tensor) -> Tensor:
        return h.contiguous()

    def group_norm(
        self, h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        # On a GPU torch's norm returns channels first, whatever it is given.
        return self.enter(super().group_norm(h, weight, bias, groups, eps))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int = 1) -> Tensor:
        return self.fused_attention(q, k, v, heads)


class InferenceOps(ChannelsLastOps):
    """And for inference on the CPU: convolutions of `convolution`, no gradients."""

    def pack(self, params: dict[str, Tensor]) -> dict[str, Any]:
        return {name: Packed(p) if p.ndim == 4 else p for name, p in params.items()}

    def conv2d(
        self,
        h: Tensor,
        weight: Any,
        bias: Tensor,
        stride: int = 1,
        symmetric: bool = True,
    ) -> Tensor:
        return convolve(h, weight, bias, stride, symmetric)

    def group_norm_silu(
        self, h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        return F.silu(torch.group_norm(h, groups, weight, bias, eps), inplace=True)


@contextmanager
def tf32(wanted: bool) -> Generator[None]:
    """Where products of float32 are TensorFloat-32's, or not; the settings are put back."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.allow_tf32 = wanted
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
