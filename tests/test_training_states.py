"""The states of a training run: what is saved is resumed bit for bit, or refused with a reason."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core.checkpoints.files import read_tensors

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.numpy import save_file  # noqa: E402
from small_training import (  # noqa: E402
    CLASSES,
    CONFIG,
    IMAGES,
    RECIPE,
    assert_same,
    losses_of,
    trainer,
    weights,
)

from ddpm_core_torch.training import OtherRunError  # noqa: E402
from ddpm_core_torch.training.state import _sum  # noqa: E402


@pytest.fixture(autouse=True)
def sums_in_one_order(one_thread): ...


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The state of a run after two steps."""
    run = trainer()
    run.step()
    run.step()
    run.save(tmp_path_factory.mktemp("saved") / "run")
    return tmp_path_factory.getbasetemp() / "saved0" / "run"


def write_state(path, tensors, about: str) -> None:
    """Writes a state that is not damaged on the way: its checksum is right."""
    save_file(tensors, path, {"training": f"{_sum(about, tensors)} {about}"})


def said(metadata) -> str:
    """What a state says, behind its checksum."""
    return metadata["training"].partition(" ")[2]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resume_is_running_through(tmp_path, dropout, stop):
    """A run that is stopped and resumed ends as one that is not, bit for bit."""
    recipe = dataclasses.replace(RECIPE, dropout=dropout)
    through = trainer(recipe)
    wanted = losses_of(through, 5)

    first = trainer(recipe)
    losses = losses_of(first, stop)
    first.save(tmp_path / "run")
    torch.manual_seed(99)  # whatever else draws from torch's generator
    second = trainer(recipe)
    second.step()  # of which nothing stays
    second.resume(tmp_path / "run")
    assert second.done == stop
    losses += losses_of(second, 5 - stop)

    assert losses == wanted
    assert_same(weights(second), weights(through))
    assert_same(second.averaged(), through.averaged())


OTHERS = {
    "batch": {"recipe": dataclasses.replace(RECIPE, batch=5)},
    "blocks": {"config": dataclasses.replace(CONFIG, blocks=2)},
    "schedule": {"schedule": ddpm.cosine(1000)},
    "predicts": {"predicts": "v"},
    "data of another shape": {"images": IMAGES[:-1], "classes": CLASSES[:-1]},
    "data of other images": {"images": 255 - IMAGES},
    "data of other classes": {"classes": 1 - CLASSES},
}


@pytest.mark.parametrize("other", OTHERS)
def test_refuses_another_run(saved, other):
    """Only the same run can be resumed; what differs is named, with both values."""
    run = trainer(**OTHERS[other])
    before = weights(run)
    with pytest.raises(OtherRunError, match=f"another run: {other.split()[0]} was ") as caught:
        run.resume(saved)
    ((old, new),) = caught.value.differences.values()
    assert f"was {old} and is {new}" in str(caught.value)
    assert_same(weights(run), before)


def test_lr_may_change(saved):
    """A resumed run may go on at another learning rate, which its next step has."""
    run = trainer(dataclasses.replace(RECIPE, lr=7e-3, warmup=RECIPE.warmup))
    run.resume(saved)
    run.step()
    run.step()
    assert run.optimiser.param_groups[0]["lr"] == 7e-3


