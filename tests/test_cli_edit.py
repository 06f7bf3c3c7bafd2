"""`ddpm-core edit`: what it keeps, what decides its results, and that bad input is one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import NO_TORCH, fails, mild, pixels, run, tiny
from PIL import Image

import ddpm_core as ddpm
from ddpm_core.checkpoints import load, save
from ddpm_core.cli.drawing import SAMPLERS
from ddpm_core.cli.methods import KERNELS, METHODS
from ddpm_core.inverse import replaced, walk
from ddpm_core.measurements import mask, measure

pytest_plugins = "command_fixtures"
pytestmark = pytest.mark.usefixtures("one_thread_of_processes")

LARGER = 18  #: pixels of the sheet for one of the model's 4 x 6


@pytest.fixture(scope="module")
def colour(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "colour.safetensors"
    save(path, mild(3))
    return path


def write(name: str, height: int = 4, width: int = 6, channels: int = 1, seed: int = 0):
    """A picture of random grey values, not too near black and white, in a file."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    values = np.random.default_rng(seed).integers(64, 192, shape, dtype=np.uint8)
    Image.fromarray(values).save(name)
    return values


def cells(sheet: np.ndarray, count: int) -> list[np.ndarray]:
    """The pictures of the first row of a sheet."""
    below = sheet[-LARGER * 6 :]  # the titles
    return [
        below[:, LARGER * left : LARGER * (left + 6)][::LARGER, ::LARGER][:4].astype(int)
        for left in range(2, 2 + 8 * count, 8)
    ]


def edit(model: Path | str, *arguments: object, count: int = 3, shown: int = 2) -> list[np.ndarray]:
    """What was given, and the results."""
    options = ["--model", model, "--steps", 2, "--count", count, "--out", "e.png"]
    run("edit", "p.png", *options, *arguments)
    return cells(pixels("e.png"), shown + count)


@pytest.mark.parametrize("method", ["repaint", "ddrm", "ddnm", "diffpir"])
def test_black_is_kept(here, model, method):
    """Where the mask is black, results have the picture's grey values; elsewhere they differ."""
    values = write("p.png")
    white = np.pad(np.full((2, 3), 255, np.uint8), ((1, 1), (2, 1)))
    white[0, 0] = 1  # what is not black counts as white
    Image.fromarray(white).save("mask.png")
    original, given, *results = edit(model, "--mask", "mask.png", "--method", method)
    np.testing.assert_array_equal(original, values)
    np.testing.assert_array_equal(given, np.where(white, 128, values))
    for result in results:
        np.testing.assert_array_equal(result[white == 0], values[white == 0])
        assert (result[white > 0] != values[white > 0]).mean() > 0.5
    assert (results[0] != results[1]).any()


@pytest.mark.parametrize("method", ["repaint", "ddrm", "ddnm", "diffpir"])
def test_small_picture_is_the_mean(here, method):
    """The mean of 2 x 2 pixels of a result is the pixel of PICTURE."""
    values = write("p.png", 2, 3)
    save("grey.safetensors", mild(1))
    given, *results = edit("grey.safetensors", "--upscale", 2, "--method", method, shown=1)
    np.testing.assert_array_equal(given, np.kron(values, np.ones((2, 2))))
    exact = 0
    for result in results:
        blocks = result.reshape(2, 2, 3, 2).transpose(0, 2, 1, 3).reshape(2, 3, 4)
        inside = ((blocks > 0) & (blocks < 255)).all(axis=-1)  # where a byte holds the result
        np.testing.assert_allclose(blocks.mean(axis=-1)[inside], values[inside], atol=0.51)
        exact += inside.sum()
        assert (np.ptp(blocks, axis=-1) > 2).any()
    assert exact > 9


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_have_the_grey(here, colour, channels):
    """The luma (BT.601) of a coloured result is that of PICTURE."""
    values = write("p.png", channels=channels).reshape(4, 6, channels)
    luma = np.broadcast_to(values, (4, 6, 3)) @ [0.299, 0.587, 0.114]
    _, given, *results = edit(colour, "--grey")
    np.testing.assert_allclose(given, np.stack([luma] * 3, axis=-1), atol=0.51)
    exact = 0
    for result in results:
        inside = ((result > 0) & (result < 255)).all(axis=-1)
        np.testing.assert_allclose((result @ [0.299, 0.587, 0.114])[inside], luma[inside], atol=0.6)
        assert np.ptp(result, axis=-1).max() > 10
        exact += inside.sum()
    assert exact > 36


def library(model: Path, values: np.ndarray):
    """The denoiser, its schedule, three times the picture, and noise."""
    checkpoint = load(model)
    x_0 = np.broadcast_to(values.astype(np.float32) / 127.5 - 1, (3, 1, 4, 6))
    denoise = ddpm.clip(checkpoint.predictor(ddpm.backend("numpy").network))
    return denoise, checkpoint.schedule, x_0, ddpm.portable_noise(0)


