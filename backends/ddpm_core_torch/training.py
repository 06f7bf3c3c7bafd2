"""Training a DDPM (Ho et al. 2020, Algorithm 1), with what their code adds to it.

Every random choice is a function of (seed, step): a run that is stopped and resumed ends with the
same bits as one that is not.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ddpm_core.checkpoints.files import check_names, read_tensors, write_whole
from ddpm_core.denoisers import Predictor
from ddpm_core.levels import Level
from ddpm_core.losses import hybrid, loss, native
from ddpm_core.nn.network import UNetConfig
from ddpm_core.parameterisations import NAMED
from ddpm_core.schedules import Discrete, Schedule, draw
from ddpm_core_torch.backend import Torch
from ddpm_core_torch.unet import UNet


@dataclass(frozen=True)
class Recipe:
    """How to train. Batch, rate, warm-up, decay and clip are those of Ho et al. 2020 on CIFAR-10.

    batch: images per step
    lr: Adam's learning rate, reached linearly over the first `warmup` steps
    ema: decay of the average of the weights; the step after n others takes (1 + n) / (10 + n)
        where that is less, as TensorFlow's ExponentialMovingAverage does with num_updates = n.
        (The code of Ho et al. takes 0 at the first step and `ema` from then on.)
    clip: the largest norm of the gradient
    dropout: the rate in every residual block
    flip: mirror half of the images
    drop_label: the share of labels left out, so that one network also samples without a class
    bfloat16: autocast; the state and the loss stay in float32
    seed: of the first weights, the order of the images, and all that a step draws
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
        for name, least in {"batch": 1, "warmup": 0, "seed": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, but is {value}")
        ranges = {
            # Adam divides it by 0.1 in float32.
            "lr": (0 < self.lr <= 1e30, "above 0 and at most 1e30"),
            "ema": (0 <= self.ema < 1, "at least 0 and below 1"),
            "clip": (self.clip > 0, "above 0"),
            "dropout": (0 <= self.dropout < 1, "at least 0 and below 1"),
            "drop_label": (0 <= self.drop_label <= 1, "within 0 and 1"),
        }
        for name, (good, wanted) in ranges.items():
            if not good:
                raise ValueError(f"{name} must be {wanted}, but is {getattr(self, name)}")


class OtherRunError(ValueError):
    """A saved state belongs to another run than the trainer's.

    differences: by name, the state's value and the trainer's: of fields of the recipe and the
        network's configuration, of "predicts", "schedule" and "data"
    """

    def __init__(self, path: str | Path, differences: Mapping[str, tuple[Any, Any]]) -> None:
        told = "; ".join(f"{k} was {old} and is {new}" for k, (old, new) in differences.items())
        super().__init__(f"{path} is of another run: {told}")
        self.differences = differences


class Batch(NamedTuple):
    """Images in [-1, 1], noise, their levels, and classes as y if there are any; on the device."""

    x_0: Tensor
    eps: Tensor
    t: Level
    cond: dict[str, Any]


#: Of more bytes of images than this, only some images are compared when a run is resumed.
_COMPARED = 2**26

#: What a saved state holds of every parameter: its value, its average, and Adam's two moments.
_WEIGHTS, _MOMENTS = ("net", "ema"), ("exp_avg", "exp_avg_sq")


class Trainer:
    """A network in training: `step` by `step`, with `save` and `resume`.

    images: (N, C, H, W) uint8, at least a batch of them
    classes: (N,) integers below config.classes, -1 for no class; None if config.classes is 0
    schedule: over integer times, because the UNet expects timesteps of 0 .. 999
    predicts: a name in `parameterisations.NAMED`

    done: the steps taken
    loss: the running mean of about a hundred steps, whose noise levels differ; 0 before the first
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
                f"batch must be at most {len(images)}, the number of images, but is "
                f"{self.recipe.batch}"
            )
        _check_data(images, classes, config)
        if not isinstance(schedule, Discrete):
            raise TypeError(
                f"schedule must be Discrete, with times that a UNet can be told, but is {schedule}"
            )
        if predicts not in NAMED:
            raise ValueError(f"no target {predicts!r}; there are {', '.join(NAMED)}")
        self.images, self.classes = images, classes
        self.on = Torch(device)
        self.schedule, self.device = schedule, self.on.device
        net = UNet(config, dropout=self.recipe.dropout, seed=self.recipe.seed).to(self.device)
        self.net = net
        variance = config.out_channels == 2 * config.channels
        self.predict = Predictor(net, schedule, NAMED[predicts], variance)
        self._error = hybrid if variance else loss
        self.weight = native(NAMED[predicts])
        fused = self.device.type == "cuda" or None
        self.optimiser = torch.optim.Adam(net.parameters(), lr=self.recipe.lr, fused=fused)
        self.average = copy.deepcopy(net).requires_grad_(False)
        self.done, self.loss = 0, 0.0
        # Its own words: samples of the same seed are drawn from others.
        words = np.random.SeedSequence((self.recipe.seed, 3)).generate_state(1, np.uint64)
        self._noise = self.on.portable_noise(int(words[0]))
        self._epoch = -1  # of the order that is at hand
        self._next: Batch | None = None

    def step(self) -> float:
        """One step of Adam on the plain squared error of the target; returns it.

        For eps that is L_simple (Ho et al. 2020, Eq. 14). A network with 2 C channels out learns
        its variance too, by `hybrid` (Nichol & Dhariwal 2021, Eq. 16).

        FloatingPointError if it is not finite. The weights are lost then, because a GPU updates
        them before the loss is read: go on from the last `save`.
        """
        recipe = self.recipe
        batch = self._next or self._batch()
        self._next = None  # so that what is interrupted does not train on it again
        error = self._loss(self.predict, batch)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.lr * min(1.0, (self.done + 1) / max(recipe.warmup, 1))
        self.optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip)
        self.optimiser.step()
        decay = min(recipe.ema, (1 + self.done) / (10 + self.done))
        averaged: list[Any] = list(self.average.parameters())
        current: list[Any] = list(self.net.parameters())
        get_ema_multi_avg_fn(decay)(averaged, current, self.done)
        self.done += 1
        self._next = self._batch()  # while a GPU still works on this one
        value = float(error.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {self.done}")
        self.loss += max(0.01, 1 / self.done) * (value - self.loss)
        return value

    def _loss(self, predict: Predictor, batch: Batch) -> Tensor:
        x_0, eps, t, cond = batch
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bfloat16)
        with self._dropout_seeded(), autocast:
            return self._error(predict, x_0, eps, t, self.weight, **cond).mean()

    @contextmanager
    def _dropout_seeded(self) -> Generator[None]:
        """Seeds dropout by the step: it alone draws from torch's global generator."""
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
        eps = self._noise(self.done, tuple(x_0.shape))
        return Batch(x_0, eps, Level(*(self.on.asarray(field) for field in t)), cond)

    def averaged(self) -> dict[str, np.ndarray]:
        """The averaged weights, which are the ones to sample from, on the host."""
        return _host(self.average.state_dict())

    def save(self, path: str | Path) -> None:
        """Writes all that `resume` needs: whole, or not at all.

        FloatingPointError if training has diverged: if a number of the state, or the next batch's
        loss under the weights or their average, is not finite. The file then stays as it was.
        """
        from safetensors.numpy import save

        tensors = {f"net.{n}": t for n, t in _host(self.net.state_dict()).items()}
        tensors |= {f"ema.{n}": t for n, t in self.averaged().items()}
        names = [name for name, _ in self.net.named_parameters()]
        for index, moments in self.optimiser.state_dict()["state"].items():
            for part in _MOMENTS:
                tensors[f"{part}.{names[index]}"] = moments[part].cpu().numpy()
        if bad := _fault(tensors):
            raise FloatingPointError(f"{bad} at step {self.done}")
        self._next = self._next or self._batch()
        for whose, net in (("weights", self.net), ("averaged weights", self.average)):
            with torch.no_grad():
                value = float(self._loss(replace(self.predict, net=net), self._next))
            if not math.isfinite(value):
                raise FloatingPointError(f"the {whose} of step {self.done} give a loss of {value}")
        about = {"done": self.done, "loss": self.loss, "run": self._run()}
        write_whole(path, save(tensors, metadata={"training": json.dumps(about)}))

    def resume(self, path: str | Path) -> None:
        """Goes on from a file of `save`.

        `OtherRunError` if it is of other data, another schedule, network or recipe; only the
        recipe's lr may change. ValueError if it is damaged. Either leaves the trainer as it was.
        """
        tensors, metadata = read_tensors(path)
        done, running, run = _read_about(path, metadata)
        now = self._run()
        both = {name: (run.get(name), now.get(name)) for name in now | run}
        if differences := {name: pair for name, pair in both.items() if pair[0] != pair[1]}:
            raise OtherRunError(path, differences)
        parts = _WEIGHTS + (_MOMENTS if done else ())  # Adam has no moments before its first step
        shapes = {n: tuple(p.shape) for n, p in self.net.named_parameters()}
        expected = {f"{part}.{n}": shape for part in parts for n, shape in shapes.items()}
        check_names(path, {n: t.shape for n, t in tensors.items()}, expected)
        if bad := _fault(tensors):
            raise ValueError(f"{path} is damaged: {bad}")
        self._restore(tensors, done)
        self.loss = running

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
            if done
        }
        self.optimiser.load_state_dict(state)
        self.done, self._next = done, None

    def _run(self) -> dict[str, Any]:
        """What a state must agree with to be resumed, as JSON gives it back."""
        about = dataclasses.asdict(self.recipe) | dataclasses.asdict(self.net.config)
        del about["lr"]
        about["learn_variance"] = about.pop("out_channels") != self.net.config.channels
        about["predicts"] = self.predict.predicts.__name__
        about["schedule"] = f"T = {self.schedule.T}, {_digest(repr(self.schedule.logsnr).encode())}"
        about["data"] = f"{' x '.join(str(n) for n in self.images.shape)}, {self._data}"
        return json.loads(json.dumps(about))

    @functools.cached_property
    def _data(self) -> str:
        """A digest of the images and classes; of many images, of some that are evenly spread."""
        stride = 1 + self.images.nbytes // _COMPARED
        classes = b"" if self.classes is None else self.classes.astype(np.int64).tobytes()
        return _digest(self.images[::stride].tobytes() + classes)


