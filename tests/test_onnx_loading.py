"""`ddpm-core export`, and `load` of what it wrote or of what became of that."""

from __future__ import annotations

import random
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from command import fails, run, sample
from onnx_files import batch, checkpoint, runner

import ddpm_core as ddpm
from ddpm_core.checkpoints import load

onnx = pytest.importorskip("onnx")
pytest.importorskip("ndonnx")

from ddpm_core_onnx import export_network  # noqa: E402


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to be in, with a small model in it."""
    monkeypatch.chdir(tmp_path)
    ddpm.save("model.safetensors", small())
    return tmp_path


def small():
    return checkpoint(labels=("cat", "dog", "eel", "fox", "gnu"), notes={"trained": "never"})


def same(found, wanted) -> None:
    """All of two checkpoints but the values of their weights."""
    fields = ("config", "schedule", "size", "predicts", "labels", "timestep_scale", "notes")
    assert [getattr(found, name) for name in fields] == [getattr(wanted, name) for name in fields]
    assert found.params.keys() == wanted.params.keys()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_there_and_back(folder, dtype):
    """float32 comes back to the bit, float16 as rounded, int8 within half a step of a row."""
    of = small()
    Path("m.onnx").write_bytes(export_network(of, dtype))
    found = load("m.onnx")
    same(found, of)
    for name, p in found.params.items():
        wanted = of.params[name]
        if dtype == "int8" and p.ndim > 1:
            step = np.abs(wanted).max(axis=tuple(range(1, p.ndim)), keepdims=True) / 127
            assert (np.abs(p - wanted) <= step * (0.5 + 1e-4)).all()
        else:
            rounded = wanted.astype("float16" if dtype == "float16" else "float32")
            np.testing.assert_array_equal(p, rounded.astype(np.float32), strict=True)


def test_the_suffix_in_capitals(folder):
    """`export` writes such a file, and so it is read."""
    Path("m.ONNX").write_bytes(export_network(small()))
    same(load("m.ONNX"), small())


@pytest.mark.slow
def test_a_model_in_a_file_of_onnx(folder, capsys):
    """The commands take it like any other; a sampler's file has its network's weights as well."""
    run("export", "model.safetensors", "--out", "m.onnx")
    assert "Wrote m.onnx: the network of model.safetensors, " in capsys.readouterr().out
    given = batch(small(), 2)
    np.testing.assert_array_equal(
        runner(Path("m.onnx").read_bytes())(given), runner(exported())(given)
    )
    wanted = sample(folder / "model.safetensors")
    np.testing.assert_array_equal(sample(folder / "m.onnx"), wanted)
    run("info", "m.onnx")
    assert "12x8" not in (shown := capsys.readouterr().out)
    assert "8x12x1, 5 classes" in shown
    options = ["--sampler", "dpmpp_2m", "--steps", 2, "--guidance", 2, "--float16"]
    run("export", "model.safetensors", "--out", "s.onnx", *options)
    said = capsys.readouterr().out
    assert "Wrote s.onnx: dpmpp_2m, 2 steps, of model.safetensors, " in said
    assert " in float16, " in said
    same(load("s.onnx"), small())
    images = runner(Path("s.onnx").read_bytes())(
        {"seed": np.asarray(5), "ids": np.arange(3), "y": np.zeros(3, np.int64)}
    )
    drawn = sample(folder / "s.onnx", "--guidance", 2, "--seed", 5, "--scale", 1)
    found = np.rint(np.concatenate(list(images[:, 0]), axis=1) * 127.5 + 127.5)
    assert np.abs(inside(drawn, found.shape) - found).max() <= 1


def inside(sheet: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The pictures of a sheet of one row, which has a pixel between them."""
    height, width = shape[0], shape[1] // 3
    gaps = (sheet.shape[1] - 3 * width) // 4
    parts = [sheet[gaps : gaps + height, (gaps + width) * i + gaps :][:, :width] for i in range(3)]
    return np.concatenate(parts, axis=1)


def test_the_error_of_int8_is_stated(folder, capsys):
    """In per cent, as the exported file has it on noise."""
    run("export", "model.safetensors", "--out", "m.onnx", "--int8")
    (share,) = (w for w in capsys.readouterr().out.split() if w.endswith("%"))
    noise = ddpm.portable_noise(0)(0, (8, 1, 8, 12))
    y = np.arange(8) % 5
    given = {"x": noise, "timestep": np.linspace(0, 999, 8, dtype=np.float32), "y": y}
    wanted = runner(exported())(given)
    off = runner(Path("m.onnx").read_bytes())(given) - wanted
    assert 100 * np.std(off) > 0.1
    found = 100 * np.sqrt((off**2).mean() / (wanted**2).mean())
    assert abs(float(share.rstrip("%")) - found) < 0.006


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "m.png"], "m.png must end in .onnx"),
        (["--out", "none/m.onnx"], "there is no folder none to write m.onnx in"),
        (["--out", "m.onnx", "--int8", "--float16"], "--float16 and --int8 are two ways"),
        (["--out", "m.onnx", "--steps", 2], "--steps and --guidance are of a sampler"),
        (["--out", "m.onnx", "--sampler", "x"], "no sampler 'x'; there are dpmpp_2m, "),
        (["--out", "m.onnx", "--sampler", "ddim", "--steps", 1001], "--steps must be at most 1000"),
        (["--out", "m.onnx", "--sampler", "ddim", "--guidance", "nan"], "--guidance must be a fin"),
    ],
)
def test_wrong_options(folder, capsys, words, message):
    """One line, exit status 2, and no file."""
    assert message in fails(capsys, "export", "model.safetensors", *words)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


