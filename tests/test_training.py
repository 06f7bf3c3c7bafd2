"""Training: a run is a function of its recipe and seed, and does what Ho et al.'s code does."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

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

from ddpm_core_torch.training import Recipe  # noqa: E402


@pytest.fixture(autouse=True)
def sums_in_one_order(one_thread): ...


def test_seed_decides(tmp_path):
    """The same seed is the same run, another seed another; torch's own generator plays no part."""
    runs = []
    for seed, other in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(other)
        run = trainer(dataclasses.replace(RECIPE, seed=seed, dropout=0.2))
        runs.append(losses_of(run, 3))
    assert runs[0] == runs[1]
    assert all(a != b for a, b in zip(runs[0], runs[2], strict=True))


def test_dropout_leaves_the_generator_alone():
    """A step with dropout does not move torch's global generator."""
    run = trainer(dataclasses.replace(RECIPE, dropout=0.2))
    state = torch.get_rng_state()
    run.step()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_is_not_finite_ends_the_run():
    """`step` raises where one batch is NaN, and does not return it."""
    run = trainer()
    run.step()
    run._next[0].eps.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2"):
        run.step()


@pytest.mark.slow
def test_learns():
    """On one image the loss falls below half of its start, which is 1: the net says 0."""
    recipe = Recipe(batch=8, lr=1e-2, warmup=1, drop_label=0.0)
    run = trainer(recipe, images=np.repeat(IMAGES[:1], 8, 0), classes=None,
                  config=dataclasses.replace(CONFIG, classes=0))  # fmt: skip
    losses = [run.step().loss for _ in range(60)]
    # The mean square of 8 x 24 standard normal numbers has deviation sqrt(2 / 192) = 0.1.
    assert losses[0] == pytest.approx(1, abs=0.5)
    assert np.mean(losses[-20:]) < 0.5


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


@pytest.mark.parametrize(("warmup", "lr_decay"), [(3, 5), (0, 1), (8, 5)])
def test_lr_decay(warmup, lr_decay):
    """lr / max(sqrt(n / n_ref), 1) at step n (Karras et al. 2024, Eq. 67), times the warm-up.

    It is what Adam has at each step.
    """
    run = trainer(dataclasses.replace(RECIPE, warmup=warmup, lr_decay=lr_decay))
    rates = []
    for _ in range(12):
        run.step()
        rates.append(run.optimiser.param_groups[0]["lr"])
    n = np.arange(1, 13)
    rise = np.minimum(n / warmup, 1) if warmup else 1
    wanted = 1e-3 * rise / np.maximum(np.sqrt(n / lr_decay), 1)
    np.testing.assert_allclose(rates, wanted, rtol=8 * 2.0**-53)


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
        batch, _ = run._batch()
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
        for image in run._batch()[0].x_0.numpy():
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
            x_0 = run._batch()[0].x_0[:, 0, 0, 0].numpy()
            seen += np.rint((x_0 + 1) * 127.5).astype(int).tolist()
        assert len(set(seen)) == 8
        orders.append(seen)
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_batch_follows_the_process():
    """Times are uniform and noise is standard normal: what Algorithm 1 of Ho et al. 2020 draws."""
    from scipy.stats import kstest

    run = trainer()
    drawn = []
    for run.done in range(200):
        drawn.append(run._batch()[0])
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
    for precision in ("float32", "bfloat16"):
        run = trainer(dataclasses.replace(RECIPE, precision=precision))
        losses.append([run.step().loss for _ in range(5)])
        assert {p.dtype for p in run.net.parameters()} == {torch.float32}
        batch, _ = run._next
        assert {a.dtype for a in (*batch[:2], *batch.t)} == {torch.float32}
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=8 * 2.0**-8)


def test_trainers_of_several_precisions():
    """One process trains at one precision after the other, each as if it were alone."""
    found = []
    for precision in ("float32", "bfloat16", "float32", "bfloat16"):
        run = trainer(dataclasses.replace(RECIPE, precision=precision))
        found.append(losses_of(run, 2))
    assert found[:2] == found[2:]
    assert found[0] != found[1]


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
    assert len(brought.data) >= len(batch[0])


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


def test_train_calls_after_each_step():
    """Callbacks are called in their order, with each step, of which `train` takes what is left."""
    run, calls = trainer(), []
    callbacks = [lambda step, who=who: calls.append((who, step.number, run.done)) for who in "ab"]
    run.step()
    assert run.train(3, iter(callbacks))
    assert calls == [("a", 2, 2), ("b", 2, 2), ("a", 3, 3), ("b", 3, 3)]
    assert run.train(3, callbacks)
    assert len(calls) == 4


@pytest.mark.parametrize(("last", "done"), [(2, False), (4, True)])
def test_train_stops(last, done):
    """A callback that sets `stop` ends the run after its step, once all have been called."""
    run, seen = trainer(), []

    def stops(step) -> None:
        run.stop = step.number == last

    assert run.train(4, [stops, lambda step: seen.append(step.number)]) is done
    assert seen == list(range(1, last + 1))
    assert run.done == last


def test_a_step_tells_what_it_was():
    """Its losses are those of its images at its levels; their mean is the loss."""
    run = trainer()
    batch, _ = run._batch()
    with torch.no_grad():
        wanted = run._objective(run.predict, batch.x_0, batch.eps, batch.t, **batch.cond)
    step = run.step()
    np.testing.assert_allclose(step.losses, wanted.numpy(), rtol=1e-6)
    assert step.loss == pytest.approx(np.mean(step.losses), rel=1e-6)
    np.testing.assert_allclose(step.logsnr, batch.t.logsnr.numpy(), rtol=2.0**-23)
    gradients = [p.grad.numpy().ravel() for p in run.net.parameters()]
    norm = np.linalg.norm(np.concatenate(gradients).astype(float))  # of those that were clipped
    assert norm == pytest.approx(min(step.gradient_norm, RECIPE.clip), rel=1e-5)
    assert (step.number, step.stopped) == (1, False)
