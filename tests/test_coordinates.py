"""Networks in other coordinates, rectified flow's and EDM's, and the schedules of their times."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddpm_core as ddpm
from ddpm_core.denoisers import Coordinates, preconditioned, straight, unscaled
from ddpm_core.levels import from_logsnr
from ddpm_core.parameterisations import edm
from ddpm_core.schedules import EDM, Flow
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps
SINGLE = float(np.finfo(np.float32).eps)
SHIFT = st.floats(0.2, 8.0)
MEAN, VAR = np.array([0.7, -0.4]), np.array([0.25, 1.5])
ORACLE = ddpm.GaussianOracle(MEAN, VAR)


def shifted(time, shift):
    """u of Esser et al. 2024."""
    return shift * time / (1 + (shift - 1) * time)


@given(time=st.floats(1e-6, 1.0), shift=SHIFT)
def test_levels_of_flow(time, shift):
    """α and σ are 1 - u and u, over their norm."""
    t, u = Flow(shift)(time), shifted(time, shift)
    # 1 - u cancels where u is near 1; log-SNR has its size in roundings.
    atol = 16 * EPS * (1 + min(abs(t.logsnr), 100))
    assert t.alpha == pytest.approx((1 - u) / np.hypot(1 - u, u), rel=0, abs=atol)
    assert t.sigma == pytest.approx(u / np.hypot(1 - u, u), rel=0, abs=atol)


@given(time=st.floats(0.0, 1.0), shift=SHIFT, arrays=strategies.normals((3, 2), count=2))
def test_straight_path(time, shift, arrays):
    """q_sample, in the flow's coordinates, is (1 - u) x_0 + u eps; the label is u."""
    (x_0, eps), t, u = arrays, Flow(shift)(time), shifted(time, shift)
    shown, label = straight(1000).scale(t) * ddpm.q_sample(x_0, eps, t), straight(1000).label(t)
    atol = 16 * EPS * (1 + min(abs(t.logsnr), 100)) * (1 + np.abs(x_0) + np.abs(eps)).max()
    np.testing.assert_allclose(shown, (1 - u) * x_0 + u * eps, rtol=0, atol=atol)
    assert label == pytest.approx(1000 * u, rel=0, abs=1000 * atol)


@given(time=st.floats(0.001, 0.999), a=SHIFT, b=SHIFT)
def test_shifts_compose(time, a, b):
    """A shift of a shifted time is the product of the two."""
    once, twice = Flow(a * b)(time), Flow(a)(shifted(time, b))
    # 1 - u of the shifted time is small, and carries a rounding of u.
    assert once.logsnr == pytest.approx(twice.logsnr, rel=0, abs=64 * EPS / (1 - shifted(time, b)))


@given(time=st.floats(1e-4, 80.0), arrays=strategies.normals((3, 2), count=2))
def test_unscaled_path(time, arrays):
    """EDM's time is the noise of x_0 + k eps; its D is shown that, and k; F c_in x and c_noise."""
    (x_0, eps), t = arrays, EDM()(time)
    x_t, x = ddpm.q_sample(x_0, eps, t), x_0 + time * eps
    atol = 64 * EPS * (1 + time) * (1 + np.abs(x_0) + np.abs(eps)).max()
    np.testing.assert_allclose(unscaled().scale(t) * x_t, x, rtol=0, atol=atol)
    assert unscaled().label(t) == pytest.approx(time, rel=16 * EPS * (1 + abs(t.logsnr)))
    c_in = 1 / np.sqrt(time**2 + 0.5**2)
    np.testing.assert_allclose(preconditioned().scale(t) * x_t, c_in * x, rtol=0, atol=atol)
    assert preconditioned().label(t) == pytest.approx(np.log(time) / 4, abs=16 * EPS)


def velocity(x, label):
    """E[eps - x_0 | x] of x = (1 - u) x_0 + u eps, for x_0 ~ N(MEAN, VAR)."""
    u = label.astype(np.float64)[:, None] / 1000
    over_var = (x - (1 - u) * MEAN) / ((1 - u) ** 2 * VAR + u**2)
    return u * over_var - MEAN - (1 - u) * VAR * over_var


