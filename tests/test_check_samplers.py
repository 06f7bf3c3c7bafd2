"""`check_sampler`: every solver passes, and what is wrong breaks the law that is for it.

More wrong ones are in `test_planted_defects.py`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.samplers.registry import ENTRIES
from ddpm_core.testing import check_sampler, examine_sampler

LINEAR = ddpm.linear()
#: Restart's calls grow evenly once it has all its restarts; an inversion needs one time to spare.
COUNTS = {
    "restart": [*range(5, 12), 132],
    "ddim_inversion": [*range(1, 12), 132],
    "bdia_inversion": [*range(1, 12), 132],
}
SPREAD = "of N(0, 1/4) the log of the variance drawn tends to the data's as the steps grow"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_table_passes(entry):
    """Of each solver, in few steps."""
    assert check_sampler(entry.solver(LINEAR, 5)).subject.startswith(entry.name)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_solver_passes(entry):
    """As a maker, on all small counts of steps."""
    found = check_sampler(entry.solver, steps=COUNTS.get(entry.name))
    said = {finding.law: finding.verdict for finding in found.findings}
    assert len(said) == 12
    silent = {law for law, verdict in said.items() if verdict == "does not apply"}
    assert len(silent) <= 2
    assert ("x_0 known: the variance at each level is sigma²" in silent) is not entry.takes_noise


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.from_noise], ids=lambda e: e.name)
def test_every_order_is_found(entry):
    """The order of the registry passes, and one more does not; er_sde shows more than its own."""
    found = check_sampler(entry.solver, entry.order, steps=COUNTS.get(entry.name))
    assert "measured order" in found.findings[-1].law
    more = entry.order + 1 + (entry.name == "er_sde")
    with pytest.raises(AssertionError, match=f"is at least {more}, rounded to a whole"):
        check_sampler(entry.solver, more, steps=COUNTS.get(entry.name))


@pytest.mark.parametrize("schedule", [ddpm.VP(), ddpm.cosine(1000), ddpm.linear(12, rescale=False)])
def test_schedules_of_a_maker(schedule):
    """A given schedule is the only one, continuous or discrete."""
    check_sampler(ddpm.dpmpp_2m, schedule=schedule)


@pytest.mark.parametrize(
    ("steps", "tried"), [([50, 20, 10], 0), ([10, 250], 0), ([250, 5, 20, 10, 25], 1)]
)
def test_a_maker_that_takes_some_counts(steps, tried):
    """It is run on no other. The law of the variance needs one, and two of at most its twelfth."""

    def picky(schedule, n):
        if n not in steps:
            raise ValueError(f"steps must be one of {steps}")
        return ddpm.ddim(schedule, n)

    (spread,) = (f for f in check_sampler(picky, steps=steps).findings if f.law == SPREAD)
    assert spread.cases == tried


@pytest.mark.parametrize("steps", [None, [10, 20, 240]])
def test_a_variance_that_tends_elsewhere(steps):
    """The failure says which counts were compared: those of steps, or T/4 beside T/100 and T/50."""

    def shrunk(schedule, steps):
        u = ddpm.ddim(schedule, steps).unroll()
        return replace(u, y=u.y * np.where(np.arange(steps) > steps / 2, 0.9, 1.0))

    found = {f.law: f.failure for f in examine_sampler(shrunk, steps=steps).broken}
    most = 250 if steps is None else 240
    assert f"at {most} steps, beside a quarter of what it is off after 10 or 20: " in found[SPREAD]


def test_a_variance_between_the_two_is_a_choice():
    """`large`, and a mean of both, pass with a note; what is above `large` fails."""
    law = "x_0 known: the variance at each level is sigma²"
    between = lambda t, s: 0.5 * (ddpm.small(t, s) + ddpm.large(t, s))
    for variance, noted in ((ddpm.small, False), (between, True), (ddpm.large, True)):
        found = check_sampler(partial(ddpm.ancestral, variance=variance)).findings
        (finding,) = (f for f in found if f.law == law)
        assert ("a choice" in finding.note) is noted
    more = lambda t, s: 1.01 * ddpm.large(t, s)
    for bad in (more, lambda t, s: 0.99 * ddpm.small(t, s)):
        found = examine_sampler(ddpm.ancestral(LINEAR, 5, bad))
        assert [f.law for f in found.broken] == [law]


def changed(field, at, factor):
    """DDIM in 5 steps, unrolled, with one number multiplied."""
    u = ddpm.ddim(LINEAR, 5, eta=0.5).unroll()
    values = getattr(u, field).copy()
    values[at] *= factor
    return replace(u, **{field: values})


@pytest.mark.parametrize(
    ("table", "law", "says"),
    [
        (
            changed("y", (2, 1), 1 + 1e-9),
            "x_0 known: the mean at each level is alpha x_0",
            "point 2",
        ),
        (
            changed("z", (3, 2), 1 - 1e-9),
            "x_0 known: the variance at each level is sigma²",
            "point 3",
        ),
        (changed("y", (5, 4), 1 + 1e-9), "at clean data the sample is the last x_0", "last row"),
    ],
)
def test_a_wrong_number_is_found(table, law, says):
    """One of a table, wrong in the ninth digit."""
    with pytest.raises(AssertionError, match=re.escape(law)) as failure:
        check_sampler(table)
    assert f"at {says}: " in str(failure.value)


def test_the_simplest_failure_is_told():
    """Of a maker that is wrong from the third step on, three steps of the smallest T."""

    def wrong(schedule, steps):
        u = ddpm.ddim(schedule, steps).unroll()
        y = u.y.copy()
        y[3:, 2] *= 1.5
        return replace(u, y=y)

    with pytest.raises(AssertionError, match=r"alpha x_0 .*: at T = 3, 3 steps, point 3: 1.5 and"):
        check_sampler(wrong)


def test_levels():
    """Calls at clean data, and noise that rises without fresh noise."""
    u = ddpm.ddim(LINEAR, 4).unroll()
    clean = replace(u, levels=LINEAR(np.array([1000.0, 500, 0, 0, 0])))
    with pytest.raises(AssertionError, match=r"no network is called at clean data .*: at call 2:"):
        check_sampler(clean)
    up = replace(u, levels=LINEAR(np.array([1000.0, 500, 750, 250, 0])))
    with pytest.raises(AssertionError, match=r"noise falls, .*: at call 1: -5.69"):
        check_sampler(up)


@pytest.mark.parametrize("schedule", [ddpm.zero_terminal_snr(LINEAR), ddpm.cosine(4000), ddpm.VP()])
def test_times_of_a_table(schedule):
    """They are those of its own schedule, also where it is rounded, and of no other."""
    law = "each level has the log-SNR, alpha and sigma of the schedule at its time"
    table = samplers.dpmpp_2s(schedule, 61)
    assert law in [finding.law for finding in check_sampler(table, schedule=schedule).findings]
    assert law not in [finding.law for finding in check_sampler(table).findings]
    u = table.unroll()
    rough = replace(u, levels=u.levels.map(lambda field: field.astype(np.float32)))
    check_sampler(rough, schedule=schedule, precision=1e-6)
    with pytest.raises(AssertionError, match=f"{law} .*: at point 0, time "):
        check_sampler(table, schedule=ddpm.linear(5000, rescale=True))


class Counting:
    """A maker that is wrong when it was called before, by anyone."""

    def __init__(self):
        self.last = None

    def __call__(self, schedule, steps):
        u = ddpm.ddim(schedule, steps).unroll()
        last, self.last = self.last, steps
        return u if last in (None, steps) else replace(u, x=u.x * 0.9)


def test_state_between_calls():
    """What one call leaves behind for the next is found."""
    broken = {f.law: f.failure for f in examine_sampler(Counting(), threads=False).broken}
    assert any("the same table again" in law for law in broken)


def test_calls():
    """How many network calls steps make: as claimed, or evenly."""
    check_sampler(ddpm.heun, calls=lambda n: 2 * n - 1)
    with pytest.raises(AssertionError, match=r"that are claimed .* at T = 1, 1 step: 1 and not 2"):
        check_sampler(ddpm.heun, calls=lambda n: 2 * n)
    uneven = lambda schedule, n: ddpm.ddim(schedule, n + (n == 7 < schedule.T))
    with pytest.raises(AssertionError, match=r"one step more .* at T = 8, 7 steps: 8 and not 7"):
        check_sampler(uneven)


def test_a_maker_that_raises():
    """Is told where, and the tables that it makes are checked all the same."""

    def unready(schedule, steps):
        if steps == 3:
            raise IndexError("list index out of range")
        return ddpm.ddim(schedule, steps)

    found = examine_sampler(unready, threads=False)
    assert "at T = 3, 3 steps: it raises IndexError: list index" in found.broken[0].failure
    assert found.findings[1].cases > 600


def test_precision():
    """What is made in float32 passes with its rounding, and not with that of float64."""
    u = ddpm.dpmpp_2m(LINEAR, 5).unroll()
    rough = replace(u, **{name: getattr(u, name).astype(np.float32) for name in "xyz"})
    check_sampler(rough, precision=1e-7)
    with pytest.raises(AssertionError, match="alpha x_0"):
        check_sampler(rough)


def test_a_step_that_looks_at_the_whole_batch():
    """Its table is no sampler's: the probe of a step cannot tell it, but the law of the mean does.

    Of a factor that all elements share, a probe sees as much as of a coefficient.
    """
    levels = ddpm.levels_of(LINEAR, 4)
    rows = ddpm.ddim(LINEAR, 4).rows()

    def step(i, x, y, z, share=0.0):
        x = ddpm.advance(rows[i], samplers.State(x, x, ()), y).point
        return x * (1 + share * np.sqrt((x**2).mean()))

    check_sampler(samplers.from_step(step, levels))
    with pytest.raises(AssertionError, match="the mean at each level is alpha x_0"):
        check_sampler(samplers.from_step(partial(step, share=1e-6), levels))


def test_arguments():
    """What is no sampler, and an order of a single table."""
    with pytest.raises(TypeError, match=r"sampler must be a Sampler, an Unrolled, or a function"):
        check_sampler(3)
    with pytest.raises(ValueError, match="an order is of what makes tables"):
        check_sampler(samplers.heun(LINEAR, 3), 2)
