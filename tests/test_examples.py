"""The examples run, and show what they say they show."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from command import executable, pixels
from PIL import Image

import ddpm_core as ddpm
from ddpm_core.cli.datasets import read, to_range

pytestmark = pytest.mark.slow  # JAX compiles, examples train

FOLDER = Path(__file__).parents[1] / "examples"


def output(name: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / name, *arguments],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_spiral():
    """With the data as its own denoiser, every solver's samples come to lie on the data."""
    rows = [line.split() for line in output("spiral.py").splitlines()[2:]]
    assert [row[0] for row in rows] == ["5", "10", "20", "50", "200"]
    for first, last in zip(rows[0][1:], rows[-1][1:], strict=True):
        # What is left is less than the noise of the last level looked at: time 5 of 1000.
        assert float(last) < ddpm.linear()(5).sigma
        assert float(last) < float(first) / 2


def test_train_torch():
    """A loop of one's own trains: the loss starts at 1, a net that says nothing, and falls."""
    pytest.importorskip("torch")
    said = output("train_torch.py", "--steps", "50")
    losses = [float(value) for value in re.findall(r"loss (\S+)", said)]
    # The mean square of 1024 standard normal numbers has deviation sqrt(2 / 1024) = 0.044, and a
    # fresh net says about 0.1.
    assert losses[0] == pytest.approx(1, abs=0.3)
    assert float(re.search(r"distance to the spiral: (\S+)", said)[1]) < 1


def test_reward():
    """A reward rises by much more than the error of its mean over 512 samples, 0.02."""
    pytest.importorskip("torch")
    said = output("reward.py", "--steps", "1000", "--updates", "40")
    rewards = [float(value) for value in re.findall(r"reward (\S+)", said)]
    assert 0.1 < rewards[0] < 0.5  # of the spiral, a fifth lies in the circle
    assert rewards[-1] > rewards[0] + 0.3
    assert all(np.diff(rewards) > -0.05)


def bitmap_font(path, characters, ligatures, bitmaps) -> None:
    """A font whose glyphs are PNG files (CBDT), as those of Noto Color Emoji are.

    characters: glyphs by code point; ligatures: sequences of glyphs, and bitmaps, by glyph
    """
    from fontTools.fontBuilder import FontBuilder
    from fontTools.ttLib import newTable
    from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
    from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
    from fontTools.ttLib.tables.E_B_L_C_ import SbitLineMetrics, Strike, eblc_index_sub_table_1

    build = FontBuilder(1024)
    names = [".notdef", *dict.fromkeys([*characters.values(), *ligatures])]
    build.setupGlyphOrder(names)
    build.setupCharacterMap(characters)
    build.setupHorizontalMetrics(dict.fromkeys(names, (1024, 0)))
    build.setupHorizontalHeader()
    build.setupPost()
    rules = "".join(f"sub {sequence} by {glyph};" for glyph, sequence in ligatures.items())
    build.addOpenTypeFeatures(f"feature ccmp {{{rules}}} ccmp;")

    def zeros(table, names):
        for name in names.split():
            setattr(table, name, 0)
        return table

    data = build.font["CBDT"] = newTable("CBDT")
    places = build.font["CBLC"] = newTable("CBLC")
    data.version = places.version = 3.0
    data.strikeData = [{}]
    for name, picture in bitmaps.items():
        glyph = data.strikeData[0][name] = cbdt_bitmap_format_17(b"", build.font)
        glyph.metrics = zeros(SmallGlyphMetrics(), "height width BearingX BearingY Advance")
        file = io.BytesIO()
        picture.save(file, "PNG")
        glyph.imageData = file.getvalue()
    strike = Strike()
    header = zeros(
        strike.bitmapSizeTable,
        "colorRef startGlyphIndex endGlyphIndex ppemX ppemY bitDepth flags",
    )
    line = (
        "ascender descender widthMax caretSlopeNumerator caretSlopeDenominator caretOffset "
        "minOriginSB minAdvanceSB maxBeforeBL minAfterBL pad1 pad2"
    )
    header.hori, header.vert = (zeros(SbitLineMetrics(), line) for _ in range(2))
    index = eblc_index_sub_table_1(b"", build.font)
    index.indexFormat, index.imageFormat = 1, 17
    index.names = sorted(bitmaps, key=build.font.getGlyphID)
    strike.indexSubTables, places.strikes = [index], [strike]
    build.save(path)


LISTED = """\
# group: Smileys & Emotion
1F600 ; fully-qualified # a single character
263A FE0F ; fully-qualified # one that could be a letter, too
263A ; unqualified # the same
1F601 ; fully-qualified # the font has no picture of it
# group: People & Body
1F44B ; fully-qualified # a hand
1F44B 1F3FD ; fully-qualified # in a skin tone
# group: Component
1F3FD ; component # a skin tone
# group: Flags
1F1EB 1F1F7 ; fully-qualified # a flag
1F1E8 1F1F5 ; fully-qualified # another of the same bitmap
"""


