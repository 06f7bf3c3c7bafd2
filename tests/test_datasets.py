"""Reading images: IDX files, folders of pictures, NumPy files, and what is none of them."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_core.cli import progress
from ddpm_core.cli.datasets import pictures, read, to_range

REAL = Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 4, 6), dtype=np.uint8)
CLASSES = np.array([2, 0, 1, 2, 0], dtype=np.uint8)


def idx(a: np.ndarray) -> bytes:
    """The IDX format (yann.lecun.com/exdb/mnist): 0, 0, 8 = bytes, dimensions, sizes, data."""
    return struct.pack(f">4B{a.ndim}I", 0, 0, 8, a.ndim, *a.shape) + a.tobytes()


def idx_folder(folder: Path, images: bytes, classes: bytes, ending: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"train-images-idx3-ubyte{ending}").write_bytes(images)
    (folder / f"train-labels-idx1-ubyte{ending}").write_bytes(classes)
    return folder


def picture(path: Path, a: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path, **options)
    return path


def refused(
    path: Path,
    message: str,
    error: type[Exception] = ValueError,
    where: Path | None = None,
    **options,
) -> None:
    """Reading fails in one line that names the path, or `where` the fault lies."""
    with pytest.raises(error, match=message) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    assert str(where or path) in str(caught.value)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path, zipped):
    """IDX files, plain or zipped, are (N, 1, H, W) in the order of the file."""
    pack = gzip.compress if zipped else bytes
    found = read(
        idx_folder(tmp_path, pack(idx(IMAGES)), pack(idx(CLASSES)), ".gz" if zipped else "")
    )
    np.testing.assert_array_equal(found.images, IMAGES[:, None], strict=True)
    np.testing.assert_array_equal(found.classes, CLASSES)
    assert found.labels == ("0", "1", "2")


def test_idx_other_split(tmp_path):
    """A split that is not there is missed by its name."""
    folder = idx_folder(tmp_path, idx(IMAGES), idx(CLASSES))
    refused(folder, r"has no t10k-images-\*", FileNotFoundError, split="t10k")


def test_idx_file(tmp_path):
    """A file of images is read with its labels beside it, whatever their split is called."""
    folder = idx_folder(tmp_path, gzip.compress(idx(IMAGES)), gzip.compress(idx(CLASSES)), ".gz")
    found = read(folder / "train-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(found.images, IMAGES[:, None], strict=True)
    np.testing.assert_array_equal(found.classes, CLASSES)
    (tmp_path / "my-images.idx").write_bytes(idx(IMAGES[:1]))
    refused(tmp_path / "my-images.idx", "has no my-labels", FileNotFoundError, where=tmp_path)
    (tmp_path / "my-labels.idx").write_bytes(idx(CLASSES[:1]))
    assert read(tmp_path / "my-images.idx").classes.tolist() == [2]


def test_idx_names(tmp_path):
    """Classes are called by the lines of labels.txt, else by number, wherever the files lie."""
    folder = idx_folder(tmp_path / "fashion", idx(IMAGES), idx(np.arange(5, dtype=np.uint8) * 2))
    assert read(folder).labels == tuple("012345678")
    (folder / "labels.txt").write_text("\n".join("abcdefghij") + "\n")
    assert read(folder).labels == tuple("abcdefghij")
    (folder / "labels.txt").write_text("a\nb\n")
    refused(folder, "must name at least 9 classes.*names 2")


def test_idx_truncated(tmp_path):
    """IDX data that is too short, or too long, is refused, at whatever length."""
    whole = idx(IMAGES)
    for data in (b"", whole[:3], whole[:15], whole[:16], whole[:-1], whole + b"\0"):
        refused(idx_folder(tmp_path, data, idx(CLASSES)), "is not an IDX file|is truncated")
    zipped = gzip.compress(whole)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    for data in (zipped[: len(zipped) // 2], zipped[:-1], whole):
        refused(idx_folder(tmp_path, data, b"", ".gz"), "not a gzip file, or is truncated")


def test_idx_wrong_header(tmp_path):
    """Another type of data, another number of dimensions and absurd sizes are refused."""
    floats = struct.pack(">4B3I", 0, 0, 13, 3, *IMAGES.shape) + IMAGES.tobytes()
    for data in (floats, idx(CLASSES), b"\x89PNG" + idx(IMAGES)[4:]):
        refused(idx_folder(tmp_path, data, idx(CLASSES)), "not an IDX file of 3-dimensional")
    for sizes in ((2**31, 2, 3), (6, 4, 6), (0, 28, 28), (5, 0, 0)):
        data = struct.pack(">4B3I", 0, 0, 8, 3, *sizes)
        message = "truncated" if all(sizes) else "has no images"
        refused(idx_folder(tmp_path, data, idx(CLASSES)), message)


def test_idx_mismatch(tmp_path):
    """As many labels as images, or an error with both counts; labels there must be."""
    refused(idx_folder(tmp_path, idx(IMAGES), idx(CLASSES[:4])), "5 train images but 4 labels")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    refused(tmp_path, r"has no train-labels", FileNotFoundError)


@pytest.mark.slow
def test_fashion_mnist():
    """Fashion-MNIST itself: 60,000 and 10,000 images, balanced, of known mean and deviation."""
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not there (Debian: dataset-fashion-mnist)")
    train, test = read(REAL), read(REAL, split="t10k")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.labels == test.labels == tuple("0123456789")
    np.testing.assert_array_equal(np.bincount(train.classes), np.full(10, 6000))
    np.testing.assert_array_equal(np.bincount(test.classes), np.full(10, 1000))
    # Mean and deviation of the training pixels: 0.2860 and 0.3530 of 255, which are the numbers
    # in the issues and examples of github.com/zalandoresearch/fashion-mnist.
    assert train.images.mean() == pytest.approx(72.94, abs=0.005)
    assert train.images.std() == pytest.approx(90.02, abs=0.005)


def test_grey_pictures(tmp_path):
    """Grey pictures are one channel, in the order of their names, without classes."""
    for i in (1, 0, 2):
        picture(tmp_path / f"{i}.PNG", IMAGES[i])
    found = read(tmp_path)
    np.testing.assert_array_equal(found.images, IMAGES[:3, None], strict=True)
    assert (found.classes, found.labels) == (None, ())


def test_mixed_pictures(tmp_path):
    """One picture in colour makes all three-channel; grey ones have three equal channels."""
    colour = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    alpha = np.concatenate([colour, np.full((4, 6, 1), 255, np.uint8)], axis=-1)
    picture(tmp_path / "a.png", IMAGES[0])
    picture(tmp_path / "b.png", colour)
    picture(tmp_path / "c.png", alpha)
    wanted = [np.stack([IMAGES[0]] * 3), colour.transpose(2, 0, 1), colour.transpose(2, 0, 1)]
    np.testing.assert_array_equal(read(tmp_path).images, np.stack(wanted), strict=True)


def test_16_bit_pictures(tmp_path):
    """White stays white and grey grey: 16-bit values are scaled to bytes, not cut off at 255."""
    grey = np.array([[0, 257 * 100, 65535], [128, 129, 257]], dtype=np.uint16)
    picture(tmp_path / "a.png", grey)
    picture(tmp_path / "b.tif", grey.astype(np.int32))
    for found in read(tmp_path).images:
        np.testing.assert_array_equal(found[0], [[0, 100, 255], [0, 1, 1]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([[0, 0.5, 1]]), "floats, whose white is unknown: save it with 8 bits"),
        (np.int32([[0, 1, 65536]]), "0 .. 65536 is no range of 16 bits"),
        (np.int32([[-1, 1, 2]]), "-1 .. 2 is no range of 16 bits"),
    ],
)
def test_pictures_of_other_ranges(tmp_path, values, message):
    """Pixels whose black and white are not known are refused; never clipped to one colour."""
    picture(tmp_path / "a.tif", values)
    refused(tmp_path, re.escape(message))


def test_sub_folders_are_classes(tmp_path):
    """The first folder below is the class, however deep the picture lies; labels are sorted."""
    for i, place in enumerate(("dog/1.png", "cat/far/down/1.png", "dog/2.png", "ant/1.png")):
        picture(tmp_path / place, IMAGES[i])
    found = read(tmp_path)
    assert found.labels == ("ant", "cat", "dog")
    wanted = {0: [IMAGES[3]], 1: [IMAGES[1]], 2: [IMAGES[0], IMAGES[2]]}
    for k, images in wanted.items():
        np.testing.assert_array_equal(found.images[found.classes == k, 0], images)
    picture(tmp_path / "loose.png", IMAGES[4])
    assert read(tmp_path).classes is None


def test_size_crops_the_middle(tmp_path):
    """With a size, pictures become squares of it: the middle of the longer side is kept."""
    wide, tall = RNG.integers(0, 256, (2, 8, 24), dtype=np.uint8)
    picture(tmp_path / "a.png", wide)
    picture(tmp_path / "b.png", tall.T)
    found = read(tmp_path, size=8).images
    wanted = np.stack([wide[:, 8:16], tall.T[8:16]])[:, None]
    np.testing.assert_array_equal(found, wanted, strict=True)
    assert read(tmp_path, size=4).images.shape == (2, 1, 4, 4)
    refused(tmp_path, "different sizes .*--size")


def test_exif_rotation(tmp_path):
    """A photo lies as its EXIF orientation says: 6 means that it must be turned clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the tag Orientation (Exif 2.3, section 4.6.4)
    picture(tmp_path / "a.png", IMAGES[0], exif=exif)
    np.testing.assert_array_equal(read(tmp_path).images[0, 0], np.rot90(IMAGES[0], -1))


