"""`ddpm-core verify`: the table, the JSON, the exit status."""

from __future__ import annotations

import json
import math
import sys
from importlib.metadata import EntryPoint
from unittest import mock

import numpy as np
import pytest

from ddpm_core import backends
from ddpm_core.cli import app, main, verify
from ddpm_core.testing import backends as suite
from ddpm_core.testing.backend_checks import Finding
from ddpm_core_numpy import NumPy


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal in which no line of the table is folded."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def register(monkeypatch):
    """Puts a class among the backends that are installed, by its name in this module."""
    found = backends.discover()
    monkeypatch.setattr(backends, "discover", lambda: found)

    def add(name: str) -> None:
        sys.modules.setdefault(__name__, sys.modules[Distorted.__module__])
        found[name] = EntryPoint(name, f"{__name__}:{name}", backends.GROUP)

    return add


class Distorted(NumPy):
    """A sum that is off by a thousandth."""

    def lincomb(self, *terms):
        return super().lincomb(*terms) * np.float32(1.001)


def some(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(suite, "CHECKS", {name: suite.CHECKS[name] for name in names})


def test_command_passes(tmp_path, capsys, monkeypatch):
    """All well: the table, exit status 0, and the same in JSON."""
    some(monkeypatch, "transfers", "lincomb", "gradients")
    path = tmp_path / "found.json"
    assert app.run(["verify", "--backend", "numpy", "--dtype", "float64", "--json", str(path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"numpy {np.__version__}" in shown[0]
    assert "float64" in shown[0]
    assert [line.split()[0] for line in shown[2:5]] == ["transfers", "lincomb", "gradients"]
    assert [line.split()[-1] for line in shown[2:5]] == ["ok", "ok", "applicable"]
    assert "numpy has no gradients" in shown[4]
    assert shown[-1] == "2 ok, 1 not applicable"
    found = json.loads(path.read_text())
    assert found["environment"]["library"] == f"numpy {np.__version__}"
    assert [check["verdict"] for check in found["checks"]] == ["ok", "ok", "not applicable"]
    assert found["checks"][1]["allowed"] == 4 * np.finfo(np.float64).eps


def test_reader_that_has_left(tmp_path, monkeypatch):
    """The JSON is written also where nobody reads the table."""
    some(monkeypatch, "lincomb")
    monkeypatch.setattr(verify, "_show", mock.Mock(side_effect=BrokenPipeError))
    path = tmp_path / "found.json"
    with pytest.raises(BrokenPipeError):
        app.run(["verify", "--backend", "numpy", "--json", str(path)])
    assert [check["check"] for check in json.loads(path.read_text())["checks"]] == ["lincomb"]


def test_command_fails(capsys, monkeypatch, register):
    """A wrong backend: exit status 1, and the failed checks by name, in the last line too."""
    register("Distorted")
    some(monkeypatch, "transfers", "lincomb", "samplers")
    monkeypatch.setattr(sys, "argv", ["ddpm-core", "verify", "--backend", "Distorted"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in shown[2:5]] == ["ok", "failed", "failed"]
    assert shown[-1] == "1 ok, 2 failed (lincomb, samplers)"
    name, *_, largest, allowed, _ = shown[3].split()
    assert name == "lincomb"
    assert float(largest) == pytest.approx(1e-3, rel=0.1)
    assert float(allowed) == pytest.approx(4 * np.finfo(np.float32).eps, rel=0.1)


def test_no_permission(monkeypatch, tmp_path):
    """A folder that cannot be written to is found out before the work."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"does not let us write found\.json in it"):
        app.run(["verify", "--backend", "numpy", "--json", str(tmp_path / "found.json")])


def test_nan_in_json(tmp_path, monkeypatch):
    """A NaN fails, and the file is JSON by the standard, which has none."""
    nan = ("none", lambda on, host: Finding(math.nan, 1.0))
    monkeypatch.setattr(suite, "CHECKS", {"transfers": nan})
    assert app.run(["verify", "--backend", "numpy", "--json", str(tmp_path / "f.json")]) == 1

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((tmp_path / "f.json").read_text(), parse_constant=refuse)
    assert found["checks"][0]["largest"] == "nan"
    assert found["checks"][0]["verdict"] == "failed"


def test_failure_says_why(capsys, monkeypatch):
    """An exception in a check is its failure, with the first line of what it says."""

    def breaks(on, host):
        raise RuntimeError("the device fell off\nat the back")

    monkeypatch.setattr(suite, "CHECKS", {"transfers": ("arrays", breaks)})
    assert app.run(["verify", "--backend", "numpy"]) == 1
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert shown[3:] == ["RuntimeError: the device fell off", "1 failed (transfers)"]


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "tf"], "no backend 'tf'; there are "),
        (["--backend", "numpy", "--device", "cuda"], "NumPy has no device 'cuda'"),
        (["--backend", "torch", "--device", "nowhere"], "torch cannot use device 'nowhere'"),
        (["--backend", "torch", "--device", "meta"], "device 'meta' holds no values"),
        (
            ["--backend", "torch", "--dtype", "float31"],
            "torch has no floating-point dtype 'float31'",
        ),
        (["--backend", "numpy", "--dtype", "bfloat16"], "float32 or float64, not bfloat16"),
        (["--json", "found.txt"], "found.txt must end in .json"),
        (["--json", "none/found.json"], "there is no folder none"),
    ],
)
def test_bad_arguments(capsys, monkeypatch, tmp_path, arguments, said):
    """A backend, device, dtype or file that is not there: one line, status 2, nothing checked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ddpm-core", "verify", *arguments])
    monkeypatch.setattr(suite, "CHECKS", {})
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("installed", "name"),
    [({"torch", "jax", "numpy"}, "torch"), ({"jax", "numpy"}, "jax"), ({"numpy"}, "numpy")],
)
def test_default_backend(monkeypatch, installed, name):
    """The first framework that is installed, or NumPy: a slim environment checks itself."""
    monkeypatch.setattr(verify, "find_spec", lambda library: library in installed or None)
    made = []

    def made_here(name, **options):
        made.append(name)
        return NumPy()

    monkeypatch.setattr(verify, "backend", made_here)
    monkeypatch.setattr(suite, "CHECKS", {})
    assert app.run(["verify"]) == 0
    assert made == [name]


def test_info_prints_at_once(monkeypatch, capsys):
    """What is known without a framework comes before the first is imported; then each line."""
    from ddpm_core.cli import info

    seen = []

    def made(name):
        seen.append(capsys.readouterr().out)
        raise ValueError(f"no {name}")

    monkeypatch.setattr(info, "backend", made)
    app.run(["info"])
    seen.append(capsys.readouterr().out)
    assert f"numpy {np.__version__}" in seen[0]
    assert "fashion-mnist" in seen[0]
    names = sorted(backends.discover())
    assert len(names) > 1
    for name, shown in zip(names, seen[1:], strict=True):
        assert shown.split() == [name, "no", name]
