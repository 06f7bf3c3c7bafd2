"""`ddpm-core evaluate`: that its numbers are the library's, and that bad input is one line."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from command import tiny
from PIL import Image

import ddpm_core as ddpm
from ddpm_core.checkpoints import save
from ddpm_core.cli import app, evaluate, main
from ddpm_core.cli.datasets import to_range
from ddpm_core.cli.rate import report
from ddpm_core.likelihood import Elbo
from ddpm_core.nn import UNetConfig

COMMAND = Path(sys.executable).with_name("ddpm-core")
WIDE = UNetConfig(
    channels=1, out_channels=2, widths=(8, 8), blocks=1, groups=4, attention=(), classes=3
)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A run with a fixed variance, a model that learned one, and twelve images with classes."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "run").mkdir()
    save(folder / "run" / "model.safetensors", tiny())
    save(folder / "learned.safetensors", tiny(config=WIDE))
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 6), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, classes=np.arange(12) % 3)
    np.savez(folder / "other.npz", images=images[:, :2])
    return folder


def run(place: Path, model: str, *words: str) -> SimpleNamespace:
    """The command in a folder, on a terminal of 40 columns: its status, and what it printed."""
    argv, out, err = ["ddpm-core", "evaluate", "--model", model, *words], StringIO(), StringIO()
    with (
        chdir(place), redirect_stdout(out), redirect_stderr(err),
        mock.patch.dict(os.environ, COLUMNS="40"), mock.patch.object(sys, "argv", argv),
        pytest.raises(SystemExit) as stop,
    ):  # fmt: skip
        main()
    return SimpleNamespace(returncode=stop.value.code, stdout=out.getvalue(), stderr=err.getvalue())


def numbers(place: Path, *words: str) -> dict:
    path = place / "out.json"
    path.unlink(missing_ok=True)
    ran = run(place, *words, "--data", "data.npz", "--json", str(path))
    assert ran.returncode == 0, ran.stderr
    found = json.loads(path.read_text())
    assert f"{found['bits_per_dim']['mean']:.5f}" in ran.stdout
    return found


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("labelled", [False, True])
def test_numbers_are_those_of_elbo(place, variance, labelled):
    """The bound of the command is `elbo` of the clipped network, whatever the batch."""
    words = ["run", "--variance", variance, "--terms", "0", "--steps", "6", "--images", "8"]
    words += ["--labelled"] if labelled else []
    found = numbers(place, *words, "--batch", "3")
    on, checkpoint = ddpm.backend("numpy"), tiny()
    data = np.load(place / "data.npz")
    x_0 = to_range(data["images"][:8, None])
    y = data["classes"][:8] if labelled else np.full(8, -1)
    kernel = ddpm.reverse(ddpm.clip(checkpoint.predictor(on.network)), getattr(ddpm, variance))
    levels = ddpm.levels_of(checkpoint.schedule, 6)
    second, first = (checkpoint.schedule(float(levels.time[i])) for i in (-3, -2))
    decoder = ddpm.small(second, first)  # of these six levels, not of the schedule's hundred
    wanted = ddpm.elbo(kernel, levels, x_0, ddpm.portable_noise(0), decoder_var=decoder, y=y)
    for key, nats in (
        ("bits_per_dim", wanted.total), ("prior", wanted.prior), ("decoder", wanted.data),
        ("steps_sum", wanted.steps.sum(1)),
    ):  # fmt: skip
        mean, error = ddpm.bits_per_dim(nats, 24)
        np.testing.assert_allclose(found[key]["mean"], mean, rtol=1e-4)
        np.testing.assert_allclose(found[key]["error"], error, rtol=1e-3, atol=1e-9)
    rmse = 127.5 * np.sqrt(wanted.error.mean(0))
    np.testing.assert_allclose([r["rmse"] for r in found["rate_distortion"]], rmse, rtol=1e-4)
    rows = found["rate_distortion"]
    rate = found["prior"]["mean"] + np.cumsum([row["bits"]["mean"] for row in rows[:-1]])
    np.testing.assert_allclose([row["rate"]["mean"] for row in rows[:-1]], rate, rtol=1e-9)
    assert rows[-1]["rate"] == rows[-2]["rate"]  # the decoder's bits are not rate (section 4.3)
    spent = sum(row["bits"]["mean"] for row in found["rate_distortion"]) + found["prior"]["mean"]
    np.testing.assert_allclose(spent, found["bits_per_dim"]["mean"], rtol=1e-9)


@pytest.mark.slow
def test_backends_agree(place):
    """NumPy and torch print the same bits, to float32."""
    pytest.importorskip("torch")
    words = ["run", "--terms", "3", "--variance", "small"]
    ours, theirs = (numbers(place, *words, "--backend", b) for b in ("numpy", "torch"))
    np.testing.assert_allclose(
        ours["bits_per_dim"]["mean"], theirs["bits_per_dim"]["mean"], rtol=1e-3
    )


@pytest.mark.slow
def test_optimal_is_the_best_fixed_variance(place):
    """A measured variance spends fewer bits on the steps than either fixed one, and is default."""
    words = ["run", "--terms", "0", "--steps", "8", "--images", "6"]
    small, large, best = (
        numbers(place, *words, *more)["steps_sum"]["mean"]
        for more in (["--variance", "small"], ["--variance", "large"], [])
    )
    assert best < min(small, large)


@pytest.mark.slow
def test_learned_variance(place):
    """A network with 2 C channels is read by `learned_range`, unless another is asked for."""
    words = ["learned.safetensors", "--terms", "0", "--steps", "5", "--images", "6"]
    found = numbers(place, *words)
    assert found["variance"] == "learned"
    checkpoint = tiny(config=WIDE)
    levels = ddpm.levels_of(checkpoint.schedule, 5)
    second, first = (checkpoint.schedule(float(levels.time[i])) for i in (-3, -2))
    denoise = ddpm.clip(checkpoint.predictor(ddpm.backend("numpy").network))
    x_0 = to_range(np.load(place / "data.npz")["images"][:6, None])
    kernel = ddpm.learned_range(denoise, ddpm.small(second, first))
    wanted = ddpm.elbo(kernel, levels, x_0, ddpm.portable_noise(0), y=np.full(6, -1))
    mean = ddpm.bits_per_dim(wanted.total, 24).mean
    np.testing.assert_allclose(found["bits_per_dim"]["mean"], mean, rtol=1e-4)
    assert numbers(place, *words, "--variance", "small")["bits_per_dim"] != found["bits_per_dim"]
    ran = run(place, "run", "--data", "data.npz", "--variance", "learned")
    assert ran.returncode == 2
    assert "no learned variance" in ran.stderr


@pytest.mark.slow
def test_trained_variance_is_evaluated(place):
    """What `train --learn-variance` learned is read by `evaluate`, and `sample` still draws."""
    pytest.importorskip("torch")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = "--data data.npz --out fresh --steps 2 --batch 4 --widths 8,8 --groups 4 --attention 1"
    for command in (
        ["train", *words.split(), "--blocks", "1", "--learn-variance", "--held-out", "0"],
        ["sample", "--model", "fresh", "--grid", "1x2", "--steps", "2"],
    ):
        ran = subprocess.run(
            [COMMAND, *command], cwd=place, capture_output=True, text=True, env=environment
        )
        assert ran.returncode == 0, ran.stderr
    assert numbers(place, "fresh", "--terms", "2", "--images", "4")["variance"] == "learned"


@pytest.mark.slow
def test_plot(place):
    """A picture of the curve appears where it was asked for."""
    found = run(
        place, "run", "--data", "data.npz", "--images", "4", "--terms", "3", "--plot", "p.png"
    )
    assert found.returncode == 0, found.stderr
    with Image.open(place / "p.png") as picture:
        assert np.asarray(picture.convert("L")).min() < 128


def test_errors_are_drawn():
    """The plot has bands of two standard errors on either side of each curve."""
    rows = [
        {"from": 20 - i, "to": 20 - i, "rate": {"mean": i, "error": 0.5}, "rmse": 40.0 - i,
         "rmse_error": None if i == 2 else 3.0}
        for i in range(4)
    ]  # fmt: skip
    drawn = []
    with mock.patch("matplotlib.axes.Axes.fill_between", lambda *a, **k: drawn.append(a[1:])):
        evaluate.draw_curve({"curve": rows})
    (x, low, high), (_, *rate), (across, *_) = drawn
    np.testing.assert_allclose(x, [1, 2, 3, 4])
    np.testing.assert_allclose([low, high], [[34, 33, 38, 31], [46, 45, 38, 43]])
    np.testing.assert_allclose(rate, [[-1, 0, 1, 2], [1, 2, 3, 4]])
    np.testing.assert_allclose(across, range(4))


@pytest.mark.slow
def test_reader_that_has_left(place):
    """The numbers are written also where nobody reads the table, as in `evaluate | head -1`."""
    end, start = os.pipe()
    os.close(end)
    words = ["run", "--data", "data.npz", "--images", "4", "--terms", "2", "--variance", "small"]
    words += ["--json", "left.json", "--plot", "left.png"]
    ran = subprocess.run(
        [COMMAND, "evaluate", "--model", *words], cwd=place, stdout=start, stderr=subprocess.DEVNULL
    )
    os.close(start)
    assert ran.returncode == 141  # 128 + SIGPIPE
    assert json.loads((place / "left.json").read_text())["images"] == 4
    assert (place / "left.png").exists()


def test_splits(place):
    """`test` is t10k; where the data has no splits the numbers name none."""
    folder = place / "idx"
    folder.mkdir(exist_ok=True)
    images = np.load(place / "data.npz")["images"]
    for split in ("train", "t10k"):
        for kind, a in (("images-idx3", images), ("labels-idx1", np.arange(12, dtype=np.uint8))):
            head = struct.pack(f">4B{a.ndim}I", 0, 0, 8, a.ndim, *a.shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(head + a.tobytes())
    words = ["run", "--images", "4", "--terms", "2", "--steps", "5", "--variance", "small"]
    (place / "out.json").unlink(missing_ok=True)
    ran = run(place, *words, "--data", "idx", "--split", "test", "--json", "out.json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads((place / "out.json").read_text())["split"] == "t10k"
    assert numbers(place, *words)["split"] is None


def test_names_are_no_markup(place):
    """A path with brackets is shown as it is."""
    name = "[bold]a[/red].npz"
    odd = place / name
    odd.parent.mkdir(exist_ok=True)
    odd.write_bytes((place / "data.npz").read_bytes())
    words = ["--images", "4", "--terms", "2", "--variance", "small"]
    ran = run(place, "run", "--data", name, *words)
    assert ran.returncode == 0, ran.stderr
    assert name in ran.stdout
    assert ran.stdout.splitlines()[0].endswith("2 terms each")  # one line, however narrow


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "--data", "nowhere"], "no data at nowhere"),
        (["nothing", "--data", "data.npz"], "no model 'nothing'"),
        (["run", "--data", "other.npz"], "the model's are (1, 4, 6)"),
        (["run", "--data", "data.npz", "--variance", "huge"], "no variance 'huge'"),
        (
            ["run", "--data", "data.npz", "--terms", "100"],
            "--terms must be at most 99, one less than the levels, but is 100; pass --terms 0",
        ),
        (["run", "--data", "data.npz", "--batch", "0"], "Invalid value for '--batch'"),
        (["run", "--data", "data.npz", "--seed", "-1"], "--seed must lie within 0"),
        (["run", "--data", "data.npz", "--split", "val"], "--split must be train or t10k (or test"),
        (["run", "--data", "data.npz", "--steps", "2000"], "--steps must lie within 2 .. 100"),
        (["run", "--data", "data.npz", "--plot", "p.svg"], "must end in .png"),
        (["run", "--data", "data.npz", "--images", "0"], "pass fewer --images"),
        (["run", "--data", "data.npz", "--steps", "1"], "--steps must lie within 2 .. 100"),
        (["run", "--data", "data.npz", "--images", "1"], "at least 2 images"),
        (["run"], "--data"),
    ],
)
def test_bad_input_is_one_line(place, words, complaint):
    ran = run(place, *words)
    assert ran.returncode == 2
    assert complaint in ran.stderr
    assert ran.stderr.strip().splitlines()[-1].startswith("ddpm-core: ")
    assert "Traceback" not in ran.stderr


def test_rows_weigh_terms_by_what_they_stand_for():
    """A row's error is the mean over its steps, also where terms were drawn unevenly."""
    levels = ddpm.levels_of(ddpm.linear(100, rescale=True), 100)
    index = np.array([[10, 10, 50]])
    weight, error = np.array([[3.0, 1.0, 7.0]]), np.array([[1.0, 2.0, 5.0, 0.5]])
    result = Elbo(np.ones(1), np.ones((1, 3)), np.ones(1), index, weight, error)
    rows = report(result, levels, 1)["rate_distortion"]
    wanted = 127.5 * np.sqrt([(3 * 1 + 1 * 2) / 4, 5.0, 0.5])
    np.testing.assert_allclose([row["rmse"] for row in rows], wanted)
    assert [row["rmse_error"] for row in rows] == [None] * 3  # of one image


