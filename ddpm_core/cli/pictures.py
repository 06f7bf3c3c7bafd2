"""Pictures of samples: a grid as PNG, a process as GIF."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddpm_core.checkpoints.files import write_whole
from ddpm_core.typing import Array

_GAP = 2


def grid(x: Array, columns: int) -> Array:
    """Images (N, C, H, W) in [-1, 1] as one, (H', W') or (H', W', 3) in uint8, row by row."""
    count, channels, height, width = x.shape
    rows = -(-count // columns)
    pixels = np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)
    sheet = np.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), 255, np.uint8
    )
    for i, image in enumerate(pixels):
        top, left = (_GAP + (height + _GAP) * (i // columns), _GAP + (width + _GAP) * (i % columns))
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return sheet[..., 0] if channels == 1 else sheet[..., :3]


def check_place(path: Path, *suffixes: str) -> None:
    """Whether a picture could be written there: found out before the work, not after it."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} is not ours to write {path.name} in")


def write_png(path: Path, sheet: Array, scale: int = 1) -> None:
    """Writes a sheet, each pixel scale by scale: whole, or not at all."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_scaled(sheet, scale)).save(buffer, format="PNG", optimize=True)
    write_whole(path, buffer.getvalue())


def write_gif(path: Path, sheets: Sequence[Array], scale: int = 1, seconds: float = 3.0) -> None:
    """Writes sheets one after the other over some seconds, the last held for two more."""
    from PIL import Image

    frames = [Image.fromarray(_scaled(sheet, scale)) for sheet in sheets]
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


def _scaled(sheet: Array, scale: int) -> Array:
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)
