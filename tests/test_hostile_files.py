"""Files that mean harm: each is refused in a line, at once, and takes no more than its own size."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import random
import resource
import signal
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as to_bytes

import ddpm_core as ddpm
from ddpm_core.checkpoints import load, save, save_diffusers
from ddpm_core.nn import UNetConfig, initialise

torch = pytest.importorskip("torch")

CONFIG = UNetConfig(channels=1, out_channels=1, widths=(32,), blocks=1, attention=())
PARAMS = initialise(CONFIG, np.random.default_rng(0))
CHECKPOINT = ddpm.Checkpoint(PARAMS, CONFIG, ddpm.linear(10, rescale=False), (8, 8))
NAME = "temb.dense.0.weight"


@pytest.fixture(autouse=True)
def in_time():
    """A file that hangs fails, and so does one that allocates another 2 GB."""

    def alarm(signum, frame):
        raise AssertionError("it hangs")

    before, limits = signal.signal(signal.SIGALRM, alarm), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, limits[1]))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def refused(path, capfd):
    """The one line by which a file is refused."""
    with pytest.raises((ValueError, OSError, ImportError)) as caught:
        load(path)
    line = str(caught.value)
    assert len(line) <= 500 + len(str(path))
    assert "\n" not in line
    assert "weights_only" not in line
    assert capfd.readouterr() == ("", "")
    return line


def tensors(**changes):
    """A state dict of the port, which is sound without changes."""
    found = {name: torch.from_numpy(p.copy()) for name, p in PARAMS.items()}
    return found | {name.replace("_dot_", "."): value for name, value in changes.items()}


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def strange():
    """Tensors that a file of torch can hold under the name of a weight."""
    shape = PARAMS[NAME].shape
    plain = torch.zeros(shape)
    with torch.device("meta"):
        meta = torch.zeros(shape)
    yield "sparse", plain.to_sparse(), "temb.dense.0.weight is not a plain tensor"
    yield "meta", meta, "temb.dense.0.weight is not a plain tensor"
    yield "complex", plain.to(torch.complex64), "temb.dense.0.weight is not a plain tensor"
    yield "expanded", torch.zeros(1).expand(10**5, 10**5), "smaller than the tensors that it claims"
    yield "scalar", torch.tensor(1.0), "1 of a wrong shape: temb.dense.0.weight"
    yield "number", 1.0, "1 missing: temb.dense.0.weight"
    yield "NaN", torch.full(shape, torch.nan), "not finite numbers, in temb.dense.0.weight"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("tensor", "message"), [pytest.param(*c[1:], id=c[0]) for c in strange()])
def test_strange_tensors(tmp_path, capfd, tensor, message):
    path = tmp_path / "model.pt"
    torch.save(tensors(temb_dot_dense_dot_0_dot_weight=tensor), path)
    if message.startswith("1 missing"):  # the name that the layout is known by
        message = "nor in a layout that is known"
    assert message in refused(path, capfd)


@pytest.mark.filterwarnings(
    "ignore:.*quantize.*", "ignore::UserWarning", "ignore::DeprecationWarning"
)
def test_quantised_tensor(tmp_path, capfd):
    path = tmp_path / "model.pt"
    quantised = torch.quantize_per_tensor(torch.zeros(PARAMS[NAME].shape), 0.1, 0, torch.qint8)
    torch.save(tensors() | {NAME: quantised}, path)
    assert "is not a plain tensor" in refused(path, capfd)


@pytest.mark.parametrize("name", ["conv_in", "conv_out", "down.0.block.0.conv1"])
def test_scalars_under_known_names(tmp_path, capfd, name):
    """The names by which a layout's widths are read."""
    path, one = tmp_path / "model.pt", torch.tensor(1.0)
    torch.save(tensors() | {f"{name}.weight": one}, path)
    assert "fewer axes than in a network of Ho et al." in refused(path, capfd)
    names = ["0.0.weight", "1.0.out_layers.3.weight", "1.0.emb_layers.1.weight"]
    theirs = {f"input_blocks.{name}": one for name in names}
    torch.save(theirs | {"output_blocks.0.0.x": one, "output_blocks.1.0.x": one}, path)
    assert "fewer axes than in a network of OpenAI" in refused(path, capfd)


