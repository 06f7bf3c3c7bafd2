"""The code blocks of the README and of other pages, for the tests and for continuous integration.

python tests/readme.py test-command      prints the command that sets up and passes the tests
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def blocks(language: str, page: Path = README) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


def commands() -> list[str]:
    """The lines of console blocks that a reader types."""
    lines = (line for block in blocks("console") for line in block.splitlines())
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def test_command() -> str:
    """The command that installs what the tests need and runs them."""
    (found,) = (command for command in commands() if command.endswith("pytest"))
    return found


if __name__ == "__main__":
    if sys.argv[1:] != ["test-command"]:
        sys.exit(__doc__)
    print(test_command())
