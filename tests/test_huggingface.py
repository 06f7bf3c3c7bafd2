"""Reading what `save_to_disk` of Hugging Face's datasets writes."""

from __future__ import annotations

import json
import os
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_core.cli.datasets import has_splits, read

hf = pytest.importorskip("datasets")

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
FIRST = IMAGES.transpose(0, 3, 1, 2)
CLASSES = [1, 2, 0, 1, 0]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def connect(*arguments: object) -> None:
        raise AssertionError("nothing is ever downloaded")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


def saved(place, columns, **kinds):
    """A data set in a folder."""
    made = hf.Dataset.from_dict(columns, features=hf.Features(kinds))
    made.save_to_disk(str(place))
    return place


def pictures(arrays=IMAGES):
    return [Image.fromarray(a) for a in arrays]


LABEL = hf.ClassLabel(names=["cat", "dog", "eel"])


def test_pictures_and_classes(tmp_path):
    """The column of pictures and that of classes are found by their types, with the names."""
    place = saved(
        tmp_path / "d",
        {"id": list("abcde"), "y": CLASSES, "look": pictures()},
        id=hf.Value("string"), y=LABEL, look=hf.Image(),
    )  # fmt: skip
    found = read(place)
    np.testing.assert_array_equal(found.images, FIRST, strict=True)
    np.testing.assert_array_equal(found.classes, CLASSES)
    assert found.labels == ("cat", "dog", "eel")
    assert found.said == ()
    assert not has_splits(place)


@pytest.mark.parametrize(
    ("kind", "arrays", "wanted"),
    [
        (hf.Array3D((4, 6, 3), "uint8"), IMAGES, FIRST),
        (hf.Array3D((3, 4, 6), "uint8"), FIRST, FIRST),
        (hf.Array3D((4, 6, 1), "uint8"), IMAGES[..., :1], FIRST[:, :1]),
        (hf.Array2D((4, 6), "uint8"), IMAGES[..., 0], FIRST[:, :1]),
        (hf.List(hf.List(hf.Value("uint8"))), IMAGES[..., 0], FIRST[:, :1]),
    ],
)
def test_arrays(tmp_path, kind, arrays, wanted):
    """Arrays of two or three dimensions are images too; without a ClassLabel, without classes."""
    columns = {"pixels": list(arrays), "score": [0.5] * 5}
    found = read(saved(tmp_path / "d", columns, pixels=kind, score=hf.Value("float32")))
    np.testing.assert_array_equal(found.images, wanted, strict=True)
    assert (found.classes, found.labels) == (None, ())


def test_splits(tmp_path):
    """A DatasetDict is read by split; "t10k" is its test; another is missed by name."""
    made = hf.Dataset.from_dict({"image": pictures()}, features=hf.Features(image=hf.Image()))
    parts = {"train": made.select([0, 1, 2]), "test": made.select([3, 4])}
    hf.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    assert has_splits(tmp_path / "d")
    np.testing.assert_array_equal(read(tmp_path / "d").images, FIRST[:3])
    np.testing.assert_array_equal(read(tmp_path / "d", "t10k").images, FIRST[3:])
    with pytest.raises(ValueError, match="has no split validation, but train, test"):
        read(tmp_path / "d", "validation")


def test_same_reading_as_of_files(tmp_path):
    """Sizes, modes and transparency are treated as those of the same pictures in a folder."""
    mixed = [
        Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))
        for shape in ((9, 9, 3), (12, 9, 4), (8, 8), (30, 7, 3))
    ]
    (tmp_path / "files").mkdir()
    for i, image in enumerate(mixed):
        image.save(tmp_path / "files" / f"{i}.png")
    place = saved(tmp_path / "d", {"image": mixed}, image=hf.Image())
    options = {"size": 8, "background": "#804020"}
    a, b = read(tmp_path / "files", **options), read(place, **options)
    np.testing.assert_array_equal(a.images, b.images, strict=True)
    assert a.said == b.said
    assert a.said


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ({"a": hf.Image(), "b": hf.Image()}, r"a \(Image\), b \(Image\)"),
        ({"a": hf.Value("string")}, r"a \(Value\)"),
        ({"a": hf.Image(), "b": LABEL, "c": LABEL}, r"a \(Image\), b \(ClassLabel\), c \(Class"),
        ({"a": hf.Array2D((4, 6), "float32")}, r"a \(Array2D\)"),
    ],
)
def test_columns_that_are_not_clear(tmp_path, kinds, told):
    """Two columns that it may be, or none, are an error that lists all."""
    values = {hf.Image: pictures(), hf.Value: list("abcde"), hf.ClassLabel: CLASSES}
    columns = {
        name: values.get(type(kind), list(IMAGES[..., 0] / np.float32(1)))
        for name, kind in kinds.items()
    }
    place = saved(tmp_path / "d", columns, **kinds)
    with pytest.raises(ValueError, match=f"one column of pictures .* but has {told}.*: keep"):
        read(place)


