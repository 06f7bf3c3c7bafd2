"""Every parser keeps its word: on the inputs of `fuzz/seeds`, on changes of them, at its limits."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("typer")

from fuzz import shared, targets
from fuzz.mutations import SEPARATOR, mutate

SEEDS = Path(__file__).parent / "fuzz" / "seeds"
NEEDS = {
    "torch": "torch",
    "onnx": "onnx",
    "state": "torch",
    "huggingface_folder": "datasets",
    "picture": "PIL",
}


def seeds(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((SEEDS / name).iterdir())]


def test_every_target_has_seeds():
    assert {path.name for path in SEEDS.iterdir()} == targets.TARGETS.keys()
    assert sum(path.stat().st_size for path in SEEDS.rglob("*")) < 200_000


@pytest.mark.parametrize("changes", [20, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_and_changes_of_them(name, changes):
    """The same changes each time; `fuzz/run.py` searches for others."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    rng = random.Random(name)
    for seed in seeds(name):
        targets.TARGETS[name](seed)
        data = seed
        for _ in range(changes):
            data = mutate(seed if rng.random() < 0.7 or len(data) > 20_000 else data, rng)
            targets.TARGETS[name](data)


def test_a_broken_word_is_seen(monkeypatch):
    """Another kind of error, two lines, no name, and a wrong result each fail a target."""
    seed = seeds("run_toml")[0]

    def raised(error: Exception) -> Callable[..., None]:
        def read(path, known):
            raise error

        return read

    for error in (KeyError("a"), ValueError("run.toml"), ValueError(f"{shared.HERE}\n")):
        monkeypatch.setattr(targets.toml, "read", raised(error))
        with pytest.raises((KeyError, AssertionError)):
            targets.run_toml(seed)
    monkeypatch.setattr(targets.toml, "read", lambda path, known: {"data": 1})
    with pytest.raises(AssertionError):
        targets.run_toml(seed)


MEGABYTE = 1 << 20


def png(width: int, height: int, colour: int, depth: int, channels: int) -> bytes:
    """A picture of zeros, a thousand times smaller than its pixels."""
    row, pack = bytes(1 + width * channels * depth // 8), zlib.compressobj(9)
    data = b"".join([*(pack.compress(row) for _ in range(height)), pack.flush()])
    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )


def npy(shape: tuple[int, ...] | str, data: bytes, kind: str = "|u1") -> bytes:
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def own(**changes: object) -> bytes:
    about = json.loads(max(seeds("own"), key=len))
    for name, value in changes.items():
        (about if name in about else about["config"])[name] = value
    return json.dumps(about).encode()


def about_state(text: bytes, tensors: object) -> bytes:
    return SEPARATOR.join([text, json.dumps(tensors).encode(), b""])


def headers(count: int) -> bytes:
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({f"0.1/{i}": one for i in range(count)}).encode() + SEPARATOR


def shapes(name: str, count: int) -> bytes:
    first = {"temb.dense.0.weight": [1], "input_blocks.0.0.weight": [1]}
    return json.dumps(first | {name.format(i): [1] for i in range(count)}).encode()


def sampler_of(rows: int) -> bytes:
    levels = dict.fromkeys(("time", "logsnr", "alpha", "sigma"), [1] * (rows + 1))
    tables = dict.fromkeys(("point", "anchor"), [[0] * 4] * rows)
    about = {"version": 1, "name": "", "levels": levels, "read": [[0, 1]] * rows}
    return json.dumps(about | tables, separators=(",", ":")).encode()


def splits(info: object, files: object) -> bytes:
    about = ({"splits": ["train"]}, {"_data_files": files}, info)
    return SEPARATOR.join([*(json.dumps(part).encode() for part in about), b""])


def archive(count: int) -> bytes:
    return shared.zipped({f"{i}": b"" for i in range(count)})


def bomb(names: tuple[str, ...], shape: tuple[int, ...]) -> bytes:
    """A compressed array of zeros."""
    whole = npy(shape, bytes(int(np.prod(shape))))
    return shared.zipped({f"{name}.npy": whole for name in names}, compressed=True)


def idx(count: int, data: bytes) -> bytes:
    return struct.pack(">4B3I", 0, 0, 8, 3, count, 1000, 1000) + data


