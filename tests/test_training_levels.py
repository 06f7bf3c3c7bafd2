"""Levels that are drawn in proportion to their losses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core.schedules.drawing import no_losses, probabilities, recorded

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from small_training import RECIPE, losses_of, trainer

from ddpm_core_torch.training import Trainer

T = 4


@pytest.fixture(autouse=True)
def sums_in_one_order(one_thread): ...


def important() -> Trainer:
    """A run whose losses are about 1 / σ², which is 7 at time 1 and 1 at time 4."""
    recipe = dataclasses.replace(RECIPE, batch=10, levels="important")
    return trainer(recipe, schedule=ddpm.cosine(T), predicts="score")


def test_levels_follow_the_losses():
    """The state is that of the losses of all steps; times are drawn by it, once all have ten."""
    run, state = important(), no_losses(T)
    for _ in range(12):
        time = run._batch()[1].levels.time
        step = run.step()
        state = recorded(state, time, step.losses)
    np.testing.assert_array_equal(run._levels.values, state.values)
    assert state.count.min() >= 10
    p = probabilities(state)
    assert p.max() > 2 / T
    times = []
    for run.done in range(12, 212):
        times.append(run._batch()[1].levels.time)
    drawn = np.bincount(np.concatenate(times).astype(int), minlength=T + 1)[1:] / 2000
    # Binomial: five standard deviations.
    np.testing.assert_array_less(np.abs(drawn - p), 5 * np.sqrt(p * (1 - p) / 2000))


def test_weights_keep_the_mean():
    """The weighted mean of any number of a time is its plain mean over all times."""
    run = important()
    run.train(12)
    any_number = np.array([3.0, -1.0, 0.5, 10.0])
    means = []
    for run.done in range(12, 212):
        _, drawn = run._batch()
        means.append(np.mean(any_number[drawn.levels.time.astype(int) - 1] * drawn.weights))
    # Five standard deviations of the mean of what was seen.
    assert np.mean(means) == pytest.approx(any_number.mean(), abs=5 * np.std(means) / 200**0.5)


def test_a_step_weighs_its_losses():
    """The loss is the weighted mean, and so is what the gradient is of: the weights matter."""
    run, plain = important(), important()
    for of in (run, plain):
        of.train(12)
    batch, drawn = run._batch()
    assert np.ptp(drawn.weights) > 0.1
    np.testing.assert_allclose(batch.weights, drawn.weights, rtol=2.0**-23)
    unweighted = batch._replace(weights=batch.weights * 0 + 1)
    plain._next = unweighted, drawn._replace(weights=np.ones(10))
    ours, theirs = run.step(), plain.step()
    np.testing.assert_array_equal(ours.losses, theirs.losses)
    assert ours.loss == pytest.approx(np.mean(drawn.weights * ours.losses), rel=1e-6)
    assert theirs.loss == pytest.approx(np.mean(theirs.losses), rel=1e-6)
    assert ours.gradient_norm != pytest.approx(theirs.gradient_norm, rel=1e-3)


def test_levels_are_resumed(tmp_path):
    """What is recorded of the losses is part of a state."""
    through, first, second = important(), important(), important()
    wanted = losses_of(through, 16)
    found = losses_of(first, 13)
    first.save(tmp_path / "run")
    second.resume(tmp_path / "run")
    assert found + losses_of(second, 3) == wanted
    np.testing.assert_array_equal(second._levels.count, through._levels.count)
    assert second._levels.count.dtype == through._levels.count.dtype
