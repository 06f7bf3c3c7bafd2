"""CONTRIBUTING and its pages: their code runs, their links lead somewhere, their commands exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import readme

HOUSE = readme.ROOT / "CONTRIBUTING.md"
PAGES = sorted((readme.ROOT / "docs" / "contributing").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code(page, tmp_path, monkeypatch):
    """The blocks of a page, which follow each other, run."""
    monkeypatch.chdir(tmp_path)
    exec(compile("".join(readme.blocks("python", page)), page.name, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", [HOUSE, *PAGES], ids=lambda page: page.stem)
def test_places(page):
    """Each relative link and each file or folder of the project that is named exists."""
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:ddpm_core|tests|docs|backends|\.ci)/[\w./-]+)`", text)
    assert [
        name for name in named if "NAME" not in name and not (readme.ROOT / name).exists()
    ] == []


def test_every_page_is_listed():
    listed = re.findall(r"\]\(docs/contributing/([\w-]+)\.md\)", HOUSE.read_text("utf-8"))
    assert sorted(listed) == [page.stem for page in PAGES]


def test_light_extra():
    """[dev] installs no framework, and all of its tools are of [test] or [lint]."""
    project = tomllib.loads((readme.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert "ddpm-core[lint,plot]" in extras["dev"]
    assert set(extras["dev"]) - {"ddpm-core[lint,plot]"} <= set(extras["test"])


def test_floors_are_those_of_the_project():
    """The lowest versions that are tested are the lowest versions that are allowed."""
    project = tomllib.loads((readme.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", _read("constraints-floor.txt"), re.M))
    allowed = {}
    for requirement in (
        *project["dependencies"],
        *extras["cli"],
        *extras["plot"][1:],
        "scipy>=1.14",
    ):
        name, version = requirement.split(">=")
        allowed[name.lower()] = version
    assert "scipy>=1.14" in extras["dev"]
    assert pins.keys() == {*allowed, "click", "pyparsing"}  # which are typer's and matplotlib's
    for name, version in allowed.items():
        assert re.fullmatch(rf"{re.escape(version)}(\.0)*", pins[name]), name


def _read(name: str) -> str:
    return Path(readme.ROOT, name).read_text("utf-8")
