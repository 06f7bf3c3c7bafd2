"""Fuzzes a target with atheris: python tests/fuzz/run.py npz --seconds 600.

It begins with the seeds, and with the corpus of earlier runs. An input that breaks the parser is
written to crashes/TARGET/ under --out; once that is mended, it belongs in seeds/TARGET/.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import random
import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

with atheris.instrument_imports(include=["ddpm_core", "ddpm_core_torch"]):
    from fuzz.mutations import mutate
    from fuzz.targets import TARGETS

    with contextlib.suppress(ImportError):
        importlib.import_module("ddpm_core_torch.training.state")


def changed(data: bytes, most: int, seed: int) -> bytes:
    """Every other input is changed with its structure in mind, the others as libFuzzer does."""
    if seed % 2:
        return atheris.Mutate(data, most)
    return mutate(data, random.Random(seed))[:most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="a folder")
    told = parser.parse_args()
    corpus, crashes = (told.out / kind / told.target for kind in ("corpus", "crashes"))
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    words = [
        sys.argv[0],
        str(corpus),
        str(HERE / "seeds" / told.target),
        f"-artifact_prefix={crashes}/",
        f"-max_total_time={told.seconds}",
        "-max_len=16384",
        "-timeout=60",  # of the clock, on a machine that may be busy
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    atheris.Setup(words, TARGETS[told.target], custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