def test_broken_pictures(tmp_path):
    """A file that is named like a picture and is none stops the reading, and is named."""
    picture(tmp_path / "a.png", RNG.integers(0, 256, (40, 40), dtype=np.uint8))
    whole = (tmp_path / "a.png").read_bytes()
    broken = tmp_path / "b.png"
    for data in (
        b"",
        b"not a picture",
        whole[:60],
        whole[: len(whole) // 2],
        whole[:8] + b"x" * 99,
    ):
        broken.write_bytes(data)
        with pytest.raises(ValueError, match=r"1 of 2 pictures .* .*b\.png \(") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


def test_all_broken_pictures_are_named(tmp_path):
    """One run says how many are broken, and which, up to three."""
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"not a picture")
        picture(tmp_path / f"good{i}.png", IMAGES[i % 5])
    refused(tmp_path, r"6 of 12 pictures .*0\.png \(.*1\.png \(.*2\.png \(.* and 3 others")


def test_huge_picture(tmp_path, monkeypatch):
    """A picture of too many pixels is refused, and the limit named."""
    picture(tmp_path / "a.png", IMAGES[0])
    monkeypatch.setattr(pictures, "PIXELS", 23)
    refused(tmp_path, r"a\.png \(6 x 4 pixels, of which 23 are the most\)")
    refused(tmp_path, "too many for a size of 5", size=5)


