"""Data sets of Hugging Face, as `save_to_disk` writes them; nothing is ever downloaded."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_core.checkpoints.fields import MAX_JSON, Fields, cut, parse, shown
from ddpm_core.cli.datasets.pictures import Reader, opened_picture
from ddpm_core.cli.datasets.shared import Images, channels_last, open_regular, reason

DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def is_saved(path: Path) -> bool:
    """Whether a folder is one of `Dataset.save_to_disk`, or of `DatasetDict.save_to_disk`."""
    return is_dict(path) or all((path / name).exists() for name in (STATE, INFO))


def is_dict(path: Path) -> bool:
    """Whether a folder has splits, which are data sets."""
    return (path / DICT).exists()


def read_saved(path: Path, split: str, reader: Reader) -> Images:
    """The images of a data set, and their classes if it has one column of ClassLabel."""
    library: Any = _library(path)
    if is_dict(path):
        path = path / _split(path, split)
    for name in _files(path):
        open_regular(path / name).close()
    try:
        dataset = library.load_from_disk(str(path.absolute())).with_format(None)
        dataset.data.validate(full=True)  # offsets outside of the data would end the process
        features = dataset.features
    except Exception as error:  # of whatever is wrong with a foreign file
        raise ValueError(f"{path} cannot be read as a data set ({reason(error)})") from None
    images = [name for name, kind in features.items() if _is_image(library, kind)]
    labels = [name for name, kind in features.items() if isinstance(kind, library.ClassLabel)]
    if len(images) != 1 or len(labels) > 1:
        columns = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
        raise ValueError(
            f"{path} must have one column of pictures (Image, or uint8 arrays of 2 or 3 "
            f"dimensions) and at most one ClassLabel, but has {reason(columns)}: keep those that "
            f"are meant, as by select_columns"
        )
    column = dataset.select_columns(images)
    if isinstance(features[images[0]], library.Image):
        column = column.cast_column(images[0], library.Image(decode=False))
    rows = [f"row {i}" for i in range(len(column))]
    x, kept, said = reader.read(path, rows, lambda i: _open(column[i]))
    if not labels:
        return Images(x, None, (), said)
    classes = dataset.select_columns(labels)[:][labels[0]]
    if None in classes or min(classes, default=0) < 0:
        raise ValueError(f"{path} has rows without a class in its column {labels[0]}")
    names = tuple(features[labels[0]].names)
    if max(classes, default=0) >= len(names):
        raise ValueError(
            f"{path} has class {max(classes)} in its column {labels[0]}, but names {len(names)}"
        )
    return Images(x, np.asarray(classes, np.int64)[kept], names, said)


def _library(path: Path) -> Any:
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ImportError(f"{path} needs {error.name} to be read: pip install datasets") from None


def _split(path: Path, split: str) -> str:
    """The split of a DatasetDict that is asked for; "t10k" is its "test"."""
    splits = _json(path / DICT).texts("splits")
    if split == "t10k" and split not in splits:
        split = "test"
    if split not in splits:
        raise ValueError(f"{path} has no split {split}, but {cut(', '.join(splits))}")
    return split


def _files(path: Path) -> list[str]:
    """The files of a data set."""
    names = [STATE, INFO]
    for file in _json(path / STATE).entries("_data_files"):
        name = Fields(file, f"{path / STATE}: an entry of _data_files").value("filename")
        if not isinstance(name, str) or Path(name).name != name or not name.isprintable():
            raise ValueError(f"{path} has data outside of it: {shown(name)}")
        names.append(name)
    return names


def _json(path: Path) -> Fields:
    with open_regular(path) as file:
        return parse(file.read(MAX_JSON + 1), str(path))


def _is_image(library: Any, kind: Any) -> bool:
    if isinstance(kind, library.Image):
        return True
    if isinstance(kind, (library.Array2D, library.Array3D)):
        return kind.dtype == "uint8"
    depth = 0
    while hasattr(kind, "feature"):
        kind, depth = kind.feature, depth + 1
    return depth in (2, 3) and kind == library.Value("uint8")


def _open(row: dict[str, Any]) -> Any:
    """The picture in a row, of one column, in a context."""
    from PIL import Image

    (value,) = row.values()
    if value is None:
        raise ValueError("is empty")
    if "bytes" in value:
        if value["bytes"] is None:
            raise ValueError("has no picture in it, only a path")
        return opened_picture(io.BytesIO(value["bytes"]))
    pixels = np.asarray(value, np.uint8)
    if pixels.ndim == 3:
        pixels = pixels if channels_last("the row", pixels.shape) else pixels.transpose(1, 2, 0)
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))
