"""The page that draws in a browser: its JavaScript agrees with golden.json."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import golden
import numpy as np
import pytest

from ddpm_core import Level, Sampler
from ddpm_core.noise import normal_tables

ROOT = Path(__file__).parents[1]


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
