"""`ddpm-core sample`: what it writes, and that bad input is one line and status 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from command import LABELS, executable, fails, pixels, run, sample, tiny
from PIL import Image

import ddpm_core as ddpm
from ddpm_core.checkpoints import load, save
from ddpm_core.cli import datasets, pictures
from ddpm_core.cli import sample as sampling
from ddpm_core.cli.drawing import SAMPLERS, draw, parse_classes
from ddpm_core.guidance import guided, within
from ddpm_core.models import bundled
from ddpm_core.nn import UNetConfig
from ddpm_core.schedules import Discrete

pytest_plugins = "command_fixtures"
pytestmark = pytest.mark.usefixtures("one_thread_of_processes")

#: Of float32 in another order of sums: eps, over alpha = 0.006 at the first level, ten layers.
ROUNDING = 10 * np.finfo(np.float32).eps / 0.006
#: Samplers that do not multiply a difference by k = σ / α, 220 at the first level, once more.
STEADY = ["dpmpp_2m", "ddim", "ancestral", "unipc_2", "sde_dpmpp_3m"]


def test_picture_is_what_was_drawn(here, model):
    """The PNG is the grid of `draw`: gap 2, each pixel scale by scale, -1 .. 1 as 0 .. 255."""
    found = sample(model, "--scale", 3, "--seed", 5, "--classes", "dog")
    checkpoint = load(model)
    solver = ddpm.dpmpp_2m(checkpoint.schedule, 2)
    y = np.array([1, 1, 1])
    x = draw(checkpoint, ddpm.backend("numpy"), solver, 3, y, 5, 2, quiet=True)[-1]
    assert found.shape == (3 * (4 + 2 * 2), 3 * (3 * 6 + 4 * 2))
    for i, image in enumerate(x):
        left = 2 + i * (6 + 2)
        cell = found[3 * 2 : 3 * 6, 3 * left : 3 * (left + 6)]
        wanted = np.kron((image[0] + 1) * 127.5, np.ones((3, 3)))
        # Rounded to a whole grey level; a batch of 3 for one of 2 moves x by some 1e-6.
        np.testing.assert_allclose(cell, wanted, atol=0.51)
        found[3 * 2 : 3 * 6, 3 * left : 3 * (left + 6)] = 255
    assert (found == 255).all()


def test_draw_is_sample(model):
    """`draw` ends where the library's own `sample` does, from the same portable noise."""
    checkpoint, on = load(model), ddpm.backend("numpy")
    solver = ddpm.ancestral(checkpoint.schedule, 3)
    noise = ddpm.portable_noise(7)
    y = np.array([0, 1, 2, -1, 0])
    denoise = ddpm.clip(checkpoint.predictor(on.network))
    wanted = ddpm.sample(denoise, solver, noise(0, (5, 1, 4, 6)), noise, y=y)
    found = draw(checkpoint, on, solver, 5, y, 7, 16, process=True, quiet=True)
    assert len(found) == 3
    np.testing.assert_allclose(found[-1], wanted, rtol=0, atol=ROUNDING)
    first = denoise(noise(0, (5, 1, 4, 6)), checkpoint.schedule(100.0), y=y)
    np.testing.assert_allclose(found[0], first, rtol=0, atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_seed_decides(here, model, name):
    """A seed gives its picture again, and another seed another, with every sampler."""
    first = sample(model, "--sampler", name)
    np.testing.assert_array_equal(sample(model, "--sampler", name), first)
    assert (sample(model, "--sampler", name, "--seed", 1) != first).mean() > 0.1


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_batch_changes_nothing(model, name, batch):
    """Image 17 of a seed is the same however the images are dealt into batches."""
    checkpoint, on = load(model), ddpm.backend("numpy")
    solver, y = SAMPLERS[name](checkpoint.schedule, 3), np.arange(5) % 3
    wanted = draw(checkpoint, on, solver, 5, y, 0, 5, quiet=True)[-1]
    found = draw(checkpoint, on, solver, 5, y, 0, batch, quiet=True)[-1]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name", STEADY)
def test_backends_draw_the_same(name):
    """NumPy and torch give the bundled model's images alike, to 1e-3."""
    checkpoint = load(bundled()["fashion-mnist"])
    solver, y = SAMPLERS[name](checkpoint.schedule, 3), np.array([7, -1])
    images = [
        draw(checkpoint, ddpm.backend(on), solver, 2, y, 0, 2, quiet=True)[-1]
        for on in ("numpy", "torch")
    ]
    np.testing.assert_allclose(*images, rtol=0, atol=1e-3)


def test_classes(here, model):
    """Classes go by name, number or none, in turn; a name comes before a number."""
    checkpoint = load(model)

    def parsed(text: str | None) -> list[int]:
        return parse_classes(text, checkpoint, 4).tolist()

    assert parsed(None) == [0, 1, 2, 0]
    assert parsed("dog") == [1, 1, 1, 1]
    assert parsed("DOG, cat") == [1, 0, 1, 0]
    assert parsed("0,none,1") == [0, -1, 1, 0]
    alike = tiny(labels=("Cat", "cat", "DOG"))
    assert parse_classes("Cat,cat,CAT,dog", alike, 4).tolist() == [0, 1, 1, 2]
    swapped = tiny(labels=("2", "0", "1"))
    assert parse_classes("2,0,1", swapped, 3).tolist() == [0, 1, 2]
    few, many = tiny(labels=("cat",)), tiny(labels=tuple("abcdef"))
    assert parse_classes("2,cat", few, 2).tolist() == [2, 0]
    with pytest.raises(ValueError, match="no class 'f'"):
        parse_classes("f", many, 1)
    unnamed = tiny(labels=())
    assert parse_classes("2,0", unnamed, 2).tolist() == [2, 0]

    pictures = [sample(model, "--classes", text) for text in ("cat", "dog", "none")]
    assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i])