def test_transparent_pictures(tmp_path):
    """What is transparent is white, in grey pictures and in colour; half is half."""
    colour = np.zeros((1, 3, 4), np.uint8)
    colour[0, :, 3] = 255, 0, 51
    picture(tmp_path / "colour" / "a.png", colour)
    found = read(tmp_path / "colour").images
    np.testing.assert_array_equal(found, np.stack([[[0, 255, 204]]] * 3)[None])
    picture(tmp_path / "grey" / "a.png", colour[..., 2:])
    np.testing.assert_array_equal(read(tmp_path / "grey").images, [[[[0, 255, 204]]]])


def test_first_frame(tmp_path):
    """Of an animation the first frame is taken."""
    frames = [Image.fromarray(a) for a in IMAGES[:3]]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read(tmp_path).images, np.stack([IMAGES[:1]] * 3, axis=1))


def test_nothing_there(tmp_path):
    """An empty folder, a text file and a path to nowhere are each said for what they are."""
    refused(tmp_path, "no IDX files and no pictures")
    (tmp_path / "a.txt").write_text("text")
    refused(tmp_path, "no IDX files and no pictures")
    refused(tmp_path / "a.txt", "neither a folder, nor an .npz or .npy file, nor an IDX")
    refused(tmp_path / "none", "no data at", FileNotFoundError)


