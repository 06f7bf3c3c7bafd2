"""The UNet of Ho et al. 2020 (appendix B), with optional classes, and with switches for the ways in
which the networks of Nichol & Dhariwal 2021 and Dhariwal & Nichol 2021 differ from it.

Parameters are a flat dict. Their names and shapes are those of the PyTorch port of the authors'
checkpoints (pesser/pytorch_diffusion, which DDIM and others share); `class_embedding` is ours.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from ddpm_core.arrays import astype, device_of, same_library, take
from ddpm_core.arrays import kind as kind_of
from ddpm_core.nn.ops import Ops
from ddpm_core.typing import Array


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet. The defaults are the CIFAR-10 network of Ho et al. 2020.

    channels: of the images
    out_channels: of the output; `channels`, or twice that with a learned variance
    widths: feature channels of each resolution, the finest first; each resolution has half the
        height and width of the one before
    blocks: residual blocks per resolution
    attention: the resolutions with attention, as indices into widths; the middle always has it
    groups: of the group norms
    classes: the number of classes to condition on, or 0

    The rest is as in Ho et al. 2020 by default:

    heads: attention heads on every map; or head_width: channels per head, so that wider maps have
        more heads
    scale_shift: the time embedding scales and shifts the second norm instead of being added before
        it
    residual_resampling: resolution changes inside residual blocks, by 2x2 means and by nearest
        neighbours, instead of by convolutions
    middle_norm: the attention block in the middle begins with a group norm
    symmetric_padding: the convolution that halves pads all sides, instead of right and bottom only
    cosine_first: the time embedding lists cosines before sines
    endpoint: the slowest frequency of the time embedding is 1 / 10000; if False, 1 / 10000 is one
        step beyond the slowest
    eps: added to the variance in the group norms

    ValueError if a field has a wrong type or is out of range, or if the network would have more
    than MAX_PARAMETERS parameters.

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
    middle_norm: bool = True
    symmetric_padding: bool = False
    cosine_first: bool = False
    endpoint: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _typed(field.name, str(field.type), getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        # Sizes first: the parameters are counted last, from lists of the blocks.
        for name, (low, high) in _LIMITS.items():
            if not low <= getattr(self, name) <= high:
                edge = f"at least {low}" if getattr(self, name) < low else f"at most {high}"
                raise ValueError(
                    f"{name} must be {edge}, but is {reprlib.repr(getattr(self, name))}"
                )
        if not 1 <= len(self.widths) <= MAX_RESOLUTIONS:
            raise ValueError(
                f"widths must be 1 to {MAX_RESOLUTIONS} multiples of groups = {self.groups}, but "
                f"are {len(self.widths)}"
            )
        if any(not 1 <= w <= MAX_WIDTH or w % self.groups for w in self.widths):
            raise ValueError(
                f"widths must be multiples of groups = {self.groups}, at most {MAX_WIDTH}, but are "
                f"{reprlib.repr(self.widths)}"
            )
        levels = range(len(self.widths))
        if len(self.attention) > len(levels) or any(i not in levels for i in self.attention):
            raise ValueError(
                f"attention must name indices into the {len(self.widths)} widths, but is "
                f"{reprlib.repr(self.attention)}"
            )
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must not be negative and must be finite, but is {self.eps}")
        if self.head_width and self.heads != 1:
            raise ValueError(
                f"give heads or head_width, not both: {self.heads} and {self.head_width}"
            )
        each = self.head_width or self.heads
        attending = [self.widths[i] for i in {*self.attention, len(self.widths) - 1}]
        if any(width % each for width in attending):
            raise ValueError(
                f"{'head_width' if self.head_width else 'heads'} = {each} does not divide the "
                f"widths that have attention, {attending}"
            )
        count = sum(math.prod(shape) for shape in parameter_shapes(self).values())
        if count > MAX_PARAMETERS:
            raise ValueError(
                f"the network would have {count:.1e} parameters, more than {MAX_PARAMETERS:.0e}"
            )

    def heads_of(self, width: int) -> int:
        """The number of attention heads on maps of so many channels."""
        return width // self.head_width if self.head_width else self.heads


MAX_PARAMETERS = 10**10  #: 40 GB in float32
MAX_RESOLUTIONS = 16
MAX_WIDTH = 2**16

#: The least and the most of each integer field.
_LIMITS = {
    "channels": (1, 2**16),
    "out_channels": (1, 2**16),
    "blocks": (1, 100),
    "groups": (1, MAX_WIDTH),
    "classes": (0, 10**8),
    "heads": (1, MAX_WIDTH),
    "head_width": (0, MAX_WIDTH),
}


def _typed(name: str, kind: str, value: Any) -> Any:
    """The value of a field, if it is of the field's type; NumPy's integers become Python's."""
    try:
        if kind == "int":
            return _integer(value)
        if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if kind == "bool" and isinstance(value, bool):
            return value
        if kind.startswith("tuple"):
            return tuple(_integer(n) for n in cast(Iterable[Any], value))
    except (TypeError, OverflowError):  # the second: an integer that no float holds
        pass
    wanted = {"int": "an integer", "float": "a number", "bool": "True or False"}
    raise ValueError(f"{name} must be {wanted.get(kind, 'integers')}, but is {reprlib.repr(value)}")


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


