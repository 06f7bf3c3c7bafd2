"""Time per network call of samplers, beside other libraries and hand-written loops.

    pip install 'ddpm-core[torch]' diffusers==0.42.1
    pip install --no-deps k-diffusion denoising-diffusion-pytorch tqdm torchdiffeq torchsde einops
    python benchmarks/samplers.py

The network says eps, is the same constant on every side, and costs nothing. All cases run in turn
within a round; a ratio is taken within each round, and its median and quartiles are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import types
from functools import cache
from unittest.mock import MagicMock

import numpy as np
import torch

import ddpm_core as ddpm

STEPS = 50
SCHEDULE = ddpm.linear(1000)
OURS = {
    "ddim": ddpm.ddim,
    "ancestral": ddpm.ancestral,
    "dpmpp_2m": ddpm.dpmpp_2m,
    "unipc_2": ddpm.unipc_2,
    "heun": ddpm.heun,
}


def ours(solver, on, x, eps, noise, fused):
    sampler = solver(SCHEDULE, STEPS).given(ddpm.eps)
    extra = {"lincomb": on.lincomb} if fused else {}
    net = lambda x_t, t: eps
    return sampler.nfe, lambda: ddpm.sample(net, sampler, x, noise, **extra)


def diffusers_loop(kind, x, eps, **config):
    import diffusers

    scheduler = getattr(diffusers, kind)(**config)

    def run():
        scheduler.set_timesteps(STEPS)
        state = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scheduler.scale_model_input(state, t)
            state = scheduler.step(eps, t, state).prev_sample
        return state

    scheduler.set_timesteps(STEPS)
    return len(scheduler.timesteps), run


@cache
def alone(package: str, module: str, *absent: str):
    """A module of a package without the package's other imports, which no sampler needs."""
    for name in absent:
        sys.modules.setdefault(name, MagicMock())
    spec = importlib.util.find_spec(package)
    bare = types.ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = bare
    return importlib.import_module(f"{package}.{module}")


def k_diffusion_loop(name, x, eps):
    sampling = alone("k_diffusion", "sampling", "torchvision", "torchvision.transforms")
    sigmas = sampling.get_sigmas_karras(STEPS, 0.01, 150.0)
    model = lambda x_t, sigma: x_t - eps * sigma[0]
    run = getattr(sampling, name)
    sampler = lambda: run(model, x * 150.0, sigmas, disable=True)
    return (2 * STEPS - 1 if name == "sample_heun" else STEPS), sampler


def lucidrains_loop(x, eps):
    peer = alone(
        "denoising_diffusion_pytorch",
        "denoising_diffusion_pytorch",
        *("torchvision", "torchvision.transforms", "torchvision.utils", "ema_pytorch"),
        *("accelerate", "accelerate.utils", "pytorch_fid", "pytorch_fid.fid_score"),
        *("pytorch_fid.inception", "matplotlib.image"),
    )

    class Net(torch.nn.Module):
        channels = out_dim = 3
        self_condition = random_or_learned_sinusoidal_cond = False

        def forward(self, x_t, t, x_self_cond=None):
            return eps

    diffusion = peer.GaussianDiffusion(
        Net(), image_size=32, objective="pred_noise", beta_schedule="linear"
    )

    def run():
        state = x
        for t in range(STEPS - 1, -1, -1):
            state, _ = diffusion.p_sample(state, t)
        return state

    return STEPS, torch.inference_mode()(run)


def by_hand(name, x, eps):
    """What the arithmetic costs at least: in place, on Python floats."""
    state, x_0, last, z = (torch.empty_like(x) for _ in range(4))

    def ddim():
        state.copy_(x)
        for _ in range(STEPS):
            state.mul_(0.98).add_(eps, alpha=-0.01)

    def ancestral():
        state.copy_(x)
        for _ in range(STEPS):
            state.mul_(0.98).add_(eps, alpha=-0.01).add_(z.normal_(), alpha=0.1)

    def dpmpp_2m():
        nonlocal x_0, last
        state.copy_(x)
        for _ in range(STEPS):
            x_0, last = last, x_0
            torch.mul(state, 1.1, out=x_0).add_(eps, alpha=-0.1)
            state.mul_(0.98).add_(x_0, alpha=0.03).add_(last, alpha=-0.01)

    return STEPS, {"ddim": ddim, "ancestral": ancestral, "dpmpp_2m": dpmpp_2m}[name]


