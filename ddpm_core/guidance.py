"""Guidance: denoisers made of denoisers, which steer a model after its training.

All of it is in terms of x_0. At a given x_t, eps and the score are affine in x_0; so where the
weights of a combination sum to 1, it is the same combination of x_0, of eps and of scores. The v
of a learned variance is passed on, that of the first denoiser which is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypeAlias

from array_api_compat import array_namespace

from ddpm_core.arrays import (
    astype,
    check_function,
    check_share,
    clip,
    device_of,
    fit,
    is_number,
    on_host,
    ratio,
    same_library,
    same_shape,
    shown,
    where,
    widen,
)
from ddpm_core.denoisers import Denoiser, Wrapped, both
from ddpm_core.gaussians import sum_of_sample
from ddpm_core.levels import Level, check_levels, is_without_data
from ddpm_core.typing import Array, Scalar

#: How strong guidance is: a number, one per sample (B,), or a function of the level.
Scale: TypeAlias = Scalar | Callable[[Level], Scalar]


def guided(denoise: Denoiser, against: Denoiser, scale: Scale, *, rescale: float = 0.0) -> Wrapped:
    """What a denoiser says, exaggerated against another (Ho & Salimans 2022).

    x_0 = against + scale (denoise - against)

    against: the denoiser without the condition; or a worse one with it, which is autoguidance
        (Karras et al. 2024)
    scale: 1 is `denoise`, 0 is `against`. It is diffusers' guidance_scale and every other that is
        off at 1; to one that is off at 0, as Ho & Salimans' w is, add 1
    rescale: φ in 0 .. 1, which multiplies x_0 by φ std(denoise) / std(x_0) + 1 - φ, each std over
        the coordinates of a sample (Lin et al. 2024, section 3.4; theirs is of the network's
        output)

    Where the scale is the number 0 or 1, only one of the two is called. Guidance adds up scores at
    every level, which does not draw from p(x | y)^scale p(x)^(1 - scale) (Bradley & Nakkiran 2024).
    """
    check_share(rescale=rescale)

    def rule(x_0: Array, other: Array, w: Scalar) -> Array:
        return _rescaled(_beyond(other, x_0, w), x_0, rescale)

    return _of_two(denoise, against, scale, rule, other_at_0=rescale == 0)


def classifier_free(denoise: Denoiser, scale: Scale, null: Mapping[str, Any]) -> Wrapped:
    """`guided` by one conditional denoiser, against itself without the condition, in one call.

    x_0 = denoise(null) + scale (denoise(cond) - denoise(null))

    null: what stands for no condition, by name: a number or an array that broadcasts to the
        condition. {"y": -1} for our networks; others have a class or an embedding of their own

    The call is of 2 B samples: x_t, and levels and conditions of B entries, are doubled. Where the
    scale is the number 0 or 1, it is of B.

    ValueError if a condition that null names is not passed.
    """
    scale_at = _of_level(scale)
    if not isinstance(null, Mapping) or not null:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"null must map names of conditions, as {{'y': -1}} does, but is {null!r}")
    for name, value in null.items():
        if not (is_number(value) or hasattr(value, "dtype")):
            raise TypeError(f"null[{name!r}] must be a number or an array, but is {shown(value)}")
    check_function("a Predictor", denoise=denoise)

    def combined(x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        for name in null:
            if name not in cond:
                raise ValueError(f"null says what stands for no {name}: pass {name}= as well")
        count, w = x_t.shape[0], scale_at(t)
        without = cond | {name: _null(name, cond[name], null[name], count) for name in null}
        if is_number(w) and w in (0, 1):
            return both(denoise, x_t, t, **(cond if w == 1 else without))

        def doubled(a: Any, b: Any) -> Any:
            each = getattr(a, "ndim", 0) > 0 and a.shape[0] == count
            return array_namespace(a, b).concat([a, b]) if each else a

        twice = {name: doubled(cond[name], without[name]) for name in cond}
        x_t = doubled(x_t, x_t)
        x_0, v = both(denoise, x_t, t.map(lambda c: doubled(c, c)), **twice)
        same_shape(x_t=x_t, x_0=x_0)
        x_0, other = x_0[:count, ...], x_0[count:, ...]
        return _beyond(other, x_0, w), None if v is None else v[:count, ...]

    return Wrapped(combined)


def classifier(
    denoise: Denoiser, log_prob_grad: Callable[..., Array], scale: Scale = 1.0
) -> Wrapped:
    """A denoiser and a classifier of noisy data (Dhariwal & Nichol 2021, Algorithm 2).

    x_0 = denoise + scale (σ² / α) ∇ log p(y | x_t)

    log_prob_grad: (x_t, level, **cond) -> (B, *D), the gradient with respect to x_t

    With the exact gradient and scale 1 it is E[x_0 | x_t, y]. Both are passed all conditions.

    ValueError at a host level where α = 0: x_t says nothing of y there.
    """
    scale_at = _of_level(scale)
    check_function("a Predictor", denoise=denoise)
    check_function("a classifier's gradient", log_prob_grad=log_prob_grad)

    def combined(x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        if is_without_data(t):
            raise ValueError("a classifier cannot guide where alpha = 0: x_t holds no data")
        x_0, v = both(denoise, x_t, t, **cond)
        gradient = log_prob_grad(x_t, t, **cond)
        same_shape(denoise=x_0, log_prob_grad=gradient)
        return x_0 + fit(scale_at(t), x_0) * fit(t.sigma**2 / t.alpha, x_0) * gradient, v

    return Wrapped(combined)


def projected(
    denoise: Denoiser,
    against: Denoiser,
    scale: Scale,
    *,
    parallel: float = 0.0,
    norm: float = math.inf,
) -> Wrapped:
    """`guided`, but for the part of the difference along x_0 itself (Sadat et al. 2024).

    x_0 = denoise + (scale - 1) (d⊥ + parallel d∥),   d = (denoise - against) min(1, norm / ‖d‖)

    parallel: the share of d∥ = <d, denoise> / ‖denoise‖² denoise that stays: their η
    norm: the largest length of d, per sample: their r

    With parallel = 1 and norm = inf it is `guided`. A denoiser has no memory, and so the paper's
    momentum over steps is left out.
    """
    if not norm > 0:
        raise ValueError(f"norm must be positive, but is {norm}")

    def rule(x_0: Array, other: Array, w: Scalar) -> Array:
        xp = array_namespace(x_0)
        along, d = widen(xp, x_0), widen(xp, x_0 - other)
        d = d * fit(clip(ratio(norm, xp.sqrt(sum_of_sample(d * d)), 1.0), 0.0, 1.0), d)
        share = ratio(sum_of_sample(d * along), sum_of_sample(along * along), 0.0)
        d = d - fit((1 - parallel) * share, d) * along
        return x_0 + fit(w - 1, x_0) * astype(xp, d, x_0.dtype)

    return _of_two(denoise, against, scale, rule)


def dynamic_threshold(denoise: Denoiser, share: float = 0.995) -> Wrapped:
    """x_0 shrunk into [-1, 1], sample by sample (Saharia et al. 2022, section 2.3).

    clip(x_0, -s, s) / s,   s = max(1, the quantile of |x_0| over the coordinates)

    share: of the quantile, in 0 .. 1; at 1 it is the largest, and nothing is clipped

    Their static threshold is `clip`. Both go around a guided denoiser.
    """
    check_share(share=share)
    check_function("a Predictor", denoise=denoise)

    def shrunk(x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        x_0, v = both(denoise, x_t, t, **cond)
        s = clip(_quantile(abs(_rows(x_0)), share), 1.0, math.inf)
        return clip(x_0 / fit(s, x_0), -1.0, 1.0), v

    return Wrapped(shrunk)


def within(scale: Scale, low: float, high: float) -> Callable[[Level], Scalar]:
    """The scale where low <= log-SNR < high, and 1 elsewhere (Kynkäänniemi et al. 2024).

    Their interval of noise, σ_lo < σ <= σ_hi, is that of σ / α here: log-SNR = -2 log σ.

    >>> from ddpm_core import linear
    >>> scale = within(2.0, -4.0, 4.0)
    >>> [scale(linear()(time)) for time in (900, 400, 10)]
    [1.0, 2.0, 1.0]
    """
    scale_at = _of_level(scale)
    if not low < high:
        raise ValueError(f"low < high must hold, but they are {low} and {high}")

    def inside(t: Level) -> Scalar:
        check_levels(t=t)
        return where((t.logsnr >= low) & (t.logsnr < high), scale_at(t), _ones(t.logsnr))

    return inside


def cfg_pp(strength: float, levels: Level) -> Callable[[Level], Scalar]:
    """CFG++ (Chung et al. 2024, Algorithm 2) as a scale of `guided` for `ddim` on a grid.

    x_s = α_s (x_∅ + strength (x_c - x_∅)) + σ_s eps_∅

    It takes the noise from the unconditional x_∅. That is the step of DDIM at
    scale = strength / (1 - (α_t / α_s) (σ_s / σ_t)), s the next level after t.

    strength: 0 .. 1 in the paper, where it is λ
    levels: (n + 1,) of the host, the noisiest first: `ddim(schedule, n).levels`

    ValueError at a host level that is not of the grid; a device level is taken to be the nearest.

    >>> from ddpm_core import ddim, linear
    >>> sampler = ddim(linear(), 2)
    >>> scale = cfg_pp(0.5, sampler.levels)
    >>> [round(scale(row.level), 3) for row in sampler.rows()]
    [0.511, 0.5]
    """
    check_levels(levels=levels)
    grid = _values(levels.logsnr)
    if len(grid) < 2 or any(a >= b for a, b in pairwise(grid)):
        raise ValueError("levels must be a sampler's: of the host, and the noisiest first")
    scales = [-strength / math.expm1((a - b) / 2) for a, b in pairwise(grid)]
    known = grid[:-1]

    def scale(t: Level) -> Scalar:
        check_levels(t=t)
        for value in _values(t.logsnr):
            # Levels may come from the device, in float32.
            if not any(math.isclose(value, k, rel_tol=1e-4, abs_tol=1e-4) for k in known):
                raise ValueError(
                    f"the level of log-SNR {value:.6g} is not of this grid of {len(known)} steps: "
                    f"make cfg_pp with the levels of the sampler"
                )
        found = scales[0] * _ones(t.logsnr)
        for (a, b), after in zip(pairwise(known), scales[1:], strict=True):
            found = where(t.logsnr > (a + b) / 2, after, found)
        return found

    return scale


def _values(c: Scalar) -> list[float]:
    """The values of a coefficient of the host; none of one on the device."""
    # In Python, since torch.compile traces no NumPy of numbers.
    return [c] if is_number(c) else c.ravel().tolist() if on_host(c) else []


def _ones(c: Scalar) -> Scalar:
    """1, in the shape and dtype of a coefficient."""
    return 1.0 if is_number(c) else array_namespace(c).ones_like(c)


def _of_level(scale: Scale) -> Callable[[Level], Scalar]:
    """The scale as a function of the level."""
    if callable(scale):
        return scale
    if is_number(scale) and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, but is {scale}")
    return lambda t: scale


def _null(name: str, condition: Any, value: Any, count: int) -> Array:
    """The null value in the place of a condition, which has an entry for each of count samples."""
    xp = same_library(**{name: condition})
    if tuple(condition.shape[:1]) != (count,):
        raise ValueError(
            f"{name} has shape {tuple(condition.shape)}, but x_t has {count} samples: pass one "
            f"entry for each"
        )
    value = xp.asarray(value, dtype=condition.dtype, **device_of(xp, condition))
    return xp.broadcast_to(value, condition.shape)


def _of_two(
    denoise: Denoiser,
    against: Denoiser,
    scale: Scale,
    rule: Callable[[Array, Array, Scalar], Array],
    *,
    other_at_0: bool = False,
) -> Wrapped:
    """rule(x_0, other, scale) of what two denoisers say, where x_0 is that at the scale 1."""
    scale_at = _of_level(scale)
    check_function("a Predictor", denoise=denoise, against=against)

    def combined(x_t: Array, t: Level, **cond: Any) -> tuple[Array, Array | None]:
        w = scale_at(t)
        if other_at_0 and is_number(w) and w == 0:
            return both(against, x_t, t, **cond)
        x_0, v = both(denoise, x_t, t, **cond)
        if is_number(w) and w == 1:
            return x_0, v
        other = against(x_t, t, **cond)
        same_shape(denoise=x_0, against=other)
        return rule(x_0, other, w), v

    return Wrapped(combined)


def _beyond(other: Array, x_0: Array, w: Scalar) -> Array:
    return other + fit(w, x_0) * (x_0 - other)


def _rescaled(x_0: Array, like: Array, share: float) -> Array:
    """x_0 with its standard deviation, per sample, moved that share of the way to another's."""
    if share == 0:
        return x_0
    xp = array_namespace(x_0)
    move = ratio(xp.std(_rows(like), axis=1), xp.std(_rows(x_0), axis=1), 1.0)
    return fit(share * move + (1 - share), x_0) * x_0


def _rows(x: Array) -> Array:
    """(B, *D) as (B, D), in float32 if it is in half precision."""
    xp = array_namespace(x)
    return xp.reshape(widen(xp, x), (x.shape[0], math.prod(x.shape[1:])))


def _quantile(rows: Array, share: float) -> Array:
    """The quantile of each row, linear between its order statistics: (B, D) -> (B,)."""
    rows = array_namespace(rows).sort(rows, axis=1)
    last = rows.shape[1] - 1
    i = math.floor(share * last)
    low, high = rows[:, i], rows[:, min(i + 1, last)]
    return low + (share * last - i) * (high - low)
