"""Builds the page that draws in a browser: everything it needs, in one folder.

    pip install -e '.[cli,onnx]' && python docs/demo/build.py --out site && python -m http.server -d site

Beside the page it puts ONNX Runtime (by npm), the bundled model of clothes, samplers and the tables of the noise.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.models import bundled
from ddpm_core.noise import normal_tables
from ddpm_core_onnx import export_network

HERE = Path(__file__).parent
PAGE = ("index.html", "style.css", "demo.mjs", "ddpm.mjs")
SOLVERS = ("ddim", "dpmpp_2m", "unipc_2", "heun", "ancestral")
STEPS = (5, 10, 20, 50)
RUNTIME = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
#: A pair for WebGPU, and one for every browser; a visitor loads one of the two.
FILES = (
    *("ort.jspi.bundle.min.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
    *("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
)


def runtime(out: Path) -> None:
    """Fetches ONNX Runtime from npm, and its licence, which is ours but for the name."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm, which fetches ONNX Runtime, is not installed")
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            [npm, "pack", "--silent", RUNTIME], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        path = Path(folder, packed.stdout.split()[-1])
        digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        if digest != SHA512:
            raise SystemExit(f"{RUNTIME} has the SHA-512 {digest}, but {SHA512} is expected")
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in FILES:
                    (out / name).write_bytes(archive.extractfile(member).read())
    title, _, terms = (HERE.parents[1] / "LICENSE").read_text("utf-8").split("\n\n", 2)
    (out / "LICENSE").write_text(f"{title}\n\nCopyright (c) Microsoft Corporation\n\n{terms}")


def build(out: Path) -> None:
    """Puts the page, and all that it loads, in a folder."""
    out.mkdir(exist_ok=True)
    for name in PAGE:
        shutil.copy(HERE / name, out)
    checkpoint = ddpm.load(bundled()["fashion-mnist"])
    assert checkpoint.predicts == "v", "demo.mjs reads v"
    (out / "model.onnx").write_bytes(export_network(checkpoint))
    (out / "noise.bin").write_bytes(b"".join(t.astype("<f4").tobytes() for t in normal_tables()))
    tables = {
        name: {n: samplers.by_name(name)(checkpoint.schedule, n).to_json() for n in STEPS}
        for name in SOLVERS
    }
    about = {"classes": checkpoint.labels, "size": checkpoint.size, "samplers": tables}
    (out / "demo.json").write_text(json.dumps(about))
    runtime(out / "onnxruntime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder, made if there is none")
    build(parser.parse_args().out)


if __name__ == "__main__":
    main()
