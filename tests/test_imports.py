"""The shape of the package: what an import loads, who imports whom, and what is public."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ddpm_core

ROOT = Path(ddpm_core.__file__).parent

#: The reading order, which is the import order: a module imports only what stands above it.
ORDER = [
    "typing",
    "arrays",
    "levels",
    "schedules.protocol",
    "schedules.discrete",
    "schedules.continuous",
    "schedules.named",
    "schedules.drawing",
    "schedules",
    "grids",
    "gaussians",
    "process",
    "parameterisations",
    "denoisers",
    "kernels",
    "losses",
    "noise",
    "oracles",
    "likelihood.ode",
    "likelihood.flow",
    "likelihood.variational",
    "likelihood",
    "samplers.unrolled",
    "samplers.tables",
    "samplers.run",
    "samplers.multistep",
    "samplers",  # one file per family of solvers, which do not import each other
    "certificates",
    "nn.ops",
    "nn.network",
    "nn",
    "models",
    "checkpoints.fields",
    "checkpoints.files",
    "checkpoints.own",
    "checkpoints.port",
    "checkpoints.openai",
    "checkpoints.diffusers",
    "checkpoints",
    "backends",
    "testing",
    "cli",
]

#: What the core never loads: array frameworks, and what serves tests and the command line.
FOREIGN = [
    "torch",
    "jax",
    "cupy",
    "hypothesis",
    "typer",
    "rich",
    "PIL",
    "safetensors",
    "matplotlib",
]

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
)


def source_of(name):
    """The syntax tree of a module of the package."""
    path = ROOT.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text("utf-8"))


def imports_of(name):
    """(module of the package, whether for type checking only), also within functions."""

    def visit(node, typing):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, True)
            for child in node.orelse:
                yield from visit(child, typing)
            return
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            targets = []
        for target in targets:
            if target.split(".")[0] == "ddpm_core":
                yield owner(target.removeprefix("ddpm_core").removeprefix(".")), typing
        for child in ast.iter_child_nodes(node):
            yield from visit(child, typing)

    yield from visit(source_of(name), False)


def owner(target):
    """The module that an imported name is in: "levels.Level" and "levels" are both "levels"."""
    parts = target.split(".") if target else []
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


def place(name):
    """Where a module stands in the reading order."""
    while name and name not in ORDER:
        name = name.rpartition(".")[0]
    return ORDER.index(name)


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_only_what_is_above(name):
    """No module imports one below it, nor the package itself, save packages their own modules."""
    if name.split(".")[0] == "cli":
        return  # the last: it may import all
    for target, typing in imports_of(name):
        own = target.startswith(f"{name}.")  # a package's __init__ gathers its modules
        beside = target.rpartition(".")[0] == "testing" and name.startswith("testing")
        assert target, f"{name} imports ddpm_core itself"
        assert own or beside or place(target) < place(name), f"{name} imports {target}"


def test_every_module_has_a_place():
    """A new module of the package is given a place in the reading order."""
    assert {name for name in MODULES if "." not in name} <= {n.split(".")[0] for n in ORDER}


def test_import_loads_no_framework():
    """`import ddpm_core` loads NumPy and array_api_compat, and no framework."""
    code = "import sys, ddpm_core; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {"ddpm_core", "numpy", "array_api_compat"} <= set(loaded)
    assert not set(FOREIGN) & set(loaded)


@pytest.mark.parametrize("name", ddpm_core.__all__)
def test_public_names_are_documented(name):
    """Every public name exists and says what it is, in its own words."""
    thing = getattr(ddpm_core, name)
    if not callable(thing) or isinstance(thing, type(ddpm_core.parameterisations.Parameterisation)):
        return  # a type alias, whose docstring is that of `typing`
    doc = thing.__doc__
    assert doc
    assert not doc.startswith(f"{name}("), f"{name} has the docstring that dataclass gives it"


def test_public_names_are_in_order():
    """`__all__` lists each name once, classes first, as ruff's isort-style order has it."""
    assert len(set(ddpm_core.__all__)) == len(ddpm_core.__all__)
    names = {n for n in vars(ddpm_core) if not n.startswith("_")}
    modules = {m.name for m in pkgutil.iter_modules([str(ROOT)])}
    assert names - modules - set(ddpm_core.__all__) == set()


@pytest.mark.parametrize("name", [n for n in MODULES if n.split(".")[0] != "cli"])
def test_doctests(name):
    """The examples in the docstrings of a module print what they say."""
    module = importlib.import_module(f"ddpm_core.{name}")
    result = doctest.testmod(module, extraglobs={"np": np}, raise_on_error=False)
    assert result.failed == 0
