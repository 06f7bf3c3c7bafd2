"""Schedules: betas and ᾱ against exact rationals, the papers' formulas, inverses and errors."""

from __future__ import annotations

import dataclasses
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ddpm_core import VP, cosine, from_betas, large, linear, zero_terminal_snr
from ddpm_core.levels import steps_of
from ddpm_core.schedules import (
    EDM,
    Discrete,
    Flow,
    LinearLogSNR,
    alphabar_sigmoid,
    beta_sigmoid,
    from_alpha_bars,
    quadratic,
    scaled_linear,
)
from ddpm_core.schedules.discrete import check_T
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
NAMED = [linear, quadratic, scaled_linear, cosine, beta_sigmoid, alphabar_sigmoid]


def falling(schedule):
    """The levels T, T - 1, ..., 0."""
    return schedule(np.arange(schedule.T, -1, -1, dtype=np.float64))


def betas_of(schedule):
    """β_1 .. β_T: the variance of the forward steps between neighbours."""
    return large(*steps_of(falling(schedule)))[::-1]


def exact_alpha_bars(betas):
    """ᾱ_1 .. ᾱ_T as exact rationals of the given floats."""
    product, out = Fraction(1), []
    for beta in betas.tolist():
        product *= 1 - Fraction(beta)
        out.append(product)
    return out


@given(strategies.betas(max_T=60))
def test_alpha_bar_is_the_product(betas):
    """ᾱ_t = Π (1 - β_i), against exact rational arithmetic; so is 1 - ᾱ_t (Ho et al. 2020)."""
    level = from_betas(betas)(np.arange(1, len(betas) + 1))
    exact = exact_alpha_bars(betas)
    # T roundings of the sum of logs, which exp turns relative to |log ᾱ| <= 60.
    tolerance = (8 + len(betas)) * EPS * 60
    np.testing.assert_allclose(level.alpha**2, [float(a) for a in exact], rtol=tolerance)
    np.testing.assert_allclose(level.sigma**2, [float(1 - a) for a in exact], rtol=tolerance)


@given(strategies.betas())
def test_betas_are_recovered(betas):
    """β_t = τ(t, t - 1) σ_t²: the schedule holds what it was made from."""
    schedule = from_betas(betas)
    scale = np.maximum(1, np.abs(schedule.logsnr[1:]))  # λ is rounded, and the difference of two
    assert np.all(np.abs(betas_of(schedule) - betas) <= 4 * EPS * scale)


@given(strategies.betas())
def test_alpha_bars_are_recovered(betas):
    """`from_alpha_bars` of a schedule's α² is that schedule."""
    schedule = from_betas(np.minimum(betas, 0.3)[:50])
    abar = schedule(np.arange(1, schedule.T + 1)).alpha ** 2
    again = from_alpha_bars(abar)
    # ᾱ in a float64 has lost log-SNR's precision near 1: dλ = dᾱ / (ᾱ (1 - ᾱ)).
    loss = 8 * EPS * (1 / (1 - abar) + np.abs(schedule.logsnr[1:]))
    assert np.all(np.abs(np.subtract(again.logsnr[1:], schedule.logsnr[1:])) <= loss)


@given(strategies.discrete_schedules())
def test_snr_falls_and_time_zero_is_clean(schedule):
    """Log-SNR falls at every step, from +inf at time 0, and is finite before the last."""
    logsnr = np.asarray(schedule.logsnr)
    assert logsnr[0] == math.inf
    assert np.all(np.isfinite(logsnr[1:]))
    assert np.all(np.diff(logsnr[1:]) < 0)
    assert schedule(0)[1:] == (math.inf, 1.0, 0.0)


# Lin et al. 2024 (arXiv 2305.08891), Table 1: SNR(T) and sqrt(ᾱ_T) of three schedules at T = 1000.
@pytest.mark.parametrize(
    ("make", "snr", "alpha"),
    [
        (linear, 4.035993e-05, 0.006353),
        (cosine, 2.428735e-09, 4.928220e-05),
        (scaled_linear, 0.004682, 0.068265),
    ],
)
def test_terminal_snr_of_lin_et_al(make, snr, alpha):
    """SNR(T) and α_T are those of Lin et al. 2024, Table 1."""
    t = make()(1000)
    # Half a unit of the digits printed; their cosine is a float32 product of 1000 factors.
    rtol = {linear: 2e-7, cosine: 2e-5, scaled_linear: 2e-4}[make]
    assert math.isclose((t.alpha / t.sigma) ** 2, snr, rel_tol=rtol)
    assert math.isclose(t.alpha, alpha, rel_tol=max(rtol, 1e-4) if make is not cosine else rtol)


