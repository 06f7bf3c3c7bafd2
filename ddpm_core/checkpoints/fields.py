"""JSON of unknown origin: each entry is checked as it is taken, and errors name the entry."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Collection, Sequence
from typing import Any, cast

MAX_JSON = 2**24  #: bytes; a schedule of a thousand levels takes about 20,000
_REQUIRED: Any = object()


def parse(text: str | bytes, what: str) -> Fields:
    """The JSON object in a text. ValueError, which begins with `what`, if there is none."""
    if len(text) > MAX_JSON:
        raise ValueError(f"{what} has more than {MAX_JSON} bytes of JSON")
    try:
        about: object = json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {cut(error)}") from None
    return Fields(about, what)


def shown(value: object) -> str:
    """A value for an error message, cut to fit a line."""
    return cut(reprlib.repr(value))


def cut(text: object) -> str:
    """A name or another error's text for an error message, cut to fit a line."""
    return line if len(line := " ".join(str(text).split())) <= 80 else f"{line[:77]}..."


class Fields:
    """A JSON object whose entries are taken by type and range.

    ValueError if an entry is missing and has no default, or is not of the type asked for.
    """

    def __init__(self, about: object, what: str) -> None:
        if not isinstance(about, dict):
            raise ValueError(f"{what} is not a JSON object")
        self.about = cast(dict[str, Any], about)
        self.what = what

    def value(self, name: str, default: Any = _REQUIRED) -> Any:
        """An entry as it is."""
        found = self.about.get(name, default)
        if found is _REQUIRED:
            raise ValueError(f"{self.what} lacks {name}")
        return found

    def fields(self, name: str) -> Fields:
        """An entry that is an object itself."""
        return Fields(self.value(name), f"{self.what}: {name}")

    def integer(self, name: str, low: int, high: int, default: Any = _REQUIRED) -> int:
        """An integer in [low, high]."""
        return self._integer(name, self.value(name, default), low, high)

    def _integer(self, name: str, found: Any, low: int, high: int) -> int:
        if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
            self._refuse(name, f"an integer from {low} to {high}", found)
        return found

    def integers(self, name: str, count: int, low: int, high: int) -> list[int]:
        """So many integers in [low, high]."""
        found = self.entries(name)
        if len(found) != count:
            self._refuse(name, f"a list of {count} integers", found)
        return [self._integer(name, n, low, high) for n in found]

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A finite number."""
        found = self._float(name, self.value(name, default))
        if not math.isfinite(found):
            self._refuse(name, "a finite number", found)
        return found

    def numbers(self, name: str) -> list[float]:
        """A list of numbers, which may be infinite."""
        return [self._float(name, n) for n in self.entries(name)]

    def _float(self, name: str, found: Any) -> float:
        if not isinstance(found, bool) and isinstance(found, (int, float)):
            try:
                return float(found)
            except OverflowError:
                pass
        return self._refuse(name, "a number", found)

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        found = self.value(name, default)
        if not isinstance(found, bool):
            self._refuse(name, "true or false", found)
        return found

    def texts(self, name: str) -> list[str]:
        """A list of texts."""
        found = self.entries(name)
        if not all(isinstance(text, str) for text in found):
            self._refuse(name, "a list of texts", found)
        return found

    def entries(self, name: str) -> list[Any]:
        """A list of anything; a tuple will do."""
        found = self.value(name)
        if not isinstance(found, (list, tuple)):
            self._refuse(name, "a list", found)
        return [*cast(Sequence[Any], found)]

    def one_of(self, name: str, among: Collection[Any], default: Any = _REQUIRED) -> Any:
        """One of several values, in JSON's types: 0 is not false."""
        found = self.value(name, default)
        for value in among:
            if type(value) is type(found) and value == found:
                return value
        names = ", ".join(map(json.dumps, among))
        return self._refuse(name, names if len(among) == 1 else f"one of {names}", found)

    def _refuse(self, name: str, wanted: str, found: object) -> Any:
        raise ValueError(f"{self.what}: {name} must be {wanted}, not {shown(found)}")