@pytest.mark.parametrize(
    ("shape", "moved"),
    [
        ((5, 4, 6), lambda a: a[:, None]),
        ((5, 3, 6), lambda a: a[:, None]),  # three rows are rows, not channels
        ((5, 5, 6, 3), lambda a: np.moveaxis(a, 3, 1)),
        ((5, 8, 6, 1), lambda a: np.moveaxis(a, 3, 1)),
        ((5, 3, 4, 6), lambda a: a),
        ((5, 1, 4, 6), lambda a: a),
        ((5, 4, 6, 3), lambda a: np.moveaxis(a, 3, 1)),  # 4 is channels only if nothing else is
        ((5, 3, 6, 4), lambda a: a),
        ((5, 4, 6, 6), lambda a: a),
    ],
)
def test_npy_layouts(tmp_path, shape, moved):
    """(N, H, W), channels last and channels first all become (N, C, H, W)."""
    a = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", a)
    found = read(tmp_path / "a.npy")
    np.testing.assert_array_equal(found.images, moved(a), strict=True)
    assert found.classes is None


@pytest.mark.parametrize(("images", "classes"), [("images", "classes"), ("x", "y"), (None, None)])
def test_npz_names(tmp_path, images, classes):
    """An .npz names its images and classes, or holds them in that order."""
    if images is None:
        np.savez(tmp_path / "a.npz", IMAGES, CLASSES)
    else:
        np.savez(tmp_path / "a.npz", **{images: IMAGES, classes: CLASSES, "other": RNG.random(3)})
    found = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.images, IMAGES[:, None])
    np.testing.assert_array_equal(found.classes, CLASSES)
    assert found.labels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES.astype(np.float32)}, r"must hold uint8 images .* float32 \(5, 4, 6\)"),
        ({"images": IMAGES[0]}, r"must hold uint8 images .* uint8 \(4, 6\)"),
        ({"images": np.zeros((5, 6, 6, 2), np.uint8)}, "1, 3 or 4 channels"),
        ({"images": np.zeros((5, 3, 6, 3), np.uint8)}, "1, 3 or 4 channels, first or last"),
        ({"images": np.zeros((5, 0, 6), np.uint8)}, "has no images"),
        ({"images": IMAGES, "classes": [0, 1, 2, 0, 2**16]}, "class 65536, but 65,536"),
        ({"images": IMAGES, "classes": np.uint64([0, 1, 2, 0, 2**63])}, "class 92233720"),
        ({"pixels": IMAGES}, "none of images, x, arr_0, but pixels"),
        ({}, "none of images, x, arr_0, but nothing"),
        ({"images": IMAGES, "classes": CLASSES[:3]}, "one class of at least 0 per image"),
        ({"images": IMAGES, "classes": [0, -1, 0, 0, 0]}, "one class of at least 0 per image"),
        ({"images": IMAGES, "classes": CLASSES / 2}, "classes as integers, but holds float64"),
        ({"images": IMAGES, "classes": list("abcde")}, "classes as integers, but holds <U1"),
        ({"images": IMAGES[:0]}, "has no images"),
        ({"images": IMAGES.astype(object)}, r"cannot be read as \.npz"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_wrong_npz(tmp_path, arrays, message):
    """Arrays that are not images and classes are refused by name, dtype and shape."""
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", message)


def test_pickled_arrays_are_not_loaded(tmp_path):
    """An array of objects is a pickle: refused unread."""
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (mark,)

    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=np.array([Bomb()], dtype=object))
    for name in ("a.npy", "a.npz"):
        refused(tmp_path / name, "cannot be read as")
    assert not mark.exists()


