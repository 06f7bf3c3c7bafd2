"""Bits per coordinate, and grey values that stand for densities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import ddpm_core as ddpm
from ddpm_core import likelihood
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps


@given(nats=strategies.normals((7,)), dims=st.integers(1, 3072), bins=st.sampled_from([2, 17, 256]))
def test_bits_per_dim(nats, dims, bins):
    """Nats / (D log 2), its mean and SciPy's standard error; a density less log2 of the width."""
    bits = nats / math.log(2) / dims
    plain, density = ddpm.bits_per_dim(nats, dims), ddpm.bits_per_dim(nats, dims, bins)
    atol = 64 * EPS
    assert plain.mean == pytest.approx(bits.mean(), rel=1e-12, abs=atol)
    assert plain.error == pytest.approx(stats.sem(bits), rel=1e-12)
    assert density.mean == pytest.approx(
        plain.mean + math.log2((bins - 1) / 2), rel=1e-12, abs=atol
    )
    assert density.error == pytest.approx(plain.error, rel=1e-9)
    assert ddpm.bits_per_dim(nats[:2], dims).error == pytest.approx(stats.sem(bits[:2]), abs=atol)
    assert math.isnan(ddpm.bits_per_dim(nats[:1], dims).error)


def test_bits_of_uniform_bytes():
    """The uniform density on [-1 - h, 1 + h] is 8 bits per byte: log2 256."""
    nats = np.full(3, 12 * math.log(2 + 2 / 255))
    assert ddpm.bits_per_dim(nats, 12, 256).mean == pytest.approx(8, rel=1e-14)


@given(
    k=st.integers(0, 255), u=st.floats(0, 1, exclude_max=True), bins=st.sampled_from([2, 17, 256])
)
def test_dequantised_stays_in_its_bin(k, u, bins):
    """x_0 + (2 u - 1) h lies within h of the grey value, so that bins tile, and is even in it."""
    h, k = 1 / (bins - 1), k % bins
    x_0 = np.array([[2 * k * h - 1]])
    y = likelihood.dequantised(x_0, np.array([[u]]), bins)[0, 0]
    assert x_0[0, 0] - h - 4 * EPS <= y <= x_0[0, 0] + h + 4 * EPS
    assert (y + 1 + h) / (2 * h) == pytest.approx(k + u, abs=8 * EPS * bins)
    if bins == 256:
        assert y == likelihood.dequantised(x_0, np.array([[u]]))[0, 0]


@given(m=st.floats(-1.5, 1.5), log_s=st.floats(-4, 1), k=st.integers(0, 16))
def test_dequantised_density_bounds_the_mass(m, log_s, k):
    """-E log p(x + u) - log width >= -log P(bin), by Gauss-Legendre quadrature over u."""
    bins, s = 17, math.exp(log_s)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    u, x_0 = (nodes[:, None] + 1) / 2, np.full((40, 1), 2 * k / 16 - 1)
    nats = -weights @ stats.norm.logpdf(likelihood.dequantised(x_0, u, bins), m, s) / 2
    bits = ddpm.bits_per_dim(nats, 1, bins).mean
    low, high = (2 * k - 1) / 16 - 1, (2 * k + 1) / 16 - 1
    side = 1 if low + high < 2 * m else -1  # of two tails, take the one that does not cancel
    a, b = sorted((side * (low - m) / s, side * (high - m) / s))
    log_mass = stats.norm.logcdf(b) + np.log1p(-np.exp(stats.norm.logcdf(a) - stats.norm.logcdf(b)))
    assert bits >= -log_mass / math.log(2) - 1e-9 * (1 + abs(log_mass))
    # The gap is the variance of log p over the bin at most, as far as that is small.
    if s > 1:
        slack = (2 / 16 / s) ** 2 * (1 + ((abs(m) + 1.1) / s) ** 2)
        assert bits <= -log_mass / math.log(2) + slack
