"""`ddpm-core average`, on files as a run writes them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from command import LABELS, fails, run, tiny
from safetensors.numpy import save_file

from ddpm_core.averages import combine, profile
from ddpm_core.checkpoints import load, save

pytest_plugins = "command_fixtures"

WIDTHS = ("0.05", "0.1")
KEPT = [(step, width) for step in (5, 10, 15, 20) for width in WIDTHS]
NOTES = {"step": 20, "trained": "20 steps of 4", "loss": 0.5, "held_out": 0.05}


@pytest.fixture(scope="module")
def walks() -> dict[str, np.ndarray]:
    """The weights after each of 20 steps."""
    rng = np.random.default_rng(0)
    return {
        name: (p + 0.01 * rng.standard_normal((20, *p.shape)).cumsum(axis=0)).astype(np.float32)
        for name, p in tiny().params.items()
    }


@pytest.fixture
def kept(here, walks) -> Path:
    """A run of 20 steps that kept averages at every fifth."""
    Path("run/averages").mkdir(parents=True)
    save("run/model.safetensors", tiny(notes=NOTES))
    for step in (5, 10, 15, 20):
        save_file(
            {
                f"{width}/{name}": averaged(walk, step, float(width)).astype(np.float32)
                for width in WIDTHS
                for name, walk in walks.items()
            },
            f"run/averages/{step:06}.safetensors",
        )
    Path("run/averages/notes.txt").write_text("not an average")
    return Path("run")


def averaged(walk, step, width):
    return np.tensordot(profile(step, width), walk[:step].astype(np.float64), 1)


def off(found, truth, walks):
    """How far a model is from an average that was not kept, as a share of what it averages out."""
    gaps = [np.linalg.norm(p - truth[name]) for name, p in found.params.items()]
    moved = [np.linalg.norm(walks[name][-1] - p) for name, p in truth.items()]
    return np.linalg.norm(gaps) / np.linalg.norm(moved)


@pytest.mark.parametrize(("step", "width"), [(20, 0.07), (18, 0.1)])
def test_average(kept, walks, capsys, step, width):
    """A model of the wanted weights, of which the notes tell, as near as the fit says."""
    words = [] if step == 20 else ["--step", step]
    run("average", kept, "--width", width, "--out", "a.safetensors", *words)
    fit = combine([(step, float(width)) for step, width in KEPT], (step, width))
    out, err = capsys.readouterr()
    assert out == (
        f"Wrote a.safetensors: width {width:g} at step {step}, of 8 averages kept; the fit's "
        f"error is {fit.error:.2%}.\n"
    )
    assert ("Warning" in err) == (step == 18)  # between two that were kept
    found = load("a.safetensors")
    truth = {name: averaged(walk, step, width) for name, walk in walks.items()}
    assert off(found, truth, walks) < 2 * fit.error
    for name, p in found.params.items():  # the sum in float64, rounded once
        read = [averaged(walks[name], s, float(w)).astype(np.float32) for s, w in KEPT]
        summed = np.tensordot(fit.weights, np.array(read, np.float64), 1)
        np.testing.assert_array_almost_equal_nulp(p, summed.astype(np.float32), 1)
    model = load(kept / "model.safetensors")
    assert (found.config, found.schedule, found.size) == (model.config, model.schedule, model.size)
    assert found.labels == LABELS
    held = NOTES if step == 20 else {"held_out": 0.05}  # the loss was that of step 20
    assert found.notes == held | {"step": step, "width": width}


def test_a_kept_average(kept, walks, capsys):
    run("average", kept, "--width", 0.1, "--step", 15, "--out", "a.safetensors")
    assert "the fit's error is 0.00%" in capsys.readouterr().out
    for name, p in load("a.safetensors").params.items():
        expected = averaged(walks[name], 15, 0.1).astype(np.float32)
        np.testing.assert_array_almost_equal_nulp(p, expected, 1)


def test_a_poor_fit(kept, capsys):
    """A width far from those kept is made, and the line on stderr says that it is off."""
    run("average", kept, "--width", 0.01, "--out", "a.safetensors")
    _, err = capsys.readouterr()
    assert err == (
        "Warning: an error above 10% is large. The run kept widths 0.05 to 0.1 up to step 20: "
        "choose a width and a step nearer to them.\n"
    )
    assert Path("a.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--width", "0.3"], "width must be above 0 .* but is 0.3"),
        (["--step", "21"], "the wanted step 21 is after the last snapshot's, 20"),
        (["--step", "0"], "a step must be at least 1, but is 0"),
        (["--out", "run/model.safetensors"], "model.safetensors is there already"),
        (["--out", "a.pt"], "a.pt must end in .safetensors"),
        (["--out", "no/a.safetensors"], "there is no folder no"),
    ],
)
def test_options_that_are_wrong(kept, capsys, words, said):
    options = {"--width": "0.1", "--out": "a.safetensors"} | dict([words])
    line = fails(capsys, "average", kept, *(word for pair in options.items() for word in pair))
    assert re.search(said, line)
    assert not Path("a.safetensors").exists()


def damage(how):
    """A change to the last file of averages."""
    path = Path("run/averages/000020.safetensors")
    params = tiny().params
    tensors = {f"0.1/{name}": p.copy() for name, p in params.items()}
    first = next(iter(tensors))
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    elif how == "text":
        path.write_text("no tensors")
    elif how == "empty":
        save_file({}, path)
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        if how == "lacking":
            del tensors[first]
        elif how == "infinite":
            tensors[first].flat[-1] = np.inf
        elif how == "half":
            tensors[first] = tensors[first].astype(np.float16)
        elif how == "unnamed":
            tensors["conv_in.weight"] = tensors.pop("0.1/conv_in.weight")
        elif how == "too wide":
            tensors = {name.replace("0.1/", "0.4/"): p for name, p in tensors.items()}
        save_file(tensors, path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "is not a safetensors file, or is truncated"),
        ("text", "is not a safetensors file, or is truncated"),
        ("empty", "holds no averages"),
        ("a folder", "not a regular file"),
        ("lacking", "of width 0.1, does not hold the network it describes; 1 missing"),
        ("infinite", "weights that are not finite numbers, in 0.1/"),
        ("half", "is of dtype F16, not F32"),
        ("unnamed", "has tensors under 'conv_in.weight', which is not a width"),
        ("too wide", "has tensors under '0.4', which is not a width"),
    ],
)
def test_files_that_are_damaged(kept, capsys, how, said):
    damage(how)
    line = fails(capsys, "average", kept, "--width", 0.07, "--out", "a.safetensors")
    assert "run/averages/000020.safetensors" in line
    assert said in line
    assert not Path("a.safetensors").exists()


def test_without_averages(here, capsys):
    """No run, and a run that kept none."""
    words = ["average", "run", "--width", "0.1", "--out", "a.safetensors"]
    assert "no model 'run/model.safetensors'" in fails(capsys, *words)
    Path("run").mkdir()
    save("run/model.safetensors", tiny())
    said = "run/averages has no file of averages, such as 001000.safetensors"
    assert said in fails(capsys, *words)
    Path("run/averages").mkdir()
    assert said in fails(capsys, *words)
