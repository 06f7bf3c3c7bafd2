"""What guided samplers draw: against published limits, and moments integrated on their own."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.guidance import (
    cfg_pp,
    classifier,
    dynamic_threshold,
    guided,
    projected,
    within,
)
from ddpm_core.schedules import LinearLogSNR

#: So wide that its ends are noise and data to 2e-9.
WIDE = LinearLogSNR(20.0, -20.0)
STEPS = (80, 160, 320)
#: N(0, 1) guided against N(0, 2) (Bradley & Nakkiran 2024, section 3).
ONE, TWO = ddpm.GaussianOracle([0.0], 1.0), ddpm.GaussianOracle([0.0], 2.0)
MEAN, COV = np.array([1.0, 0.5]), np.array([[0.4, 0.2], [0.2, 0.3]])
OTHER_MEAN, OTHER_COV = np.array([-1.0, -0.5]), np.array([[0.8, -0.1], [-0.1, 0.6]])
A, B = ddpm.GaussianOracle(MEAN, COV), ddpm.GaussianOracle(OTHER_MEAN, OTHER_COV)


def limit_of_flow(w):
    return 2 ** (1 - w)


def limit_of_sde(w):
    return (2 - 2 ** (2 - 2 * w)) / (2 * w - 1)


CASES = [
    ("ddim", 1, limit_of_flow),
    ("dpmpp_2m", 2, limit_of_flow),
    ("heun", 2, limit_of_flow),
    ("ancestral", 1, limit_of_sde),
    ("sde_dpmpp_2m", 2, limit_of_sde),
]


def slopes(errors):
    return -np.diff(np.log2(errors))


@pytest.mark.slow
@pytest.mark.parametrize("w", [0.75, 2, 5])
@pytest.mark.parametrize(("name", "p", "limit"), CASES, ids=[name for name, *_ in CASES])
def test_published_limits(name, p, limit, w):
    """Solvers without noise tend to N(0, 2^(1 - w)), those with noise to another limit.

    With a = α² the guided score is -x (1 + w a) / (1 + a). From a = 0 to 1 the flow is dx / da =
    (1 - w) x / (2 (1 + a)); the variance of the SDE has a dV / da = V ((1 - 2 w) a - 1) / (1 + a)
    + 1, whose solution from V(0) = 1 is (1 + a)^(2 - 2 w) / a ∫ (1 + b)^(2 w - 2) db.
    """
    solver = samplers.by_name(name)
    drawn = [ddpm.law(solver(WIDE, n), guided(ONE, TWO, w), ONE) for n in STEPS]
    errors = [abs(float(law.variances[0]) / limit(w) - 1) for law in drawn]
    assert slopes(errors).min() >= p - 0.15, errors
    assert errors[-1] < (0.1 if p == 1 else 1e-2)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "ancestral"])
@pytest.mark.parametrize("w", [0.5, 2.0, 4.0])
def test_of_equal_covariances_it_is_the_tilted_law(name, w):
    """p(x | c)^w p(x)^(1 - w) of N(m, C) and N(n, C) is N(w m + (1 - w) n, C): the same draws."""
    sampler = samplers.by_name(name)(ddpm.linear(), 10)
    tilted = ddpm.GaussianOracle(w * MEAN + (1 - w) * OTHER_MEAN, COV)
    against = ddpm.GaussianOracle(OTHER_MEAN, COV)
    found, wanted = ddpm.law(sampler, guided(A, against, w), tilted), ddpm.law(sampler, tilted)
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.cov, wanted.cov, rtol=0, atol=1e-12)
    assert found.kl == pytest.approx(wanted.kl, rel=1e-9)


def moments(w, noisy):
    """The mean and covariance that the guided flow, or SDE, ends at, by an ODE in log-SNR.

    With V = a C + (1 - a) I and a' = da / dlog-SNR = a (1 - a), the score is S x + r; the flow is
    x' = (x + score) a' / (2 a), the SDE x' = (x / 2 + score) a' / a with noise of variance a' / a.
    """

    def derivative(logsnr, state):
        a = 1 / (1 + math.exp(-logsnr))
        S, r = np.zeros((2, 2)), np.zeros(2)
        for share, m, C in ((w, MEAN, COV), (1 - w, OTHER_MEAN, OTHER_COV)):
            precision = np.linalg.inv(a * C + (1 - a) * np.eye(2))
            S, r = S - share * precision, r + share * math.sqrt(a) * precision @ m
        half = 1.0 if noisy else 0.5
        F, f = (1 - a) * (np.eye(2) / 2 + half * S), (1 - a) * half * r
        mean, P = state[:2], state[2:].reshape(2, 2)
        change = F @ P + P @ F.T + noisy * (1 - a) * np.eye(2)
        return np.concatenate([F @ mean + f, change.ravel()])

    start = np.concatenate([np.zeros(2), np.eye(2).ravel()])
    end = solve_ivp(derivative, (-20, 20), start, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    return end[:2], end[2:].reshape(2, 2)


@pytest.mark.parametrize(
    ("name", "p"), [("ddim", 1), ("dpmpp_2m", 2), ("ancestral", 1), ("sde_dpmpp_2m", 2)]
)
@pytest.mark.parametrize("w", [0.5, 2.0])
def test_two_classes_with_covariances(name, p, w):
    """Mean and covariance tend to those of the guided flow or SDE, at the solver's order."""
    mean, P = moments(w, name in ("ancestral", "sde_dpmpp_2m"))
    errors = []
    for n in STEPS:
        found = ddpm.law(samplers.by_name(name)(WIDE, n), guided(A, B, w), A)
        errors.append(np.abs(found.mean - mean).max() + np.abs(found.cov - P).max())
    assert slopes(errors).min() >= p - 0.15, errors
    assert errors[-1] < (0.1 if p == 1 else 1e-2)


