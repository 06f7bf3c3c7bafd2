"""The shape of the packages: what an import loads, who imports whom, and what is public."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest

import ddpm_core

PROJECT = Path(__file__).parents[1]
CORE = "ddpm_core"

#: The rooms of the core in the order of reading, which is the order of import.
ROOMS = [
    "typing",
    "arrays",
    "levels",
    "schedules",
    "grids",
    "gaussians",
    "process",
    "parameterisations",
    "denoisers",
    "guidance",
    "kernels",
    "losses",
    "noise",
    "measurements",
    "oracles",
    "likelihood",
    "distances",
    "samplers",
    "certificates",
    "inverse",
    "nn",
    "averages",
    "models",
    "checkpoints",
    "backends",
    "testing",
    "",  # the top level, which gathers names of the rooms above
    "cli",
    "__main__",
]

#: What the families of solvers share. They do not import each other.
SHARED_BY_SAMPLERS = {"interchange", "unrolled", "tables", "run", "multistep"}


def modules_of(root: Path) -> dict[str, Path]:
    """The files of a package by the names of their modules."""
    return {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in sorted(root.rglob("*.py"))
    }


BACKENDS = {
    name: path
    for folder in sorted((PROJECT / "backends").glob("ddpm_core_*"))
    for name, path in modules_of(folder).items()
}
MODULES = modules_of(PROJECT / CORE)
ALL = MODULES | BACKENDS
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in ALL.items()}


def imports_of(name: str) -> list[str]:
    """Everything that a module imports, wherever in its code: "a.b" or "a.b.name"."""
    found = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def owner(target: str) -> str:
    """The module of the core that an imported name is in; "" if it is in none."""
    while target and target not in MODULES:
        target = target.rpartition(".")[0]
    return target


def room(name: str) -> str:
    """The part of a module's name that has a place in ROOMS."""
    return name.partition(".")[2].split(".")[0]


def of_core(name: str) -> set[str]:
    """The modules of the core that a module imports."""
    return {owner(target) for target in imports_of(name)} - {""}


@pytest.mark.parametrize("name", [n for n in MODULES if room(n) not in ("cli", "testing")])
def test_the_core_draws_no_random_number(name):
    """Noise is a pure function of its seed, and generators are arguments."""
    called = [ast.unparse(n.func) for n in ast.walk(TREES[name]) if isinstance(n, ast.Call)]
    assert not [f for f in called if f.startswith("np.random")]


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_only_what_is_above(name):
    """A module imports its own room and those above it."""
    for target in of_core(name):
        above = ROOMS.index(room(target)) < ROOMS.index(room(name))
        assert above or room(target) == room(name), f"{name} imports {target}"


def test_modules_of_a_room_have_an_order():
    """Within a room, too, no module imports itself by way of others."""
    TopologicalSorter({name: of_core(name) - {name} for name in MODULES}).prepare()


def test_families_of_solvers_do_not_import_each_other():
    inside = {name for name in MODULES if name.startswith("ddpm_core.samplers.")}
    shared = {f"ddpm_core.samplers.{name}" for name in SHARED_BY_SAMPLERS}
    for name in inside - {"ddpm_core.samplers.registry"}:  # which lists them all
        assert of_core(name) & inside <= shared, name


def test_every_room_has_a_place():
    assert {room(name) for name in MODULES} == set(ROOMS)


@pytest.mark.parametrize("name", ALL)
def test_private_names_stay_at_home(name):
    """No name with an underscore is imported, save a module from its own package."""
    home = name if ALL[name].stem == "__init__" else name.rpartition(".")[0]
    for target in imports_of(name):
        start, underscore, _ = target.replace(".__", ".").partition("._")
        private = underscore and start.split(".")[0].startswith(CORE)
        assert not private or start == home, f"{name} imports {target}"


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_import_no_command(name):
    """A backend is made of what the core gives to all, and can be used without the commands."""
    for target in of_core(name):
        assert room(target) != "cli", f"{name} imports {target}"


@pytest.mark.parametrize("name", [n for n, path in ALL.items() if path.stem == "__init__"])
def test_no_name_shadows_a_module(name):
    """`package.x` is the module x wherever there is one, before and after it is imported."""
    inside = {n.rpartition(".")[2] for n in ALL if n.rpartition(".")[0] == name}
    bound = {
        node.name for node in TREES[name].body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.module != name:
            bound |= {alias.asname or alias.name for alias in node.names}
    if "*" in bound:
        bound |= set(importlib.import_module(name).__all__)
    assert not inside & bound


def test_import_loads_numpy_and_no_more():
    """`import ddpm_core` loads NumPy, array_api_compat and modules of the standard library."""
    code = (
        "import sys; before = set(sys.modules); import ddpm_core; print(*set(sys.modules) - before)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    outside = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names
    assert outside == {"ddpm_core", "numpy", "array_api_compat"}
    assert not {"ddpm_core.cli", "ddpm_core.testing"} & set(loaded)


def test_top_level_is_small():
    """A first hour needs at most 60 names; each is listed once, and no other is there."""
    assert len(set(ddpm_core.__all__)) == len(ddpm_core.__all__) <= 60
    public = {name for name in vars(ddpm_core) if not name.startswith("_")}
    assert public - set(ROOMS) == set(ddpm_core.__all__)


@pytest.mark.parametrize("name", ddpm_core.__all__)
def test_public_names_are_documented(name):
    """Every public name exists and says what it is, in its own words."""
    thing = getattr(ddpm_core, name)
    if not callable(thing) or isinstance(thing, type(ddpm_core.parameterisations.Parameterisation)):
        return  # a type alias, whose docstring is that of `typing`
    doc = thing.__doc__
    assert doc
    assert not doc.startswith(f"{name}("), f"{name} has the docstring that dataclass gives it"


@pytest.mark.parametrize("name", [n for n in MODULES if room(n) != "cli"])
def test_doctests(name):
    """The examples in the docstrings of a module print what they say."""
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"np": np}, raise_on_error=False)
    assert result.failed == 0
