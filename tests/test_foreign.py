"""The adapters of other libraries' objects, on small stand-ins written here from the papers."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import ddpm_core as ddpm
from ddpm_core import samplers
from ddpm_core.schedules import EDM, Flow
from ddpm_core.testing.foreign import azula, betas, kdiffusion, openai, torch_loops

torch = pytest.importorskip("torch")

SIGMAS = np.append(np.geomspace(80, 0.02, 9), 0)
VARIANCE = EDM(1e-3, 100)


def check(found, wanted):
    for name in ("x", "y", "z"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-13)


# A loop over sigmas. -----------------------------------------------------------------------------


def ancestral_loop(model, x, sigmas, eta=1.0):
    """Euler's step down, then fresh noise: DDIM's η, in x / α (Song et al. 2021, Eq. 16)."""
    for a, b in pairwise(sigmas):
        x_0 = model(x, a * x.new_ones(len(x)))
        up = eta * b * torch.sqrt(1 - (b / a) ** 2)
        down = torch.sqrt(b**2 - up**2)
        x = x_0 + down / a * (x - x_0)
        if b > 0:
            x = x + up * torch.randn_like(x)
    return x


def multistep_loop(model, x, sigmas, *, disable):
    """DPM-Solver++(2M), Lu et al. 2022b, Algorithm 2."""
    assert disable
    before = None
    for i, (a, b) in enumerate(pairwise(sigmas)):
        x_0 = D = model(x, a.reshape(1))
        h = torch.log(a / b)
        if before is not None and b > 0:
            r = torch.log(sigmas[i - 1] / a) / h
            D = (1 + 1 / (2 * r)) * x_0 - before / (2 * r)
        x, before = b / a * x - torch.expm1(-h) * D, x_0
    return x


class BrownianTreeNoiseSampler:
    """Independent of one another: what is not used here."""

    def __call__(self, a, b):
        raise AssertionError("the module's own noise was asked")


def path_loop(model, x, sigmas):
    """An increment of one path, and then the whole of which it is the first half."""
    noise = BrownianTreeNoiseSampler()
    for a, b in pairwise(sigmas):
        middle = (a + b) / 2
        model(x, a.reshape(1))
        model(x + torch.sqrt(a - middle) * noise(a, middle), middle.reshape(1))
        x = x + torch.sqrt(a - b) * noise(a, b)
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_kdiffusion_loop_with_noise(eta):
    u = kdiffusion.unrolled(ancestral_loop, SIGMAS, eta=eta)
    check(u, ddpm.ddim(VARIANCE, 9, times=SIGMAS, eta=eta).unroll())
    assert np.array_equal(u.levels.time, SIGMAS)


def test_kdiffusion_loop_with_memory():
    u = kdiffusion.unrolled(multistep_loop, SIGMAS)
    check(u, ddpm.dpmpp_2m(VARIANCE, 9, times=SIGMAS).unroll())


def test_kdiffusion_noise_is_of_one_path():
    """W(a, b) is the sum of W(a, m) and W(m, b), each with its own draw."""
    u = kdiffusion.unrolled(path_loop, [4.0, 2.0])
    z = u.z / u.levels.alpha[:, None]  # x of the loop has α = 1
    np.testing.assert_allclose(z, [[0, 0], [1, 0], [1, 1]], rtol=1e-12)
    with pytest.raises(AssertionError, match="own noise"):
        path_loop(lambda x, sigma: x, torch.ones(1), torch.tensor([4.0, 2.0]))


def test_torch_draws_again_afterwards():
    kdiffusion.unrolled(ancestral_loop, SIGMAS)
    assert torch.randn_like(torch.zeros(3)).unique().numel() == 3


# A sampler of azula. -----------------------------------------------------------------------------


def trigonometric(t):
    return torch.cos(1.5 * t), 2 * torch.sin(1.5 * t) + 0.01  # not variance preserving


class Azula:
    """A sampler (x_t, t, s) -> x_s as azula has them, with DDIM's step."""

    def __init__(self, eta, steps=7):
        self.denoiser = SimpleNamespace(schedule=trigonometric)
        self.eta, self.steps, self.dtype, self.silent = eta, steps, torch.float32, False

    @property
    def timesteps(self):
        return torch.linspace(1, 0, self.steps + 1, dtype=self.dtype)

    def __call__(self, x):
        assert self.silent
        for t, s in zip(self.timesteps[:-1], self.timesteps[1:], strict=True):
            (a_t, s_t), (a_s, s_s) = map(self.denoiser.schedule, (t, s))
            x_0 = self.denoiser(x, t).mean
            fresh = self.eta**2 * (1 - (a_t * s_s / (a_s * s_t)) ** 2)
            eps = (x - a_t * x_0) / s_t
            x = a_s * x_0 + s_s * (
                torch.sqrt(1 - fresh) * eps + torch.sqrt(fresh) * torch.randn_like(x)
            )
        return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_azula(eta):
    made = Azula(eta)
    u = azula.unrolled(made)
    schedule = ddpm.schedules.LinearLogSNR(20, -20)
    times = schedule.at(u.levels.logsnr).time
    check(u, ddpm.ddim(schedule, 7, times=times, eta=eta).unroll())
    assert u.levels.time.tolist() == pytest.approx(np.linspace(1, 0, 8))
    assert made.dtype == torch.float32  # as it was


