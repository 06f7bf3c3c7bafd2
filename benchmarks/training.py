"""Time and memory of one training step on the CPU, beside the loop of diffusers' example.

    pip install 'ddpm-core[cli,diffusers,train]' && python benchmarks/training.py [--json FILE]

Both have networks of one layout, the same images, batch and precision, and Hugging Face
accelerate, and a step includes the reading of its batch. Theirs is what diffusers' unconditional
example does by default, with its average of the weights: AdamW, a cosine rate, a DataLoader in the
same process. Its DataLoader has the bytes in memory and no picture to decode or resize.

Each side is a process of its own, and the two take turns within a round, as in unet.py. The peak
memory is resident, and has the side's libraries in it. The loss is of the last step.

Reading is timed within the steps of one process, where the trainer indexes its images: of an IDX
file, which is held in memory, and of a mapped .npy, which has just been written and thus lies in
the system's cache.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import struct
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import unet

SMALL = unet.SMALL
COLOUR = SMALL | {"sample_size": 32, "in_channels": 3, "out_channels": 3}
SIDES = ("diffusers", "ddpm-core")
STEPS = {  # by name: the batch and the precision
    f"batch {batch}, {precision}": (batch, precision)
    for precision in ("float32", "bfloat16")
    for batch in (32, 128)
}
READING = {  # by name: the network, the images and the file
    "reading, IDX, 60,000 of 28x28x1": (SMALL, 60_000, "train-images-idx3-ubyte"),
    "reading, mapped .npy, 100,000 of 32x32x3": (COLOUR, 100_000, "images.npy"),
}
BATCH = 128  #: where reading is timed


# What runs. ---------------------------------------------------------------------------------------


def pixels(count, about):
    """Random images (N, C, H, W) of a network's size."""
    shape = (count, about["in_channels"], about["sample_size"], about["sample_size"])
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def converted(about):
    """Our configuration of diffusers' network."""
    import diffusers

    from ddpm_core.checkpoints.diffusers import config_of_diffusers
    from ddpm_core.checkpoints.fields import Fields
    from ddpm_core.nn.network import parameter_shapes

    net = diffusers.UNet2DModel(**about)
    config = config_of_diffusers(Fields(dict(net.config), "config"))
    ours = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    if ours != (theirs := net.num_parameters()):
        raise RuntimeError(f"the networks differ: {ours} weights, and {theirs} of diffusers'")
    return config


def trainer(images, config, batch, precision, compiled):
    import ddpm_core as ddpm
    from ddpm_core_torch.training import Recipe, Trainer

    recipe = Recipe(batch=batch, precision=precision)
    return Trainer(images, None, config, ddpm.linear(1000), recipe=recipe, compiled=compiled)


def our_step(images, config, batch, precision, compiled):
    training = trainer(images, config, batch, precision, compiled)
    return lambda: training.step().loss


class Scaled:
    """Items of an example's data set: float32 in [-1, 1], as ToTensor and Normalize make them."""

    def __init__(self, images):
        import torch

        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"input": (self.images[i].float() / 255 - 0.5) / 0.5}


def their_step(images, about, batch, precision, compiled):
    import torch
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(
        cpu=True,
        mixed_precision={"float32": "no", "bfloat16": "bf16"}[precision],
        dynamo_backend="inductor" if compiled else "no",
    )
    net = UNet2DModel(**about)
    average = EMAModel(net.parameters(), use_ema_warmup=True, power=3 / 4, model_cls=UNet2DModel)
    noised = DDPMScheduler(1000).add_noise
    adam = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    loader = torch.utils.data.DataLoader(Scaled(images), batch_size=batch, shuffle=True)
    rate = get_scheduler("cosine", adam, num_warmup_steps=500, num_training_steps=100 * len(loader))
    model, adam, loader, rate = accelerator.prepare(net.train(), adam, loader, rate)

    def losses():
        while True:
            for item in loader:
                x_0 = item["input"]
                eps, t = torch.randn_like(x_0), torch.randint(1000, (len(x_0),))
                found = model(noised(x_0, eps, t), t).sample
                loss = torch.nn.functional.mse_loss(found.float(), eps)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                adam.step()
                rate.step()
                adam.zero_grad()
                average.step(model.parameters())
                yield loss.item()

    return losses().__next__


def step_of(side, about, config, batch, precision, compiled):
    """A function that takes one step and returns its loss, of a side by name."""
    images = pixels(80 * 128, about)  # whole batches
    if side == "ddpm-core":
        return our_step(images, config, batch, precision, compiled)
    return their_step(images, about, batch, precision, compiled)