def test_broken_numpy_files(tmp_path):
    """Cut off or damaged, an .npy or .npz is refused."""
    whole = io.BytesIO()
    np.savez_compressed(whole, images=IMAGES)
    data = bytearray(whole.getvalue())
    with zipfile.ZipFile(whole) as opened:
        start = opened.infolist()[0].header_offset + 60
    damaged = data.copy()
    damaged[start : start + 20] = bytes(20)
    for broken in (b"", data[:50], data[:-10], damaged):
        (tmp_path / "a.npz").write_bytes(broken)
        refused(tmp_path / "a.npz", r"cannot be read as \.npz")
    np.save(tmp_path / "a.npy", IMAGES)
    whole_npy = (tmp_path / "a.npy").read_bytes()
    for broken in (b"", whole_npy[:20], whole_npy[:-1], b"not an array"):
        (tmp_path / "a.npy").write_bytes(broken)
        refused(tmp_path / "a.npy", r"cannot be read as \.npy")


def test_range():
    """Bytes fill [-1, 1], evenly (Ho et al. 2020, section 3.3)."""
    found = to_range(np.arange(256, dtype=np.uint8))
    assert found.dtype == np.float32
    # Rounded once at 1 and once at 2 at most.
    np.testing.assert_allclose(found, np.linspace(-1, 1, 256), rtol=0, atol=2.0**-23)
    assert (found[0], found[-1]) == (-1, 1)


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 8, 6, 3), (5, 3, 4, 6)])
def test_npy_is_mapped(tmp_path, shape, fortran):
    """The images of an .npy are the file itself, in whatever layout: what is changed is seen."""
    a = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", np.asfortranarray(a) if fortran else a)
    found = read(tmp_path / "a.npy").images
    wanted = a[:, None] if a.ndim == 3 else np.moveaxis(a, 3, 1) if shape[-1] == 3 else a
    np.testing.assert_array_equal(found, wanted, strict=True)
    np.testing.assert_array_equal(found[np.array([3, 0])], wanted[[3, 0]], strict=True)
    np.load(tmp_path / "a.npy", mmap_mode="r+")[2] = 7
    assert (found[2] == 7).all()
    assert not found.flags.writeable


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="/proc says how much is resident"
)
def test_npy_may_be_larger_than_memory(tmp_path):
    """Of an .npy of a terabyte only the images that are indexed are read."""
    shape = (1 << 28, 32, 32, 4)
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + (1 << 40))
        file.seek(start + (1 << 39))
        file.write(bytes(range(256)) * 16)
    before = resident()
    images = read(tmp_path / "a.npy").images
    some = images[np.array([5, 1 << 27, (1 << 28) - 1])]
    assert images.shape == (1 << 28, 4, 32, 32)
    np.testing.assert_array_equal(some[1, 2], np.arange(2, 4096, 4).reshape(32, 32) % 256)
    assert not some[[0, 2]].any()
    assert resident() - before < 64 << 20