class Block(NamedTuple):
    """One block of a network.

    kind: "residual", "attention", "halve" or "double"
    name: what the names of its parameters begin with
    fan_in, fan_out: its channels
    """

    kind: str
    name: str
    fan_in: int
    fan_out: int


class Plan(NamedTuple):
    """The blocks of a network, in the order in which they run.

    down: groups of blocks; the map after each group is kept, and so is the map before the first
    middle: blocks
    up: groups of blocks; before each group, the map that was kept last is concatenated
    """

    down: list[list[Block]]
    middle: list[Block]
    up: list[list[Block]]

    def blocks(self) -> list[Block]:
        return [block for group in (*self.down, self.middle, *self.up) for block in group]


def plan(config: UNetConfig) -> Plan:
    """The one description of the architecture, for the network, its parameters and their layouts.

    OpenAI's checkpoints number their parameters by these groups and blocks.
    """
    widths, last = config.widths, len(config.widths) - 1

    def group(way: str, i: int, j: int, fan_in: int) -> list[Block]:
        found = [Block("residual", f"{way}.{i}.block.{j}", fan_in, widths[i])]
        if i in config.attention:
            found.append(Block("attention", f"{way}.{i}.attn.{j}", widths[i], widths[i]))
        return found

    down: list[list[Block]] = []
    up: list[list[Block]] = []
    width = widths[0]
    kept = [width]
    for i in range(last + 1):
        for j in range(config.blocks):
            down.append(group("down", i, j, width))
            width = widths[i]
            kept.append(width)
        if i < last:
            down.append([Block("halve", f"down.{i}.downsample", width, width)])
            kept.append(width)
    middle = [
        Block("residual", "mid.block_1", width, width),
        Block("attention", "mid.attn_1", width, width),
        Block("residual", "mid.block_2", width, width),
    ]
    for i in reversed(range(last + 1)):
        for j in range(config.blocks + 1):
            up.append(group("up", i, j, width + kept.pop()))
            width = widths[i]
        if i > 0:
            up[-1].append(Block("double", f"up.{i}.upsample", width, width))
    return Plan(down, middle, up)


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

    params: by name, as `parameter_shapes` lists them, packed by `ops`; if FREQUENCIES is among
        them, nothing is copied from the host
    x: (B, C, H, W); H and W divisible by 2 for each resolution after the first
    timestep: (B,), on the scale of 0 .. 999 whatever the schedule
    y: (B,) classes 0 .. classes - 1, where -1 is no class; None is no class for any image
    dropout: in every residual block, during training
    """
    check_inputs(x, timestep, y, config, params.get(FREQUENCIES))

    def p(name: str) -> tuple[Any, Any]:
        return params[f"{name}.weight"], params[f"{name}.bias"]

    groups, eps = config.groups, config.eps

    def conv(h: Array, name: str) -> Array:
        return ops.conv2d(h, *p(name))

    def residual(h: Array, block: Block, resample: Callable[[Array], Array] | None = None) -> Array:
        name = block.name
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
        if block.fan_in != block.fan_out:
            h = conv(h, f"{name}.nin_shortcut")
        return h + f

    def attention(h: Array, block: Block) -> Array:
        name, f = block.name, h
        if _has_norm(block, config):
            f = ops.group_norm(h, *p(f"{name}.norm"), groups, eps)
        q, k, v = (conv(f, f"{name}.{part}") for part in "qkv")
        f = ops.attention(q, k, v, config.heads_of(block.fan_out))
        return h + conv(f, f"{name}.proj_out")

    def halve(h: Array, block: Block) -> Array:
        if config.residual_resampling:
            return residual(h, block, ops.downsample)
        return ops.conv2d(h, *p(f"{block.name}.conv"), 2, config.symmetric_padding)

    def double(h: Array, block: Block) -> Array:
        if config.residual_resampling:
            return residual(h, block, ops.upsample)
        return conv(ops.upsample(h), f"{block.name}.conv")

    kinds = {"residual": residual, "attention": attention, "halve": halve, "double": double}

    def through(h: Array, blocks: list[Block]) -> Array:
        for block in blocks:
            h = kinds[block.kind](h, block)
        return h

    e = _sinusoids(timestep, config, x, params.get(FREQUENCIES))
    e = ops.linear(ops.silu(ops.linear(e, *p("temb.dense.0"))), *p("temb.dense.1"))
    if y is not None:
        e = e + _class_vectors(params["class_embedding.weight"], y)
    e = ops.silu(e)

    down, middle, up = plan(config)
    h = conv(ops.enter(x), "conv_in")
    kept = [h]
    for blocks in down:
        h = through(h, blocks)
        kept.append(h)
    h = through(h, middle)
    for blocks in up:
        h = through(ops.concat(h, kept.pop()), blocks)
    h = ops.group_norm_silu(h, *p("norm_out"), groups, eps)
    return ops.leave(conv(h, "conv_out"))


def parameter_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter, in the order of the network."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    def residual(name: str, fan_in: int, fan_out: int) -> None:
        layer(f"{name}.norm1", fan_in)
        layer(f"{name}.conv1", fan_out, fan_in, 3, 3)
        layer(f"{name}.temb_proj", 2 * fan_out if config.scale_shift else fan_out, hidden)
        layer(f"{name}.norm2", fan_out)
        layer(f"{name}.conv2", fan_out, fan_out, 3, 3)
        if fan_in != fan_out:
            layer(f"{name}.nin_shortcut", fan_out, fan_in, 1, 1)

    first, hidden = config.widths[0], 4 * config.widths[0]
    layer("temb.dense.0", hidden, first)
    layer("temb.dense.1", hidden, hidden)
    if config.classes:
        shapes["class_embedding.weight"] = (config.classes, hidden)
    layer("conv_in", first, config.channels, 3, 3)
    for block in plan(config).blocks():
        kind, name, fan_in, fan_out = block
        if kind == "attention":
            if _has_norm(block, config):
                layer(f"{name}.norm", fan_in)
            for part in ("q", "k", "v", "proj_out"):
                layer(f"{name}.{part}", fan_out, fan_in, 1, 1)
        elif kind == "residual" or config.residual_resampling:
            residual(name, fan_in, fan_out)
        else:
            layer(f"{name}.conv", fan_out, fan_in, 3, 3)
    layer("norm_out", first)
    layer("conv_out", config.out_channels, first, 3, 3)
    return shapes


def _has_norm(attention: Block, config: UNetConfig) -> bool:
    return config.middle_norm or attention.name != "mid.attn_1"


def initialise(config: UNetConfig, rng: np.random.Generator) -> dict[str, Array]:
    """Fresh float32 parameters on the host, as Ho et al. 2020 drew them.

    Weights are uniform with variance 1 / fan_avg. In the last convolution of every residual block,
    of every attention block and of the network the variance is 1e-10 of that, so that each block
    starts as the identity. Biases are 0, and norms start as the identity.
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
    """The frequencies of the time embedding, widths[0] // 2 of them, falling from 1."""
    half = config.widths[0] // 2
    # In Python's numbers, because torch.compile traces no NumPy here.
    return [10000.0 ** (-i / max(half - config.endpoint, 1)) for i in range(half)]


