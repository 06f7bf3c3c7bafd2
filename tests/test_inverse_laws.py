"""What the methods for inverse problems draw from Gaussian data, beside the true posterior."""

from __future__ import annotations

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import inverse
from ddpm_core.certificates import law_of
from ddpm_core.measurements import Measurement, blur, mask, measure

LINEAR = ddpm.linear()
CLOSE = 1e-7  # central differences, (1e-16)^(2/3), times what 40 steps and the norm of x magnify
COV = np.exp(-np.abs(np.subtract.outer(range(4), range(4))) / 2)
DATA = ddpm.GaussianOracle(np.zeros(4), COV)
X_0 = np.array([[1.0, -0.5, 0.3, 0.8]])
SEEN = measure(mask(np.array([True, False, True, False])), X_0)
BLURRED = measure(blur((4,), 0.7), X_0, np.array([[0.3, -1.0, 0.6, 0.1]]), var=0.2)


def check_same_law(found, expected, atol=CLOSE):
    np.testing.assert_allclose(found.mean, expected.mean, rtol=0, atol=atol)
    np.testing.assert_allclose(found.cov, expected.cov, rtol=0, atol=atol)


def w2_by_steps(denoise, truth, steps):
    laws = (ddpm.law(ddpm.ddim(LINEAR, n), denoise, truth, exact_start=True) for n in steps)
    return np.array([law.w2 for law in laws])


def law_of_kernel(kernel, truth, levels):
    return law_of(lambda x, noise: ddpm.sample_kernel(kernel, levels, x, noise), truth)


@pytest.mark.slow
@pytest.mark.parametrize("c", [None, 0.3], ids=["N(m, I)", "N(m, c I), its own r²"])
@pytest.mark.parametrize("measurement", [SEEN, BLURRED], ids=["mask", "blur"])
def test_pigdm_tends_to_the_posterior_of_isotropic_data(measurement, c):
    data = ddpm.GaussianOracle(np.full(4, 0.2), c or 1.0)
    spread = c and (lambda t: c * t.sigma**2 / (t.alpha**2 * c + t.sigma**2))
    truth = data.given(measurement)
    denoise = inverse.pigdm(data, measurement, spread)
    sampler = ddpm.ddim(LINEAR, 40)
    check_same_law(ddpm.law(sampler, denoise, truth), ddpm.law(sampler, truth, truth))
    errors = w2_by_steps(denoise, truth, (125, 250, 500))
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 1, atol=0.15)  # DDIM's order


def test_pigdm_has_a_bias_on_other_data():
    truth = DATA.given(BLURRED)
    biased = w2_by_steps(inverse.pigdm(DATA, BLURRED), truth, (250, 500))
    exact = w2_by_steps(truth, truth, (250, 500))
    assert biased[1] > 0.9 * biased[0] > 5 * exact[0] > 9 * exact[1]


def test_mmps_has_the_law_of_the_posterior():
    truth, sampler = DATA.given(BLURRED), ddpm.ancestral(LINEAR, 40)
    found = ddpm.law(sampler, inverse.mmps(DATA, BLURRED, 4), truth)
    check_same_law(found, ddpm.law(sampler, truth))


def test_repeats_remove_the_bias_of_replacement():
    truth = DATA.given(SEEN)
    kernel = inverse.replaced(ddpm.reverse(DATA), SEEN)
    levels = {n: ddpm.levels_of(LINEAR, n) for n in (100, 200)}
    falling = [law_of_kernel(kernel, truth, each).w2 for each in levels.values()]
    exact = [law_of_kernel(ddpm.reverse(truth), truth, each).w2 for each in levels.values()]
    assert falling[1] > 0.95 * falling[0] > 2 * exact[0] > 3 * exact[1]
    walks = (inverse.walk(levels[100], 5, repeats) for repeats in (2, 4))
    errors = [falling[0], *(law_of_kernel(kernel, truth, each).w2 for each in walks)]
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < falling[0] / 2


def test_ddnm_has_a_bias_but_keeps_the_measurement():
    truth = DATA.given(SEEN)
    biased = w2_by_steps(inverse.ddnm(DATA, SEEN), truth, (250, 500))
    exact = w2_by_steps(truth, truth, (250, 500))
    assert biased[1] > 0.95 * biased[0] > 5 * exact[0] > 9 * exact[1]
    law = ddpm.law(ddpm.ancestral(LINEAR, 20), inverse.ddnm(DATA, SEEN), truth)
    known = np.array([0, 2])
    np.testing.assert_allclose(law.mean[known], X_0[0, known], rtol=0, atol=1e-12)
    np.testing.assert_allclose(law.cov[known], 0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 0.85])
def test_ddrm_draws_too_little_where_nothing_is_measured(eta):
    """v = r² v + eta² k², r = 1 - (1 - κ) k², κ² = 1 - eta²: v tends to (1 + κ) / 2 with k to 0."""
    data = ddpm.GaussianOracle(np.zeros(1), 1.0)
    kernel = inverse.ddrm(data, Measurement(mask(np.array([False])), np.zeros((1, 1))), eta)
    law = law_of_kernel(kernel, data, ddpm.levels_of(LINEAR, 1000))
    kept = np.sqrt(1 - eta**2)
    np.testing.assert_allclose(law.cov, (1 + kept) / 2, rtol=0.02)


def test_ddrm_tends_to_what_was_measured_noise_and_all():
    data = ddpm.GaussianOracle(np.zeros(1), 1.0)
    measurement = Measurement(mask(np.array([True])), np.ones((1, 1)), 0.25)
    truth, kernel = data.given(measurement), inverse.ddrm(data, measurement)
    few, many = (law_of_kernel(kernel, truth, ddpm.levels_of(LINEAR, n)) for n in (100, 1000))
    assert 0 < 1 - many.mean < (1 - few.mean) / 2 < (1 - truth.mean) / 2
    assert many.cov < few.cov / 2 < truth.cov / 4
    assert many.w2 > few.w2


def test_dps_is_not_affine():
    kernel = inverse.dps(DATA, SEEN)
    with pytest.raises(ValueError, match="not affine"):
        law_of_kernel(kernel, DATA.given(SEEN), ddpm.levels_of(LINEAR, 20))
