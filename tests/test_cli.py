"""The command line as a whole: how it fails, how it is stopped, and what `info` shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from command import COMMAND, executable, fails, pixels, run

import ddpm_core as ddpm
from ddpm_core.checkpoints import load
from ddpm_core.cli import app, main
from ddpm_core.cli.progress import progress
from ddpm_core.models import bundled

pytest_plugins = "command_fixtures"
pytestmark = pytest.mark.usefixtures("one_thread_of_processes")


def test_no_command(capsys):
    """An unknown command is refused; none at all shows the help."""
    assert "No such command 'paint'" in fails(capsys, "paint")
    run("--help")
    shown = capsys.readouterr().out
    run()
    assert capsys.readouterr().out == shown
    assert all(name in shown for name in ("sample", "train", "info"))


@pytest.mark.slow
def test_executable(tmp_path, model):
    """The installed command samples; a mistake is one line on stderr and status 2."""
    good = executable(
        "sample", "--model", model, "--grid", "1x2", "--steps", 1, "--classes", "cat", cwd=tmp_path
    )
    assert good.returncode == 0
    told = f"2 images of {model}, dpmpp_2m, 1 steps, 1 network calls."
    assert good.stdout == f"Wrote samples.png: {told}\n"
    assert pixels(tmp_path / "samples.png").shape == (2 * (4 + 2 * 2), 2 * (2 * 6 + 3 * 2))
    bad = executable("sample", "--model", "none", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert (
        bad.stderr == "ddpm-core: no model 'none': neither a file, nor a folder, nor one of emoji, "
        "fashion-mnist\n"
    )


@pytest.mark.needs("torch")
def test_info(capsys, monkeypatch):
    """`info` lists versions, backends and bundled models, whole also on a narrow terminal."""
    monkeypatch.setenv("COLUMNS", "40")
    run("info")
    shown = capsys.readouterr().out
    assert f"ddpm-core {ddpm.__version__}" in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert f"{np.__version__} on cpu" in lines["numpy"]
    assert "on cpu" in lines["torch"]
    model = load(bundled()["fashion-mnist"])
    count = sum(p.size for p in model.params.values())
    assert "28x28x1, 10 classes" in lines["fashion-mnist"]
    assert f"{count:,}" in lines["fashion-mnist"]


def test_command_is_installed():
    """The console script lies beside this Python."""
    assert shutil.which("ddpm-core", path=str(COMMAND.parent))


def test_info_survives(monkeypatch, capsys):
    """A backend of another package that cannot be made hides no other."""
    from importlib.metadata import EntryPoint

    from ddpm_core import backends

    # int takes no device=.
    found = backends.discover() | {"bad": EntryPoint("bad", "builtins:int", backends.GROUP)}
    monkeypatch.setattr("ddpm_core.cli.info.discover", lambda: found)
    monkeypatch.setattr(backends, "discover", lambda: found)
    run("info")
    shown = capsys.readouterr().out
    assert re.search(r"^bad +cannot be made: TypeError", shown, re.MULTILINE)
    assert re.search(r"^numpy +\d", shown, re.MULTILINE)
    assert "fashion-mnist" in shown


def test_info_says_what_installs(monkeypatch, capsys):
    """A backend whose library is missing is shown with the whole line that installs it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("ddpm_core_torch")]:
        monkeypatch.delitem(sys.modules, name)
    run("info")
    said = " ".join(capsys.readouterr().out.split())
    assert "backend 'torch' needs torch: pip install 'ddpm-core[torch]'" in said


def failing(error: BaseException):
    def run(arguments: list[str]) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    "error",
    [TypeError("a < b"), KeyError("w"), RecursionError("too deep"), OverflowError(),
     AttributeError("no"), NotImplementedError("here"), RuntimeError("a\nb"), AssertionError()],
    ids=repr,
)  # fmt: skip
def test_defects(monkeypatch, capsys, error):
    """What no input should bring about is one line that says so, and status 1."""
    monkeypatch.setattr(app, "run", failing(error))
    said = fails(capsys, "info", status=1)
    assert said.startswith(f"ddpm-core: this is a defect of ddpm-core: {type(error).__name__}: ")
    assert said.endswith("`ddpm-core --traceback`\n")


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_too_little_memory(monkeypatch, capsys, library):
    """What does not fit into memory is no defect: the line says what takes less, and status 2."""
    make = pytest.importorskip(library).ones
    monkeypatch.setattr(app, "run", lambda arguments: make((1 << 45,)))
    said = fails(capsys, "info")
    assert said.startswith("ddpm-core: there is too little memory (")
    assert said.endswith("; a smaller --batch, if there is one, takes less\n")


