"""Discrete schedules by name, each from its paper."""

from __future__ import annotations

import math

import numpy as np

from ddpm_core.arrays import is_number, log_sigmoid, shown
from ddpm_core.schedules.discrete import Discrete, check_T, from_betas
from ddpm_core.typing import Array


def linear(
    T: int = 1000, *, rescale: bool | None = None, beta_1: float = 1e-4, beta_T: float = 0.02
) -> Discrete:
    """β linear in time from 1e-4 to 0.02, at T = 1000 (Ho et al. 2020, section 4).

    rescale: must be given for any other T. True multiplies β by 1000 / T, so that ᾱ_T stays about
        the same (the code of Nichol & Dhariwal 2021); T must be above 1000 beta_T, which is 20.
        False keeps the betas as they are
    beta_1, beta_T: β at times 1 and T, before it is multiplied; 0 < beta_1 <= beta_T < 1
    """
    _check_T(T)
    if T != 1000 and rescale is None:
        raise ValueError(
            f"linear(T={T}) is ambiguous: pass rescale=True to multiply beta by 1000 / T, or "
            f"rescale=False to run from {beta_1} to {beta_T} in {T} steps"
        )
    _check_ends(beta_1, beta_T)
    factor = 1000 / T if rescale else 1.0
    if beta_T * factor >= 1:
        raise ValueError(
            f"linear(T={T}, rescale=True) would end at beta = {beta_T * factor:g}: T must be above "
            f"{1000 * beta_T:g}"
        )
    return from_betas(np.linspace(beta_1, beta_T, T) * factor)


def quadratic(T: int = 1000, *, beta_1: float = 1e-4, beta_T: float = 0.02) -> Discrete:
    """sqrt(β) linear in time (the "quad" schedule of the code of Ho et al. 2020).

    The betas do not depend on T: with fewer steps than 1000, more of the data is left at the end.
    """
    _check_T(T)
    _check_ends(beta_1, beta_T)
    return from_betas(np.linspace(math.sqrt(beta_1), math.sqrt(beta_T), T) ** 2)


def scaled_linear(T: int = 1000, *, beta_1: float = 0.00085, beta_T: float = 0.012) -> Discrete:
    """`quadratic` from 0.00085 to 0.012 (the schedule of the code of Rombach et al. 2022)."""
    return quadratic(T, beta_1=beta_1, beta_T=beta_T)


def cosine(T: int = 1000, *, s: float = 0.008, max_beta: float = 0.999) -> Discrete:
    """ᾱ(t) ∝ cos²((t/T + s) / (1 + s) · π/2), β at most 0.999 (Nichol & Dhariwal 2021, Eq. 17).

    1 - cos² b / cos² a is computed as sin(b - a) sin(b + a) / cos² a, which does not cancel.
    """
    _check_T(T)
    if s < 0:
        raise ValueError(f"s must not be negative, but is {s}")
    angle = (np.arange(T + 1) / T + s) / (1 + s) * (math.pi / 2)
    a, b = angle[:-1], angle[1:]
    beta = np.sin(b - a) * np.sin(b + a) / np.cos(a) ** 2
    return from_betas(np.minimum(beta, max_beta))


def beta_sigmoid(T: int = 1000, *, beta_1: float = 1e-4, beta_T: float = 0.02) -> Discrete:
    """β = β_1 + (β_T - β_1) sigmoid(u), u linear from -6 to 6 (the form of Xu et al. 2022).

    β_1 and β_T are those of `linear`, whatever T is; Xu et al. use others.
    """
    _check_T(T)
    _check_ends(beta_1, beta_T)
    share = np.exp(log_sigmoid(np.linspace(-6.0, 6.0, T)))
    return from_betas(beta_1 + (beta_T - beta_1) * share)


def alphabar_sigmoid(
    T: int = 1000, *, start: float = -3.0, end: float = 3.0, width: float = 1.0
) -> Discrete:
    """ᾱ a falling sigmoid in time, scaled to run from 1 to 0 (Chen 2023; Jabri et al. 2023).

    ᾱ(t) = (S(b) - S(u)) / (S(b) - S(a)), at least 1e-9,   S(u) = 1 / (1 + e^-u),
    u = a + (b - a) t / T,   a = start / width,   b = end / width

    start, end: start < end
    width: above 0, the paper's temperature; a smaller one makes a steeper schedule

    ValueError if ᾱ falls below 1e-9 before the last time.
    """
    _check_T(T)
    if not start < end or width <= 0:
        raise ValueError(
            f"start < end and width > 0 must hold, but they are {start}, {end} and {width}"
        )
    a, b = start / width, end / width
    u = np.linspace(a, b, T + 1)[1:]
    # S(p) - S(q) = sinh((p - q) / 2) / (2 cosh(p / 2) cosh(q / 2)): in ᾱ / (1 - ᾱ) cosh(u / 2)
    # cancels, and no two numbers are subtracted.
    with np.errstate(divide="ignore"):
        falling = _log_sinh((b - u) / 2) - _log_sinh((u - a) / 2)
    logsnr = falling + _log_cosh(a / 2) - _log_cosh(b / 2)
    floor = math.log(1e-9) - math.log1p(-1e-9)
    if np.count_nonzero(logsnr <= floor) > 1:
        raise ValueError(
            f"alphabar_sigmoid(T={T}, start={start}, end={end}, width={width}) falls below 1e-9 "
            f"before its end; use a larger width"
        )
    return Discrete((math.inf, *np.maximum(logsnr, floor).tolist()))


def _log_sinh(x: Array) -> Array:
    return x + np.log(-np.expm1(-2 * x)) - math.log(2)


def _log_cosh(x: float) -> float:
    return abs(x) + math.log1p(math.exp(-2 * abs(x))) - math.log(2)


def zero_terminal_snr(schedule: Discrete) -> Discrete:
    """The schedule with sqrt(ᾱ) shifted and scaled: ᾱ_T = 0, ᾱ_1 kept (Lin et al. 2024, Alg. 1).

    A network that predicts eps cannot be read where alpha = 0; use v.

    >>> zero_terminal_snr(linear(1000))(1000).alpha
    0.0
    """
    if schedule.T == 1:
        raise ValueError("a schedule of one step cannot both keep alpha_1 and end at alpha = 0")
    t = schedule(np.arange(1, schedule.T + 1))
    first, last = t.alpha[0], t.alpha[-1]
    alpha = (t.alpha - last) * (first / (first - last))
    # 1 - alpha, from 1 - t.alpha = t.sigma² / (1 + t.alpha), which does not cancel near clean data.
    gap = t.sigma**2 / (1 + t.alpha)
    gap = (first * gap - last * gap[0]) / (first - last)
    with np.errstate(divide="ignore"):
        logsnr = 2 * np.log(alpha) - np.log(gap) - np.log1p(alpha)
    return Discrete((math.inf, schedule.logsnr[1], *logsnr[1:].tolist()))


def _check_T(T: int) -> None:
    if not (is_number(T) and hasattr(T, "__index__") and T >= 1):
        raise ValueError(f"T must be an integer of at least 1, but is {shown(T)}")
    check_T(T)


def _check_ends(beta_1: float, beta_T: float) -> None:
    if not 0 < beta_1 <= beta_T < 1:
        raise ValueError(f"0 < beta_1 <= beta_T < 1 must hold, but they are {beta_1} and {beta_T}")