def test_guidance(here, model, capsys):
    """--guidance draws from `guided` of the model with its class and with none, then clipped."""
    checkpoint, on = load(model), ddpm.backend("numpy")
    predict = checkpoint.predictor(on.network)
    solver = ddpm.dpmpp_2m(checkpoint.schedule, 2)
    x = ddpm.portable_noise(0)(0, (3, 1, 4, 6))

    def drawn(scale):
        denoise = ddpm.clip(guided(predict, lambda x, t, y: predict(x, t, y=0 * y - 1), scale))
        images = ddpm.sample(denoise, solver, x, y=np.zeros(3, np.int64))
        return np.hstack((images[:, 0] + 1) * 127.5)

    def found(*options):
        sheet = sample(model, "--scale", 1, *options)[2:6]
        return np.hstack([sheet[:, 2 + 8 * i : 8 + 8 * i] for i in range(3)])

    inside = ["--guidance-interval", -3, 99]  # the second of two steps
    for scale, options in (
        (3.0, ["--guidance", 3]),
        (-1.0, ["--guidance", -1]),
        (within(3.0, -3, 99), ["--guidance", 3, *inside]),
    ):
        np.testing.assert_allclose(found(*options), drawn(scale), atol=0.51)
        y = np.zeros(3, np.int64)
        (x_0,) = draw(checkpoint, on, solver, 3, y, 0, 2, guidance=scale, quiet=True)
        np.testing.assert_allclose(np.hstack(x_0[:, 0] * 127.5 + 127.5), drawn(scale), atol=0.1)
    plain = found()
    np.testing.assert_array_equal(found("--guidance", 1), plain)
    np.testing.assert_array_equal(found("--guidance", 9, "--guidance-interval", 98, 99), plain)
    assert (found("--guidance", 3) != plain).mean() > 0.1
    assert (found("--guidance", 3) != found("--guidance", 3, *inside)).mean() > 0.1
    folder = ["--steps", 2, "--count", 1, "--out-dir", "d", "--guidance", 3]
    run("sample", "--model", model, *folder)
    message = fails(capsys, "sample", "--model", model, *folder, "--resume", *inside)
    assert "d holds samples of guidance_interval None, not [-3.0, 99.0]" in message


