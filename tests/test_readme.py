"""The README and the backends' pages: every block of code runs, every command works, every link
leads somewhere.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import readme

ROOT, TEXT = readme.ROOT, readme.README.read_text("utf-8")
PAGES = [readme.README, *sorted((ROOT / "docs").glob("*.md"))]
#: What runs here; CuPy's block runs in tests/test_cupy.py.
BLOCKS = [block for page in PAGES if page.stem != "cupy" for block in readme.blocks("python", page)]
#: Of a run whose lines are tried, and not how well it draws.
SMALL = ["--batch", "4", "--widths", "8,16", "--groups", "4", "--blocks", "1"]
#: What a fresh environment gets by these is this environment.
INSTALLS = ("pip install", "pytest")
_LAUNCHER = re.compile(r"(torchrun --nproc-per-node \d+ -m )?(ddpm.core .*)")
_TWO = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
PARTS = [part for line in readme.commands() for part in line.split(" && ")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers, under NumPy 2
@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.splitlines()[0][:40])
def test_python_blocks(block, tmp_path, monkeypatch):
    """Each block runs by itself, and its warnings are errors."""
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small arrays: more threads would only wait for each other
    try:
        exec(compile(block, "block", "exec"), {"__name__": "readme_block"})
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in PARTS if not c.startswith(INSTALLS)])
def test_console_lines(command, tmp_path):
    """Each command does what it says, in few steps here."""
    launcher, command = _LAUNCHER.fullmatch(command).groups()
    words = shlex.split(command)
    if words[1] in ("sample", "edit", "train"):
        words += ["--steps", "2"]
    if words[1] == "edit":
        _boot(tmp_path)
    if words[1] == "train":
        _photos(tmp_path / "photos")
        words += [] if "--resume" in words else [*SMALL, "--held-out", "0.4"]
    if "runs/photos" in words and "--out" not in words:
        test_console_lines(next(c for c in PARTS if "train --data" in c), tmp_path)
    if "--features" in words:
        _features(tmp_path / words[-1])
    if "--data" in words and words[1] == "evaluate":
        if "--model" not in words:
            _data(tmp_path / "photos")
            words[words.index("--data") + 1] = "photos"
        words += [] if "--no-bound" in words else ["--images", "2", "--terms", "2", "--steps", "3"]
    if "--samples" in words:
        words[words.index("--samples") + 1] = "8"
        words += ["--sampler-steps", "2"]
    start = [str(Path(sys.executable).with_name("ddpm-core"))]
    if launcher:  # and not of as many processes as the reader's machine has room for
        start = [sys.executable, "-m", "torch.distributed.run", *_TWO, "-m", "ddpm_core"]
    words[:1] = start
    ran = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    wanted = {"sample": {"samples.png"}, "train": {"runs/photos/model.safetensors"},
              "plot": {"runs/photos/loss.png"}}  # fmt: skip
    assert wanted.get(words[len(start)], set()) <= written
    for option in ("--gif", "--out", "--plot"):
        if option in words:
            assert (tmp_path / words[words.index(option) + 1]).exists()


def _boot(folder: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "boot.png")
    Image.fromarray(pixels[:14, :14]).save(folder / "small.png")
    Image.fromarray(np.where(pixels > 127, pixels, 0)).save(folder / "mask.png")


def _photos(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")


def _features(path: Path) -> None:
    real, drawn, other = np.random.default_rng(0).standard_normal((3, 20, 4))
    np.savez(path, real=real, drawn=drawn, other=other)


def _data(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / f"{i}.png")


def test_commands():
    """One command installs and samples without torch, one installs and runs these tests."""
    main, tests = readme.commands()[:2]
    assert re.fullmatch(r"pip install '\.\[cli\]' && ddpm-core sample", main)
    assert tests == readme.test_command()
    assert tests.startswith("pip install")
    assert "-c constraints.txt" in tests
    said = subprocess.run(
        [sys.executable, ROOT / "tests" / "readme.py", "test-command"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == tests + "\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links(page):
    """Each relative link is a file of the project."""
    links = re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8"))
    links = [link.split("#")[0] for link in links if not link.startswith("http")]
    assert links or page != readme.README
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_extras_exist():
    """Each extra that the README tells to install is one that the package has."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    named = set(re.findall(r"(?:\.|ddpm-core|`)\[(\w+)\]", TEXT))
    assert {"cli", "torch", "test"} <= named <= extras
