"""How many small defects of the core its tests notice: python docs/mutation.py levels process.

Each mutant is one change of one module: a comparison, an operator, a number, a condition, a slice,
a return, a default. It is killed if a test fails, or takes far too long. Results are kept in --out,
and survivors are explained in mutation.toml; without modules, mutation.md is written from both.

A mutant of a function's body first runs in a fork of a process that has collected the module's own
tests, with the code of that function exchanged. What survives that, and what is not in a function,
runs in a fork that has imported NumPy and torch alone, with all tests that the module has.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

ROOT = Path(__file__).parents[1]
OPTIONS = (
    "-x -q -s --quick --lanes=numpy,strict -n 0 -p no:cacheprovider -p no:terminal "
    "-W ignore::pytest.PytestAssertRewriteWarning"  # hypothesis is imported before
).split()
WARM = ("numpy", "scipy.linalg", "hypothesis", "array_api_strict", "array_api_extra", "torch")
#: The tests of a module, its own first. By default test_NAME.py, then those of all.
TESTS: dict[str, tuple[str, ...]] = {
    "levels": ("levels", "times", "schedules"),
    "process": ("process", "laws"),
    "gaussians": ("gaussians", "process"),
    "parameterisations": ("parameterisations", "coordinates", "losses"),
    "grids": ("grids", "schedules"),
    "kernels": ("kernels", "variances", "process", "step_log_prob"),
    "losses": ("losses", "vlb", "hybrid"),
    "denoisers": ("denoisers", "coordinates", "guidance"),
    "schedules/continuous": ("schedules", "times", "check_schedule"),
    "schedules/discrete": ("schedules", "times", "check_schedule"),
    "schedules/named": ("schedules", "check_schedule"),
    "schedules/drawing": ("drawing", "schedules"),
    "schedules/protocol": ("schedules", "check_schedule", "times"),
    "samplers/first_order": ("samplers", "solver_tables", "solver_papers"),
}
#: Folders of the modules on the page.
CORE = ("ddpm_core", "schedules", "samplers", "likelihood", "certificates")
SHARED = ("arguments", "laws", "unrolled")  #: for survivors of every module
SWAPS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}


_Path = tuple[tuple[str, int | None], ...]


class Mutant(NamedTuple):
    """where: a function; was, becomes: source; path, change: the node, and which change of it."""

    line: int
    where: str
    was: str
    becomes: str
    path: _Path
    change: int

    @property
    def key(self) -> str:
        return f"{self.where}: {self.was} -> {self.becomes}"

    def of(self, source: str) -> ast.Module:
        """The module, changed."""
        tree = ast.parse(source)
        new = _changes(_at(tree, self.path))[self.change]()
        parent, (name, i) = _at(tree, self.path[:-1]), self.path[-1]
        if i is None:
            setattr(parent, name, new)
        else:
            getattr(parent, name)[i] = new
        return ast.fix_missing_locations(tree)


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module. What is in annotations, texts and errors is left alone."""
    tree = ast.parse(source)
    seen: dict[str, int] = {}
    for path, where in _places(tree, "module", ()):
        node = _at(tree, path)
        for change, make in enumerate(_changes(node)):
            was, becomes = _shown(node), _shown(make())
            number = seen[f"{where}{was}{becomes}"] = seen.get(f"{where}{was}{becomes}", 0) + 1
            was += f" (number {number})" if number > 1 else ""
            line = node.target.lineno if isinstance(node, ast.comprehension) else node.lineno
            yield Mutant(line, where, was, becomes, path, change)


def _shown(node: Any) -> str:
    """The source of a node in one line; of a statement with a block, its condition."""
    if isinstance(node, (ast.If, ast.While)):
        return f"if {ast.unparse(node.test)}"
    return " ".join(ast.unparse(node).split())


def _places(node: ast.AST, where: str, path: _Path) -> Iterator[tuple[_Path, str]]:
    if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        where = node.name if where == "module" else f"{where}.{node.name}"
    if isinstance(node, (ast.expr, ast.stmt, ast.comprehension)):
        yield path, where
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "decorator_list"):
            continue
        if isinstance(value, list):
            for i, child in enumerate(value):
                if isinstance(child, ast.AST):
                    yield from _places(child, where, (*path, (name, i)))
        elif isinstance(value, ast.AST):
            yield from _places(value, where, (*path, (name, None)))


def _at(node: Any, path: _Path) -> Any:
    for name, i in path:
        node = getattr(node, name) if i is None else getattr(node, name)[i]
    return node


