"""Pictures: decoded, brought to one shape, and what that changed."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ddpm_core.cli.datasets.shared import CLASSES, LARGEST, Images, open_regular, reason
from ddpm_core.cli.progress import progress
from ddpm_core.typing import Array

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  #: of Pillow, which looks at the content

PIXELS = 1 << 26  #: of one picture, which takes up to 1 GB
AHEAD = 128  #: pictures that are decoded before they are asked for
PATIENCE = 2.0  #: seconds without a word of progress
NAMED = 3  #: things that a line names, of many


class Picture(NamedTuple):
    """pixels: (H, W), if it is grey, or (H, W, 3), uint8; and what it was before.

    size: width and height, as its orientation says
    """

    pixels: Array
    size: tuple[int, int]
    mode: str
    transparent: bool


@dataclass(frozen=True)
class Reader:
    """How pictures become images of one shape: see `read`."""

    size: int | None
    background: str
    skip_bad: bool

    def read(
        self, where: Path, names: Sequence[object], decode: Callable[[int], Any]
    ) -> tuple[Array, list[int], tuple[str, ...]]:
        """The images (N, C, H, W), the numbers of those that can be read, and what was changed.

        names: of all pictures
        decode: from the number of one to the picture, open, in a context
        """
        count, size, colour = len(names), self.size, _colour(self.background)
        if size is not None and (size * size > PIXELS or 3 * size * size * count > LARGEST):
            raise ValueError(f"{where} has {count} pictures, too many for a size of {size}")

        def one(i: int) -> Picture | str:
            try:
                with decode(i) as opened:
                    return _picture(opened, size, colour)
            except MemoryError:
                raise
            except Exception as error:  # Pillow's decoders raise whatever they meet
                return reason(error)

        stack, changes = _Stack(where, names), _Changes()
        kept: list[int] = []
        bad: list[str] = []
        began, bar = time.monotonic(), None
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, ExitStack() as shown:
            for first in range(0, count, AHEAD):
                numbers = range(first, min(first + AHEAD, count))
                for i, found in zip(numbers, pool.map(one, numbers), strict=True):
                    if isinstance(found, str):
                        bad.append(f"{' '.join(str(names[i]).split())} ({found})")
                    else:
                        stack.add(i, found.pixels)
                        changes.add(found)
                        kept.append(i)
                if bar is not None:
                    bar.advance(len(numbers))
                elif time.monotonic() - began > PATIENCE:
                    label = "Reading pictures"
                    bar = shown.enter_context(progress(count, label, done=numbers.stop))
        said = changes.said(stack.images(), size, self.background)
        if bad:
            said += (self._without(bad, count),)
        return stack.images(), kept, said

    def _without(self, bad: list[str], count: int) -> str:
        """What is said of pictures that cannot be read; ValueError if they are not left out."""
        if len(bad) > NAMED:
            sys.stderr.write("".join(f"{line}\n" for line in bad))
        some = _some(bad) + (", all listed above" if len(bad) > NAMED else "")
        if not self.skip_bad:
            raise ValueError(
                f"{len(bad)} of {count} pictures cannot be read: repair or remove them, or leave "
                f"them out, as by --skip-bad: {some}"
            )
        if len(bad) == count:
            raise ValueError(f"none of {count} pictures can be read: {some}")
        return f"{len(bad):,} of {count:,} pictures cannot be read and are left out: {some}"


class _Stack:
    """Pictures of one size, in one array, of three channels as soon as one is in colour."""

    def __init__(self, where: Path, names: Sequence[object]) -> None:
        self.where, self.names, self.first, self.count = where, names, 0, 0
        self.data = np.empty((len(names), 0, 0, 0), np.uint8)

    def add(self, i: int, pixels: Array) -> None:
        height, width, *colours = pixels.shape
        x = pixels.transpose(2, 0, 1) if colours else pixels[None]
        if self.count == 0:
            self.first = i
        elif self.data.shape[2:] != (height, width):
            raise ValueError(
                f"{self.where} has pictures of different sizes ({self.names[self.first]}: "
                f"{_sides(self.data)}, {self.names[i]}: {_sides(x)}): bring them to one, as by "
                f"--size"
            )
        if len(x) > self.data.shape[1]:
            grey, self.data = self.data, self._empty(x)
            if self.count:
                self.data[: self.count] = grey[: self.count]
        self.data[self.count] = x
        self.count += 1

    def images(self) -> Array:
        return self.data[: self.count]

    def _empty(self, x: Array) -> Array:
        if len(self.names) * x.size > LARGEST:
            raise ValueError(
                f"{self.where} has more than {LARGEST:,} bytes of pixels: {len(self.names)} "
                f"pictures of {_sides(x)}"
            )
        return np.empty((len(self.names), *x.shape), np.uint8)  # pages are taken as written


def _sides(x: Array) -> str:
    return f"{x.shape[-1]} x {x.shape[-2]}"


class _Changes:
    """What has been done to pictures."""

    def __init__(self) -> None:
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.modes: Counter[str] = Counter()
        self.grey = self.transparent = 0

    def add(self, found: Picture) -> None:
        self.sizes[found.size] += 1
        self.modes[found.mode] += 1
        self.grey += found.pixels.ndim == 2
        self.transparent += found.transparent

    def said(self, images: Array, size: int | None, background: str) -> tuple[str, ...]:
        """A sentence for each kind of change."""
        each = self.sizes.items()
        other = Counter({f"{w} x {h}": n for (w, h), n in each if size and (w, h) != (size, size)})
        modes = Counter({m: n for m, n in self.modes.items() if m not in ("L", "RGB")})
        cropped = sum(n for (w, h), n in each if size and w != h)
        larger = sum(n for s, n in each if size and min(s) < size)
        sentences = (
            (other.total(), f"resized to {size} x {size}, from {_counts(other)}"),
            (larger, "made larger by that"),
            (cropped, "cropped to a square"),
            (modes.total(), f"converted to grey or RGB, from {_counts(modes)}"),
            (self.transparent, f"laid on {background} where transparent"),
            (self.grey * (images.shape[1] == 3), "grey and got three equal channels"),
        )
        of = f"of {self.sizes.total():,} pictures"
        return tuple(
            f"{count:,} {of} {'was' if count == 1 else 'were'} {what}"
            for count, what in sentences
            if count
        )


def _counts(counter: Counter[str]) -> str:
    return _some([f"{what} ({count:,})" for what, count in counter.most_common()])


def _some(things: list[str]) -> str:
    more = len(things) - NAMED
    return ", ".join(things[:NAMED]) + (f" and {more:,} others" if more > 0 else "")


def read_folder(folder: Path, reader: Reader) -> Images:
    """The pictures in a folder and in those below it."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in PICTURES and not f.is_dir())
    if not files:
        raise ValueError(
            f"{folder} has no IDX files and no pictures ({', '.join(sorted(PICTURES))})"
        )
    images, kept, said = reader.read(folder, files, lambda i: _opened_at(files[i]))
    classes, labels = _classes_of(folder, files)
    return Images(images, None if classes is None else classes[kept], labels, said)


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
        with _opened_at(path) as opened:
            return _picture(opened, None, (255, 255, 255)).pixels
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever they meet
        raise ValueError(f"{path} cannot be read as a picture ({reason(error)})") from None