def test_repaint_is_the_default(here, model):
    """It goes back to noise four times after each step."""
    values, white = write("p.png"), np.eye(4, 6) > 0
    Image.fromarray(white).save("mask.png")
    _, _, *results = edit(model, "--mask", "mask.png")
    denoise, schedule, x_0, noise = library(model, values)
    kernel = replaced(ddpm.reverse(denoise), measure(mask(~white[None]), x_0))
    levels = walk(ddpm.levels_of(schedule, 2), jump=1, repeats=5)
    x = ddpm.sample_kernel(kernel, levels, noise(0, x_0.shape), noise, y=np.full(3, -1))
    np.testing.assert_allclose(np.hstack(results), np.hstack((x[:, 0] + 1) * 127.5), atol=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
def test_variation(here, model, sampler):
    """--strength samples from q at that share of the times (SDEdit), here 40 of 100."""
    values = write("p.png")
    options = [] if sampler is None else ["--sampler", sampler]
    original, noised, *results = edit(model, "--strength", 0.4, *options)
    np.testing.assert_array_equal(original, values)
    denoise, schedule, x_0, noise = library(model, values)
    x = ddpm.q_sample(x_0, noise(0, x_0.shape), schedule(40))
    np.testing.assert_allclose(noised, np.clip((x[0, 0] + 1) * 127.5, 0, 255), atol=0.51)
    solver = SAMPLERS[sampler or "ancestral"](schedule, 2, times=[40, 20, 0])
    wanted = ddpm.sample(denoise, solver, x, noise, y=np.full(3, -1))
    np.testing.assert_allclose(np.hstack(results), np.hstack((wanted[:, 0] + 1) * 127.5), atol=0.6)


def test_strength_of_few_levels(here, model, capsys):
    """A strength below a level is one level; steps are no more than there are levels."""
    write("p.png")
    for strength, steps in ((0.001, 1), (0.05, 5), (1, 20)):
        run("edit", "p.png", "--model", model, "--strength", strength, "--count", 1)
        assert f"ancestral, {steps} steps." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, *METHODS])
def test_what_decides(here, model, method):
    """A result depends on the seed, the class and its number, not on --batch or --count."""
    write("p.png")
    Image.fromarray(1 - np.eye(4, 6, dtype=np.uint8)).save("mask.png")
    task = ["--strength", 0.7] if method is None else ["--mask", "mask.png", "--method", method]
    first = edit(model, *task)
    data = Path("e.png").read_bytes()
    edit(model, *task, "--batch", 2)
    assert Path("e.png").read_bytes() == data
    for found, wanted in zip(edit(model, *task, count=2), first, strict=False):
        np.testing.assert_array_equal(found, wanted)
    assert any((a != b).any() for a, b in zip(edit(model, *task, "--seed", 1), first, strict=True))
    dog = edit(model, *task, "--classes", "dog")
    assert (dog[2] != first[2]).any()
    assert (edit(model, *task, "--classes", "dog", "--guidance", 3)[2] != dog[2]).any()
    if method not in KERNELS:
        assert (edit(model, *task, "--sampler", "ddim")[2] != first[2]).any()


def test_noise_of_the_picture(here, capsys):
    """--noise-std changes what methods for noise draw; the others refuse it."""
    write("p.png")
    save("m.safetensors", mild(1))
    Image.fromarray(1 - np.eye(4, 6, dtype=np.uint8)).save("mask.png")
    for method in METHODS:
        task = ["--mask", "mask.png", "--method", method, "--noise-std"]
        if method in ("repaint", "ddnm", "dps"):
            assert "--noise-std goes with --method ddrm" in fails(capsys, "edit", "p.png", *task, 1)
        else:
            found = (edit("m.safetensors", *task, std, count=1) for std in (0, 1))
            assert np.ptp([result for _, _, result in found], axis=0).max() > 2


def test_other_sizes_and_channels(here, model, colour, capsys):
    """A large colour picture is cropped, resized and made grey, as one line says; so is a mask."""
    Image.new("RGB", (150, 80), "red").save("p.png")
    white = np.zeros((80, 150), np.uint8)
    white[70, 20] = 9  # the crop leaves out 15 columns at each side
    Image.fromarray(white).save("mask.png")
    original, given, *_ = edit(model, "--mask", "mask.png")
    assert capsys.readouterr().err == (
        "p.png, of 150 x 80 pixels, is made grey, cropped, resized to 6 x 4.\n"
    )
    np.testing.assert_array_equal(original, 76)  # 0.299 * 255
    np.testing.assert_array_equal(np.argwhere(given != 76), [[3, 0]])
    values = write("p.png")
    original, *_ = edit(colour, "--strength", 0.5)
    np.testing.assert_array_equal(original, np.stack([values] * 3, axis=-1))
    assert "p.png, of 6 x 4 pixels, is given three equal channels." in capsys.readouterr().err


