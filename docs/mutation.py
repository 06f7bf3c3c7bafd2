"""How many small defects of the core its tests notice: python docs/mutation.py levels process.

Each mutant is one change of one module: a comparison, an operator, a number, a condition, a slice,
a return, a default. It is killed if a test fails, or takes far too long. What became of each is kept
in build/mutants; survivors are explained in mutation.toml. Without
modules, those of the whole core are run, and mutation.md is written.

A mutant of a function first runs in a fork of a process that has collected the module's tests,
with the code of that function exchanged, and only the tests that call it. What is not in a
function, or survives that and was called while tests were collected, runs in a fork that has
imported NumPy, SciPy and torch alone. Before, the unchanged code must pass in both.
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
import tempfile
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

ROOT = Path(__file__).parents[1]
OPTIONS = (
    *("-x", "-s", "--quick", "--lanes=numpy,strict", "-n0", "-oaddopts="),
    *("-pno:terminal", "-pno:cacheprovider", "-Wignore::pytest.PytestAssertRewriteWarning"),
)
WARM = ("numpy", "scipy.linalg", "hypothesis", "array_api_strict", "array_api_extra", "torch")
RESULTS = ROOT / "build" / "mutants"
#: Folders of the modules on the page.
CORE = ("ddpm_core", "schedules", "samplers", "likelihood", "certificates")
SOLVERS = ("order_conditions", "solver_papers", "solver_tables", "samplers")
#: The tests of a module beside its doctests; by default test_NAME.py.
TESTS: dict[str, tuple[str, ...]] = {
    "arrays": ("arrays", "levels", "execution", "arguments"),
    "levels": ("levels", "times", "schedules"),
    "grids": ("grids", "schedules"),
    "gaussians": ("gaussians", "decoder", "process"),
    "process": ("process", "laws"),
    "parameterisations": ("parameterisations", "coordinates", "losses"),
    "denoisers": ("denoisers", "coordinates", "guidance"),
    "guidance": ("guidance", "guidance_laws", "arguments"),
    "kernels": ("kernels", "variances", "vlb"),
    "losses": ("losses", "vlb", "hybrid"),
    "noise": ("noise", "golden"),
    "measurements": ("measurements", "inverse", "given", "arguments"),
    "oracles": ("oracles", "given", "kernels", "arguments"),
    "inverse": ("inverse", "arguments"),
    "distances": ("distances", "copying"),
    "schedules/protocol": ("schedules", "check_schedule", "times", "arguments"),
    "schedules/discrete": ("schedules", "times", "check_schedule"),
    "schedules/continuous": ("schedules", "times", "check_schedule"),
    "schedules/named": ("schedules", "check_schedule"),
    "schedules/drawing": ("drawing", "schedules"),
    "likelihood/ode": ("flow_likelihood",),
    "likelihood/flow": ("flow_likelihood", "arguments"),
    "likelihood/variational": ("vlb", "elbo", "bits", "errors", "arguments"),
    "samplers/unrolled": ("unrolled", "laws", "affine_laws", "arguments"),
    "samplers/tables": ("samplers", "solver_tables", "unrolled", "step_log_prob", "arguments"),
    "samplers/run": ("samplers", "execution", "arguments"),
    "samplers/multistep": SOLVERS,
    "samplers/first_order": SOLVERS,
    "samplers/adams": SOLVERS,
    "samplers/dpm_solver": SOLVERS,
    "samplers/edm": SOLVERS,
    "samplers/extended": SOLVERS,
    "samplers/unipc": SOLVERS,
    "samplers/reversible": ("bdia", "samplers", "order_conditions"),
    "samplers/registry": ("solver_orders", "solver_tables", "bdia"),
    "samplers/interchange": ("interchange",),
    "certificates/laws": ("affine_laws", "laws", "certificates", "arguments"),
    "certificates/orders": ("certificates", "solver_orders", "arguments"),
}
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
    """Every mutant of a module, but for annotations, texts, errors and assertions."""
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
    if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: an assertion
        return
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        where = node.name if where == "module" else f"{where}.{node.name}"
    if isinstance(node, (ast.expr, ast.stmt, ast.comprehension)):
        yield path, where
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "decorator_list"):
            continue
        children: list[Any] = value if isinstance(value, list) else [value]  # type: ignore
        for i, child in enumerate(children):
            if isinstance(child, ast.AST):
                step = (name, i if isinstance(value, list) else None)
                yield from _places(child, where, (*path, step))


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
        case ast.Return(value=value) if value and ast.unparse(value) != "None":
            return [copied(value=ast.Constant(None))]
        case ast.Slice():
            ends = [name for name in ("lower", "upper", "step") if getattr(node, name)]
            return [copied(**{name: None}) for name in ends]
        case _:
            return []


# Running them


Code = types.CodeType


def codes(code: Code) -> Iterator[Code]:
    """A code and all that are inside it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, Code):
            yield from codes(value)