def test_errors_of_rows():
    """Where all terms are taken, the error of an RMSE is that of a mean over images, by dr / 2r."""
    levels = ddpm.levels_of(ddpm.linear(100, rescale=True), 10)
    rng = np.random.default_rng(0)
    index = np.broadcast_to(np.arange(9), (50, 9))
    error = rng.random((50, 10))
    result = Elbo(np.ones(50), np.ones((50, 9)), np.ones(50), index, np.ones((50, 9)), error)
    rows = report(result, levels, 1)["rate_distortion"]
    deviation = error.std(axis=0, ddof=1) / np.sqrt(50)
    wanted = 127.5 * deviation / (2 * np.sqrt(error.mean(axis=0)))
    np.testing.assert_allclose([row["rmse_error"] for row in rows], wanted, rtol=1e-12)


def test_bound_that_is_not_finite(place, monkeypatch):
    """Weights that give NaN are an error, and no number of theirs is shown."""
    checkpoint = tiny()
    checkpoint.params["conv_out.weight"][:] = np.nan
    monkeypatch.setattr(evaluate, "load", lambda name: checkpoint)
    words = ["--data", place / "data.npz", "--images", 4, "--terms", 2]
    for variance, said in (
        ("small", "bound of images 0 to 3 is not finite"),
        ("optimal", "errors of the denoiser are not finite"),
    ):
        with pytest.raises(ValueError, match=said):
            app.run(["evaluate", "--model", "any", *map(str, words), "--variance", variance])


def test_never_without_a_class(place, monkeypatch):
    """A model that was never trained without a class is given the classes, or not evaluated."""

    class Conditional:
        config, schedule, unconditional = tiny().config, tiny().schedule, False

    monkeypatch.setattr(evaluate, "load", lambda name: Conditional)
    with pytest.raises(ValueError, match="pass --labelled"):
        app.run(["evaluate", "--model", "any", "--data", str(place / "data.npz")])