@pytest.mark.parametrize("make", NAMED)
def test_named_schedules_have_a_thousand_steps(make):
    """T is 1000, as in Ho et al. 2020, section 4, unless it is given."""
    assert make().T == 1000


def test_linear_is_of_ho_et_al():
    """β from 1e-4 to 0.02 in equal steps (Ho et al. 2020, section 4)."""
    wanted = [Fraction(1, 10**4) + Fraction(199, 10**4) * i / 999 for i in range(1000)]
    atol = 4 * EPS * 10.2  # the largest |λ|
    np.testing.assert_allclose(betas_of(linear()), [float(b) for b in wanted], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("make", "first", "last"), [(quadratic, 1e-4, 0.02), (scaled_linear, 0.00085, 0.012)]
)
def test_square_root_of_beta_is_linear(make, first, last):
    """sqrt(β) has equal steps, between the ends of the code of its authors."""
    beta = betas_of(make(300))
    root = np.sqrt(beta)
    atol = 8 * EPS * 10 / math.sqrt(first)  # β's rounding in units of |λ|, over sqrt
    np.testing.assert_allclose(np.diff(root), np.diff(root).mean(), rtol=0, atol=atol)
    np.testing.assert_allclose(beta[[0, -1]], [first, last], rtol=0, atol=40 * EPS)


@given(st.integers(2, 400), st.sampled_from([0.0, 0.008, 0.1]))
@example(1000, 0.008)
def test_cosine_is_of_nichol_and_dhariwal(T, s):
    """ᾱ_t = f(t) / f(0), f(t) = cos²((t/T + s) / (1 + s) π/2) (Nichol & Dhariwal 2021, Eq. 17)."""
    schedule = cosine(T, s=s)
    f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
    beta = 1 - f[1:] / f[:-1]
    free = np.cumprod(beta < 0.999).astype(bool)
    alpha = schedule(np.arange(1, T + 1)).alpha
    # cos near its zero: an angle's rounding over the distance to it, 1 / T at least.
    np.testing.assert_allclose((alpha**2)[free], (f[1:] / f[0])[free], rtol=20 * EPS * T)
    assert math.isclose(betas_of(schedule)[-1], 0.999, rel_tol=1e-12)
    assert free.sum() == T - 1 or T < 3


@given(st.integers(1, 300))
def test_beta_sigmoid_is_of_geodiff(T):
    """β = sigmoid(linspace(-6, 6)) (β_T - β_1) + β_1 (Xu et al. 2022, GeoDiff's code)."""
    wanted = 1 / (1 + np.exp(-np.linspace(-6, 6, T))) * (0.02 - 1e-4) + 1e-4
    np.testing.assert_allclose(betas_of(beta_sigmoid(T)), wanted, rtol=0, atol=60 * EPS)


@pytest.mark.parametrize("shape", [(-3, 3, 1.0), (0, 3, 0.3), (-3, 3, 0.9), (0, 3, 1.1)])
@given(T=st.integers(2, 300))
def test_alphabar_sigmoid_is_of_chen(T, shape):
    """ᾱ = (v_end - sigmoid(u)) / (v_end - v_start), at least 1e-9 (Chen 2023, Algorithm 1)."""
    start, end, width = shape
    sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x) / width))
    u = np.arange(1, T + 1) / T * (end - start) + start
    wanted = (sigmoid(end) - sigmoid(u)) / (sigmoid(end) - sigmoid(start))
    options = {"start": start, "end": end, "width": width} if shape != (-3, 3, 1.0) else {}
    schedule = alphabar_sigmoid(T, **options)
    got = schedule(np.arange(1, T + 1)).alpha ** 2
    # The paper's form subtracts numbers near 1, and divides by their range, 0.4 at least.
    np.testing.assert_allclose(got, np.maximum(wanted, 1e-9), rtol=40 * EPS, atol=10 * EPS)
    assert math.isclose(got[-1], 1e-9, rel_tol=40 * EPS)


@given(st.integers(25, 400))
def test_rescaled_linear_keeps_its_noise(T):
    """Betas times 1000 / T sum to 10.05 whatever T is, so -log ᾱ_T lies just above it."""
    schedule = linear(T, rescale=True)
    beta = betas_of(schedule)
    assert math.isclose(beta.sum(), 10.05, rel_tol=1e-12)
    noise = -2 * math.log(schedule(T).alpha)
    # -log(1 - β) = β + β² / 2 + ..., between its first terms and those of a geometric series.
    assert 10.05 + (beta**2).sum() / 2 <= noise
    assert noise <= 10.05 + (beta**2 / (2 * (1 - beta))).sum()


