"""`evaluate --work-dir`: what a kill, or another process, leaves to the next command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import fails, run, several, tiny

from ddpm_core.checkpoints import save
from ddpm_core.cli import judging, kept, rate
from ddpm_core.cli.datasets import read

pytest_plugins = "command_fixtures"
pytestmark = pytest.mark.usefixtures("one_thread_of_processes")

WORDS = "evaluate --model a.safetensors --data data.npz --no-bound --sampler-steps 2 --batch 2"
ALL = [*WORDS.split(), "--samples", "10"]


@pytest.fixture
def place(here) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (24, 28, 28), dtype=np.uint8)
    np.savez("data.npz", images=images, classes=np.arange(24) % 3)
    save("a.safetensors", tiny(size=(28, 28)))
    return here


def numbers(*words: str) -> dict:
    run(*words, "--json", "out.json")
    return json.loads(Path("out.json").read_text())


def files(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def drawn_ids(monkeypatch) -> list[int]:
    """The ids that are drawn from now on."""
    ids, batches = [], judging.batches

    def recorded(*arguments, **options):
        for part, states in batches(*arguments, **options):
            ids.extend(part.tolist())
            yield part, states

    monkeypatch.setattr(judging, "batches", recorded)
    return ids


def test_what_is_there_is_not_drawn_again(place, monkeypatch):
    """With a folder the numbers are those without; a second command draws only what it lacks."""
    wanted = numbers(*ALL)
    ids = drawn_ids(monkeypatch)
    assert numbers(*ALL, "--work-dir", "d") == wanted
    assert ids == list(range(10))
    assert files("d") == [f"samples-{i:08}.npz" for i in range(0, 10, 2)]
    part = "d/samples-00000004.npz"
    assert np.array_equal(read(part).classes, np.load(part)["classes"])
    for lost, batch, again in (([4, 8], 2, [4, 5, 8, 9]), ([2, 4], 3, [2, 3, 4, 5]), ([], 1, [])):
        for i in lost:
            Path(f"d/samples-{i:08}.npz").unlink()
        ids.clear()
        assert numbers(*ALL, "--batch", str(batch), "--work-dir", "d") == wanted
        assert sorted(ids) == again


_LITTLE = "--terms 3 --images 5 --variance small"
BOUND = WORDS.replace("--no-bound --sampler-steps 2", _LITTLE).split()


def test_terms_that_are_there_are_not_computed_again(place, monkeypatch, capsys):
    """The bound of a folder is the one without; a second command computes the lost batch alone."""
    wanted = numbers(*BOUND)
    assert numbers(*BOUND, "--work-dir", "d") == wanted
    assert files("d") == [f"bounds-{i:08}.npz" for i in (0, 2, 4)]
    sizes, elbo = [], rate.elbo
    monkeypatch.setattr(
        rate, "elbo", lambda k, t, x, *a, **o: sizes.append(len(x)) or elbo(k, t, x, *a, **o)
    )
    Path("d/bounds-00000002.npz").unlink()
    assert numbers(*BOUND, "--work-dir", "d") == wanted
    assert sizes == [2]
    for words, said in (
        (["--terms", "2"], "d holds bounds of terms 3, not 2"),
        (["--variance", "large"], "d holds bounds of variance small, not large"),
        (["--images", "4"], "d holds bounds of images "),
    ):
        assert said in fails(capsys, *BOUND, "--work-dir", "d", *words)
    Path("d/bounds-00000002.npz").write_bytes(Path("data.npz").read_bytes())
    unreadable = "d/bounds-00000002.npz cannot be read as bounds: remove it"
    assert unreadable in fails(capsys, *BOUND, "--work-dir", "d")


def test_a_bound_depends_on_classes_and_on_what_measured_its_variance(place):
    """A folder is refused where its bound would have other numbers."""
    data = np.load("data.npz")
    np.savez("fewer.npz", images=data["images"][:20])
    np.savez("other.npz", images=data["images"], classes=(data["classes"] + 1) % 3)
    for options, other, said in (
        (["--variance", "optimal"], "fewer.npz", "o holds errors of images "),
        (["--labelled"], "other.npz", "l holds bounds of images "),
    ):
        words = [*BOUND, *options, "--batch", "8"]
        changed = [other if word == "data.npz" else word for word in words]
        folder = ["--work-dir", said[0]]
        assert numbers(*words)["bits_per_dim"] != numbers(*changed)["bits_per_dim"]
        assert numbers(*words, *folder) == numbers(*words)
        with pytest.raises(ValueError, match=said):
            run(*changed, *folder)
    for path in Path("o").glob("errors-*"):
        path.unlink()
    changed = ["--variance", "optimal", "--data", "fewer.npz", "--batch", "8"]
    with pytest.raises(ValueError, match="o holds bounds of others "):
        run(*BOUND, *changed, "--work-dir", "o")


def test_the_optimal_variance_is_not_measured_again(place, monkeypatch):
    """Of a folder it is the one without; a second command measures the lost batch alone."""
    words = [*BOUND, "--variance", "optimal", "--batch", "8"]
    wanted = numbers(*words)
    sizes, measured = [], rate.errors_at

    def counted(denoise, levels, x_0, *arguments, **options):
        sizes.append(len(x_0))
        return measured(denoise, levels, x_0, *arguments, **options)

    monkeypatch.setattr(rate, "errors_at", counted)
    words += ["--work-dir", "d"]
    with monkeypatch.context() as environment:
        environment.setenv("RANK", "1")
        environment.setenv("WORLD_SIZE", "2")
        environment.setattr(kept, "PATIENCE", 0.0)
        with pytest.raises(ValueError, match="d lacks 11 of 19 errors"):
            numbers(*words)
    assert sizes == [8]
    assert numbers(*words) == wanted
    assert files("d")[1:] == [f"errors-{i:08}.npz" for i in (0, 8, 16)]
    Path("d/errors-00000016.npz").unlink()
    sizes.clear()
    assert numbers(*words) == wanted
    assert sizes == [3]


def test_folders_that_cannot_be(place, monkeypatch, capsys):
    """They are refused before the work."""
    monkeypatch.setattr(rate.Run, "bound", None)
    assert "there is no folder no to write d in" in fails(capsys, *BOUND, "--work-dir", "no/d")
    said = "data.npz is a file, not a folder for --work-dir"
    assert said in fails(capsys, *BOUND, "--work-dir", "data.npz")
    Path("d").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.R_OK)  # root may write all
    said = "d does not let us write in it: choose another --work-dir"
    assert said in fails(capsys, *BOUND, "--work-dir", "d")


def test_other_samples_are_refused(place, capsys):
    """A folder takes samples of one model, drawn in one way; the error names old and new."""
    other = tiny(size=(28, 28))
    other.params["conv_in.bias"][:] += 1
    save("b.safetensors", other)
    few = [*WORDS.split(), "--samples", "4", "--work-dir", "d"]
    run(*few)
    for words, said in (
        (["--seed", "1"], "d holds samples of seed 0, not 1"),
        (["--sampler", "ddim"], "d holds samples of sampler dpmpp_2m, not ddim"),
        (["--sampler-steps", "3"], "d holds samples of sampler_steps 2, not 3"),
        (["--guidance", "2"], "d holds samples of guidance None, not 2.0"),
        (["--model", "b.safetensors"], "d holds samples of model "),
        (["--samples", "5"], "d holds samples of other classes, which --samples, --seed and the"),
    ):
        assert said in fails(capsys, *few, *words)
    assert files("d") == ["samples-00000000.npz", "samples-00000002.npz"]
    good = Path("d/samples-00000002.npz").read_bytes()
    for junk in (b"", b"junk", good[:-50], Path("data.npz").read_bytes()):
        Path("d/samples-00000002.npz").write_bytes(junk)
        assert "d/samples-00000002.npz cannot be read as samples: remove it" in fails(capsys, *few)
    Path("d/samples-00000002.npz").unlink()
    Path("d/notes.npz").write_bytes(b"mine")
    run(*few)


def test_more_samples_use_those_of_fewer(place):
    """Where the classes are dealt in turn, not by the data, samples of a smaller count stay."""
    np.savez("data.npz", images=np.load("data.npz")["images"])
    fewer = [*WORDS.split(), "--samples", "5"]
    wanted = [numbers(*fewer), numbers(*ALL)]
    assert [numbers(*w, "--work-dir", "d") for w in (fewer, ALL)] == wanted
    assert numbers(*fewer, "--work-dir", "d") == wanted[0]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(place):
    """Each computes its share, one prints and writes the numbers, the same to the bit."""
    both = [*BOUND, "--variance", "optimal", "--samples", "10", "--sampler-steps", "2"]
    wanted = numbers(*both)
    Path("out.json").unlink()
    first, second = several(2, *both, "--work-dir", "d", "--json", "out.json")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "Distances of 10 samples" in first.stdout
    assert (second.stdout, second.stderr) == ("", "")
    assert json.loads(Path("out.json").read_text()) == wanted
    assert len(files("d")) == 3 + 10 + 5


def test_dead_process(place, monkeypatch, capsys):
    """The first process says so when the others do not come; one more command draws the rest."""
    wanted = numbers(*ALL)
    monkeypatch.setattr(kept, "PATIENCE", 0.0)
    with monkeypatch.context() as environment:
        environment.setenv("RANK", "0")
        environment.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="d lacks 4 of 10 samples, and none came in 0 seconds"):
            numbers(*ALL, "--work-dir", "d")
        assert "Waiting for the samples of the other processes" in capsys.readouterr().err
        with pytest.raises(ValueError, match="2 processes share their work through a folder"):
            numbers(*ALL)
    ids = drawn_ids(monkeypatch)
    assert numbers(*ALL, "--work-dir", "d") == wanted
    assert ids == [2, 3, 6, 7]


KILLED = """
import os, signal, sys
from ddpm_core.cli import main
left, sync = [int(sys.argv.pop(1))], os.fsync
def fsync(file):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(file)
os.fsync = fsync
main()
"""  #: the command, killed in the middle of its n-th write to the disk


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("writes", [5, 6])
def test_kill_loses_one_batch(place, monkeypatch, writes):
    """SIGKILL before or after a file gets its name: what has one is whole, the rest is drawn."""
    wanted = numbers(*ALL)
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(writes), *ALL, "--work-dir", "d"], env=os.environ
    )
    assert ran.returncode == -signal.SIGKILL
    whole = [name for name in files("d") if name[0] != "."]
    assert whole == [f"samples-{i:08}.npz" for i in range(0, 4 if writes == 5 else 6, 2)]
    ids = drawn_ids(monkeypatch)
    assert numbers(*ALL, "--work-dir", "d") == wanted
    assert ids == list(range(2 * len(whole), 10))
