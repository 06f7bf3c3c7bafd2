"""How an input of a target is changed, with a seeded generator: its bytes, its JSON, its parts."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Iterator
from typing import Any

SEPARATOR = b"\n%%%%\n"  #: between the parts of an input, each of which becomes a file or a text

NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.5, 10**6, 2**31, 2**63, 2**64, 10**400, -(10**400)),
    *(float("nan"), float("inf"), -float("inf"), 1e-320, 1e308, "", "88", "x" * 999, "\ud800"),
    *("a\nb", "../../etc/passwd", "none", [], [1], [[]], [0.5, "a"], [True], [10**400], [-1] * 9),
    *({}, {"a": 1}, {"": {}}),
]
_NUMBERS = (
    *(0, 1, -1, 2, 7, 8, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**63 - 1, 2**63, 2**64 - 1, 10**18),
)
_WORDS = (
    *(b"nan", b"-inf", b"1e999", b"9" * 5000, b"true", b"null", b"\xff", b"\x00", b'"', b"[" * 99),
    *(b"{" * 99, b"]", b",", b":", b"\n", b"\xed\xa0\x80", "\u0663".encode(), b"%s", SEPARATOR),
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bytes that differ from `data` in one to three places of one of its parts."""
    parts = data.split(SEPARATOR)
    if len(parts) > 1 and rng.random() < 0.05:
        rng.shuffle(parts)
        return SEPARATOR.join(parts)
    i = rng.randrange(len(parts))
    tree = _tree(parts[i]) if rng.random() < 0.8 else None
    if isinstance(tree, (dict, list)) and tree:
        for _ in range(rng.randint(1, 3)):
            tree = _change_tree(tree, rng)
        parts[i] = json.dumps(tree).encode()
    else:
        for _ in range(rng.randint(1, 3)):
            parts[i] = _change_bytes(parts[i], rng)
    return SEPARATOR.join(parts)


def _tree(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON tree and every key of it."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in [*pairs][:100]:
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def _change_tree(tree: Any, rng: random.Random) -> Any:
    found = [*_places(tree)] if isinstance(tree, (dict, list)) else []
    nasty = copy.deepcopy(rng.choice(NASTY))  # what changes it next must not change the list
    if not found:
        return nasty
    container, key = rng.choice(found)
    match rng.randrange(8):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[rng.choice(["unknown", "", "x" * 999, key + ".", key[:-1]])] = nasty
        case 2 if isinstance(container, list):
            container[key:key] = container * rng.choice([1, 1, 30])
        case 3:
            container[key] = rng.choice([place[k] for place, k in found])
        case 4 if isinstance(container[key], (int, float)):
            container[key] = rng.choice(
                [container[key] + 1, -container[key], str(container[key]), float(container[key])]
                if abs(container[key]) < 1e300
                else [0]
            )
        case _:
            container[key] = nasty
    try:
        return json.loads(json.dumps(tree))  # equal objects become separate ones
    except (ValueError, RecursionError):
        return nasty


def _change_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    if rng.random() < 0.5:  # headers are at the ends
        at = rng.choice([min(at, rng.randrange(64)), max(0, len(data) - rng.randrange(64))])
        at = min(at, len(data))
    match rng.randrange(9):
        case 0 if at < len(data):
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 2:
            size = rng.choice([1, 2, 4, 8, 32, len(data) // 2])
            return data[:at] + data[at + size :]
        case 3:
            size = rng.choice([1, 2, 4, 8, 32, len(data) // 2])
            return data[:at] + data[at : at + size] + data[at:]
        case 4:
            kind = rng.choice("BHIQ")
            packed = struct.pack(
                rng.choice("<>") + kind, rng.choice(_NUMBERS) % 256 ** struct.calcsize("<" + kind)
            )
            return data[:at] + packed + data[at + len(packed) :]
        case 5:
            word = rng.choice(_WORDS)
            return data[:at] + word + data[at + (len(word) if rng.random() < 0.5 else 0) :]
        case 6:
            numbers = [*re.finditer(rb"-?\d+", data[:100_000])]
            if not numbers:
                return data
            match = rng.choice(numbers)
            number = rng.choice([str(rng.choice(_NUMBERS)).encode(), b"9" * 5000, b"1e999"])
            return data[: match.start()] + number + data[match.end() :]
        case 7:
            start = rng.randrange(len(data) + 1)
            part = data[start : start + rng.choice([1, 4, 16, 64])]
            return data[:at] + part + data[at + len(part) :]
        case _:
            return data[:at]
