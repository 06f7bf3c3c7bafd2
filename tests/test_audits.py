"""Audits of other libraries: verdicts, pages, the command; and diffusers, of which all is known."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core.cli import app, main
from ddpm_core.testing.audits import audit, found, libraries, pages, solvers
from ddpm_core.testing.audits.found import Note, Subject
from ddpm_core.testing.audits.libraries import LIBRARIES, Library
from ddpm_core.testing.report import Finding

REPORTS = Path(__file__).parents[1] / "docs" / "reports"


def euler(levels):
    return solvers.on_levels(solvers.ANY, ddpm.ddim, levels)


GRID = solvers.ANY(np.append(np.geomspace(80, 0.02, 9), 0.0))


@pytest.fixture
def library(monkeypatch):
    """A library "toy" with an Euler solver, a claim that is wrong, and one that is a choice."""
    toy = ModuleType("toy_of_tests")
    toy.__spec__ = ModuleSpec("toy_of_tests", None)
    monkeypatch.setitem(sys.modules, "toy_of_tests", toy)
    data = ModuleType("ddpm_core.testing.audits.toy_of_tests")
    data.NOTES = {
        "off": Note("defect", "It is off", "Because.", "wait", report="toy-off"),
        "other": Note("difference", "It has another unit", "By choice."),
        "mended": Note("defect", "It was wrong", "Once."),
    }

    def broken(law):
        return lambda: [Finding(law, "a paper", 3, 0.5, 0.1, f"at {law}: 1 and not 2")]

    data.subjects = lambda: [
        Subject(
            "Euler",
            lambda: solvers.solver_laws(euler, GRID, ddpm.ddim, "ddim", p=1, counts=(20, 40)),
            ours="ddim",
        ),
        Subject("Off", broken("mean"), {"me": "off"}),
        Subject("Other", broken("unit"), {"": "other"}),
        Subject("New", broken("shape"), {"unit": "other"}),
        Subject("Absent", lambda: [][0]),
    ]
    monkeypatch.setitem(sys.modules, data.__name__, data)
    monkeypatch.setitem(
        libraries.LIBRARIES,
        "toy",
        Library("toy_of_tests", "toy_of_tests", "pip install toy", needs="numpy"),
    )


def test_verdicts(library):
    """A broken law is a defect, a choice, or not known; a note without a finding is told."""
    told = []
    result = audit("toy", now=told.append)
    assert told == ["Euler", "Off", "Other", "New", "Absent"]
    verdicts = {line.label: result.verdict(line) for line in result.lines}
    assert verdicts["Off"] == "defect"
    assert verdicts["Other"] == "differs"
    assert verdicts["New"] == verdicts["Absent"] == "broken"
    assert result.lines[-1].finding.failure == "IndexError: list index out of range"
    assert result.mended == ("mended",)
    own = [line for line in result.lines if line.label == "Euler"]
    assert {result.verdict(line) for line in own} <= {"holds", "does not apply"}
    (order,) = (line.finding for line in own if " order " in line.finding.law)
    assert 0.9 <= float(order.note.removeprefix("measured ")) <= 1.1
    assert sum(result.counts().values()) == len(result.lines)


def test_what_a_solver_is_not():
    """DPM-Solver++(2M) is not Euler's method, is told where it differs, and is not of order 3."""

    def multistep(levels):
        return solvers.on_levels(solvers.ANY, ddpm.dpmpp_2m, levels)

    laws = solvers.solver_laws(multistep, GRID, ddpm.ddim, "ddim", p=3, counts=(20, 40))
    broken = {f.law: f.failure for f in laws if f.failure}
    assert set(broken) == {"it is ddim", "its order of convergence is at least 3"}
    assert "point 2 is a combination that is off by" in broken["it is ddim"]
    late = ddpm.ddim(solvers.ANY, 9, times=GRID.time, eta=0.5).unroll()
    near = solvers.same(late, euler(GRID), "ddim", points=slice(1))
    assert not near.failure
    more = solvers.same(ddpm.heun(solvers.ANY, 9).unroll(), euler(GRID), "x")
    assert more.failure == "17 network calls and not 9"


@pytest.mark.parametrize("wrong", ["", "alpha", "sigma", "f", "g2"])
def test_processes(wrong):
    """A VP SDE obeys; one of its numbers, a thousandth too large, breaks each law that has it."""
    t, vp = np.linspace(0.1, 0.9, 9), ddpm.VP()
    rate = 0.1 + 19.9 * t
    off = dict.fromkeys(("alpha", "sigma", "f", "g2"), 1.0) | {wrong: 1.001}
    wanted = (vp(t).alpha * off["alpha"], vp(t).sigma * off["sigma"])
    sde = (-rate / 2 * off["f"], rate * off["g2"])
    laws = solvers.process_laws(lambda t: vp(t)[2:], "", t, wanted, sde)
    broken = [f.law.partition(" of ")[0].partition(":")[0] for f in laws if f.failure]
    mean, var = "its SDE has that mean", "its SDE has that variance"
    assert broken == {
        "": [], "alpha": ["log alpha"], "sigma": ["log sigma"], "f": [mean, var], "g2": [var]
    }[wrong]  # fmt: skip


def test_cases_that_fail():
    wrong = lambda n: "odd" if n % 2 else None
    finding = solvers.fails_for("even", "", range(8), wrong)
    assert finding.failure == "1: odd; 4 of 8 cases fail (1, 3, 5, 7)"
    assert not solvers.fails_for("even", "", (0, 2), wrong).failure


