"""The UNet of Ho et al. 2020 (appendix B), with an optional class, and the switches by which the
networks of Nichol & Dhariwal 2021 and Dhariwal & Nichol 2021 differ from it.

Parameters are a flat dict. Their names and shapes are those of the PyTorch port of the authors'
checkpoints (pesser/pytorch_diffusion, which DDIM and others share); `class_embedding` is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from ddpm_core.arrays import astype, device_of
from ddpm_core.nn.ops import Ops
from ddpm_core.typing import Array


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet. The defaults are the CIFAR-10 network of Ho et al. 2020.

    channels: of the images
    out_channels: of the output; `channels`, or twice that with a learned variance
    widths: feature channels of each resolution, the finest first; each is half the one before
    blocks: residual blocks per resolution
    attention: which resolutions attend, by index into widths; the innermost always does
    groups: of group norm
    classes: how many there are to condition on, or 0

    The rest is as in Ho et al. 2020 by default:

    heads: of attention, on every map; or head_width: the channels of each, so that wider maps
        have more heads
    scale_shift: the time scales and shifts the second norm, and is not added before it
    residual_resampling: down and up by residual blocks with a 2x2 mean or nearest neighbours in
        them, and not by a convolution
    symmetric_padding: of the convolution that halves; else zeros on the right and at the bottom
    cosine_first: in the sinusoids of the time
    endpoint: the slowest sinusoid's frequency is 1 / 10000; without, the next would be
    eps: added to the variance in group norm

    >>> sum(math.prod(shape) for shape in parameter_shapes(UNetConfig()).values())
    35746307
    """

    channels: int = 3
    out_channels: int = 3
    widths: tuple[int, ...] = (128, 256, 256, 256)
    blocks: int = 2
    attention: tuple[int, ...] = (1,)
    groups: int = 32
    classes: int = 0
    heads: int = 1
    head_width: int = 0
    scale_shift: bool = False
    residual_resampling: bool = False
    symmetric_padding: bool = False
    cosine_first: bool = False
    endpoint: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "attention", tuple(self.attention))
        for name in ("channels", "out_channels", "blocks", "groups", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")
        if not self.widths or any(w < 1 or w % self.groups for w in self.widths):
            raise ValueError(
                f"widths must be multiples of groups = {self.groups}, but are {self.widths}"
            )
        if any(not 0 <= level < len(self.widths) for level in self.attention):
            raise ValueError(
                f"attention must name indices into the {len(self.widths)} widths, but is "
                f"{self.attention}"
            )
        for name in ("classes", "head_width", "eps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.head_width and self.heads != 1:
            raise ValueError(
                f"give heads or head_width, not both: {self.heads} and {self.head_width}"
            )
        each = self.head_width or self.heads
        attending = [self.widths[i] for i in {*self.attention, len(self.widths) - 1}]
        if any(width % each for width in attending):
            raise ValueError(f"{each} does not divide the widths that attend, {attending}")

    def heads_of(self, width: int) -> int:
        """The number of attention heads on maps of so many channels."""
        return width // self.head_width if self.head_width else self.heads


def unet(
    params: Mapping[str, Any],
    x: Array,
    timestep: Array,
    y: Array | None = None,
    *,
    config: UNetConfig,
    ops: Ops,
    dropout: Callable[[Array], Array] | None = None,
) -> Array:
    """The network's output for noisy images: (B, out_channels, H, W).

    params: by name, as `parameter_shapes` lists them, packed by `ops`; with FREQUENCIES among
        them, nothing is brought from the host
    x: (B, C, H, W); H and W divisible by 2 for each resolution after the first
    timestep: (B,), on the scale of 0 .. 999 whatever the schedule
    y: (B,) classes 0 .. classes - 1, where -1 is no class; None is no class for any
    dropout: in every residual block, during training
    """
    _check_inputs(x, timestep, y, config)

    def p(name: str) -> tuple[Any, Any]:
        return params[f"{name}.weight"], params[f"{name}.bias"]

    groups, eps, symmetric = config.groups, config.eps, config.symmetric_padding

    def conv(h: Array, name: str) -> Array:
        return ops.conv2d(h, *p(name))

    def residual(h: Array, name: str, resample: Callable[[Array], Array] | None = None) -> Array:
        f = ops.group_norm_silu(h, *p(f"{name}.norm1"), groups, eps)
        if resample is not None:
            h, f = resample(h), resample(f)
        f, time = conv(f, f"{name}.conv1"), ops.linear(e, *p(f"{name}.temb_proj"))
        if config.scale_shift:
            half = time.shape[1] // 2
            f = ops.group_norm(f, *p(f"{name}.norm2"), groups, eps)
            f = ops.silu(ops.scale_shift(f, time[:, :half], time[:, half:]))
        else:
            f = ops.add_vector(f, time)
            f = ops.group_norm_silu(f, *p(f"{name}.norm2"), groups, eps)
        f = conv(f if dropout is None else dropout(f), f"{name}.conv2")
        if f"{name}.nin_shortcut.weight" in params:
            h = conv(h, f"{name}.nin_shortcut")
        return h + f

    def attend(h: Array, name: str, width: int) -> Array:
        f = ops.group_norm(h, *p(f"{name}.norm"), groups, eps)
        q, k, v = (conv(f, f"{name}.{part}") for part in "qkv")
        return h + conv(ops.attention(q, k, v, config.heads_of(width)), f"{name}.proj_out")

    def halve(h: Array, name: str) -> Array:
        if config.residual_resampling:
            return residual(h, name, ops.downsample)
        return ops.conv2d(h, *p(f"{name}.conv"), 2, symmetric)

    def double(h: Array, name: str) -> Array:
        if config.residual_resampling:
            return residual(h, name, ops.upsample)
        return conv(ops.upsample(h), f"{name}.conv")

    e = _sinusoids(timestep, config, x, params.get(FREQUENCIES))
    e = ops.linear(ops.silu(ops.linear(e, *p("temb.dense.0"))), *p("temb.dense.1"))
    if y is not None:
        e = e + _class_vectors(params["class_embedding.weight"], y)
    e = ops.silu(e)

    last = len(config.widths) - 1
    h = conv(ops.enter(x), "conv_in")
    skips = [h]
    for i in range(last + 1):
        for j in range(config.blocks):
            h = residual(h, f"down.{i}.block.{j}")
            if i in config.attention:
                h = attend(h, f"down.{i}.attn.{j}", config.widths[i])
            skips.append(h)
        if i < last:
            h = halve(h, f"down.{i}.downsample")
            skips.append(h)
    h = residual(h, "mid.block_1")
    h = attend(h, "mid.attn_1", config.widths[last])
    h = residual(h, "mid.block_2")
    for i in reversed(range(last + 1)):
        for j in range(config.blocks + 1):
            h = residual(ops.concat(h, skips.pop()), f"up.{i}.block.{j}")
            if i in config.attention:
                h = attend(h, f"up.{i}.attn.{j}", config.widths[i])
        if i > 0:
            h = double(h, f"up.{i}.upsample")
    h = ops.group_norm_silu(h, *p("norm_out"), groups, eps)
    return ops.leave(conv(h, "conv_out"))


def parameter_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter, in the order of the network."""
    shapes: dict[str, tuple[int, ...]] = {}

    def dense(name: str, fan_in: int, fan_out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (fan_out, fan_in), (fan_out,)

    def conv(name: str, fan_in: int, fan_out: int, k: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (fan_out, fan_in, k, k), (fan_out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    def residual(name: str, fan_in: int, fan_out: int) -> None:
        norm(f"{name}.norm1", fan_in)
        conv(f"{name}.conv1", fan_in, fan_out)
        dense(f"{name}.temb_proj", hidden, 2 * fan_out if config.scale_shift else fan_out)
        norm(f"{name}.norm2", fan_out)
        conv(f"{name}.conv2", fan_out, fan_out)
        if fan_in != fan_out:
            conv(f"{name}.nin_shortcut", fan_in, fan_out, 1)

    def resample(name: str, width: int) -> None:
        if config.residual_resampling:
            residual(name, width, width)
        else:
            conv(f"{name}.conv", width, width)

    def attend(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    widths, hidden = config.widths, 4 * config.widths[0]
    dense("temb.dense.0", widths[0], hidden)
    dense("temb.dense.1", hidden, hidden)
    if config.classes:
        shapes["class_embedding.weight"] = (config.classes, hidden)
    conv("conv_in", config.channels, widths[0])
    width, skips = widths[0], [widths[0]]
    for i, wide in enumerate(widths):
        for j in range(config.blocks):
            residual(f"down.{i}.block.{j}", width, wide)
            if i in config.attention:
                attend(f"down.{i}.attn.{j}", wide)
            width = wide
            skips.append(width)
        if i < len(widths) - 1:
            resample(f"down.{i}.downsample", width)
            skips.append(width)
    residual("mid.block_1", width, width)
    attend("mid.attn_1", width)
    residual("mid.block_2", width, width)
    for i, wide in reversed(list(enumerate(widths))):
        for j in range(config.blocks + 1):
            residual(f"up.{i}.block.{j}", width + skips.pop(), wide)
            if i in config.attention:
                attend(f"up.{i}.attn.{j}", wide)
            width = wide
        if i > 0:
            resample(f"up.{i}.upsample", width)
    norm("norm_out", width)
    conv("conv_out", width, config.out_channels)
    return shapes


def initialise(config: UNetConfig, rng: np.random.Generator) -> dict[str, Array]:
    """Fresh float32 parameters on the host, as Ho et al. 2020 drew them.

    Weights are uniform with variance 1 / fan_avg; the last convolution of every residual and
    attention block, and of the network, has its variance scaled by 1e-10, so that each block starts
    as the identity. Biases are 0, norms the identity.
    """
    params: dict[str, Array] = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            is_scale = "norm" in name and name.endswith("weight")
            params[name] = np.full(shape, 1.0 if is_scale else 0.0, dtype=np.float32)
            continue
        fan_avg = (shape[0] + shape[1]) / 2 * math.prod(shape[2:])
        last = name.endswith(("conv2.weight", "proj_out.weight", "conv_out.weight"))
        bound = math.sqrt(3.0 * (1e-10 if last else 1.0) / fan_avg)
        params[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return params


FREQUENCIES = "temb.frequencies"


def frequencies(config: UNetConfig) -> list[float]:
    """Of the sinusoids of the time, from 1 to 1/10000: width // 2."""
    half = config.widths[0] // 2
    # In Python's numbers, because torch.compile traces no NumPy here.
    return [10000.0 ** (-i / max(half - config.endpoint, 1)) for i in range(half)]


def _sinusoids(timestep: Array, config: UNetConfig, x: Array, rates: Array | None = None) -> Array:
    """[sin, cos] of the timestep at the frequencies, or at those that are at hand: (B, width).

    Vaswani et al. 2017 with the frequencies of the code of Ho et al. 2020. Angles reach 999, which
    half precision cannot hold: they are taken in float32 at least, and cast last.
    """
    xp = array_namespace(timestep, x)
    dtype = xp.float64 if x.dtype == xp.float64 else xp.float32
    if rates is None:
        rates = xp.asarray(frequencies(config), dtype=dtype, **device_of(xp, x))
    time = xp.reshape(xp.astype(timestep, dtype), (-1, 1))
    angles = time * xp.reshape(rates, (1, -1))
    parts = [xp.sin(angles), xp.cos(angles)]
    if config.cosine_first:
        parts.reverse()
    if config.widths[0] % 2:
        parts.append(xp.zeros_like(time))
    return astype(xp, xp.concat(parts, axis=-1), x.dtype)


def _class_vectors(table: Array, y: Array) -> Array:
    """The rows of the classes, and 0 for -1: (B, 4 widths[0])."""
    xp = array_namespace(table, y)
    known = xp.reshape(y >= 0, (-1, 1))
    rows = xp.take(table, xp.where(y >= 0, y, xp.zeros_like(y)), axis=0)
    return xp.where(known, rows, xp.zeros_like(rows))


def _check_inputs(x: Array, timestep: Array, y: Array | None, config: UNetConfig) -> None:
    factor = 2 ** (len(config.widths) - 1)
    if x.ndim != 4 or x.shape[1] != config.channels or x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            f"x must be (B, {config.channels}, H, W) with H and W divisible by {factor}, but has "
            f"shape {tuple(x.shape)}"
        )
    if tuple(timestep.shape) != (x.shape[0],):
        raise ValueError(f"timestep must be ({x.shape[0]},), but is {tuple(timestep.shape)}")
    if y is not None and not config.classes:
        raise ValueError("y was given, but this network has no classes")
    if y is not None and tuple(y.shape) != (x.shape[0],):
        raise ValueError(f"y must be ({x.shape[0]},), one class per image, but is {tuple(y.shape)}")
    if y is not None and is_numpy_array(y) and not ((y >= -1) & (y < config.classes)).all():
        raise ValueError(
            f"y must lie within [-1, {config.classes - 1}], but has {y.min()} to {y.max()}"
        )
