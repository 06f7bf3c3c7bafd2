"""`check_backend`: a backend beside NumPy, on the device that it is for."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import numpy as np

from ddpm_core.backends import Backend, backend
from ddpm_core.nn import Ops
from ddpm_core.testing.backend_checks import CHECKS, Check, NotApplicable
from ddpm_core.testing.report import Finding, Report, raising


class Line(NamedTuple):
    """A finding with its verdict: ok, failed, not applicable, or reported."""

    check: str
    compared: str
    largest: float | None
    allowed: float | None
    verdict: str
    note: str

    def __str__(self) -> str:
        numbers = "" if self.largest is None else f"{self.largest:.2g}"
        numbers += "" if self.allowed is None else f", allowed {self.allowed:.2g}"
        why = self.note or f"{self.compared}: {numbers}"
        return f"{self.check}: {self.verdict} ({why})"


def examine_backend(on: Backend) -> Report:
    """Where a backend has the numbers of NumPy in float64, and where it has not.

    Noise, the forward process, samplers and the UNet must give NumPy's numbers to rounding, and a
    compiled step those of the plain one. It takes seconds where nothing is compiled, and otherwise
    a minute or two. What a backend lacks, such as gradients, does not apply; what has no bound,
    such as memory, is reported. For a test of your own package: `check_backend(Mine())`.
    """
    return Report(repr(on), tuple(map(_finding, examined(on))))


check_backend = raising(examine_backend)


def _finding(line: Line) -> Finding:
    """A line as a law."""
    judged, failed = line.verdict in ("ok", "failed"), line.verdict == "failed"
    words = line.note
    if failed and line.largest is not None:
        words = f"off by {line.largest:.2g}, where {line.allowed:.2g} is allowed"
    return Finding(
        f"{line.check}: {line.compared}",
        "beside NumPy in float64",
        int(judged),
        line.largest,
        line.allowed,
        failure=words if failed else "",
        note="" if failed else words,
        reported=line.verdict == "reported",
    )


def examined(
    on: Backend,
    now: Callable[[str], None] = lambda name: None,
    names: Iterable[str] | None = None,
) -> Iterable[Line]:
    """The checks of a backend, one after the other.

    now: is told each one's name before it
    names: of the checks; all by default
    """
    host, checks = reference(), {**CHECKS, **on.checks()}
    with on.exact_products():
        for name in checks if names is None else names:
            now(name)
            yield _judged(name, *checks[name], on, host)


def reference() -> Backend:
    """What a backend is compared with: NumPy in float64, with the operations of the standard."""
    host = backend("numpy", dtype="float64")
    host.ops = Ops()
    return host


def environment(on: Backend) -> dict[str, str]:
    """What the numbers depend on: device, dtype and versions, in words."""
    about = on.describe()
    try:
        ours = version("ddpm-core")
    except PackageNotFoundError:
        ours = "(not installed)"
    return {
        "device": about["device"],
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "dtype": str(on.dtype).rpartition(".")[2],
        "ddpm-core": f"ddpm-core {ours}",
        **{name: value for name, value in about.items() if name != "device"},
        "numpy": f"numpy {np.__version__}",
        "python": f"Python {platform.python_version()}",
    }


def _judged(name: str, compared: str, check: Check, on: Backend, host: Backend) -> Line:
    try:
        largest, allowed, note = check(on, host)
    except NotApplicable as reason:
        return Line(name, compared, None, None, "not applicable", str(reason))
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        return Line(name, compared, None, None, "failed", f"{type(error).__name__}: {first}")
    if largest is None or allowed is None:
        return Line(name, compared, largest, allowed, "reported", note)
    verdict = "ok" if largest <= allowed else "failed"  # a NaN is a failure
    return Line(name, compared, largest, allowed, verdict, note)
