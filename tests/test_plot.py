"""`ddpm-core plot`: what is drawn of a run's log."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from command import fails, pixels, run
from training_runs import HEAD

from ddpm_core.cli.plot import smoothed

pytest_plugins = "command_fixtures"


@pytest.fixture
def lines(here, monkeypatch) -> list:
    """What is drawn of a run of 600 steps in ./run, that was stopped at step 203."""
    rng, drawn = np.random.default_rng(0), []
    steps = sorted([*range(10, 601, 10), 203])
    rows = [
        f"{n},{0.03 + 1 / n + rng.normal() / 300:.6g},1,1,1,nan,1,0.0002,100.0,{n / 10}\n"
        for n in steps
    ]
    Path("run").mkdir()
    Path("run/log.csv").write_text(HEAD + "".join(rows) + "610,0.0")
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda *a, **k: drawn.append(a[1:3]))
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda *a, **k: None)
    return drawn


def test_without_matplotlib(lines, capsys, monkeypatch):
    """Each plot names the line that installs what it lacks, before any work is done."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    wanted = "ddpm-core: plots need matplotlib: pip install 'ddpm-core[plot]'\n"
    assert fails(capsys, "plot", "run") == wanted
    assert fails(capsys, "evaluate", "--data", "none", "--plot", "plot.png") == wanted


def test_plot(lines, capsys):
    """Each whole row is drawn, and beside them the mean of the rows about each."""
    run("plot", "run")
    assert capsys.readouterr().out == "Wrote run/loss.png: 61 rows to step 600.\n"
    assert pixels("run/loss.png").shape == (600, 1050, 4)
    text = Path("run/log.csv").read_text().splitlines()[1:-1]
    steps, losses = np.array([[float(word) for word in line.split(",")[:2]] for line in text]).T
    (drawn, raw), (also, mean) = lines
    np.testing.assert_array_equal((drawn, raw), (steps, losses))
    np.testing.assert_array_equal(also, steps)
    np.testing.assert_array_equal(mean, smoothed(raw, np.diff(steps, prepend=0), 1))
    run("plot", "run", "--out", "a.png")
    assert Path("a.png").is_file()


@pytest.mark.parametrize("half", [0, 1, 2])
def test_smoothed(half):
    """A weighted mean of the values about each, of as few as a quarter of those before it."""
    rng = np.random.default_rng(0)
    values, weights = rng.random(12), rng.random(12)
    for i, found in enumerate(smoothed(values, weights, half)):
        n = min(half, i // 4)
        about = slice(i - n, i + n + 1)
        expected = np.average(values[about], weights=weights[about])
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_nothing_to_plot(here, capsys):
    """A folder without a log, an empty log, and a place that is no PNG are each one line."""
    Path("run").mkdir()
    assert "run/log.csv: No such file or directory" in fails(capsys, "plot", "run")
    Path("run/log.csv").write_text(HEAD + "10,0.5,1,1,1,1,1,0.1,1.0,")
    said = fails(capsys, "plot", "run")
    assert "run/log.csv has no rows: let the run take 10 steps" in said
    Path("run/log.csv").write_text(HEAD + "10,0.5,1,1,1,1,1,0.1,1.0,1.0\n")
    assert "a.jpg must end in .png" in fails(capsys, "plot", "run", "--out", "a.jpg")
    assert [path.name for path in Path("run").iterdir()] == ["log.csv"]
