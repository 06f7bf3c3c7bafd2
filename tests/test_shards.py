"""`sample --shards`: the images of --out in files of many, that are whole, taken up or refused."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
from command import fails, mild, pixels, run
from PIL import Image

from ddpm_core.checkpoints import save
from ddpm_core.cli.shards import usual_size

pytest_plugins = "command_fixtures"
pytestmark = pytest.mark.usefixtures("one_thread_of_processes")

TORCH = pytest.param("torch", marks=[pytest.mark.needs("torch"), pytest.mark.slow])
ONNX = pytest.param("onnx", marks=[pytest.mark.needs("ndonnx", "onnxruntime"), pytest.mark.slow])
WORDS = "sample --steps 2 --batch 4 --out-dir d --model"


@pytest.fixture
def words(here, model) -> list[object]:
    return [*WORDS.split(), model]


def files(folder: str = "d") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def arrays(folder: str = "d") -> dict[str, np.ndarray]:
    """Those of the .npz files of a folder, one after the other in the order of their names."""
    found = [np.load(path) for path in sorted(Path(folder).glob("*.npz"))]
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_shards_hold_what_one_file_holds(words, size):
    """Whatever their size, and the batch."""
    run(*words[:5], "--ids", "2:15", "--out", "one.npz", *words[7:])
    run(*words, "--ids", "2:15", "--shards", "npz", "--shard-size", size)
    one, found = np.load("one.npz"), arrays()
    assert sorted(found) == sorted(one) == ["classes", "ids", "images"]
    for name, array in found.items():
        np.testing.assert_array_equal(array, one[name])
    spans = [sorted({i for i in range(2, 15) if i // size == k}) for k in range(15)]
    names = {f"{span[0]:08}-{span[-1]:08}.npz" for span in spans if span}
    assert set(files()) == {"samples.json", *names}


@pytest.mark.parametrize("kind", ["npz", "tar"])
def test_commands_of_a_job_array_write_the_shards_of_one(words, kind):
    """The same files, byte for byte."""
    words += ["--shards", kind, "--shard-size", 4]
    run(*words, "--count", 11)
    one = files()
    words[6] = "e"
    for ids in ("8:11", "0:4", "4:8"):
        run(*words, "--ids", ids)
    assert files("e") == one


@pytest.mark.parametrize("on", ["numpy", TORCH, ONNX])
def test_processes_write_the_shards_of_one(words, monkeypatch, capsys, on):
    """To the bit, also where shards do not fit batches, and where one process is slow."""
    if on == "onnx":
        chosen = itertools.count()
        monkeypatch.setattr("ddpm_core_onnx.backend.fastest", lambda *_: next(chosen) % 2)
    words += ["--shards", "npz", "--dtype", "float32", "--count", 11, "--backend", on]
    run(*words, "--shard-size", 11)
    one = arrays()
    words[6] = "e"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, count in enumerate((2, 4)):
        monkeypatch.setenv("RANK", str(rank))
        run(*words, "--shard-size", 3)
        assert len(list(Path("e").glob("*.npz"))) == count
    assert "Wrote 2 shards in e, the share of one of 2 processes: 11" in capsys.readouterr().out
    for name, array in arrays("e").items():
        np.testing.assert_array_equal(array, one[name])


@pytest.mark.parametrize("channels", [1, 3])
def test_float32_is_what_is_rounded_to_uint8(here, channels):
    save("mild.safetensors", mild(channels))
    words = ["sample", "--model", "mild.safetensors", "--steps", 2, "--count", 5]
    for out, written in (
        ("--out-dir {} --shards npz", "{}/00000000-00000004.npz"),
        ("--out {}.npz", "{}.npz"),
    ):
        drawn = {}
        for dtype in ("uint8", "float32"):
            run(*words, *out.format(dtype).split(), "--dtype", dtype)
            drawn[dtype] = np.load(written.format(dtype))["images"]
        exact, rounded = drawn["float32"], drawn["uint8"] / 127.5 - 1
        assert exact.dtype == np.float32
        assert np.abs(exact).max() <= 1
        assert 0.5 / 127.5 + 1e-6 > np.abs(exact - rounded).max() > 0.25 / 127.5


def test_a_tar_has_the_pictures_of_a_folder(words):
    """And the classes beside them; it holds nothing of when and where it was made."""
    words += ["--count", 6, "--classes", "cat,none,2"]
    run(*words, "--shards", "tar", "--shard-size", 4)
    words[6] = "e"
    run(*words)
    names, y = [], [0, -1, 2]
    for path in sorted(Path("d").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                names.append(member.name)
                data = archive.extractfile(member).read()
                stem, _, suffix = member.name.partition(".")
                if suffix == "png":
                    assert data == Path(f"e/{stem}.png").read_bytes()
                    picture = np.asarray(Image.open(io.BytesIO(data)))
                    np.testing.assert_array_equal(picture, pixels(f"e/{stem}.png"))
                else:
                    assert int(data) == y[int(stem) % 3]
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                assert member.uname == member.gname == ""
    assert names == [f"{i:08}.{suffix}" for i in range(6) for suffix in ("png", "cls")]


def test_a_tar_without_classes(here):
    save("mild.safetensors", mild(3))
    run("sample", "--model", "mild.safetensors", "--steps", 1, "--count", 1, "--out-dir", "d",
        "--shards", "tar")  # fmt: skip
    with tarfile.open("d/00000000-00000000.tar") as archive:
        assert archive.getnames() == ["00000000.png"]


@pytest.mark.parametrize("kind", ["npz", "tar"])
def test_resume_draws_shards_that_are_not_whole(words, capsys, kind):
    """One that lacks, those that were cut short, an .npz of other images; and no other."""
    words += ["--shards", kind, "--shard-size", 2, "--count", 11]
    run(*words)
    whole, names = files(), [f"{i:08}-{min(i + 1, 10):08}.{kind}" for i in range(0, 11, 2)]
    assert set(whole) == {*names, "samples.json"}
    assert "d has 6 of these shards already; pass --resume" in fails(capsys, *words)
    Path("d", names[0]).unlink()
    Path("d", names[1]).write_bytes(whole[names[1]][:-9])
    Path("d", names[2]).write_bytes(whole[names[5]] if kind == "npz" else whole[names[2]][:1100])
    Path("d", names[3]).write_bytes(b"")
    kept = Path("d", names[4]).stat()
    capsys.readouterr()
    run(*words, "--resume")
    assert "Wrote 4 shards in d, where 2 were already: 11 images" in capsys.readouterr().out
    assert files() == whole
    assert Path("d", names[4]).stat() == kept


def test_other_shards_are_refused(words, capsys):
    """Those of other settings, and those that would hold an image twice."""
    words += ["--resume"]
    shards = ["--shards", "npz", "--shard-size", 4]
    run(*words, *shards, "--ids", "2:10")
    before = files()
    for other, said in (
        (["--shards", "tar"], "d holds samples of shards npz, not tar"),
        ([], "d holds samples of shards npz, not None"),
        ([*shards, "--dtype", "float32"], "d holds samples of dtype uint8, not float32"),
        ([*shards, "--seed", "1"], "d holds samples of seed 0, not 1"),
    ):
        assert said in fails(capsys, *words, *other, "--ids", "12:16")
    for other, twice in (
        ([*shards, "--ids", "0:4"], "00000002-00000003.npz"),
        ([*shards, "--ids", "9:11"], "00000008-00000009.npz"),
        (["--shards", "npz", "--ids", "5:7"], "00000004-00000007.npz"),
    ):
        said = f"d has {twice}, and would have some of its images twice"
        assert said in fails(capsys, *words, *other)
    assert files() == before
    run(*words, *shards, "--ids", "10:13")
    assert arrays()["ids"].tolist() == list(range(2, 13))
    Path("d/samples.json").unlink()
    said = fails(capsys, *words, *shards, "--ids", "10:13")
    assert "d has some of these shards, but no samples.json" in said


@pytest.mark.parametrize(
    ("image", "size"),
    [(28 * 28, 8192), (3 * 256**2, 256), (12207, 8192), (12208, 4096), (10**8, 1), (10**9, 1)],
)
def test_usual_size(image, size):
    """At most 8192 images, and 100 MB unless one image has more; twice as many would be more."""
    assert usual_size(image) == size
    assert size == 1 or size * image <= 10**8
    assert size == 8192 or 2 * size * image > 10**8
