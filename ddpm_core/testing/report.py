"""What checking the laws of an object found, as a table, as JSON, or as an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

P = ParamSpec("P")


class Finding(NamedTuple):
    """What checking one law found.

    law: what must hold, in words or as an equation
    source: the paper and equation
    cases: how many were tried
    error, allowed: of the worst case: how far it is off, and how far rounding may put it off. None
        where there are no such numbers
    failure: the simplest case that breaks the law, with both numbers; empty if none does
    note: what the numbers do not say, such as why the law does not apply
    reported: whether it is a fact, of which no law says what it must be
    """

    law: str
    source: str
    cases: int = 0
    error: float | None = None
    allowed: float | None = None
    failure: str = ""
    note: str = ""
    reported: bool = False

    @property
    def verdict(self) -> str:
        """holds, broken, reported, or does not apply."""
        if self.failure:
            return "broken"
        if self.reported:
            return "reported"
        return "holds" if self.cases else "does not apply"


@dataclass(frozen=True)
class Report:
    """What checking an object found, law by law.

    subject: the object, in words
    """

    subject: str
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.failure)

    def check(self) -> Report:
        """This report; AssertionError if a law is broken, saying which, at what case, by how much.

        The error has the report as its `report`.
        """
        if not self.broken:
            return self
        count = "1 law" if len(self.broken) == 1 else f"{len(self.broken)} laws"
        lines = [f"{count} of {self.subject} {'fails' if len(self.broken) == 1 else 'fail'}"]
        for finding in self.broken:
            lines.append(f"- {finding.law} ({finding.source}): {finding.failure}")
        error: Any = AssertionError("\n".join(lines))
        error.report = self
        raise error

    def to_json(self) -> dict[str, Any]:
        """As `json.dumps` takes it; NaN and infinities are words."""
        findings: list[dict[str, Any]] = []
        for finding in self.findings:
            numbers = {name: _number(getattr(finding, name)) for name in ("error", "allowed")}
            findings.append(finding._asdict() | numbers | {"verdict": finding.verdict})
            del findings[-1]["reported"]  # which the verdict says
        return {"subject": self.subject, "findings": findings}

    def __str__(self) -> str:
        rows = [("law", "cases", "error", "allowed", "verdict")]
        for f in self.findings:
            error, allowed = ("" if n is None else f"{n:.1e}" for n in (f.error, f.allowed))
            rows.append((f.law, str(f.cases), error, allowed, f.verdict))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        notes = [f"{f.law}: {f.failure or f.note}" for f in self.findings if f.failure or f.note]
        return "\n".join([self.subject, *lines, *notes])

    __repr__ = __str__


def _number(x: float | None) -> float | str | None:
    return x if x is None or math.isfinite(x) else str(x)


def raising(examine: Callable[P, Report]) -> Callable[P, Report]:
    """`check_x` of `examine_x`: the same, but that it raises the report's error."""

    @wraps(examine)
    def check(*args: P.args, **kwargs: P.kwargs) -> Report:
        return examine(*args, **kwargs).check()

    first = "AssertionError if a law is broken, saying which, where, by how much; else the report."
    check.__doc__ = f"{first}\n\n    {examine.__doc__}"
    check.__name__ = check.__qualname__ = examine.__name__.replace("examine", "check")
    return check
