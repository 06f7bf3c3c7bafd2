"""Errors of a denoiser, measured at some levels and interpolated to others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core import likelihood
from ddpm_core.levels import Level, from_logsnr
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
LINEAR = ddpm.linear()

some_logsnr = st.lists(st.integers(-90, 90), min_size=1, max_size=6, unique=True).map(
    lambda tenths: [k / 10 for k in tenths]
)


def levels_at(logsnr: list[float]) -> Level:
    return from_logsnr(np.array(logsnr), np.zeros(len(logsnr)))


@given(logsnr=some_logsnr, arrays=strategies.normals((3, 2, 2), count=2))
def test_errors_are_measured(logsnr, arrays):
    """The mean of (x_0 - x̂_0)² at x_t = α x_0 + σ eps, the noise of level i drawn at step i + 1."""
    x_0, eps = arrays
    levels, y = levels_at(logsnr), object()

    def denoise(x_t, t, **cond):
        assert cond["y"] is y
        return np.tanh(x_t)

    actual = likelihood.errors_at(denoise, levels, x_0, lambda step, shape: step * eps, y=y)
    for i, error in enumerate(actual):
        x_t = levels.alpha[i] * x_0 + levels.sigma[i] * (i + 1) * eps
        assert error == pytest.approx(((x_0 - np.tanh(x_t)) ** 2).mean(), rel=1e-12)


@given(logsnr=some_logsnr, at=st.floats(-12, 12), c=st.floats(0, 9))
def test_interpolation_of_standard_normal_data(logsnr, at, c):
    """c σ², the error of N(0, 1) where c = 1, is met at every level, in any order of levels."""
    levels, t = levels_at(logsnr), from_logsnr(at, 0.0)
    error = likelihood.interpolated(levels, c * levels.sigma**2)
    assert error(t) == pytest.approx(c * t.sigma**2, rel=64 * EPS)
    many = from_logsnr(np.array([at, 0.5]), np.zeros(2))
    np.testing.assert_allclose(error(many), c * many.sigma**2, rtol=64 * EPS)


@given(logsnr=some_logsnr, seed=st.integers(0, 99))
def test_interpolation_keeps_the_measured(logsnr, seed):
    """At its own levels it is what was measured; halfway, error / σ² is the mean of the two."""
    levels = levels_at(sorted(logsnr))
    measured = np.random.default_rng(seed).uniform(0, 2, len(logsnr))
    error = likelihood.interpolated(levels, measured)
    np.testing.assert_allclose(error(levels), measured, rtol=64 * EPS)
    middle = levels_at(list((levels.logsnr[1:] + levels.logsnr[:-1]) / 2))
    share = measured / levels.sigma**2
    wanted = (share[1:] + share[:-1]) / 2 * middle.sigma**2
    np.testing.assert_allclose(error(middle), wanted, rtol=1e3 * EPS)


def test_an_error_of_0_is_of_its_level_alone():
    """Two points are told apart with certainty where there is little noise, but not at time 199."""
    oracle = ddpm.DatasetOracle([[-1.0], [1.0]])
    x_0, noise = np.repeat([[-1.0], [1.0]], 500, axis=0), ddpm.portable_noise(0, dtype=np.float64)
    levels, t, s = LINEAR(np.array([1, 10, 300, 1000])), LINEAR(199), LINEAR(100)
    measured = likelihood.errors_at(oracle, levels, x_0, noise)
    assert measured[:2].tolist() == [0.0, 0.0]
    error = likelihood.interpolated(levels, measured)
    (there,) = likelihood.errors_at(oracle, LINEAR(np.array([199])), x_0, noise)
    assert there == pytest.approx(0.24, abs=0.02)
    assert there / 2 < error(t) < 2 * there
    assert error(LINEAR(5)) == 0.0
    # So the variance that takes it is better than the one that takes the error to be 0.
    eps = noise(9, x_0.shape)
    best, small = (
        ddpm.losses.bound(ddpm.reverse(oracle, variance), x_0, eps, t, s).mean()
        for variance in (ddpm.optimal(error), ddpm.small)
    )
    assert best < 0.9 * small