@pytest.mark.parametrize("T", [1, 20, 100, 4000])
def test_linear_asks_how_to_scale(T):
    """At T other than 1000 two processes go by this name, so it asks; 1000 is one of them."""
    with pytest.raises(ValueError, match=rf"linear\(T={T}\) is ambiguous.*rescale=True.*=False"):
        linear(T)
    assert linear(1000, rescale=True) == linear(1000, rescale=False) == linear(1000)
    assert linear(T, rescale=False).T == T


@pytest.mark.parametrize("T", [1, 2, 19, 20])
def test_linear_cannot_rescale_to_few_steps(T):
    """Betas of 0.02 times 1000 / T are below 1 only where T > 20."""
    with pytest.raises(ValueError, match=rf"linear\(T={T}, rescale=True\) .* above 20"):
        linear(T, rescale=True)
    assert linear(21, rescale=True).T == 21


@given(strategies.discrete_schedules().filter(lambda s: s.T > 1))
def test_zero_terminal_snr_is_of_lin_et_al(schedule):
    """sqrt(ᾱ) is shifted and scaled: its last is 0, its first stays (Lin et al. 2024, Alg. 1)."""
    old = schedule(np.arange(1, schedule.T + 1)).alpha
    end = zero_terminal_snr(schedule)
    new = end(np.arange(1, schedule.T + 1)).alpha
    assert new[-1] == 0
    assert end.logsnr[-1] == -math.inf
    assert end.logsnr[1] == schedule.logsnr[1]
    # An affine map keeps ratios of differences; α from λ carries |λ| roundings.
    shares = (old - old[-1]) / (old[0] - old[-1])
    tolerance = 16 * EPS / (old[0] - old[-1])
    np.testing.assert_allclose(new, shares * new[0], rtol=0, atol=tolerance)


@given(strategies.schedules(zero_terminal=True))
def test_schedules_are_values(schedule):
    """A schedule is immutable, hashable, and equal to one that is made alike."""
    again = type(schedule)(**dataclasses.asdict(schedule))
    assert again == schedule
    assert len({again, schedule}) == 1
    with pytest.raises(AttributeError):
        schedule.T = 3


def test_a_list_becomes_hashable():
    """`Discrete` keeps a tuple of floats, whatever sequence it was given."""
    assert Discrete([math.inf, -700]).logsnr == (math.inf, -700.0)
    assert hash(Discrete([math.inf, 1, 0])) == hash(Discrete(np.asarray([math.inf, 1.0, 0.0])))


@given(st.floats(1e-6, 1), st.floats(0.01, 1), st.floats(1, 30))
def test_vp_is_of_song_et_al(time, low, high):
    """α = exp(-t² (β_max - β_min) / 4 - t β_min / 2), σ² = 1 - α² (Song et al. 2021, Eq. 33)."""
    t = VP(low, high)(time)
    exponent = -0.25 * time**2 * (high - low) - 0.5 * time * low
    # α = exp(λ / 2 - ...) takes λ's rounding as relative.
    rtol = 8 * EPS * (2 + abs(t.logsnr))
    assert math.isclose(t.alpha, math.exp(exponent), rel_tol=rtol)
    assert math.isclose(t.sigma**2, -math.expm1(2 * exponent), rel_tol=rtol)


def test_vp_is_the_limit_of_linear():
    """log ᾱ of rescaled `linear` tends to VP's, and its distance halves as T doubles."""
    errors = []
    for T in (500, 1000, 2000, 4000):
        share = np.asarray([0.25, 0.5, 1.0])
        discrete, limit = linear(T, rescale=True)(share * T), VP(0.1, 20.0)(share)
        errors.append(np.abs(np.log(discrete.alpha / limit.alpha)))
    ratios = np.asarray(errors[:-1]) / np.asarray(errors[1:])
    np.testing.assert_allclose(ratios, 2, rtol=0.02)  # 2 + O(1 / T)


def test_edm_is_of_karras_et_al():
    """σ_min = 0.002 and σ_max = 80 (Karras et al. 2022, Table 1)."""
    assert EDM() == EDM(0.002, 80.0)