def test_many_results(here, model):
    """Eight results lie in a row, to the right of what was given."""
    write("p.png")
    edit(model, "--strength", 0.5, count=9)
    sheet = pixels("e.png")
    assert sheet.shape[1] == LARGER * (10 * 8 + 2)
    below = sheet[-LARGER * 6 :]
    assert (below[:, : LARGER * 18] == 255).all()
    assert (below[:, LARGER * 18 : LARGER * 24] < 255).mean() > 0.3
    assert (below[:, LARGER * 24 :] == 255).all()


@pytest.mark.needs("torch")
def test_on_torch(here, model):
    """torch gives NumPy's results, to rounding, where no derivative is taken."""
    write("p.png")
    for task in (["--upscale", 2], ["--strength", 0.5]):
        found, wanted = (edit(model, *task, "--backend", on) for on in ("torch", "numpy"))
        np.testing.assert_allclose(np.hstack(found), np.hstack(wanted), atol=1)
    for method in ("pigdm", "mmps", "dps"):  # torch's own derivative
        edit(model, "--upscale", 2, "--method", method, "--backend", "torch")


def test_help_lists_methods(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run("edit", "--help")
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert all(f"{name}," in shown for name in METHODS)
    assert "white where it is filled in and black where it is kept" in shown


@pytest.mark.slow
def test_without_torch(here, model):
    """A process without torch draws the same picture, by a method that takes derivatives too."""
    write("p.png", 2, 3)
    rest = ["edit", "p.png", "--model", model, "--steps", "2", "--upscale", "2"]
    rest += ["--method", "pigdm", "--out"]
    ran = subprocess.run([sys.executable, "-c", NO_TORCH, *rest, "a.png"], capture_output=True)
    assert ran.returncode == 0, ran.stderr
    run(*rest, "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_not_finite(here, model, capsys, monkeypatch):
    """Weights that give NaN are an error that names the method; nothing is written."""
    write("p.png", 2, 3)
    checkpoint = tiny()
    checkpoint.params["conv_out.weight"][:] = np.nan
    monkeypatch.setattr("ddpm_core.cli.edit.load", lambda path: checkpoint)
    message = fails(capsys, "edit", "p.png", "--upscale", 2)
    assert "repaint, 20 steps gives numbers that are not finite" in message
    assert not Path("edited.png").exists()


VARY = ["--strength", "0.5"]
BAD = {
    "no task": ([], "pass one of --mask, --strength, --upscale and --grey"),
    "strength 0": (["--strength", "0"], "above 0 and at most 1, but is 0"),
    "factor": (["--upscale", "3"], "--upscale 3 does not divide the model's 6 x 4 pixels"),
    "factor 1": (["--upscale", "1"], "Invalid value for '--upscale'"),
    "grey": (["--grey"], "this model's images are grey"),
    "channels": ([*VARY, "--model", "four.safetensors"], "this model's images have 4"),
    "no mask": (["--mask", "no.png"], "no.png: No such file"),
    "mask's size": (["--mask", "large.png"], "large.png has 7 x 5 pixels, but p.png 6 x 4: a mask"),
    "black": (["--mask", "black.png"], "black.png fills in nothing: white is filled in, black is"),
    "white": (["--mask", "p.png"], "p.png keeps nothing: white is filled in, black is kept"),
    "method": (["--upscale", "2", "--method", "best"], "no method 'best'; there are repaint, ddrm"),
    "method of none": ([*VARY, "--method", "ddnm"], "--method and --noise-std go with --mask"),
    "sampler": ([*VARY, "--sampler", "best"], "no sampler 'best'"),
    "kernel": (["--upscale", "2", "--sampler", "ddim"], "repaint steps by a kernel of its own"),
    "noise": (["--upscale", "2", "--method", "ddrm", "--noise-std", "-1"], "at least 0, but is -1"),
    "guidance": ([*VARY, "--guidance", "2"], "--classes asks for none"),
    "never": ([*VARY, "--model", "never.safetensors"], "never trained without a class"),
    "steps": ([*VARY, "--steps", "101"], "--steps must be at most 100"),
    "count": ([*VARY, "--count", "1000000"], "a smaller --count would do"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_edit(here, model, capsys, arguments, message):
    """Each mistake is answered in one line that names it; no picture, no temporary file."""
    write("p.png")
    write("large.png", 5, 7)
    Image.new("L", (6, 4)).save("black.png")
    save("four.safetensors", mild(4))
    save("never.safetensors", tiny(unconditional=False))
    before = set(here.rglob("*"))
    assert re.search(message, fails(capsys, "edit", "p.png", "--model", model, *arguments))
    assert set(here.rglob("*")) == before


def test_bad_picture(here, capsys):
    """A file that is no picture, a truncated one, and a folder."""
    Path("junk.png").write_bytes(b"junk")
    write("p.png", 99, 99)
    Path("cut.png").write_bytes(Path("p.png").read_bytes()[:999])
    for name, said in (("junk.png", "(is not one of PNG"), ("cut.png", "("), (".", "(. is not a")):
        assert f"{name} cannot be read as a picture {said}" in fails(capsys, "edit", name, *VARY)