def D(x, k):
    """E[x_0 | x] of x = x_0 + k eps."""
    return MEAN + VAR / (VAR + k.astype(np.float64)[:, None] ** 2) * (x - MEAN)


def F(x_in, c_noise):
    """(D - c_skip x) / c_out at sigma_data = 0.5 (Karras et al. 2022, Table 1)."""
    k = np.exp(4 * c_noise.astype(np.float64))[:, None]
    total = k**2 + 0.25
    x = x_in * np.sqrt(total)
    return (D(x, k[:, 0]) - 0.25 / total * x) / (0.5 * k / np.sqrt(total))


PREDICTORS = {
    "flow": ddpm.Predictor(velocity, Flow(), ddpm.flow, coordinates=straight(1000)),
    "D": ddpm.Predictor(D, EDM(), ddpm.x0, coordinates=unscaled()),
    "F": ddpm.Predictor(F, EDM(), edm(), coordinates=preconditioned()),
}
each = pytest.mark.parametrize("name", PREDICTORS)


@each
@given(x_t=strategies.normals((3, 2)), logsnr=st.floats(-12, 12) | st.just(-np.inf))
def test_networks_in_their_own_coordinates(name, x_t, logsnr):
    """The exact network of N(m, C), written in its own coordinates, is the oracle.

    The label is that of the level, whose time may be of any schedule, as of another shift.
    """
    t = from_logsnr(logsnr, time=-1.0)
    if name != "flow" and t.alpha == 0:
        return
    # The label is float32, and x_0 from k eps loses k.
    atol = 64 * SINGLE * (1 + np.abs(x_t).max()) * (1 if name == "flow" else 1 + t.sigma / t.alpha)
    np.testing.assert_allclose(PREDICTORS[name](x_t, t), ORACLE(x_t, t), rtol=0, atol=atol)


@each
def test_one_level_per_sample(name):
    """Levels (B,) are the levels one by one, and predictors pickle."""
    x_t, times = np.random.default_rng(0).standard_normal((3, 2)), np.array([0.9, 0.5, 0.1])
    again = pickle.loads(pickle.dumps(PREDICTORS[name].coordinates))
    t = Flow()(times)
    found = PREDICTORS[name](x_t, t)
    for i, time in enumerate(times):
        alone = PREDICTORS[name](x_t[i : i + 1], Flow()(time))
        np.testing.assert_allclose(found[i : i + 1], alone, rtol=0, atol=64 * EPS)
        assert again.label(Flow()(time)) == PREDICTORS[name].coordinates.label(Flow()(time))


@pytest.mark.parametrize("coordinates", [straight(1000), unscaled(), preconditioned()])
def test_device_levels(lib, coordinates):
    """What a network is shown at levels of the device is what it is shown at those of the host."""
    x_t, times = np.float32([[1.0, -2.0], [0.5, 3.0]]), np.float32([0.25, 0.75])
    seen = []

    def net(x, label):
        seen.append((x, label))
        return x

    predict = ddpm.Predictor(net, EDM(), ddpm.x0, coordinates=coordinates)
    predict(lib.asarray(x_t), Flow()(lib.asarray(times)))
    predict(x_t.astype(np.float64), Flow()(times.astype(np.float64)))
    for got, want in zip(*seen, strict=True):
        assert got.dtype == lib.xp.float32
        if lib.has_values:
            np.testing.assert_allclose(lib.to_numpy(got), want, rtol=16 * SINGLE)


