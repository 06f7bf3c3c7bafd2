"""The exact likelihood of the probability flow (Song et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from array_api_compat import array_namespace

from ddpm_core.arrays import check_pair, combine, device_of
from ddpm_core.denoisers import Denoiser
from ddpm_core.gaussians import Gaussian, log_prob, sum_of_sample
from ddpm_core.levels import Level
from ddpm_core.likelihood.ode import Solve, heun
from ddpm_core.schedules import Schedule
from ddpm_core.typing import Array

#: (f, (x,), (v,)) -> (f(x), J v); `torch.func.jvp` and `jax.jvp` are two.
Jvp: TypeAlias = Callable[..., tuple[Array, Array]]


def flow_log_prob(
    denoise: Denoiser,
    schedule: Schedule,
    x: Array,
    start: Level,
    end: Level | None = None,
    *,
    solve: Solve | None = None,
    probes: Array | None = None,
    jvp: Jvp | None = None,
    **cond: Any,
) -> Array:
    """log density of x under the probability flow, in nats: (B,) (Song et al. 2021, section 4.3).

    With y = x / α the flow is dy / dς = eps, ς = σ / α, and
    log p(x) = log N(x_end; 0, I) + D log(α_end / α_start) + ∫ tr(∂eps / ∂y) dς

    x: (B, *D), at level start
    start: of the host, with noise: nothing is read at clean data. For data, a level so clean that
        x may stand for x_start; grey values are to be `dequantised` first
    end: of the host, where x is standard normal; by default the schedule's noisiest, and α > 0
    solve: `heun(steps)` or `dop853()`, of this module; heun(100) by default
    probes: (P, B, *D) of E v v' = I, such as random signs: Hutchinson's estimate of the trace, the
        mean over P. None is the exact trace, which calls the denoiser once a coordinate
    jvp: derivatives along a direction, such as `torch.func.jvp` or `jax.jvp`; by default central
        differences, for which x should be float64
    cond: passed to the denoiser
    """
    xp = check_pair(x=x)
    end = schedule(schedule.ends[1]) if end is None else end
    if not (start.sigma > 0 and end.alpha > 0 and start.logsnr > end.logsnr):
        raise ValueError(
            f"start must have noise, end data, and start be the cleaner, but log-SNR is "
            f"{start.logsnr:.6g} at start and {end.logsnr:.6g} at end"
        )
    dims = math.prod(x.shape[1:])
    along = central_difference if jvp is None else jvp
    if probes is None:
        eye = xp.eye(dims, dtype=x.dtype, **device_of(xp, x))
        directions = [
            xp.broadcast_to(xp.reshape(e, (1, *x.shape[1:])), x.shape) for e in _rows(eye)
        ]
        weight = 1.0
    else:
        if tuple(probes.shape[1:]) != tuple(x.shape):
            raise ValueError(
                f"probes must be (P, {', '.join(map(str, x.shape))}), not {probes.shape}"
            )
        directions, weight = _rows(probes), 1 / probes.shape[0]

    def rates(s: float, y: Array) -> tuple[Array, Array]:
        """d / ds of y and of the log density's loss, at s = log ς = -log-SNR / 2."""
        t = schedule.at(-2 * s)

        def eps(y: Array) -> Array:
            x = y * t.alpha
            return combine((1 / t.sigma, x), (-t.alpha / t.sigma, denoise(x, t, **cond)))

        value, trace = y, 0.0
        for v in directions:
            value, slope = along(eps, (y,), (v,))
            trace = trace + weight * sum_of_sample(v * slope)
        width = math.exp(s)
        return value * width, trace * width

    solve = heun(100) if solve is None else solve
    y, gained = solve(rates, -start.logsnr / 2, -end.logsnr / 2, x / start.alpha)
    normal = Gaussian(xp.zeros_like(x), 1.0)
    return log_prob(normal, y * end.alpha) + dims * math.log(end.alpha / start.alpha) + gained


def central_difference(
    f: Callable[[Array], Array], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """f(x), and (f(x + h v) - f(x - h v)) / 2 h, h the cube root of eps(dtype): errors of h²."""
    (x,), (v,) = primals, tangents
    h = cast(float, array_namespace(x).finfo(x.dtype).eps) ** (1 / 3)
    return f(x), (f(x + h * v) - f(x - h * v)) / (2 * h)


def _rows(a: Array) -> list[Array]:
    return [a[i, ...] for i in range(a.shape[0])]