def resident() -> int:
    """Bytes of memory that this process holds."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) << 10


def test_bad_pictures_are_all_listed(tmp_path, capsys):
    """The error names the first ones, stderr all, a line each; three need no list."""
    for i in range(3):
        (tmp_path / f"bad{i}.png").write_bytes(b"not a picture")
    picture(tmp_path / "good.png", IMAGES[0])
    refused(tmp_path, r"3 of 4 pictures .*bad2\.png \([^)]*\)$")
    assert capsys.readouterr().err == ""
    for i in range(300):
        (tmp_path / f"more{i:03}.png").write_bytes(b"not a picture")
    refused(tmp_path, r"303 of 304 pictures .* and 300 others, all listed above")
    lines = capsys.readouterr().err.splitlines()
    names = [f"bad{i}.png" for i in range(3)] + [f"more{i:03}.png" for i in range(300)]
    assert [line.split(" (")[0] for line in lines] == [str(tmp_path / name) for name in names]


def test_bad_pictures_are_left_out(tmp_path, capsys):
    """With skip_bad the others are read, with their own classes, and the bad ones are said."""
    for i, place in enumerate(("a/1.png", "b/1.png", "b/3.png")):
        picture(tmp_path / place, IMAGES[i])
    (tmp_path / "a" / "2.png").write_bytes(b"not a picture")
    (tmp_path / "b" / "2.png").write_bytes(b"")
    found = read(tmp_path, skip_bad=True)
    np.testing.assert_array_equal(found.images, IMAGES[:3, None], strict=True)
    assert found.classes.tolist() == [0, 1, 1]
    (said,) = found.said
    assert said.startswith(f"2 of 5 pictures cannot be read and are left out: {tmp_path}/a/2.png (")
    assert f"{tmp_path}/b/2.png (" in said
    for good in tmp_path.rglob("[13].png"):
        good.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 5 pictures can be read"):
        read(tmp_path, skip_bad=True)


def test_memory_that_runs_out_is_not_a_bad_picture(tmp_path, monkeypatch):
    """A picture that there is no memory for is not left out."""
    picture(tmp_path / "a.png", IMAGES[0])

    def greedy(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pictures, "_picture", greedy)
    with pytest.raises(MemoryError):
        read(tmp_path, skip_bad=True)


def test_what_was_changed_is_said(tmp_path):
    """A sentence for each kind of change, with numbers; none where nothing was done."""
    for i in range(3):
        picture(tmp_path / f"{i}.png", np.full((8, 8), i, np.uint8))
    assert read(tmp_path, size=8).said == ()
    picture(tmp_path / "a.png", RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    picture(tmp_path / "b.png", RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    picture(tmp_path / "c.png", RNG.integers(0, 255, (6, 12, 4), dtype=np.uint8))
    assert read(tmp_path, size=8, background="#102030").said == (
        "3 of 6 pictures were resized to 8 x 8, from 16 x 16 (2), 12 x 6 (1)",
        "1 of 6 pictures was made larger by that",
        "1 of 6 pictures was cropped to a square",
        "1 of 6 pictures was converted to grey or RGB, from RGBA (1)",
        "1 of 6 pictures was laid on #102030 where transparent",
        "3 of 6 pictures were grey and got three equal channels",
    )


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_resizing_does_not_alias(tmp_path, suffix):
    """What is finer than the new pixels becomes its mean, however much smaller they are."""
    board = np.indices((1024, 1024)).sum(axis=0) % 2 * 255
    picture(tmp_path / f"a.{suffix}", board.astype(np.uint8))
    found = read(tmp_path, size=8).images.astype(int)
    np.testing.assert_allclose(found, 127.5, rtol=0, atol=2)


def test_background(tmp_path):
    """Transparent pixels show the colour that is asked for, by its share; so do grey pictures."""
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 255, 0, 51
    picture(tmp_path / "colour" / "a.png", pixels)
    found = read(tmp_path / "colour", background="#ff8000").images
    np.testing.assert_array_equal(found[0, :, 0], [[0, 255, 204], [0, 128, 102], [0, 0, 0]])
    picture(tmp_path / "grey" / "a.png", pixels[..., 2:])
    np.testing.assert_array_equal(read(tmp_path / "grey", background="#ff8000").images, found)
    assert read(tmp_path / "grey", background="black").images.shape == (1, 1, 1, 3)
    for name in ("nocolour", "#12", "#11223344", ""):
        with pytest.raises(ValueError, match=f"background must be an opaque .* but is '{name}'"):
            read(tmp_path / "grey", background=name)


def test_many_pictures(tmp_path, monkeypatch, capsys):
    """The order is that of the names over many blocks; what takes long says how far it is."""
    monkeypatch.setattr(pictures, "AHEAD", 4)
    values = RNG.integers(0, 256, (30, 2, 3), dtype=np.uint8)
    for i, a in enumerate(values):
        picture(tmp_path / f"{i:02}.png", np.stack([a] * 3, axis=-1) if i == 17 else a)
    found = read(tmp_path).images
    np.testing.assert_array_equal(found, np.stack([values] * 3, axis=1), strict=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(pictures, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    read(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Reading pictures 8/30, ")
    assert lines[-1].startswith("Reading pictures 30/30, ")


def test_too_many_pixels(tmp_path, monkeypatch):
    """More bytes of pixels than are held are refused, with how many pictures of what size."""
    for i in range(3):
        picture(tmp_path / f"{i}.png", IMAGES[i])
    monkeypatch.setattr(pictures, "LARGEST", 71)
    refused(tmp_path, "more than 71 bytes of pixels: 3 pictures of 6 x 4")
    monkeypatch.setattr(pictures, "LARGEST", 72)
    assert len(read(tmp_path).images) == 3
