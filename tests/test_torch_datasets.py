"""Data sets of torch, and whatever is like them, as training data."""

from __future__ import annotations

import doctest
import re
import threading

import numpy as np
import pytest
from PIL import Image

from ddpm_core.cli.datasets import held_out

torch = pytest.importorskip("torch")

from ddpm_core_torch import datasets  # noqa: E402
from ddpm_core_torch.datasets import from_dataset  # noqa: E402

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 7), dtype=np.uint8)


def last(x):
    return np.ascontiguousarray(x.transpose(1, 2, 0))


KINDS = {
    "arrays (C, H, W)": lambda x: x,
    "arrays (H, W, C)": last,
    "tensors (C, H, W)": torch.asarray,
    "tensors (H, W, C)": lambda x: torch.asarray(last(x)),
    "floats, as ToTensor gives": lambda x: torch.asarray(x).to(torch.float32) / 255,
    "float16": lambda x: (torch.asarray(x).to(torch.float64) / 255).to(torch.float16),
    "PIL": lambda x: Image.fromarray(last(x)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images(kind):
    """Every kind of item gives the same bytes, by whatever index."""
    made = from_dataset([KINDS[kind](x) for x in IMAGES])
    assert (made.classes, made.labels) == (None, ())
    assert (made.images.shape, made.images.dtype, len(made.images)) == (IMAGES.shape, np.uint8, 6)
    assert made.images.nbytes == IMAGES.nbytes
    several = np.array([4, 0, 4]), np.array([], int), np.array([[1], [-1]]), IMAGES[:, 0, 0, 0] > 99
    for index in (*several, slice(1, 5, 2), 3, -1):
        np.testing.assert_array_equal(made.images[index], IMAGES[index], strict=True)
    with pytest.raises(IndexError):
        made.images[np.array([6])]
    np.testing.assert_array_equal(held_out(made.images, 0.5), held_out(IMAGES, 0.5))


@pytest.mark.parametrize("kind", [lambda x: x, torch.asarray, Image.fromarray])
def test_grey(kind):
    """(H, W) and mode L have one channel."""
    made = from_dataset([kind(x[0]) for x in IMAGES])
    np.testing.assert_array_equal(made.images[:], IMAGES[:, :1], strict=True)


def test_floats_are_rounded():
    """Each byte, divided by 255 in float32, comes back, and so does what is next to it."""
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    for off in (-0.4, 0, 0.4):
        near = ((x + off) / 255).clip(0, 1)
        np.testing.assert_array_equal(from_dataset([near]).images[0], x)


def test_classes():
    """Of pairs the second is the class, whatever integer it is."""
    given = [2, np.int64(0), torch.tensor(1), 2, 0, 0]
    tensors = torch.utils.data.TensorDataset(
        torch.asarray(IMAGES), torch.tensor([2, 0, 1, 2, 0, 0])
    )
    for dataset in (list(zip(IMAGES, given, strict=True)), tensors):
        made = from_dataset(dataset)
        np.testing.assert_array_equal(made.classes, np.int64([2, 0, 1, 2, 0, 0]), strict=True)
        assert made.labels == ("0", "1", "2")
        np.testing.assert_array_equal(made.images[1:3], IMAGES[1:3])


class Watched:
    """Counts how often each item is read, and in how many threads at once."""

    def __init__(self, together: int) -> None:
        self.read: list[int] = []
        self.gate = threading.Barrier(together)

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, i: int) -> np.ndarray:
        if self.read:  # not the first, by which the shape is known
            self.gate.wait(timeout=20)
        self.read.append(i)
        return np.full((1, 8, 8), i % 256, np.uint8)


def test_images_are_read_when_indexed():
    """Nothing but the first item is read before, and then what is asked for, by threads."""
    dataset = Watched(together=3)
    dataset.read.append(-1)
    dataset.gate = threading.Barrier(1)
    images = from_dataset(dataset, threads=3).images
    assert set(dataset.read) == {-1, 0}
    dataset.read, dataset.gate = [-1], threading.Barrier(3)
    assert images[np.array([5, 999, 7])][:, 0, 0, 0].tolist() == [5, 999 % 256, 7]
    assert sorted(dataset.read[1:]) == [5, 7, 999]


def test_blocks_of_classes(monkeypatch):
    """Classes of more than a block are in the order of the items."""
    monkeypatch.setattr(datasets, "BLOCK", 4)
    made = from_dataset([(x, 5 - i) for i, x in enumerate(IMAGES)], threads=1)
    assert made.classes.tolist() == [5, 4, 3, 2, 1, 0]


GOOD = IMAGES[0]
WRONG = [
    ([GOOD, GOOD[:, :4]], "item 1 is an image of shape (3, 4, 7), but item 0 is of (3, 5, 7)"),
    ([np.float32([[-1, 1]])], "item 0 has floats of -1 .. 1, but they must lie within 0"),
    ([np.full((3, 5, 7), np.nan)], "floats of nan .. nan"),
    ([GOOD.astype(np.int64)], "but is int64 (3, 5, 7)"),
    ([torch.zeros(3, 5, 7, dtype=torch.bool)], "but is torch.bool (3, 5, 7)"),
    ([GOOD[:2]], "1, 3 or 4 channels, or floats so, in 0 .. 1; but is uint8 (2, 5, 7)"),
    ([np.zeros((3, 5, 3), np.uint8)], "but is uint8 (3, 5, 3)"),
    ([Image.new("RGBA", (4, 4))], "mode L or RGB, uint8 (H, W), (C, H, W) or (H, W, C)"),
    ([Image.new("RGBA", (5, 6))], "but is an image of mode RGBA"),
    ([{"image": GOOD, "label": 3}], "but is a dict of image, label"),
    ([(GOOD, 3, 4)], "but is (uint8 (3, 5, 7), 3, 4)"),
    ([(GOOD, "cat")], "item 0 must be an image and its class, an integer of at least 0, but is "),
    ([(GOOD, "cat")], "(uint8 (3, 5, 7), 'cat')"),
    ([(GOOD, 1), (GOOD, -1)], "item 1 must be an image and its class"),
    ([(GOOD, 1), GOOD], "item 1 must be an image and its class"),
    ([], "has no items"),
]


@pytest.mark.parametrize(("items", "message"), WRONG)
def test_wrong_items(items, message):
    """What is none of these is named, with what it is."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        from_dataset(items).images[:]
    assert "\n" not in str(caught.value)


def test_pairs_are_checked_at_once():
    """Of pairs, which are all read for their classes, a wrong image is found then."""
    with pytest.raises(ValueError, match="item 5 is an image of shape"):
        from_dataset([(GOOD, 0)] * 5 + [(GOOD[:, :4], 0)])


def test_streams_are_refused():
    """A data set without a length, or items by number, is none that can be drawn from."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(IMAGES)

    for stream in (Stream(), iter(IMAGES), {1, 2}):
        with pytest.raises(TypeError, match=f"but {type(stream).__name__} has not"):
            from_dataset(stream)


def test_example():
    """The example in the docstring prints what it says."""
    result = doctest.testmod(datasets, extraglobs={"np": np})
    assert (result.attempted, result.failed) == (3, 0)
