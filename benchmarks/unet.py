"""Time and memory of one UNet call on the CPU, beside diffusers' own network on the same weights.

    pip install 'ddpm-core[cli,diffusers,onnx]' && python benchmarks/unet.py [--json FILE]

Each case is a process of its own, so that no library's idle threads or memory touch another's. All
run in turn within a round; a ratio is taken within each round, and its median and quartiles are
printed, with the peak memory of the process and the largest difference of the outputs, relative
to their largest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

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


CASES = {  # by name: the backend and the dtype, or diffusers' own
    "diffusers": (None, "float32"),
    "ddpm-core, numpy": ("numpy", "float32"),
    "ddpm-core, onnx": ("onnx", "float32"),
    "ddpm-core, torch": ("torch", "float32"),
    "ddpm-core, torch, bfloat16": ("torch", "bfloat16"),
}


def diffusers_network(about):
    """diffusers' network, its weights drawn wide enough to tell errors from zero."""
    import diffusers
    import torch

    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**about).eval()
    for p in net.parameters():
        mean, spread = (0.0, p[0].numel() ** -0.5) if p.ndim > 1 else (0.5, 0.3)
        torch.nn.init.normal_(p, mean, spread)
    return net


def converted(about):
    """The same network as ours: a configuration, and parameters on the host."""
    from ddpm_core.checkpoints.diffusers import config_of_diffusers, from_diffusers
    from ddpm_core.checkpoints.fields import Fields

    net = diffusers_network(about)
    config = config_of_diffusers(Fields(dict(net.config), "config"))
    return config, from_diffusers({name: p.numpy() for name, p in net.state_dict().items()}, config)


def inputs(about, batch):
    rng = np.random.default_rng(0)
    shape = (batch, about.get("in_channels", 3), about["sample_size"], about["sample_size"])
    return rng.standard_normal(shape, np.float32), np.full(batch, 500, np.float32)


def case(name, about, batch, ours):
    """A function of nothing that calls the network once and returns a NumPy array."""
    x, t = inputs(about, batch)
    on, dtype = CASES[name]
    if on is None:
        import torch

        net = diffusers_network(about)
        x, t = torch.tensor(x), torch.tensor(t)

        def run():
            with torch.inference_mode():
                return net(x, t).sample.numpy()

        return run
    import ddpm_core as ddpm

    # As it is, not as NumPy's network, which has a case of its own.
    options = {"measure": False} if on == "onnx" else {}
    on = ddpm.backend(on, dtype=dtype, **options)
    config, params = ours
    net, x, t = on.network(params, config), on.asarray(x), on.asarray(t)
    return lambda: on.to_numpy(net(x, t))


def serve(pipe, make, *about):
    """The process of one case: seconds for each request, at last its output and peak memory."""
    run = make(*about)
    output = run()
    pipe.send("ready")
    while pipe.recv():
        repeated(run, 0.1)  # the caches are warm, the threads of the others asleep
        pipe.send(repeated(run, 0.3))
    pipe.send((output, peak_memory()))


def repeated(run, seconds):
    """The mean time of a call, of as many as fill these seconds."""
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < seconds:
        run()
        calls += 1
    return (time.perf_counter() - start) / calls


def peak_memory():
    """Of this process, in MiB. Not getrusage's, which counts what was before exec as well."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return float("nan")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(cases, rounds):
    """Of each case: seconds (rounds,), the output, and the peak memory in MiB.

    cases: by name, a function that makes what is called, and its arguments
    """
    context = multiprocessing.get_context("spawn")
    pipes, names = {}, list(cases)
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, *cases[name]), daemon=True).start()
        theirs.close()  # so that the end of the process ends the wait
        pipes[name].recv()
    times = {name: [] for name in names}
    for k in range(rounds):
        turn = k % len(names)
        for name in names[turn:] + names[:turn]:
            pipes[name].send(True)
            times[name].append(pipes[name].recv())
    found = {}
    for name in names:
        pipes[name].send(False)
        found[name] = (np.array(times[name]), *pipes[name].recv())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", default="|".join(CASES), help="names, separated by |")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = options.cases.split("|")
    environment = {"machine": platform.machine(), "rounds": options.rounds} | {
        package: version(package) for package in ("numpy", "torch", "diffusers", "onnxruntime")
    }
    print(environment)
    results = {}
    for network, about in NETWORKS.items():
        ours = converted(about)
        for batch in (1, 8):
            cases = {name: (case, name, about, batch, ours) for name in names}
            found = measure(cases, options.rounds)
            base, wanted, memory = found[names[0]]
            print(f"\n{network}, batch {batch}: ms, times faster [quartiles], peak memory, error")
            for name, (seconds, output, peak) in found.items():
                ratio = np.quantile(base / seconds, [0.25, 0.5, 0.75]).tolist()
                off = float(np.abs(output - wanted).max() / np.abs(wanted).max())
                print(
                    f"  {name:26} {np.median(seconds) * 1e3:8.1f}   {ratio[1]:5.2f} "
                    f"[{ratio[0]:.2f}, {ratio[2]:.2f}]   {peak:5.0f} MiB, {peak / memory:.2f}   "
                    f"{off:.0e}"
                )
                results[f"{network}, batch {batch}, {name}"] = {
                    "milliseconds": float(np.median(seconds) * 1e3),
                    "times faster": ratio,
                    "peak MiB": peak,
                    "off by": off,
                }
    if options.json is not None:
        options.json.write_text(json.dumps({"environment": environment, "results": results}))


if __name__ == "__main__":
    main()
