"""Which images are held out of training: their pixels decide, and nothing else."""

from __future__ import annotations

import gzip
import struct
from hashlib import blake2b

import numpy as np
import pytest
from PIL import Image

from ddpm_core.cli.datasets import held, held_out, read

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4000, 1, 4, 6), dtype=np.uint8)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_share(share):
    """As many are held out as of fair draws, within five of their standard deviations."""
    n = len(IMAGES)
    assert abs(held_out(IMAGES, share).sum() - n * share) < 5 * (n * share * (1 - share)) ** 0.5


def test_hash():
    """An image is held out if BLAKE2b of its bytes in the order (C, H, W), of 64 bits, is below."""
    images = RNG.integers(0, 256, (50, 3, 4, 6), dtype=np.uint8)
    parts = [blake2b(x.tobytes(), digest_size=8).digest() for x in images]
    wanted = [int.from_bytes(part, "big") / 2**64 < 0.3 for part in parts]
    assert held_out(images, 0.3).tolist() == wanted


def test_ends():
    """Of the share 0 there is none, of 1 all; a larger share has a smaller one in it."""
    assert not held_out(IMAGES, 0).any()
    assert held_out(IMAGES, 1).all()
    assert (held_out(IMAGES, 0.1) <= held_out(IMAGES, 0.2)).all()
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"within 0 .. 1, but is {share}"):
            held_out(IMAGES, share)


def test_none_is_read_for_none():
    """Without a share no image is looked at."""

    class Unread:
        shape = (5, 3, 2, 2)

        def __len__(self) -> int:
            return 5

    assert held_out(Unread(), 0).tolist() == [False] * 5


def test_duplicates_and_order():
    """Equal images are on one side, wherever they lie."""
    order = RNG.permutation(np.repeat(np.arange(500), 2))
    once = held_out(IMAGES[:500], 0.3)
    np.testing.assert_array_equal(held_out(IMAGES[order], 0.3), once[order])


def test_layouts(monkeypatch):
    """Strides do not matter, nor how many images are read at a time."""
    images = RNG.integers(0, 256, (300, 3, 4, 6), dtype=np.uint8)
    wanted = held_out(images, 0.3)
    last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    monkeypatch.setattr(held, "BLOCK", 500)
    for same in (last, np.asfortranarray(images), images):
        np.testing.assert_array_equal(held_out(same, 0.3), wanted)


def test_kinds_of_files(tmp_path):
    """IDX, .npy, .npz and pictures of the same images have the same ones held out."""
    images = IMAGES[:200, 0]
    classes = np.zeros(200, np.uint8)
    for name, a in (("images", images), ("labels", classes)):
        head = struct.pack(f">4B{a.ndim}I", 0, 0, 8, a.ndim, *a.shape)
        (tmp_path / f"train-{name}.gz").write_bytes(gzip.compress(head + a.tobytes()))
    np.save(tmp_path / "a.npy", np.asfortranarray(images[..., None]))
    np.savez(tmp_path / "a.npz", images=images)
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{i:03}.png")
    wanted = held_out(IMAGES[:200], 0.3)
    for path in (tmp_path, *(tmp_path / name for name in ("a.npy", "a.npz", "pictures"))):
        np.testing.assert_array_equal(held_out(read(path).images, 0.3), wanted)


def test_blocks(monkeypatch):
    """No more than a block is asked for at a time."""
    asked = []

    class Counted:
        shape = IMAGES.shape

        def __len__(self) -> int:
            return len(IMAGES)

        def __getitem__(self, index: np.ndarray) -> np.ndarray:
            asked.append(IMAGES[index].nbytes)
            return IMAGES[index]

    monkeypatch.setattr(held, "BLOCK", 1000)
    np.testing.assert_array_equal(held_out(Counted(), 0.3), held_out(IMAGES, 0.3))
    assert max(asked) <= 1000
    assert sum(asked) == IMAGES.nbytes
