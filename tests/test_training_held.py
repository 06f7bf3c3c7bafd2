"""The loss of images that are not trained on, and the network as torch compiles it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import ddpm_core as ddpm

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from small_training import CLASSES, IMAGES, RECIPE, assert_same, losses_of, trainer  # noqa: E402

from ddpm_core_torch import UNet  # noqa: E402

UNSEEN = 255 - IMAGES[:, :, ::-1]


@pytest.fixture(autouse=True)
def sums_in_one_order(one_thread): ...


def test_loss_on_is_the_same_each_time():
    """It depends on the weights alone: on no generator, on no dropout, and not on earlier calls."""
    run = trainer(dataclasses.replace(RECIPE, dropout=0.4))
    run.train(2)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(run.loss_on(UNSEEN, CLASSES))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]
    other = trainer(dataclasses.replace(RECIPE, dropout=0.4, seed=1))
    assert other.loss_on(UNSEEN, CLASSES) != found[0]


@pytest.mark.parametrize("levels", ["uniform", "important"])
def test_loss_on_changes_nothing(levels):
    """A run that looks at unseen images on the way is the run that does not, bit for bit."""
    recipe = dataclasses.replace(RECIPE, dropout=0.4, levels=levels)
    plain, looks = trainer(recipe), trainer(recipe)
    for _ in range(3):
        looks.loss_on(UNSEEN, CLASSES)
        assert losses_of(looks, 1) == losses_of(plain, 1)
    assert looks.net.training
    assert_same(looks.averaged(), plain.averaged())


def test_loss_on_is_of_the_averaged_weights():
    """The mean over images, of levels that are spread evenly, of the loss of the first average.

    Without dropout, and with the noise of every other call.
    """
    recipe = dataclasses.replace(RECIPE, ema=(0.5, 0.9), dropout=0.4)
    run = trainer(recipe, schedule=ddpm.cosine(5))
    run.train(3)
    calls, of = [], run._objective
    run._objective = lambda predict, *args, **cond: (
        calls.append((args, cond)) or of(predict, *args, **cond)
    )
    loss, error = run.loss_on(UNSEEN, CLASSES)
    before, net = calls.copy(), UNet(run.net.config, run.averaged())
    run.step()
    calls.clear()
    run.loss_on(UNSEEN, CLASSES)
    assert all(torch.equal(a[1], b[1]) for (a, _), (b, _) in zip(before, calls, strict=True))
    calls = before

    predict = ddpm.Predictor(net, run.schedule)
    with torch.no_grad():
        each = [ddpm.loss(predict, x, eps, t, **cond) for (x, eps, t), cond in calls]
    values = torch.cat(each).numpy().astype(float)
    assert loss == pytest.approx(values.mean(), rel=1e-6)
    assert error == pytest.approx(np.sqrt(values.var() / 9), rel=1e-5)  # var / 10, unbiased
    seen = [torch.cat([args[place] for args, _ in calls]).numpy() for place in (0, 1)]
    np.testing.assert_array_equal(np.rint((seen[0] + 1) * 127.5), UNSEEN)
    assert abs(np.mean(seen[1])) < 5 / 240**0.5  # normal: five standard deviations
    assert np.std(seen[1]) == pytest.approx(1, abs=5 / 480**0.5)
    times = np.concatenate([args[2].time for args, _ in calls])
    assert sorted(times) == sorted([1, 2, 3, 4, 5] * 2)
    np.testing.assert_array_equal(np.concatenate([cond["y"] for _, cond in calls]), CLASSES)


def test_loss_on_takes_some_of_many(monkeypatch):
    """Of more than 1024 images it takes 1024 that are spread over them: data are often sorted."""
    images = np.zeros((2048, 1, 4, 6), np.uint8)
    images[1024:] = 255
    classes = np.arange(2048) // 1024
    run, seen = trainer(), []
    monkeypatch.setattr(
        run, "_losses", lambda part: seen.append(part) or part.x_0[:, 0, 0, 0].clone()
    )
    loss, _ = run.loss_on(images, classes)
    assert loss == 0  # as many of -1 as of 1
    assert sum(len(part.x_0) for part in seen) == 1024
    labels = torch.cat([part.cond["y"] for part in seen])
    assert labels.bincount().tolist() == [512, 512]


@pytest.mark.parametrize(
    ("images", "classes", "message"),
    [
        (UNSEEN[:1], CLASSES[:1], "need two images, .* but there are 1"),
        (UNSEEN[:0], CLASSES[:0], "need two images, .* but there are 0"),
        (UNSEEN / 255, CLASSES, "images must be uint8"),
        (UNSEEN, None, "classes is None"),
    ],
)
def test_loss_on_refuses(images, classes, message):
    """Images without a standard error, or that are no images of this network."""
    with pytest.raises(ValueError, match=message):
        trainer().loss_on(images, classes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lru_cache")  # of array_api_compat's
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own functions
def test_compiled_is_the_same(monkeypatch):
    """A compiled network trains as another, to rounding, and its state has the same names.

    Its graphs are torch's and run as they are: to make code of them takes more than a minute.
    """
    torch.compiler.reset()
    plain, made, asked = trainer(), accelerate.Accelerator, []

    def traced(dynamo_backend, **options):
        asked.append(dynamo_backend)
        return made(dynamo_backend="aot_eager", **options)

    monkeypatch.setattr(accelerate, "Accelerator", traced)
    fast = trainer(compiled=True)
    assert asked == ["inductor"]
    assert type(fast._model) is not type(plain._model)
    np.testing.assert_allclose(losses_of(fast, 3), losses_of(plain, 3), rtol=1e-5)
    assert fast._state().tensors.keys() == plain._state().tensors.keys()
