"""A sampler as JSON: every solver and every number to the bit, and what is no sampler refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_paths import few, fewer, paths, solvers, uneven

import ddpm_core as ddpm
from ddpm_core import Sampler

TEXT = ddpm.dpmpp_2m(ddpm.linear(1000), 2).to_json()
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def check_equal(a: Sampler, b: Sampler) -> None:
    """The same to the bit: the signs of zeros, too."""
    assert a.name == b.name
    fields = ((*each.levels, each.read, each.point, each.anchor) for each in (a, b))
    for x, y in zip(*fields, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype == np.float64
        assert x.tobytes() == y.tobytes()


@solvers
@fewer
@given(path=paths() | uneven())
def test_solvers(solver, path):
    sampler = path.build(solver)
    check_equal(Sampler.from_json(sampler.to_json()), sampler)


@few
@given(data=st.data(), name=st.text(), n=st.integers(1, 3), width=st.integers(4, 7))
def test_numbers(data, name, n, width):
    """Of any size, and a log-SNR or a time that JSON has no number for."""

    def array(*shape, of=FLOATS):
        size = math.prod(shape)
        return np.array(data.draw(st.lists(of, min_size=size, max_size=size))).reshape(shape)

    levels = ddpm.Level(
        array(n + 1, of=st.floats() | st.just(-math.inf)),
        array(n + 1, of=st.floats(allow_nan=False)),
        array(n + 1),
        array(n + 1, of=st.floats(5e-324, 1.0)),
    )
    levels.time[np.isnan(levels.time)] = math.nan  # one of many, which JSON cannot tell apart
    sampler = Sampler(name, levels, array(n, 2), array(n, width), array(n, width))
    text = sampler.to_json()
    json.loads(text, parse_constant=pytest.fail)  # it is JSON, as others read it
    check_equal(Sampler.from_json(text), sampler)


def test_the_longest_text():
    check_equal(Sampler.from_json(TEXT.ljust(2**24)), Sampler.from_json(TEXT))


def test_other_writers():
    """1.0 may be spelled 1, and -0.0 as -0, as other languages do."""
    about = json.loads(TEXT)
    about["point"][0][1] = -0.0
    spelled = json.dumps(about).replace("-0.0", "-0").replace("1.0,", "1,")
    assert spelled != json.dumps(about)
    check_equal(Sampler.from_json(spelled), Sampler.from_json(json.dumps(about)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(version=2), "version must be 1"),
        (lambda a: a.update(version=True), "version must be 1"),
        (lambda a: a.pop("version"), "lacks version"),
        (lambda a: a.update(name=None), "name must be a text, not None"),
        (lambda a: a.update(levels=[]), "lacks time"),
        (lambda a: a["levels"].pop("alpha"), "lacks alpha"),
        (lambda a: a["levels"]["time"].pop(), r"levels.time must be a list of 3, not \[1000"),
        (lambda a: a["levels"].update(sigma=0.5), "levels.sigma must be a list of 3, not 0.5"),
        (lambda a: a["levels"]["alpha"].__setitem__(1, "NaN"), r"levels.alpha\[1\] is nan"),
        (lambda a: a["levels"]["sigma"].__setitem__(1, 0), "only the last level may be clean"),
        (lambda a: a.update(read=[]), "read must be a list that is not empty"),
        (lambda a: a["read"].__setitem__(0, [1, 2, 3]), r"read\[0\] must be a list of 2"),
        (lambda a: a["point"].pop(), "point must be a list of 2"),
        (lambda a: a["anchor"][1].pop(), r"anchor\[1\] must be a list of 5"),
        (lambda a: a["anchor"][1].__setitem__(0, "1.5"), r"anchor\[1\]\[0\] must be a number"),
        (lambda a: a["anchor"][1].__setitem__(0, True), r"anchor\[1\]\[0\] must be a number"),
        (lambda a: a["anchor"][1].__setitem__(0, 10**400), r"anchor\[1, 0\] is inf"),
        (lambda a: a.update(point=[[1, 1, 1]] * 2, anchor=[[1, 1, 1]] * 2), "at least 4"),
        (lambda a: a["levels"].update(logsnr=[1, math.nan, 3]), 'NaN must be the text "NaN"'),
    ],
)  # fmt: skip
def test_what_is_refused(change, message):
    about = json.loads(TEXT)
    change(about)
    with pytest.raises(ValueError, match=message):
        Sampler.from_json(json.dumps(about))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON: Expecting value"),
        ("[1]", "lacks version"),
        ("[" * 100_000, "nested too deeply"),
        (" " * (2**24 + 1), "at most 16,777,216 characters, not 16,777,217"),
    ],
    ids=("empty", "list", "deep", "long"),
)
def test_texts_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Sampler.from_json(text)