def test_levels_of_azula():
    levels = azula.levels(trigonometric, [0.25, 0.5])
    ratio = (2 * math.sin(0.75) + 0.01) / math.cos(0.75)
    assert levels.sigma[1] / levels.alpha[1] == pytest.approx(ratio, rel=1e-15)


# A Gaussian diffusion of OpenAI's. ---------------------------------------------------------------

BETAS = np.linspace(1e-3, 0.3, 20)


class Diffusion:
    """Ho et al. 2020 in β and ᾱ, Eqs. 4, 6, 7 and 11."""

    def __init__(self):
        self.betas, self.abar = BETAS, np.cumprod(1 - BETAS)
        self.before = np.append(1, self.abar[:-1])

    def q_sample(self, x_start, t, noise):
        abar = self.abar[int(t[0])]
        return abar**0.5 * x_start + (1 - abar) ** 0.5 * noise

    def q_posterior_mean_variance(self, x_start, x_t, t):
        i = int(t[0])
        beta, abar, before = self.betas[i], self.abar[i], self.before[i]
        on_x_0 = before**0.5 * beta / (1 - abar)
        on_x_t = (1 - beta) ** 0.5 * (1 - before) / (1 - abar)
        var = torch.full_like(x_t, (1 - before) / (1 - abar) * beta)
        return on_x_0 * x_start + on_x_t * x_t, var, var.log()

    def p_sample(self, model, x, t, clip_denoised):
        assert not clip_denoised
        i = int(t[0])
        abar = self.abar[i]
        x_0 = (x - (1 - abar) ** 0.5 * model(x, t)) / abar**0.5
        mean, var, _ = self.q_posterior_mean_variance(x_0, x, t)
        return {"sample": mean + (i > 0) * var.sqrt() * torch.randn_like(x)}


def test_openai():
    diffusion, rng = Diffusion(), np.random.default_rng(0)
    schedule = openai.schedule(diffusion)
    assert (schedule.T, float(schedule(20).alpha)) == (20, pytest.approx(diffusion.abar[-1] ** 0.5))
    x_0, x_t = rng.standard_normal((2, 3, 2, 2))
    for t, s in ((schedule(1), schedule(0)), (schedule(20), schedule(19))):
        found, wanted = (
            openai.posterior(diffusion)(x_0, x_t, t, s),
            ddpm.q_posterior(x_0, x_t, t, s),
        )
        np.testing.assert_allclose(found.mean, wanted.mean, rtol=0, atol=1e-13)
        assert found.var == pytest.approx(wanted.var, abs=1e-13)
        noisy = openai.q_sample(diffusion)(x_0, x_t, t)
        np.testing.assert_allclose(noisy, ddpm.q_sample(x_0, x_t, t), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"s must be the time before t, .* but is 3 for 5"):
        openai.posterior(diffusion)(x_0, x_t, schedule(5), schedule(3))


def test_openai_sampler():
    u = openai.unrolled(Diffusion(), times=10 * np.arange(20))
    wanted = ddpm.ancestral(ddpm.from_betas(BETAS), 20).unroll()
    np.testing.assert_allclose(u.y, wanted.y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(u.z, wanted.z, rtol=0, atol=1e-12)
    assert u.levels.time[:2].tolist() == [190, 180]


# Betas and a step. -------------------------------------------------------------------------------


def test_betas():
    """DDIM in β and ᾱ, Song et al. 2021, Eq. 12, on three of the indices."""
    abar = np.append(np.cumprod(1 - BETAS), 1.0)
    then = {19: 11, 11: 4, 4: -1}

    def step(x, t, eps, z):
        x_0 = (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
        return np.sqrt(abar[then[t]]) * x_0 + np.sqrt(1 - abar[then[t]]) * eps

    u = betas.unrolled(step, BETAS, list(then))
    wanted = ddpm.ddim(ddpm.from_betas(BETAS), 3, times=[20, 12, 5, 0]).unroll()
    check(u, wanted)
    assert isinstance(u, samplers.Unrolled)


# A process in a time of its own. -----------------------------------------------------------------


def test_timed():
    """Euler's step on a straight path is DDIM's, of whatever time; and from t = 0.9 to data."""
    times = np.linspace(0.9, 0.0, 8)

    def loop(network, x):
        for t, s in pairwise(times):
            x = x + (s - t) * (x - network(x, t)) / t
        return x

    found = torch_loops.timed(loop, lambda t: (1 - t, t), 0.0)
    np.testing.assert_allclose(found.levels.time, times)
    check(found, samplers.ddim(Flow(), 7, times=times).unroll())


def test_wide():
    assert torch_loops.Wide(torch).float32 is torch.float64
    assert torch_loops.Wide(torch).float16 is torch.float16