def test_other_states(tmp_path, capfd):
    """Averages that are numbers, keys that are no strings, a name of 200,000 characters."""
    path = tmp_path / "model.pt"
    torch.save({"ema": 0.999, "model": tensors(), "step": 3}, path)
    assert load(path).config == CONFIG
    torch.save({1: torch.zeros(1), (2, 3): torch.zeros(1), **tensors()}, path)
    assert load(path).config == CONFIG
    torch.save({1: torch.zeros(1)}, path)
    assert "holds no tensors by name" in refused(path, capfd)
    for found in (tensors(), {}):
        torch.save(found | {"x" * 200_000: torch.zeros(1)}, path)
        refused(path, capfd)


def test_pickles_that_run_code(tmp_path, capfd):
    """They do not run, and torch's advice to read them unsafely is not passed on."""
    path = tmp_path / "model.pt"
    torch.save({"a": Evil()}, path)
    assert "is no file of tensors, or is truncated (it asks to run " in refused(path, capfd)
    torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=False)
    assert "is no file of tensors, or is truncated (it asks to run " in refused(path, capfd)


def test_pickles_of_another_protocol(tmp_path, capfd):
    """torch warns of them, and advises to read them unsafely: neither is passed on."""
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"a": "b"}, protocol=4))
    assert "no file of tensors, or is truncated (UnpicklingError)" in refused(path, capfd)


def test_legacy_file_of_torch(tmp_path):
    """The format before torch 1.6, which is no zip."""
    torch.save(tensors(), tmp_path / "m.ckpt", _use_new_zipfile_serialization=False)
    found = load(tmp_path / "m.ckpt").params
    assert all((found[name] == p).all() for name, p in PARAMS.items())


def test_a_zip_that_inflates(tmp_path, capfd):
    """Compressed members are refused by the zip's own list of them."""
    path, bomb = tmp_path / "model.pt", tmp_path / "bomb.pt"
    torch.save(tensors(), path)
    with zipfile.ZipFile(path) as sound, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as zipped:
        for member in sound.infolist():
            more = bytes(10**8) if member.filename.endswith("data.pkl") else b""
            zipped.writestr(member.filename, sound.read(member) + more)
    assert bomb.stat().st_size < 10**6
    assert "is compressed" in refused(bomb, capfd)


