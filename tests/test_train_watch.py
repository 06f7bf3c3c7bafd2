"""What a run tells while it trains, its presets, and its several averages."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import numpy as np
import pytest
from command import fails, run

import ddpm_core as ddpm
from ddpm_core.checkpoints import load
from ddpm_core.cli import log, networks
from ddpm_core.cli.datasets import held_out, read

pytest_plugins = ("command_fixtures", "training_fixtures")
pytestmark = [pytest.mark.needs("torch"), pytest.mark.usefixtures("one_thread_of_processes")]


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_held_out(here, started, monkeypatch):
    """Images that are held out are never trained on; each picture adds a row of their loss."""
    from ddpm_core_torch.training import Trainer

    data = Path(started[started.index("--data") + 1])
    images = read(data).images
    out = held_out(images, 0.4)
    assert 2 <= out.sum() <= len(out) - 4
    init, seen = Trainer.__init__, []
    monkeypatch.setattr(
        Trainer, "__init__",
        lambda self, some, *rest, **named: seen.append(some[:]) or init(self, some, *rest, **named),
    )  # fmt: skip
    run(*started, "--held-out", 0.4, "--steps", 4, "--sample-every", 2)
    np.testing.assert_array_equal(seen[0], images[~out])
    found = rows("run/held-out.csv")
    assert [row["step"] for row in found] == ["2", "4"]
    for row in found:
        assert 0 < float(row["loss"]) < 10
        assert 0 < float(row["bits_per_dim"]) < 20
    notes = load("run").notes
    assert (notes["held_out"], notes["background"]) == (0.4, "white")


def test_quarters(here, started, monkeypatch):
    """The log's four losses are those of a quarter of the training levels each, noisiest first."""
    from ddpm_core_torch.training import Trainer

    step, steps = Trainer.step, []
    monkeypatch.setattr(Trainer, "step", lambda self: steps.append(step(self)) or steps[-1])
    run(*started, "--steps", 10, "--save-every", 10, "--sample-every", 10)
    (row,) = log.read(Path("run/log.csv"))
    logsnr = np.concatenate([s.logsnr for s in steps])
    losses = np.concatenate([s.losses for s in steps])
    schedule = ddpm.cosine(4)
    wanted = [losses[logsnr == schedule(4 - k).logsnr].mean() for k in range(4)]
    found = [row.loss_1, row.loss_2, row.loss_3, row.loss_4]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    norms = [s.gradient_norm for s in steps]
    assert row.gradient_norm == pytest.approx(np.mean(norms), rel=1e-5)


def test_presets(here, photos, capsys):
    """A preset says options that are not given; a file of options says its own."""
    options = ["train", "--data", photos, "--size", 8, "--steps", 1, "--held-out", 0]
    run(*options, "--out", "a", "--preset", "tiny", "--widths", "8,16")
    found = tomllib.loads(Path("a/run.toml").read_text())
    assert (found["widths"], found["blocks"]) == ([8, 16], 1)
    both = ["--config", "a/run.toml", "--preset", "tiny", "--out", "b"]
    assert "pass one of them" in fails(capsys, *options, *both)


def test_presets_that_do_not_fit(here, photos, capsys):
    """A depth that the size does not allow is refused, one that does little is told, with better
    ones.
    """
    options = ["train", "--data", photos, "--steps", 1, "--held-out", 0, "--out", "a"]
    assert (
        "3 --widths need multiples of 4: pass fewer --widths, or for a folder of pictures a "
        "--size, such as 12"
    ) in fails(capsys, *options, "--size", 9, "--preset", "tiny")
    said = fails(capsys, *options, "--size", 28, "--preset", "256")
    assert "pass fewer --widths, such as --preset tiny or small, or for" in said
    assert networks.advice([32, 32], 4) == networks.advice([28, 28], 3) == ()
    assert networks.advice([256, 256], 6) == networks.advice([2, 2], 1) == ()
    (small,), (large,) = networks.advice([32, 32], 6), networks.advice([256, 128], 3)
    assert "6 --widths has 1 x 1 pixels" in small
    assert small.endswith("fewer --widths would fit, such as --preset tiny or small or cifar10")
    assert "has 64 x 32 pixels" in large
    assert "more --widths would fit" in large
    run(*options, "--size", 8, "--widths", "8,8,8")
    assert "the coarsest of 3 --widths has 2 x 2 pixels" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracker(here, started):
    """A tracker has the rows of the log, in files within the run's folder."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(*started, "--steps", 20, "--save-every", 20, "--track", "tensorboard")
    told = events.EventAccumulator("run").Reload()
    losses = [event.value for event in told.Scalars("loss")]
    np.testing.assert_allclose(
        losses, [row.loss for row in log.read(Path("run/log.csv"))], rtol=1e-5
    )
    assert [path.name for path in here.iterdir()] == ["run"]


@pytest.mark.slow
def test_averages(here, started, capsys):
    """Each decay has a model, the first one the name; widths make a model of another afterwards."""
    options = ["--ema", "0.9,0.5", "--power-averages", "0.05,0.15", "--sample-every", 2]
    run(*started, *options, "--steps", 6)
    first, second = load("run"), load("run/model-ema.0.5.safetensors")
    assert first.notes["step"] == second.notes["step"] == 6
    run(*started, "--ema", 0.5, "--out", "alone", "--steps", 6)
    for name, value in load("alone").params.items():
        np.testing.assert_array_equal(second.params[name], value)
    run("average", "run", "--width", 0.1, "--out", "made.safetensors")
    assert load("made.safetensors").notes["width"] == 0.1
    Path("run/model-ema.0.5.safetensors").unlink()
    run("train", "--resume", "run")
    np.testing.assert_array_equal(
        *(m.params["conv_in.weight"] for m in (load("run/model-ema.0.5.safetensors"), second))
    )
