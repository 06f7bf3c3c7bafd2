"""What an audit found: each law of each object, and what is known of those that are broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ddpm_core.testing.report import Finding, Report


class Note(NamedTuple):
    """What is known of a law that an object breaks.

    kind: a defect is wrong by the paper that the object names; a difference is a choice, such as
        another convention, or what we are not sure of
    title: one line
    text: why, with the paper's equation
    advice: what a user can do
    upstream: where its authors know of it; empty if no thread was seen
    report: the name of a report to send, without .md
    """

    kind: Literal["defect", "difference"]
    title: str
    text: str
    advice: str = ""
    upstream: str = ""
    report: str = ""


@dataclass(frozen=True)
class Subject:
    """An object of a library, and what is asked of it.

    label: its name there, with options
    findings: examines it
    notes: (how a law's name begins) -> the key of its note; "" stands for every law
    ours: the solver here that it is, if one is
    """

    label: str
    findings: Callable[[], Iterable[Finding]]
    notes: Mapping[str, str] = field(default_factory=dict[str, str])
    ours: str = ""


class Line(NamedTuple):
    """A law of an object.

    note: the key of what is known of it; empty if it holds, or if nothing is
    """

    label: str
    finding: Finding
    note: str
    ours: str


@dataclass(frozen=True)
class Audit:
    """What was found of a library.

    name, version: of the library
    notes: key -> note, in the order of telling
    """

    name: str
    version: str
    lines: tuple[Line, ...]
    notes: Mapping[str, Note]

    def verdict(self, line: Line) -> str:
        """holds, does not apply, defect, differs, or broken: a law that no note explains."""
        if not line.finding.failure:
            return line.finding.verdict
        if not line.note:
            return "broken"
        return "defect" if self.notes[line.note].kind == "defect" else "differs"

    @property
    def mended(self) -> tuple[str, ...]:
        """The keys of the notes of which nothing was found."""
        seen = {line.note for line in self.lines}
        return tuple(key for key in self.notes if key not in seen)

    def counts(self) -> dict[str, int]:
        """verdict -> how many laws."""
        verdicts = [self.verdict(line) for line in self.lines]
        order = ("holds", "differs", "defect", "broken", "does not apply")
        return {v: n for v in order if (n := verdicts.count(v))}

    def reports(self) -> list[Report]:
        """One report for each object, in the order of the audit."""
        labels = dict.fromkeys(line.label for line in self.lines)
        return [
            Report(label, tuple(line.finding for line in self.lines if line.label == label))
            for label in labels
        ]

    def to_json(self) -> dict[str, Any]:
        """As `json.dumps` takes it."""
        notes = iter((self.verdict(line), line.note) for line in self.lines)
        objects: list[dict[str, Any]] = []
        for report in self.reports():
            each = report.to_json()
            for finding in each["findings"]:
                finding["verdict"], finding["explained_by"] = next(notes)
            objects.append(each)
        return {
            "library": self.name,
            "version": self.version,
            "objects": objects,
            "notes": {key: note._asdict() for key, note in self.notes.items()},
            "not_found": list(self.mended),
        }


def examined(
    subjects: Iterable[Subject], now: Callable[[str], None] = lambda label: None
) -> Iterable[Line]:
    """The laws of each subject, one after the other; an exception is a broken law.

    now: is told each label before it
    """
    for subject in subjects:
        now(subject.label)
        try:
            findings = list(subject.findings())
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            failure = f"{type(error).__name__}: {first}"
            findings = [Finding("it runs", "", 1, failure=failure)]
        for finding in findings:
            keys = [key for law, key in subject.notes.items() if finding.law.startswith(law)]
            note = keys[0] if keys and finding.failure else ""
            yield Line(subject.label, finding, note, subject.ours)
