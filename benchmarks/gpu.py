"""UNet calls, training steps and samplers on a GPU, beside diffusers on the same weights.

    pip install 'ddpm-core[cli,diffusers]' && python benchmarks/gpu.py [--json FILE]
    python benchmarks/gpu.py --device cpu --small --batches 1,4 --rounds 3    # a rehearsal

Prints the environment and Markdown tables. The cases of a row run in turn within a round, each for
50 ms at least, and the device is waited for at both ends. A ratio is taken within each round; its
median and quartiles are printed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
import warnings
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np
import samplers
import torch
import torch.nn.functional as F
import unet

import ddpm_core as ddpm
from ddpm_core.cli.pictures import check_place
from ddpm_core.testing.backends import environment
from ddpm_core_torch import UNet

SCHEDULE = ddpm.linear(1000)
NETWORKS = {
    False: ("google/ddpm-cifar10-32, 35.7 M", unet.CIFAR),
    True: ("bundled layout, 28x28", unet.SMALL),
}
EAGER, COMPILED = "eager", "compiled"
#: By name: ours, diffusers' and its settings, with which the two are the same table.
SOLVERS = {
    "DDIM": ("ddim", "DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    "DPM-Solver++(2M)": (
        "dpmpp_2m", "DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"},
    ),
}  # fmt: skip


@contextmanager
def precision(name):
    """Where products of float32 are its own, or TensorFloat-32's."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if name == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = name != "float32"
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


# What runs, by (library, how). --------------------------------------------------------------------


def ways(compiler):
    """How a network runs."""
    return (EAGER,) if compiler == "none" else (EAGER, COMPILED)


def laid(net):
    """Weights with channels last, as ours are on a GPU."""
    cuda = next(net.parameters()).device.type == "cuda"
    return net.to(memory_format=torch.channels_last) if cuda else net


def forward(about, device, kind, batch, compiler):
    """A UNet call: the outputs. Both libraries' by the backend's `compile`."""
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    on = ddpm.backend("torch", device=device, dtype=dtype)
    theirs = laid(unet.diffusers_network(about).to(on.device, on.dtype)).requires_grad_(False)
    config, params = unet.converted(about)
    ours = on.network(params, config)
    x, t = unet.inputs(about, batch)
    x, t = on.asarray(x), on.asarray(t, torch.float32)

    def their_output(x, t):
        return theirs(x, t).sample

    def made(net, how):
        if how == EAGER:
            return net
        return on.compile(net) if compiler == "inductor" else torch.compile(net, backend=compiler)

    nets = {
        (library, how): made(net, how)
        for library, net in (("diffusers", their_output), ("ddpm-core", ours))
        for how in ways(compiler)
    }

    @torch.no_grad()
    def run(net):
        return net(x, t)

    return {key: partial(run, net) for key, net in nets.items()}


def training(about, device, kind, batch, compiler):
    """A step of Adam on the squared error of eps: the error. In bfloat16 by autocast.

    Times and noise are drawn on the device; the networks are their libraries' own modules.
    """
    on = ddpm.backend("torch", device=device)
    config, params = unet.converted(about)
    x_0 = on.asarray(unet.inputs(about, batch)[0])
    scheduler = diffusers.DDPMScheduler()

    def error_of_ours(net):
        # The table lies on the host, as diffusers' lies on the device.
        t = ddpm.draw(SCHEDULE, np.random.default_rng().random(batch))
        t = ddpm.Level(*(on.asarray(field) for field in t))
        return ddpm.loss(ddpm.Predictor(net, SCHEDULE), x_0, torch.randn_like(x_0), t).mean()

    def error_of_theirs(net):
        t, eps = torch.randint(1000, (batch,), device=on.device), torch.randn_like(x_0)
        return F.mse_loss(net(scheduler.add_noise(x_0, eps, t), t).sample, eps)

    def step(net, error, how):
        net = net.to(on.device).train()
        adam = torch.optim.Adam(net.parameters(), lr=2e-4)
        called = torch.compile(net, backend=compiler) if how == COMPILED else net

        def run():
            with torch.autocast(on.device.type, torch.bfloat16, enabled=kind == "bfloat16"):
                value = error(called)
            adam.zero_grad()
            value.backward()
            adam.step()
            return value.detach()

        return run

    both = {
        "diffusers": (lambda: unet.diffusers_network(about), error_of_theirs),
        "ddpm-core": (lambda: UNet(config, params), error_of_ours),
    }
    return {
        (library, how): step(make(), error, how)
        for library, (make, error) in both.items()
        for how in ways(compiler)
    }


