"""A function a parser, bytes -> None: it raises if the parser breaks its word.

The word: what cannot be read is refused with the errors that the docstring names, in one line of
bounded length that names the file or the option; what can be read has the promised types.

An input has parts, split at `mutations.SEPARATOR`. Where a format has a sum over its content, a
target reads the input as it is, and again with the sum made right: behind it lies the parser.
"""

from __future__ import annotations

import gzip
import json
import math
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_bytes

from ddpm_core.checkpoints import classifier, load, openai, port
from ddpm_core.checkpoints.diffusers import CONFIG, SCHEDULER, STEM, theirs_of
from ddpm_core.checkpoints.fields import parse
from ddpm_core.checkpoints.own import KEY, Checkpoint
from ddpm_core.cli import average, drawing, log, networks, sample, toml
from ddpm_core.cli.datasets import held_out, read, read_features, read_picture
from ddpm_core.cli.datasets.pictures import Reader
from ddpm_core.cli.kept import Kept
from ddpm_core.nn.network import UNetConfig, initialise, parameter_shapes
from ddpm_core.samplers import Sampler
from ddpm_core.schedules import linear
from fuzz.shared import HERE, LONGEST, chunked, headed, parts, refused, summed, written, zipped

MOST = 1 << 20  #: numbers of a tensor: what a file of a few megabytes can hold

UNET = UNetConfig(channels=1, out_channels=1, widths=(4, 8), blocks=1, attention=(1,), groups=4)
PARAMS = initialise(UNET, np.random.default_rng(0))
CHECKPOINT = Checkpoint(PARAMS, UNET, linear(10, rescale=False), (8, 8))
LABELLED = Checkpoint(
    {},
    UNetConfig(widths=(32,), classes=3, attention=()),
    linear(10, rescale=False),
    (8, 8),
    labels=("cat", "7", "None"),
)
OPTIONS = ("data", "widths", "steps", "ema", "lr", "compile")  #: some of `train`'s

TARGETS: dict[str, Callable[[bytes], None]] = {}


def target(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
    TARGETS[run.__name__] = run
    return run


def images_at(path: Path) -> None:
    """What `datasets.read` promises."""
    with refused(ValueError, OSError, naming=(path, "pictures can")):
        found = read(path)
        assert found.images.ndim == 4
        assert found.images.dtype == np.uint8
        assert len(found.images)
        if found.classes is not None:
            assert found.classes.shape == found.images.shape[:1]
            assert 0 <= found.classes.min() <= found.classes.max() < len(found.labels)
        held_out(found.images, 0.5)


def checkpoint_at(path: Path) -> None:
    """What `load` promises."""
    with refused(ValueError, OSError, ImportError, naming=path):
        found = load(path)
        shapes = {name: p.shape for name, p in found.params.items()}
        assert shapes == parameter_shapes(found.config)
        assert all(p.dtype == np.float32 and np.isfinite(p).all() for p in found.params.values())
        assert all(isinstance(side, int) and side > 0 for side in found.size)
        found.schedule(np.asarray(found.schedule.ends))


@target
def idx(data: bytes) -> None:
    """A folder of images, labels and names: plain, as gzip, and with bytes that claim to be."""
    images, labels, names = parts(data, 3)
    for number, (ending, pack) in enumerate(
        [("", bytes), (".gz", lambda b: gzip.compress(b, 1, mtime=0)), (".gz", bytes)]
    ):
        folder = f"idx{number}"
        written(f"{folder}/train-images-idx3-ubyte{ending}", pack(images))
        written(f"{folder}/train-labels-idx1-ubyte{ending}", pack(labels))
        if names:
            written(f"{folder}/labels.txt", names)
        else:
            (HERE / folder / "labels.txt").unlink(missing_ok=True)
        images_at(HERE / folder)


@target
def gz(data: bytes) -> None:
    """The bytes of gzip themselves, around images."""
    written("gz/train-labels-idx1-ubyte", struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2))
    written("gz/train-images-idx3-ubyte.gz", data)
    images_at(HERE / "gz")


@target
def npy(data: bytes) -> None:
    images_at(written("a.npy", data))


@target
def npz(data: bytes) -> None:
    """A zip as it is, and with its CRCs made right."""
    for content in {data, summed(data)}:
        path = written("a.npz", content)
        images_at(path)
        with refused(ValueError, OSError, naming=path):
            read_features(path)


