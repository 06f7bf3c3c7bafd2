"""The command line: what it writes, and that bad input is one line and status 2."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import ddpm_core as ddpm
from ddpm_core.checkpoints import Checkpoint, load, save
from ddpm_core.cli import app, main, pictures
from ddpm_core.cli.sample import SAMPLERS, draw, parse_classes
from ddpm_core.nn import UNetConfig, initialise, parameter_shapes

#: Of float32 in another order of sums: eps, over alpha = 0.006 at the first level, ten layers.
ROUNDING = 10 * np.finfo(np.float32).eps / 0.006
#: Samplers that do not multiply a difference by k = σ / α, 220 at the first level, once more.
STEADY = ["dpmpp_2m", "ddim", "ancestral", "unipc_2", "sde_dpmpp_3m"]
COMMAND = Path(sys.executable).with_name("ddpm-core")
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


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Eight small pictures in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(8):
        place = folder / ("cat" if i % 2 else "dog") / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(place)
    return folder


@pytest.fixture(autouse=True)
def one_thread_of_processes(one_thread, monkeypatch):
    """And in those that tests start."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened)


def run(*arguments: object) -> None:
    assert app.run([str(a) for a in arguments]) == 0


def sample(model: Path, *arguments: object, out: str = "s.png") -> np.ndarray:
    run("sample", "--model", model, "--steps", 2, "--grid", "1x3", "--out", out, *arguments)
    return pixels(out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs `main`, which must say one line on stderr and exit with 2; returns the line."""
    capsys.readouterr()
    before = sys.argv
    sys.argv = ["ddpm-core", *(str(a) for a in arguments)]
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert err.startswith("ddpm-core: ")
    assert err.count("\n") == 1
    assert out == ""
    return err


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


LIMITED = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def executable(*arguments: object, cwd: Path, limit: int | None = None):
    """The installed command, as a user runs it; limit: of the size of a file, in bytes."""
    limited = [] if limit is None else [sys.executable, "-c", LIMITED, str(limit)]
    return subprocess.run(
        [*limited, COMMAND, *(str(a) for a in arguments)], cwd=cwd, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"},
    )  # fmt: skip


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


# train. -------------------------------------------------------------------------------------------

SMALL = ["--widths", "8,8", "--groups", 4, "--blocks", 1, "--attention", "", "--batch", 4]


def test_train_pictures(here, photos, capsys):
    """Training on folders of pictures leaves a model of their classes that samples, and resumes."""
    options = ["train", "--data", photos, "--out", "run", "--size", 8, *SMALL]
    run(*options, "--steps", 3, "--save-every", 2)
    trained = load("run/model.safetensors")
    assert (trained.labels, trained.size, trained.config.channels) == (("cat", "dog"), (8, 8), 3)
    assert trained.notes["trained"] == "3 steps of 4"
    assert pixels("run/samples.png").shape == (2 * (4 * 8 + 5 * 2),) * 2 + (3,)
    assert sample(Path("run/model.safetensors"), "--classes", "dog,none").shape[-1] == 3

    assert "run holds a run already; pass --resume" in fails(capsys, *options, "--steps", 5)
    assert "another recipe" in fails(capsys, *options, "--steps", 5, "--resume", "--lr", 1)
    assert "another schedule" in fails(capsys, *options, "--resume", "--T", 50)
    run(*options, "--steps", 5, "--resume")
    resumed = load("run/model.safetensors")
    run(*[*options[:4], "through", *options[5:]], "--steps", 5)
    through = load("through/model.safetensors")
    assert resumed.notes["trained"] == through.notes["trained"] == "5 steps of 4"
    for name, value in through.params.items():
        np.testing.assert_array_equal(resumed.params[name], value)
    found = sorted(p.name for p in Path("run").iterdir())
    assert found == ["model.safetensors", "samples.png", "training.safetensors"]


def test_train_npz(here):
    """Training takes an .npz, without its classes if asked, with each schedule and target."""
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    np.savez("a.npz", images=images, classes=np.arange(6) % 2)
    options = ["train", "--data", "a.npz", "--steps", 1, *SMALL]
    run(*options, "--out", "a", "--schedule", "cosine", "--T", 50, "--predicts", "v")
    found = load("a/model.safetensors")
    assert (found.schedule, found.predicts) == (ddpm.cosine(50), "v")
    assert (found.config.classes, found.labels, found.size) == (2, ("0", "1"), (4, 4))
    run(*options, "--out", "b", "--unlabelled")
    found = load("b/model.safetensors")
    assert (found.schedule, found.config.classes, found.labels) == (ddpm.linear(), 0, ())


BAD_TRAININGS = {
    "no data": (["--data", "none"], "no data at none"),
    "empty": (["--data", "empty"], "no IDX files and no pictures"),
    "no image": (["--data", "broken"], "broken/a.png is not an image"),
    "T 0": (["--T", 0], "T must be an integer of at least 1, but is 0"),
    "T small": (["--T", 10], "would end at beta = 2: T must be above 20"),
    "schedule": (["--schedule", "quad"], "no schedule 'quad'; there are linear, cosine"),
    "target": (["--predicts", "noise"], "no target 'noise'; there are x0, eps"),
    "precision": (["--precision", "int8"], "--precision must be auto, float32 or bfloat16"),
    "steps": (["--steps", 0], "--steps must be at least 1, but is 0"),
    "save every": (["--save-every", 0], "--save-every must be at least 1, but is 0"),
    "sample every": (["--sample-every", 0], "--sample-every must be at least 1, but is 0"),
    "size 0": (["--size", 0], "--size must be at least 1, but is 0"),
    "size 7": (["--size", 7], "cannot halve; pass --size, a multiple of 2"),
    "no size": (["--size", 9], "multiple of 2"),
    "batch": (["--batch", 9], "8 images do not fill a batch of 9"),
    "batch 0": (["--batch", 0], "batch = 0 is out of range"),
    "lr": (["--lr", 0], "lr = 0.0 is out of range"),
    "seed": (["--seed", -1], "non-negative"),
    "widths": (["--widths", "8,x"], "--widths must be integers"),
    "widths of groups": (["--widths", "9"], "widths must be multiples of groups = 4"),
    "no widths": (["--widths", ""], "widths must be multiples of groups"),
    "attention": (["--attention", "2"], "indices into the 2 widths"),
    "device": (["--device", "nowhere"], "torch cannot use device 'nowhere'"),
    "resume nothing": (["--resume"], "no checkpoint at run/training.safetensors"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_TRAININGS.values(), ids=BAD_TRAININGS)
def test_bad_training(here, photos, capsys, arguments, message):
    """Each mistake is answered in one line before any training; no folder is made."""
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"not a picture")
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 2, *arguments]
    assert message in fails(capsys, "train", *options)
    assert not Path("run").exists()


def test_out_is_a_file(here, photos, capsys):
    """A run cannot be a file, and the file is left alone."""
    Path("run").write_text("mine")
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 2]
    assert "run" in fails(capsys, "train", *options)
    assert Path("run").read_text() == "mine"


def test_diverging(here, photos, capsys):
    """A loss that is not a number stops the run with advice, and saves no such weights."""
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 20]
    before = sys.argv
    sys.argv = ["ddpm-core", "train", *map(str, options), "--lr", "1e30", "--warmup", "0"]
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        sys.argv = before
    assert caught.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert "a smaller --lr may help" in last
    assert list(Path("run").iterdir()) == []


def test_no_space_while_training(tmp_path, photos):
    """With no space left for the state of a run: one line, no half-written file."""
    pytest.importorskip("resource")
    options = ["--data", photos, "--out", "run", "--size", 8, *SMALL, "--steps", 1]
    ran = executable("train", *options, cwd=tmp_path, limit=4000)
    assert ran.returncode == 2
    *_, last = ran.stderr.splitlines()
    assert last == "ddpm-core: run/training.safetensors: File too large"
    assert list((tmp_path / "run").iterdir()) == []


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
