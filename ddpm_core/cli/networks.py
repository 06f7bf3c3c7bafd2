"""The options of `train` that shape a network and its noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from ddpm_core.schedules import Discrete, cosine, linear

SCHEDULES: dict[str, Callable[[int], Discrete]] = {
    "linear": lambda T: linear(T, rescale=True),
    "cosine": cosine,
}
#: Networks by name, and what Ho et al. 2020 trained theirs with, as options.
PRESETS: dict[str, dict[str, str]] = {
    "tiny": {"widths": "16,32,32", "blocks": "1"},
    "small": {"widths": "32,64,64"},
    "cifar10": {
        "widths": "128,256,256,256",
        "dropout": "0.1",
        "flip": "true",
        "warmup": "5000",
        "ema": "0.9999",
    },
    "256": {
        "widths": "128,128,256,256,512,512",
        "attention": "4",
        "lr": "2e-5",
        "batch": "64",
        "warmup": "5000",
        "ema": "0.9999",
    },
}


def integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{option} must be integers, such as 32,64,64, but is {text!r}") from None


def numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{option} must be numbers, such as 0.1,0.2, but is {text!r}") from None


def attention(text: str | None, widths: tuple[int, ...]) -> tuple[int, ...]:
    if text is None:
        return (1,) if len(widths) > 1 else ()
    return integers("--attention", text)


def groups(groups: int | None, widths: tuple[int, ...]) -> int:
    common = math.gcd(*widths)
    fit = [n for n in range(1, min(common, 32) + 1) if common % n == 0]
    if groups is None:
        return fit[-1] if fit else 1
    if groups > 0 and common % groups:
        raise ValueError(
            f"--groups must divide the --widths {','.join(map(str, widths))}, but is {groups}; "
            f"{', '.join(str(n) for n in fit)} do"
        )
    return groups


def check_size(data: Path, pixels: list[int], resolutions: int, size: int | None) -> None:
    about = f"{data} has images of {' x '.join(str(n) for n in pixels)} pixels"
    if size is not None and any(n != size for n in pixels):
        raise ValueError(f"{about}: --size {size} is for folders of pictures, which it resizes")
    factor = 2 ** max(resolutions - 1, 0)
    if any(n % factor for n in pixels):
        raise ValueError(
            f"{about}, but {resolutions} --widths need multiples of {factor}: pass fewer --widths"
            f"{_such_as(pixels)}, or for a folder of pictures a --size, such as "
            f"{-(-min(pixels) // factor) * factor}"
        )


def advice(pixels: list[int], resolutions: int) -> tuple[str, ...]:
    """What is said of a network that is too deep or too shallow for images of this size.

    The networks of Ho et al. 2020 end at 4 x 4 pixels of 32 x 32, and at 8 x 8 of 256 x 256.
    """
    factor = 2 ** (resolutions - 1)
    coarsest = [n // factor for n in pixels]
    if min(pixels) >= 4 > min(coarsest):
        wrong, better = "few: the last ones do little", "fewer"
    elif max(coarsest) > 16:
        wrong, better = "many: attention in the middle is slow there", "more"
    else:
        return ()
    size = " x ".join(map(str, coarsest))
    return (
        f"the coarsest of {resolutions} --widths has {size} pixels, which is {wrong}; {better} "
        f"--widths would fit{_such_as(pixels)}",
    )


def _such_as(pixels: list[int]) -> str:
    """The presets that fit a size, in words."""
    fit = [
        name
        for name, options in PRESETS.items()
        if all(
            n % (factor := 2 ** options["widths"].count(",")) == 0 and 4 <= n // factor <= 16
            for n in pixels
        )
    ]
    return f", such as --preset {' or '.join(fit)}" if fit else ""