def _sinusoids(timestep: Array, config: UNetConfig, x: Array, rates: Array | None = None) -> Array:
    """[sin, cos] of the timestep times each frequency (Vaswani et al. 2017): (B, widths[0]).

    rates: the frequencies beside x, if they are there already

    Angles reach 999, which half precision cannot hold: they are taken in float32 at least, and the
    result is cast last.
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
    """The row of each class, or zeros for -1: (B, 4 widths[0])."""
    xp = array_namespace(table, y)
    known = xp.reshape(y >= 0, (-1, 1))
    rows = take(xp, table, xp.where(y >= 0, y, xp.zeros_like(y)))
    return xp.where(known, rows, xp.zeros_like(rows))


def check_inputs(
    x: Array,
    timestep: Array,
    y: Array | None,
    config: UNetConfig,
    like: Array | None = None,
) -> None:
    """Refuses inputs that `unet` cannot take: TypeError or ValueError, which names the input.

    like: an array of the library that the parameters are in, if there is one at hand

    Shapes and libraries only; values are looked at where y is a NumPy array.
    """
    given = {"x": x, "timestep": timestep, "y": y, "the network": like}
    arrays = {name: a for name, a in given.items() if a is not None}
    for name, a in arrays.items():
        if not hasattr(a, "ndim"):
            raise TypeError(f"{name} must be an array, but is {kind_of(a)}")
    xp = same_library(**arrays)
    factor, channels = 2 ** (len(config.widths) - 1), config.channels
    shape = tuple(x.shape)
    if len(shape) != 4 or shape[1] != channels or shape[2] % factor or shape[3] % factor:
        last = len(shape) == 4 and shape[3] == channels != shape[1]
        raise ValueError(
            f"x must be (B, {channels}, H, W) with H and W divisible by {factor}, but has shape "
            f"{shape}{'; are its channels last? Move them to axis 1' if last else ''}"
        )
    if tuple(timestep.shape) != shape[:1]:
        raise ValueError(
            f"timestep must be ({shape[0]},), one per image, but is {tuple(timestep.shape)}"
        )
    if y is None:
        return
    if not config.classes:
        raise ValueError("y was given, but this network has no classes")
    if not xp.isdtype(y.dtype, "integral"):
        raise TypeError(f"y has dtype {y.dtype}: convert it to integers, e.g. int64")
    if tuple(y.shape) != shape[:1]:
        raise ValueError(f"y must be ({shape[0]},), one class per image, but is {tuple(y.shape)}")
    if is_numpy_array(y) and not ((y >= -1) & (y < config.classes)).all():
        raise ValueError(
            f"y must lie within [-1, {config.classes - 1}], but has {y.min()} to {y.max()}"
        )
