"""One process of a training that is spread over several: what its trainer draws, makes and refuses.

python training_process.py OUT LEVELS STATE: writes OUT/RANK.npz, and the state of a run of its own
after three steps; STATE is one to go on from.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from small_training import CLASSES, CONFIG, IMAGES, losses_of, weights

import ddpm_core as ddpm
from ddpm_core_torch.training import Recipe, Trainer

STEPS = 3
SEEN = ("x_0", "eps", "y", "time", "logsnr", "alpha", "sigma", "weights")


def made(levels: str, batch: int = 8, accumulate: int = 1) -> Trainer:
    recipe = Recipe(
        batch=batch, lr=1e-3, warmup=3, ema=(0.5, 0.9), flip=True, drop_label=0.3, levels=levels
    )
    schedule = ddpm.linear(2, rescale=False)  # so few times that each soon has ten losses
    options = (np.tile(IMAGES, (3, 1, 1, 1)), np.tile(CLASSES, 3), CONFIG, schedule)
    return Trainer(*options, recipe=recipe, accumulate=accumulate)


def recorded(run: Trainer, steps: int) -> dict[str, np.ndarray]:
    """What a process sees at some steps, and what comes of them."""
    rows = []
    for _ in range(steps):
        batch, _ = run._next or run._batch()
        seen = [batch.x_0, batch.eps, batch.cond["y"], *batch.t, batch.weights]
        step = run.step()
        told = {"loss": step.loss, "losses": step.losses, "norm": step.gradient_norm}
        rows.append(dict(zip(SEEN, (a.numpy() for a in seen), strict=True)) | told)
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return found | weights(run) | {f"mean.{k}": v for k, v in run.averaged("ema.0.9").items()}


def error_of(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main(out: Path, levels: str, state: Path) -> None:
    run = made(levels)
    rank = run.accelerator.process_index
    found = {f"first.{name}": a for name, a in recorded(run, STEPS).items()}
    run.save(out / "state")
    time.sleep(rank)  # the first one is not to write before the other has looked
    found["early"] = np.array((out / "made").exists())
    run.first_does(lambda: (out / "made").touch())
    found["error.save"] = np.array(error_of(lambda: run.save(out / "none" / "state")))
    unseen = 255 - IMAGES[:, :, ::-1]
    found["held"] = np.array([run.loss_on(unseen, CLASSES) for _ in range(2)])
    found |= {f"through.{name}": a for name, a in recorded(run, STEPS).items()}
    for name, path in {"resumed": out / "state", "taken": state}.items():
        other = made(levels)
        other.resume(path)
        found |= {f"{name}.{key}": a for key, a in recorded(other, STEPS).items()}
    parts = recorded(made(levels, accumulate=2), STEPS)
    found |= {f"parts.{name}": a for name, a in parts.items()}
    found["error.batch"] = np.array(error_of(lambda: made(levels, batch=5)))
    stops = made(levels)
    stops.stop = rank == 1
    found["stopped"] = np.array([stops.train(4), stops.done])
    broken = made(levels)
    broken._next = broken._batch()
    if rank == 1:
        broken._next[0].eps.fill_(np.nan)
    found["error.nan"] = np.array(error_of(lambda: losses_of(broken, 1)))
    np.savez(out / f"{rank}.npz", **found)
    run.accelerator.end_training()


def spread(script: Path, out: Path, *arguments: object) -> list[dict[str, np.ndarray]]:
    """What two processes write that run a script together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    path = os.pathsep.join(sys.path)
    every = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(script), str(out), *map(str, arguments)],
            env=os.environ | launched | {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        told = [process.communicate(timeout=300)[1] for process in every]
    finally:
        for process in every:
            process.kill()
            process.wait()
    assert [process.returncode for process in every] == [0, 0], "\n".join(told)
    assert told == ["", ""]
    found = []
    for rank in "01":
        with np.load(out / f"{rank}.npz") as file:
            found.append(dict(file))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    os._exit(0)  # torch's threads of gloo have been seen to abort an interpreter's end
