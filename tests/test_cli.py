"""The command line: what it writes, and that bad input is one line and status 2."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers import COMMAND, executable, fails, pixels, run
from PIL import Image

import ddpm_core as ddpm
from ddpm_core.checkpoints import Checkpoint, load, save
from ddpm_core.cli import pictures
from ddpm_core.cli.sample import SAMPLERS, draw, parse_classes
from ddpm_core.nn import UNetConfig, initialise, parameter_shapes

#: Of float32 in another order of sums: eps, over alpha = 0.006 at the first level, ten layers.
ROUNDING = 10 * np.finfo(np.float32).eps / 0.006
#: Samplers that do not multiply a difference by k = σ / α, 220 at the first level, once more.
STEADY = ["dpmpp_2m", "ddim", "ancestral", "unipc_2", "sde_dpmpp_3m"]
LABELS = ("cat", "dog", "2")  # the last is a name, not the number of itself


def tiny(**changes) -> Checkpoint:
    """A network of random weights, so that its pictures depend on all that they should."""
    config = UNetConfig(channels=1, out_channels=1, widths=(8, 8), blocks=1, groups=4, classes=3)
    config = changes.pop("config", config)
    rng = np.random.default_rng(0)
    params = initialise(config, rng)
    for name, shape in parameter_shapes(config).items():
        if any(part in name for part in ("conv2", "conv_out", "class_embedding")):  # begin near 0
            params[name] = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    schedule = ddpm.linear(100, rescale=True)
    return Checkpoint(
        **{"params": params, "config": config, "schedule": schedule, "size": (4, 6)}
        | {"labels": LABELS}
        | changes
    )


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(path, tiny())
    return path


@pytest.fixture(autouse=True)
def one_thread_of_processes(one_thread, monkeypatch):
    """And in those that tests start."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sample(model: Path, *arguments: object, out: str = "s.png") -> np.ndarray:
    run("sample", "--model", model, "--steps", 2, "--grid", "1x3", "--out", out, *arguments)
    return pixels(out)


# sample. ------------------------------------------------------------------------------------------


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
    assert len(found) == 4
    np.testing.assert_array_equal(found[0], noise(0, (5, 1, 4, 6)))
    np.testing.assert_allclose(found[-1], wanted, rtol=0, atol=ROUNDING)


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


@pytest.mark.parametrize("name", STEADY)
def test_backends_draw_the_same(name):
    """NumPy and torch give the bundled model's images alike, to 1e-3."""
    checkpoint = load(ddpm_models()["fashion-mnist"])
    solver, y = SAMPLERS[name](checkpoint.schedule, 3), np.array([7, -1])
    images = [
        draw(checkpoint, ddpm.backend(on), solver, 2, y, 0, 2, quiet=True)[-1]
        for on in ("numpy", "torch")
    ]
    np.testing.assert_allclose(*images, rtol=0, atol=1e-3)


def ddpm_models() -> dict[str, Path]:
    from ddpm_core.models import bundled

    return bundled()


def test_classes(here, model):
    """Classes go by name, number or none, in turn; a name comes before a number."""
    checkpoint = load(model)

    def parsed(text: str | None) -> list[int]:
        return parse_classes(text, checkpoint, 4).tolist()

    assert parsed(None) == [0, 1, 2, 0]
    assert parsed("dog") == [1, 1, 1, 1]
    assert parsed("DOG, cat") == [1, 0, 1, 0]
    assert parsed("0,none,1") == [0, -1, 1, 0]
    swapped = tiny(labels=("2", "0", "1"))
    assert parse_classes("2,0,1", swapped, 3).tolist() == [0, 1, 2]
    unnamed = tiny(labels=())
    assert parse_classes("2,0", unnamed, 2).tolist() == [2, 0]

    pictures = [sample(model, "--classes", text) for text in ("cat", "dog", "none")]
    assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i])


def test_gif_is_the_process(here, model):
    """A GIF has a frame per state, steps + 1, and ends with the picture."""
    found = sample(model, "--gif", "process.gif", "--steps", 4)
    with Image.open("process.gif") as gif:
        assert gif.n_frames == 5
        gif.seek(4)
        # A GIF of grey levels has a palette of 256: exact.
        np.testing.assert_array_equal(np.asarray(gif.convert("L")), found)
        gif.seek(0)
        assert (np.asarray(gif.convert("L")) != found).mean() > 0.1


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


