"""One process of a training whose weights are sharded by FSDP 2.

python sharded_process.py OUT: writes OUT/RANK.npz, and the state of a run after three steps.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import accelerate
import numpy as np
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training_process import STEPS, made


def prepare(self, net, adam):
    """As accelerate does on GPUs; on CPUs it shards nothing."""
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    return net, torch.optim.Adam(net.parameters(), lr=1e-3)


def clip(self, parameters, most):
    return torch.nn.utils.clip_grad_norm_(list(parameters), most).full_tensor()


def main(out: Path) -> None:
    accelerate.Accelerator.prepare = prepare
    accelerate.Accelerator.clip_grad_norm_ = clip
    run = made("uniform")
    assert all(isinstance(p, DTensor) for p in run.net.parameters())
    found = {"first": [run.step().loss for _ in range(STEPS)]}
    found |= run.averaged("ema.0.9")
    run.save(out / "state")
    found["through"] = [run.step().loss for _ in range(STEPS)]
    other = made("uniform")
    other.resume(out / "state")
    found["resumed"] = [other.step().loss for _ in range(STEPS)]
    np.savez(out / f"{run.accelerator.process_index}.npz", **found)
    run.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # torch's threads of gloo have been seen to abort an interpreter's end