def test_noto_emoji(tmp_path):
    """Of each bitmap one picture, on white, cut to a square; a pixel is the mean of 4 x 4."""
    pixels = np.zeros((128, 136, 4), np.uint8)  # transparent
    pixels[64:, :, 0] = pixels[64:, :, 3] = 255  # the lower half is red
    pixels[:2, 4:8] = 0, 0, 0, 255  # of the first box that is left, half is black
    pixels[:, :4] = pixels[:, -4:] = 0, 0, 255, 255  # the sides are cut off
    plain = {
        name: Image.new("RGBA", (136, 128), colour)
        for name, colour in {"hand": "yellow", "dark": "brown", "tone": "tan", "fr": "blue"}.items()
    }
    characters = {0x1F600: "grin", 0x263A: "smile", 0x1F601: "beam", 0x1F44B: "hand"}
    characters |= {0x1F3FD: "tone", 0x1F1EB: "F", 0x1F1F7: "R", 0x1F1E8: "C", 0x1F1F5: "P"}
    bitmap_font(
        tmp_path / "font.ttf",
        characters,
        {"dark": "hand tone", "fr": "F R", "cp": "C P"},
        {"grin": Image.fromarray(pixels), "smile": Image.new("RGBA", (136, 128)), **plain}
        | {"cp": plain["fr"]},
    )
    (tmp_path / "list.txt").write_text(LISTED)
    options = {name: str(tmp_path / file) for name, file in
               {"--font": "font.ttf", "--list": "list.txt", "--out": "data"}.items()}  # fmt: skip
    said = output("noto_emoji.py", *(word for pair in options.items() for word in pair))
    assert re.findall(r"\w+ +\d+$", said, re.MULTILINE) == [
        f"{name:12}{count:5}" for name, count in {"smileys": 2, "people": 1, "flags": 1}.items()
    ]

    files = sorted(str(file.relative_to(tmp_path / "data")) for file in tmp_path.rglob("*.png"))
    assert files == [
        "flags/1f1eb-1f1f7.png", "people/1f44b.png", "smileys/1f600.png", "smileys/263a-fe0f.png"
    ]  # fmt: skip
    found = read(tmp_path / "data")
    assert found.labels == ("flags", "people", "smileys")
    flag, hand, grin, smile = found.images.transpose(0, 2, 3, 1)
    assert (flag == [0, 0, 255]).all()
    assert (hand == [255, 255, 0]).all()
    assert (smile == 255).all()
    expected = np.full((32, 32, 3), 255)
    expected[16:] = 255, 0, 0
    np.testing.assert_allclose(grin[0, 0], 127.5, atol=0.5)
    expected[0, 0] = grin[0, 0]
    np.testing.assert_array_equal(grin, expected)


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").exists(), reason="apt: dataset-fashion-mnist"
)
def test_train_jax(tmp_path):
    """The example trains: its loss falls, and what it saved has that loss on NumPy too."""
    pytest.importorskip("optax")
    options = ["--steps", "12", "--batch", "16", "--widths", "8", "8", "--warmup", "4"]
    said = output("train_jax.py", *options, "--out", str(tmp_path))
    first, last = (float(value) for value in re.findall(r"loss (\S+)", said))
    assert first == pytest.approx(1, abs=0.03)  # a fresh network says 0: the mean square of eps
    assert last < 0.9
    checkpoint = ddpm.load(tmp_path / "model.safetensors")
    assert checkpoint.labels[0] == "T-shirt/top"

    held = read("/usr/share/datasets/fashion-mnist", "t10k")
    x_0 = to_range(held.images[:64])
    t = ddpm.draw(checkpoint.schedule, (np.arange(64) + 0.5) / 64)
    predict = checkpoint.predictor(ddpm.backend("numpy").network)
    eps = ddpm.portable_noise(1)(0, x_0.shape)
    loss = ddpm.loss(predict, x_0, eps, t, y=held.classes[:64]).mean()
    assert loss == pytest.approx(last, abs=2e-4)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (2 * 302, 2 * 122)  # ten columns, four rows, gaps of two


def test_serve(tmp_path):
    """The server answers the picture that `ddpm-core sample` draws, and ends when it is told to."""
    pytest.importorskip("uvicorn")
    executable("sample", "--ids", "11:12", "--steps", 2, "--out-dir", tmp_path, cwd=tmp_path)
    server = subprocess.Popen(
        [sys.executable, "-W", "error", FOLDER / "serve.py", "--port", "0"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = next(
            found for line in server.stderr if (found := re.search(r"http://\S+", line))
        )[0]
        with urlopen(f"{address}/health", timeout=60) as answer:
            assert json.load(answer) == {"alive": True, "drawn": 0, "waiting": 0}
        with urlopen(f"{address}/sample", b'{"id": 11, "steps": 2}', timeout=60) as answer:
            drawn = pixels(io.BytesIO(answer.read()))
    finally:
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=60)[1]
    np.testing.assert_array_equal(drawn, pixels(next(tmp_path.glob("*.png"))))
    assert "Application shutdown complete" in said
    assert "Traceback" not in said


def test_every_example_is_tested():
    """No example without a test."""
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {name.removeprefix("test_") for name in globals() if name[5:] in names}
