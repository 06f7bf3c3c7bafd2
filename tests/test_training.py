"""Training: a run is a function of its recipe and seed, and does what Ho et al.'s code does."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pickle
import re

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core.checkpoints.files import read_tensors
from ddpm_core.nn import UNetConfig

torch = pytest.importorskip("torch")

from safetensors.numpy import save_file  # noqa: E402

from ddpm_core_torch.training import (  # noqa: E402
    OtherRunError,
    Recipe,
    Trainer,
    bfloat16_is_fast,
)

CONFIG = UNetConfig(
    channels=1, out_channels=1, widths=(8, 8), blocks=1, groups=4, attention=(), classes=2
)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 6), dtype=np.uint8)
CLASSES = np.arange(10) % 2
RECIPE = Recipe(batch=4, lr=1e-3, warmup=3, ema=0.5, flip=True, drop_label=0.3)


@pytest.fixture(autouse=True)
def sums_in_one_order(one_thread): ...


def trainer(recipe: Recipe = RECIPE, **options) -> Trainer:
    given = {"images": IMAGES, "classes": CLASSES, "config": CONFIG, "schedule": ddpm.linear()}
    return Trainer(**given | options, recipe=recipe)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The state of a run after two steps."""
    run = trainer()
    run.step()
    run.step()
    run.save(tmp_path_factory.mktemp("saved") / "run")
    return tmp_path_factory.getbasetemp() / "saved0" / "run"


def weights(of: Trainer) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in of.net.named_parameters()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resume_is_running_through(tmp_path, dropout, stop):
    """A run that is stopped and resumed ends as one that is not, bit for bit."""
    recipe = dataclasses.replace(RECIPE, dropout=dropout)
    through = trainer(recipe)
    wanted = [through.step() for _ in range(5)]

    first = trainer(recipe)
    losses = [first.step() for _ in range(stop)]
    first.save(tmp_path / "run")
    torch.manual_seed(99)  # whatever else draws from torch's generator
    second = trainer(recipe)
    second.step()  # of which nothing stays
    second.resume(tmp_path / "run")
    assert second.done == stop
    losses += [second.step() for _ in range(5 - stop)]

    assert losses == wanted
    assert_same(weights(second), weights(through))
    assert_same(second.averaged(), through.averaged())


def test_seed_decides(tmp_path):
    """The same seed is the same run, another seed another; torch's own generator plays no part."""
    runs = []
    for seed, other in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(other)
        run = trainer(dataclasses.replace(RECIPE, seed=seed, dropout=0.2))
        runs.append([run.step() for _ in range(3)])
    assert runs[0] == runs[1]
    assert all(a != b for a, b in zip(runs[0], runs[2], strict=True))


