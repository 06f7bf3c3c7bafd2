"""Every array library gives the golden vectors, which are tied to numbers from outside."""

from __future__ import annotations

import json
import math
from typing import Any

import golden
import numpy as np
import pytest
from solver_paths import EPS

from ddpm_core.noise import normal_tables, threefry

FILE = json.loads(golden.PATH.read_text(encoding="utf-8"))


def floats(a: Any) -> Any:
    """A part of the file, with its numbers read."""
    if isinstance(a, dict):
        return {key: floats(value) for key, value in a.items()}
    return [floats(each) for each in a] if isinstance(a, list) else float.fromhex(a)


def test_the_file_is_what_is_written() -> None:
    """Its version and its names are those of `golden.vectors`."""
    made = golden.vectors()
    assert FILE["version"] == golden.VERSION
    for room in ("schedules", "parameterisations", "solvers"):
        assert list(FILE[room]) == list(made[room])


def test_the_words_are_threefry() -> None:
    """Random123's known answer (1.14, tests/kat_vectors) at its own key, by the same function."""
    zero = np.zeros(1, np.int32)
    found = [int(word.view(np.uint32)[0]) for word in threefry(0, 0, zero, zero)]
    assert found == [0x6B200159, 0x99BA4EFE]
    for key, case in zip(golden.KEYS, FILE["noise"]["values"], strict=True):
        assert (int(case["seed"]), case["id"], case["step"]) == key
        assert golden.words_of(key) == case["words"]


def test_the_values_are_of_the_words() -> None:
    """The low half of a word picks of one table, the high half of the other; the sum is float32."""
    first, second = normal_tables()
    assert FILE["noise"]["tables_sha256"] == golden.tables_digest()
    for case in FILE["noise"]["values"]:
        picked = [float(first[w & 0xFFFF] + second[w >> 16]) for w in case["words"]]
        assert picked[:5] == floats(case["values"])


@pytest.mark.parametrize("case", FILE["noise"]["values"], ids=lambda case: case["seed"])
def test_noise(lib: Any, case: dict[str, Any]) -> None:
    """The noise, bit for bit."""
    key = (int(case["seed"]), case["id"], case["step"])
    z = golden.noise_of(key, lib.xp, lib.device)
    if lib.has_values:
        assert lib.to_numpy(z)[0].tolist() == floats(case["values"])


def test_closed_forms() -> None:
    """α² + σ² = 1, log-SNR is log α² / σ², and linear(1000) is a product of 1 - β (Ho et al. 2020).

    VP is exp(-t² (20 - 0.1) / 4 - 0.1 t / 2) (Song et al. 2021, Eq. 33).
    """
    for levels in floats(FILE["schedules"]).values():
        for t in levels:
            assert t["alpha"] ** 2 + t["sigma"] ** 2 == pytest.approx(1, abs=8 * EPS)
            if t["sigma"] and t["alpha"]:
                wanted = 2 * math.log(t["alpha"] / t["sigma"])
                assert t["logsnr"] == pytest.approx(wanted, rel=0, abs=64 * EPS / t["sigma"])
    products = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for t in floats(FILE["schedules"]["linear"]):
        if t["time"] >= 1 and t["time"] == int(t["time"]):
            wanted = math.sqrt(products[int(t["time"]) - 1])
            assert t["alpha"] == pytest.approx(wanted, rel=1000 * EPS)
    for t in floats(FILE["schedules"]["VP"]):
        wanted = math.exp(-(t["time"] ** 2) * 19.9 / 4 - 0.1 * t["time"] / 2)
        assert t["alpha"] == pytest.approx(wanted, rel=64 * EPS)
    t = floats(FILE["parameterisations"]["level"])
    alpha, sigma = t["alpha"], t["sigma"]
    pairs = floats({name: FILE["parameterisations"][name] for name in golden.TARGETS})
    assert (pairs["x0"], pairs["eps"]) == ([1, 0], [0, 1])
    assert pairs["v"] == [-sigma, alpha]  # Salimans & Ho 2022


def test_schedules() -> None:
    """Levels, to 64 roundings: their logarithms and exponentials are the platform's."""
    made = golden.vectors()["schedules"]
    for name, levels in floats(FILE["schedules"]).items():
        for a, b in zip(levels, floats(made[name]), strict=True):
            assert b == pytest.approx(a, rel=64 * EPS, abs=64 * EPS)


@pytest.mark.parametrize("name", golden.tables())
def test_tables(name: str) -> None:
    """Tables and samples in float64, to 2^12 roundings of their largest numbers."""
    wanted, sampler = floats(FILE["solvers"][name]), golden.tables()[name]
    for part in golden.PARTS:
        a = np.array(wanted[part])
        found = getattr(sampler, part)
        np.testing.assert_allclose(found, a, rtol=0, atol=2**12 * EPS * np.abs(a).max(initial=1))
    found = golden.drawn(sampler)[0]
    np.testing.assert_allclose(found, wanted["sample"], rtol=0, atol=2**12 * EPS)


@pytest.mark.parametrize("name", golden.tables())
def test_samples(lib: Any, name: str) -> None:
    """Samples in float32, to 2^8 of its roundings, which the tables' larger numbers multiply."""
    x = golden.drawn(golden.tables()[name], lib.xp, lib.xp.float32, lib.device)
    if lib.has_values:
        wanted = floats(FILE["solvers"][name]["sample"])
        size = np.abs(np.array(floats(FILE["solvers"][name]["point"]))).max()
        atol = 2**8 * float(np.finfo(np.float32).eps) * max(size, 1)
        np.testing.assert_allclose(lib.to_numpy(x)[0], wanted, rtol=0, atol=atol)