@given(st.floats(0, 1), st.floats(4, 15), st.floats(-15, -4))
def test_linear_log_snr_has_equal_steps(time, clean, noisy):
    """λ falls from `clean` to `noisy` at one rate (Kingma et al. 2021, "fixed linear")."""
    schedule = LinearLogSNR(clean, noisy)
    assert math.isclose(schedule(0.0).logsnr, clean)
    assert math.isclose(schedule(1.0).logsnr, noisy)
    got = schedule(time).logsnr + schedule(1 - time).logsnr
    assert math.isclose(got, clean + noisy, abs_tol=8 * EPS * 30)


@pytest.mark.parametrize(
    ("make", "bad", "message"),
    [
        (from_betas, [0.1, 0.0], r"betas\[1\] = 0\.0"),
        (from_betas, [0.1, 0.2, 1.0], r"betas\[2\] = 1\.0"),
        (from_betas, [-0.1], r"betas\[0\] = -0\.1"),
        (from_betas, [0.1, math.nan], r"betas\[1\] = nan"),
        (from_betas, [0.1, math.inf], r"betas\[1\] = inf"),
        (from_betas, [], r"betas must be T >= 1 numbers, but has shape \(0,\)"),
        (from_betas, 0.1, r"betas must be T >= 1 numbers, but has shape \(\)"),
        (from_betas, [[0.1, 0.2]], r"betas must be T >= 1 numbers, but has shape \(1, 2\)"),
        (from_betas, [0.999] * 200, r"logsnr\[102\] = -704\.\d+ is below -700"),
        (from_betas, [0.5, 1e-17], r"logsnr\[2\] = .* is not below logsnr\[1\] = "),
        (from_alpha_bars, [1.0, 0.9], r"alpha_bars\[0\] = 1\.0; leave out alpha_bar_0 = 1"),
        (from_alpha_bars, [1.5, 1.0], r"alpha_bars\[0\] = 1\.5\Z"),
        (from_alpha_bars, [0.5, 0.3, 0.4], r"alpha_bars\[2\] = 0\.4 is not below alpha_bars\[1\]"),
        (from_alpha_bars, [0.9, 0.95], r"alpha_bars\[1\] = 0\.95 is not below alpha_bars\[0\]"),
        (from_alpha_bars, [0.9, 0.9], r"alpha_bars\[1\] = 0\.9 is not below alpha_bars\[0\]"),
        (from_alpha_bars, [0.9, 0.0, 0.0], r"must lie in \(0, 1\), but alpha_bars\[1\] = 0\.0"),
        (from_alpha_bars, [0.9, -0.1], r"alpha_bars\[1\] = -0\.1"),
        (from_alpha_bars, [0.9, math.nan, 0.1], r"alpha_bars\[1\] = nan"),
        (from_alpha_bars, [], r"alpha_bars must be T >= 1 numbers"),
        (from_alpha_bars, [[0.9]], r"alpha_bars must be T >= 1 numbers, but has shape \(1, 1\)"),
        (from_alpha_bars, [0.9, 1e-310], r"logsnr\[2\] = -713\.\d+ is below -700"),
        (Discrete, [math.inf], r"T \+ 1 >= 2 numbers, but has shape \(1,\)"),
        (Discrete, [3.0, 2.0], r"logsnr\[0\] is clean data and must be inf, but is 3\.0"),
        (Discrete, [math.inf, 1, 2], r"logsnr\[2\] = 2\.0 is not below logsnr\[1\] = 1\.0"),
        (Discrete, [math.inf, 1, math.nan], r"logsnr\[2\] = nan is not below logsnr\[1\] = 1\.0"),
        (Discrete, [math.inf, math.inf], r"logsnr\[1\] = inf is not below logsnr\[0\] = inf"),
        (Discrete, [math.inf, -701.0], r"logsnr\[1\] = -701\.0 is below -700"),
        (Discrete, [math.inf, -701.0, -math.inf], r"logsnr\[1\] = -701\.0 is below -700"),
    ],
)
def test_bad_tables_are_named(make, bad, message):
    """Every table that is no schedule is refused with its index and value."""
    with pytest.raises(ValueError, match=message):
        make(bad)


@pytest.mark.parametrize("make", NAMED)
@pytest.mark.parametrize("T", [10**6 + 1, 10**12])
def test_lengths_that_fill_the_memory_are_refused(make, T):
    """T is at most 10^6; nothing of its size is made before that is known."""
    with pytest.raises(ValueError, match=f"T must be at most 1000000, but is {T}"):
        make(T)


