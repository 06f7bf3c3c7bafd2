"""Averages of weights while they train, and others made of those afterwards (Karras et al. 2024,
"Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C).

A *profile* says how much the weights of each step count in an average. Here it is a power of time,
cut off at the step where the average was taken:

p(τ) = (γ + 1) τ^γ / t^(γ + 1),   0 < τ <= t        (Eqs. 2, 121)

Its standard deviation over t is its *width* (Eq. 123), the share of all steps that it is spread
over. A *snapshot* is such an average, kept: the pair (step, width). All is float64 on the host.

A step is an update of the weights, counted from 1. The averages of `power_decay` are exactly those
of p if the weights of step i count from time i - 1 to time i:

∏ (1 - 1/j)^(γ + 1) over j = i + 1 .. t  =  (i / t)^(γ + 1)
weight of step i  =  (i^(γ + 1) - (i - 1)^(γ + 1)) / t^(γ + 1)  =  ∫ p(τ) dτ from i - 1 to i
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from ddpm_core.typing import Array

WIDEST = 12**-0.5  #: the width at γ = 0, the plain mean of all steps


def width(gamma: float) -> float:
    """The standard deviation of τ / t where τ is drawn by the profile (Eq. 123).

    width = (γ + 1)^½ (γ + 2)⁻¹ (γ + 3)^-½

    gamma: at least 0, where the width is 1 / √12

    ValueError if γ < 0: such a profile counts the first steps most, and shares its width with
    another.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be at least 0 and finite, but is {gamma}")
    return min(math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2), WIDEST)


def exponent(width: float) -> float:
    """The γ of a width: the inverse of `width` (Eq. 126).

    width: above 0, at most 1 / √12 = 0.28867...

    It is the largest root of width² (γ + 2)² (γ + 3) = γ + 1, a cubic with three real roots, by
    Viète's cosine.

    >>> round(exponent(0.1), 4)
    6.9372
    """
    if not 0 < width <= WIDEST:
        raise ValueError(
            f"width must be above 0 and at most 1 / sqrt(12) = {WIDEST:.6f}, the mean of all "
            f"steps, but is {width}"
        )
    root = math.sqrt(3 + width**2)
    angle = math.acos(-width * (18 + width**2) / root**3)
    return 2 / 3 * root / width * math.cos(angle / 3) - 7 / 3


def power_decay(step: int, gamma: float) -> float:
    """β of the update: average <- β average + (1 - β) weights of that step (Eqs. 3, 127).

    β = (1 - 1 / step)^(γ + 1)

    step: 1 at the first update, where β = 0: what the average was before does not count

    >>> [power_decay(step, 0.0) for step in (1, 2, 4)]
    [0.0, 0.5, 0.75]
    """
    _check_step(step)
    return (1 - 1 / step) ** (gamma + 1)


def profile(step: int, width: float) -> Array:
    """How much each of the steps 1 .. step counts in the average of `power_decay`: (step,).

    They sum to 1.

    >>> profile(4, WIDEST)
    array([0.25, 0.25, 0.25, 0.25])
    """
    _check_step(step)
    return np.diff((np.arange(step + 1) / step) ** (exponent(width) + 1))


class Combination(NamedTuple):
    """How snapshots are summed, and how far the sum is from what was wanted.

    weights: (K,), which sum to 1
    error: ‖Σ weights p_k - p‖ / ‖p‖, norms over time; below 1e-7 it is rounding

    The error is that of an average of white noise, as a share. Weights that change slowly, as
    trained ones do, have less.
    """

    weights: Array
    error: float


def combine(snapshots: Sequence[tuple[int, float]], wanted: tuple[int, float]) -> Combination:
    """The sum of snapshots that is nearest to an average which was not kept (Algorithm 3, Eq. 151).

    ‖Σ x_k p_k - p‖²  is least among  Σ x_k = 1
    ∫ p_a p_b = (γ_a + 1) (γ_b + 1) / (γ_a + γ_b + 1) (t_a / t_b)^γ_b / t_b,   t_a <= t_b

    snapshots: K pairs (step, width), of any steps and widths
    wanted: (step, width), of a step up to the last snapshot's

    A snapshot that is wanted itself has the weight 1. The paper fits without the sum of 1; then few
    snapshots change the size of all weights, also of those that training did not move.

    The profiles are those in continuous time, of closed forms. Those by steps would need sums over
    all steps, to gain little: the average is the same where weights are held for a step, and what
    is left over, r(τ), has sums r_i over each step with Σ r_i² <= ∫ r² dτ.

    ValueError if there are no snapshots, or if the wanted step is after all of them.
    """
    if not snapshots:
        raise ValueError("there are no snapshots to combine")
    pairs = [*snapshots, wanted]
    for step, _ in pairs:
        _check_step(step)
    last = max(step for step, _ in snapshots)
    if wanted[0] > last:
        raise ValueError(f"the wanted step {wanted[0]} is after the last snapshot's, {last}")
    t = np.array([step for step, _ in pairs], np.float64) / wanted[0]
    gamma = np.array([exponent(width) for _, width in pairs])
    inner = _inner_products(t, gamma)
    count, size = len(snapshots), np.sqrt(np.diag(inner))
    # Of profiles of norm 1, with a last row and column for the multiplier of the sum.
    system, right = inner / size / size[:, None], np.ones(count + 1)
    right[:-1] = system[:-1, -1]
    system[-1], system[:, -1] = size[-1] / size, size[-1] / size
    system[-1, -1], right[-1] = 0, 1
    solution = cast(Array, np.linalg.lstsq(system, right)[0])  # of twice the same, half each
    x = solution[:-1] * size[-1] / size[:-1]
    rest = np.append(x, -1.0)
    return Combination(x, math.sqrt(max(float(rest @ inner @ rest), 0.0)) / float(size[-1]))


def _inner_products(t: Array, gamma: Array) -> Array:
    """∫ p_a p_b of each pair of profiles: (N, N), of t (N,) and γ (N,)."""
    power = np.minimum(t[:, None] / t, 1.0) ** gamma  # (t_a / t_b)^γ_b where t_a <= t_b, else 1
    scale = (gamma + 1) * (gamma[:, None] + 1) / (gamma + gamma[:, None] + 1)
    return scale * np.minimum(power, power.T) / np.maximum(t, t[:, None])


def _check_step(step: int) -> None:
    if step < 1:
        raise ValueError(f"a step must be at least 1, but is {step}")
