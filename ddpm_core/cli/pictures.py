"""Pictures of samples: single ones and sheets as PNG, a process as GIF."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_core.checkpoints.files import write_whole
from ddpm_core.typing import Array

GAP = 2
PIXELS = 1 << 27  #: of one picture that is written; of a GIF, of all its frames


def to_bytes(x: Array) -> Array:
    """Numbers in [-1, 1] as the nearest of 0 .. 255; those beyond are clipped."""
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)


def flat(pixels: Array) -> Array:
    """Images (..., C) in uint8 as Pillow takes them: (...) if grey, else (..., 3)."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]


def resized(pixels: Array, size: tuple[int, int], resampling: str, mode: str = "L") -> Array:
    """Pixels in a mode of Pillow, cropped to the aspect ratio of (H, W) and resized to it."""
    from PIL import Image, ImageOps

    picture = Image.fromarray(pixels).convert(mode)
    if pixels.shape[:2] != size:
        picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling[resampling])
    return np.asarray(picture)


def sides(size: tuple[int, ...]) -> str:
    """(H, W, ...) in words, the width first."""
    return f"{size[1]:,} x {size[0]:,}"


def grid(x: Array, columns: int) -> Array:
    """Images (N, C, H, W) as one, (H', W') or (H', W', 3) in uint8, row by row.

    x: in [-1, 1], or uint8
    """
    count, channels, height, width = x.shape
    rows = -(-count // columns)
    pixels = x if x.dtype == np.uint8 else to_bytes(x)
    sheet = np.full((*grid_size(rows, columns, height, width), channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = (GAP + (height + GAP) * (i // columns), GAP + (width + GAP) * (i % columns))
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return flat(sheet)


def grid_size(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a sheet of images of that height and width."""
    return rows * (height + GAP) + GAP, columns * (width + GAP) + GAP


def check_sheet(
    rows: int,
    columns: int,
    size: tuple[int, int],
    scale: int,
    frames: int = 1,
    *,
    options: str = "--count",
) -> None:
    """ValueError if a sheet of that scale, or all its frames, would have too many pixels.

    options: those that make it smaller
    """
    height, width = (scale * n for n in grid_size(rows, columns, *size))
    if height * width * frames > PIXELS:
        raise ValueError(
            f"the sheet would be {width:,} x {height:,} pixels"
            f"{f' in {frames:,} frames' if frames > 1 else ''}, of at most {PIXELS:,} in all; a "
            f"smaller {options} would do"
        )


def check_place(path: Path, *suffixes: str) -> None:
    """OSError or ValueError if a file cannot be written there: before the work, not after it."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} does not let us write {path.name} in it")


def check_folder(path: Path, option: str) -> None:
    """OSError if nothing can be written in such a folder: before the work, not after it."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, not a folder for {option}")
    if not path.exists():
        check_place(path, path.suffix.lower())
    elif not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} does not let us write in it: choose another {option}")


def png(
    sheet: Array, scale: int = 1, columns: Sequence[str] = (), rows: Sequence[str] = ()
) -> bytes:
    """A sheet, each pixel scale by scale.

    columns, rows: names above the columns, or left of the rows; none by default
    """
    buffer = io.BytesIO()
    _picture(sheet, scale, columns, rows).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_png(
    path: Path,
    sheet: Array,
    scale: int = 1,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> None:
    """Writes what `png` makes: whole, or not at all."""
    write_whole(path, png(sheet, scale, columns, rows))


def write_gif(
    path: Path,
    sheets: Sequence[Array],
    scale: int = 1,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    seconds: float = 3.0,
) -> None:
    """Writes sheets one after the other over some seconds, the last held for two more."""
    frames = [_picture(sheet, scale, columns, rows) for sheet in sheets]
    each = max(round(1000 * seconds / len(frames)), 20)
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[each] * (len(frames) - 1) + [each + 2000],
        loop=0,
    )
    write_whole(path, buffer.getvalue())


def _picture(sheet: Array, scale: int, columns: Sequence[str], rows: Sequence[str]) -> Any:
    """The scaled sheet with names, which are upright where they are wider than their column."""
    from PIL import Image

    picture = Image.fromarray(sheet.repeat(scale, axis=0).repeat(scale, axis=1))
    names = [_text(name) for name in (columns or rows)]
    if not names:
        return picture
    across = bool(columns)
    pitch = ((picture.width if across else picture.height) - GAP * scale) / len(names)
    if across and max(name.width for name in names) + GAP > pitch:
        names = [name.transpose(Image.Transpose.ROTATE_90) for name in names]
    width, height = (max(name.width for name in names), max(name.height for name in names))
    if (width if across else height) > pitch:
        return picture  # the images are smaller than letters
    left, top = (0, height + 2 * GAP) if across else (width + 2 * GAP, 0)
    size = (picture.width + left, picture.height + top)
    whole = Image.new(picture.mode, size, "white")
    whole.paste(picture, (left, top))
    for i, name in enumerate(names):
        middle = GAP * scale / 2 + (i + 0.5) * pitch
        if across:
            place = (round(middle - name.width / 2), top - GAP - name.height)
        else:
            place = (left - GAP - name.width, round(middle - name.height / 2))
        whole.paste(name.convert(picture.mode), place)
    return whole


def _text(text: str) -> Any:
    """A line of text, black on white, of at most 24 characters."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    # Pillow's own font has these letters; without FreeType it fails at others.
    text = "".join(c if c.isprintable() else " " for c in text[:24])
    text = text.encode("latin-1", "replace").decode("latin-1")
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text + "Ag"))
    right = round(font.getbbox(text)[2])  # all lines are as high as the tallest letters
    picture = Image.new("L", (max(right - left, 1), bottom - top), 255)
    ImageDraw.Draw(picture).text((-left, -top), text, fill=0, font=font)
    return picture