# Bad input: one line, status 2, nothing written. --------------------------------------------------

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
    "class": (["--classes", "cat,cow"], "no class 'cow'; there are cat, dog, 2"),
    "class number": (["--classes", "3"], "no class '3'"),
    "no classes": (["--model", "plain.safetensors", "--classes", "cat"], "has no classes"),
    "sampler": (["--sampler", "ddpm"], "no sampler 'ddpm'; there are dpmpp_2m, dpmpp_3m, dpmpp_2s"),
    "steps 0": (["--steps", "0"], "steps"),
    "steps > T": (["--steps", "101"], "steps"),
    "steps text": (["--steps", "two"], "Invalid value for '--steps'.*see --help"),
    "seed": (["--seed", "-1"], "seed must lie within"),
    "seed large": (["--seed", str(2**64)], "seed must lie within"),
    "seed text": (["--seed", "x"], "Invalid value for '--seed'"),
    "batch": (["--batch", "0"], "--batch must be at least 1, but is 0"),
    "scale": (["--scale", "0"], "--scale must be at least 1, but is 0"),
    "out folder": (["--out", "none/s.png"], "no folder none to write s.png in"),
    "out is a folder": (["--out", "folder.png"], "folder.png is a folder"),
    "out suffix": (["--out", "s.jpg"], "s.jpg must end in .png"),
    "gif suffix": (["--gif", "s.png"], "s.png must end in .gif"),
    "gif folder": (["--gif", "none/s.gif"], "no folder none"),
    "backend": (["--backend", "tf"], "no backend 'tf'; there are cupy, jax, numpy, torch"),
    "device": (["--device", "cuda"], "NumPy has no device 'cuda'"),
    "torch device": (["--backend", "torch", "--device", "no"], "torch cannot use device 'no'"),
    "option": (["--colour"], "No such option"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_bad_sample(here, model, capsys, arguments, message):
    """Each mistake is answered in one line that names it; no picture, no temporary file."""
    import re

    from safetensors.numpy import save as to_bytes

    data = model.read_bytes()
    Path("cut.safetensors").write_bytes(data[: len(data) // 2])
    Path("pickle.pt").write_bytes(b"\x80\x04K\x01.")
    Path("foreign.safetensors").write_bytes(to_bytes({"w": np.zeros(2)}))
    Path("folder.png").mkdir()
    save("odd.safetensors", tiny(size=(5, 6)))
    save("zero.safetensors", tiny(schedule=ddpm.zero_terminal_snr(ddpm.linear())))
    good = tiny()
    with mock.patch("ddpm_core.checkpoints.own.check_names"):  # `save` would refuse it
        save("shape.safetensors", tiny(params=good.params | {"conv_out.bias": np.zeros(2)}))
    plain = UNetConfig(channels=1, out_channels=1, widths=(4,), groups=4, attention=())
    save("plain.safetensors", tiny(config=plain, labels=()))
    before = set(here.rglob("*"))
    options = ["--model", model, "--grid", "1x1", "--steps", 2, *arguments]
    assert re.search(message, fails(capsys, "sample", *options))
    assert set(here.rglob("*")) == before


def test_no_command(capsys):
    """An unknown command is refused; none at all shows the help."""
    assert "No such command 'paint'" in fails(capsys, "paint")
    run("--help")
    shown = capsys.readouterr().out
    run()
    assert capsys.readouterr().out == shown
    assert all(name in shown for name in ("sample", "train", "info"))


def test_executable(tmp_path, model):
    """The installed command samples; a mistake is one line on stderr and status 2."""
    good = executable(
        "sample", "--model", model, "--grid", "1x2", "--steps", 1, "--seed", 3, cwd=tmp_path
    )
    assert good.returncode == 0
    told = f"2 images of {model}, dpmpp_2m, 1 steps, 1 network calls."
    assert good.stdout == f"Wrote samples.png: {told}\n"
    assert pixels(tmp_path / "samples.png").shape == (2 * (4 + 2 * 2), 2 * (2 * 6 + 3 * 2))
    bad = executable("sample", "--model", "none", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert (
        bad.stderr
        == "ddpm-core: no model 'none': neither a file, nor a folder, nor one of fashion-mnist\n"
    )


def test_no_space_left(tmp_path, model):
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


# info. --------------------------------------------------------------------------------------------


def test_info(capsys, monkeypatch):
    """`info` lists versions, the backends of this environment and the bundled models."""
    monkeypatch.setenv("COLUMNS", "200")
    run("info")
    shown = capsys.readouterr().out
    assert f"ddpm-core {ddpm.__version__}" in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert f"{np.__version__} on cpu" in lines["numpy"]
    assert "on cpu" in lines["torch"]
    model = load(ddpm_models()["fashion-mnist"])
    count = sum(p.size for p in model.params.values())
    assert "28x28x1, 10 classes" in lines["fashion-mnist"]
    assert f"{count:,}" in lines["fashion-mnist"]


def test_command_is_installed():
    """The console script lies beside this Python."""
    assert shutil.which("ddpm-core", path=str(COMMAND.parent))


def test_info_survives(monkeypatch, capsys):
    """A backend of another package that cannot be made hides no other."""
    from importlib.metadata import EntryPoint

    from ddpm_core import backends

    # int takes no device=.
    found = backends.discover() | {"bad": EntryPoint("bad", "builtins:int", backends.GROUP)}
    monkeypatch.setattr("ddpm_core.cli.info.discover", lambda: found)
    monkeypatch.setattr(backends, "discover", lambda: found)
    run("info")
    shown = capsys.readouterr().out
    assert re.search(r"^bad +cannot be made: TypeError", shown, re.MULTILINE)
    assert re.search(r"^numpy +\d", shown, re.MULTILINE)
    assert "fashion-mnist" in shown


def test_info_says_what_installs(monkeypatch, capsys):
    """A backend whose library is missing is shown with the whole line that installs it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("ddpm_core_torch")]:
        monkeypatch.delitem(sys.modules, name)
    run("info")
    said = " ".join(capsys.readouterr().out.split())
    assert "backend 'torch' needs torch: pip install 'ddpm-core[torch]'" in said
