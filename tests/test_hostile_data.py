"""Data that was made to harm: it is refused in one line, quickly, and without its memory."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpm_core.cli.datasets import read, shared

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 6), dtype=np.uint8)
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")


def refused(path: Path, message: str) -> None:
    """Reading fails in one line, with less than 8 MB of Python's and NumPy's memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def header(*sizes: int) -> bytes:
    return struct.pack(f">4B{len(sizes)}I", 0, 0, 8, len(sizes), *sizes)


def folder_of(place: Path, images: bytes, labels: bytes, ending: str = "") -> Path:
    for name, data in zip(TRAIN, (images, labels), strict=True):
        (place / f"{name}{ending}").write_bytes(data)
    return place


def npy(text: str, data: bytes = b"", version: int = 1) -> bytes:
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + data


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz", *TRAIN, "labels.txt"])
def test_fifos_are_not_opened(tmp_path, monkeypatch, name, linked):
    """A FIFO with the name of data, or a link to one, is refused and not waited for."""
    folder = tmp_path / "data"
    folder.mkdir()
    if not name.startswith("a."):
        folder_of(folder, header(1, 2, 2) + bytes(4), header(1) + bytes(1))
        (folder / name).unlink(missing_ok=True)
    pipe = tmp_path / "pipe" if linked else folder / name
    os.mkfifo(pipe)
    if linked:
        (folder / name).symlink_to(pipe)
    whole = Path.open

    def opened(path: Path, mode: str):
        assert path.is_file()  # so that the test fails, and does not wait either
        return whole(path, mode)

    monkeypatch.setattr(Path, "open", opened)
    refused(folder / name if name.startswith("a.n") else folder, "is not a regular file")


def test_devices_are_not_opened(tmp_path):
    """An endless device under the name of a file is not read."""
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero here")
    folder_of(tmp_path, header(1, 2, 2) + bytes(4), header(1) + bytes(1))
    (tmp_path / TRAIN[0]).unlink()
    (tmp_path / TRAIN[0]).symlink_to("/dev/zero")
    refused(tmp_path, "is not a regular file")


@pytest.mark.parametrize("which", [0, 1])
def test_gzip_bombs(tmp_path, monkeypatch, which):
    """An IDX .gz that claims more than it can hold, or holds more than it claims, is refused."""
    monkeypatch.setattr(shared, "SMALL", 1 << 20)
    good = [header(1, 2, 2) + bytes(4), header(1) + bytes(1)]
    for claim, message in (
        (((1 << 20) + 1, 2, 2), "claims 4,194,308 bytes of data in"),
        ((2**32 - 1, 2**32 - 1, 784), "17,179,869,184 are the most"),
        ((1, 2, 2), "is truncated: its header says"),
        ((9, 2, 2), "truncated"),
    ):
        sizes = claim if which == 0 else (4 * claim[0],) if claim[0] != 2**32 - 1 else None
        if sizes is None:
            continue  # 2^32 labels cannot be claimed to be too many
        data = [gzip.compress(part) for part in good]
        much = 20 if claim[0] == 9 else 1 << 24
        data[which] = gzip.compress(header(*sizes) + bytes(much))
        refused(folder_of(tmp_path, *data, ".gz"), message)


def test_sparse_idx(tmp_path):
    """A sparse file of a terabyte is too large, though its header is right."""
    folder_of(tmp_path, header(1 << 20, 1 << 10, 1 << 10), header(1) + bytes(1))
    os.truncate(tmp_path / TRAIN[0], 16 + (1 << 40))
    refused(tmp_path, "claims 1,099,511,627,776 bytes")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_claims(tmp_path, monkeypatch, compression):
    """A member that claims gigabytes in a small file is refused before anything is made of it."""
    head = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({3 << 20}, 64, 64), }}\n")
    real = (3 << 32) + len(head)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("images.npy", head + bytes(64))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    entry = data.index(b"PK\x01\x02")
    with_sizes = entry + (20 if compression == zipfile.ZIP_STORED else 24)
    for place in range(with_sizes, entry + 28, 4):
        data[place : place + 4] = struct.pack("<I", min(real, 2**32 - 2))
    (tmp_path / "a.npz").write_bytes(data)
    refused(tmp_path / "a.npz", "claims 4,294,967,294 bytes of data in")


def test_npz_bomb(tmp_path, monkeypatch):
    """So is one that would really unfold to more than 200 times its size."""
    monkeypatch.setattr(shared, "SMALL", 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((1 << 12, 32, 32), np.uint8))
    refused(tmp_path / "a.npz", "claims 4,194,432 bytes of data in")


@pytest.mark.parametrize("shape", [(3 << 20, 64, 64), (3, 4, 6)])
def test_npy_claims(tmp_path, shape):
    """So is an array whose header claims another size than follows it, more or less."""
    data = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n", bytes(73))
    (tmp_path / "a.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", data)
    for name in ("a.npy", "a.npz"):
        refused(tmp_path / name, f"its header says uint8 .*, but it has {len(data)} bytes")


def test_npz_oddities(tmp_path):
    """Encrypted members and unknown compressions are said for what they are."""
    whole = io.BytesIO()
    np.savez(whole, images=IMAGES)
    entry = whole.getvalue().index(b"PK\x01\x02")
    for offset, value, message in ((8, 1, "encrypted"), (10, 99, "compression")):
        data = bytearray(whole.getvalue())
        data[entry + offset] = value
        data[offset - 2] = value  # in the member's own header
        (tmp_path / "a.npz").write_bytes(data)
        refused(tmp_path / "a.npz", rf"cannot be read as \.npz .*{message}")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "(" * 9000, "[" * 9000, "{'descr': '|u1'", "\0", "1" * 9999, "{'descr': 1e999}",
        "  {'descr':\n\t'a'}", "{'descr': '|u1', 'fortran_order': False, 'shape': (-3, -4, 6)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 4, True)}", "'\\x", "f'{x}'",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (72,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 10**99, 6)}",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_npy_headers(tmp_path, text):
    """Whatever stands in the header of an .npy, the answer is one line."""
    for version in (1, 2):
        (tmp_path / "a.npy").write_bytes(npy(text, bytes(72), version))
        refused(tmp_path / "a.npy", r"a\.npy ")


def test_npy_header_that_is_long(tmp_path):
    """A header that claims to be of gigabytes is not read."""
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b" " * 99)
    os.truncate(tmp_path / "a.npy", 1 << 33)
    refused(tmp_path / "a.npy", r"cannot be read as \.npy")


@given(st.integers(0, 127), st.binary(min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_mutated_npy(tmp_path_factory, where, new):
    """A damaged header gives an image or a ValueError, never anything else."""
    whole = io.BytesIO()
    np.save(whole, IMAGES)
    data = bytearray(whole.getvalue())
    data[where : where + len(new)] = new
    path = tmp_path_factory.mktemp("mutated") / "a.npy"
    path.write_bytes(data)
    with suppress(ValueError):
        assert read(path).images.dtype == np.uint8


def test_other_formats_in_pictures(tmp_path):
    """A .png that holds PostScript, DDS or anything but a listed format meets no decoder."""
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"DDS " + bytes(200)):
        (tmp_path / "a.png").write_bytes(data)
        refused(tmp_path, r"a\.png \(is not one of PNG, JPEG, BMP, GIF, WEBP, TIFF\)")
    Image.new("L", (4, 4)).save(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").rename(tmp_path / "a.png")
    refused(tmp_path, "is not one of")
