"""Files of tensors, read and written whole or not at all."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ddpm_core.typing import Array


def read_tensors(path: str | Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and metadata of a safetensors file, or the arrays of a file of torch."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if Path(path).suffix in (".pt", ".pth", ".ckpt", ".bin"):
        return _read_torch(Path(path)), {}
    library = safetensors_module("safetensors")
    try:
        opened: Any = library.safe_open(path, framework="np")
        with opened as file:
            names: list[str] = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (library.SafetensorError, TypeError) as error:  # the second, of types that NumPy lacks
        raise ValueError(f"{path} is not a safetensors file, or is truncated ({error})") from None


def _read_torch(path: Path) -> dict[str, Array]:
    """The tensors of a state dict that torch saved; of a training state, the averaged weights."""
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError:
        raise ImportError(
            f"{path} needs torch to be read: pip install 'ddpm-core[torch]'"
        ) from None
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever its unpickler meets
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"{path} is no file of tensors, or is truncated ({reason})") from None
    if isinstance(found, list) and found:  # DDIM's: model, optimiser, epoch, step, average
        found = cast(list[Any], found)[-1 if isinstance(found[-1], dict) else 0]
    named = cast(dict[str, Any], found if isinstance(found, dict) else {})
    for key in ("ema", "state_dict", "model"):  # of a training state
        named = cast(dict[str, Any], named.get(key, named))
    tensors: dict[str, Array] = {
        name.removeprefix("module."): tensor.detach().float().numpy()
        for name, tensor in named.items()
        if isinstance(tensor, torch.Tensor)
    }
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name")
    return tensors


def safetensors_module(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ImportError("checkpoints need safetensors: pip install 'ddpm-core[cli]'") from None


def check_names(
    what: str | Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """ValueError that lists which tensors are missing, unexpected, or of a wrong shape."""
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of a wrong shape": [
            f"{name} {tuple(found[name])} for {expected[name]}"
            for name in sorted(expected.keys() & found.keys())
            if tuple(found[name]) != expected[name]
        ],
    }
    complaints = [
        f"{len(names)} {how}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for how, names in wrong.items()
        if names
    ]
    if complaints:
        raise ValueError(f"{what} does not hold the network it describes; {'; '.join(complaints)}")


def write_whole(path: str | Path, data: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames: whole, or not at all.

    An OSError names the file, not the temporary one.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
