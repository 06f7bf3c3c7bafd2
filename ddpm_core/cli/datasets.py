"""Reading images: IDX files, folders of pictures, NumPy files.

Whatever a file claims, no more memory is asked for than its content can fill; only regular files
are opened; nothing in them is run.
"""

from __future__ import annotations

import gzip
import io
import math
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from ddpm_core.typing import Array

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  #: of Pillow, which looks at the content
SPLITS = ("train", "t10k")  #: of IDX files

LARGEST = 1 << 34  #: bytes of all images together
RATIO, SMALL = 200, 1 << 26  #: compressed data may grow by the first, or to the second, in bytes
PIXELS = 80_000_000  #: of one picture
CLASSES = 1 << 16


class Images(NamedTuple):
    """images: (N, C, H, W) uint8; classes: (N,) integers or None; labels: the classes' names."""

    images: Array
    classes: Array | None
    labels: tuple[str, ...]


def read(path: str | Path, split: str = "train", size: int | None = None) -> Images:
    """The images at a path, which is one of these:

    - a folder with IDX files (`train-images-idx3-ubyte`, plain or .gz, as MNIST and Fashion-MNIST
      come) of images and labels, or such a file of images, with its labels beside it. Classes are
      called "0", "1", ..., or by the lines of a `labels.txt` beside them
    - a folder of pictures. Its sub-folders are classes, unless a picture lies outside of them.
      Transparent pixels are laid on white; of an animation the first frame is taken
    - an .npz with `images` and, optionally, `classes`; or an .npy

    split: "train" or "t10k", of a folder of IDX files
    size: pictures are cropped to a square and resized to it

    FileNotFoundError or ValueError, one line, if there is nothing there that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}")
    if path.is_dir():
        if has_splits(path):
            found = _read_idx_pair(_beside(path, f"{split}-images"), split)
        else:
            found = _read_pictures(path, size)
    elif path.suffix in (".npy", ".npz"):
        found = _read_numpy(path)
    elif "-images" in path.name:
        found = _read_idx_pair(path, path.name.split("-images")[0])
    else:
        raise ValueError(
            f"{path} is neither a folder, nor an .npz or .npy file, nor an IDX file of images"
        )
    if len(found.images) == 0:
        raise ValueError(f"{path} has no images")
    return found


def has_splits(path: Path) -> bool:
    """Whether a path is a folder of IDX files, where `split` says which are read."""
    return path.is_dir() and any(any(path.glob(f"{split}-images*")) for split in SPLITS)


def to_range(images: Array) -> Array:
    """uint8 0 .. 255 to float32 -1 .. 1 (Ho et al. 2020, section 3.3)."""
    return images.astype(np.float32) / 127.5 - 1


def _open(path: Path) -> IO[bytes]:
    """A regular file, opened: others, such as a FIFO, could be waited for without end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")
    return path.open("rb")


def _check_claim(path: Path, claimed: int, stored: int) -> None:
    """ValueError if stored bytes, compressed, are too few to claim so many."""
    if claimed > LARGEST:
        raise ValueError(f"{path} claims {claimed:,} bytes of data, but {LARGEST:,} are the most")
    if claimed > max(SMALL, RATIO * stored):
        raise ValueError(
            f"{path} claims {claimed:,} bytes of data in {stored:,} compressed ones, but at most "
            f"{RATIO} times as many are read"
        )


def _fill(file: IO[bytes], size: int, start: bytes = b"") -> Array:
    """Up to `size` bytes, as uint8: those at the start and then those of a file."""
    data = np.empty(size, np.uint8)  # its pages are taken as they are written, not before
    done = len(start)
    data[:done] = np.frombuffer(start, np.uint8)
    while done < size and (part := file.read(min(1 << 20, size - done))):
        data[done : done + len(part)] = np.frombuffer(part, np.uint8)
        done += len(part)
    return data[:done]


# IDX (LeCun, MNIST): 0, 0, 8 for bytes, how many dimensions, big-endian sizes, data.


