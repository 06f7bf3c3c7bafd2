"""What a step minimises, against its definition in float64 on the host."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core.kernels import decoder_variance, learned_range
from ddpm_core.losses import bound
from ddpm_core.parameterisations import TARGETS, named

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from small_training import CONFIG, RECIPE, Trainer, trainer, weights  # noqa: E402

from ddpm_core_torch.training import OBJECTIVES  # noqa: E402

SCHEDULE = ddpm.cosine(5)  # of so few times that a batch of ten has the first


@pytest.fixture(autouse=True)
def sums_in_one_order(one_thread): ...


def posterior_row(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What multiplies x_0 and x_t in μ̃ (Ho et al. 2020, Eq. 7)."""
    abar, before = (np.asarray(SCHEDULE(n).alpha)[:, None] ** 2 for n in (time, time - 1))
    alpha = abar / before
    return (
        np.sqrt(before) * (1 - alpha) / (1 - abar),
        np.sqrt(alpha) * (1 - before) / (1 - abar),
    )


def wanted_of(predicts: str, x_0, eps, t) -> np.ndarray:
    """The target of a network, by the name of what it predicts, from each paper."""
    alpha, sigma = t.alpha[:, None], t.sigma[:, None]
    on_x_0, on_x_t = posterior_row(t.time)
    return {
        "x0": x_0,
        "eps": eps,
        "v": alpha * eps - sigma * x_0,
        "score": -eps / sigma,
        "flow": eps - x_0,
        "mu": on_x_0 * x_0 + on_x_t * (alpha * x_0 + sigma * eps),
    }[predicts]


def read(predicts: str, y, x_t, t) -> np.ndarray:
    """The x_0 that makes the target y."""
    alpha, sigma = t.alpha[:, None], t.sigma[:, None]
    on_x_0, on_x_t = posterior_row(t.time)
    return {
        "x0": y,
        "eps": (x_t - sigma * y) / alpha,
        "v": alpha * x_t - sigma * y,
        "score": (x_t + sigma**2 * y) / alpha,
        "flow": (x_t - sigma * y) / (alpha + sigma),
        "mu": (y - on_x_t * x_t) / on_x_0,
    }[predicts]


@dataclasses.dataclass
class Seen:
    """A trainer's next batch, flat and in float64, and what its network says of it."""

    x_0: np.ndarray
    eps: np.ndarray
    t: ddpm.Level
    y: np.ndarray
    v: np.ndarray | None
    x_t: np.ndarray


def seen_by(run: Trainer) -> Seen:
    batch, drawn = run._batch()
    with torch.no_grad():
        time = batch.t.time - 1
        alpha, sigma = (a[:, None, None, None] for a in (batch.t.alpha, batch.t.sigma))
        raw = run.net(alpha * batch.x_0 + sigma * batch.eps, time, **batch.cond)
    x_0, eps, *rest = (
        a.numpy().astype(float).reshape(len(a), -1)
        for a in (batch.x_0, batch.eps, *raw.split(1, dim=1))
    )
    t = drawn.levels
    assert 1 in t.time
    x_t = t.alpha[:, None] * x_0 + t.sigma[:, None] * eps
    return Seen(x_0, eps, t, rest[0], rest[1] if len(rest) > 1 else None, x_t)


def run_of(objective: str, predicts: str, learned: bool, seed: int = 0) -> Trainer:
    """A trainer whose network says something: at first it is nearly 0."""
    run = trainer(
        dataclasses.replace(RECIPE, batch=10, objective=objective),
        config=dataclasses.replace(CONFIG, out_channels=2 if learned else 1),
        schedule=SCHEDULE,
        predicts=predicts,
    )
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        last = run.net.conv_out.weight
        last.copy_(torch.as_tensor(0.1 * rng.standard_normal(last.shape), dtype=last.dtype))
    return run


def bits(seen: Seen, kernel, bins: int | None, decoder_var: float | None) -> np.ndarray:
    """T L_{t-1} in bits a coordinate, of host arrays."""
    before = SCHEDULE(seen.t.time - 1)
    found = bound(kernel, seen.x_0, seen.eps, seen.t, before, bins=bins, decoder_var=decoder_var)
    return SCHEDULE.T * found / (math.log(2) * seen.x_0.shape[1])


def learned_bits(seen: Seen, predicts: str) -> np.ndarray:
    def net(x, time):
        return np.concatenate((seen.y[:, None], seen.v[:, None]), axis=1)

    # Of one channel, so that the network's two are told apart.
    wide = dataclasses.replace(seen, x_0=seen.x_0[:, None], eps=seen.eps[:, None])
    predict = ddpm.Predictor(net, SCHEDULE, named(predicts, SCHEDULE), variance=True)
    kernel = learned_range(predict, decoder_variance(SCHEDULE))
    return bits(wide, kernel, 256, None) * wide.x_0.shape[1] / seen.x_0.shape[1]


def squares(objective: str, seen: Seen, predicts: str) -> np.ndarray:
    """The weighted squared errors, each from its paper."""
    if objective == "simple":
        return np.mean((wanted_of(predicts, seen.x_0, seen.eps, seen.t) - seen.y) ** 2, axis=1)
    snr = (seen.t.alpha / seen.t.sigma) ** 2
    error = np.mean((seen.x_0 - read(predicts, seen.y, seen.x_t, seen.t)) ** 2, axis=1)
    return {"min-snr": np.minimum(snr, 5), "p2": snr / (1 + snr)}[objective] * error


# Device levels are float32: τ of neighbours, and with it a variance, has lost up to a digit of 7.
close = partial(np.testing.assert_allclose, rtol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("predicts", TARGETS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_their_definitions(objective, predicts, learned):
    """A step's losses are those of the papers for its images, levels, noise and prediction."""
    run = run_of(objective, predicts, learned)
    seen = seen_by(run)
    if objective != "vlb":
        wanted = squares(objective, seen, predicts)
        if learned:  # Nichol & Dhariwal 2021, Eq. 16
            wanted = wanted + 1e-3 * learned_bits(seen, predicts)
        close(run.step().losses, wanted)
    elif learned:
        close(run.step().losses, learned_bits(seen, predicts))
    else:  # but for what does not depend on the network
        other = run_of(objective, predicts, learned, seed=1)
        also = seen_by(other)
        terms = []
        for each in (seen, also):
            x_0 = read(predicts, each.y, each.x_t, each.t)
            kernel = ddpm.reverse(lambda x, t, x_0=x_0: x_0)
            terms.append(bits(each, kernel, None, decoder_variance(SCHEDULE)))
        ours = [of.step().losses.astype(float) for of in (run, other)]
        scale = max(np.abs(a).max() for a in ours)
        close(ours[0] - ours[1], terms[0] - terms[1], atol=1e-5 * scale)


def test_two_channels_out_learn_the_variance():
    """A network with 2 C channels is trained by `hybrid`, so that both halves get gradients."""
    of = trainer(config=dataclasses.replace(CONFIG, out_channels=2))
    before = weights(of)["conv_out.weight"]
    x_0, eps, t, _, cond, _ = of._batch()[0]
    with torch.no_grad():
        wanted = float(ddpm.hybrid(of.predict, x_0, eps, t, **cond).mean())
    assert of.step().loss == pytest.approx(wanted, rel=1e-6)
    moved = np.abs(weights(of)["conv_out.weight"] - before).max(axis=(1, 2, 3))
    assert np.all(moved > 0)