@pytest.mark.parametrize("w", [1.0, 2.0])
def test_a_classifier_by_the_ratio_of_densities_is_guided(w):
    """p(c | x_t) ∝ q(x_t | c) / q(x_t), of which the gradient is a difference of two scores."""

    def score(m, C, x, t):
        return np.linalg.solve(t.alpha**2 * C + t.sigma**2 * np.eye(2), (t.alpha * m - x).T).T

    def gradient(x, t):
        return score(MEAN, COV, x, t) - score(OTHER_MEAN, OTHER_COV, x, t)

    sampler = ddpm.ancestral(ddpm.linear(), 10)
    found = ddpm.law(sampler, classifier(B, gradient, w), A)
    wanted = ddpm.law(sampler, guided(A, B, w), A)
    # The start of the schedule has σ² / α = 157, which multiplies roundings of the score.
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.cov, wanted.cov, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [10, 100])
def test_cfg_pp_draws_what_its_algorithm_does(n):
    """Chung et al. 2024, Algorithm 2, on N(0, 1) and N(0, 2): every step multiplies x by a number.

    With a step h of half the log-SNR its scale is strength / (1 - e^-h): it has no limit at a fixed
    strength, but draws ever less variance.
    """
    strength, gain = 0.6, 1.0
    sampler = ddpm.ddim(WIDE, n)
    for t, s in pairwise(sampler.levels.take(i) for i in range(n + 1)):
        x_c, x_empty = t.alpha, 2 * t.alpha / (1 + t.alpha**2)  # of x_t = 1
        eps_empty = (1 - t.alpha * x_empty) / t.sigma
        gain *= s.alpha * (x_empty + strength * (x_c - x_empty)) + s.sigma * eps_empty
    found = ddpm.law(sampler, guided(ONE, TWO, cfg_pp(strength, sampler.levels)), ONE)
    assert found.variances[0] == pytest.approx(gain**2, rel=1e-10)


REFUSED = {
    "rescale": guided(A, B, 2.0, rescale=0.7),
    "projected": projected(A, B, 2.0),
    "dynamic_threshold": dynamic_threshold(guided(A, B, 2.0)),
}


@pytest.mark.parametrize("denoise", REFUSED.values(), ids=REFUSED)
def test_what_depends_on_lengths_has_no_law(denoise):
    with pytest.raises(ValueError, match="is not affine"):
        ddpm.law(ddpm.ddim(ddpm.linear(), 4), denoise, A)


def test_an_interval_has_one():
    """Guidance within an interval that holds no level is none, and one of all levels is all."""
    sampler = ddpm.ddim(ddpm.linear(), 10)
    plain = ddpm.law(sampler, A)
    for scale, wanted in ((within(3.0, 40, 50), plain.cov), (within(3.0, -99, 99), None)):
        found = ddpm.law(sampler, guided(A, B, scale), A)
        full = ddpm.law(sampler, guided(A, B, 3.0), A)
        np.testing.assert_allclose(found.cov, full.cov if wanted is None else wanted, atol=1e-12)