def test_tables_that_fill_the_memory_are_refused():
    """So are betas and ᾱ of more than 10^6 steps, and log-SNRs."""
    many = np.broadcast_to(0.5, (10**6 + 1,))
    for make in (from_betas, from_alpha_bars):
        with pytest.raises(ValueError, match="T must be at most 1000000, but is 1000001"):
            make(many)
    with pytest.raises(ValueError, match="T must be at most 1000000, but is 1000001"):
        Discrete(np.append(many, 0.0))
    check_T(10**6)


@pytest.mark.parametrize(
    "make", [*NAMED, VP, LinearLogSNR, Flow, EDM, lambda: zero_terminal_snr(linear())]
)
def test_schedules_pickle(make):
    """A schedule that was pickled, as for another process, is the same."""
    schedule = make()
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)


@pytest.mark.parametrize("make", NAMED)
@pytest.mark.parametrize("T", [0, -3, 2.5])
def test_bad_lengths_are_named(make, T):
    """T is an integer of at least 1."""
    with pytest.raises(ValueError, match=f"T must be an integer of at least 1, but is {T}"):
        make(T)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: linear(beta_1=0.0),
            "0 < beta_1 <= beta_T < 1 must hold, but they are 0.0 and 0.02",
        ),
        (lambda: linear(beta_T=1.0), "must hold, but they are 0.0001 and 1.0"),
        (lambda: quadratic(beta_1=0.03), "must hold, but they are 0.03 and 0.02"),
        (lambda: cosine(9, s=-0.1), "s must not be negative, but is -0.1"),
        (lambda: cosine(9, max_beta=-1.0), r"betas\[0\] = -1\.0"),
        (lambda: alphabar_sigmoid(9, start=3.0), r"start < end .* they are 3\.0, 3\.0"),
        # ᾱ is 5e-10 at time 9, and 6e-9 at time 8.
        (
            lambda: alphabar_sigmoid(10, start=0.0, width=3 / 24.5),
            "falls below 1e-9 before its end",
        ),
        (
            lambda: alphabar_sigmoid(9, width=0.0),
            r"width > 0 must hold, but they are -3\.0, 3\.0 and 0\.0",
        ),
        (lambda: zero_terminal_snr(from_betas([0.1])), "one step cannot both keep alpha_1"),
        (lambda: VP(0.0, 20.0), r"beta_min <= beta_max must hold, but they are 0\.0 and 20\.0"),
        (lambda: VP(3.0, 2.0), r"they are 3\.0 and 2\.0"),
        (lambda: VP(700.5, 700.5), "log alpha_bar at time 1 is -700.5, below -700"),
        (lambda: VP(math.nan, 2.0), r"they are nan and 2\.0"),
        (lambda: VP(0.1, math.inf), r"they are 0\.1 and inf"),
        (lambda: LinearLogSNR(-5.0, 13.3), r"but they are 13\.3 and -5\.0"),
        (lambda: LinearLogSNR(math.inf, 0.0), r"but they are 0\.0 and inf"),
        (lambda: LinearLogSNR(math.nan, 0.0), r"but they are 0\.0 and nan"),
        (lambda: LinearLogSNR(0.0, -math.inf), r"but they are -inf and 0\.0"),
        (lambda: LinearLogSNR(1.0, 1.0), r"but they are 1\.0 and 1\.0"),
        (lambda: Flow(0.0), r"shift must be positive and finite, but is 0\.0"),
        (lambda: Flow(math.inf), r"shift must be positive and finite, but is inf"),
        (lambda: Flow(math.nan), r"shift must be positive and finite, but is nan"),
        (lambda: EDM(0.0, 80.0), r"both finite, but they are 0\.0 and 80\.0"),
        (lambda: EDM(80.0, 80.0), r"both finite, but they are 80\.0 and 80\.0"),
        (lambda: EDM(0.002, math.inf), r"both finite, but they are 0\.002 and inf"),
    ],
)
def test_bad_parameters_are_named(make, message):
    """Parameters that give no schedule are refused with their values."""
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_at_their_borders():
    """β may be constant, and log ᾱ(1) be -700: log ᾱ(t) = -β t."""
    level = VP(700.0, 700.0)(np.asarray([0.5, 1.0]))
    np.testing.assert_allclose(level.alpha, np.exp([-175, -350]), rtol=700 * EPS)
    np.testing.assert_allclose(betas_of(linear(beta_1=0.01, beta_T=0.01)), 0.01, rtol=1e-9)