@pytest.mark.needs("torch")
def test_too_little_memory_on_cuda(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(app, "run", failing(torch.OutOfMemoryError("CUDA out of memory.")))
    assert "there is too little memory" in fails(capsys, "info")


def test_answers_are_bounded(monkeypatch, capsys):
    """No line is longer than 500 characters; its beginning and its end are kept."""
    monkeypatch.setattr(app, "run", failing(ValueError("start " + "x" * 200_000 + " the end")))
    said = fails(capsys, "info")
    assert len(said) == 501
    assert said.startswith("ddpm-core: start xxx")
    assert said.endswith(" the end\n")


def test_answers_cannot_steer_the_terminal(monkeypatch, capsys):
    """Control characters, and bytes that are no text, are shown as escapes."""
    odd = "a\x1b[2J\x07\u202eb\udcff é"
    for error in (ValueError(odd), FileNotFoundError(2, "No such file", odd)):
        monkeypatch.setattr(app, "run", failing(error))
        assert r"ddpm-core: a\x1b[2J\x07\u202eb\udcff é" in fails(capsys, "info")


def test_without_typer():
    """What the command line lacks is named, with the line that installs it."""
    code = "import sys; sys.modules['typer'] = None; from ddpm_core.cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    wanted = "ddpm-core: the command line needs typer: pip install 'ddpm-core[cli]'\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", wanted)


def test_traceback(monkeypatch, capsys):
    """`--traceback`, before a command or after it, shows where an error comes from."""
    monkeypatch.setattr(sys, "argv", ["ddpm-core", "sample", "--seed", "-1", "--traceback"])
    with pytest.raises(SystemExit):
        main()
    assert "\nValueError: --seed must lie within" in capsys.readouterr().err
    monkeypatch.setattr(app, "run", failing(TypeError("odd")))
    monkeypatch.setattr(sys, "argv", ["ddpm-core", "--traceback", "info"])
    with pytest.raises(SystemExit):
        main()
    *shown, last = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("Traceback")
    assert shown[-1] == "TypeError: odd"
    assert last.startswith("ddpm-core: this is a defect")


def test_version(capsys):
    run("--version")
    assert capsys.readouterr().out == f"ddpm-core {ddpm.__version__}\n"


def test_warnings_add_no_lines(monkeypatch, capsys):
    """What libraries warn of is not shown, unless it is asked for."""

    def run(arguments: list[str]) -> int:
        warnings.warn("of a library", stacklevel=1)
        raise ValueError("no")

    monkeypatch.setattr(app, "run", run)
    assert fails(capsys, "info") == "ddpm-core: no\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals(tmp_path, model, name):
    """A signal ends a command with its status and one line, and nothing half-written is left."""
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"no {name} here")
    options = ["--model", model, "--count", "100000", "--out-dir", tmp_path / "d", "--batch", "2"]
    # Background jobs and nohup let a process inherit ignored signals; this undoes it.
    undo = f"import os, sys, signal; signal.signal({int(number)}, signal.SIG_DFL)"
    undo += "; os.execv(sys.argv[1], sys.argv[1:])"
    started = subprocess.Popen(
        [sys.executable, "-c", undo, COMMAND, "sample", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(600):
        if (tmp_path / "d" / "00000003.png").exists():
            break
        time.sleep(0.1)
    started.send_signal(number)
    out, err = started.communicate(timeout=60)
    said = "interrupted" if name == "SIGINT" else "terminated"
    assert (started.returncode, out) == (128 + number, "")
    assert err.splitlines()[-1] == f"ddpm-core: {said}"
    assert "Traceback" not in err
    found = {path.name for path in (tmp_path / "d").iterdir()}
    assert {name for name in found if not re.fullmatch(r"\d{8}\.png", name)} == {"samples.json"}
    for path in (tmp_path / "d").glob("*.png"):
        assert pixels(path).shape == (4, 6)


@pytest.mark.slow
def test_closed_pipe(tmp_path):
    """Where nobody reads, a command ends without a word, as SIGPIPE would end it."""
    for command in (["info"], ["--version"], ["sample", "--help"]):
        read, write = os.pipe()
        os.close(read)
        ran = subprocess.run([COMMAND, *command], stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.slow
def test_closed_output(tmp_path, model):
    """Where stdout is closed, as by the shell's `>&-`, a command does its work without a word."""
    options = "--model", model, "--grid", "1x1", "--steps", "1", "--out", tmp_path / "s.png"
    ran = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", COMMAND, "sample", *options], stderr=subprocess.PIPE
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert pixels(tmp_path / "s.png").shape


def test_progress_lines(monkeypatch, capsys):
    """Where stderr is no terminal, lines come now and then, and not at all from short work."""
    with progress(3, "Working") as bar:
        bar.advance(3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("ddpm_core.cli.progress.INTERVAL", 0.0)
    with progress(5, "Working", done=1) as bar:
        bar.advance(2, "loss 0.5")
        bar.advance()
    with progress(5, "Working", quiet=True) as bar:
        bar.advance()
    first, second, third = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"Working 3/5, loss 0\.5, 0:00:\d\d elapsed, 0:00:\d\d left", first)
    assert second.startswith("Working 4/5, loss 0.5")
    assert third.startswith("Working 4/5")


def test_progress_bar(monkeypatch, capsys):
    """On a terminal there is a bar, with what the command says of the work."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress(4, "Working [now]") as bar:
        bar.advance(3, "loss [0.5]")
    said = capsys.readouterr().err
    assert "Working [now]" in said
    assert "75%" in said
    assert "loss [0.5]" in said
