"""Schedules as functions of time: numbers, arrays, device times, halves, and the inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ddpm_core import VP, cosine, from_betas, linear, zero_terminal_snr
from ddpm_core.arrays import log_sigmoid
from ddpm_core.schedules import EDM, Discrete, Flow, LinearLogSNR
from ddpm_core.schedules.protocol import device_times
from ddpm_core.testing import strategies

EPS = np.finfo(np.float64).eps


@given(strategies.discrete_schedules(), st.data())
def test_rate_is_constant_inside_a_step(schedule, data):
    """log ᾱ is linear in time between integers: noise comes at a constant rate inside a step."""
    k = data.draw(st.integers(0, schedule.T - 1))
    part = data.draw(st.integers(1, 63)) / 64  # exact in float64, as is k + part
    below, t, above = (schedule(time) for time in (k, k + part, k + 1))
    between = [(1 - part) * f(below) + part * f(above) for f in (lambda s: log_sigmoid(s.logsnr),)]
    # -log ᾱ carries the rounding of λ, relative to its own size and absolute to (1 - ᾱ) |λ|.
    noise = -log_sigmoid(above.logsnr)
    tolerance = 8 * EPS * noise * (1 + abs(above.logsnr))
    assert abs(log_sigmoid(t.logsnr) - between[0]) <= tolerance


@given(strategies.discrete_schedules())
@example(from_betas([0.1, 0.3, 0.5]))  # whose interpolated log ᾱ_3 rounds to another λ
def test_integer_times_are_the_table(schedule):
    """At integers a schedule is its table, bit for bit: as a number, an array and a list."""
    times = list(range(schedule.T + 1))
    assert [schedule(time).logsnr for time in times] == list(schedule.logsnr)
    for many in (times, np.asarray(times), np.asarray(times, np.float32)):
        np.testing.assert_array_equal(schedule(many).logsnr, schedule.logsnr)


@given(strategies.schedules(zero_terminal=True), st.floats(0, 1))
@example(VP(0.1, 2.0), 1.0)  # whose inverse rounds to above 1
@example(VP(), 1.0)
@example(VP(), 0.0)
@example(LinearLogSNR(), 1.0)
@example(LinearLogSNR(), 0.25)
@example(Flow(3.0), 1.0)
@example(Flow(3.0), 0.0)
@example(EDM(), 1.0)
def test_at_inverts_the_schedule(schedule, share):
    """`at` of a level's log-SNR is that level, at that time to rounding."""
    clean, noisiest = schedule.ends
    time = clean + share * (noisiest - clean)
    zero_terminal = isinstance(schedule, Discrete) and schedule(noisiest).alpha == 0
    if zero_terminal and noisiest - 1 < time < noisiest:
        time = noisiest - 1
    t = schedule(time)
    again = schedule.at(t.logsnr)
    assert again[1:] == t[1:]
    assert clean <= again.time <= noisiest
    # A schedule falls: its time is right to `shift` if the times to both sides bracket λ, up to
    # λ's own rounding (and -log ᾱ's, which λ takes as absolute where ᾱ is near 1).
    shift = 8 * EPS * max(time, noisiest if share > 0.5 else 0.0)
    slack = 8 * EPS * (2 + abs(t.logsnr)) if math.isfinite(t.logsnr) else 0.0
    if zero_terminal and again.time > noisiest - 1:
        assert again.time == noisiest == time
        return
    early = schedule(max(again.time - shift, clean)).logsnr
    late = schedule(min(again.time + shift, noisiest - zero_terminal)).logsnr
    assert early + slack >= t.logsnr >= late - slack


