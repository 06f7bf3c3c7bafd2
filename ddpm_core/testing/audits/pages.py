"""An audit as a page of Markdown: what is right first, then what is not."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from ddpm_core.samplers.registry import ENTRIES
from ddpm_core.testing.audits.found import Audit, Line, Note

MOST = 6  #: pieces of evidence of one defect


def page(audit: Audit) -> str:
    """The section of a library."""
    objects = audit.reports()
    counts = ", ".join(f"{count} {_WORDS[v]}" for v, count in audit.counts().items())
    parts = [
        f"## {audit.name} {audit.version}".rstrip(),
        _wrapped(
            f"{len(objects)} objects and {len(audit.lines)} laws: {counts}. {_found(audit)}".strip()
        ),
        _right(audit),
    ]
    defects = [note for note in _seen(audit) if audit.notes[note].kind == "defect"]
    if defects:
        parts.append("### What is wrong")
        parts += [_defect(audit, key) for key in defects]
    unexplained = [line for line in audit.lines if audit.verdict(line) == "broken"]
    if unexplained:
        parts += ["### Not explained yet", "\n".join(map(_evidence, unexplained))]
    choices = [note for note in _seen(audit) if audit.notes[note].kind == "difference"]
    if choices:
        parts += ["### Differences", "\n".join(_difference(audit, key) for key in choices)]
    return "\n\n".join(parts) + "\n"


_WORDS = {
    "holds": "hold",
    "differs": "differ by convention",
    "defect": "broken",
    "broken": "broken without an explanation",
    "does not apply": "not applicable",
}


def _seen(audit: Audit) -> list[str]:
    seen = {line.note for line in audit.lines}
    return [key for key in audit.notes if key in seen]


def _found(audit: Audit) -> str:
    if not audit.mended:
        return ""
    titles = "; ".join(audit.notes[key].title for key in audit.mended)
    return f"Not found in this version: {titles}."


def _right(audit: Audit) -> str:
    """The objects of which no law is broken: those that are solvers as a table."""
    lines: dict[str, list[Line]] = {}
    for line in audit.lines:
        lines.setdefault(line.label, []).append(line)
    right = {k: v for k, v in lines.items() if not any(line.finding.failure for line in v)}
    solvers = {k: v for k, v in right.items() if any(" order " in line.finding.law for line in v)
               or v[0].ours}  # fmt: skip
    rows = "\n".join(
        f"| {label} | {_code(each[0].ours)} | {_difference_of(each)} | {_order_of(each)} |"
        for label, each in solvers.items()
    )
    others = "\n".join(
        f"- {_joined(label, ends)}"
        for label, ends in _by_first([label for label in right if label not in solvers]).items()
    )
    parts = ["### What is right"]
    if rows:
        parts.append(
            "| solver | what it is here | largest difference | measured order |\n"
            f"|---|---|---|---|\n{rows}"
        )
    if others:
        parts += ["Also right:" if rows else "Right:", others]
    return "\n\n".join(parts)


def _by_first(labels: list[str]) -> dict[str, list[str]]:
    """What stands before the first comma -> what stands after it."""
    found: dict[str, list[str]] = {}
    for label in labels:
        first, _, rest = label.partition(", ")
        found.setdefault(first, []).append(rest)
    return found


def _joined(first: str, ends: list[str]) -> str:
    said = "; ".join(end or "as it is" for end in ends)
    return first if said == "as it is" else f"{first}: {said}"


def _code(name: str) -> str:
    first, comma, rest = name.partition(",")
    return f"`{first}`{comma}{rest}" if name else ""


def _difference_of(lines: list[Line]) -> str:
    errors = [line.finding.error for line in lines if line.finding.law.startswith("it is ")]
    return "".join(f"{error:.0e}" for error in errors if error is not None)


def _order_of(lines: list[Line]) -> str:
    notes = [line.finding.note for line in lines if " order " in line.finding.law]
    return "".join(note.removeprefix("measured ") for note in notes)


def _defect(audit: Audit, key: str) -> str:
    note = audit.notes[key]
    lines = [line for line in audit.lines if line.note == key]
    shown = [_evidence(line) for line in lines[:MOST]]
    if len(lines) > MOST:
        shown.append(f"- and {len(lines) - MOST} more")
    parts = [f"#### {note.title}", _wrapped(note.text), "\n".join(shown), _wrapped(_end(note))]
    return "\n\n".join(part for part in parts if part)


def _end(note: Note) -> str:
    said = [f"To avoid it: {note.advice}." if note.advice else ""]
    said.append(f"Upstream: {note.upstream}." if note.upstream else "No thread upstream was seen.")
    if note.report:
        said.append(f"[Script and report](reports/{note.report}.md).")
    return " ".join(part for part in said if part)


def _evidence(line: Line) -> str:
    return f"- {line.label}: {line.finding.law}; {line.finding.failure}"


def _difference(audit: Audit, key: str) -> str:
    note = audit.notes[key]
    labels = dict.fromkeys(line.label for line in audit.lines if line.note == key)
    worst = next(line.finding.failure for line in audit.lines if line.note == key)
    words = [f"**{note.title}.** {note.text}"]
    if note.advice:
        words.append(f"For the other: {note.advice}.")
    if note.upstream:
        words.append(f"Upstream: {note.upstream}.")
    words.append(f"({'; '.join(labels)}: {worst})")
    return fill(" ".join(words), 120, initial_indent="- ", subsequent_indent="  ",
                break_long_words=False, break_on_hyphens=False)  # fmt: skip


def _wrapped(text: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def names(audits: Sequence[Audit]) -> str:
    """Which names are one solver: those whose tables are equal, over all libraries audited."""
    found: dict[str, dict[str, list[str]]] = {}
    for audit in audits:
        for line in audit.lines:
            if line.ours and line.finding.law.startswith("it is ") and not line.finding.failure:
                per = found.setdefault(_first_name(line.ours), {}).setdefault(audit.name, [])
                per.append(line.label)
    rows = [
        f"| {_names_here(ours)} | "
        + "; ".join(f"{library}: {' = '.join(_short(per))}" for library, per in found[ours].items())
        + " |"
        for ours in sorted(found)
    ]
    text = (
        "Names in one row are one solver: their tables of numbers are equal, on the same levels, "
        "to rounding. ComfyUI's sampler NAME is its copy of k-diffusion's `sample_NAME`, and its "
        "`ddim` is `sample_euler`: read in its source, not run."
    )
    table = "\n".join(["| here | elsewhere |", "|---|---|", *rows])
    return "\n\n".join(["## Names", _wrapped(text), table]) + "\n"


def _first_name(ours: str) -> str:
    """The name of the function, whatever the alias, and its options but those of no effect."""
    name, _, options = ours.partition(", ")
    name = next((each.name for each in ENTRIES if name in each.names), name)
    return ", ".join(part for part in (name, options) if part and part != "eta=0")


def _names_here(ours: str) -> str:
    name, comma, options = ours.partition(",")
    entry = next((each for each in ENTRIES if each.name == name), None)
    known = entry.names if entry is not None and not options else (name,)
    return " = ".join(f"`{each}`" for each in known) + comma + options


def _short(labels: list[str]) -> list[str]:
    """Labels, of which more than two that begin alike are one."""
    firsts = [label.partition(",")[0] for label in labels]
    return list(
        dict.fromkeys(
            first if firsts.count(first) > 2 else label
            for label, first in zip(labels, firsts, strict=True)
        )
    )
