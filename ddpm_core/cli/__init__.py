"""The command line: `ddpm-core sample`, `train`, `evaluate`, `convert`, `verify`, `info`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> None:
    """Runs the command line; an error is one line on stderr and exit status 2."""
    try:
        from ddpm_core.cli.app import run
    except ModuleNotFoundError as error:
        _fail(f"the command line needs {error.name}: pip install 'ddpm-core[cli]'")
    try:
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except OSError as error:
        if error.strerror is None or error.filename is None:
            _fail(str(error))
        _fail(f"{error.filename}: {error.strerror}")
    except (ValueError, ImportError) as error:
        _fail(str(error))
    except LookupError as error:
        if type(error) is not LookupError:  # a KeyError or IndexError is a defect, not an answer
            raise
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"ddpm-core: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(2)