def _read_idx_pair(path: Path, name: str) -> Images:
    images = _read_idx(path, dimensions=3)
    beside = _beside(path.parent, f"{name}-labels")
    classes = _read_idx(beside, dimensions=1)
    if len(images) != len(classes):
        raise ValueError(f"{path.parent} has {len(images)} {name} images but {len(classes)} labels")
    count = int(classes.max(initial=0)) + 1
    labels = _labels(path.parent / "labels.txt", count)
    return Images(images[:, None], classes.astype(np.int64), labels)


def _labels(path: Path, count: int) -> tuple[str, ...]:
    """The names in a file, one a line, or numbers where there is none."""
    if not path.exists():
        return tuple(str(k) for k in range(count))
    with _open(path) as file:
        lines = file.read(1 << 20).decode(errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if not count <= len(names) <= 256:
        raise ValueError(
            f"{path} must name at least {count} classes, one a line, and at most 256, but names "
            f"{len(names)}"
        )
    return names


def _beside(folder: Path, start: str) -> Path:
    found = sorted(file for file in folder.iterdir() if file.name.startswith(start))
    if not found:
        raise FileNotFoundError(f"{folder} has no {start}-*")
    return found[0]


def _read_idx(path: Path, dimensions: int) -> Array:
    head = 4 + 4 * dimensions
    with _open(path) as stored:
        size = path.stat().st_size
        file = cast(IO[bytes], gzip.GzipFile(fileobj=stored)) if path.suffix == ".gz" else stored
        try:
            start = file.read(head)
            if len(start) < head or start[:4] != bytes([0, 0, 8, dimensions]):
                raise ValueError(f"{path} is not an IDX file of {dimensions}-dimensional bytes")
            shape = tuple(np.frombuffer(start, ">u4", dimensions, offset=4).tolist())
            wanted = math.prod(shape)
            if file is not stored or wanted > LARGEST:
                _check_claim(path, wanted, size)
            elif wanted != size - head:
                raise ValueError(f"{path} is truncated: its header says {shape}")
            data = _fill(file, wanted)
            if len(data) != wanted or file.read(1):
                raise ValueError(f"{path} is truncated: its header says {shape}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is not a gzip file, or is truncated ({error})") from None
    if wanted == 0 and len(shape) > 1:
        raise ValueError(f"{path} has no images: its header says {shape}")
    return data.reshape(shape)


# NumPy files.


def _read_numpy(path: Path) -> Images:
    with _open(path) as file:
        if path.suffix == ".npy":
            return _images_of(path, _Npy(path, file, path.stat().st_size), None)
        archive, members = _members(path, file)
        names = [name for name in ("images", "x", "arr_0") if name in members]
        if not names:
            raise ValueError(
                f"{path} has none of images, x, arr_0, but {', '.join(members) or 'nothing'}"
            )
        second = [name for name in ("classes", "labels", "y", "arr_1") if name in members]
        arrays = [
            _Npy(path, _member(path, archive, members[name]), members[name].file_size)
            for name in (names[:1] + second[:1])
        ]
        return _images_of(path, arrays[0], arrays[1] if second else None)


def read_features(path: Path) -> dict[str, Array]:
    """The arrays `real`, `drawn` and, where it is there, `other` of an .npz, of real numbers.

    OSError or ValueError, one line, if they cannot be read.
    """
    with _open(path) as file:
        archive, members = _members(path, file)
        if missing := [name for name in ("real", "drawn") if name not in members]:
            raise ValueError(
                f"{path} lacks {' and '.join(missing)}: features are an .npz of arrays real and "
                f"drawn and, optionally, other"
            )
        arrays: dict[str, Array] = {}
        for name in ("real", "drawn", "other"):
            if name in members:
                info = members[name]
                stored = _Npy(path, _member(path, archive, info), info.file_size)
                if stored.dtype.kind not in "fiu" or len(stored.shape) != 2:
                    raise ValueError(
                        f"{path}: {name} must hold numbers (N, D), a row a sample, but holds "
                        f"{stored.dtype} {stored.shape}"
                    )
                arrays[name] = stored.read()
        return arrays


def _members(path: Path, file: IO[bytes]) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An .npz, opened, and the files in it by the names of the arrays."""
    try:
        archive = zipfile.ZipFile(file)
        return archive, {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    except Exception as error:  # of whatever is wrong with a foreign file
        raise _unreadable(path, error) from None


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    _check_claim(path, info.file_size, min(info.compress_size, path.stat().st_size))
    try:
        return archive.open(info)
    except Exception as error:  # encrypted, of an unknown compression, or damaged
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: object) -> ValueError:
    return ValueError(f"{path} cannot be read as {path.suffix} ({_reason(error)})")


def _reason(error: object) -> str:
    """What a library says, in one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Npy:
    """An .npy file whose header has been read, and is known to fit its size; nothing else yet."""

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self.path, self.file = path, file
        library: Any = np.lib.format
        try:
            self.start = file.read(1 << 14)  # headers of more than 10,000 bytes are refused
            head = io.BytesIO(self.start)
            readers = {
                (1, 0): library.read_array_header_1_0,
                (2, 0): library.read_array_header_2_0,
            }
            self.shape, self.fortran, self.dtype = readers[library.read_magic(head)](head)
        except Exception as error:  # tokenizer's and parser's, too many kinds to name
            raise _unreadable(path, error) from None
        if self.dtype.hasobject:
            raise _unreadable(path, "it holds Python objects")
        claimed = math.prod(self.shape) * self.dtype.itemsize
        if any(n < 0 for n in self.shape) or head.tell() + claimed != size:
            raise _unreadable(
                path, f"its header says {self.dtype} {self.shape}, but it has {size:,} bytes"
            )
        if claimed > LARGEST:
            raise _unreadable(path, f"{claimed:,} bytes, but {LARGEST:,} are the most")
        self.size, self.start = claimed, self.start[head.tell() :]

    def read(self) -> Array:
        try:
            data = _fill(self.file, self.size, self.start)
        except Exception as error:  # damaged data
            raise _unreadable(self.path, error) from None
        if len(data) != self.size:
            raise _unreadable(self.path, "it is truncated")
        array: Array = data.view(self.dtype).reshape(self.shape[:: -1 if self.fortran else 1])
        return array.T if self.fortran else array


def _images_of(path: Path, images: _Npy, classes: _Npy | None) -> Images:
    if classes is not None and classes.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold classes as integers, but holds {classes.dtype}")
    shape = images.shape
    if len(shape) not in (3, 4) or images.dtype != np.uint8:
        raise ValueError(
            f"{path} must hold uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W), but holds "
            f"{images.dtype} {shape}"
        )
    if images.size == 0:
        raise ValueError(f"{path} has no images: their shape is {shape}")
    last = len(shape) == 4 and _channels_last(path, shape)
    if classes is not None and classes.shape != shape[:1]:
        raise ValueError(f"{path} must hold one class of at least 0 per image")
    x = images.read()
    x = x[:, None] if len(shape) == 3 else x.transpose(0, 3, 1, 2) if last else x
    if classes is None:
        return Images(np.ascontiguousarray(x), None, ())
    y = classes.read()
    if y.min() < 0:
        raise ValueError(f"{path} must hold one class of at least 0 per image")
    if y.max() >= CLASSES:
        raise ValueError(
            f"{path} has class {y.max()}, but {CLASSES:,} are the most: number them from 0"
        )
    labels = tuple(str(k) for k in range(int(y.max()) + 1))
    return Images(np.ascontiguousarray(x), y.astype(np.int64), labels)


def _channels_last(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether (N, a, b, c) is channels last: 1 and 3 are channels before 4 is."""
    likely = {1: 2, 3: 2, 4: 1}
    first, last = likely.get(shape[1], 0), likely.get(shape[3], 0)
    if first == last:
        raise ValueError(
            f"{path} has images of shape {shape[1:]}: 1, 3 or 4 channels, first or last?"
        )
    return last > first


# Pictures.


def _read_pictures(folder: Path, size: int | None) -> Images:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in PICTURES and not f.is_dir())
    if not files:
        raise ValueError(
            f"{folder} has no IDX files and no pictures ({', '.join(sorted(PICTURES))})"
        )
    if size is not None and (size * size > PIXELS or 3 * size * size * len(files) > LARGEST):
        raise ValueError(f"{folder} has {len(files)} pictures, too many for a size of {size}")
    pictures: list[Array] = []
    bad: list[str] = []
    total = 0
    for file in files:
        try:
            pictures.append(_read_picture(file, size))
            total += pictures[-1].size
        except Exception as error:  # Pillow's decoders raise whatever they meet
            bad.append(f"{file} ({_reason(error)})")
        if total > LARGEST:
            raise ValueError(f"{folder} has more than {LARGEST:,} bytes of pixels")
    if bad:
        some = ", ".join(bad[:3]) + (f" and {len(bad) - 3} others" if len(bad) > 3 else "")
        raise ValueError(
            f"{len(bad)} of {len(files)} pictures cannot be read; repair or remove {some}"
        )
    if any(p.ndim == 3 for p in pictures):
        pictures = [p if p.ndim == 3 else np.stack([p] * 3, axis=-1) for p in pictures]
    shapes = {p.shape for p in pictures}
    if len(shapes) > 1:
        some = ", ".join(str(s) for s in sorted(shapes)[:3])
        raise ValueError(
            f"{folder} has pictures of different sizes ({some}): bring them to one, as by --size"
        )
    stacked = np.stack(pictures)
    stacked = stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)
    classes, labels = _classes_of(folder, files)
    return Images(np.ascontiguousarray(stacked), classes, labels)


def _classes_of(folder: Path, files: Iterable[Path]) -> tuple[Array | None, tuple[str, ...]]:
    parents = [file.relative_to(folder).parts[:-1] for file in files]
    if not all(parents):
        return None, ()
    labels = sorted({parts[0] for parts in parents})
    if len(labels) > CLASSES:
        raise ValueError(f"{folder} has {len(labels)} sub-folders, but {CLASSES:,} are the most")
    number = {label: k for k, label in enumerate(labels)}
    return np.asarray([number[parts[0]] for parts in parents], dtype=np.int64), tuple(labels)


def read_picture(path: Path) -> Array:
    """A picture in a file: (H, W), if it is grey, or (H, W, 3), uint8, as `read` reads them.

    OSError or ValueError, one line, if it cannot be read.
    """
    try:
        return _read_picture(path, None)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever they meet
        raise ValueError(f"{path} cannot be read as a picture ({_reason(error)})") from None


def _read_picture(path: Path, size: int | None) -> Array:
    """A picture as (H, W), if it is grey, or (H, W, 3)."""
    from PIL import Image, ImageOps

    with _open(path) as file, _opened(file) as opened:
        if opened.width * opened.height > PIXELS:
            raise ValueError(
                f"{opened.width} x {opened.height} pixels, of which {PIXELS:,} are the most"
            )
        grey = opened.mode in ("1", "L", "LA", "La") or opened.mode.startswith("I")
        picture: Image.Image = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255
            values = np.asarray(picture)
            if values.min() < 0 or values.max() > 65535:
                raise ValueError(f"{values.min()} .. {values.max()} is no range of 16 bits")
            picture = Image.fromarray(np.rint(values / 257).astype(np.uint8))
        if picture.mode == "F":  # which may lie in 0 .. 1, or in 0 .. 255
            raise ValueError("its pixels are floats, whose white is unknown: save it with 8 bits")
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("L" if grey else "RGB")
        if size is not None:
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
        return np.asarray(picture)


def _opened(file: IO[bytes]) -> Any:
    from PIL import Image

    try:
        return Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:  # whose message has the object's address
        raise ValueError(f"is not one of {', '.join(FORMATS)}") from None