def _changes(node: Any) -> list[Callable[[], ast.AST]]:
    """What a node may become, each made when it is asked for."""

    def copied(**fields: Any) -> Callable[[], ast.AST]:
        def make() -> ast.AST:
            new = copy.copy(node)
            for name, value in fields.items():
                setattr(new, name, value)
            return new

        return make

    match node:
        case ast.Compare(ops=ops):
            return [
                copied(ops=[*ops[:i], swap(), *ops[i + 1 :]])
                for i, op in enumerate(ops)
                for swap in SWAPS[type(op)]
            ]
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
            return [copied(op=swap()) for swap in SWAPS[type(op)]]
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=operand):
            return [lambda: operand]
        case ast.Constant(value=bool() as value):
            return [copied(value=not value)]
        case ast.Constant(value=int() | float() as value):
            return [copied(value=value + 1)]
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            return [copied(test=ast.UnaryOp(ast.Not(), test))]
        case ast.comprehension(ifs=[test]):
            return [copied(ifs=[ast.UnaryOp(ast.Not(), test)])]
        case ast.Return(value=value) if value is not None:
            return [copied(value=ast.Constant(None))]
        case ast.Slice():
            ends = [name for name in ("lower", "upper", "step") if getattr(node, name)]
            return [copied(**{name: None}) for name in ends]
        case _:
            return []


# Running them


def is_of_function(tree: ast.Module, line: int) -> bool:
    """Whether a line is inside the body of a function."""
    return any(
        isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line <= (node.end_lineno or 0)
        for node in ast.walk(tree)
    )


def exchange(path: Path, tree: ast.Module) -> bool:
    """Gives each function of a module, wherever it is, the code of a changed module."""

    def codes(code: types.CodeType) -> Iterator[types.CodeType]:
        yield code
        for value in code.co_consts:
            if isinstance(value, types.CodeType):
                yield from codes(value)

    new = {(c.co_qualname, c.co_firstlineno): c for c in codes(compile(tree, str(path), "exec"))}
    found = False
    for function in gc.get_objects():
        if isinstance(function, types.FunctionType) and function.__code__.co_filename == str(path):
            code = function.__code__
            function.__code__ = new[code.co_qualname, code.co_firstlineno]
            found = True
    return found


class Changed(importlib.machinery.SourceFileLoader):
    """Loads a changed module."""

    tree: ast.Module

    def get_code(self, fullname: str) -> Any:
        return compile(self.tree, self.path, "exec")


def import_changed(name: str, path: Path, tree: ast.Module) -> None:
    """Whoever imports that module from now on gets the changed one."""
    loader = Changed(name, str(path))
    loader.tree = tree

    class Finder:
        @staticmethod
        def find_spec(fullname: str, *_: Any) -> Any:
            if fullname != name:
                return None
            inside = [str(path.parent)] if path.name == "__init__.py" else None
            return importlib.util.spec_from_file_location(
                name, path, loader=loader, submodule_search_locations=inside
            )

    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]


def forked(work: Callable[[], int], seconds: float) -> str:
    """What becomes of a mutant in a process of its own, with so many seconds of processor time."""
    pid = os.fork()
    if pid == 0:
        try:
            limit = int(seconds) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            signal.alarm(60 * limit)  # one that waits, also on a busy machine
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os._exit(work())
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM) else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


class Warm:
    """A plugin of pytest that runs the collected tests in a fork for each mutant."""

    def __init__(self, path: Path, told: list[Mutant], tell: Callable[[Mutant, str], None]) -> None:
        self.path, self.told, self.tell = path, told, tell
        self.source = path.read_text()

    def pytest_runtestloop(self, session: Any) -> bool:
        def run(mutant: Mutant | None = None) -> int:
            if mutant and not exchange(self.path, mutant.of(self.source)):
                return 0
            for item, after in zip(session.items, [*session.items[1:], None], strict=True):
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                if session.testsfailed:
                    return 1
            return 0

        began = os.times()
        if forked(run, 600) != "survived":
            raise SystemExit(f"the tests of {self.path} fail without a mutant")
        now = os.times()
        took = now.children_user + now.children_system
        took -= began.children_user + began.children_system
        for mutant in self.told:
            self.tell(mutant, forked(lambda m=mutant: run(m), 10 + 5 * took))
        return True


def files(name: str, shared: bool) -> list[str]:
    stem = name.rpartition("/")[2]
    names = TESTS.get(name, (stem,))
    found = names[:1] if not shared else dict.fromkeys((*names, *SHARED))
    return [str(ROOT / "tests" / f"test_{each}.py") for each in found]