@given(strategies.schedules(), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_arrays_of_times_are_lists_of_levels(schedule, shares):
    """A schedule on an array is the schedule on each of its times; so is `at`."""
    clean, noisiest = schedule.ends
    times = np.asarray([clean + share * (noisiest - clean) for share in shares])
    many = schedule(times)
    each = [schedule(float(time)) for time in times]
    # NumPy's functions of arrays and math's of numbers, a few units apart.
    for name in ("alpha", "sigma", "logsnr"):
        got, wanted = getattr(many, name), [getattr(t, name) for t in each]
        scale = 8 * EPS * (2 + np.max(np.abs(np.where(np.isinf(many.logsnr), 0, many.logsnr))))
        np.testing.assert_allclose(got, wanted, rtol=scale, atol=scale if name == "logsnr" else 0)
    back = schedule.at(many.logsnr)
    np.testing.assert_array_equal(back.logsnr, many.logsnr)
    assert back.time.shape == times.shape


def test_no_level_between_the_last_two_times_without_data():
    """Where α_T = 0, log α cannot be interpolated to it: fractional times there are an error."""
    schedule = zero_terminal_snr(linear())
    with pytest.raises(ValueError, match="no level lies between times 999 and 1000"):
        schedule(999.5)
    with pytest.raises(ValueError, match="no level lies between times 999 and 1000"):
        schedule(np.asarray([3.0, 999.001]))
    with pytest.raises(ValueError, match=r"no level lies between log-SNR .* and -inf"):
        schedule.at(schedule.logsnr[-2] - 1)
    assert schedule(np.asarray([998.5, 999.0, 1000.0])).alpha[-1] == 0
    assert schedule.at(-math.inf).time == 1000


@pytest.mark.parametrize("schedule", [linear(), VP(), LinearLogSNR(), Flow()])
def test_times_outside_are_named(schedule):
    """A time outside the ends, and one that is not a number, is an error that says which."""
    for bad in (-0.5, -1.0, schedule.ends[1] + 0.25, schedule.ends[1] + 1, math.nan):
        with pytest.raises(ValueError, match=rf"time must lie within \[0, 10*\], but is {bad}"):
            schedule(bad)
        with pytest.raises(ValueError, match=rf"but is {bad}"):
            schedule(np.asarray([1.0, bad]))


@pytest.mark.parametrize("schedule", [linear(), LinearLogSNR()])
@pytest.mark.parametrize("bad", [-50.0, math.nan])
def test_log_snrs_outside_are_named(schedule, bad):
    """`at` below the noisiest level, or of what is not a number, says which value."""
    with pytest.raises(ValueError, match=rf"logsnr must lie within \[.*\], but is {bad}"):
        schedule.at(np.asarray([0.0, bad]))


@pytest.mark.parametrize("schedule", [VP(), VP(0.1, 1000.0), LinearLogSNR(), EDM()])
def test_log_snrs_at_the_noisiest_level(schedule):
    """One that rounding took past the noisiest level has its time; 1e-6 past it is refused."""
    lowest, noisiest = schedule(schedule.ends[1]).logsnr, schedule.ends[1]
    assert schedule.at(lowest * (1 + 4 * EPS)).time == noisiest
    with pytest.raises(ValueError, match="logsnr must lie within"):
        schedule.at(lowest - 1e-6)


def test_log_snr_above_the_cleanest_is_named():
    """`at` above the cleanest level says which value, not merely the first."""
    with pytest.raises(ValueError, match=r"within \[-5\.0, 13\.3\], but is 20\.0"):
        LinearLogSNR().at(np.asarray([0.0, 20.0]))


def halves(lib):
    return [name for name in ("float16", "bfloat16") if hasattr(lib.xp, name)]


@pytest.mark.lanes("torch", "jax", "mlx")
@pytest.mark.parametrize(
    "make", [linear, lambda: cosine(4000), VP, Flow], ids=["linear", "cosine", "VP", "flow"]
)
def test_times_in_half_precision(lib, make):
    """A level in half precision is that of float64, cast last, and its time is float32."""
    schedule = make()
    for half in halves(lib):
        dtype = getattr(lib.xp, half)
        eps = float(lib.xp.finfo(dtype).eps)
        times = [1.0, 0.5, 0.25, 501 / 1024] if schedule.ends[1] == 1 else [schedule.T, 501, 3.5, 1]
        exact = np.float32(times)
        rounded = lib.to_numpy(lib.asarray(exact, dtype)).astype(np.float64)
        whole = lib.asarray(exact.astype(np.int32))
        for level, at in (
            (schedule(lib.asarray(exact, dtype)), rounded),  # times that are halves themselves
            (schedule(lib.asarray(exact), dtype=dtype), exact.astype(np.float64)),
            (schedule(whole, dtype=dtype), np.floor(exact).astype(np.float64)),
        ):
            with np.errstate(divide="ignore"):
                wanted = schedule(at)
            assert level.time.dtype == lib.xp.float32
            np.testing.assert_array_equal(lib.to_numpy(level.time), at)
            for got, want in zip(level[1:], wanted[1:], strict=True):
                assert got.dtype == dtype
                # One rounding of the cast, and float32's own, relative to log-SNR's size.
                np.testing.assert_allclose(lib.to_numpy(got), want, rtol=eps, atol=1e-6)


@pytest.mark.parametrize("kind", ["float16", "int32", "float64"])
def test_device_times_for_half_precision(kind):
    """They are looked up in float32 at least; the level's dtype is the one that was asked for."""
    xp, times, dtype = device_times(np.asarray([1, 500], kind), np.float16)
    assert (xp.__name__.split(".")[-1], dtype) == ("numpy", np.float16)
    assert times.dtype == (np.float64 if kind == "float64" else np.float32)
    np.testing.assert_array_equal(times, [1, 500])


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "int64"])
def test_integer_times_of_any_width(lib, kind):
    """Integers of the device are indices, of any width; the level is float32, and so its time."""
    if lib.name == "jax" and kind == "int64":
        pytest.skip("JAX has no int64 by default")
    times = np.asarray([0, 1, 200 if kind == "uint8" else 1000])
    schedule = linear()
    level = schedule(lib.asarray(times, getattr(lib.xp, kind)))
    if lib.name == "numpy":
        return  # of the host
    for got, want in zip(level, schedule(times.astype(np.float64)), strict=True):
        assert got.dtype == lib.xp.float32
        if lib.has_values:
            np.testing.assert_allclose(lib.to_numpy(got), want, rtol=4e-7)


