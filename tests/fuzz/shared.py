"""What the targets share: where files are, which errors may pass, and sums made right."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fuzz.mutations import SEPARATOR

LONGEST = 1000  #: characters of an error, without the path
_MEMORY = "/dev/shm"  #: files there are in memory: a disk would take most of the time
_folder = tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)
HERE = Path(_folder.name).resolve()


@contextmanager
def refused(*kinds: type[Exception], naming: object, most: int = LONGEST) -> Iterator[None]:
    """Lets only such errors pass, if they are one line that names what is refused.

    naming: what the line has, or one of several such things
    """
    named = [str(name) for name in (naming if isinstance(naming, tuple) else (naming,))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow and torch, which main() ignores too
            yield
    except kinds as error:
        line = str(error)
        has_path = isinstance(error, OSError)  # which may be of any length
        if not any(name in line for name in named):
            raise AssertionError(f"does not name {naming}: {error!r}") from error
        if "\n" in line:
            raise AssertionError(f"more than one line: {error!r}") from error
        if not has_path and len(line.replace(named[0], "")) > most:
            raise AssertionError(f"{len(line)} characters: {error!r}") from error


def written(name: str, data: bytes) -> Path:
    path = HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def parts(data: bytes, count: int) -> list[bytes]:
    """So many parts; those that are missing are empty, and the last takes the rest."""
    found = data.split(SEPARATOR, count - 1)
    return found + [b""] * (count - len(found))


def zipped(members: Mapping[str, bytes], compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", (0, zipfile.ZIP_DEFLATED)[compressed]) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, (0, 8)[compressed])
    return buffer.getvalue()


def summed(data: bytes) -> bytes:
    """A zip whose CRCs are those of its stored members, as far as it can be walked."""
    found = bytearray(data)
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0 and at + 46 <= len(data):
        method, size, start = struct.unpack("<10xH8xI18xI", data[at : at + 46])
        if method or data[start : start + 4] != b"PK\x03\x04" or start + 30 > len(data):
            continue
        names = struct.unpack("<26xHH", data[start : start + 30])
        begin = start + 30 + sum(names)
        crc = struct.pack("<I", zlib.crc32(data[begin : begin + size]))
        found[at + 16 : at + 20] = found[start + 14 : start + 18] = crc
    return bytes(found)


def chunked(data: bytes) -> bytes:
    """A PNG whose CRCs are those of its chunks."""
    found, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        found[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(found)


def headed(header: bytes, data: bytes) -> bytes:
    """A safetensors file of a header, its length made right."""
    return struct.pack("<Q", len(header)) + header + data
