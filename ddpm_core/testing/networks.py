"""`check_network`: the laws of a network, before it is trained or after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_core.noise import portable_noise
from ddpm_core.testing.cases import Sides, tried
from ddpm_core.testing.report import Report, raising
from ddpm_core.typing import Array

_NETWORK = "Ho et al. 2020, section 4 and Appendix B"


def examine_network(
    network: Callable[..., Any],
    shape: tuple[int, ...],
    times: Sequence[float] = (0.0, 1.0, 500.0, 999.0),
    *,
    asarray: Callable[[Array], Any] = np.asarray,
    to_numpy: Callable[[Any], Array] = np.asarray,
) -> Report:
    """Which laws a network obeys, and which it breaks.

    network: (x, timestep) -> (B, *D), or (B, 2 C, ...) with a learned variance; x is (B, *D) and
        timestep (B,)
    shape: *D
    times: timesteps that it is made for, at least two
    asarray, to_numpy: to and from the library of the network

    A network whose last layer is zero, as before training, says the same at all times: give it
    random weights.

    >>> check_network(lambda x, time: x * np.cos(time)[:, None], (3,)).broken
    ()
    >>> mixing = lambda x, time: (x - x.mean(axis=0)) * np.cos(time)[:, None]
    >>> [finding.law for finding in examine_network(mixing, (3,)).broken]
    ['a sample does not depend on those beside it', 'timesteps (B,) are those of each sample']
    """
    if len(set(times)) < 2:
        raise ValueError(f"times must be two or more, but are {list(times)}")
    batch: Array = portable_noise(0, dtype=np.float64)(0, (3, *shape))

    def raw(x: Array, time: Any) -> tuple[Any, Any]:
        given = asarray(x)
        each = np.broadcast_to(np.asarray(time, dtype=np.float64), (len(x),))
        return given, network(given, asarray(each.copy()))

    def call(x: Array, time: Any) -> Array:
        return np.asarray(to_numpy(raw(x, time)[1]), dtype=np.float64)

    def slack(wanted: Array) -> float:
        eps = float(np.finfo(to_numpy(asarray(np.zeros(1))).dtype).eps)
        return 256 * eps * float(np.abs(wanted).max())

    def form(time: float) -> Sides | str:
        x, y = raw(batch, time)
        same = [tuple(x.shape)]
        if len(shape) > 0:
            same.append((len(batch), 2 * shape[0], *shape[1:]))
        if tuple(y.shape) not in same:
            return f"x of shape {tuple(x.shape)} gives {tuple(y.shape)}"
        return Sides(0, 0) if y.dtype == x.dtype else f"x of {x.dtype} gives {y.dtype}"

    def finite(time: float) -> Sides:
        found = [call(factor * batch, time) for factor in (1.0, 0.0, 10.0)]
        return Sides(np.isfinite(np.stack(found)), True)

    def pure(time: float) -> Sides:
        x, first = raw(batch, time)
        before, kept = np.array(to_numpy(first)), np.array(to_numpy(x))
        again = call(batch, time)
        found = [again.ravel(), np.asarray(to_numpy(x)).ravel()]
        return Sides(np.concatenate(found), np.concatenate([before.ravel(), kept.ravel()]))

    def alone(time: float) -> Sides:
        wanted = np.concatenate([call(batch[i : i + 1], time) for i in range(len(batch))])
        return Sides(call(batch, time), wanted, slack(wanted))

    def mixed(time: float) -> Sides:
        each = np.array([time, times[0], times[-1]])
        wanted = np.concatenate([call(batch[i : i + 1], each[i]) for i in range(len(batch))])
        return Sides(call(batch, each), wanted, slack(wanted))

    def moves(time: float) -> Sides | str:
        other = times[-1] if time != times[-1] else times[0]
        here, there = call(batch, time), call(batch, other)
        if np.abs(here - there).max() <= slack(here):
            return f"it says what it says at timestep {other:g}"
        return Sides(0, 0)

    laws = (
        ("the shape and the dtype of x, or twice its channels", form),
        ("finite", finite),
        ("a pure function: twice the same, and x is not changed", pure),
        ("a sample does not depend on those beside it", alone),
        ("timesteps (B,) are those of each sample", mixed),
        ("it depends on time", moves),
    )
    findings = (tried(law, _NETWORK, times, f, at=lambda t: f"timestep {t:g}") for law, f in laws)
    return Report("this network", tuple(findings))


check_network = raising(examine_network)