def exchanges(path: Path, before: ast.Module, after: ast.Module) -> dict[Code, Code]:
    """The new code of each old one; empty where some function could not take it."""
    old, new = (list(codes(compile(tree, str(path), "exec"))) for tree in (before, after))
    possible = len(old) == len(new) and all(
        a == b or (old.count(a) == 1 and a.co_freevars == b.co_freevars)
        for a, b in zip(old, new, strict=True)
    )
    return dict(zip(old, new, strict=True)) if possible else {}


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
            found = fullname == name
            return (
                importlib.util.spec_from_file_location(name, path, loader=loader) if found else None
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


def unchanged(work: Callable[[], int], name: str) -> float:
    """The seconds of processor time that the tests of a module take, which pass."""
    began = os.times()
    if forked(work, 600) != "survived":
        raise SystemExit(f"the tests of {name} fail without a mutant")
    now = os.times()
    return now.children_user + now.children_system - began.children_user - began.children_system


class Plain:
    """A plugin of pytest: hypothesis does not make a failure simpler."""

    def pytest_sessionstart(self) -> None:
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("plain", settings(), phases=phases, report_multiple_bugs=False)
        settings.load_profile("plain")


class Measured(Plain):
    """The mutants of a module (of one line, if that is given), and what became of each.

    It is the plugin of pytest that runs the collected tests in a fork for each mutant.
    """

    def __init__(self, name: str, line: int | None = None) -> None:
        self.name, self.path = name, ROOT / "ddpm_core" / f"{name}.py"
        self.module = f"ddpm_core.{name.replace('/', '.')}"
        self.source = self.path.read_text()
        self.tree = ast.parse(self.source)
        self.mutants = [m for m in mutants(self.source) if line in (None, m.line)]
        self.results = RESULTS / f"{self.module}.json" if line is None else None
        self.reasons: dict[str, str] = told().get(name, {})
        kept: dict[str, str] = {}
        if self.results and self.results.exists():
            kept = json.loads(self.results.read_text())
        self.tried = all(m.key in kept for m in self.mutants)
        known = {key for key, fate in kept.items() if fate != "survived" or key in self.reasons}
        self.fates = {m.key: kept[m.key] for m in self.mutants if m.key in known}
        self.called: set[Code] = set()  #: before the first test ran

    def left(self) -> list[Mutant]:
        return [m for m in self.mutants if m.key not in self.fates]

    def tell(self, mutant: Mutant, fate: str) -> None:
        self.fates[mutant.key] = fate
        if self.results:
            self.results.write_text(json.dumps(self.fates, indent=1))

    def see(self, frame: types.FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename == str(self.path):
            self.called.add(frame.f_code)

    def pytest_runtestloop(self, session: Any) -> bool:
        sys.setprofile(None)
        functions = [
            each
            for each in gc.get_objects()
            if type(each) is types.FunctionType and each.__code__.co_filename == str(self.path)
        ]
        inside = vars(sys.modules[self.module]).values()
        caches: list[Any] = [each for each in inside if hasattr(each, "cache_clear")]
        gc.freeze()
        same = exchanges(self.path, self.tree, self.tree)
        numbers = {code: i for i, code in enumerate(same)}

        def run(items: list[Any], new: dict[Code, Code], calls: Path | None = None) -> int:
            for function in functions:
                function.__code__ = new[function.__code__]
            seen: list[list[int]] = []
            for item, after in zip(items, [*items[1:], None], strict=False):
                self.called = set()
                if calls or item is items[0]:
                    for cache in caches:
                        cache.cache_clear()
                sys.setprofile(self.see if calls else None)
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                sys.setprofile(None)
                seen.append([numbers[code] for code in self.called])
                if session.testsfailed:
                    return 1
            if calls:
                calls.write_text(json.dumps(seen))
            return 0

        with tempfile.TemporaryDirectory() as folder:
            calls = Path(folder) / "calls.json"
            took = unchanged(lambda: run(session.items, same, calls), self.name)
            called = [set(each) for each in json.loads(calls.read_text())]
        for mutant in self.left():
            new = exchanges(self.path, self.tree, mutant.of(self.source))
            changed = {old for old, each in new.items() if old != each}
            inner = {code for code in changed if not changed.intersection(code.co_consts)}
            if not any(function.__code__ in changed for function in functions):
                continue
            at = {numbers[code] for code in inner}
            items = [item for item, each in zip(session.items, called, strict=True) if each & at]
            fate = forked(lambda new=new, items=items: run(items, new), 10 + 5 * took)
            if fate != "survived" or not self.called & inner:
                self.tell(mutant, fate)
        return True

    def run(self) -> None:
        import pytest

        names = TESTS.get(self.name, (self.name,))
        files = [f"test_{name}.py" for name in names]
        examples = f"test_imports.py::test_doctests[{self.module}]"
        told = [*OPTIONS, *(f"{ROOT}/tests/{file}" for file in (*files, examples))]
        if self.results and self.left():
            self.results.write_text(json.dumps(self.fates, indent=1))
            pid = os.fork()
            if pid == 0:
                sys.setprofile(self.see)
                os._exit(int(pytest.main(told, [self])))
            if os.waitpid(pid, 0)[1]:
                raise SystemExit(f"the tests of {self.name} could not be run")
            self.fates = json.loads(self.results.read_text())

        def anew(tree: ast.Module) -> int:
            import_changed(self.module, self.path, tree)
            return int(pytest.main(told, [Plain()]))

        left = self.left()
        took = unchanged(lambda: anew(self.tree), self.name) if left else 0
        for mutant in left:
            fate = forked(lambda m=mutant: anew(m.of(self.source)), 10 + 5 * took)
            self.tell(mutant, fate)
        for mutant in self.mutants:
            if self.results is None or self.fates[mutant.key] == "survived":
                print(f"{self.name}:{mutant.line} {mutant.key}: {self.fates[mutant.key]}")
        killed = sum(fate != "survived" for fate in self.fates.values())
        print(f"{self.name}: {killed} of {len(self.mutants)} killed", flush=True)


# The page


def core() -> list[str]:
    """The names of its modules."""
    paths = (ROOT / "ddpm_core").rglob("*.py")
    names = [
        str(path.relative_to(ROOT / "ddpm_core").with_suffix(""))
        for path in paths
        if path.parent.name in CORE and not path.name.startswith("__")
    ]
    return sorted(names, key=lambda name: (name.count("/"), name))


def told() -> dict[str, dict[str, str]]:
    """By module and mutant, why it is no defect, or who notices it."""
    return tomllib.loads((ROOT / "docs" / "mutation.toml").read_text())


def page() -> str:
    """docs/mutation.md, of the results that are there and of the reasons in mutation.toml."""
    rows: list[tuple[str, ...]] = []
    survivors: list[tuple[str, ...]] = []
    missing: list[str] = []
    total = [0, 0, 0]
    for module in map(Measured, core()):
        if not module.tried:
            missing.append(f"`{module.name}`")
        if not module.tried or not module.mutants:
            continue
        lived = [m for m in module.mutants if module.fates.get(m.key, "survived") == "survived"]
        unknown = module.reasons.keys() - {m.key for m in lived}
        if unknown:
            raise SystemExit(
                f"mutation.toml explains what is no survivor of {module.name}: {unknown}"
            )
        counts = (len(module.mutants), len(module.mutants) - len(lived), len(module.reasons))
        total = [a + b for a, b in zip(total, counts, strict=True)]
        rows.append((f"`{module.name}`", *map(str, counts), _share(*counts)))
        for m in lived:
            change = f"`{m.was}` → `{m.becomes}`".replace("|", "\\|")
            why = module.reasons.get(m.key, "**open**: no test tells them apart yet")
            survivors.append((f"`{module.name}:{m.line}`", change, why))
    rows.append(("all", *map(str, total), _share(*total)))
    columns = ("module", "mutants", "killed", "explained", "killed of the others")
    return "\n".join(
        [
            HEAD,
            _table(columns, rows),
            f"Not run yet: {', '.join(missing)}.\n" if missing else "",
            "## Survivors\n",
            _table(("where", "change", "why it is no defect, or who notices it"), survivors),
        ]
    )


def _share(count: int, killed: int, explained: int) -> str:
    return f"{100 * killed / max(count - explained, 1):.1f} %"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


HEAD = """# Defects that the tests notice

`python docs/mutation.py` makes one small defect in a module of the core, runs the tests of that module, and does so again for every defect
of these kinds: another comparison or operator, a number or a default plus 1, a condition turned round, one end of a slice left out, a
function that returns nothing. A defect that these tests do not notice is a survivor, which `docs/mutation.toml` explains: nearly always the function is
the same; in a few places other tests notice it, of lanes or of solvers that take longer.

The tests run as `pytest --quick --lanes=numpy,strict` runs them, with the doctests of the module; `TESTS` in the script lists those of each.
`python docs/mutation.py levels process` runs two modules, `--line 40` the mutants of one line. What became of each mutant is kept in
`build/mutants`: a second run tries what is left, and the survivors without a reason. `--page` writes this page of what is there.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as levels or schedules/named")
    parser.add_argument("--page", action="store_true", help="only write mutation.md")
    parser.add_argument("--line", type=int, help="only the mutants of one line; nothing is kept")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.page:
        (ROOT / "docs" / "mutation.md").write_text(page())
        return
    sys.path[:0] = [str(ROOT), str(ROOT / "backends"), str(ROOT / "tests")]
    for name in WARM:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy all memory
    for name in options.modules or core():
        Measured(name, options.line).run()
    if not options.modules:
        (ROOT / "docs" / "mutation.md").write_text(page())


if __name__ == "__main__":
    main()
