"""The public strategies: what they draw obeys the laws, and shrinks to what can be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core.parameterisations import determinant
from ddpm_core.testing import (
    check_denoiser,
    check_parameterisation,
    check_sampler,
    strategies,
)

ALL = strategies.schedules(30, zero_terminal=True)
few = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


@few
@given(strategies.samplers(max_steps=8))
def test_samplers_pass(sampler):
    """Every table of every solver, on any grid, with the rounding of its small steps."""
    u = sampler.unroll()
    assert sampler.levels.sigma[0] > 0
    assert u.nfe == sampler.nfe
    check_sampler(sampler, precision=1e-11)


@few
@given(st.data())
def test_parameterisations_pass(data):
    """Each determines x_0 at every level of its schedule."""
    schedule = data.draw(ALL)
    check_parameterisation(data.draw(strategies.parameterisations(schedule)), schedule)


def test_turned():
    """α b - σ a of a turned v is cos(angle), and a turn by nothing is v."""
    t = ddpm.linear()(300)
    assert determinant(strategies.Turned(0.7), t) == pytest.approx(np.cos(0.7), rel=1e-15)
    assert strategies.Turned(0.0)(t) == ddpm.v(t)


@few
@given(strategies.oracles((2, 2)))
def test_oracles_pass(oracle):
    check_denoiser(oracle, oracle)


@few
@given(st.data())
def test_pairs_are_in_order(data):
    """s is cleaner than t, and clean data only where that is asked for."""
    schedule = data.draw(ALL.filter(lambda schedule: getattr(schedule, "T", 2) > 1))
    clean = data.draw(st.booleans())
    t, s = data.draw(strategies.pairs(schedule, clean=clean))
    assert t.logsnr < s.logsnr
    assert clean or s.time > schedule.ends[0]


@settings(few, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_images_are_of_the_library(lib, data):
    """Within [-1, 1], in its dtype, on its device."""
    if lib.name in ("mlx", "torch-meta"):
        pytest.skip("it holds no values, or has another way of making them")
    x = data.draw(strategies.images(lib.xp, device=lib.device))
    values = lib.to_numpy(x)
    assert x.dtype == lib.xp.float32
    assert values.ndim == 4
    assert values.shape[1] in (1, 3)
    assert np.abs(values).max() <= 1


@few
@given(strategies.images(channels=st.just(2), max_size=3, dtype=np.float64))
def test_images_that_are_asked_for(x):
    """Of so many channels, no larger, and in that dtype."""
    assert x.dtype == np.float64
    assert x.shape[1] == 2
    assert max(x.shape[2:]) <= 3


@pytest.mark.slow
def test_what_they_shrink_to():
    """The plainest of each."""
    quiet = settings(max_examples=1, database=None)
    every = {
        "samplers": find(strategies.samplers(), lambda _: True, settings=quiet),
        "oracles": find(strategies.oracles(), lambda _: True, settings=quiet),
        "images": find(strategies.images(), lambda _: True, settings=quiet),
    }
    assert (every["samplers"].name, every["samplers"].nfe) == ("ddim", 1)
    assert every["oracles"].variances.tolist() == [1.0, 1.0]
    assert every["images"].tolist() == [[[[0.0]]]]
    t, s = find(strategies.pairs(ddpm.linear()), lambda _: True, settings=quiet)
    assert (t.time, s.time) == (1, 0)
    t, s = find(strategies.pairs(ddpm.linear(), clean=False), lambda _: True, settings=quiet)
    assert (t.time, s.time) == (2, 1)
    found = find(strategies.parameterisations(ddpm.linear()), lambda _: True, settings=quiet)
    assert found is ddpm.x0


def test_pairs_of_one_level():
    """There is no pair of noisy levels where T = 1."""
    with pytest.raises(ValueError, match="has no two such levels"):
        find(strategies.pairs(ddpm.from_betas([0.5]), clean=False), lambda _: True)