def sampling(about, device, name, batch, compiler):
    """A whole sample with a network that costs nothing: the sample."""
    ours, kind, config = SOLVERS[name]
    on = ddpm.backend("torch", device=device)
    x = on.asarray(unet.inputs(about, batch)[0])
    eps = on.asarray(unet.inputs(about, batch)[0][::-1] * 0.5)
    loops = {
        "diffusers": samplers.diffusers_loop(kind, x, eps, **config),
        "ddpm-core": samplers.ours(samplers.OURS[ours], on, x, eps, None, fused=True),
    }
    return {(library, EAGER): run for library, (_, run) in loops.items()}


PARTS = {"forward": forward, "training": training, "sampling": sampling}


# How long, and how much memory. -------------------------------------------------------------------


class Result(NamedTuple):
    """A case: seconds of a call (rounds,), its output, MiB above the weights'; or its error."""

    seconds: np.ndarray | None = None
    output: np.ndarray | None = None
    peak: float | None = None
    error: str = ""


def measure(cases, device, rounds):
    """The result of each case."""
    cuda = torch.device(device).type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None

    def seconds(run, calls):
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait()
        return (time.perf_counter() - start) / calls

    found, times, calls = {}, {}, {}
    for key, run in cases.items():
        try:
            output, peak = run().detach().float().cpu().numpy(), None
            seconds(run, 3)
            # A compiled case's memory is its graph's, which allocates nothing at a call.
            if cuda and key[1] == EAGER:
                rest = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                run()
                peak = (torch.cuda.max_memory_allocated() - rest) / 2**20
            calls[key], times[key] = math.ceil(0.05 / seconds(run, 1)), []
            found[key] = Result(None, output, peak)
        except Exception as error:  # a compiler is missing, or memory: the others go on
            text = (str(error).strip() or "no message").splitlines()[0]
            found[key] = Result(error=f"{type(error).__name__}: {text}")
    ran = list(times)
    for k in range(rounds):
        turn = k % max(len(ran), 1)
        for key in ran[turn:] + ran[:turn]:
            times[key].append(seconds(cases[key], calls[key]))
    for key in ran:
        found[key] = found[key]._replace(seconds=np.array(times[key]))
    return found


def measured(options, part, kind, batch):
    """`measure` of a row, after which the device holds nothing of it."""
    with precision(kind):
        cases = PARTS[part](options.about, options.device, kind, batch, options.compiler)
        found = measure(cases, options.device, options.rounds)
    del cases
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


# Tables. ------------------------------------------------------------------------------------------


def times_faster(found, how):
    """Than diffusers: the quartiles, or None where one of the two did not run."""
    theirs, ours = (found[library, how].seconds for library in ("diffusers", "ddpm-core"))
    if theirs is None or ours is None:
        return None
    return np.quantile(theirs / ours, [0.25, 0.5, 0.75]).tolist()


def difference(found, exact):
    """The largest of ddpm-core's outputs from an array, relative to its largest value."""
    outputs = [r.output for (library, _), r in found.items() if library == "ddpm-core"]
    outputs = [output for output in outputs if output is not None]
    if exact is None or not outputs:
        return None
    return float(max(np.abs(output - exact).max() for output in outputs) / np.abs(exact).max())


