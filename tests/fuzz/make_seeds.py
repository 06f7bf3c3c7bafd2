"""Writes the sound inputs from which fuzzing begins: python tests/fuzz/make_seeds.py."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_core import linear, samplers

SEEDS = Path(__file__).parent / "seeds"
sys.path[:0] = [str(Path(__file__).parents[1])]

from fuzz import targets  # noqa: E402
from fuzz.mutations import SEPARATOR  # noqa: E402
from fuzz.shared import headed, zipped  # noqa: E402


def joined(*parts: bytes) -> bytes:
    return SEPARATOR.join(parts)


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.tobytes()


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


def text(about: Any) -> bytes:
    return json.dumps(about).encode()


def ports() -> dict[str, tuple[int, ...]]:
    return {name: p.shape for name, p in targets.PARAMS.items()}


def openais() -> dict[str, tuple[int, ...]]:
    from ddpm_core.checkpoints.openai import theirs_of

    return theirs_of(replace(targets.UNET, cosine_first=True, endpoint=False, eps=1e-5))


def of_diffusers() -> bytes:
    from ddpm_core.checkpoints import save_diffusers

    with tempfile.TemporaryDirectory() as folder:
        save_diffusers(Path(folder, "d"), targets.CHECKPOINT)
        names = ("unet/config.json", "scheduler/scheduler_config.json")
        return joined(*(Path(folder, "d", name).read_bytes() for name in names))


def of_torch(legacy: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    tensors = {"a": torch.zeros(2), "b": torch.ones(2, 3, dtype=torch.float16).T}
    torch.save({"ema": tensors, "step": 3}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def of_onnx(about: dict[str, Any]) -> bytes:
    from onnx import helper, numpy_helper

    tensors = {"a": np.ones(2, np.float32), "b": np.ones((2, 1, 1, 1), np.int8)}
    tensors |= {"b.scale": np.ones(2, np.float32), "c": np.ones(2, np.float16)}
    stored = [numpy_helper.from_array(each, name) for name, each in tensors.items()]
    model = helper.make_model(helper.make_graph([], "g", [], [], stored))
    helper.set_model_props(model, {"ddpm_core": json.dumps(about)})
    return model.SerializeToString()


def of_huggingface(columns: dict[str, Any], **kinds: Any) -> bytes:
    import datasets as library

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "d")
        made = library.Dataset.from_dict(columns, features=library.Features(kinds))
        library.DatasetDict({"train": made}).save_to_disk(str(place))
        names = ("dataset_dict.json", "train/state.json", "train/dataset_info.json")
        arrow = (place / "train" / "data-00000-of-00001.arrow").read_bytes()
        return joined(*((place / name).read_bytes() for name in names), arrow)


def pictures() -> Iterator[bytes]:
    from PIL import Image

    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    colours = np.stack([grey] * 3, -1)
    for kind, pixels in (
        ("PNG", grey),
        ("PNG", np.stack([grey] * 4, -1)),
        ("PNG", grey.astype(np.uint16) * 257),
        ("JPEG", colours),
        ("BMP", colours),
        ("GIF", grey),
        ("WEBP", colours),
        ("TIFF", grey),
    ):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        yield buffer.getvalue()


def seeds() -> Iterator[tuple[str, bytes]]:
    """Names of targets, and sound inputs."""
    import datasets as library

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 2, 2), dtype=np.uint8)
    colours = rng.integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    classes = np.array([0, 2, 1])
    yield "idx", joined(idx(images), idx(classes.astype(np.uint8)))
    yield "idx", joined(idx(images), idx(classes.astype(np.uint8)), b"cat\ndog\n\neel\n")
    yield "gz", gzip.compress(idx(images[:2]), mtime=0)
    for array in (images, colours, colours.transpose(0, 3, 1, 2), np.asfortranarray(images)):
        yield "npy", npy(array)
    yield "npy", npy(images, (2, 0))
    members = {"images.npy": npy(images), "classes.npy": npy(classes)}
    features = {"real.npy": npy(rng.normal(size=(3, 2))), "drawn.npy": npy(np.ones((2, 2), "i2"))}
    for content in (members, features):
        yield "npz", zipped(content)
    yield "npz", zipped(members, compressed=True)
    yield "npz_arrays", joined(npy(images), npy(classes))
    yield "npz_arrays", joined(npy(rng.normal(size=(3, 2))), npy(np.ones((2, 2), np.float16)))
    for content in pictures():
        yield "picture", content
    kind = library.Array3D((4, 3, 3), "uint8")
    yield (
        "huggingface_folder",
        of_huggingface(
            {"x": rng.integers(0, 256, (2, 4, 3, 3), dtype=np.uint8), "y": [0, 1]},
            x=kind,
            y=library.ClassLabel(names=["cat", "dog"]),
        ),
    )
    header = {
        "__metadata__": {"a": "b"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F16", "shape": [1, 2], "data_offsets": [8, 12]},
    }
    yield "safetensors", joined(text(header), bytes(12))
    one = {"0.1/a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    yield "safetensors", joined(text(one), bytes(8))
    yield "safetensors", headed(text(one), bytes(8))
    for schedule in (
        {"Discrete": asdict(targets.CHECKPOINT.schedule)},
        {"VP": {"beta_min": 0.1, "beta_max": 20.0}},
        {"EDM": {}},
        {"Flow": {}},
    ):
        about = {
            "config": asdict(targets.UNET),
            "schedule": schedule,
            "predicts": "eps",
            "size": [8, 8],
            "labels": [],
            "timestep_scale": 1.0,
            "unconditional": True,
            "notes": {"step": 3},
        }
        yield "own", text(about)
    yield "onnx", of_onnx(about)
    yield "layouts", text(ports())
    yield "layouts", text(openais())
    for legacy in (False, True):
        yield "torch", of_torch(legacy)
    yield "diffusers", of_diffusers()
    about = of_diffusers().split(SEPARATOR)[0]
    plain = {"num_train_timesteps": 10, "beta_schedule": "linear", "beta_start": 0.1}
    yield "diffusers", joined(about, text(plain | {"beta_end": 0.2, "prediction_type": "sample"}))
    yield "diffusers", joined(about, text(plain | {"beta_schedule": "squaredcos_cap_v2"}))
    yield "classifier_file", text({"shape": [1, 28, 28], "labels": ["cat", "dog"]})
    yield "run_toml", b'data = "a b"\nwidths = "32,64"\nsteps = 10\nlr = 2e-4\ncompile = false\n'
    yield "run_toml", b"ema = [0.9, 0.99]\nsteps = 0xff\nlr = inf\ndata = 1979-05-27T07:32:00Z\n"
    metadata = {"done": 3, "loss": 0.5, "updates": 3, "scaler": {}, "run": {"seed": 0}}
    tensors = {"net.a": ["F32", 2], "exp_avg_sq.a": ["F32", 2], "levels.count": ["F64", 1, 2]}
    yield "state", joined(text(metadata), text(tensors), np.ones(8, np.float32).tobytes())
    ids, classes, pixels = (
        np.array([0, 1, 3]),
        np.array([0, 1, 1]),
        np.zeros((3, 2, 2, 1), np.uint8),
    )
    yield "kept", joined(text({"seed": 0}), npy(ids), npy(pixels), npy(classes))
    members = {"ids": ids, "images": pixels, "classes": classes}
    files = {f"{name}.npy": npy(array) for name, array in members.items()}
    yield "kept", zipped(files | {"about.json": text({"seed": 0})})
    head = ",".join(targets.log.Row._fields)
    yield "log_csv", f"{head}\n10,0.5,0.1,0.2,0.3,nan,1.5,0.0002,12.5,3.1\n".encode()
    yield "fields", text({"a": 1, "b": [1, 2.5], "c": {"d": "e"}, "f": None, "g": True, "h": "a"})
    for solver in (samplers.ddim, samplers.unipc_2):
        yield "sampler_json", solver(linear(1000), 2).to_json().encode()
    for option in ("8x10", "100:200", "32,64,64", "0.1,0.2", "cat, 7,none", "#ff8000", "ddim"):
        yield "options", option.encode()


def main() -> None:
    for name, data in seeds():
        path = SEEDS / name / f"{hashlib.sha256(data).hexdigest()[:12]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