def test_page(library):
    """What is right is told first, then what is wrong with its numbers, then the choices."""
    text = pages.page(audit("toy"))
    places = [
        text.index(words)
        for words in ("| Euler | `ddim` |", "#### It is off", "- Off: mean; at mean: 1 and not 2",
                      "To avoid it: wait. No thread upstream was seen. [Script and", "New: shape",
                      "- **It has another unit.** By choice.")
    ]  # fmt: skip
    assert places == sorted(places)
    assert "Not found in this version: It was wrong." in " ".join(text.split())
    row = "| `ddim` = `euler` = `dpm_solver_1` = `deis_1` | toy: Euler |"
    assert row in pages.names([audit("toy")])


def test_page_lists_what_is_right(library):
    """One row for what begins alike, and none of a solver, which has its own table."""
    lines = audit("toy").lines
    right = ("Schedule, linear", "Schedule, cosine, its noise", "Process")
    lines = [line._replace(label=label) for line in lines[-2:-1] for label in right]
    lines = tuple(line._replace(finding=line.finding._replace(failure="")) for line in lines)
    text = pages.page(found.Audit("toy", "", lines, {}))
    assert "\nRight:\n\n- Schedule: linear; cosine, its noise\n- Process\n" in text


def test_command(library, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    data, page = tmp_path / "found.json", tmp_path / "found.md"
    assert app.run(["audit", "toy", "--json", str(data), "--markdown", str(page)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Euler +it is ddim +holds", shown)
    assert re.search(r"Off +mean +defect +at mean: 1 and not 2", shown)
    assert "not found in this version: It was wrong" in shown
    (kept,) = json.loads(data.read_text("utf-8"))
    off = next(each for each in kept["objects"] if each["subject"] == "Off")["findings"][0]
    assert (off["verdict"], off["explained_by"], off["error"]) == ("defect", "off", 0.5)
    assert page.read_text("utf-8").startswith("# Other libraries, audited")
    assert app.run(["audit", "toy", "--strict"]) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensor-flow", "no library 'tensor-flow' to audit; there are diffusers, k-diffusion"),
        (
            "absent",
            "absent and gone_of_tests are not installed: pip install absent, and pip install "
            "gone_of_tests",
        ),
    ],
)
def test_libraries_that_are_not_there(name, message, capsys, monkeypatch):
    """One line on stderr, exit status 2."""
    absent = Library("absent", "absent_of_tests", "pip install absent", needs="gone_of_tests")
    monkeypatch.setitem(LIBRARIES, "absent", absent)
    monkeypatch.setattr(sys, "argv", ["ddpm-core", "audit", name])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere"):
        app.run(["audit", "diffusers", "--path", "nowhere"])


def test_version_of_a_checkout(library, tmp_path):
    """The commit of the folder that the library is in, and of no other."""
    sys.modules["toy_of_tests"].__spec__.origin = str(tmp_path / "toy_of_tests" / "__init__.py")
    git = tmp_path / ".git"
    (git / "refs").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/main\n", "utf-8")
    (git / "refs" / "main").write_text("0123456789abcdef\n", "utf-8")
    before = list(sys.path)
    other = tmp_path / "other"
    other.mkdir()
    assert audit("toy", [other, tmp_path]).version == "0123456"
    assert audit("toy", [other]).version == ""
    assert sys.path == before


# The data. ---------------------------------------------------------------------------------------


def notes():
    """Every note of every library."""
    modules = [f"ddpm_core.testing.audits.{each.module}" for each in LIBRARIES.values()]
    return {
        (name.rpartition(".")[2], key): note
        for name in modules
        for key, note in __import__(name, fromlist=["NOTES"]).NOTES.items()
    }


def test_data_import_no_library():
    """Neither the adapters nor the data of an audit import what they are about."""
    code = (
        "import importlib, sys; from ddpm_core.testing.audits import LIBRARIES\n"
        "for each in LIBRARIES.values():\n"
        "    importlib.import_module(f'ddpm_core.testing.audits.{each.module}')\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"torch", *(each.imports for each in LIBRARIES.values())} & set(loaded)


def test_notes():
    """A defect has a report, or a thread upstream; each report is there, and each is of a note."""
    wanted = {note.report for note in notes().values() if note.report}
    assert wanted == {path.stem for path in REPORTS.glob("*.md")}
    for key, note in notes().items():
        assert note.kind in ("defect", "difference"), key
        assert note.title
        assert note.text
        assert note.kind == "difference" or note.report or note.upstream, key


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*.md")), ids=lambda path: path.stem)
def test_reports(path):
    """A report has all that its reader needs, and names nothing but the library."""
    text = path.read_text("utf-8")
    assert re.match(r"# .+\n\nVersion: .+\n\n```python\n", text)
    assert all(
        words in text for words in ("\nObserved:\n\n```text\n", "\nExpected: ", "\n## Why\n")
    )
    assert not re.search("ddpm[-_]core", text)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(REPORTS.glob("diffusers-*.md")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_reports_of_diffusers_say_what_is_observed(path):
    pytest.importorskip("diffusers")
    text, out = path.read_text("utf-8"), io.StringIO()
    (script,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    (wanted,) = re.findall(r"^```text\n(.*?)^```$", text, re.M | re.S)
    with contextlib.redirect_stdout(out):
        exec(compile(script, path.name, "exec"), {"__name__": path.stem})
    assert out.getvalue().strip() == wanted.strip()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_diffusers():
    """Every broken law of the installed version is explained, and every note still applies."""
    pytest.importorskip("diffusers")
    result = audit("diffusers")
    unknown = [line for line in result.lines if result.verdict(line) == "broken"]
    assert not unknown
    assert not result.mended
    assert result.counts()["holds"] > 250
    assert isinstance(result, found.Audit)