@target
def npz_arrays(data: bytes) -> None:
    """Two .npy files in a sound zip, as images and classes, and as features."""
    first, second = parts(data, 2)
    images_at(written("b.npz", zipped({"images.npy": first, "classes.npy": second})))
    packed = {"real.npy": first, "drawn.npy": second, "other.npy": first}
    path = written("b.npz", zipped(packed, compressed=True))
    with refused(ValueError, OSError, naming=path):
        for array in read_features(path).values():
            assert array.ndim == 2


@target
def picture(data: bytes) -> None:
    """A picture of any format; the CRCs of a PNG are made right."""
    for content in {data, chunked(data)}:
        path = written("a.png", content)
        with refused(ValueError, OSError, naming=path):
            found = read_picture(path)
            assert found.dtype == np.uint8
            assert found.ndim in (2, 3)


@target
def huggingface_folder(data: bytes) -> None:
    """The JSON of a data set of Hugging Face, and the data."""
    splits, state, info, arrow = parts(data, 4)
    written("hf/dataset_dict.json", splits)
    written("hf/train/state.json", state)
    written("hf/train/dataset_info.json", info)
    written("hf/train/data-00000-of-00001.arrow", arrow)
    images_at(HERE / "hf")


@target
def safetensors(data: bytes) -> None:
    """A file's bytes, and a header and data whose length is made right."""
    header, values = parts(data, 2)
    for content in (data, headed(header, values)):
        path = written("000100.safetensors", content)
        checkpoint_at(path)
        with refused(ValueError, OSError, naming=path), ExitStack() as stack:
            for snapshot in average._open(path, {"a": (2,)}, stack):
                assert snapshot.width > 0
                snapshot.read("a")


@target
def own(data: bytes) -> None:
    """The metadata of a checkpoint of sound tensors."""
    text = data.decode(errors="replace")
    checkpoint_at(written("m.safetensors", to_bytes(PARAMS, metadata={KEY: text})))


@target
def layouts(data: bytes) -> None:
    """Names and shapes, as JSON, of tensors of ones: Ho et al.'s port and OpenAI's."""
    try:
        shapes = {name: tuple(shape) for name, shape in json.loads(data).items()}
        small = all(type(n) is int and n >= 0 for shape in shapes.values() for n in shape)
        if not small or sum(map(math.prod, shapes.values())) > MOST:
            return
        content = to_bytes({n: np.ones(s, np.float32) for n, s in shapes.items()})
    except Exception:  # no names and shapes
        return
    path = written("l.safetensors", content)
    checkpoint_at(path)
    for reader in (port, openai):
        with refused(ValueError, naming=path):
            reader.read(path, {n: np.ones(s, np.float32) for n, s in shapes.items()})


@target
def torch(data: bytes) -> None:
    """A file of torch as it is, and with its CRCs made right."""
    for content in {data, summed(data)}:
        checkpoint_at(written("m.pt", content))


@target
def onnx(data: bytes) -> None:
    checkpoint_at(written("m.onnx", data))


@target
def diffusers(data: bytes) -> None:
    """The two JSON files of a folder whose tensors are sound."""
    about, scheduler = parts(data, 2)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in theirs_of(UNET).items()}
    written(f"d/{CONFIG}", about)
    written(f"d/{SCHEDULER}", scheduler)
    written(f"d/{STEM}.safetensors", to_bytes(tensors))
    checkpoint_at(HERE / "d")


@target
def classifier_file(data: bytes) -> None:
    """The metadata of a classifier."""
    text = data.decode(errors="replace")
    content = to_bytes({"a": np.zeros(1, np.float32)}, metadata={classifier.KEY: text})
    path, classifiers = written("c.safetensors", content), classifier.classifiers
    classifier.classifiers = lambda: {"c": path}
    try:
        with refused(ValueError, OSError, naming=path):
            found = classifier.load_classifier("c")
            assert len(found.shape) == 3
    finally:
        classifier.classifiers = classifiers


@target
def run_toml(data: bytes) -> None:
    path = written("run.toml", data)
    with refused(ValueError, naming=path):
        found = toml.read(path, OPTIONS)
        assert all(isinstance(word, str) for word in found.values())
        assert found.keys() <= set(OPTIONS)


