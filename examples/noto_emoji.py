"""Noto Color Emoji as a folder of pictures of 32 x 32 pixels, to train on.

    apt-get install fonts-noto-color-emoji unicode-data
    pip install 'ddpm-core[train]'
    python examples/noto_emoji.py --out emoji
    ddpm-core train --data emoji --out runs/emoji

The classes are the groups of Unicode's list of emoji. Skin tones are left out: six pictures of one
person would be learned by heart, and a picture held out would have its twin in the training data.
Of emoji of one bitmap, such as the flags of France and Clipperton Island, the first is taken. The
font's licence is the SIL Open Font License 1.1.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import Image, ImageOps

SIZE = 32
CLASSES = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "places",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
SKIN_TONES = range(0x1F3FB, 0x1F400)
AS_PICTURE = 0xFE0F  #: asks for a picture and not a letter; the font has no glyph for it


def emoji(path: Path) -> Iterator[tuple[str, list[int]]]:
    """Class and code points of each emoji in Unicode's emoji-test.txt, without skin tones."""
    group = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        codes, _, rest = line.partition(";")
        if rest.split()[:1] == ["fully-qualified"]:
            points = [int(code, 16) for code in codes.split()]
            if not any(point in SKIN_TONES for point in points):
                yield CLASSES[group], points


def bitmaps(font: TTFont) -> dict[tuple[int, ...], bytes]:
    """The PNG file of each sequence of code points that the font has a picture of."""
    drawn = {name: glyph.imageData for name, glyph in font["CBDT"].strikeData[0].items()}
    points = {name: point for point, name in font.getBestCmap().items()}
    sequences = {(name,): name for name in points}
    for table in font["GSUB"].table.LookupList.Lookup[0].SubTable:  # the later ones: fallbacks
        for first, ligatures in table.ligatures.items():
            sequences |= {(first, *rest.Component): rest.LigGlyph for rest in ligatures}
    return {
        tuple(points[name] for name in names): drawn[glyph]
        for names, glyph in sequences.items()
        if glyph in drawn
    }


def small(png: bytes) -> Image.Image:
    """A bitmap on white, cut to a square (Noto's sides are empty), each pixel the mean of a box."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    return ImageOps.fit(picture, (SIZE, SIZE), Image.Resampling.BOX)


def main() -> None:
    """Reads the font, writes OUT/CLASS/CODE-POINTS.png."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    font = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    options.add_argument("--font", type=Path, default=font, help="with bitmaps (CBDT)")
    listed = Path("/usr/share/unicode/emoji/emoji-test.txt")
    options.add_argument("--list", type=Path, default=listed, help="Unicode's emoji-test.txt")
    options.add_argument("--out", type=Path, default=Path("emoji"))
    options = options.parse_args()

    with TTFont(options.font) as font:
        found = bitmaps(font)
    written: dict[bytes, str] = {}
    for label, points in emoji(options.list):
        png = found.get(tuple(point for point in points if point != AS_PICTURE))
        if png is None or png in written:
            continue
        written[png] = label
        path = options.out / label / ("-".join(f"{point:x}" for point in points) + ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        small(png).save(path)
    for label, count in Counter(written.values()).items():
        print(f"{label:12}{count:5}")
    print(f"{len(written):17} pictures in {options.out}")


if __name__ == "__main__":
    main()