@given(arrays=strategies.normals((3, 2), count=2), time=st.floats(0.05, 1.0))
def test_it_trains_as_it_samples(arrays, time):
    """A network that knows x_0 reads the target off what it is shown: x = x_0 + u (eps - x_0)."""
    x_0, eps = arrays
    net = lambda x, u: (x - x_0) / u[:, None].astype(np.float64)
    predict = ddpm.Predictor(net, Flow(), ddpm.flow, coordinates=straight())
    found = ddpm.loss(predict, x_0, eps, Flow(3.0)(time))
    size = (1 + np.abs(x_0) + np.abs(eps)).max() / time
    assert found.max() <= (16 * SINGLE * size) ** 2


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ddim_is_euler_on_the_flow(shift):
    """x' = x + (u' - u) v in the flow's own x and u, by the network; and the law of that."""
    sampler = ddpm.ddim(Flow(shift), 12)
    u = shifted(np.linspace(1, 0, 13), shift)
    x = start = np.random.default_rng(0).standard_normal((5, 2))
    spread = np.ones(2)
    for now, then in pairwise(u):
        x = x + (then - now) * velocity(x, np.full(5, 1000 * now))
        slope = (now - (1 - now) * VAR) / ((1 - now) ** 2 * VAR + now**2)
        spread = spread * (1 + (then - now) * slope)
    found = ddpm.sample(PREDICTORS["flow"], sampler, start)
    np.testing.assert_allclose(found, x, rtol=0, atol=1e3 * SINGLE)
    law = ddpm.law(sampler, ORACLE)
    np.testing.assert_allclose(law.variances, spread**2, rtol=1e-12)


def test_ddim_is_euler_of_edm():
    """x' = x + (k' - k) (x - D) / k, from noise of variance 1 + 80², in law."""
    sampler = ddpm.ddim(EDM(), 12, grid=ddpm.grids.karras)
    k = sampler.levels.time
    spread = np.full(2, np.sqrt(1 + 80.0**2))
    for now, then in pairwise(k):
        spread = spread * (1 + (then - now) * now / (VAR + now**2))
    np.testing.assert_allclose(ddpm.law(sampler, ORACLE).variances, spread**2, rtol=1e-10)


@pytest.mark.parametrize("schedule", [Flow(), Flow(3.0), EDM()], ids=str)
@pytest.mark.parametrize(
    ("solver", "order"), [(ddpm.ddim, 1), (ddpm.heun, 2), (ddpm.dpmpp_2m, 2), (ddpm.ancestral, 1)]
)
def test_orders(schedule, solver, order):
    """A solver has its order on these schedules too."""
    slopes = ddpm.convergence(solver, (80, 160), schedule).slopes
    assert abs(slopes[0] - order) < 0.15


def test_jax_compiles_it():
    """As one program, with levels of the device, a predictor samples what it does step by step."""
    jnp = pytest.importorskip("jax.numpy")
    sampling = pytest.importorskip("ddpm_core_jax.sampling")
    net = lambda x, u: x * jnp.exp(-u)[:, None]
    predict = ddpm.Predictor(net, Flow(), ddpm.flow, coordinates=straight())
    x, sampler = jnp.linspace(-1, 1, 6).reshape(3, 2), ddpm.ddim(Flow(), 5)
    found = sampling.sample(predict, sampler, x)
    np.testing.assert_allclose(found, ddpm.sample(predict, sampler, x), rtol=0, atol=64 * SINGLE)


def test_refusals():
    """k is no number where alpha = 0, at construction and in a call; sigma_data is positive."""
    for coordinates in (unscaled(), preconditioned()):
        with pytest.raises(ValueError, match=r"infinite where alpha = 0, .* such as EDM\(\)"):
            ddpm.Predictor(D, Flow(), ddpm.x0, coordinates=coordinates)
    with pytest.raises(ValueError, match="infinite where alpha = 0"):
        PREDICTORS["D"](np.zeros((2, 2)), Flow()(np.array([0.5, 1.0])))
    for bad in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"sigma_data must be .* but is {bad}"):
            edm(bad)


def test_coordinates_of_your_own():
    """Two functions of a level: here a cosine path's network, told its angle."""
    own = Coordinates(lambda t: 1.0, lambda t: np.arctan2(t.sigma, t.alpha))
    seen = []
    net = lambda x, angle: seen.append((x, angle)) or x
    x_t = np.ones((1, 2))
    ddpm.Predictor(net, ddpm.VP(), ddpm.v, coordinates=own)(x_t, ddpm.VP().at(0.0))
    np.testing.assert_array_equal(seen[0][0], x_t)
    np.testing.assert_allclose(seen[0][1], np.pi / 4, rtol=SINGLE)
