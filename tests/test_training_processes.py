"""Training over several processes is the training of one: same draws, same losses, one state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from small_training import CLASSES, IMAGES, assert_same  # noqa: E402
from training_process import SEEN, STEPS, made, recorded, spread  # noqa: E402

pytestmark = pytest.mark.slow  # each process imports torch

SCRIPT = Path(__file__).with_name("training_process.py")
#: Sums in another order change a loss by a few units of float32's last place, and a weight by a
#: share of its steps, each at most lr = 1e-3, as Adam divides small gradients by their own size.
LOSS, WEIGHT = 1e-5, 1e-5


@pytest.fixture(autouse=True)
def sums_in_one_order(one_thread): ...


@pytest.fixture(scope="module", params=["uniform", "important"])
def runs(request, tmp_path_factory):
    """A run of one process, what two processes of it found, and their folder."""
    folder = tmp_path_factory.mktemp(request.param)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = made(request.param)
    alone = {"first": recorded(run, STEPS)}
    run.save(folder / "alone")
    alone["held"] = run.loss_on(255 - IMAGES[:, :, ::-1], CLASSES)
    alone["through"] = recorded(run, STEPS)
    torch.set_num_threads(threads)
    return request.param, alone, spread(SCRIPT, folder, request.param, folder / "alone"), folder


def of(found: dict, prefix: str) -> dict:
    return {k.removeprefix(f"{prefix}."): a for k, a in found.items() if k.startswith(f"{prefix}.")}


def joined(two: list[dict], prefix: str) -> dict[str, np.ndarray]:
    """What two processes saw, as one would; where each has all of it, they agree bit for bit."""
    a, b = (of(found, prefix) for found in two)
    for name in a.keys() - set(SEEN):
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    return a | {name: np.concatenate([a[name], b[name]], axis=1) for name in SEEN}


def assert_one_run(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name in found:
        if name in SEEN:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
        else:
            tolerance = {"rtol": LOSS} if name in ("loss", "losses", "norm") else {"atol": WEIGHT}
            np.testing.assert_allclose(
                found[name], wanted[name], **{"rtol": 0} | tolerance, err_msg=name
            )


def test_processes_and_parts_are_one_run(runs):
    """1 x 8, 2 x 4 and 2 x 2 x 2: images, levels and noise bit for bit, the rest to rounding."""
    levels, alone, two, _ = runs
    parts = recorded(made(levels, accumulate=2), STEPS)
    assert_one_run(parts, alone["first"])
    for name in ("first", "parts"):
        assert_one_run(joined(two, name), alone["first"])
    assert_one_run(joined(two, "through"), alone["through"])
    if levels == "important":
        assert len(np.unique(alone["through"]["weights"])) > 1


def test_two_processes_resume(runs):
    """A state of two processes goes on in two as they would have, bit for bit."""
    *_, two, _ = runs
    for found in two:
        assert_same(of(found, "resumed"), of(found, "through"))


def test_states_are_of_any_number_of_processes(runs):
    """A state of two processes goes on in one, and a state of one in two."""
    levels, alone, two, folder = runs
    run = made(levels)
    run.resume(folder / "state")
    assert_one_run(recorded(run, STEPS), alone["through"])
    assert_one_run(joined(two, "taken"), alone["through"])


def test_the_loss_of_unseen_images_is_of_all_processes(runs):
    """`loss_on` gives all processes the number that one has, and again."""
    _, alone, two, _ = runs
    held = two[0]["held"]
    np.testing.assert_array_equal(held, two[1]["held"])
    np.testing.assert_array_equal(held[0], held[1])
    np.testing.assert_allclose(held[0], alone["held"], rtol=LOSS)


def test_errors_and_stops_are_of_all_processes(runs):
    """What one process raises or asks for ends all."""
    *_, two, _ = runs
    assert [bool(found["early"]) for found in two] == [False, False]
    assert str(two[0]["error.save"]).startswith("FileNotFoundError: ")
    assert str(two[1]["error.save"]) == "OtherProcessError: the first process failed, and says why"
    for found in two:
        assert "is 5, of 2 processes" in str(found["error.batch"])
        assert str(found["error.nan"]) == "FloatingPointError: the loss is nan at step 1"
        assert found["stopped"].tolist() == [0, 1]


@pytest.mark.parametrize("runs", ["uniform"], indirect=True)
def test_sharded_weights(tmp_path, runs):
    """Under FSDP 2 a run is that of one process; its state goes on in two, and in one unsharded."""
    levels, alone, *_ = runs
    two = spread(SCRIPT.with_name("sharded_process.py"), tmp_path)
    assert_same(*two)
    found = two[0]
    np.testing.assert_array_equal(found["resumed"], found["through"])
    for name in ("first", "through"):
        np.testing.assert_allclose(found[name], alone[name]["loss"], rtol=LOSS)
    for name, value in alone["first"].items():
        if name.startswith("mean."):
            mine = found[name.removeprefix("mean.")]
            np.testing.assert_allclose(mine, value, rtol=0, atol=WEIGHT, err_msg=name)
    run = made(levels)
    run.resume(tmp_path / "state")
    np.testing.assert_allclose(recorded(run, STEPS)["loss"], alone["through"]["loss"], rtol=LOSS)
