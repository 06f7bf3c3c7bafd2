"""Files of tensors: reading trusts nothing, and writing is whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ddpm_core.checkpoints.fields import MAX_JSON, Fields, cut, parse, shown
from ddpm_core.typing import Array

Shapes = Mapping[str, tuple[int, ...]]
TEMPORARY = ".ddpm-core."  #: begins the names of files and folders that are being written
_TORCH = (".pt", ".pth", ".ckpt", ".bin")
_DTYPES = ("F16", "F32", "F64")


def read_tensors(path: str | Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and metadata of a safetensors file, or the arrays of a file of torch.

    OSError if the file cannot be read or is not a regular file; ValueError if it holds anything
    but tensors of real numbers by name. Memory is bounded by the size of the file.
    """
    path = Path(path)
    with open_regular(path) as file:
        if path.suffix in _TORCH:
            return _read_torch(path, file), {}
    library = safetensors_module("safetensors")
    tensors: dict[str, Array] = {}
    try:
        opened: Any = library.safe_open(path, framework="np")
        with opened as file:
            for name in cast(list[str], list(file.keys())):
                dtype = str(file.get_slice(name).get_dtype())
                if dtype not in _DTYPES:
                    raise ValueError(
                        f"{path}: {cut(name)} is of dtype {dtype}, not of {', '.join(_DTYPES)}"
                    )
                tensors[name] = file.get_tensor(name)
            return tensors, file.metadata() or {}
    except library.SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file, or is truncated ({cut(error)})"
        ) from None


def read_json(path: Path) -> Fields:
    """The JSON object in a file."""
    with open_regular(path) as file:
        return parse(file.read(MAX_JSON + 1), str(path))


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading. OSError for anything else: a FIFO would never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def _read_torch(path: Path, file: BinaryIO) -> dict[str, Array]:
    """The tensors of a state dict that torch saved; of a training state, the averaged weights."""
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError:
        raise ImportError(
            f"{path} needs torch to be read: pip install 'ddpm-core[torch]'"
        ) from None
    zipped = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    try:
        if zipped:
            _check_stored(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is refused is told once, below
            # A mapped file bounds every tensor: copied ones are as long as their pickle claims.
            source = path if zipped else file
            found: Any = torch.load(source, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # whatever its unpickler meets
        raise ValueError(
            f"{path} is no file of tensors, or is truncated ({_reason(error)})"
        ) from None
    if isinstance(found, list) and found:  # DDIM's: model, optimiser, epoch, step, average
        found = cast(list[Any], found)[-1 if isinstance(found[-1], dict) else 0]
    named = cast(dict[Any, Any], found if isinstance(found, dict) else {})
    for key in ("ema", "state_dict", "model"):  # of a training state
        if isinstance(named.get(key), dict):
            named = named[key]
    tensors = {
        name.removeprefix("module."): tensor
        for name, tensor in named.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name")
    room = path.stat().st_size
    for name, tensor in tensors.items():
        strange = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta
        if strange or tensor.is_complex():
            raise ValueError(f"{path}: {cut(name)} is not a plain tensor of real numbers")
        room -= tensor.numel() * tensor.element_size()
        if room < 0:  # views of one number, or of one tensor again and again
            raise ValueError(f"{path} is smaller than the tensors that it claims to hold")
    try:
        # Copied, for the file may change later.
        return {name: np.array(t.detach().float().numpy()) for name, t in tensors.items()}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{path} has tensors that cannot be read ({cut(error)})") from None


def _check_stored(file: BinaryIO) -> None:
    """Refuses compressed members, of which a small file could hold gigabytes; torch has none."""
    import zipfile  # as long to import as the rest of this file, and rarely needed

    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type or member.file_size != member.compress_size:
                raise ValueError(f"{cut(member.filename)} is compressed")
    file.seek(0)


def _reason(error: Exception) -> str:
    """Why torch refused a file, without its advice to read it unsafely."""
    if match := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks to run {cut(match[1])}"
    unsafe = not str(error).strip() or "weights_only" in str(error) or "Weights only" in str(error)
    return type(error).__name__ if unsafe else cut(error)


def safetensors_module(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ImportError("checkpoints need safetensors: pip install safetensors") from None


def check_names(what: str | Path, found: Shapes, expected: Shapes) -> None:
    """ValueError that lists which tensors are missing, unexpected, or of a wrong shape."""
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of a wrong shape": [
            f"{name} {shown(tuple(found[name]))} for {expected[name]}"
            for name in sorted(expected.keys() & found.keys())
            if tuple(found[name]) != expected[name]
        ],
    }
    complaints = [
        f"{len(names)} {how}: {', '.join(cut(name) for name in names[:3])}"
        f"{', ...' if len(names) > 3 else ''}"
        for how, names in wrong.items()
        if names
    ]
    if complaints:
        raise ValueError(f"{what} does not hold the network it describes; {'; '.join(complaints)}")


def write_whole(path: str | Path, data: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames: whole, or not at all.

    A symbolic link stays, and the file that it names is written. A file that is there keeps its
    mode. An OSError names the file, not the temporary one.
    """
    place = Path(os.path.realpath(path))

    def write(temporary: Path) -> None:
        mode = None
        if place.exists():
            mode = place.stat().st_mode
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "not a regular file", str(place))
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            os.fsync(file.fileno())

    _replace(Path(path), place, write)


def write_folder(path: str | Path, contents: Mapping[str, bytes]) -> None:
    """Writes a new folder of files, by their paths in it: whole, or not at all.

    FileExistsError if something is there already.
    """
    path = Path(path)

    def write(temporary: Path) -> None:
        if path.exists() or path.is_symlink():
            raise FileExistsError(errno.EEXIST, "is there already", str(path))
        temporary.mkdir()
        for name, data in contents.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(temporary / name, data)
        _sync(temporary)

    _replace(path, path, write)


def _replace(asked: Path, place: Path, write: Callable[[Path], None]) -> None:
    """What `write` makes under a temporary name, renamed to its place; removed if that fails."""
    temporary = place.with_name(f"{TEMPORARY}{os.urandom(8).hex()}")
    try:
        try:
            write(temporary)
            temporary.replace(place)
        except BaseException:
            if temporary.is_dir():
                import shutil

                shutil.rmtree(temporary)
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(asked)) from None
    _sync(place.parent)


def _sync(folder: Path) -> None:
    """Asks that the names in a folder last, where the system can be asked."""
    if hasattr(os, "O_DIRECTORY"):
        with contextlib.suppress(OSError):  # some file systems cannot; the files are whole anyway
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
