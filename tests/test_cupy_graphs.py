"""Calls on CuPy as CUDA graphs, on the stand-in: what is captured, launched and waited for."""

from __future__ import annotations

import gc
from typing import Any

import cupy_standin
import numpy as np
import pytest
from cupy_standin import CONFIGS, values
from fakecupy import gpu
from networks import random_params

import ddpm_core as ddpm
from ddpm_core import Level, samplers

cp, on = cupy_standin.cp, cupy_standin.on


@pytest.mark.slow
def test_graph_of_a_network(on, cp):
    """Captured once for a shape, and right for arguments it has not seen."""
    config = CONFIGS["ho"]
    net = on.network(random_params(config), config)
    fast = on.compile(net)
    rng, kept = np.random.default_rng(0), []
    for batch in (2, 2, 1, 2):
        x = cp.asarray(rng.standard_normal((batch, 3, 4, 4)).astype(np.float32))
        time = cp.asarray(rng.uniform(0, 1000, batch).astype(np.float32))
        kept.append((fast(x, time), net(x, time)))
    for found, wanted in kept:  # also those before: a launch leaves earlier results alone
        np.testing.assert_array_equal(values(found), values(wanted))


@pytest.mark.slow
def test_graph_of_a_sampler(on):
    """A whole sampler with its noise is one graph; so is a row whose numbers are arrays."""
    schedule = ddpm.linear(1000)
    noise, table = on.portable_noise(1), samplers.sde_dpmpp_2m(schedule, 4)
    x = noise(0, (3, 5))

    def oracle(x: Any, t: Level) -> Any:  # of N(0, 1 / 2)
        return x * (t.alpha / (t.alpha**2 + 2 * t.sigma**2))

    def drawn(x: Any) -> Any:
        return ddpm.sample(oracle, table, x, noise, lincomb=on.lincomb)

    wanted = values(drawn(x))
    fast = on.compile(drawn)
    for given_x in (x, x + 1.0):
        np.testing.assert_array_equal(values(fast(given_x)), values(drawn(given_x)))

    calls: list[int] = []

    @on.compile
    def advanced(row: samplers.Row, state: samplers.State, step: Any) -> samplers.State:
        calls.append(1)
        y = oracle(state.point, row.level)
        return ddpm.advance(row, state, y, noise(step, (3, 5)), lincomb=on.lincomb)

    rows, state = table.rows_as(on.xp, on.dtype), table.start(x)
    for i in range(table.nfe):
        at = Level(*(a[i] for a in rows.level))
        row = samplers.Row(at, *(tuple(a[i] for a in part) for part in rows[1:]))
        state = advanced(row, state, on.asarray(i + 1, np.int64))
    assert len(calls) == 2  # to warm up, and to capture
    assert isinstance(state, samplers.State)
    # Coefficients and levels in float32 now, where they were in float64.
    np.testing.assert_allclose(values(state.point), wanted, rtol=0, atol=1e-4)


def test_graph_within_a_graph(on):
    """A compiled function within another is a part of its graph."""
    inner = on.compile(lambda x: x * 2.0)
    x = on.asarray(np.arange(3.0))
    np.testing.assert_array_equal(values(inner(x)), [0, 2, 4])
    outer, before = on.compile(lambda x: inner(x + 1.0) - 1.0), len(gpu.events)
    np.testing.assert_array_equal(values(outer(x)), [1, 3, 5])
    captured = gpu.events[gpu.events.index("begin", before) : gpu.events.index("end", before)]
    assert captured == ["begin"]
    np.testing.assert_array_equal(values(outer(x + 1.0)), [3, 5, 7])


def test_graph_for_each_number(on):
    """A number is baked in, so another one is another graph; 1 and 1.0 and True are three."""
    calls = []

    def scaled(x: Any, by: Any, *, and_so: Any = ()) -> Any:
        calls.append(by)
        return {"scaled": x * float(by), "what": [by, x]}

    fast, x = on.compile(scaled), on.asarray(np.arange(3.0))

    @on.compile
    def named(**parts: Any) -> Any:
        return parts["x"] - parts["y"]

    three, x = on.asarray(np.full(3, 3.0)), on.asarray(np.arange(3.0))
    np.testing.assert_array_equal(values(named(x=x, y=three)), [-3, -2, -1])
    np.testing.assert_array_equal(values(named(y=x, x=three)), [3, 2, 1])
    for by in (2.0, 3.0, 2.0, 1, 1.0, True, 1):
        found = fast(x, by, and_so=(x, x))
        np.testing.assert_array_equal(values(found["scaled"]), np.arange(3.0) * float(by))
        assert type(found["what"][0]) is type(by)
        np.testing.assert_array_equal(values(found["what"][1]), np.arange(3.0))
    assert len(calls) == 2 * 5
    fast(x, 2.0, and_so=((x,), x))  # the same arrays in another nest
    fast(x, 2.0, and_so=[x, x])
    fast(on.asarray(np.arange(3.0), np.float64), 2.0, and_so=(x, x))
    assert len(calls) == 2 * 8
    fast(on.asarray(np.arange(6.0)).reshape(3, 2).T, 2.0, and_so=(x, x))
    assert len(calls) == 2 * 9
    found = fast(on.asarray(np.arange(10.0, 16.0)).reshape(3, 2).T, 2.0, and_so=(x, x))
    assert len(calls) == 2 * 9
    np.testing.assert_array_equal(values(found["scaled"]), np.arange(20.0, 32.0, 2).reshape(3, 2).T)


def test_graph_and_streams(on):
    """The capture waits for the caller's stream and is waited for; one launch a call."""
    fast, x = on.compile(lambda x: x + 1.0), on.asarray(np.ones(2))
    gpu.events.clear()
    fast(x)
    before, after = ["null recorded", "stream waits for null"], ["stream recorded"]
    captured = [*before, "begin", "end", *after, "null waits for stream"]
    wait, launched = "null waits for the event", ["launch", "null records the event"]
    assert gpu.events == [wait, *captured, *launched]
    waits = gpu.synchronisations
    fast(x)
    assert gpu.events == [wait, *captured, *launched, wait, *launched]
    assert gpu.synchronisations == waits
    del fast
    gc.collect()
    assert gpu.events[-1] == "memory is free"


@pytest.mark.parametrize(
    ("what", "message"),
    [(lambda x: float(x[0]), "synchronous API calls"), (lambda x: x * x + 1.0, None)],
)
def test_graph_of_what_waits(on, what, message):
    """It is refused by its own error, and the stream captures no more; without a wait it is not."""
    fast, x = on.compile(what), on.asarray(np.ones(2))
    if message is None:
        fast(x)
    else:
        with pytest.raises(RuntimeError, match=message):
            fast(x)
    assert gpu.recorded is None
    np.testing.assert_array_equal(values(on.compile(lambda x: x + 1.0)(x)), [2, 2])


def test_graph_of_cupys_own_product(on):
    """CuPy refuses it, as the real one does: the backend's is another."""
    fast, x = on.compile(lambda x: x @ x), on.asarray(np.ones((2, 2)))
    with pytest.raises(NotImplementedError, match="cuBLAS"):
        fast(x)


def test_graph_of_what_is_copied(on, cp):
    """Copies from the host are refused in a capture, so nothing in a network makes one there."""
    fast = on.compile(lambda x: x + cp.asarray([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="H2D transfers"):
        fast(on.asarray(np.ones(2)))


def test_graph_takes_no_arrays_of_the_host(on):
    with pytest.raises(TypeError, match=r"what is hashable, not numpy\.ndarray"):
        on.compile(lambda x: x)(np.ones(2))
