"""Golden vectors: what ports to other languages, and every array library here, must agree on.

python tests/golden.py --write      writes golden.json beside it; docs/golden.md says how to read it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import ddpm_core as ddpm
from ddpm_core import parameterisations, schedules
from ddpm_core.noise import tables_digest, threefry
from ddpm_core.samplers.registry import ENTRIES
from ddpm_core.schedules import named

PATH = Path(__file__).with_suffix(".json")
VERSION = 1
#: (seed, id, step), both words of the seed and the largest id and step among them.
KEYS = ((0, 0, 0), (0, 7, 1), (2**40 + 7, 2**31 - 1, 999), (2**64 - 1, 3, 2**31 - 1))
DISCRETE = ("linear", "quadratic", "scaled_linear", "cosine", "beta_sigmoid", "alphabar_sigmoid")
TIMES = (0.0, 1.0, 100.0, 100.25, 500.0, 999.0, 1000.0)
SHARES = (0.001, 0.25, 0.5, 0.9)
PARTS = ("read", "point", "anchor")
TARGETS = ("x0", "eps", "v", "score", "flow")
#: Data N(0.5, 0.25), of which the oracle is x_0 = m + α v / (α² v + σ²) (x - α m).
MEAN, VAR = 0.5, 0.25
SOLVER_TIMES = (0.9, 0.6, 0.35, 0.15, 0.02)


def hexed(values: Any) -> Any:
    """Floats as C99 writes them, in hexadecimal: every bit, in any language."""
    if isinstance(values, (list, tuple)):
        return [hexed(value) for value in values]
    return float(values).hex()


def level(t: ddpm.Level) -> dict[str, str]:
    return {name: hexed(value) for name, value in t._asdict().items()}


def noise_of(key: tuple[int, int, int], xp: Any = np, device: Any = None) -> Any:
    """Five values of one sample."""
    seed, sample, step = key
    return ddpm.portable_noise(seed, xp, device)(step, (1, 5), ids=[sample])


def words_of(key: tuple[int, int, int]) -> list[int]:
    """The words of counters 0, 1, 2 at this key, as unsigned integers."""
    seed, sample, step = key
    counter = np.arange(3, dtype=np.int32)
    first = threefry(
        seed & 0xFFFFFFFF, seed >> 32, np.full(1, sample, np.int32), np.zeros(1, np.int32)
    )
    words = threefry(*first, counter, np.full(3, step, np.int32))
    return [int(a) for pair in zip(*words, strict=True) for a in np.array(pair).view(np.uint32)]


def named_schedules() -> dict[str, tuple[Any, tuple[float, ...]]]:
    discrete = {name: (getattr(named, name)(1000), TIMES) for name in DISCRETE}
    discrete["zero_terminal_snr"] = (ddpm.zero_terminal_snr(ddpm.linear(1000)), TIMES)
    continuous = {
        "VP": ddpm.VP(),
        "LinearLogSNR": schedules.LinearLogSNR(),
        "Flow": schedules.Flow(3.0),
        "EDM": schedules.EDM(),
    }
    for name, schedule in continuous.items():
        low, high = schedule.ends
        discrete[name] = (schedule, tuple(low + share * (high - low) for share in SHARES))
    return discrete


def tables() -> dict[str, ddpm.Sampler]:
    """Each solver on a small grid of VP."""
    return {
        each.name: each.solver(
            ddpm.VP(), 4, times=np.array(SOLVER_TIMES if each.from_noise else SOLVER_TIMES[::-1])
        )
        for each in ENTRIES
    }


def drawn(sampler: ddpm.Sampler, xp: Any = np, dtype: Any = np.float64, device: Any = None) -> Any:
    """A sample (1, 3) of the oracle's, with the noise of seed 0, step 0 and the rows' own."""
    noise = ddpm.portable_noise(0, xp, device, dtype)
    return ddpm.sample(ddpm.GaussianOracle([MEAN] * 3, VAR), sampler, noise(0, (1, 3)), noise)


def vectors() -> dict[str, Any]:
    t = ddpm.VP()(0.35)
    return {
        "version": VERSION,
        "noise": {
            "tables_sha256": tables_digest(),
            "values": [
                {"seed": str(key[0]), "id": key[1], "step": key[2], "words": words_of(key),
                 "values": hexed(noise_of(key)[0].tolist())}
                for key in KEYS
            ],
        },
        "schedules": {
            name: [level(schedule(time)) for time in times]
            for name, (schedule, times) in named_schedules().items()
        },
        "parameterisations": {
            "level": level(t),
            **{name: hexed([*getattr(parameterisations, name)(t)]) for name in TARGETS},
        },
        "solvers": {
            name: {
                "levels": [level(sampler.levels.take(i)) for i in range(sampler.nfe + 1)],
                **{part: hexed(getattr(sampler, part).tolist()) for part in PARTS},
                "sample": hexed(drawn(sampler)[0].tolist()),
            }
            for name, sampler in tables().items()
        },
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