def gzipped(count: int) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(idx(count, b""))
        for _ in range(count):
            file.write(bytes(10**6))
    return buffer.getvalue()


def initialisers(count: int) -> bytes:
    """More of them for the graph of a file of ONNX, each of no numbers."""
    each = b"".join(
        b"\x2a\x10\x08\x00\x10\x01\x42\x08%08d\x4a\x00" % number for number in range(count)
    )
    size = len(each)
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127])
    return b"\x3a" + length + each


def pickled(middle: bytes) -> bytes:
    return shared.zipped({"a/data.pkl": b"\x80\x02" + middle + b".", "a/version": b"3"})


DEEP = b"[" * (MEGABYTE // 2) + b"]" * (MEGABYTE // 2)
MANY = b"[" + b"[]," * (MEGABYTE // 3 - 9) + b"0]"
DIGITS = b"9" * MEGABYTE
#: The worst that is known for each target.
WORST: dict[str, tuple[str, Callable[[], bytes]]] = {
    "idx claims 4 PB": ("idx", lambda: idx(2**32 - 1, bytes(MEGABYTE)) + SEPARATOR),
    "gzip of 1 GB": ("gz", lambda: gzipped(1000)),
    "gzip of 60 MB": ("gz", lambda: gzipped(60)),
    "npy claims 1 EB": ("npy", lambda: npy((2**20,) * 3, bytes(MEGABYTE))),
    "npy of sizes": ("npy", lambda: npy(f"({'9' * 4000},{'9' * 4000})", b"")),
    "npy of brackets": ("npy", lambda: npy("(" * 9000, b"")),
    "npz of members": ("npz", lambda: archive(MEGABYTE // 100)),
    "npz of 60 MB": ("npz", lambda: bomb(("images",), (60, 1000, 1000))),
    "npz of features": ("npz", lambda: bomb(("real", "drawn", "other"), (6000, 10_000))),
    "npz arrays of brackets": ("npz_arrays", lambda: npy("[" * 9000, b"") + SEPARATOR),
    "picture of 16 bits": ("picture", lambda: png(8192, 8192, 0, 16, 1)),
    "picture with alpha": ("picture", lambda: png(8192, 8192, 6, 16, 4)),
    "picture that claims 16 GB": (
        "picture",
        lambda: png(8191, 1, 6, 8, 4).replace(struct.pack(">2I", 8191, 1), b"\0\0\xff\xff" * 2),
    ),
    "data set of columns": (
        "huggingface_folder",
        lambda: splits(
            {"features": {f"{i}": {"dtype": "int8", "_type": "Value"} for i in range(5000)}}, []
        ),
    ),
    "data set of files": (
        "huggingface_folder",
        lambda: splits({}, [{"filename": "data-00000-of-00001.arrow"}] * 30_000),
    ),
    "tensors": ("safetensors", lambda: headers(MEGABYTE // 70)),
    "header of brackets": ("safetensors", lambda: DEEP + SEPARATOR),
    "metadata of brackets": ("own", lambda: DEEP),
    "metadata of digits": ("own", lambda: DIGITS),
    "levels": (
        "own",
        lambda: own(schedule={"Discrete": {"logsnr": [1e-9 * -i for i in range(5**7)]}}),
    ),
    "labels": ("own", lambda: own(labels=["a"] * (MEGABYTE // 5), classes=MEGABYTE // 5)),
    "widths": ("own", lambda: own(widths=[4] * (MEGABYTE // 3))),
    "blocks": ("own", lambda: own(widths=[4] * 16, blocks=100, attention=[*range(16)])),
    "heads": ("own", lambda: own(attention=[0] * (MEGABYTE // 3))),
    "notes": ("own", lambda: own(notes={"a": json.loads(MANY)})),
    "layout of the port": ("layouts", lambda: shapes("down.{}.block.0.conv1.weight", 20_000)),
    "layout of OpenAI": ("layouts", lambda: shapes("output_blocks.{}.1.conv.weight", 20_000)),
    "digits in a name": (
        "layouts",
        lambda: shapes("output_blocks." + "9" * 9**5 + "{}.1.conv.weight", 1),
    ),
    "pickle of lists": (
        "torch",
        lambda: pickled(b"]" * (MEGABYTE // 4) + b"a" * (MEGABYTE // 4 - 1)),
    ),
    "pickle of a long": (
        "torch",
        lambda: pickled(b"\x8b" + struct.pack("<i", MEGABYTE // 2) + bytes(MEGABYTE // 2)),
    ),
    "pickle that doubles": (
        "torch",
        lambda: pickled(b"]q\x00" + b"(h\x00h\x00tq\x00" * (MEGABYTE // 20)),
    ),
    "initialisers": ("onnx", lambda: seeds("onnx")[0] + initialisers(MEGABYTE // 18)),
    "diffusers of widths": (
        "diffusers",
        lambda: (
            json.dumps({"block_out_channels": [32] * (MEGABYTE // 4)}).encode() + SEPARATOR + b"{}"
        ),
    ),
    "diffusers of betas": (
        "diffusers",
        lambda: (
            seeds("diffusers")[0].split(SEPARATOR)[0]
            + SEPARATOR
            + json.dumps({"trained_betas": [0.5] * (MEGABYTE // 5)}).encode()
        ),
    ),
    "classifier of labels": ("classifier_file", lambda: MANY),
    "options of dots": ("run_toml", lambda: (b"a." * (MEGABYTE // 2))[: (1 << 14) - 4] + b"a=1"),
    "options of brackets": ("run_toml", lambda: b"data=" + DEEP[-(1 << 14) + 9 :]),
    "options in hex": ("run_toml", lambda: b"steps=0x" + b"f" * 16_000),
    "options of tables": ("run_toml", lambda: b"".join(b"[[a]]\n" for _ in range(2000))),
    "options of a megabyte": ("run_toml", lambda: b"a" * MEGABYTE),
    "state of brackets": ("state", lambda: about_state(DEEP, {})),
    "state of tensors": (
        "state",
        lambda: about_state(b"{}", {f"{i}": ["F32", 0] for i in range(40_000)}),
    ),
    "state of runs": (
        "state",
        lambda: about_state(
            json.dumps(
                {
                    "done": 1,
                    "loss": 0.5,
                    "updates": 0,
                    "scaler": {},
                    "run": dict.fromkeys(map(str, range(70_000))),
                }
            ).encode(),
            {},
        ),
    ),
    "kept text": (
        "kept",
        lambda: b'{"ids":[' + b"[]," * (MEGABYTE // 3) + SEPARATOR + npy((3, 2, 2), bytes(12)),
    ),
    "log": ("log_csv", lambda: b"\n" + b"1,1,1,1,1,1,1,1,1,1\n" * (MEGABYTE // 20)),
    "log of digits": ("log_csv", lambda: b"\n" + DIGITS + b",1" * 9),
    "fields": ("fields", lambda: b'{"a":' + MANY + b"}"),
    "fields of digits": ("fields", lambda: b'{"a":' + DIGITS + b"}"),
    "sampler of digits": ("sampler_json", lambda: b'{"version":' + DIGITS + b"}"),
    "sampler of rows": ("sampler_json", lambda: sampler_of(MEGABYTE // 50)),
    "option of classes": ("options", lambda: b"cat," * (MEGABYTE // 4)),
    "option of digits": ("options", lambda: DIGITS + b"x" + DIGITS),
    "option of spaces": ("options", lambda: b" " * MEGABYTE + b"x"),
}


def test_every_target_has_a_worst_input():
    assert {name for name, _ in WORST.values()} == targets.TARGETS.keys()


def peak() -> int:
    """The most bytes of memory that this process has had since the mark was last reset."""
    (line,) = (row for row in Path("/proc/self/status").read_text().split("\n") if "VmHWM" in row)
    return int(line.split()[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
@pytest.mark.parametrize("worst", WORST)
def test_a_megabyte_takes_at_most_seconds_and_a_gigabyte(worst):
    """Five seconds of a processor, and three times as many of a slow or busy one.

    The memory is what comes on top of the input itself and of the tests.
    """
    name, make = WORST[worst]
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    targets.TARGETS[name](seeds(name)[0])  # imports
    data = make()
    Path("/proc/self/clear_refs").write_text("5")
    before, began = peak(), time.process_time()
    targets.TARGETS[name](data)
    assert time.process_time() - began < 15
    assert peak() - before < 10**9