def report(options, title, part, kinds, number):
    """Measures a part and prints its table; the numbers behind it.

    number: (seconds of a call, batch) -> what the table shows
    """
    rows, records, errors, exact = [], {}, [], {}
    for kind in kinds:
        for batch in options.batches:
            found = measured(options, part, kind, batch)
            hows = list(dict.fromkeys(how for _, how in found))
            first = found["diffusers", EAGER].output
            exact.setdefault(batch if part == "forward" else (kind, batch), first)
            name = f"{kind}, batch {batch}"
            record = {
                "seconds": {
                    ", ".join(key): None if r.seconds is None else float(np.median(r.seconds))
                    for key, r in found.items()
                },
                "peak MiB": {", ".join(key): r.peak for key, r in found.items()},
                "times faster": {how: times_faster(found, how) for how in hows},
            }
            if part != "training":
                wanted = exact[batch if part == "forward" else (kind, batch)]
                record["difference"] = difference(found, wanted)
            records[f"{part}, {name}"] = record
            errors += [f"{name}, {', '.join(k)}: {r.error}" for k, r in found.items() if r.error]
            rows.append([name, *cells(record, batch, number)])
    columns = [part, *(f"{who}, {how}" if how != EAGER else who for who, how in found)]
    columns += ["times faster" if how == EAGER else how for how in hows]
    print_table(
        title, [*columns, "MiB of each", *(["difference"] if part != "training" else [])], rows
    )
    for error in errors:
        print(f"\n{error}")
    return records


def cells(record, batch, number):
    """A row of the table, without its name."""

    def shown(value, form):
        return "-" if value is None else form(value)

    yield from (shown(s, lambda s: number(s, batch)) for s in record["seconds"].values())
    for ratio in record["times faster"].values():
        yield shown(ratio, lambda r: f"{r[1]:.2f} [{r[0]:.2f}, {r[2]:.2f}]")
    peaks = [shown(p, lambda p: f"{p:.0f}") for p in record["peak MiB"].values()]
    yield "-" if set(peaks) == {"-"} else ", ".join(peaks)
    if "difference" in record:
        yield shown(record["difference"], lambda d: f"{d:.0e}")


def print_table(title, columns, rows):
    """Markdown, its columns as wide as they must be."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    print(f"\n{title}\n")
    for row in (columns, rule, *rows):
        first, *rest = zip(row, widths, strict=True)
        line = [first[0].ljust(first[1]), *(cell.rjust(w) for cell, w in rest)]
        print(f"| {' | '.join(line)} |", flush=True)


def images_a_second(seconds, batch):
    rate = batch / seconds
    return f"{rate:,.{max(0, 2 - int(math.log10(rate)))}f}" if rate >= 1 else f"{rate:.2g}"


def microseconds_a_step(seconds, batch):
    return f"{seconds / samplers.STEPS * 1e6:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="of torch; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="of a row; default: %(default)s")
    parser.add_argument("--batches", default="1,64,256", help="default: %(default)s")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--small", action="store_true", help="the layout of the bundled model")
    parser.add_argument("--precisions", help="default: float32,TF32,bfloat16; on a CPU float32")
    parser.add_argument(
        "--compiler",
        help="of torch.compile, or none; default: inductor, and on a CPU, where that takes "
        "minutes, eager, which traces and compiles nothing",
    )
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"--parts are of {', '.join(PARTS)}, not {', '.join(unknown)}")
    try:
        on = ddpm.backend("torch", device=options.device)
        if options.json is not None:
            check_place(options.json, ".json")  # before the work, not after it
    except (OSError, ValueError) as error:
        parser.error(str(error))
    warnings.filterwarnings("ignore", message=".*lru_cache")  # of array_api_compat's, in torch
    diffusers.utils.logging.set_verbosity_error()  # else a line for each network that is moved
    options.batches = [int(batch) for batch in options.batches.split(",")]
    network, options.about = NETWORKS[options.small]
    about = environment(on)
    del about["dtype"]
    about["diffusers"] = f"diffusers {version('diffusers')}"
    print(f"{', '.join(about.values())}; {options.rounds} rounds")
    cpu = on.device.type == "cpu"
    kinds = (options.precisions or ("float32" if cpu else "float32,TF32,bfloat16")).split(",")
    options.compiler = options.compiler or ("eager" if cpu else "inductor")
    results = {}
    for part in options.parts.split(","):
        if part == "sampling":
            title = f"A sampler's step, the network free, of {samplers.STEPS}: microseconds"
            results |= report(options, title, part, SOLVERS, microseconds_a_step)
        else:
            what = "UNet call" if part == "forward" else "Training step"
            title = f"{what}, {network}: images a second"
            results |= report(options, title, part, kinds, images_a_second)
        if options.json is not None:
            # After each part, so that a later one loses nothing of an earlier.
            found = {"environment": about, "rounds": options.rounds, "results": results}
            options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