def measure(name: str, out: Path, line: int | None) -> None:
    """Runs the mutants of a module that are not known to be killed, and keeps what became of each.

    line: only those of one line; then nothing is kept
    """
    import pytest

    path = ROOT / "ddpm_core" / f"{name}.py"
    source = path.read_text()
    found = [m for m in mutants(source) if line in (None, m.line)]
    results = _results(out, name)
    before: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    done = {m.key: before[m.key] | {"line": m.line} for m in found if m.key in before}

    def survives(mutant: Mutant) -> bool:
        return line is not None or done.get(mutant.key, {}).get("fate", "survived") == "survived"

    def tell(mutant: Mutant, fate: str) -> None:
        done[mutant.key] = {"line": mutant.line, "fate": fate}
        if line is None:
            results.write_text(json.dumps(done, indent=1))

    tree = ast.parse(source)
    inside = [m for m in found if survives(m) and is_of_function(tree, m.line)]
    if inside and line is None:
        pid = os.fork()
        if pid == 0:
            warm = Warm(path, inside, tell)
            os._exit(int(pytest.main([*OPTIONS, *files(name, False)], [warm])))
        if os.waitpid(pid, 0)[1]:
            raise SystemExit(f"the tests of {path} could not be run")
        done |= json.loads(results.read_text())
    left = [m for m in found if survives(m)]

    def anew(mutant: Mutant | None = None) -> int:
        if mutant:
            module = f"ddpm_core.{name.replace('/', '.')}"
            import_changed(module, path, mutant.of(source))
        return int(pytest.main([*OPTIONS, *files(name, True)]))

    if left and forked(anew, 600) != "survived":
        raise SystemExit(f"the tests of {path} fail without a mutant")
    for mutant in left:
        tell(mutant, forked(lambda m=mutant: anew(m), 300))
        print(f"{name}:{mutant.line} {mutant.key}: {done[mutant.key]['fate']}", flush=True)
    killed = sum(entry["fate"] != "survived" for entry in done.values())
    print(f"{name}: {killed} of {len(done)} killed", flush=True)


def _results(out: Path, name: str) -> Path:
    return out / f"{name.replace('/', '.')}.json"


# The page


def report(out: Path) -> str:
    """docs/mutation.md, of the results that are there and of the reasons in mutation.toml."""
    told = tomllib.loads((ROOT / "docs" / "mutation.toml").read_text())
    names = [
        str(path.relative_to(ROOT / "ddpm_core").with_suffix(""))
        for path in sorted((ROOT / "ddpm_core").rglob("*.py"))
        if path.parent.name in CORE and path.name != "__init__.py"
    ]
    rows, survivors, missing = [], [], []
    total = [0, 0, 0]
    for name in sorted(names, key=lambda n: (n.count("/"), n)):
        if not _results(out, name).exists():
            missing.append(f"`{name}`")
            continue
        source = (ROOT / "ddpm_core" / f"{name}.py").read_text()
        keys = {m.key: m for m in mutants(source)}
        fates = json.loads(_results(out, name).read_text())
        fates = {key: fates[key]["fate"] for key in keys if key in fates}
        lived = [keys[key] for key, fate in fates.items() if fate == "survived"]
        reasons = told.get(name, {})
        explained = [m for m in lived if m.key in reasons]
        counts = (len(fates), len(fates) - len(lived), len(explained))
        total = [a + b for a, b in zip(total, counts, strict=True)]
        part = "" if len(fates) == len(keys) else f" of {len(keys)}"
        rows.append((f"`{name}`", f"{counts[0]}{part}", *map(str, counts[1:]), _share(*counts)))
        for m in lived:
            why = reasons.get(m.key, "**open**: no test tells them apart yet")
            change = f"`{m.was}` → `{m.becomes}`".replace("|", "\\|")
            survivors.append((f"`{name}:{m.line}`", change, why))
    rows.append(("all", *map(str, total), _share(*total)))
    left = f"Not run yet: {', '.join(missing)}.\n" if missing else ""
    return "\n".join(
        [
            HEAD,
            _table(("module", "mutants", "killed", "equivalent", "killed of the others"), rows),
            left,
            "## Survivors\n",
            _table(("where", "change", "why no test can fail, or what is missing"), survivors),
        ]
    )


def _share(count: int, killed: int, equivalent: int) -> str:
    return f"{100 * killed / max(count - equivalent, 1):.1f} %"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


HEAD = """# Defects that the tests notice

`python docs/mutation.py MODULE ...` makes a small defect in a module of the core, runs the module's tests, and does so for every defect of its
kinds: a comparison, an operator, a number, a condition, a slice, a return, a default. A defect that no test notices is a survivor. It is the
same function, and `docs/mutation.toml` says why, or a test is missing. `python docs/mutation.py` without modules writes this page.

Tests run as `pytest --quick --lanes=numpy,strict` runs them: first the module's own, then those in `TESTS` of the script.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as levels or schedules/named")
    parser.add_argument("--out", type=Path, default=Path("mutants"), help="a folder")
    parser.add_argument("--line", type=int, help="only the mutants of one line; nothing is kept")
    told = parser.parse_args()
    out = told.out.resolve()
    out.mkdir(exist_ok=True)
    if not told.modules:
        (ROOT / "docs" / "mutation.md").write_text(report(out))
        return
    sys.path[:0] = [str(ROOT), str(ROOT / "backends"), str(ROOT / "tests")]
    for name in WARM:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    for name in told.modules:
        measure(name, out, told.line)


if __name__ == "__main__":
    main()
