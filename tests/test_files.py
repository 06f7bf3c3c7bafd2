"""Writing: a file or a folder is there whole, or not at all; and what a folder of files keeps."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_core.checkpoints.files import write_folder, write_whole

FULL = """
import resource, signal, sys
from ddpm_core.checkpoints.files import write_folder, write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    if sys.argv[2] == "file":
        write_whole(sys.argv[1], bytes(5000))
    else:
        write_folder(sys.argv[1], {"a.json": b"{}", "unet/b": bytes(5000)})
except OSError as error:
    print(type(error).__name__, error.filename)
"""


def test_no_space_keeps_the_old_file(tmp_path):
    """A write that fails half-way leaves the old file, no temporary one, and names the file."""
    pytest.importorskip("resource")
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    ran = subprocess.run(
        [sys.executable, "-c", FULL, path, "file"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split(maxsplit=1) == ["OSError", f"{path}\n"]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write(tmp_path, monkeypatch):
    """An interrupt between writing and renaming leaves the old file and no temporary one."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_names_the_file(tmp_path):
    """In a folder that is not there, the error names the file asked for."""
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "no" / "model.safetensors", b"new")
    assert caught.value.filename == str(tmp_path / "no" / "model.safetensors")


def test_file_mode(tmp_path):
    """A written file has the rights that the umask leaves, not those of a temporary file."""
    old = os.umask(0o027)
    try:
        write_whole(tmp_path / "f", b"new")
    finally:
        os.umask(old)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "f").read_bytes() == b"new"


def test_no_space_leaves_no_folder(tmp_path):
    """A folder whose second file does not fit is not there at all, and is named."""
    pytest.importorskip("resource")
    path = tmp_path / "model"
    ran = subprocess.run(
        [sys.executable, "-c", FULL, path, "folder"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split(maxsplit=1) == ["OSError", f"{path}\n"]
    assert list(tmp_path.iterdir()) == []


def test_folder(tmp_path):
    """Files and folders have the rights that the umask leaves; nothing that is there is touched."""
    path = tmp_path / "model"
    old = os.umask(0o027)
    try:
        write_folder(path, {"a": b"1", "unet/b": b"2"})
    finally:
        os.umask(old)
    assert (path / "unet" / "b").read_bytes() == b"2"
    assert path.stat().st_mode & 0o777 == 0o750
    assert (path / "unet" / "b").stat().st_mode & 0o777 == 0o640
    for place in (path, tmp_path / "empty", tmp_path / "link"):
        if place.name == "empty":
            place.mkdir()
        if place.name == "link":
            place.symlink_to("nowhere")
        with pytest.raises(FileExistsError) as caught:
            write_folder(place, {"a": b"3"})
        assert caught.value.filename == str(place)
    assert {p.name for p in tmp_path.iterdir()} == {"model", "empty", "link"}
    assert (path / "a").read_bytes() == b"1"


def test_existing_file_keeps_its_mode(tmp_path):
    """Secrets stay readable by their owner only."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(0o600)
    write_whole(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)


def test_symbolic_links_stay(tmp_path):
    """A link's target is written, through links of links, and where the target is not there yet."""
    (tmp_path / "data").mkdir()
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to("data/f")
    for data in (b"new", b"newer"):
        write_whole(tmp_path / "first", data)
        assert (tmp_path / "data" / "f").read_bytes() == data
        assert (tmp_path / "first").is_symlink()
        assert (tmp_path / "second").is_symlink()
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["f"]


@pytest.mark.parametrize("length", [246, 251, 255])
def test_long_names(tmp_path, length):
    """As long as the file system has names."""
    path = tmp_path / ("f" * length)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(OSError, match="too long") as caught:
        write_whole(tmp_path / ("f" * 256), b"new")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert list(tmp_path.iterdir()) == [path]


def test_only_files_are_replaced(tmp_path):
    """A FIFO or a folder under the name stays what it is."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(OSError, match="not a regular file") as caught:
            write_whole(tmp_path / name, b"new")
        assert caught.value.filename == str(tmp_path / name)
    assert (tmp_path / "fifo").is_fifo()
    assert {p.name for p in tmp_path.iterdir()} == {"fifo", "folder"}


def test_the_folder_is_synced(tmp_path, monkeypatch):
    """First the content, then the new name, are asked to last."""
    synced, real = [], os.fsync

    def fsync(handle):
        synced.append((Path(f"/proc/self/fd/{handle}").readlink(), (tmp_path / "f").exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "f", b"new")
    (content, before), (folder, after) = synced
    assert (content.parent, before) == (tmp_path, False)
    assert (folder, after) == (tmp_path, True)
