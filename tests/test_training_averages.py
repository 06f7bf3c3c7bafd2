"""Averages of the weights over training: decays with a warm-up, and power functions of time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ddpm_core.averages import profile

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from small_training import (
    CLASSES,
    IMAGES,
    RECIPE,
    assert_same,
    trainer,
    weights,
)

from ddpm_core_torch.training import averages


@pytest.fixture(autouse=True)
def sums_in_one_order(one_thread): ...


def test_average_is_its_recursion():
    """e <- d e + (1 - d) p with d = min(ema, (1 + n) / (10 + n)) after n steps; e starts at p.

    The warm-up of TensorFlow's ExponentialMovingAverage, with num_updates = n. Each of several
    averages is what it would be alone.
    """
    decays = (0.3, 0.2, 0.05)
    run = trainer(dataclasses.replace(RECIPE, ema=decays))
    wanted = dict.fromkeys(decays, weights(run))
    for n in range(6):  # (1 + n) / (10 + n) is 0.1 at first, and passes 0.3 after n = 2
        run.step()
        for decay in decays:
            d = min(decay, (1 + n) / (10 + n))
            pairs = [(name, wanted[decay][name], p) for name, p in weights(run).items()]
            wanted[decay] = {name: d * e + (1 - d) * p for name, e, p in pairs}
            for name, value in run.averaged(f"ema.{decay}").items():
                atol = 2.0**-23 * (n + 1)  # a rounding a step, of numbers of size at most 1
                message = f"{decay} {name}"
                np.testing.assert_allclose(
                    value, wanted[decay][name], rtol=0, atol=atol, err_msg=message
                )
    assert_same(run.averaged(), run.averaged("ema.0.3"))  # to sample from


def test_power_averages_have_their_profile():
    """An average of a width is the sum of the weights after each step, by `profile`."""
    widths = (0.05, 0.15, 0.25)
    run = trainer(dataclasses.replace(RECIPE, power=widths))
    steps = 7
    seen = [weights(run) for _ in range(steps) if run.step()]
    for width in widths:
        shares = profile(steps, width)
        for name, value in run.averaged(f"power.{width}").items():
            wanted = sum(
                share * w[name].astype(float) for share, w in zip(shares, seen, strict=True)
            )
            # A rounding a step, of numbers of size at most 1.
            np.testing.assert_allclose(value, wanted, rtol=0, atol=steps * 2.0**-23, err_msg=name)


@pytest.mark.parametrize("ema", [(0.9999991, 0.9999992), (0.99999995, 0.5)])
def test_averages_keep_their_names(ema):
    """Decays near 1 that agree in six digits are two averages, by names that say which."""
    run = trainer(dataclasses.replace(RECIPE, ema=ema))
    assert list(run.averages) == [f"ema.{decay}" for decay in ema]


@pytest.mark.parametrize("stop", [0, 3])
def test_all_averages_are_resumed(tmp_path, stop):
    """A run with several averages is stopped and resumed as one that is not, bit for bit."""
    recipe = dataclasses.replace(RECIPE, ema=(0.9, 0.3), power=(0.1, 0.2))
    through, first, second = trainer(recipe), trainer(recipe), trainer(recipe)
    through.train(5)
    first.train(stop)
    first.save(tmp_path / "run")
    second.resume(tmp_path / "run")
    second.train(5)
    assert list(second.averages) == ["ema.0.9", "ema.0.3", "power.0.1", "power.0.2"]
    for name in second.averages:
        assert_same(second.averaged(name), through.averaged(name))


def test_an_interrupt_leaves_the_weights(monkeypatch):
    """The network has its own weights back, also where it was just being given an average."""
    run, calls, copy = trainer(), [], averages._copy
    run.train(2)
    own = weights(run)

    def interrupted(targets, sources) -> None:
        calls.append(1)
        if len(calls) == 1:
            copy(targets[:3], sources[:3])
            raise KeyboardInterrupt
        copy(targets, sources)

    monkeypatch.setattr(averages, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.loss_on(IMAGES, CLASSES)
    assert_same(weights(run), own)
