"""A sampler as JSON, for programs in other languages: every number to the bit."""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any, NoReturn, cast

import numpy as np

from ddpm_core.levels import Level
from ddpm_core.typing import Array

VERSION = 1
MOST = 2**24  #: characters; a thousand rows take about 200,000
_NOT_IN_JSON = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def written(name: str, levels: Level, read: Array, point: Array, anchor: Array) -> str:
    """The JSON of a sampler."""
    fields = {each: _spelled(field.tolist()) for each, field in levels._asdict().items()}
    tables = {"read": read.tolist(), "point": point.tolist(), "anchor": anchor.tolist()}
    return json.dumps({"version": VERSION, "name": name, "levels": fields, **tables})


def parsed(text: str) -> tuple[str, Level, Array, Array, Array]:
    """A sampler's name, levels, read, point and anchor, from the JSON that `written` makes.

    ValueError if the text is not such JSON; what the numbers are is for the sampler to check.
    """
    if len(text) > MOST:
        raise ValueError(f"a sampler's JSON has at most {MOST:,} characters, not {len(text):,}")
    try:
        # Integers as floats: some writers spell 1.0 so, and -0.0 as -0.
        about: Any = json.loads(text, parse_int=float, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("a sampler's JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"a sampler's JSON is not JSON: {error}") from None
    version = _entry("version", about)
    if type(version) is not float or version != VERSION:
        _refuse("version", f"{VERSION}, the only one there is", version)
    name = _entry("name", about)
    if not isinstance(name, str):
        _refuse("name", "a text", name)
    levels, read, point, anchor = (
        _entry(each, about) for each in ("levels", "read", "point", "anchor")
    )
    _length("point", point)
    n, width = _length("read", read), _length("point[0]", point[0])
    return (
        name,
        Level(*(_array(f"levels.{f}", _entry(f, levels), n + 1) for f in Level._fields)),
        _array("read", read, n, 2),
        _array("point", point, n, width),
        _array("anchor", anchor, n, width),
    )


def _spelled(numbers: list[float]) -> list[float | str]:
    """Numbers, as texts where JSON has none; C, JavaScript and others read those texts, too."""
    return [x if math.isfinite(x) else json.dumps(x) for x in numbers]


def _entry(name: str, about: Any) -> Any:
    if not isinstance(about, dict) or name not in about:
        raise ValueError(f"a sampler's JSON lacks {name}")
    return cast(Any, about[name])


def _length(name: str, found: Any) -> int:
    if not isinstance(found, list) or not found:
        _refuse(name, "a list that is not empty", found)
    return len(cast(list[Any], found))


def _array(name: str, found: Any, *shape: int) -> Array:
    return np.array(_checked(name, found, shape))


def _checked(name: str, found: Any, shape: tuple[int, ...]) -> Any:
    """Nested lists of floats, of this shape."""
    if shape:
        if not isinstance(found, list) or len(rows := cast(list[Any], found)) != shape[0]:
            _refuse(name, f"a list of {shape[0]}", found)
        return [_checked(f"{name}[{i}]", row, shape[1:]) for i, row in enumerate(rows)]
    if isinstance(found, str) and found in _NOT_IN_JSON:
        return _NOT_IN_JSON[found]
    if not isinstance(found, float):
        _refuse(name, "a number", found)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f'a sampler\'s JSON is not JSON: {name} must be the text "{name}"')


def _refuse(name: str, wanted: str, found: Any) -> NoReturn:
    raise ValueError(f"a sampler's JSON: {name} must be {wanted}, not {reprlib.repr(found)[:80]}")
