"""Training a DDPM (Ho et al. 2020, Algorithm 1), with what their code adds to it.

Every random choice is a function of (seed, step), so a run that was stopped and resumed is the
run that was not.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ddpm_core.checkpoints.files import read_tensors, write_whole
from ddpm_core.denoisers import Predictor
from ddpm_core.levels import Level
from ddpm_core.losses import hybrid, loss, native
from ddpm_core.nn.network import UNetConfig
from ddpm_core.parameterisations import NAMED
from ddpm_core.schedules import Schedule, draw
from ddpm_core_torch.backend import Torch
from ddpm_core_torch.unet import UNet


@dataclass(frozen=True)
class Recipe:
    """How to train. Batch, rate, warm-up, decay and clip are those of Ho et al. 2020 on CIFAR-10.

    ema: decay of the average of the weights; it rises to this as (1 + n) / (10 + n)
    warmup: steps over which the learning rate rises to lr
    clip: of the norm of the gradient
    flip: mirror half of the images
    drop_label: the share of labels left out, so that one network also samples without a class
    bfloat16: autocast; the state and the loss stay in float32
    """

    batch: int = 128
    lr: float = 2e-4
    warmup: int = 5000
    ema: float = 0.9999
    clip: float = 1.0
    dropout: float = 0.0
    flip: bool = False
    drop_label: float = 0.1
    bfloat16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "batch": self.batch >= 1,
            "lr": self.lr > 0,
            "warmup": self.warmup >= 0,
            "ema": 0 <= self.ema < 1,
            "clip": self.clip > 0,
            "dropout": 0 <= self.dropout < 1,
            "drop_label": 0 <= self.drop_label <= 1,
        }
        for name, good in limits.items():
            if not good:
                raise ValueError(f"{name} = {getattr(self, name)} is out of range")


class Batch(NamedTuple):
    """Images of [-1, 1], noise, their levels, and classes as y if there are any; on the device."""

    x_0: Tensor
    eps: Tensor
    t: Level
    cond: dict[str, Any]


class Trainer:
    """A network in training: `step` by `step`, `save` and `resume`.

    images: (N, C, H, W) uint8; classes: (N,) integers, or None
    """

    def __init__(
        self,
        images: np.ndarray,
        classes: np.ndarray | None,
        config: UNetConfig,
        schedule: Schedule,
        predicts: str = "eps",
        recipe: Recipe | None = None,
        device: str = "cpu",
    ) -> None:
        self.recipe = Recipe() if recipe is None else recipe
        if len(images) < self.recipe.batch:
            raise ValueError(
                f"{len(images)} images do not fill a batch of {self.recipe.batch}; pass a smaller "
                f"batch"
            )
        self.images, self.classes = images, classes
        self.on = Torch(device)
        self.schedule, self.device = schedule, self.on.device
        net = UNet(config, dropout=self.recipe.dropout, seed=self.recipe.seed).to(self.device)
        self.net = net
        variance = config.out_channels == 2 * config.channels
        self.predict = Predictor(net, schedule, NAMED[predicts], variance)
        self._loss = hybrid if variance else loss
        self.weight = native(NAMED[predicts])
        fused = self.device.type == "cuda" or None
        self.optimiser = torch.optim.Adam(net.parameters(), lr=self.recipe.lr, fused=fused)
        self.average = copy.deepcopy(net).requires_grad_(False)
        self.done = 0
        self._epoch = -1  # of the order that is at hand
        self._next: Batch | None = None

    def step(self) -> float:
        """One step of Adam on the plain squared error of the target; returns it.

        For eps that is L_simple (Ho et al. 2020, Eq. 14). A network with 2 C channels out learns
        its variance too, by `hybrid` (Nichol & Dhariwal 2021, Eq. 16).
        """
        recipe = self.recipe
        x_0, eps, t, cond = self._next or self._batch()
        self._next = None  # so that what is interrupted does not train on it again
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bfloat16)
        with self._dropout_seeded(), autocast:
            value = self._loss(self.predict, x_0, eps, t, self.weight, **cond).mean()
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.lr * min(1.0, (self.done + 1) / max(recipe.warmup, 1))
        self.optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip)
        self.optimiser.step()
        decay = min(recipe.ema, (1 + self.done) / (10 + self.done)) if self.done else 0.0
        averaged: list[Any] = list(self.average.parameters())
        current: list[Any] = list(self.net.parameters())
        get_ema_multi_avg_fn(decay)(averaged, current, self.done)
        self.done += 1
        self._next = self._batch()  # while a GPU still works on this one
        return float(value.detach())

    @contextmanager
    def _dropout_seeded(self) -> Generator[None]:
        """Dropout, the one thing that draws from torch's global generator, seeded by the step."""
        if self.recipe.dropout == 0:
            yield
            return
        seed = np.random.SeedSequence((self.recipe.seed, self.done, 2)).generate_state(1)
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(int(seed[0]))
            yield

    def _batch(self) -> Batch:
        """What the next step trains on."""
        recipe = self.recipe
        per_epoch = len(self.images) // recipe.batch
        epoch, place = divmod(self.done, per_epoch)
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((recipe.seed, epoch)).permutation(len(self.images))
        index = self._order[place * recipe.batch : (place + 1) * recipe.batch]
        rng = np.random.default_rng((recipe.seed, self.done, 1))
        images = self.images[index]
        if recipe.flip:
            mirrored = rng.random(recipe.batch) < 0.5
            images = np.where(mirrored[:, None, None, None], images[..., ::-1], images)
        x_0 = self.on.asarray(images, torch.uint8).float() / 127.5 - 1
        cond: dict[str, Any] = {}
        if self.classes is not None:
            kept = rng.random(recipe.batch) >= recipe.drop_label
            cond["y"] = self.on.asarray(np.where(kept, self.classes[index], -1), torch.int64)
        t = draw(self.schedule, rng.random(recipe.batch, dtype=np.float32))
        eps = self.on.asarray(rng.standard_normal(x_0.shape, dtype=np.float32))
        return Batch(x_0, eps, Level(*(self.on.asarray(field) for field in t)), cond)

    def averaged(self) -> dict[str, np.ndarray]:
        """The averaged weights, which are the ones to sample from, on the host."""
        return _host(self.average.state_dict())

    def save(self, path: str | Path) -> None:
        """Writes all that `resume` needs: whole, or not at all."""
        from safetensors.numpy import save

        tensors = {f"net.{n}": t for n, t in _host(self.net.state_dict()).items()}
        tensors |= {f"ema.{n}": t for n, t in self.averaged().items()}
        names = [name for name, _ in self.net.named_parameters()]
        for index, moments in self.optimiser.state_dict()["state"].items():
            for part in ("exp_avg", "exp_avg_sq"):
                tensors[f"{part}.{names[index]}"] = moments[part].cpu().numpy()
        write_whole(path, save(tensors, metadata={"training": json.dumps(self._about())}))

    def resume(self, path: str | Path) -> None:
        """Goes on from a file of `save`. ValueError if it is of another network or recipe."""
        tensors, metadata = read_tensors(path)
        about = json.loads(metadata.get("training", "{}"))
        done = about.pop("done", None)
        now = {k: v for k, v in self._about().items() if k != "done"}
        if done is None or about != json.loads(json.dumps(now)):
            differ = sorted(k for k in now if about.get(k) != json.loads(json.dumps(now[k])))
            raise ValueError(f"{path} is of a run with another {' and '.join(differ)}")
        self._restore(tensors, done)

    def _restore(self, tensors: Mapping[str, np.ndarray], done: int) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            return {n: torch.as_tensor(t.copy()) for n, t in found.items()}

        self.net.load_state_dict(part("net."))
        self.average.load_state_dict(part("ema."))
        first, second = part("exp_avg."), part("exp_avg_sq.")
        state = self.optimiser.state_dict()
        state["state"] = {
            i: {
                "step": torch.tensor(float(done)),
                "exp_avg": first[name],
                "exp_avg_sq": second[name],
            }
            for i, (name, _) in enumerate(self.net.named_parameters())
            if name in first  # before its first step Adam has no moments
        }
        self.optimiser.load_state_dict(state)
        self.done, self._next = done, None

    def _about(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "recipe": dataclasses.asdict(self.recipe),
            "config": dataclasses.asdict(self.net.config),
            "schedule": _digest(self.schedule),
            "predicts": self.predict.predicts.__name__,
            "images": list(self.images.shape),
        }


def _digest(schedule: Schedule) -> str:
    """What tells one schedule from another, without its thousand numbers."""
    return hashlib.sha256(repr(vars(schedule)).encode()).hexdigest()[:16]


def bfloat16_is_fast(device: str) -> bool:
    """Whether autocast to bfloat16 pays: on CUDA, and on CPUs with matrix units (AMX).

    On CPUs without them the float32 step was the faster one when measured.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return torch.device(device).type == "cpu" and supported is not None and bool(supported())


def _host(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}