def by_hand_numpy(name, x, eps):
    state, x_0, last, w = (np.empty_like(x) for _ in range(4))
    rng = np.random.default_rng(0)

    def add(to, a, c):
        np.multiply(a, np.float32(c), out=w)
        np.add(to, w, out=to)

    def ddim():
        np.copyto(state, x)
        for _ in range(STEPS):
            np.multiply(state, np.float32(0.98), out=state)
            add(state, eps, -0.01)

    def ancestral():
        np.copyto(state, x)
        for _ in range(STEPS):
            np.multiply(state, np.float32(0.98), out=state)
            add(state, eps, -0.01)
            rng.standard_normal(out=x_0, dtype=np.float32)
            add(state, x_0, 0.1)

    def dpmpp_2m():
        nonlocal x_0, last
        np.copyto(state, x)
        for _ in range(STEPS):
            x_0, last = last, x_0
            np.multiply(state, np.float32(1.1), out=x_0)
            add(x_0, eps, -0.1)
            np.multiply(state, np.float32(0.98), out=state)
            add(state, x_0, 0.03)
            add(state, last, -0.01)

    return STEPS, {"ddim": ddim, "ancestral": ancestral, "dpmpp_2m": dpmpp_2m}[name]


def cases(library, shape):
    rng = np.random.default_rng(0)
    x, eps = rng.standard_normal((2, *shape), dtype=np.float32)
    on = ddpm.backend(library)
    if library == "torch":
        x, eps = torch.from_numpy(x), torch.from_numpy(eps)
        noise = lambda i, size: torch.randn(size)
    else:
        noise = lambda i, size: rng.standard_normal(size, dtype=np.float32)
    found = {}
    for name, solver in OURS.items():
        found[name, "ddpm-core"] = ours(solver, on, x, eps, noise, fused=True)
        found[name, "ddpm-core, plain operators"] = ours(solver, on, x, eps, noise, fused=False)
    hand = by_hand if library == "torch" else by_hand_numpy
    for name in ("ddim", "ancestral", "dpmpp_2m"):
        found[name, "by hand, in place"] = hand(name, x, eps)
    if library == "torch":
        off = {"clip_sample": False}
        for name, kind, config in [
            ("ddim", "DDIMScheduler", off),
            ("ancestral", "DDPMScheduler", off),
            ("dpmpp_2m", "DPMSolverMultistepScheduler", {}),
            ("unipc_2", "UniPCMultistepScheduler", {}),
            ("heun", "HeunDiscreteScheduler", {}),
        ]:
            found[name, "diffusers"] = diffusers_loop(kind, x, eps, **config)
        for name, peer in [
            ("ddim", "sample_euler"),
            ("ancestral", "sample_euler_ancestral"),
            ("dpmpp_2m", "sample_dpmpp_2m"),
            ("heun", "sample_heun"),
        ]:
            found[name, "k-diffusion"] = k_diffusion_loop(peer, x, eps)
        found["ancestral", "lucidrains"] = lucidrains_loop(x, eps)
    return found


def measure(found, rounds):
    """Microseconds per network call of each case, (rounds,), all cases in turn in each round."""
    times = {key: [] for key in found}
    for key in found:
        found[key][1]()
    keys = list(found)
    for k in range(rounds):
        turn = k % len(keys)
        for key in keys[turn:] + keys[:turn]:
            calls, run = found[key]
            start = time.perf_counter()
            run()
            times[key].append((time.perf_counter() - start) / calls * 1e6)
    return {key: np.array(values) for key, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds")
    for library in ("torch", "numpy"):
        for shape in ((8, 3, 32, 32), (64, 3, 32, 32)):
            times = measure(cases(library, shape), rounds)
            print(f"\n{library} {shape}: microseconds per call, and how many times ddpm-core's")
            for (name, who), values in times.items():
                ratio = np.quantile(values / times[name, "ddpm-core"], [0.25, 0.5, 0.75])
                print(
                    f"  {name:10} {who:28} {np.median(values):8.1f}   "
                    f"{ratio[1]:6.2f}  [{ratio[0]:.2f}, {ratio[2]:.2f}]"
                )


if __name__ == "__main__":
    main()