def test_bad_rows(tmp_path):
    """Rows without a picture are named, and left out with their classes; no path is followed."""
    Image.fromarray(IMAGES[0]).save(tmp_path / "there.png")
    good = (tmp_path / "there.png").read_bytes()
    rows = [
        {"bytes": good, "path": None},
        {"bytes": None, "path": str(tmp_path / "there.png")},
        {"bytes": b"not a picture", "path": None},
        None,
        {"bytes": good, "path": "https://example.org/a.png"},
    ]
    plain = hf.Features(bytes=hf.Value("binary"), path=hf.Value("string"))
    table = hf.Dataset.from_dict(
        {"image": rows, "y": CLASSES}, features=hf.Features(image=plain, y=LABEL)
    )
    table.save_to_disk(str(tmp_path / "d"))
    info = tmp_path / "d" / "dataset_info.json"
    about = json.loads(info.read_text())
    about["features"]["image"] = {"_type": "Image"}
    info.write_text(json.dumps(about))
    with pytest.raises(
        ValueError, match=r"3 of 5 pictures cannot be read.*: row 1 \(has no picture"
    ):
        read(tmp_path / "d")
    found = read(tmp_path / "d", skip_bad=True)
    np.testing.assert_array_equal(found.images, FIRST[[0, 0]])
    assert found.classes.tolist() == [1, 0]
    assert "row 1 (has no picture in it, only a path), row 2 (is not one of PNG" in found.said[0]
    assert "row 3 (is empty)" in found.said[0]


def test_rows_without_a_class(tmp_path):
    """A class that is missing, or -1, is an error."""
    for missing in (None, -1):
        columns = {"image": pictures(), "y": [missing, *CLASSES[1:]]}
        place = saved(tmp_path / f"d{missing}", columns, image=hf.Image(), y=LABEL)
        with pytest.raises(ValueError, match="rows without a class in its column y"):
            read(place)


def test_without_the_package(tmp_path, monkeypatch):
    """What is missing is named, and how it is installed."""
    place = saved(tmp_path / "d", {"image": pictures()}, image=hf.Image())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="needs datasets to be read: pip install datasets"):
        read(place)


def test_damaged(tmp_path):
    """Whatever is wrong with its files, the answer is one line; none outside is opened."""
    place = saved(tmp_path / "d", {"image": pictures()}, image=hf.Image())
    state, info = place / "state.json", place / "dataset_info.json"
    (data,) = place.glob("*.arrow")
    whole = {path: path.read_bytes() for path in (state, info, data)}
    outside = json.loads(whole[state])
    outside["_data_files"] = [{"filename": "../there.arrow"}]
    broken = [
        (state, b"", "is not JSON"),
        (state, b"[]", "is not a JSON object"),
        (state, json.dumps(outside).encode(), "has data outside of it"),
        (info, b"{", "cannot be read as a data set"),
        (data, whole[data][:200], "cannot be read as a data set"),
    ]
    for path, content, message in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            read(place)
        assert "\n" not in str(caught.value)
        path.write_bytes(whole[path])
    assert len(read(place).images) == 5
    if hasattr(os, "mkfifo"):
        data.unlink()
        os.mkfifo(data)
        with pytest.raises(ValueError, match="is not a regular file"):
            read(place)
