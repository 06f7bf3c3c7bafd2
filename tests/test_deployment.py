"""What an installation needs, and that what docs/deployment.md tells to do works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import readme
from command import pixels

import ddpm_core as ddpm
from ddpm_core.models import bundled

pytestmark = pytest.mark.slow  # processes of their own

PAGE = readme.ROOT / "docs" / "deployment.md"
#: Refuses what a container may refuse: to write a file, or to reach another machine.
SEALED = """
import os, sys
def refuse(event, args):
    write = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event == "open" and args[2] & write and args[0] != os.devnull:
        raise OSError(30, "no file may be written", args[0])
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError(f"nothing may be reached: {event}")
sys.addaudithook(refuse)
"""
#: Lets only some packages be imported.
ALONE = """
class Alone:
    def find_spec(name, path=None, target=None):
        first = name.partition(".")[0]
        ours = first in {allowed!r} or first in sys.stdlib_module_names
        if not (ours or first.startswith("_")):  # such as the standard library's own _sysconfigdata
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Alone)
"""
NUMPY = ("ddpm_core", "ddpm_core_numpy", "numpy", "array_api_compat")


def python(code: str, *allowed: str) -> subprocess.CompletedProcess[str]:
    """Runs code where only some packages can be imported."""
    words = [sys.executable, "-c", SEALED + ALONE.format(allowed=allowed) + code]
    return subprocess.run(words, capture_output=True, text=True)


def test_python_needs_numpy_and_safetensors():
    """A model is loaded and sampled from, as on the page, without the command line's packages."""
    (code,) = readme.blocks("python", PAGE)
    code = code.replace("20)", "1)")
    ran = python(code, *NUMPY, "safetensors")
    assert ran.stderr == ""
    assert re.fullmatch(r"import .* s, load .* s, .* s\nat most \d+ MiB\n", ran.stdout)
    assert (
        "ImportError: checkpoints need safetensors: pip install safetensors"
        in python(code, *NUMPY).stderr
    )


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_equal_bits_in_batches_of_one_size(name):
    """The last bits of an image do not depend on which others are drawn with it, or where."""
    pytest.importorskip(name)
    on, model = ddpm.backend(name), ddpm.load(bundled()["fashion-mnist"])
    network = on.network(dict(model.params), model.config)
    x = ddpm.portable_noise(0)(0, (6, 1, *model.size))
    time, y = np.linspace(0, 999, 6, dtype=np.float32), np.arange(6)

    def outputs(*which: int) -> np.ndarray:
        index = list(which)
        inputs = on.asarray(x[index]), on.asarray(time[index]), on.asarray(y[index], on.xp.int32)
        return on.to_numpy(network(*inputs))

    np.testing.assert_array_equal(outputs(0, 1, 2, 3)[[3, 1]], outputs(3, 4, 1, 5)[[0, 2]])


def test_extras():
    """What the page installs are extras, or packages that these tests have."""
    project = tomllib.loads((readme.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    text = PAGE.read_text("utf-8")
    assert set(re.findall(r"(?:ddpm-core|/src)\[(\w+)\]", text)) <= extras.keys()
    for package in ("starlette", "uvicorn"):
        assert any(line.startswith(package) for line in extras["test"])


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """The address of a server that may write no file and reach no machine."""
    code = (
        SEALED
        + "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], None, '__main__')"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, *options, "--port", "0"],
        stderr=subprocess.PIPE, text=True, cwd=readme.ROOT,
    )  # fmt: skip
    try:
        found = (re.search(r"http://\S+:(\d+)", line) for line in server.stderr)
        yield "localhost:" + next(one for one in found if one)[1]
    finally:
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=60)[1]
    assert "Application shutdown complete" in said
    assert "Traceback" not in said


@pytest.mark.skipif(shutil.which("curl") is None, reason="apt: curl")
def test_the_server(tmp_path):
    """The lines of the page, one after the other."""
    pytest.importorskip("uvicorn")
    lines = [line.removeprefix("$ ") for line in readme.blocks("console", PAGE)[0].splitlines()]
    (_, *start), *asks = map(shlex.split, lines)
    with serving(*start) as address:
        said = [
            subprocess.run(
                [word.replace("localhost:8000", address) for word in words],
                cwd=tmp_path, capture_output=True, check=True,
            ).stdout
            for words in asks
        ]  # fmt: skip
    assert json.loads(said[0])["alive"]
    assert pixels(tmp_path / "bag.png").shape == (28, 28)


def test_the_container():
    """Its commands, but that of pip, without it: the server starts, and its check sees that."""
    pytest.importorskip("uvicorn")
    (text,) = readme.blocks("dockerfile", PAGE)
    copied = dict(re.findall(r"^COPY (\S+) /(\S+)$", text, re.M))
    start, check = (json.loads(re.search(rf"^{what}(\[.*\])$", text, re.M)[1])
                    for what in ("CMD ", "HEALTHCHECK CMD "))  # fmt: skip
    assert [*copied.values()] == [start[1].removeprefix("/")]
    (source,) = copied
    assert start[:1] == check[:1] == ["python"]
    with serving(source, *start[2:]) as address:
        words = [sys.executable, *(word.replace("localhost:8000", address) for word in check[1:])]
        subprocess.run(words, check=True)
    assert subprocess.run(words, stderr=subprocess.DEVNULL).returncode != 0
