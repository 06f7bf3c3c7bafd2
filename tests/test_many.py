"""docs/many.md: each way to draw many images gives the same ones, and the check misses none.

Its lines of dask are run in tests/test_cluster.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import readme
from command import COMMAND, run, several

pytest_plugins = "command_fixtures"
pytestmark = pytest.mark.usefixtures("one_thread_of_processes")

PAGE = readme.ROOT / "docs" / "many.md"
#: A million, in a second.
SMALL = {
    "1000000": "32", "10000": "16", "5000": "8", "4096": "16", " --backend torch --device cuda": "",
    " --batch 256": " --batch 8 --steps 2", " --batch 250": " --batch 8 --steps 2",
    "model.schedule, 20": "model.schedule, 2",
}  # fmt: skip


def small(text: str) -> str:
    for large, value in SMALL.items():
        text = text.replace(large, value)
    return text


RAY = SimpleNamespace(
    remote=lambda **_: lambda f: SimpleNamespace(remote=lambda *ids: _Later(f, ids)),
    wait=lambda all_: (all_[-1:], all_[:-1]),
    get=lambda later: later.f(*later.ids),
)  #: in place of Ray, which is not among what the tests need


class _Later:
    def __init__(self, f, ids) -> None:
        self.f, self.ids = f, ids


def python(which: int) -> None:
    exec(compile(small(readme.blocks("py", PAGE)[which]), "block", "exec"), {"__name__": "block"})


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("million").glob("*.npz")}


@pytest.mark.slow
def test_every_way_gives_the_same_images(tmp_path, monkeypatch, capsys):
    """One process, two, a job array, Ray: one digest, and of shards of one size the same files."""
    console = small("\n".join(readme.blocks("console", PAGE))).splitlines()
    first, again, launched = (line.split() for line in console if "--batch" in line)
    assert launched[1] == "torchrun"
    (array,) = readme.blocks("sh", PAGE)
    monkeypatch.setenv("PATH", str(COMMAND.parent), prepend=":")
    monkeypatch.setitem(sys.modules, "ray", RAY)
    said, written = set(), {}
    for way in ("one", "several", "array", "ray"):
        (tmp_path / way).mkdir()
        monkeypatch.chdir(tmp_path / way)
        if way == "one":
            run(*first[2:])
            run(*again[2:])
            assert "Wrote 0 shards in million, where 1 were already" in capsys.readouterr().out
        elif way == "several":
            both = several(2, *launched[launched.index("sample") :])
            assert [each.returncode for each in both] == [0, 0], both
        elif way == "array":
            for task in (1, 0):
                monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
                subprocess.run(["bash", "-c", small(array)], check=True)
        else:
            python(0)
        capsys.readouterr()
        python(1)
        said.add(capsys.readouterr().out)
        written[way] = files()
    assert len(said) == 1
    assert said.pop().startswith("32 images, ")
    assert [len(each) for each in written.values()] == [1, 2, 4, 2]
    assert written["ray"] == written["several"]
    Path("million/00000000-00000015.npz").unlink()
    with pytest.raises(AssertionError, match=r"before million/00000016-00000031\.npz"):
        python(1)
