"""The libraries that can be audited, and `audit`."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from ddpm_core.testing.audits.found import Audit, examined


@dataclass(frozen=True)
class Library:
    """A library: its data here, what it is imported as, how one gets it, and what else it needs."""

    module: str
    imports: str
    get: str
    package: str = ""
    needs: str = "torch"


def _on_pypi(name: str, imports: str = "") -> Library:
    under = name.replace("-", "_")
    return Library(under, imports or under, f"pip install {name}", name)


def _checkout(repository: str) -> str:
    return f"pass --path with a checkout of {repository}"


LIBRARIES = {
    "diffusers": _on_pypi("diffusers"),
    "k-diffusion": _on_pypi("k-diffusion"),
    "azula": _on_pypi("azula"),
    "smalldiffusion": _on_pypi("smalldiffusion"),
    "denoising-diffusion-pytorch": _on_pypi("denoising-diffusion-pytorch"),
    "improved-diffusion": Library(
        "improved_diffusion",
        "improved_diffusion",
        _checkout("openai/improved-diffusion"),
    ),
    "guided-diffusion": Library(
        "guided_diffusion", "guided_diffusion", _checkout("openai/guided-diffusion")
    ),
    "dpm-solver": Library("dpm_solver", "dpm_solver_pytorch", _checkout("LuChengTHU/dpm-solver")),
    "deepinv": _on_pypi("deepinv"),
    "sbi": _on_pypi("sbi"),
    "bayesflow": _on_pypi("bayesflow"),
    "torchebm": _on_pypi("torchebm"),
    "physicsnemo": Library(
        "physicsnemo",
        "physicsnemo",
        "pip install nvidia-physicsnemo",
        "nvidia-physicsnemo",
    ),
    "edm": Library("edm", "dnnlib", _checkout("NVlabs/edm")),
    "hackable-diffusion": Library(
        "hackable_diffusion",
        "hackable_diffusion",
        _checkout("google/hackable_diffusion"),
        needs="jax",
    ),
    "score-sde": Library("score_sde", "sde_lib", _checkout("yang-song/score_sde_pytorch")),
}


def audit(
    name: str,
    paths: Iterable[Path] = (),
    now: Callable[[str], None] = lambda label: None,
) -> Audit:
    """Examines every object of a library that has an adapter.

    name: of `LIBRARIES`
    paths: folders to import from, such as a checkout
    now: is told each object before it

    LookupError if there is no such library here, ImportError if it is not installed.
    """
    if name not in LIBRARIES:
        raise LookupError(f"no library {name!r} to audit; there are {', '.join(LIBRARIES)}")
    library = LIBRARIES[name]
    paths = [path.resolve() for path in paths]
    sys.path[:0] = map(str, paths)
    try:
        ways = {name: library.get, library.needs: f"pip install {library.needs}"}
        there = (find_spec(library.imports), find_spec(library.needs))
        missing = [each for each, spec in zip(ways, there, strict=True) if spec is None]
        if missing:
            verb, how = (
                "are" if missing[1:] else "is",
                ", and ".join(map(ways.__getitem__, missing)),
            )
            raise ImportError(f"{' and '.join(missing)} {verb} not installed: {how}")
        data = importlib.import_module(f"ddpm_core.testing.audits.{library.module}")
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # of the library, of its own options
            try:
                subjects = data.subjects()
            except ImportError as error:
                raise ImportError(f"{name} cannot be imported: {error}") from None
            lines = tuple(examined(subjects, now))
        return Audit(name, _version(library, paths), lines, data.NOTES)
    finally:
        del sys.path[: len(paths)]


def _version(library: Library, paths: list[Path]) -> str:
    """The version of a package, or the commit of a checkout; empty if neither is known."""
    with contextlib.suppress(PackageNotFoundError):
        return version(library.package or library.imports)
    spec = find_spec(library.imports)
    file = Path(spec.origin or "") if spec is not None else Path()
    for git in (path / ".git" for path in paths if file.is_relative_to(path.resolve())):
        head = git / "HEAD"
        if not head.is_file():
            continue
        text = head.read_text("utf-8").strip()
        ref = git / text.removeprefix("ref: ")
        if ref.is_file():
            text = ref.read_text("utf-8").strip()
        return text[:7]
    return ""