def test_some_of_many_images_are_compared(monkeypatch):
    """Of more images than are compared in full, some that are spread evenly over them are."""
    monkeypatch.setattr("ddpm_core_torch.training.batches.COMPARED", IMAGES.nbytes // 2)
    found = []
    for changed in (None, 0, 8, 9):
        images = IMAGES.copy()
        if changed is not None:
            images[changed] ^= 1
        found.append(trainer(images=images).data)
    assert found[1] != found[0] == found[2]  # every third image is looked at
    assert found[3] not in found[:3]


def test_refuses_a_model(tmp_path):
    """A checkpoint of a model is not the state of a run."""
    from ddpm_core.checkpoints import Checkpoint, save

    params = trainer().averaged()
    save(tmp_path / "m", Checkpoint(params, CONFIG, ddpm.linear(), (4, 6)))
    with pytest.raises(ValueError, match="is not the state of a run"):
        trainer().resume(tmp_path / "m")
    with pytest.raises(FileNotFoundError):
        trainer().resume(tmp_path / "none")


NAME = "conv_out.bias"
DAMAGES = {
    "moment missing": (lambda t: t.pop(f"exp_avg.{NAME}"), f"1 missing: exp_avg.{NAME}"),
    "average missing": (lambda t: t.pop(f"ema.0.5.{NAME}"), f"1 missing: ema.0.5.{NAME}"),
    "one too many": (lambda t: t.update(more=t[f"net.{NAME}"]), "1 unexpected: more"),
    "misshapen": (lambda t: t.update({f"net.{NAME}": np.zeros(2, "f4")}), "of a wrong shape"),
    "halved": (lambda t: t.update({f"net.{NAME}": np.zeros(1, "f2")}), "is float16 and not"),
    "NaN": (lambda t: t[f"ema.0.5.{NAME}"].fill(np.nan), f"ema.0.5.{NAME} is not finite"),
    "moment inf": (lambda t: t[f"exp_avg.{NAME}"].fill(np.inf), f"exp_avg.{NAME} is not finite"),
    "square < 0": (lambda t: t[f"exp_avg_sq.{NAME}"].fill(-1), f"exp_avg_sq.{NAME}, .* negative"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_refuses_damaged_tensors(tmp_path, saved, damage, message):
    """A state that lacks a tensor, or has one that no training reaches, is refused whole."""
    tensors, metadata = read_tensors(saved)
    damage(tensors)
    write_state(tmp_path / "bad", tensors, said(metadata))
    run = trainer()
    before = weights(run)
    with pytest.raises(ValueError, match=message):
        run.resume(tmp_path / "bad")
    assert_same(weights(run), before)
    assert run.done == 0


@pytest.mark.parametrize("name", ["done", "updates"])
@pytest.mark.parametrize("count", [-1, 1.5, True, "2", None, 10**19, [1]])
def test_refuses_a_damaged_count(tmp_path, saved, name, count):
    """A number of steps is an integer of at least 0, and nothing that compares like one."""
    tensors, metadata = read_tensors(saved)
    about = json.loads(said(metadata)) | {name: count}
    write_state(tmp_path / "bad", tensors, json.dumps(about))
    with pytest.raises(ValueError, match=f"is damaged: {name} must be a count of steps, but is"):
        trainer().resume(tmp_path / "bad")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loss", math.nan, "loss must be a number, but is nan"),
        ("loss", 1, "loss must be a number, but is 1"),
        ("run", [], r"run must be an object, but is \[\]"),
        ("scaler", None, "scaler must be an object, but is None"),
    ],
)
def test_refuses_damaged_fields(tmp_path, saved, name, value, message):
    """The other fields of a state's metadata have one type each."""
    tensors, metadata = read_tensors(saved)
    about = json.loads(said(metadata)) | {name: value}
    write_state(tmp_path / "bad", tensors, json.dumps(about))
    with pytest.raises(ValueError, match=f"is damaged: {message}"):
        trainer().resume(tmp_path / "bad")


@pytest.mark.parametrize("about", ["[]", "1", "null", "{}", "{", "[" * 100_000, '{"done": 1}'])
def test_refuses_damaged_metadata(tmp_path, saved, about):
    """Metadata that is no JSON object, or lacks a part, is refused."""
    write_state(tmp_path / "bad", read_tensors(saved)[0], about)
    with pytest.raises(ValueError, match="cannot be read"):
        trainer().resume(tmp_path / "bad")


@pytest.mark.parametrize("what", ["tensors", "metadata", "none"])
def test_refuses_another_checksum(tmp_path, saved, what):
    """What a disk or a copy changed is found, also where the numbers still look like a state's."""
    tensors, metadata = read_tensors(saved)
    if what == "tensors":
        tensors[f"net.{NAME}"] = np.nextafter(tensors[f"net.{NAME}"], np.float32(1))
    elif what == "metadata":
        metadata["training"] = metadata["training"].replace('"done": 2', '"done": 3')
    else:
        metadata["training"] = said(metadata)
    save_file(tensors, tmp_path / "bad", metadata)
    with pytest.raises(ValueError, match="is damaged: its checksum is another"):
        trainer().resume(tmp_path / "bad")


def test_loss_is_resumed(tmp_path):
    """The running mean of the loss is part of the state: (l_1 + .. + l_n) / n at first."""
    run = trainer()
    losses = [run.step().loss for _ in range(3)]
    assert run.loss == pytest.approx(np.mean(losses))
    run.save(tmp_path / "run")
    resumed = trainer()
    resumed.resume(tmp_path / "run")
    assert (resumed.loss, resumed.step().loss, resumed.loss) == (
        run.loss,
        run.step().loss,
        run.loss,
    )


@pytest.mark.parametrize("how", ["weights", "average", "moment"])
def test_a_diverged_state_is_not_saved(tmp_path, how):
    """Numbers that a step made useless are found before they replace a good file."""
    path = tmp_path / "run"
    path.write_bytes(b"good")
    run = trainer(dataclasses.replace(RECIPE, lr=1e30 if how == "weights" else 1e-3, warmup=0))
    run.step()
    if how == "average":
        run.averages["ema.0.5"].values[0].fill_(1e38)
    if how == "moment":
        run.optimiser.state_dict()["state"][0]["exp_avg_sq"].fill_(math.nan)
    message = {
        "weights": "the weights of step 1 give a loss of",
        "average": "the averaged weights of step 1 give a loss of",
        "moment": r"exp_avg_sq\..* is not finite at step 1",
    }
    with pytest.raises(FloatingPointError, match=message[how]):
        run.save(path)
    assert path.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [path]