@pytest.mark.parametrize(
    "schedule", [linear(), zero_terminal_snr(linear())], ids=["linear", "zero"]
)
def test_times_of_the_device(lib, schedule):
    """A level of the device is that of the host, at whole times and between them."""
    times = np.asarray([0.0, 0.5, 1.0, 3.25, 400.0, 998.5, 999.0, 1000.0], np.float32)
    level, wanted = schedule(lib.asarray(times)), schedule(times)
    if lib.has_values:
        eps = np.finfo(np.float32).eps
        for got, want in zip(level, wanted, strict=True):
            # λ has a few roundings of -log ᾱ, absolute or of its own size, and α² and σ² those.
            np.testing.assert_allclose(lib.to_numpy(got), want, rtol=16 * eps, atol=16 * eps)


@pytest.mark.filterwarnings("ignore:divide by zero enc:RuntimeWarning")  # strict, dask: VP at 0
@pytest.mark.parametrize("schedule", [VP(), LinearLogSNR(), Flow(), EDM()], ids=str)
def test_integer_times_of_a_continuous_schedule(lib, schedule):
    """0 and 1 are times too: the level is of floats, its time as well."""
    level = schedule(lib.asarray(np.asarray([0, 1], np.int32)))
    wanted = schedule(np.asarray([0.0, 1.0]))
    for got, want in zip(level, wanted, strict=True):
        assert lib.xp.isdtype(got.dtype, "real floating") if lib.name != "mlx" else True
        if lib.has_values:
            np.testing.assert_allclose(lib.to_numpy(got), want, rtol=1e-6)


@pytest.mark.parametrize("kind", [int, np.int64, np.float32, np.asarray], ids=lambda k: k.__name__)
@pytest.mark.parametrize("schedule", [linear(), VP(), LinearLogSNR(), Flow(), EDM()], ids=str)
def test_numbers_of_any_kind_give_python_floats(schedule, kind):
    """One host number of any kind is one level of Python floats; so it is in `at`."""
    level = schedule(kind(1))
    assert level == schedule(1.0)
    assert all(type(field) is float for field in level)
    assert all(type(field) is float for field in schedule.at(kind(3)))


def test_gradients_of_times():
    """The slope of log ᾱ inside a step, and 0 at integers, also at one without data."""
    torch = pytest.importorskip("torch")
    schedule = zero_terminal_snr(linear())
    times = torch.tensor([0.0, 0.5, 998.5, 999.0, 1000.0], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(schedule(times).alpha.sum(), times)
    slope = np.diff(log_sigmoid(np.asarray(schedule.logsnr)))[[0, 998]]
    first, last = schedule(np.asarray([0.5, 998.5])).alpha * slope / 2
    np.testing.assert_allclose(found, [0, first, last, 0, 0], rtol=1e-9)