def test_gif_is_the_process(here, model):
    """A GIF has a frame per network call, the model's x_0, and ends with the picture."""
    found = sample(model, "--gif", "process.gif", "--steps", 4)
    with Image.open("process.gif") as gif:
        assert gif.n_frames == 4
        gif.seek(3)
        # A GIF of grey levels has a palette of 256: exact.
        np.testing.assert_array_equal(np.asarray(gif.convert("L")), found)
        gif.seek(0)
        assert (np.asarray(gif.convert("L")) != found).mean() > 0.1


def test_out_dir(here, model, capsys):
    """--out-dir gets one PNG per id, those of the sheet, which --resume does not draw again."""
    sheet = sample(model, "--scale", 1, "--classes", "cat,dog,2")[-8:]  # below the names
    options = ["sample", "--model", model, "--steps", 2, "--out-dir", "d"]
    run(*options, "--count", 2)
    run(*options, "--ids", "2:3", "--batch", 1)
    assert sorted(p.name for p in Path("d").iterdir()) == [
        "00000000.png", "00000001.png", "00000002.png", "samples.json",
    ]  # fmt: skip
    for i in range(3):
        left = 2 + 8 * i
        cell = sheet[2:6, left : left + 6].astype(int)
        assert abs(cell - pixels(f"d/{i:08d}.png")).max() <= 1  # rounding of another batch

    assert "d has 3 of these pictures already; pass --resume" in fails(
        capsys, *options, "--count", 4
    )
    Path("d/00000001.png").write_text("mine")
    capsys.readouterr()
    run(*options, "--count", 4, "--resume")
    assert "Wrote 1 pictures in d, where 3 were already" in capsys.readouterr().out
    assert Path("d/00000001.png").read_text() == "mine"
    for option, value, said in (
        ("--seed", 1, "seed 0, not 1"), ("--steps", 3, "steps 2, not 3"),
        ("--sampler", "ddim", "sampler dpmpp_2m, not ddim"),
        ("--classes", "dog", r"classes \[0, 1, 2\], not \[1\]"),
        ("--guidance", 2, "guidance None, not 2.0"),
    ):  # fmt: skip
        message = fails(capsys, *options, "--count", 4, "--resume", option, value)
        assert re.search(f"d holds samples of {said}", message)
    shifted = tiny()
    shifted.params["conv_in.bias"][:] += 1
    logsnr = list(shifted.schedule.logsnr)
    logsnr[50] = (logsnr[49] + logsnr[50]) / 2
    options[2] = "other.safetensors"
    for other in (shifted, tiny(schedule=Discrete(tuple(logsnr))), tiny(timestep_scale=0.5)):
        save("other.safetensors", other)
        assert "d holds samples of model" in fails(capsys, *options, "--count", 4, "--resume")
    for junk in ("[" * 9999, "{", "[]", "null", "\xff"):
        Path("d/samples.json").write_text(junk)
        assert "--out-dir" in fails(capsys, *options, "--count", 4, "--resume")
    Path("d/samples.json").unlink()
    assert "d has some of these pictures, but no samples.json" in fails(
        capsys, *options, "--count", 4, "--resume"
    )
    if hasattr(os, "mkfifo"):
        os.mkfifo("d/samples.json")
        assert "not a regular file" in fails(capsys, *options, "--count", 4, "--resume")


def test_two_commands_in_one_folder(here, model, monkeypatch):
    """A command draws nothing into a folder that another, of other settings, began meanwhile."""
    options = ["sample", "--model", model, "--steps", 1, "--count", 1, "--out-dir", "d"]
    lacking = sampling.lacking

    def late(*arguments):
        found = lacking(*arguments)
        monkeypatch.setattr(sampling, "lacking", lacking)
        run(*options, "--seed", 1)
        return found

    monkeypatch.setattr(sampling, "lacking", late)
    with pytest.raises(ValueError, match="d holds samples of seed 1, not 0"):
        run(*options)