def test_dropout_leaves_the_generator_alone():
    """A step with dropout does not move torch's global generator."""
    run = trainer(dataclasses.replace(RECIPE, dropout=0.2))
    state = torch.get_rng_state()
    run.step()
    assert torch.equal(torch.get_rng_state(), state)


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
    monkeypatch.setattr("ddpm_core_torch.training._COMPARED", IMAGES.nbytes // 2)
    found = []
    for changed in (None, 0, 8, 9):
        images = IMAGES.copy()
        if changed is not None:
            images[changed] ^= 1
        found.append(trainer(images=images)._run()["data"])
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
    "average missing": (lambda t: t.pop(f"ema.{NAME}"), f"1 missing: ema.{NAME}"),
    "one too many": (lambda t: t.update(more=t[f"net.{NAME}"]), "1 unexpected: more"),
    "misshapen": (lambda t: t.update({f"net.{NAME}": np.zeros(2, "f4")}), "of a wrong shape"),
    "halved": (lambda t: t.update({f"net.{NAME}": np.zeros(1, "f2")}), "is float16 and not"),
    "NaN": (lambda t: t[f"ema.{NAME}"].fill(np.nan), f"ema.{NAME} is not finite"),
    "moment inf": (lambda t: t[f"exp_avg.{NAME}"].fill(np.inf), f"exp_avg.{NAME} is not finite"),
    "square < 0": (lambda t: t[f"exp_avg_sq.{NAME}"].fill(-1), f"exp_avg_sq.{NAME}, .* negative"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_refuses_damaged_tensors(tmp_path, saved, damage, message):
    """A state that lacks a tensor, or has one that no training reaches, is refused whole."""
    tensors, metadata = read_tensors(saved)
    damage(tensors)
    save_file(tensors, tmp_path / "bad", metadata)
    run = trainer()
    before = weights(run)
    with pytest.raises(ValueError, match=message):
        run.resume(tmp_path / "bad")
    assert_same(weights(run), before)
    assert run.done == 0


@pytest.mark.parametrize("done", [-1, 1.5, True, "2", None, 10**19, [1]])
def test_refuses_a_damaged_count(tmp_path, saved, done):
    """The number of steps is an integer of at least 0, and nothing that compares like one."""
    tensors, metadata = read_tensors(saved)
    about = json.loads(metadata["training"]) | {"done": done}
    save_file(tensors, tmp_path / "bad", {"training": json.dumps(about)})
    with pytest.raises(ValueError, match="is damaged: done must be a count of steps, but is"):
        trainer().resume(tmp_path / "bad")


@pytest.mark.parametrize("about", ["[]", "1", "null", "{}", "{", "[" * 100_000, '{"done": 1}'])
def test_refuses_damaged_metadata(tmp_path, saved, about):
    """Metadata that is no JSON object, or lacks a part, is refused."""
    save_file(read_tensors(saved)[0], tmp_path / "bad", {"training": about})
    with pytest.raises(ValueError, match="cannot be read"):
        trainer().resume(tmp_path / "bad")


def test_loss_is_resumed(tmp_path):
    """The running mean of the loss is part of the state: (l_1 + .. + l_n) / n at first."""
    run = trainer()
    losses = [run.step() for _ in range(3)]
    assert run.loss == pytest.approx(np.mean(losses))
    run.save(tmp_path / "run")
    resumed = trainer()
    resumed.resume(tmp_path / "run")
    assert (resumed.loss, resumed.step(), resumed.loss) == (run.loss, run.step(), run.loss)


@pytest.mark.parametrize("how", ["weights", "average", "moment"])
def test_a_diverged_state_is_not_saved(tmp_path, how):
    """Numbers that a step made useless are found before they replace a good file."""
    path = tmp_path / "run"
    path.write_bytes(b"good")
    run = trainer(dataclasses.replace(RECIPE, lr=1e30 if how == "weights" else 1e-3, warmup=0))
    run.step()
    if how == "average":
        next(run.average.parameters()).fill_(1e38)
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


def test_a_loss_that_is_not_finite_ends_the_run():
    """`step` raises where one batch is NaN, and does not return it."""
    run = trainer()
    run.step()
    run._next.eps.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2"):
        run.step()


@pytest.mark.slow
def test_learns():
    """On one image the loss falls below half of its start, which is 1: the net says 0."""
    recipe = Recipe(batch=8, lr=1e-2, warmup=1, drop_label=0.0)
    run = trainer(recipe, images=np.repeat(IMAGES[:1], 8, 0), classes=None,
                  config=dataclasses.replace(CONFIG, classes=0))  # fmt: skip
    losses = [run.step() for _ in range(60)]
    # The mean square of 8 x 24 standard normal numbers has deviation sqrt(2 / 192) = 0.1.
    assert losses[0] == pytest.approx(1, abs=0.5)
    assert np.mean(losses[-20:]) < 0.5


def test_average_is_its_recursion():
    """e <- d e + (1 - d) p with d = min(ema, (1 + n) / (10 + n)) after n steps; e starts at p.

    The warm-up of TensorFlow's ExponentialMovingAverage, with num_updates = n.
    """
    run = trainer(dataclasses.replace(RECIPE, ema=0.3))
    wanted = weights(run)
    for n in range(6):  # (1 + n) / (10 + n) is 0.1 at first, and passes 0.3 after n = 2
        run.step()
        d = min(0.3, (1 + n) / (10 + n))
        wanted = {name: d * wanted[name] + (1 - d) * p for name, p in weights(run).items()}
        for name, value in run.averaged().items():
            atol = 2.0**-23 * (n + 1)  # a rounding a step, of numbers of size at most 1
            np.testing.assert_allclose(value, wanted[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_warmup(warmup):
    """The learning rate rises linearly over the first steps and stays.

    Adam's first step moves a weight by lr m / (sqrt(v) + 1e-8), which is lr if the gradient is not
    tiny (Kingma & Ba 2015, section 2.1): its largest is the rate of step 1.
    """
    recipe = dataclasses.replace(RECIPE, warmup=warmup, lr=1e-3)
    run = trainer(recipe)
    before = weights(run)
    rates = []
    for step in range(6):
        run.step()
        rates.append(run.optimiser.param_groups[0]["lr"])
        if step == 0:
            moved = max(np.abs(p - before[name]).max() for name, p in weights(run).items())
    wanted = [1e-3 * min(1, n / warmup) if warmup else 1e-3 for n in range(1, 7)]
    np.testing.assert_allclose(rates, wanted, rtol=1e-12)
    # Weights of size up to 1 are rounded to 2^-24.
    assert moved == pytest.approx(wanted[0], abs=2.0**-23, rel=1e-3)


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_gradient_clip(clip):
    """The gradient that Adam sees has norm at most clip, and is untouched below it.

    Adam's first moment after one step is (1 - 0.9) g (Kingma & Ba 2015, Algorithm 1).
    """

    def gradient(clip: float) -> np.ndarray:
        run = trainer(dataclasses.replace(RECIPE, clip=clip))
        run.step()
        moments = run.optimiser.state_dict()["state"].values()
        return np.concatenate([m["exp_avg"].numpy().ravel() for m in moments]) / 0.1

    free, found = gradient(math.inf), gradient(clip)
    norm = np.linalg.norm(free.astype(float))
    assert 1e-3 < norm < 1e6
    # Some thousand float32 terms, and torch adds 1e-6 to the norm before it divides.
    np.testing.assert_allclose(found, free * min(1, clip / norm), rtol=1e-4, atol=1e-10)


def test_drop_label():
    """A share of labels is -1; all other labels belong to their image."""
    share = 0.3
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(4, 2).repeat(6, 3)
    run = trainer(dataclasses.replace(RECIPE, batch=10, drop_label=share), images=images)
    dropped = []
    for run.done in range(300):
        batch = run._batch()
        x_0, y = batch.x_0, batch.cond["y"]
        wanted = CLASSES[np.rint((x_0[:, 0, 0, 0].numpy() + 1) * 127.5).astype(int)]
        assert ((y.numpy() == -1) | (y.numpy() == wanted)).all()
        dropped.append((y == -1).float().mean())
    # Binomial: five standard deviations of 3000 labels.
    assert np.mean(dropped) == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 3000))


@pytest.mark.parametrize("flip", [False, True])
def test_flip_mirrors(flip):
    """Flipping mirrors left and right for half of the images; without it none is changed."""
    run = trainer(dataclasses.replace(RECIPE, batch=10, flip=flip))
    plain = IMAGES.astype(np.float32) / 127.5 - 1
    mirrored = []
    for run.done in range(100):
        for image in run._batch()[0].numpy():
            kind = [
                any(np.array_equal(image, other) for other in others)
                for others in (plain, plain[..., ::-1])
            ]
            assert sum(kind) == 1
            mirrored.append(kind[1])
    assert np.mean(mirrored) == pytest.approx(0.5 if flip else 0, abs=5 * math.sqrt(0.25 / 1000))


def test_epochs_cover_the_data():
    """Each epoch takes every image once, but for a rest of less than a batch, in a new order."""
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(4, 2).repeat(6, 3)
    run = trainer(dataclasses.replace(RECIPE, batch=4, flip=False), images=images)
    orders = []
    for epoch in range(3):
        seen = []
        for run.done in (2 * epoch, 2 * epoch + 1):
            seen += np.rint((run._batch()[0][:, 0, 0, 0].numpy() + 1) * 127.5).astype(int).tolist()
        assert len(set(seen)) == 8
        orders.append(seen)
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_batch_follows_the_process():
    """Times are uniform and noise is standard normal: what Algorithm 1 of Ho et al. 2020 draws."""
    from scipy.stats import kstest

    run = trainer()
    drawn = []
    for run.done in range(200):
        drawn.append(run._batch())
    times = np.concatenate([batch.t.time.numpy() for batch in drawn])
    eps = np.concatenate([batch.eps.numpy().ravel() for batch in drawn])
    assert set(times) <= set(range(1, 1001))
    # Fixed draws: a correct generator would fail with probability 1e-4 if they were not.
    assert kstest(times / 1000, "uniform").pvalue > 1e-4
    assert kstest(eps, "norm").pvalue > 1e-4
    # On the device as the schedule has them, to float32.
    wanted = run.schedule(times.astype(float))
    for name in ("logsnr", "alpha", "sigma"):
        found = np.concatenate([getattr(batch.t, name).numpy() for batch in drawn])
        np.testing.assert_array_equal(found, getattr(wanted, name).astype(np.float32))


def test_bfloat16_follows_float32():
    """Under autocast the loss is that of float32 to bfloat16's 8 bits; weights stay float32."""
    losses = []
    for bfloat16 in (False, True):
        run = trainer(dataclasses.replace(RECIPE, bfloat16=bfloat16))
        losses.append([run.step() for _ in range(5)])
        assert {p.dtype for p in run.net.parameters()} == {torch.float32}
        assert {a.dtype for a in (*run._next[:2], *run._next.t)} == {torch.float32}
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=8 * 2.0**-8)


@pytest.mark.parametrize(
    ("name", "wrong", "wanted"),
    [
        ("batch", 0, "an integer of at least 1"),
        ("batch", 2.5, "an integer of at least 1"),
        ("warmup", -1, "an integer of at least 0"),
        ("seed", -1, "an integer of at least 0"),
        ("lr", -1.0, "above 0 and at most 1e30"),
        ("lr", 0.0, "above 0 and at most 1e30"),
        ("lr", math.nan, "above 0 and at most 1e30"),
        ("lr", 1.1e30, "above 0 and at most 1e30"),
        ("lr", math.inf, "above 0 and at most 1e30"),
        ("ema", 1.0, "at least 0 and below 1"),
        ("clip", 0.0, "above 0"),
        ("dropout", 1.0, "at least 0 and below 1"),
        ("drop_label", 1.1, "within 0 and 1"),
    ],
)
def test_wrong_recipe(name, wrong, wanted):
    """A value that cannot train is refused with its name and range."""
    with pytest.raises(ValueError, match=re.escape(f"{name} must be {wanted}, but is {wrong}")):
        Recipe(**{name: wrong})


WRONG_DATA = {
    "float": ({"images": IMAGES / 127.5 - 1}, "images must be uint8 .* but are float64"),
    "grey without a channel": ({"images": IMAGES[:, 0]}, r"uint8 \(N, C, H, W\).*\(10, 4, 6\)"),
    "channels": ({"images": IMAGES.repeat(3, 1)}, "images have 3 channels, but config has"),
    "no classes": ({"classes": None}, "config has classes = 2, but classes is None"),
    "classes of none": (
        {"classes": CLASSES * 0 - 1, "config": dataclasses.replace(CONFIG, classes=0)},
        "config has classes = 0, so classes must be None",
    ),
    "few classes": ({"classes": CLASSES[:9]}, "classes must be 10 integers"),
    "float classes": ({"classes": CLASSES * 1.0}, "classes must be 10 integers"),
    "classes": ({"classes": CLASSES + 1}, r"classes must lie within -1 .. 1.* are 1 .. 2"),
    "target": ({"predicts": "mu"}, "no target 'mu'; there are x0, eps, v"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_wrong_data(wrong, message):
    """Data that a network would silently misread is refused."""
    with pytest.raises(ValueError, match=message):
        trainer(**wrong)


def test_continuous_schedule():
    """Times of 0 .. 1 are no timesteps of the UNet, whose sinusoids expect 0 .. 999."""
    with pytest.raises(TypeError, match=r"schedule must be Discrete, .* but is VP"):
        trainer(schedule=ddpm.VP())


def test_too_few_images():
    """Fewer images than a batch is an error with both numbers."""
    with pytest.raises(ValueError, match="at most 10, the number of images, but is 11"):
        trainer(Recipe(batch=11))


def test_a_step_brings_only_its_batch(monkeypatch):
    """Once its batch is there, a step makes no tensor of what is on the host."""
    from test_torch import Brought

    run = trainer()
    run.step()  # which makes the moments of Adam
    batch = run._next
    monkeypatch.setattr(run, "_batch", lambda: batch)
    with Brought() as brought:
        run.step()
    assert brought.data == []
    monkeypatch.undo()
    with Brought() as brought:
        run.step()
    assert len(brought.data) >= len(batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_frequencies_are_not_rounded(dtype):
    """A module that is cast keeps its sinusoids' frequencies in float32 at least, and none new."""
    from ddpm_core.nn import frequencies
    from ddpm_core_torch import UNet

    net = UNet(CONFIG).to(dtype)
    wanted = torch.tensor(frequencies(CONFIG), dtype=torch.promote_types(dtype, torch.float32))
    torch.testing.assert_close(net.rates, wanted, rtol=0, atol=0)
    assert "rates" not in net.state_dict()
    assert net.to("meta").rates.device.type == "meta"


def test_frequencies_follow_assigned_parameters():
    """A module made on no device, whose parameters are then put in, knows its sinusoids."""
    from ddpm_core_torch import UNet

    whole = UNet(CONFIG)
    with torch.device("meta"):
        net = UNet(CONFIG)
    net.load_state_dict(whole.state_dict(), assign=True)
    x, t = torch.ones(2, 1, 4, 6), torch.tensor([3.0, 999.0])
    torch.testing.assert_close(net(x, t), whole(x, t), rtol=0, atol=0)
    pickle.loads(pickle.dumps(net))


def test_interrupted(monkeypatch):
    """A step that is interrupted and taken again changes nothing."""
    wanted, run = trainer(), trainer()
    for _ in range(4):
        wanted.step()
    run.step()
    batch, calls = run._batch, []

    def interrupted():
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return batch()

    monkeypatch.setattr(run, "_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.step()
    while run.done < 4:
        run.step()
    assert_same(weights(run), weights(wanted))


def test_bfloat16_needs_hardware():
    """Autocast is not chosen on a device that has no fast bfloat16."""
    assert bfloat16_is_fast("meta") is False


def test_two_channels_out_learn_the_variance():
    """A network with 2 C channels is trained by `hybrid`, so that both halves get gradients."""
    wide = dataclasses.replace(CONFIG, out_channels=2)
    of = trainer(config=wide)
    before = weights(of)["conv_out.weight"]
    x_0, eps, t, cond = of._batch()
    with torch.no_grad():
        wanted = float(ddpm.hybrid(of.predict, x_0, eps, t, of.weight, **cond).mean())
    assert of.step() == pytest.approx(wanted, rel=1e-6)
    moved = np.abs(weights(of)["conv_out.weight"] - before).max(axis=(1, 2, 3))
    assert np.all(moved > 0)