def _check_data(images: np.ndarray, classes: np.ndarray | None, config: UNetConfig) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"images must be uint8 (N, C, H, W), of pixels 0 .. 255, but are {images.dtype} "
            f"{images.shape}"
        )
    if images.shape[1] != config.channels:
        raise ValueError(
            f"images have {images.shape[1]} channels, but config has channels = {config.channels}"
        )
    if classes is None:
        if config.classes:
            raise ValueError(f"config has classes = {config.classes}, but classes is None")
        return
    if config.classes == 0:
        raise ValueError("config has classes = 0, so classes must be None")
    if classes.shape != (len(images),) or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"classes must be {len(images)} integers, one for each image, but are {classes.dtype} "
            f"{classes.shape}"
        )
    if classes.min() < -1 or classes.max() >= config.classes:
        raise ValueError(
            f"classes must lie within -1 .. {config.classes - 1}, of config's classes = "
            f"{config.classes}, but are {classes.min()} .. {classes.max()}"
        )


def _fault(tensors: Mapping[str, np.ndarray]) -> str | None:
    """What is wrong with the numbers of a state, if anything."""
    for name, value in tensors.items():
        if value.dtype != np.float32:
            return f"{name} is {value.dtype} and not float32"
        if not np.isfinite(value).all():
            return f"{name} is not finite"
        if name.startswith("exp_avg_sq.") and (value < 0).any():
            return f"{name}, a mean of squares, is negative somewhere"
    return None