def test_npz(here, model):
    """An .npz holds what a sheet shows, and can be read as data."""
    run("sample", "--model", model, "--steps", 2, "--ids", "1:6", "--out", "s.npz")
    found = datasets.read("s.npz")
    checkpoint, on = load(model), ddpm.backend("numpy")
    solver, y = ddpm.dpmpp_2m(checkpoint.schedule, 2), np.arange(6) % 3
    x = draw(checkpoint, on, solver, 6, y, 0, 6, quiet=True)[-1][1:]
    np.testing.assert_allclose(found.images, (x + 1) * 127.5, rtol=0, atol=0.51)
    assert found.classes.tolist() == [1, 2, 0, 1, 2]
    assert np.load("s.npz")["ids"].tolist() == [1, 2, 3, 4, 5]
    run("sample", "--model", model, "--steps", 2, "--out", "none.npz", "--classes", "none,cat")
    assert sorted(np.load("none.npz")) == ["ids", "images"]
    assert len(np.load("none.npz")["images"]) == 64


def test_names_of_classes(here, model):
    """Columns of one class each have its name above them; images below are as without it."""
    plain = sample(model, "--scale", 4, "--grid", "2x3", "--classes", "cat")
    named = sample(model, "--scale", 4, "--grid", "2x3", "--classes", "cat,dog,none")
    extra = named.shape[0] - plain.shape[0]
    assert 10 < extra < 80
    assert named.shape[1] == plain.shape[1]
    np.testing.assert_array_equal(named[extra:, :32], plain[:, :32])  # the column of cats
    strip = named[:extra]
    for left in (0, 32, 64):
        assert strip[:, left : left + 32].min() < 128
    beside = sample(model, "--scale", 4, "--grid", "3x1", "--classes", "cat,dog,2")
    assert beside.shape[0] == 3 * 24 + 8
    assert beside.shape[1] > 40
    mixed = sample(model, "--scale", 4, "--grid", "2x4", "--classes", "cat,dog,2")
    assert mixed.shape == (2 * 24 + 8, 4 * 32 + 8)
    run("sample", "--model", model, "--steps", 1, "--out", "all.png")  # 8 rows, 2 times 3 columns
    assert pixels("all.png").shape[1] == 2 * (6 * 8 + 2)


def test_classes_without_names(here):
    """Classes that have no name are shown by number."""
    save("nameless.safetensors", tiny(labels=()))
    run("sample", "--model", "nameless.safetensors", "--steps", 1, "--grid", "2x3", "--scale", 8)
    assert pixels("samples.png").shape[0] > 2 * 8 * 6 + 16 + 8


def test_names_that_no_font_has(here):
    """Whatever a class is called, the sheet is written."""
    save("odd.safetensors", tiny(labels=("\u732b\u202e\n", "x" * 500, "")))
    run("sample", "--model", "odd.safetensors", "--steps", 1, "--grid", "1x3", "--scale", 8)
    assert pixels("samples.png").shape[0] < 300


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_samples_that_are_not_finite(here, model, capsys, value):
    """Weights that give NaN are an error that names the step; nothing is written."""
    checkpoint = tiny()
    checkpoint.params["conv_out.weight"][:] = value
    with mock.patch("ddpm_core.cli.sample.load", return_value=checkpoint):
        for out in (["--out", "s.png"], ["--out-dir", "d"], ["--out", "s.npz"]):
            options = ["sample", "--steps", 2, "--count", 2, *out]
            if value == 1e38:
                options = [*options, "--backend", "numpy"]
                checkpoint.params["conv_in.weight"][:] = value
            message = fails(capsys, *options)
            assert "not finite, from step 1 of 2 on" in message
    assert list(here.iterdir()) == []


def test_without_a_class(model):
    """A model that was never trained without a class is not asked for it."""

    class Conditional:
        config, labels, unconditional = tiny().config, LABELS, False

    assert parse_classes("cat", Conditional, 2).tolist() == [0, 0]
    with pytest.raises(ValueError, match="never trained without a class"):
        parse_classes("cat,none", Conditional, 2)