def test_without_the_libraries(folder, capsys, monkeypatch):
    """Without onnx there is no reading, without ndonnx no writing: the line that installs them."""
    Path("m.onnx").write_bytes(exported())
    monkeypatch.setitem(sys.modules, "onnx", None)
    advice = "pip install 'ddpm-core[onnx]'"
    assert f"m.onnx needs onnx to be read: {advice}" in fails(capsys, "info", "m.onnx")
    for module in [m for m in sys.modules if m.split(".")[0] == "ddpm_core_onnx"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ndonnx", None)
    words = ["export", "model.safetensors", "--out", "x.onnx"]
    assert f"export needs ndonnx: {advice}" in fails(capsys, *words)


@cache
def exported() -> bytes:
    return export_network(small())


def changed(change) -> bytes:
    """A file of ONNX whose model is changed."""
    model = onnx.load_from_string(exported())
    change(model)
    return model.SerializeToString()


def initialiser(model, name: str = "conv_in.bias"):
    return next(each for each in model.graph.initializer if each.name == name)


def doubled(model) -> None:
    model.graph.initializer.append(initialiser(model))


def external(model) -> None:
    each = initialiser(model)
    each.ClearField("raw_data")
    each.data_location = onnx.TensorProto.EXTERNAL
    entry = each.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def set_to(**fields):
    def change(model) -> None:
        for name, value in fields.items():
            setattr(initialiser(model), name, value)

    return change


def shaped(*shape: int):
    return lambda model: initialiser(model).dims.__setitem__(slice(None), shape)


def numbers(value: np.ndarray):
    def change(model) -> None:
        initialiser(model).CopyFrom(onnx.numpy_helper.from_array(value, "conv_in.bias"))

    return change


HARM = {
    "no metadata": (lambda m: m.ClearField("metadata_props"), "not written by ddpm-core export"),
    "no graph": (lambda m: m.ClearField("graph"), "missing: class_embedding.weight, "),
    "twice": (doubled, "conv_in.bias is there twice, or is no name"),
    "external": (external, "conv_in.bias has no numbers of float32, float16 or int8 in the file"),
    "double": (numbers(np.zeros(8)), "conv_in.bias has no numbers of float32"),
    "short": (set_to(raw_data=b"abc"), "conv_in.bias has other numbers than its shape asks for"),
    "claims": (shaped(2**40, 2**40), "conv_in.bias has other numbers than its shape"),
    "negative": (shaped(-2, -4), "conv_in.bias has other numbers than its shape"),
    "axes": (shaped(*[1] * 70, 8), "conv_in.bias has other numbers than its shape"),
    "shape": (shaped(2, 4), "1 of a wrong shape: conv_in.bias (2, 4) for (8,)"),
    "NaN": (numbers(np.full(8, np.nan, np.float32)), "not finite numbers, in conv_in.bias"),
    "int8": (numbers(np.zeros(8, np.int8)), "conv_in.bias is of int8, without a scale"),
    "name": (set_to(name="x" * 10**5), "1 missing: conv_in.bias; 1 unexpected: xxx"),
}


@pytest.mark.parametrize("name", HARM)
def test_files_that_mean_harm(folder, name):
    """Each is refused in a line with the file and what is wrong in it."""
    change, message = HARM[name]
    Path("m.onnx").write_bytes(changed(change))
    with pytest.raises(ValueError, match=r"\Am\.onnx[^\n]{1,400}\Z") as caught:
        load("m.onnx")
    assert message in str(caught.value)


@pytest.mark.slow
def test_cut_and_flipped(folder):
    """A file that was cut off, or in which bytes changed: one line, or a sound network."""
    whole, rng = export_network(small(), "int8"), random.Random(0)
    survived, refused = 0, []
    for i in range(200):
        data = bytearray(whole)
        if i % 2:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.choice([0, 255, rng.randrange(256)])
        Path("m.onnx").write_bytes(data)
        try:
            found = load("m.onnx")
        except ValueError as error:
            refused.append(str(error))
        else:
            assert i % 2 == 0
            assert all(np.isfinite(p).all() for p in found.params.values())
            survived += 1
    assert 0 < survived < 100
    assert all(re.fullmatch(r"m\.onnx[^\n]{1,400}", line) for line in refused)
