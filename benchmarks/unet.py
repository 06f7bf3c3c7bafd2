"""Time of one UNet call on the CPU, beside diffusers' own network with the same weights.

    pip install 'ddpm-core[cli,diffusers]' && python benchmarks/unet.py [--json FILE]

All cases run in turn within a round; a ratio is taken within each round, and its median and
quartiles are printed, with the largest difference of the outputs, relative to their largest.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import diffusers
import numpy as np
import torch

import ddpm_core as ddpm
from ddpm_core.nn import layouts

CIFAR = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
SMALL = CIFAR | {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
NETWORKS = {"google/ddpm-cifar10-32, 35.7 M": CIFAR, "bundled layout, 28x28": SMALL}


def cases(about, batch):
    """What to run, by name; each returns a NumPy array."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**about).eval()
    for p in net.parameters():
        torch.nn.init.normal_(
            p, 0.0 if p.ndim > 1 else 0.5, p[0].numel() ** -0.5 if p.ndim > 1 else 0.3
        )
    config = layouts.config_of_diffusers(net.config)
    params = layouts.from_diffusers({n: p.numpy() for n, p in net.state_dict().items()}, config)
    x = torch.randn(batch, config.channels, about["sample_size"], about["sample_size"])
    t = torch.full((batch,), 500.0)

    def theirs():
        with torch.inference_mode():
            return net(x, t).sample.numpy()

    found = {"diffusers": theirs}
    for name in ("numpy", "torch"):
        on = ddpm.backend(name)
        ours, x_on, t_on = on.network(params, config), on.asarray(x.numpy()), on.asarray(t.numpy())

        def run(on=on, ours=ours, x_on=x_on, t_on=t_on):
            with torch.inference_mode():
                return on.to_numpy(ours(x_on, t_on))

        found[f"ddpm-core, {name}"] = run
    return found


def measure(found, rounds):
    """Seconds of each case, (rounds,), all cases in turn in each round."""
    times = {name: [] for name in found}
    names = list(found)
    for k in range(rounds + 2):
        turn = k % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            found[name]()
            if k >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    environment = {
        "machine": platform.machine(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
    }
    print(environment)
    results = {}
    for network, about in NETWORKS.items():
        for batch in (1, 8):
            found = cases(about, batch)
            wanted = found["diffusers"]()
            times = measure(found, options.rounds)
            print(f"\n{network}, batch {batch}: milliseconds, and how many times faster")
            for name, values in times.items():
                ratio = np.quantile(times["diffusers"] / values, [0.25, 0.5, 0.75]).tolist()
                off = float(np.abs(found[name]() - wanted).max() / np.abs(wanted).max())
                print(
                    f"  {name:20} {np.median(values) * 1e3:8.1f}   {ratio[1]:5.2f}  "
                    f"[{ratio[0]:.2f}, {ratio[2]:.2f}]   off by {off:.0e}"
                )
                results[f"{network}, batch {batch}, {name}"] = {
                    "milliseconds": float(np.median(values) * 1e3),
                    "times faster": ratio,
                    "off by": off,
                }
    if options.json is not None:
        options.json.write_text(json.dumps({"environment": environment, "results": results}))


if __name__ == "__main__":
    main()
