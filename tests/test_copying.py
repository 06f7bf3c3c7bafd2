"""Whether samples are copies of training images: the test, the distances, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import fails, pixels, run, tiny
from hypothesis import given
from hypothesis import strategies as st

from ddpm_core.checkpoints import save
from ddpm_core.cli import copying, judging
from ddpm_core.distances import data_copying, nearest

pytest_plugins = "command_fixtures"


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 20), m=st.integers(1, 20))
def test_data_copying_is_a_mann_whitney_test(seed, n, m):
    """SciPy's U of the same sets, also with ties; of none, its p is the normal one of z."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    for a, b in (
        (rng.standard_normal(n), rng.standard_normal(m)),
        (rng.integers(0, 4, n), rng.integers(0, 4, m)),
    ):
        z = data_copying(a, b)
        found = stats.mannwhitneyu(a, b, alternative="less", use_continuity=False)
        deviation = np.sqrt(n * m * (n + m + 1) / 12)
        assert z * deviation + n * m / 2 == pytest.approx(found.statistic, abs=1e-9)
        assert data_copying(b, a) == pytest.approx(-z)
    a, b = rng.standard_normal(n), rng.standard_normal(m)
    found = stats.mannwhitneyu(a, b, alternative="less", use_continuity=False, method="asymptotic")
    assert stats.norm.cdf(data_copying(a, b)) == pytest.approx(found.pvalue, rel=1e-9)


@pytest.mark.parametrize("bad", [[], [[1.0]], [np.nan], 1.0])
def test_data_copying_takes_distances(bad):
    with pytest.raises(ValueError, match=r"drawn must be finite distances \(N,\)"):
        data_copying(bad, [1.0])
    with pytest.raises(ValueError, match=r"held_out must be finite distances \(N,\)"):
        data_copying([1.0], bad)


def test_copies_are_found():
    """Training points with a little noise are nearer to them than new ones; new ones are not."""
    rng = np.random.default_rng(0)
    trained, unseen, fresh = (rng.standard_normal((n, 5)) for n in (2000, 1000, 1000))
    copies = trained[:1000] + 0.01 * rng.standard_normal((1000, 5))
    floor = nearest(unseen, trained).distance
    for drawn, copied in ((copies, True), (fresh, False)):
        found = copying.compared(nearest(drawn, trained).distance, floor)
        assert (found["data_copying"] < -20) == copied
        assert (abs(found["data_copying"]) < 4) != copied
        # The limit itself is off by as much as the share of 1000 samples is.
        off = abs(found["nearer"]["value"] - (1.0 if copied else 0.01))
        assert off <= (0.02 if copied else 4 * np.sqrt(2 * 0.01 * 0.99 / 1000))


@pytest.mark.parametrize("pixels_at_once", [1, 50, 1 << 22])
def test_nearest_images(monkeypatch, pixels_at_once):
    """The nearest of those that were trained on, whatever the block: by a search without blocks."""
    monkeypatch.setattr(copying, "_AT_ONCE", pixels_at_once)
    rng = np.random.default_rng(0)
    images, samples = (rng.integers(0, 256, (n, 3, 2, 4), dtype=np.uint8) for n in (30, 7))
    trained = np.flatnonzero(np.arange(30) % 3)
    samples[2], samples[3] = images[3], images[4]  # 3 was not trained on
    off = samples[:, None].astype(float) - images[trained]
    rms = np.sqrt((off**2).mean(axis=(2, 3, 4)))
    found = copying.nearest_images(samples, images, trained)
    np.testing.assert_array_equal(found.index, trained[rms.argmin(axis=1)])
    np.testing.assert_allclose(found.distance, rms.min(axis=1), rtol=1e-12)
    assert found.distance[2] > found.distance[3] == 0


@pytest.fixture
def place(here) -> Path:
    rng = np.random.default_rng(0)
    for name, count in (("data", 24), ("train", 40)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        np.savez(f"{name}.npz", images=images)
    save("a.safetensors", tiny(size=(28, 28)))
    return here


WORDS = "evaluate --model a.safetensors --data data.npz --no-bound --samples 6 --sampler-steps 2"


def test_evaluate_finds_copies(place, monkeypatch, capsys):
    """Samples that are training images are told and drawn as such."""
    train = np.load("train.npz")["images"]
    copies = train[8:2:-1, None] / 127.5 - 1
    monkeypatch.setattr(judging, "batches", lambda *a, **k: [(np.arange(6), [copies])])
    words = [*WORDS.split(), "--train-data", "train.npz", "--json", "n.json"]
    run(*words, "--nearest-plot", "n.png")
    found = json.loads(Path("n.json").read_text())["samples"]["nearest"]
    assert found["drawn"]["smallest"] == [0] * 5
    assert found["trained"] == 40
    assert (found["drawn"]["count"], found["unseen"]["count"]) == (6, 12)
    assert found["nearer"] == {"value": 1.0, "error": 0.0}
    data = np.load("data.npz")["images"]
    order = np.random.default_rng(0).permutation(24)[:12]
    rms = np.sqrt(((data[order][:, None].astype(float) - train) ** 2).mean(axis=(2, 3)))
    assert found["unseen"]["median"] == pytest.approx(np.median(rms.min(axis=1)))
    shown = capsys.readouterr().out
    assert "100.00% of the samples (standard error 0.00%) are nearer than 1%" in shown
    assert f"z = {found['data_copying']:.2f}" in shown
    sheet = pixels("n.png")
    pitch, margin = 3 * 30, sheet.shape[1] - 3 * (6 * 30 + 2)
    for i in range(6):
        left = margin + 6 + i * pitch
        for top in (6, 6 + pitch):  # the sample, and the image below it
            cell = sheet[top : top + 84 : 3, left : left + 84 : 3]
            np.testing.assert_array_equal(cell, train[8 - i])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--nearest-plot n.png", "--nearest-plot needs the training images: pass --train-data"),
        ("--train-data none.npz", "no data at none.npz"),
        ("--nearest-plot n.gif", "n.gif must end in .png"),
        (
            "--samples 0 --bound --train-data train.npz",
            "--train-data, --sampler-steps do nothing without --samples",
        ),
    ],
)
def test_bad_input(place, capsys, words, complaint):
    assert complaint in fails(capsys, *WORDS.split(), *words.split())


def test_unknown_training_images(place):
    """Where nothing says what was trained on, nothing is said of copies."""
    run(*WORDS.split(), "--json", "n.json")
    assert "nearest" not in json.loads(Path("n.json").read_text())["samples"]


def test_images_that_no_classifier_takes(place, capsys):
    """Nothing is measured but how near samples are, to as many as there are unseen images."""
    save("small.safetensors", tiny(size=(4, 6)))
    rng = np.random.default_rng(0)
    for name, count in (("few", 3), ("many", 30)):
        np.savez(f"{name}.npz", images=rng.integers(0, 256, (count, 4, 6), dtype=np.uint8))
    words = "evaluate --model small.safetensors --data few.npz --no-bound --samples 5"
    words = [*words.split(), "--sampler-steps", 2]
    assert "pass --train-data, to see how near samples are to it, or" in fails(capsys, *words)
    run(*words, "--train-data", "many.npz", "--json", "n.json")
    found = json.loads(Path("n.json").read_text())["samples"]
    assert "drawn" not in found
    near = found["nearest"]
    assert (near["drawn"]["count"], near["unseen"]["count"], near["trained"]) == (5, 3, 30)
    shown = capsys.readouterr().out
    assert "Distances from the nearest of 30 training images" in shown
    assert "Fréchet" not in shown
