"""Checkpoints: what was saved is what is loaded, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as to_bytes

import ddpm_core as ddpm
from ddpm_core import schedules
from ddpm_core.checkpoints import Checkpoint, load, save
from ddpm_core.checkpoints.files import write_whole
from ddpm_core.models import bundled
from ddpm_core.nn import UNetConfig, initialise, parameter_shapes

CONFIG = UNetConfig(channels=1, out_channels=1, widths=(4, 8), blocks=1, groups=2, classes=3)
SCHEDULES = {
    "linear": ddpm.linear(1000),
    "zero terminal": ddpm.zero_terminal_snr(ddpm.linear(1000)),
    "one step": ddpm.from_betas([0.5]),
    "vp": ddpm.VP(0.2, 15.0),
    "log-snr": schedules.LinearLogSNR(10.0, -7.0),
}


def tiny(**changes) -> Checkpoint:
    params = initialise(CONFIG, np.random.default_rng(0))
    about = {"labels": ("a", "b/c", "ä"), "notes": {"trained": "not at all", "loss": 1.5}}
    return Checkpoint(
        **{"params": params, "config": CONFIG, "schedule": SCHEDULES["linear"], "size": (6, 8)}
        | about
        | changes
    )


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    save(path, tiny())
    return path


def with_metadata(path: Path, about: object, params: dict | None = None) -> Path:
    """A safetensors file of chosen metadata; json.dumps of it, if it is not a string."""
    params = dict(tiny().params) if params is None else params
    metadata = {"ddpm_core": about if isinstance(about, str) else json.dumps(about)}
    path.write_bytes(to_bytes(params, metadata=metadata))
    return path


def good_metadata(saved: Path) -> dict:
    header = int.from_bytes(saved.read_bytes()[:8], "little")
    return json.loads(json.loads(saved.read_bytes()[8 : 8 + header])["__metadata__"]["ddpm_core"])


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("predicts", ["x0", "v", "eps"])
def test_round_trip(tmp_path, schedule, predicts):
    """load(save(c)) = c: each field, each parameter to the bit, each schedule as an object."""
    wanted = tiny(schedule=schedule, predicts=predicts)
    save(tmp_path / "c.safetensors", wanted)
    found = load(tmp_path / "c.safetensors")
    for field in dataclasses.fields(Checkpoint):
        if field.name != "params":
            assert getattr(found, field.name) == getattr(wanted, field.name), field.name
    assert found.params.keys() == wanted.params.keys() == parameter_shapes(CONFIG).keys()
    for name, value in wanted.params.items():
        np.testing.assert_array_equal(found.params[name], value, strict=True)


def test_float16_rounds(tmp_path):
    """Half precision changes each weight by half a unit in the last place: 2^-11, or 2^-25."""
    wanted = tiny()
    save(tmp_path / "half.safetensors", wanted, dtype="float16")
    found = load(tmp_path / "half.safetensors").params
    for name, value in wanted.params.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=2.0**-11, atol=2.0**-25)
    header = (tmp_path / "half.safetensors").read_bytes()
    assert b'"dtype":"F16"' in header
    assert b'"dtype":"F32"' not in header


def test_predictor_is_the_network(saved):
    """The predictor of a checkpoint asks the saved network, at the saved schedule's timestep."""
    checkpoint = load(saved)
    on = ddpm.backend("numpy", dtype="float64")
    t, x_t = checkpoint.schedule(300), np.random.default_rng(0).standard_normal((2, 1, 6, 8))
    y = np.array([0, 2])
    eps = on.network(dict(checkpoint.params), CONFIG)(x_t, np.full(2, 299.0), y)
    found = checkpoint.predictor(on.network)(x_t, t, y=y)
    # x_t = alpha x_0 + sigma eps (Ho et al. 2020, Eq. 4)
    np.testing.assert_allclose(t.alpha * found + t.sigma * eps, x_t, rtol=0, atol=1e-13)


def test_bundled_model():
    """The bundled model is 28x28 clothes of ten classes, at most 6 MB, and names their labels."""
    path = bundled()["fashion-mnist"]
    model = load(path)
    assert path.stat().st_size <= 6e6
    assert (model.size, model.config.channels, model.config.classes) == ((28, 28), 1, 10)
    # Labels in the order of github.com/zalandoresearch/fashion-mnist
    assert model.labels[:3] == ("T-shirt/top", "Trouser", "Pullover")
    assert model.labels[9] == "Ankle boot"


