"""Checkpoints: what was saved is what is loaded, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as to_bytes

import ddpm_core as ddpm
from ddpm_core import schedules
from ddpm_core.checkpoints import Checkpoint, load, save
from ddpm_core.checkpoints.own import Scaled
from ddpm_core.models import bundled
from ddpm_core.nn import UNetConfig, initialise, parameter_shapes
from ddpm_core.parameterisations import mu

CONFIG = UNetConfig(channels=1, out_channels=1, widths=(4, 8), blocks=1, groups=2, classes=3)
SCHEDULES = {
    "linear": ddpm.linear(1000),
    "zero terminal": ddpm.zero_terminal_snr(ddpm.linear(1000)),
    "one step": ddpm.from_betas([0.5]),
    "vp": ddpm.VP(0.2, 15.0),
    "log-snr": schedules.LinearLogSNR(10.0, -7.0),
    "flow": schedules.Flow(3.0),
    "edm": schedules.EDM(0.01, 50.0),
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


@pytest.mark.slow
def test_bundled_model_in_colour():
    """Emoji of 32 x 32 pixels, at most 12 MB; smileys are yellow on white, channel by channel."""
    path = bundled()["emoji"]
    model, on = load(path), ddpm.backend("numpy")
    assert path.stat().st_size <= 12e6
    assert (model.size, model.config.channels, model.config.classes) == ((32, 32), 3, 9)
    assert model.notes["held_out"] == 0.05
    y = np.full(4, model.labels.index("smileys"))
    noise = on.portable_noise(seed=0)(0, (4, 3, 32, 32))
    denoise = ddpm.clip(model.predictor(on.network))
    x = ddpm.sample(denoise, ddpm.dpmpp_2m(model.schedule, 8), noise, y=y)
    red, green, blue = x[:, :, 8:24, 8:24].mean(axis=(0, 2, 3))
    assert red > green + 0.1 > blue + 0.5
    assert x[:, :, 0].mean() > 0.9


def test_names_and_runs(saved, tmp_path, monkeypatch):
    """`load` takes a bundled model's name and a run's folder; a path is never a name."""
    assert load("fashion-mnist").labels == load(bundled()["fashion-mnist"]).labels
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes(saved.read_bytes())
    (run / "training.safetensors").write_bytes(b"")
    assert load(run).config == load(str(run)).config == CONFIG
    monkeypatch.chdir(tmp_path)
    run.rename("fashion-mnist")
    assert load("./fashion-mnist").config == CONFIG


def test_without_a_class(saved, tmp_path):
    """Whether "no class" was trained is kept; a file that does not say it had the default."""
    for unconditional in (True, False):
        save(tmp_path / "c.safetensors", tiny(unconditional=unconditional))
        assert load(tmp_path / "c.safetensors").unconditional is unconditional
    about = good_metadata(saved)
    del about["unconditional"]
    assert load(with_metadata(tmp_path / "c.safetensors", about)).unconditional


def test_pickles(saved):
    """A checkpoint and its scaled network go to another process as they are."""
    wanted = load(saved)
    found = pickle.loads(pickle.dumps(wanted))
    assert (found.config, found.schedule, found.size) == (CONFIG, wanted.schedule, wanted.size)
    assert all((found.params[name] == p).all() for name, p in wanted.params.items())
    scaled = pickle.loads(pickle.dumps(Scaled(operator.add, 0.25)))
    assert scaled == Scaled(operator.add, 0.25)


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
    ("change", "message"),
    [
        (
            {"schedule": {"Karras": {}}},
            "schedule must be one of Discrete, VP, LinearLogSNR, Flow, EDM",
        ),
        ({"schedule": {"Discrete": {"logsnr": [1.0, 2.0]}}}, r"logsnr\[0\] is clean data"),
        ({"schedule": {"Discrete": {"logsnr": [math.inf, "1"]}}}, "must be a number, not '1'"),
        ({"schedule": {"Discrete": {"logsnr": [math.inf, 10**400]}}}, "must be a number, not 1000"),
        ({"schedule": {"Discrete": {"logsnr": [math.inf, math.nan]}}}, "log-SNR must fall"),
        ({"schedule": {"Discrete": {"betas": [0.1]}}}, "Discrete has no field betas"),
        ({"schedule": {"VP": {"beta_min": "0.1"}}}, "beta_min must be a number, not '0.1'"),
        ({"schedule": {"VP": {"beta_min": math.nan}}}, "beta_min must be a finite number, not nan"),
        ({"schedule": {}}, "schedule must be one of"),
        ({"schedule": "linear"}, "schedule is not a JSON object"),
        ({"predicts": "noise"}, 'predicts must be one of "x0"'),
        ({"predicts": ["eps"]}, "predicts must be one of"),
        ({"size": [28]}, "size must be a list of 2 integers"),
        ({"size": None}, "size must be a list, not None"),
        ({"size": "88"}, "size must be a list, not '88'"),
        ({"size": [math.inf, 8]}, "size must be an integer from 1 to 16384, not inf"),
        ({"size": [8.0, 8]}, "size must be an integer from 1 to 16384, not 8.0"),
        ({"size": [True, 8]}, "size must be an integer from 1 to 16384, not True"),
        ({"size": [0, 8]}, "size must be an integer from 1 to 16384, not 0"),
        ({"size": [10**9, 8]}, "size must be an integer from 1 to 16384, not 1000000000"),
        ({"size": [5, 8]}, r"a size \(5, 8\) that 2 resolutions cannot halve"),
        ({"labels": None}, "labels must be a list, not None"),
        ({"labels": [1, 2, 3]}, r"labels must be a list of texts, not \[1, 2, 3\]"),
        ({"labels": ["a"]}, "labels are 1 names for 3 classes"),
        ({"notes": []}, "notes is not a JSON object"),
        ({"timestep_scale": math.nan}, "timestep_scale must be a finite number, not nan"),
        ({"timestep_scale": 0}, "timestep_scale must be positive, not 0.0"),
        ({"unconditional": 1}, "unconditional must be true or false, not 1"),
        ({"config": {"depth": 3}}, "config has no field depth"),
        ({"config": {"widths": [5], "groups": 2}}, "widths must be multiples of groups = 2"),
        ({"config": {"widths": "88"}}, "widths must be integers, but is '88'"),
        ({"config": {"widths": [True]}}, "widths must be integers"),
        ({"config": {"widths": {"a": 1}}}, "widths must be integers"),
        ({"config": {"widths": [2**16] * 16}}, "parameters, more than"),
        ({"config": {"blocks": 10**6}}, "blocks must be at most 100, but is 1000000"),
        ({"config": {"blocks": 1.5}}, "blocks must be an integer, but is 1.5"),
        ({"config": {"eps": math.nan}}, "eps must not be negative and must be finite, but is nan"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_unknown_metadata(saved, tmp_path, change, message):
    """Metadata of a wrong type, out of range or unknown is refused by its name, never guessed."""
    path = with_metadata(tmp_path / "m.safetensors", good_metadata(saved) | change)
    with pytest.raises(ValueError, match=rf"m.safetensors (has |cannot be read: .*){message}"):
        load(path)


@pytest.mark.parametrize("name", ["config", "schedule", "predicts", "size", "labels", "notes"])
def test_missing_metadata(saved, tmp_path, name):
    about = good_metadata(saved)
    del about[name]
    with pytest.raises(ValueError, match=f"cannot be read: metadata lacks {name}"):
        load(with_metadata(tmp_path / "m.safetensors", about))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"config": {}}', "[" * 10**5, "1e4"])
def test_metadata_is_no_object(tmp_path, text):
    """Metadata that is no JSON object, lacks a part, or is nested without end, is a ValueError."""
    with pytest.raises(ValueError, match="cannot be read"):
        load(with_metadata(tmp_path / "m.safetensors", text))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(saved, tmp_path, value):
    """NaN and infinity are refused with the name of a tensor that has them, also in writing."""
    params = {name: p.copy() for name, p in tiny().params.items()}
    params["down.0.block.0.conv2.weight"][1, 2, 0, 0] = value
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match=r"not finite numbers, in down.0.block.0.conv2.weight"):
        load(with_metadata(path, good_metadata(saved), params))
    with pytest.raises(ValueError, match=r"the checkpoint has .* in down.0.block.0.conv2.weight"):
        save(tmp_path / "n.safetensors", tiny(params=params))
    params["down.0.block.0.conv2.weight"][1, 2, 0, 0] = 1e5  # no number of float16
    with pytest.raises(ValueError, match=r"in down.0.block.0.conv2.weight"):
        save(tmp_path / "n.safetensors", tiny(params=params), dtype="float16")
    assert not (tmp_path / "n.safetensors").exists()


def test_cannot_be_described(tmp_path):
    """A schedule or target that a file cannot name is refused before anything is written."""
    for change in ({"schedule": lambda time: None}, {"predicts": "sigma"}):
        with pytest.raises(ValueError, match="a checkpoint holds a schedule of"):
            save(tmp_path / "c.safetensors", tiny(**change))
    with pytest.raises(ValueError, match="mu is of a discrete schedule, not of a VP"):
        save(tmp_path / "c.safetensors", tiny(predicts="mu", schedule=ddpm.VP()))
    assert list(tmp_path.iterdir()) == []


def test_mu_is_of_the_schedule(tmp_path):
    """A network of the posterior mean is read by the schedule in its file."""
    made = tiny(predicts="mu", schedule=ddpm.linear())
    save(tmp_path / "c.safetensors", made)
    predicts = load(tmp_path / "c.safetensors").predictor(lambda params, config: None).predicts
    t = ddpm.linear()(500)
    np.testing.assert_array_equal(predicts(t), mu(ddpm.linear())(t))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (5, 6)}, "2 resolutions cannot halve"),
        ({"size": (4.0, 6)}, "size must be an integer"),
        ({"labels": ("cat",)}, "labels are 1 names for 3 classes"),
        ({"timestep_scale": math.nan}, "timestep_scale must be a finite number"),
        ({"unconditional": 1}, "unconditional must be true or false"),
    ],
)
def test_what_load_would_refuse_is_not_saved(tmp_path, change, message):
    """A trained network is not lost in a file that nothing reads."""
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "c.safetensors", tiny(**change))
    with pytest.raises(ValueError, match="dtype must be one of float32, float16"):
        save(tmp_path / "c.safetensors", tiny(), dtype="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("drop", "unconditional"), [("0", False), ("0.5", True)])
def test_training_says_whether_it_dropped_labels(tmp_path, drop, unconditional):
    """Without dropped labels, no class is one that the network never saw."""
    pytest.importorskip("torch")
    run = pytest.importorskip("ddpm_core.cli.app").run
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.array([0, 1, 0, 1]))
    network = ["--widths", "4", "--groups", "2", "--blocks", "1", "--attention", "0"]
    options = ["--steps", "1", "--batch", "2", "--drop-label", drop, *network]
    options += ["--schedule", "cosine", "--T", "2"]
    run(["train", "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "r"), *options])
    checkpoint = load(tmp_path / "r")
    assert (checkpoint.config.classes, checkpoint.unconditional) == (2, unconditional)
