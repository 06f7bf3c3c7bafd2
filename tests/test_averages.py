"""Averages of weights: closed forms by quadrature, the update itself, and fits beside the truth."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.integrate import quad

from ddpm_core.averages import WIDEST, combine, exponent, power_decay, profile, width

EPS = np.finfo(np.float64).eps
STEPS = 2000
EVENLY = [(STEPS * k // 8, w) for k in range(1, 9) for w in (0.05, 0.1)]

gammas = st.floats(0, 100)
widths = st.floats(0.02, WIDEST)
snapshots = st.tuples(st.integers(1, 1000), widths)


def density(tau, step, w):
    """Eq. 121."""
    gamma = exponent(w)
    return (gamma + 1) / step * (tau / step) ** gamma if tau <= step else 0.0


def product(f, g, *at):
    """∫ f g over time, whose profiles end at some steps."""
    parts = pairwise(sorted({0, *at}))
    return sum(quad(lambda x: f(x) * g(x), a, b, epsabs=1e-18, epsrel=1e-10)[0] for a, b in parts)


def tracked(walk, w):
    """The average of the update after each step."""
    average, found = np.full(walk.shape[1], np.nan), []
    for step, weights in enumerate(walk, 1):
        beta = power_decay(step, exponent(w))
        average = weights if beta == 0 else beta * average + (1 - beta) * weights
        found.append(average)
    return np.array(found)


@given(gamma=gammas)
def test_width_is_a_standard_deviation(gamma):
    """The moments of τ / t under p, by quadrature."""
    moments = [quad(lambda x, n=n: (gamma + 1) * x ** (gamma + n), 0, 1)[0] for n in range(3)]
    assert moments[0] == pytest.approx(1)
    # The variance of a narrow profile is a small difference of numbers near 1.
    variance = moments[2] - moments[1] ** 2
    assert width(gamma) ** 2 == pytest.approx(variance, rel=1e-8, abs=8 * EPS)


@given(w=st.floats(1e-6, WIDEST))
def test_exponent_is_the_inverse(w):
    assert width(max(exponent(w), 0)) == pytest.approx(w, rel=8 * EPS)


@given(gamma=gammas)
@example(gamma=EPS)  # the formula rounds to more than 1 / √12
def test_width_is_the_inverse(gamma):
    # γ + 7/3 is a product; near γ = 0 what is left of it has its rounding.
    assert exponent(width(gamma)) == pytest.approx(gamma, rel=16 * EPS, abs=64 * EPS)


@pytest.mark.parametrize("tiny", [1e-300, 1e-9])
def test_exponent_of_tiny_widths(tiny):
    """γ tends to 1 / width."""
    assert exponent(tiny) * tiny == pytest.approx(1, abs=4 * tiny + 8 * EPS)


@given(step=st.integers(1, 60), w=widths)
def test_profile_is_that_of_the_update(step, w):
    """The telescoped weights are what each step's weights get by the update."""
    found = tracked(np.eye(step), w)[-1]
    np.testing.assert_allclose(profile(step, w), found, rtol=0, atol=4 * EPS * step)


@given(step=st.integers(1, 60), w=widths)
def test_profile_is_the_integral_over_each_step(step, w):
    expected = [quad(density, i, i + 1, args=(step, w))[0] for i in range(step)]
    np.testing.assert_allclose(profile(step, w), expected, rtol=1e-7, atol=4 * EPS)


@given(one=snapshots, share=st.floats(0, 1), w=widths)
def test_error_of_one_snapshot(one, share, w):
    """‖p_1 - p‖ / ‖p‖ by quadrature; a lone snapshot has the weight 1."""
    wanted = (max(1, round(share * one[0])), w)
    fit = combine([one], wanted)
    assert fit.weights == pytest.approx([1], rel=8 * EPS)
    ends = one[0], wanted[0]
    left = lambda x: density(x, *one) - density(x, *wanted)
    p = lambda x: density(x, *wanted)
    expected = math.sqrt(product(left, left, *ends) / product(p, p, *ends))
    assert fit.error == pytest.approx(expected, rel=1e-7, abs=1e-7)


@given(first=snapshots, second=snapshots, share=st.floats(0.1, 1), w=widths)
def test_weights_of_two_snapshots(first, second, share, w):
    """The point of a line that is nearest to the wanted profile, by quadrature."""
    wanted = (max(1, round(share * max(first[0], second[0]))), w)
    ends = first[0], second[0], wanted[0]
    across = lambda x: density(x, *first) - density(x, *second)
    off = lambda x: density(x, *wanted) - density(x, *second)
    p = lambda x: density(x, *wanted)
    apart = product(across, across, *ends)
    assume(apart > 1e-3 * product(p, p, *ends))  # of two alike, any share of the weight is right
    x = product(off, across, *ends) / apart
    assert combine([first, second], wanted).weights == pytest.approx([x, 1 - x], rel=1e-6, abs=1e-6)