# What is no checkpoint. ---------------------------------------------------------------------------


@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated(saved, tmp_path_factory, share):
    """A checkpoint cut off anywhere is a ValueError that names the file and says so."""
    data = saved.read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    for length in {int(share * len(data)), len(data) - 1, 8, 7, 0}:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut.safetensors is .*truncated"):
            load(path)


def test_foreign(tmp_path):
    """A safetensors file of another program is refused as such, whatever is in it."""
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(to_bytes({"weight": np.zeros(3)}, metadata={"format": "pt"}))
    with pytest.raises(ValueError, match="not a checkpoint of ddpm-core"):
        load(path)
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3, dtype=torch.bfloat16)}, path)  # which NumPy has not
    with pytest.raises(ValueError, match=r"foreign.safetensors: weight is of dtype BF16, not of"):
        load(path)


def test_missing_file(tmp_path):
    """No file, or a folder, is a FileNotFoundError that names it."""
    with pytest.raises(
        FileNotFoundError, match=r"no model '.*none\.safetensors': neither a file, "
    ):
        load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at .*{tmp_path.name}"):
        load(tmp_path)


def test_pickles_are_never_loaded(tmp_path):
    """A pickle under a checkpoint's name is not a checkpoint, and its code does not run."""
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (mark,)

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        load(path)
    torch = pytest.importorskip("torch")
    torch.save({"state": Bomb()}, path)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load(path)
    assert not mark.exists()


def test_wrong_tensors(saved, tmp_path):
    """Tensors that are missing, unexpected or of a wrong shape are listed by name."""
    params, about = dict(tiny().params), good_metadata(saved)
    del params["conv_in.weight"]
    params["extra.bias"] = np.zeros(2, dtype=np.float32)
    params["norm_out.bias"] = np.zeros(5, dtype=np.float32)
    with pytest.raises(ValueError, match="does not hold the network") as caught:
        load(with_metadata(tmp_path / "w.safetensors", about, params))
    message = str(caught.value)
    assert "1 missing: conv_in.weight" in message
    assert "1 unexpected: extra.bias" in message
    assert "1 of a wrong shape: norm_out.bias (5,) for (4,)" in message

    with pytest.raises(ValueError, match=rf"{len(parameter_shapes(CONFIG))} missing: .*, \.\.\."):
        load(with_metadata(tmp_path / "w.safetensors", about, {"a": np.zeros(1)}))


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": {"Karras": {}}},
        {"schedule": {"Discrete": {"logsnr": [1.0, 2.0]}}},
        {"schedule": {"Discrete": {"betas": [0.1]}}},
        {"schedule": {}},
        {"schedule": "linear"},
        {"predicts": "noise"},
        {"size": [28]},
        {"size": None},
        {"size": [5, 8]},
        {"size": [0, 8]},
        {"labels": None},
        {"config": {"depth": 3}},
        {"config": {"widths": [5], "groups": 2}},
    ],
    ids=str,
)
def test_unknown_metadata(saved, tmp_path, change):
    """Metadata that this version does not understand is a ValueError, never a guess."""
    path = with_metadata(tmp_path / "m.safetensors", good_metadata(saved) | change)
    with pytest.raises(
        ValueError, match=r"m.safetensors has (metadata that cannot be read|a size .* cannot halve)"
    ):
        load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"config": {}}'])
def test_metadata_is_no_object(tmp_path, text):
    """Metadata that is no JSON object, or lacks a part, is a ValueError."""
    with pytest.raises(ValueError, match="metadata that cannot be read"):
        load(with_metadata(tmp_path / "m.safetensors", text))


def test_cannot_be_described(tmp_path):
    """A schedule or target that a file cannot name is refused before anything is written."""
    for change in ({"schedule": lambda time: None}, {"predicts": "mu"}):
        with pytest.raises(ValueError, match="a checkpoint holds a schedule of"):
            save(tmp_path / "c.safetensors", tiny(**change))
    assert list(tmp_path.iterdir()) == []


# Whole, or not at all. ----------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from ddpm_core.checkpoints.files import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole(sys.argv[1], bytes(5000))
except OSError as error:
    print(type(error).__name__, error.filename)
"""


def test_no_space_keeps_the_old_file(tmp_path):
    """A write that fails half-way leaves the old file, no temporary one, and names the file."""
    pytest.importorskip("resource")
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True
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