def _read_about(path: str | Path, metadata: Mapping[str, str]) -> tuple[int, float, dict[str, Any]]:
    """From a state's metadata: the steps done, the running loss, and what run it is."""
    if "training" not in metadata:
        raise ValueError(f"{path} is not the state of a run, whose metadata has 'training'")
    try:
        about = json.loads(metadata["training"])
        done, running, run = about["done"], about["loss"], about["run"]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path} has metadata that cannot be read: {error!r}") from None
    if type(done) is not int or not 0 <= done < 2**63:
        raise ValueError(f"{path} is damaged: done must be a count of steps, but is {done!r:.40}")
    if type(running) is not float or not math.isfinite(running):
        raise ValueError(f"{path} is damaged: loss must be a number, but is {running!r:.40}")
    if not isinstance(run, dict):
        raise ValueError(f"{path} is damaged: run must be an object, but is {run!r:.40}")
    return done, running, cast(dict[str, Any], run)


def _digest(data: bytes) -> str:
    return f"#{hashlib.sha256(data).hexdigest()[:12]}"


def bfloat16_is_fast(device: str) -> bool:
    """Whether autocast to bfloat16 pays: on CUDA, and on CPUs that multiply bfloat16.

    On CPUs without such instructions (AMX or AVX-512 BF16) the float32 step was the faster one.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return kind == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


def _host(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}