def _picture(opened: Any, size: int | None, colour: tuple[int, ...]) -> Picture:
    """A picture as it is read; transparent pixels of a grey one may show a colour."""
    from PIL import Image, ImageOps

    if opened.width * opened.height > PIXELS:
        raise ValueError(
            f"{opened.width} x {opened.height} pixels, of which {PIXELS:,} are the most"
        )
    grey = opened.mode in ("1", "L", "LA", "La") or opened.mode.startswith("I")
    mode, picture = opened.mode, opened
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255
        values = np.array(picture, np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{values.min()} .. {values.max()} is no range of 16 bits")
        values += 128  # in place, as v / 257 rounded would not be
        values //= 257
        picture = Image.fromarray(values.astype(np.uint8))
    if picture.mode == "F":  # which may lie in 0 .. 1, or in 0 .. 255
        raise ValueError("its pixels are floats, whose white is unknown: save it with 8 bits")
    transparent = False
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = _in_mode(picture, "RGBA")
        transparent = picture.getchannel("A").getextrema()[0] < 255
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture)
        grey = grey and not (transparent and len(set(colour)) > 1)
    whole = picture.size
    picture = _in_mode(picture, "L" if grey else "RGB")
    if size is not None:  # a filter as wide as what becomes one pixel: it does not alias
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return Picture(np.asarray(picture), whole, mode, transparent)


def _in_mode(picture: Any, mode: str) -> Any:
    """A picture in a mode: itself, not a copy, if it has that already."""
    return picture if picture.mode == mode else picture.convert(mode)


def _colour(name: str) -> tuple[int, ...]:
    from PIL import ImageColor

    try:
        *colour, alpha = (*ImageColor.getrgb(name), 255)[:4]
    except ValueError:
        alpha = 0
        colour = []
    if alpha < 255:
        raise ValueError(
            f"background must be an opaque colour, such as white or #ff8000, but is {name!r}"
        )
    return tuple(colour)


@contextmanager
def _opened_at(path: Path) -> Generator[Any]:
    with open_regular(path) as file, opened_picture(file) as opened:
        yield opened


def opened_picture(file: IO[bytes]) -> Any:
    """A picture of one of the formats that are read, in a context."""
    from PIL import Image

    try:
        return Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:  # whose message has the object's address
        raise ValueError(f"is not one of {', '.join(FORMATS)}") from None
