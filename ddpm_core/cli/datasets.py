"""Reading images to train on: IDX files, folders of pictures, NumPy files."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_core.typing import Array

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class Images(NamedTuple):
    """images: (N, C, H, W) uint8; classes: (N,) integers or None; labels: the classes' names."""

    images: Array
    classes: Array | None
    labels: tuple[str, ...]


def read(path: str | Path, split: str = "train", size: int | None = None) -> Images:
    """The images at a path.

    A folder with IDX files (`train-images-idx3-ubyte`, plain or .gz, as Fashion-MNIST and MNIST
    come), a folder of pictures (sub-folders are classes), or an .npz / .npy file.

    split: "train" or "t10k", of IDX files
    size: pictures are cropped to a square and resized to it

    FileNotFoundError or ValueError, one line, if there is nothing there that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}")
    if path.is_file():
        found = _read_numpy(path)
    elif any(path.glob(f"{split}-images*")):
        found = _read_idx_folder(path, split)
    else:
        found = _read_pictures(path, size)
    if len(found.images) == 0:
        raise ValueError(f"{path} has no images")
    return found


def to_range(images: Array) -> Array:
    """uint8 0 .. 255 to float32 -1 .. 1 (Ho et al. 2020, section 3.3)."""
    return images.astype(np.float32) / 127.5 - 1


def _read_idx_folder(folder: Path, split: str) -> Images:
    images = _read_idx(_one(folder, f"{split}-images*"), dimensions=3)
    classes = _read_idx(_one(folder, f"{split}-labels*"), dimensions=1)
    if len(images) != len(classes):
        raise ValueError(f"{folder} has {len(images)} {split} images but {len(classes)} labels")
    count = int(classes.max()) + 1 if len(classes) else 0
    fashion = "fashion" in str(folder.resolve()).lower() and count == len(FASHION)
    labels = FASHION if fashion else tuple(str(k) for k in range(count))
    return Images(images[:, None], classes.astype(np.int64), labels)


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{folder} has no {pattern}")
    return found[0]


def _read_idx(path: Path, dimensions: int) -> Array:
    """An IDX file of unsigned bytes (LeCun, MNIST): 0 0 8 dimensions, big-endian sizes, data."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a gzip file, or is truncated ({error})") from None
    head = 4 + 4 * dimensions
    if len(data) < head or data[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{path} is not an IDX file of {dimensions}-dimensional bytes")
    shape = tuple(np.frombuffer(data, ">u4", dimensions, offset=4).tolist())
    if len(data) != head + math.prod(shape):
        raise ValueError(f"{path} is truncated: its header says {shape}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _read_numpy(path: Path) -> Images:
    if path.suffix not in {".npy", ".npz"}:
        raise ValueError(f"{path} is neither a folder nor an .npz or .npy file")
    try:
        with path.open("rb") as file:
            loaded: Any = np.load(file, allow_pickle=False)
            zipped = hasattr(loaded, "files")
            arrays: dict[str, Array] = dict(loaded) if zipped else {"images": loaded}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix} ({error})") from None
    images = arrays[_key(path, list(arrays), ("images", "x", "arr_0"))]
    second = [name for name in ("classes", "labels", "y", "arr_1") if name in arrays]
    classes = arrays[second[0]] if second else None
    if classes is not None and not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"{path} must hold classes as integers, but holds {classes.dtype}")
    classes = None if classes is None else classes.astype(np.int64)
    if images.ndim not in (3, 4) or images.dtype != np.uint8:
        raise ValueError(
            f"{path} must hold uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W), but holds "
            f"{images.dtype} {images.shape}"
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3, 4):
        if images.shape[-1] not in (1, 3, 4):
            raise ValueError(f"{path} has images of shape {images.shape[1:]}: 1, 3 or 4 channels?")
        images = images.transpose(0, 3, 1, 2)
    if classes is not None and (classes.shape != (len(images),) or classes.min(initial=0) < 0):
        raise ValueError(f"{path} must hold one class of at least 0 per image")
    count = 0 if classes is None else int(classes.max(initial=-1)) + 1
    return Images(np.ascontiguousarray(images), classes, tuple(str(k) for k in range(count)))


def _key(path: Path, names: list[str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise ValueError(f"{path} has none of {', '.join(wanted)}, but {', '.join(names) or 'nothing'}")


def _read_pictures(folder: Path, size: int | None) -> Images:
    from PIL import Image, ImageOps

    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(
            f"{folder} has no IDX files and no pictures ({', '.join(sorted(PICTURES))})"
        )
    pictures: list[Array] = []
    for file in files:
        try:
            with Image.open(file) as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255
                    picture = Image.fromarray(
                        np.rint(np.asarray(picture).clip(0, 65535) / 257).astype(np.uint8)
                    )
                picture = picture.convert("L" if picture.mode in ("1", "L", "F") else "RGB")
                if size is not None:
                    picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
                pictures.append(np.asarray(picture))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{file} is not an image that can be read ({error})") from None
    if any(p.ndim == 3 for p in pictures):
        pictures = [p if p.ndim == 3 else np.stack([p] * 3, axis=-1) for p in pictures]
    shapes = {p.shape for p in pictures}
    if len(shapes) > 1:
        some = ", ".join(str(s) for s in sorted(shapes)[:3])
        raise ValueError(f"{folder} has pictures of different sizes ({some}); pass a size")
    stacked = np.stack(pictures)
    stacked = stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)
    parents = [file.relative_to(folder).parts[:-1] for file in files]
    if not all(parents):
        return Images(np.ascontiguousarray(stacked), None, ())
    labels = tuple(sorted({parts[0] for parts in parents}))
    classes = np.asarray([labels.index(parts[0]) for parts in parents], dtype=np.int64)
    return Images(np.ascontiguousarray(stacked), classes, labels)