@given(kept=st.lists(snapshots, min_size=1, max_size=8, unique=True), index=st.integers(0, 7))
def test_a_kept_average_is_itself(kept, index):
    wanted = kept[index % len(kept)]
    fit = combine(kept, wanted)
    assert fit.error < 1e-7
    profiles = np.array([np.pad(profile(*s), (0, 1000 - s[0])) for s in kept])
    expected = np.pad(profile(*wanted), (0, 1000 - wanted[0]))
    found = fit.weights @ profiles
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.linalg.norm(expected))


def test_one_weight_of_a_kept_average():
    """Where no other snapshot is near, all others have none; twice the same share it."""
    for index, wanted in enumerate(EVENLY):
        expected = np.eye(len(EVENLY))[index]
        np.testing.assert_allclose(combine(EVENLY, wanted).weights, expected, atol=1e-12)
    twice = combine([EVENLY[3], *EVENLY], EVENLY[3])
    np.testing.assert_allclose(twice.weights, np.eye(17)[[0, 4]].sum(axis=0) / 2, atol=1e-12)


@given(
    kept=st.lists(snapshots, min_size=1, max_size=8),
    more=snapshots,
    share=st.floats(0, 1),
    w=widths,
    factor=st.integers(1, 1000),
)
def test_what_holds_of_a_fit(kept, more, share, w, factor):
    """The weights sum to 1; only ratios of steps count; one more snapshot makes no fit worse."""
    wanted = (max(1, round(share * max(step for step, _ in kept))), w)
    fit = combine(kept, wanted)
    assert fit.weights.sum() == pytest.approx(1, abs=1e-12 * abs(fit.weights).sum())
    longer = combine([(step * factor, w) for step, w in kept], (wanted[0] * factor, w))
    assert longer.error == pytest.approx(fit.error, rel=1e-6, abs=1e-6)
    assert combine([*kept, more], wanted).error <= fit.error + 1e-6


@pytest.mark.parametrize("wanted", [(STEPS, 0.03), (STEPS, 0.07), (STEPS, 0.2), (1700, 0.12)])
def test_white_noise_is_off_by_the_error(wanted):
    """Averages kept of independent weights, combined, against the average that was not kept."""
    noise = np.random.default_rng(0).standard_normal((STEPS, 4000))
    kept = {w: tracked(noise, w) for w in (0.05, 0.1)}
    truth = profile(*wanted) @ noise[: wanted[0]]
    fit = combine(EVENLY, wanted)
    found = fit.weights @ np.array([kept[w][step - 1] for step, w in EVENLY])
    off = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    assert off == pytest.approx(fit.error, rel=4 / math.sqrt(4000))


@pytest.mark.parametrize("wanted", [(STEPS, 0.03), (STEPS, 0.07), (STEPS, 0.2), (1700, 0.12)])
def test_a_random_walk_is_off_by_less(wanted):
    """Weights that change slowly, about values that they began with: the error is an upper bound,
    and by far. That the weights sum to 1 is what keeps where they began.
    """
    rng = np.random.default_rng(0)
    walk = rng.standard_normal((STEPS, 400)).cumsum(axis=0) + 1000 * rng.standard_normal(400)
    kept = {w: tracked(walk, w) for w in (0.05, 0.1)}
    truth = tracked(walk, wanted[1])[wanted[0] - 1]
    fit = combine(EVENLY, wanted)
    found = fit.weights @ np.array([kept[w][step - 1] for step, w in EVENLY])
    assert np.linalg.norm(found - truth) < 1.5 * fit.error * np.linalg.norm(truth - walk[-1])
    # Cauchy and Schwarz, of each weight: |Σ r_i (θ_i - c)| <= ‖r‖ ‖θ - c‖, with Σ r_i = 0.
    p = math.sqrt((exponent(wanted[1]) + 1) ** 2 / (2 * exponent(wanted[1]) + 1) / wanted[0])
    assert (abs(found - truth) <= fit.error * p * np.linalg.norm(walk - walk[-1], axis=0)).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: exponent(0.0), "width must be above 0 .* 0.288675.* but is 0.0"),
        (lambda: exponent(0.2887), "but is 0.2887"),
        (lambda: exponent(math.nan), "but is nan"),
        (lambda: width(-0.1), "gamma must be at least 0 and finite, but is -0.1"),
        (lambda: width(math.inf), "gamma must be at least 0 and finite, but is inf"),
        (lambda: power_decay(0, 1.0), "a step must be at least 1, but is 0"),
        (lambda: profile(0, 0.1), "a step must be at least 1, but is 0"),
        (lambda: combine([], (1, 0.1)), "there are no snapshots"),
        (lambda: combine([(0, 0.1)], (1, 0.1)), "a step must be at least 1, but is 0"),
        (lambda: combine([(9, 0.1), (8, 0.1)], (10, 0.1)), "step 10 is after the last .*, 9"),
        (lambda: combine([(9, 0.3)], (9, 0.1)), "but is 0.3"),
    ],
)
def test_errors(call, said):
    with pytest.raises(ValueError, match=said):
        call()