def test_a_member_that_claims_more(tmp_path, capfd):
    """A tensor is no longer than its part of the file, whatever the pickle says."""
    path = tmp_path / "model.pt"
    torch.save({"temb.dense.0.weight": torch.zeros(1000)}, path)
    data = path.read_bytes()
    claims = data.replace(struct.pack("<BH", ord("M"), 1000), struct.pack("<BH", ord("M"), 60000))
    assert claims != data
    path.write_bytes(claims)
    assert "is no file of tensors" in refused(path, capfd)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("F8_E4M3", 4), ("F8_E5M2", 4), ("F4", 2), ("BF16", 8), ("I64", 32), ("C64", 32), ("BOOL", 4)],
)
def test_dtypes_of_safetensors(tmp_path, capfd, dtype, size):
    about = {"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, size]}}
    header = json.dumps(about).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    assert f"a is of dtype {dtype}, not of F16, F32, F64" in refused(path, capfd)


def test_only_regular_files(tmp_path, capfd):
    """A FIFO never ends, and a device may not."""
    for name in ("m.safetensors", "m.pt"):
        os.mkfifo(tmp_path / name)
        assert "not a regular file" in refused(tmp_path / name, capfd)
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    assert "not a regular file" in refused(tmp_path / "zero.pt", capfd)
    folder = tmp_path / "folder"
    save_diffusers(folder, CHECKPOINT)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    os.mkfifo(folder / "scheduler" / "scheduler_config.json")
    assert "scheduler_config.json" in refused(folder, capfd)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all files")
def test_no_permission(tmp_path):
    path = tmp_path / "m.safetensors"
    save(path, CHECKPOINT)
    path.chmod(0)
    with pytest.raises(PermissionError):
        load(path)


NASTY = [
    *(None, True, 0, -1, 1, 1.5, 10**6, 10**12, 10**400, float("nan"), float("inf"), "", "88"),
    *("x" * 999, [], [1], [[]], [0.5, "a"], {}, {"a": 1}, ["8", "8"], [True], [10**400]),
]


def places(about):
    """Every container of a JSON tree and every key of it."""
    pairs = about.items() if isinstance(about, dict) else enumerate(about)
    for key, value in [*pairs][:40]:
        yield about, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def mutant(about, rng):
    """A JSON tree with one to three entries replaced, removed or added."""
    about = json.loads(json.dumps(about))
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice([*places(about)])
        choice = rng.random()
        if choice < 0.15:
            del container[key]
        elif choice < 0.2 and isinstance(container, dict):
            container["unknown"] = copy.deepcopy(rng.choice(NASTY))
        else:
            container[key] = copy.deepcopy(rng.choice(NASTY))
    return about


def flipped(data, rng, head):
    """Up to four bytes changed, most of them among the first or last `head`; or the end cut off."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        ends = [*range(min(head, len(data))), *range(max(0, len(data) - head), len(data))]
        place = rng.choice(ends) if rng.random() < 0.8 else rng.randrange(len(data))
        data[place] = rng.choice(
            [0, 255, data[place] ^ (1 << rng.randrange(8)), rng.randrange(256)]
        )
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def survives(path):
    """Whether a mutant is refused properly or is a checkpoint; anything else raises."""
    try:
        found = load(path)
    except (ValueError, OSError, ImportError) as error:
        line = str(error)
    else:
        assert all(np.isfinite(p).all() for p in found.params.values())
        return True
    assert len(line) <= 500 + len(str(path))
    return False


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "pt", "legacy"])
def test_flipped_bytes(tmp_path, kind):
    rng = random.Random(kind)
    path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pt")
    if kind == "safetensors":
        save(path, CHECKPOINT)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=kind == "pt")
    data = path.read_bytes()
    survived = 0
    for _ in range(150):
        path.write_bytes(flipped(data, rng, 4000))
        survived += survives(path)
    assert survived < 150


@pytest.mark.slow
def test_mutated_metadata(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "m.safetensors"
    about = {
        "config": dataclasses.asdict(CONFIG),
        "schedule": {"Discrete": dataclasses.asdict(CHECKPOINT.schedule)},
        "predicts": "eps",
        "size": [8, 8],
        "labels": [],
        "timestep_scale": 1.0,
        "unconditional": True,
        "notes": {"a": 1},
    }
    survived = 0
    for _ in range(300):
        metadata = {"ddpm_core": json.dumps(mutant(about, rng))}
        path.write_bytes(to_bytes(PARAMS, metadata=metadata))
        survived += survives(path)
    assert 0 < survived < 150


def test_mutated_folder(tmp_path):
    rng = random.Random(2)
    folder = tmp_path / "folder"
    save_diffusers(folder, CHECKPOINT)
    survived = 0
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        sound = (folder / name).read_text()
        about = json.loads(sound)
        if "trained_betas" in about:
            about |= {
                "beta_schedule": "linear",
                "beta_start": 1e-4,
                "rescale_betas_zero_snr": False,
            }
            about["trained_betas"] = rng.choice([None, [0.1, 0.2]])
        for _ in range(150):
            (folder / name).write_text(json.dumps(mutant(about, rng)))
            survived += survives(folder)
        (folder / name).write_text(sound)
    assert 0 < survived < 250
