"""Reading images: IDX files, folders of pictures, NumPy files, data sets of Hugging Face.

Whatever a file claims, no more memory is asked for than its content can fill; only regular files
are opened; nothing in them is run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddpm_core.cli.datasets import huggingface, idx
from ddpm_core.cli.datasets.arrays import read_features, read_numpy
from ddpm_core.cli.datasets.held import held_out, part
from ddpm_core.cli.datasets.pictures import Reader, read_folder, read_picture
from ddpm_core.cli.datasets.shared import Images
from ddpm_core.typing import Array

__all__ = [
    "SPLITS", "Images", "has_splits", "held_out", "part", "read", "read_features", "read_picture",
    "to_range",
]  # fmt: skip

SPLITS = ("train", "t10k")  #: of IDX files


def read(
    path: str | Path,
    split: str = "train",
    size: int | None = None,
    *,
    background: str = "white",
    skip_bad: bool = False,
) -> Images:
    """The images at a path, which is one of these:

    - a folder with IDX files (`train-images-idx3-ubyte`, plain or .gz, as MNIST and Fashion-MNIST
      come) of images and labels, or such a file of images, with its labels beside it. Classes are
      called "0", "1", ..., or by the lines of a `labels.txt` beside them
    - a folder that `save_to_disk` of Hugging Face's datasets has written: its one column of
      pictures, or of uint8 arrays, and its one ClassLabel, if it has any
    - a folder of pictures. Its sub-folders are classes, unless a picture lies outside of them. Of
      an animation the first frame is taken
    - an .npz with `images` and, optionally, `classes`
    - an .npy, which is mapped: it may be larger than the memory, and must not change meanwhile

    split: "train" or "t10k", of a folder of IDX files; of a DatasetDict any that it has, and
        "t10k" is its "test"
    size: pictures are cropped to a square and resized to it
    background: the colour, "white" or "#ffffff", that transparent pixels of pictures are laid on
    skip_bad: leave out the pictures that cannot be read

    OSError or ValueError, one line, if there is nothing there that can be read. If
    pictures cannot be read, and they are more than the line can name, stderr lists them all.
    """
    path = Path(path)
    reader = Reader(size, background, skip_bad)
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}")
    if path.is_dir():
        if _has_idx(path):
            found = idx.read_pair(idx.beside(path, f"{split}-images"), split)
        elif huggingface.is_saved(path):
            found = huggingface.read_saved(path, split, reader)
        else:
            found = read_folder(path, reader)
    elif path.suffix in (".npy", ".npz"):
        found = read_numpy(path)
    elif "-images" in path.name:
        found = idx.read_pair(path, path.name.split("-images")[0])
    else:
        raise ValueError(
            f"{path} is neither a folder, nor an .npz or .npy file, nor an IDX file of images"
        )
    if len(found.images) == 0:
        raise ValueError(f"{path} has no images")
    return found


def has_splits(path: Path) -> bool:
    """Whether a path is a folder of IDX files or a DatasetDict: `split` says what is read."""
    return path.is_dir() and (_has_idx(path) or huggingface.is_dict(path))


def to_range(images: Array) -> Array:
    """uint8 0 .. 255 to float32 -1 .. 1 (Ho et al. 2020, section 3.3)."""
    return images.astype(np.float32) / 127.5 - 1


def _has_idx(path: Path) -> bool:
    return any(any(path.glob(f"{split}-images*")) for split in SPLITS)