@target
def state(data: bytes) -> None:
    """A state's file, and a text and tensors whose checksum is made right."""
    from ddpm_core_torch.training import state as states

    text, header, values = parts(data, 3)
    contents = [data]
    try:
        about = json.loads(header)
        known = {k: np.dtype(v) for k, v in {"F32": "<f4", "F64": "<f8", "F16": "<f2"}.items()}
        at, tensors = 0, {}
        for name, (kind, *shape) in about.items():
            if not all(type(n) is int and 0 <= n <= MOST for n in shape):
                raise ValueError
            size = math.prod(shape) * known[kind].itemsize
            filled = values[at : at + size].ljust(size, b"\0") if size < MOST else b""
            tensors[name], at = np.frombuffer(filled, known[kind]).reshape(shape), at + size
        words = text.decode(errors="replace")
        digest = states._sum(words, tensors)
        contents.append(to_bytes(tensors, metadata={"training": f"{digest} {words}"}))
    except Exception:  # no names and shapes
        pass
    for content in contents:
        path = written("state-000001.safetensors", content)
        with refused(ValueError, OSError, naming=path, most=LONGEST + 9 * len(data)):
            found = states.read(path)
            assert found.done >= 0
            assert math.isfinite(found.loss)
            assert all(np.isfinite(value).all() for value in found.tensors.values())
            different = states.differences(found, {"seed": 0})
            if different:
                raise states.OtherRunError(path, different)


@target
def kept(data: bytes) -> None:
    """A file of kept samples: a zip with its CRCs made right, and a text and arrays in a zip."""
    about, ids, images, classes = parts(data, 4)
    members = {
        "ids.npy": ids, "images.npy": images, "classes.npy": classes, "about.json": about,
    }  # fmt: skip
    for content in (summed(data), zipped(members), zipped(members, compressed=True)):
        path = written("k/samples-00000000.npz", content)
        with refused(ValueError, OSError, naming=path.parent):
            arrays = {"images": np.zeros((4, 2, 2, 1), np.uint8)}
            given = {"classes": np.array([0, 1, 0, 1])}
            found = Kept(path.parent, "samples", {"seed": 0}, arrays, given)
            assert found.arrays["images"].shape == (4, 2, 2, 1)
            assert found.there.shape == (4,)


@target
def log_csv(data: bytes) -> None:
    path = written("log.csv", data)
    rows = log.read(path)
    assert all(isinstance(row.step, int) for row in rows)
    for row in rows:
        log._line(row)


@target
def sampler_json(data: bytes) -> None:
    names = ("sampler's JSON", "must be finite", "logsnr", "only the last level", "has shape")
    with refused(ValueError, naming=names):
        found = Sampler.from_json(data.decode(errors="replace"))
        text = found.to_json()
        assert Sampler.from_json(text).to_json() == text


_TAKES: dict[str, Callable[[Any, str], Any]] = {
    "integer": lambda about, name: about.integer(name, 0, 10),
    "integers": lambda about, name: about.integers(name, 2, 0, 10),
    "number": lambda about, name: about.number(name, 1.0),
    "numbers": lambda about, name: about.numbers(name),
    "flag": lambda about, name: about.flag(name),
    "texts": lambda about, name: about.texts(name),
    "entries": lambda about, name: about.entries(name),
    "fields": lambda about, name: about.fields(name),
    "one_of": lambda about, name: about.one_of(name, (0, False, "a", None, 1.5)),
}


@target
def fields(data: bytes) -> None:
    """JSON, and each way to take an entry, of each entry whose name we could ask for."""
    with refused(ValueError, naming="a.json"):
        about = parse(data, "a.json")
        ours = (name for name in list(about.about)[:20] if len(name) < 80 and name.isprintable())
        for name in ["missing", *ours]:
            for take in _TAKES.values():
                with refused(ValueError, naming="a.json"):
                    take(about, name)


@target
def options(data: bytes) -> None:
    """The options of the command line that are texts with a grammar of their own."""
    text = data.decode(errors="replace")
    for name, take in (
        ("--grid", sample.parse_grid),
        ("--ids", lambda text: sample.parse_ids(text, None)),
        ("--widths", lambda text: networks.integers("--widths", text)),
        ("--ema", lambda text: networks.numbers("--ema", text)),
        ("class", lambda text: drawing.deal(text, LABELLED)),
        ("background", lambda text: Reader(1, text, False).read(HERE, [], lambda i: None)),
        ("is not a width", lambda text: average._check_width(HERE, text)),
        ("no sampler", drawing.check_sampler),
    ):
        with refused(ValueError, naming=name, most=LONGEST + 6 * len(text)):  # which main() cuts
            take(text)