class Timed:
    """Images that count the seconds in which they are read."""

    def __init__(self, images):
        self.images, self.shape, self.dtype = images, images.shape, images.dtype
        self.seconds = 0.0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        start = time.perf_counter()
        found = self.images[index]
        self.seconds += time.perf_counter() - start
        return found


def read_in_training(path, config, rounds, compiled):
    """Seconds of steps, and of reading within them: (2, rounds)."""
    from ddpm_core.cli.datasets import read

    images = Timed(read(path).images)
    training = trainer(images, config, BATCH, "float32", compiled)
    training.step()
    found = []
    for _ in range(rounds):
        read_before, steps_before = images.seconds, training.done
        seconds = unet.repeated(training.step, 0.3)
        steps = training.done - steps_before
        found.append((seconds, (images.seconds - read_before) / steps))
    return np.array(found).T


def write(path, count, about):
    """A file of random images, of its name's kind."""
    if path.suffix == ".npy":
        part = pixels(1000, about).transpose(0, 2, 3, 1)
        file = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *part.shape[1:]))
        for start in range(0, count, len(part)):
            file[start : start + len(part)] = part
        file.flush()
        return
    size = about["sample_size"]
    head = struct.pack(">4I", 0x803, count, size, size)
    path.write_bytes(head + pixels(count, about).tobytes())
    labels = struct.pack(">2I", 0x801, count) + bytes(count)
    path.with_name("train-labels-idx1-ubyte").write_bytes(labels)


# What is printed. ---------------------------------------------------------------------------------


def quartiles(ratio):
    return np.quantile(ratio, [0.25, 0.5, 0.75]).tolist()


def compare(name, options):
    """Measures and prints a case of STEPS; the numbers behind it."""
    batch, precision = STEPS[name]
    config = converted(SMALL)
    cases = {
        side: (step_of, side, SMALL, config, batch, precision, options.compiled) for side in SIDES
    }
    found = unet.measure(cases, options.rounds)
    base, _, memory = found["diffusers"]
    print(f"\n{name}: ms [quartiles], images a second, times faster [quartiles], peak memory, loss")
    results = {}
    for side, (seconds, loss, peak) in found.items():
        low, middle, high = quartiles(seconds * 1e3)
        ratio = quartiles(base / seconds)
        rate = batch / float(np.median(seconds))
        print(
            f"  {side:10} {middle:8.1f} [{low:.1f}, {high:.1f}]   {rate:7.1f}   {ratio[1]:5.2f} "
            f"[{ratio[0]:.2f}, {ratio[2]:.2f}]   {peak:5.0f} MiB, {peak / memory:.2f}   {loss:.3f}",
            flush=True,
        )
        results[f"{name}, {side}"] = {
            "milliseconds": [low, middle, high],
            "images a second": rate,
            "times faster": ratio,
            "peak MiB": peak,
            "loss": loss,
        }
    return results


def reading(name, options):
    """Measures and prints a case of READING; the numbers behind it."""
    about, count, file = READING[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file)
        write(path, count, about)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            work = (path, converted(about), options.rounds, options.compiled)
            step, read = pool.submit(read_in_training, *work).result()
    rates = [BATCH / float(np.median(seconds)) for seconds in (read, step)]
    ratio = quartiles(step / read)
    print(f"\n{name}, batch {BATCH}: images a second read and trained on, times faster [quartiles]")
    print(
        f"  {rates[0]:,.0f}   {rates[1]:,.1f}   {ratio[1]:,.0f} [{ratio[0]:,.0f}, {ratio[2]:,.0f}]",
        flush=True,
    )
    return {name: {"read a second": rates[0], "trained a second": rates[1], "times faster": ratio}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--cases",
        help=f"names, separated by |, of {' | '.join((*STEPS, *READING))}; default: all, without "
        f"bfloat16 where the CPU does not multiply it",
    )
    parser.add_argument("--compiled", action="store_true", help="both; it takes minutes to start")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import torch

    from ddpm_core_torch.training import bfloat16_is_fast

    fast = bfloat16_is_fast("cpu")
    names = [name for name in (*STEPS, *READING) if fast or "bfloat16" not in name]
    if options.cases is not None:
        names = [name.strip() for name in options.cases.split("|")]
        if unknown := [name for name in names if name not in STEPS and name not in READING]:
            parser.error(f"--cases has no {', '.join(unknown)}; see --help")
    environment = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "bfloat16 is fast": fast,
        "compiled": options.compiled,
        "rounds": options.rounds,
    } | {package: version(package) for package in ("numpy", "torch", "accelerate", "diffusers")}
    print(environment)
    results = {}
    for name in names:
        results |= (compare if name in STEPS else reading)(name, options)
    if options.json is not None:
        options.json.write_text(json.dumps({"environment": environment, "results": results}))


if __name__ == "__main__":
    main()
