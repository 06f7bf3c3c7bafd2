"""The options of a command in a TOML file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from ddpm_core.checkpoints.fields import cut
from ddpm_core.checkpoints.files import open_regular, write_whole

LARGEST = 1 << 14  #: bytes of a file; some take a time that grows as their square


def read(path: Path, known: Collection[str]) -> dict[str, str]:
    """The options in a file, as the command line takes them.

    ValueError, one line, if it is not TOML, or names an option that is not known.
    """
    with open_regular(path) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST:,} bytes, too many for options")
    try:
        found = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a TOML file ({cut(error)})") from None
    if others := sorted(found.keys() - set(known)):
        raise ValueError(f"{path}: no option {cut(others[0])}; there are {', '.join(known)}")
    try:
        return {name: _word(value) for name, value in found.items()}
    except ValueError:  # Python's, of an integer in hex
        raise ValueError(f"{path} has an integer of too many digits to be an option") from None


def write(path: Path, options: Mapping[str, Any]) -> None:
    """Writes options that are str, int, finite float, bool, or lists of these.

    As JSON these are TOML too, but for DEL, which TOML wants escaped.
    """
    lines = (
        f"{name} = {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n"
        for name, value in options.items()
    )
    text = "".join(lines).replace("\x7f", "\\u007f")
    try:
        write_whole(path, text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{path} is UTF-8, and cannot hold {text!r}: rename the data") from None


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(part) for part in cast(list[Any], value))
    return str(value)
