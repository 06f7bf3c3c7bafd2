"""The page that draws in a browser: it agrees with golden.json and with Python, and is usable."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import golden
import numpy as np
import pytest

from ddpm_core import Level, Sampler
from ddpm_core.noise import normal_tables

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def of_golden(name: str, entry: dict) -> Sampler:
    """A solver of golden.json, as it is there."""

    def floats(values):
        return [floats(v) for v in values] if isinstance(values, list) else float.fromhex(values)

    levels = [Level(**dict(zip(t, floats([*t.values()]), strict=True))) for t in entry["levels"]]
    tables = (np.array(floats(entry[part])) for part in golden.PARTS)
    return Sampler(name, Level(*map(np.array, zip(*levels, strict=True))), *tables)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_javascript_agrees(tmp_path):
    """The noise and the tables to the bit, and what each solver draws to 2^12 roundings."""
    solvers = json.loads(golden.PATH.read_text("utf-8"))["solvers"]
    texts = {name: of_golden(name, entry).to_json() for name, entry in solvers.items()}
    (tmp_path / "samplers.json").write_text(json.dumps(texts))
    (tmp_path / "tables").write_bytes(b"".join(t.astype("<f4").tobytes() for t in normal_tables()))
    script = ROOT / "tests" / "js" / "golden.mjs"
    ran = subprocess.run(
        ["node", script, golden.PATH, tmp_path / "tables", tmp_path / "samplers.json"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert f"4 keys of noise and {len(solvers)} solvers agree" in ran.stdout


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The folder of the page as it is built, and its address on a static server."""
    where = ROOT / "docs" / "demo" / "build.py"
    spec = importlib.util.spec_from_file_location("demo_build", where)
    assert spec is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    try:
        build.build(tmp_path / "site")
    except subprocess.CalledProcessError:
        pytest.skip("npm reaches no registry")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path / "site", f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def picture_of(page) -> np.ndarray:
    """The floats of the picture that is shown."""
    code = "import('./demo.mjs').then(({ kept }) => [...kept.at(-1).x])"
    return np.array(page.evaluate(code)).reshape(28, 28)


def pixels_of(page) -> np.ndarray:
    """The bytes of the picture that is shown, of one of its three equal channels."""
    code = "[...document.getElementById('final').getContext('2d').getImageData(0, 0, 28, 28).data]"
    red, green, blue, _ = np.moveaxis(np.array(page.evaluate(code)).reshape(28, 28, 4), -1, 0)
    assert (red == green).all()
    assert (red == blue).all()
    return red


def drawn_by(command: str, folder: Path, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """The floats and the bytes of the picture that a command draws."""
    from command import run

    from ddpm_core.cli import pictures

    floats = []
    to_bytes = pictures.to_bytes
    monkeypatch.setattr(pictures, "to_bytes", lambda x: floats.append(x) or to_bytes(x))
    words = shlex.split(command)
    assert words[0] == "ddpm-core"
    run(*words[1:], "--out", folder / "drawn.npz")
    monkeypatch.setattr(pictures, "to_bytes", to_bytes)
    with np.load(folder / "drawn.npz") as file:
        return floats[0][0, 0], file["images"][0]


@pytest.mark.slow
@pytest.mark.needs("ndonnx", "playwright", "typer")
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_page(site, tmp_path, monkeypatch):
    """In Chromium it draws what the command line that it shows draws, also offline."""
    from playwright.sync_api import expect, sync_playwright

    folder, url = site
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": 360, "height": 740}, reduced_motion="reduce"
        )
        page, asked, said = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        status, command = page.get_by_role("status"), page.locator("#command")
        page.goto(url)
        expect(status).to_contain_text("Drawn: Sneaker, seed 7, 20 network calls", timeout=60_000)
        expect(status).to_contain_text("on the processor (WebAssembly)")
        floats, shown = picture_of(page), pixels_of(page)
        wanted, pixels = drawn_by(command.inner_text(), tmp_path, monkeypatch)
        np.testing.assert_allclose(floats, wanted, rtol=0, atol=1e-3)
        assert np.abs(shown - pixels).max() <= 1

        context.set_offline(True)
        page.get_by_label("Class").select_option("Ankle boot")
        page.get_by_label("Solver").select_option("ancestral")
        page.get_by_label("Steps").select_option("5")
        page.get_by_label("Guidance").fill("1")
        page.get_by_role("textbox", name="Seed").fill(str(2**40 + 7))
        page.get_by_role("button", name="Draw").focus()
        page.keyboard.press("Enter")
        expect(status).to_contain_text("Drawn: Ankle boot", timeout=60_000)
        wanted, _ = drawn_by(command.inner_text(), tmp_path, monkeypatch)
        np.testing.assert_allclose(picture_of(page), wanted, rtol=0, atol=1e-3)
        call = page.get_by_label("Network call")
        call.focus()
        page.keyboard.press("Home")
        assert call.get_attribute("aria-valuetext").startswith("1 of 5, log-SNR −")
        page.get_by_role("textbox", name="Seed").fill("-1")
        page.get_by_role("button", name="Draw").click()
        expect(page.locator("#seed:invalid")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert said == ["No available adapters."] or not said
        assert all(each.startswith((url, "data:")) for each in asked)

        context.set_offline(False)
        (folder / "model.onnx").unlink()
        page.goto(url)
        expect(status).to_contain_text("cannot draw: model.onnx is missing. Build the page with")
        browser.close()