def test_without_matplotlib(tmp_path, model):
    """Sampling needs no matplotlib."""
    code = (
        "import sys; sys.modules['matplotlib'] = None; from ddpm_core.cli import main; "
        "sys.argv[0] = 'ddpm-core'; main()"
    )
    rest = ["sample", "--model", model, "--steps", "1", "--count", "1", "--out", tmp_path / "a.png"]
    subprocess.run([sys.executable, "-c", code, *rest], check=True)
    assert (tmp_path / "a.png").exists()


def test_colour_grid():
    """A grid lies row by row, white between and where images are missing."""
    x = np.array([-1, 0.5, 1]).reshape(3, 1, 1, 1) * np.ones((3, 3, 2, 2))
    x[:, 1:] = -1
    found = pictures.grid(x, 2)
    assert found.shape == (10, 10, 3)
    red = [found[2, 2], found[2, 6], found[6, 2]]
    np.testing.assert_array_equal(red, [[0, 0, 0], [191, 0, 0], [255, 0, 0]])
    assert (found[6:8, 6:8] == 255).all()
    assert (found[4:6] == 255).all()


@pytest.mark.slow
def test_without_torch(tmp_path, model):
    """Sampling needs no torch: with its import forbidden the picture is the same."""
    code = (
        "import sys; sys.modules['torch'] = None; from ddpm_core.cli import main; "
        "sys.argv[0] = 'ddpm-core'; main()"
    )
    rest = ["sample", "--model", model, "--steps", "2", "--grid", "1x3"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *rest, "--out", tmp_path / "a.png"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout[:5]) == (0, "Wrote"), ran.stderr
    run(*rest, "--out", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    ran = subprocess.run(
        [sys.executable, "-c", code, *rest, "--backend", "torch", "--out", tmp_path / "c.png"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        "ddpm-core: backend 'torch' needs torch: pip install 'ddpm-core[torch]'"
    ]
    ran = subprocess.run(
        [sys.executable, "-c", code, "train", "--data", model.parent, "--out", tmp_path / "r"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 2


def test_loads_no_torch(tmp_path, model):
    """Sampling on NumPy does not import torch where it could."""
    code = (
        "import sys; from ddpm_core.cli.app import run; run(sys.argv[1:]); "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'jax', 'cupy'}))"
    )
    rest = [
        "sample",
        "--model",
        model,
        "--steps",
        "1",
        "--grid",
        "1x1",
        "--out",
        tmp_path / "a.png",
    ]
    ran = subprocess.run(
        [sys.executable, "-c", code, *rest], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "[]"


BAD_SAMPLES = {
    "no file": (
        ["--model", "none.safetensors"],
        "no model 'none.safetensors': neither a file, nor a folder, nor one of",
    ),
    "a folder": (["--model", "."], "no checkpoint at ."),
    "a pickle": (["--model", "pickle.pt"], "pickle.pt is no file of tensors"),
    "truncated": (["--model", "cut.safetensors"], "cut.safetensors is not .* truncated"),
    "foreign": (["--model", "foreign.safetensors"], "not a checkpoint of ddpm-core"),
    "wrong shape": (["--model", "shape.safetensors"], "1 of a wrong shape: conv_out.bias"),
    "odd size": (["--model", "odd.safetensors"], "2 resolutions cannot halve"),
    "eps at alpha 0": (["--model", "zero.safetensors"], "predict v or x0 for alpha = 0"),
    "grid 0": (["--grid", "0x8"], "--grid must be ROWSxCOLUMNS, such as 8x8, but is '0x8'"),
    "grid": (["--grid", "8"], "--grid must be ROWSxCOLUMNS"),
    "grid sign": (["--grid=-1x8"], "--grid must be ROWSxCOLUMNS"),
    "class": (
        ["--classes", "cat,cow"],
        "no class 'cow'; there are cat, dog, 2, and the numbers 0 to 2",
    ),
    "class number": (["--classes", "3"], "no class '3'"),
    "no classes": (["--model", "plain.safetensors", "--classes", "cat"], "has no classes"),
    "sampler": (["--sampler", "ddpm"], "no sampler 'ddpm'; there are dpmpp_2m, dpmpp_3m, dpmpp_2s"),
    "guidance nan": (["--guidance", "nan"], "--guidance must be a finite number, but is nan"),
    "guidance text": (["--guidance", "strong"], "Invalid value for '--guidance'"),
    "guidance none": (["--guidance", "2", "--classes", "none"], "but --classes asks for none"),
    "guidance plain": (
        ["--model", "plain.safetensors", "--guidance", "2"],
        "this model has no classes",
    ),
    "guidance never": (
        ["--model", "never.safetensors", "--guidance", "2"],
        "never trained without one, or its file does not say which of its classes stands for none",
    ),
    "interval alone": (
        ["--guidance-interval", "-2", "2"],
        "--guidance-interval goes with --guidance",
    ),
    "interval": (
        ["--guidance", "2", "--guidance-interval", "2", "-2"],
        "--guidance-interval must be LOW HIGH, but is 2 -2",
    ),
    "interval of one": (["--guidance-interval", "2"], "requires 2 arguments"),
    "steps 0": (["--steps", "0"], "Invalid value for '--steps'"),
    "steps > T": (
        ["--steps", "101"],
        "--steps must be at most 100, the model's noise levels, but is 101",
    ),
    "steps text": (["--steps", "two"], "Invalid value for '--steps'.*see --help"),
    "seed": (["--seed", "-1"], "--seed must lie within 0 .. 2.64 - 1, but is -1"),
    "seed large": (["--seed", str(2**64)], "--seed must lie within"),
    "seed text": (["--seed", "x"], "Invalid value for '--seed'"),
    "batch": (["--batch", "0"], "Invalid value for '--batch'"),
    "scale": (["--scale", "0"], "Invalid value for '--scale'"),
    "scale large": (["--scale", "100000"], "Invalid value for '--scale'"),
    "grid large": (["--grid", "100000x100000"], "10,000,000,000 places, for at most 10,000,000"),
    "sheet large": (
        ["--grid", "2000x2000"],
        "32,004 x 24,004 pixels, of at most .* smaller --grid, --scale",
    ),
    "gif large": (
        ["--grid", "300x300", "--steps", "100", "--gif", "p.gif"],
        "in 100 frames, of at most 134,217,728",
    ),
    "count": (["--grid", "2x2", "--count", "5"], "--grid 2x2 has 4 places, for 5 images"),
    "count 0": (["--count", "0"], "Invalid value for '--count'"),
    "count large": (["--count", "100000000"], "Invalid value for '--count'"),
    "count and ids": (["--count", "1", "--ids", "0:1"], "pass one of them"),
    "ids": (["--ids", "5:5"], "--ids must be FIRST:END, such as 100:200"),
    "ids text": (["--ids", "5"], "--ids must be FIRST:END"),
    "ids large": (["--ids", "2147483647:2147483649"], "END at most 2"),
    "ids many": (["--ids", "0:2000000000"], "at most 10,000,000 images"),
    "out twice": (["--out-dir", "d", "--out", "s.png"], "--out, --grid do nothing with --out-dir"),
    "gif in a folder": (["--out-dir", "d", "--gif", "p.gif"], "--gif does nothing with --out-dir"),
    "scale in a folder": (["--out-dir", "d", "--scale", "2"], "--scale does nothing with --out-"),
    "out dir is a file": (["--out-dir", "cut.safetensors"], "cut.safetensors is a file"),
    "out dir nowhere": (["--out-dir", "no/d"], "no folder no to write d in"),
    "shards nowhere": (["--shards", "npz"], "--shards does nothing without --out-dir"),
    "shards": (["--out-dir", "d", "--shards", "zip"], "--shards must be npz or tar, but is 'zip'"),
    "shard size": (["--out-dir", "d", "--shard-size", "5"], "nothing without --shards"),
    "shard size 0": (
        ["--out-dir", "d", "--shards", "npz", "--shard-size", "0"],
        "Invalid value for '--shard-size'",
    ),
    "shard size large": (
        ["--out-dir", "d", "--shards", "tar", "--shard-size", "200000000"],
        "a shard would hold 4,800,000,000 bytes of images, of at most 4,294,967,296; a smaller",
    ),
    "dtype": (["--dtype", "float16"], "--dtype must be uint8 or float32, but is 'float16'"),
    "dtype of a sheet": (["--dtype", "float32"], "float32 needs an .npz: pass --out NAME.npz or"),
    "dtype of a tar": (
        ["--out-dir", "d", "--shards", "tar", "--dtype", "float32"],
        "--dtype float32 needs an .npz: pass --out NAME.npz or --shards npz",
    ),
    "npz grid": (["--out", "s.npz"], "an .npz has no sheet"),
    "npz scale": (["--out", "s.npz", "--scale", "2"], "leave out --grid, --gif and --scale"),
    "resume": (["--resume"], "--resume does nothing without --out-dir"),
    "out folder": (["--out", "none/s.png"], "no folder none to write s.png in"),
    "out is a folder": (["--out", "folder.png"], "folder.png is a folder"),
    "out suffix": (["--out", "s.jpg"], "s.jpg must end in .png or .npz"),
    "gif suffix": (["--gif", "s.png"], "s.png must end in .gif"),
    "gif folder": (["--gif", "none/s.gif"], "no folder none"),
    "backend": (["--backend", "tf"], "no backend 'tf'; there are cupy, jax, numpy, onnx, torch"),
    "device": (["--device", "cuda"], "NumPy has no device 'cuda'"),
    "meta": (["--backend", "torch", "--device", "meta"], "--device meta: torch cannot compute"),
    "torch device": (["--backend", "torch", "--device", "no"], "torch cannot use device 'no'"),
    "option": (["--colour"], "No such option"),
}


@pytest.mark.needs("torch")
@pytest.mark.parametrize(("arguments", "message"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_bad_sample(here, model, capsys, arguments, message):
    """Each mistake is answered in one line that names it; no picture, no temporary file."""
    from safetensors.numpy import save as to_bytes

    data = model.read_bytes()
    Path("cut.safetensors").write_bytes(data[: len(data) // 2])
    Path("pickle.pt").write_bytes(b"\x80\x04K\x01.")
    Path("foreign.safetensors").write_bytes(to_bytes({"w": np.zeros(2)}))
    Path("folder.png").mkdir()
    save("zero.safetensors", tiny(schedule=ddpm.zero_terminal_snr(ddpm.linear())))
    good = tiny()
    with mock.patch("ddpm_core.checkpoints.own.read"):  # `save` would refuse them
        save("odd.safetensors", tiny(size=(5, 6)))
        save("shape.safetensors", tiny(params=good.params | {"conv_out.bias": np.zeros(2)}))
    plain = UNetConfig(channels=1, out_channels=1, widths=(4,), groups=4, attention=())
    save("plain.safetensors", tiny(config=plain, labels=()))
    save("never.safetensors", tiny(unconditional=False))
    before = set(here.rglob("*"))
    sheet = [] if "--out-dir" in arguments and "--out" not in arguments else ["--grid", "1x1"]
    options = ["--model", model, *sheet, "--steps", 2, *arguments]
    assert re.search(message, fails(capsys, "sample", *options))
    assert set(here.rglob("*")) == before


@pytest.mark.slow
def test_no_space_left(tmp_path, model, photos):
    """With no space left while saving: one line that names the file, and nothing half-written."""
    pytest.importorskip("resource")
    old = b"an older picture"
    (tmp_path / "s.png").write_bytes(old)
    options = ["--model", model, "--grid", "6x6", "--steps", 1, "--out", "s.png"]
    ran = executable("sample", *options, cwd=tmp_path, limit=200)
    assert ran.returncode == 2
    *_, last = ran.stderr.splitlines()  # after the progress bar
    assert last == "ddpm-core: s.png: File too large"
    assert "Traceback" not in ran.stderr
    assert (tmp_path / "s.png").read_bytes() == old
    assert list(tmp_path.iterdir()) == [tmp_path / "s.png"]
