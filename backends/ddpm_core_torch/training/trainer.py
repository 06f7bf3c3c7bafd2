"""A network in training."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_core.checkpoints.files import check_names
from ddpm_core.denoisers import Predictor
from ddpm_core.nn.network import UNetConfig
from ddpm_core.parameterisations import TARGETS, named
from ddpm_core.schedules import Discrete, Schedule, draw
from ddpm_core.schedules.drawing import Losses, draw_important, no_losses, recorded
from ddpm_core_torch.backend import Torch
from ddpm_core_torch.training import state as states
from ddpm_core_torch.training.averages import averages_of
from ddpm_core_torch.training.batches import (
    Batch,
    Drawn,
    Pixels,
    check_data,
    digest,
    digest_of,
    placed,
)
from ddpm_core_torch.training.execution import accelerator
from ddpm_core_torch.training.objectives import objective
from ddpm_core_torch.training.recipe import Recipe
from ddpm_core_torch.training.state import OtherRunError, State, host
from ddpm_core_torch.unet import UNet


class Step(NamedTuple):
    """What a step was.

    number: of the steps taken, this one included
    loss: the mean over the batch
    losses: (B,), of each image
    logsnr: (B,), the level of each
    gradient_norm: before it was clipped
    stopped: whether a process asked that this be the last step
    """

    number: int
    loss: float
    losses: np.ndarray
    logsnr: np.ndarray
    gradient_norm: float
    stopped: bool


_MOMENTS = ("exp_avg", "exp_avg_sq")  #: of Adam


class OtherProcessError(RuntimeError):
    """Work that this process waited for failed in the first one, which says why."""


class Trainer:
    """A network in training: `step` by `step`, or `train` with callbacks; `save` and `resume`.

    images: (N, C, H, W) uint8, at least a batch of them: an array, or what is indexed like one
    classes: (N,) integers below config.classes, -1 for no class; None if config.classes is 0
    schedule: over integer times, because the UNet expects timesteps of 0 .. 999
    predicts: a name in `parameterisations.TARGETS`
    device: as torch names it; the processes of `torchrun` or `accelerate launch` share each batch,
        each on the device of its number
    accumulate: the parts in which a process takes its images, one after the other, to save memory
    compiled: whether torch compiles the network

    Processes, parts and devices change a run by rounding only; with dropout, its masks too.

    net: the network; averages: of its weights, by name, the first to be sampled from
    done: the steps taken
    loss: the running mean of about a hundred steps, whose noise levels differ; 0 before the first
    stop: set it, on any process, and the next step says to all that it was the last
    """

    def __init__(
        self,
        images: Pixels,
        classes: np.ndarray | None,
        config: UNetConfig,
        schedule: Schedule,
        predicts: str = "eps",
        recipe: Recipe | None = None,
        device: str = "cpu",
        *,
        accumulate: int = 1,
        compiled: bool = False,
    ) -> None:
        self.recipe = Recipe() if recipe is None else recipe
        if len(images) < self.recipe.batch:
            raise ValueError(
                f"batch must be at most {len(images)}, the number of images, but is "
                f"{self.recipe.batch}"
            )
        check_data(images, classes, config)
        if not isinstance(schedule, Discrete):
            raise TypeError(
                f"schedule must be Discrete, with times that a UNet can be told, but is {schedule}"
            )
        if predicts not in TARGETS:
            raise ValueError(f"no target {predicts!r}; there are {', '.join(TARGETS)}")
        self.images, self.classes = images, classes
        self.schedule, self.predicts, self.accumulate = schedule, predicts, accumulate
        self.accelerator = accelerator(device, self.recipe.precision, compiled)
        self._each = _each(self.recipe.batch, self.accelerator.num_processes, accumulate)
        self.device = self.accelerator.device
        self.on = Torch(str(self.device))
        self.net = UNet(config, dropout=self.recipe.dropout, seed=self.recipe.seed).to(self.device)
        fused = self.device.type == "cuda" or None
        adam = torch.optim.Adam(self.net.parameters(), lr=self.recipe.lr, fused=fused)
        prepared: Any = self.accelerator.prepare(self.net, adam)
        self._model, self.optimiser = prepared
        self._parameters = dict(self.net.named_parameters())
        variance = config.out_channels == 2 * config.channels
        self.predict = Predictor(self._model, schedule, named(predicts, schedule), variance)
        self._objective = objective(self.recipe.objective, self.predict)
        self.averages = averages_of(self.recipe, tuple(self._parameters.values()))
        self._levels = no_losses(schedule.T) if self.recipe.levels == "important" else None
        # Its own words: samples of the same seed are drawn from others.
        words = np.random.SeedSequence((self.recipe.seed, 3)).generate_state(1, np.uint64)
        self._noise = self.on.portable_noise(int(words[0]))
        self.done, self.loss, self.stop = 0, 0.0, False
        self._epoch = -1  # of the order that is at hand
        self._next: tuple[Batch, Drawn] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.accelerator.is_main_process

    def train(self, steps: int, after: Iterable[Callable[[Step], object]] = ()) -> bool:
        """Steps until `steps` are done in all, or `stop` is set; returns whether they are done.

        after: what is called after each step, one after the other; one may set `stop`
        """
        callbacks = tuple(after)
        while self.done < steps:
            step = self.step()
            for callback in callbacks:
                callback(step)
            if step.stopped or (self.stop and self.accelerator.num_processes == 1):
                break
        return self.done >= steps

    def step(self) -> Step:
        """One step of Adam on the objective.

        FloatingPointError if the loss is not finite. The weights are lost then, because a GPU
        updates them before the loss is read: go on from the last `save`.
        """
        batch, drawn = self._next or self._batch()
        self._next = None  # so that what is interrupted does not train on it again
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(self.done)
        self.optimiser.zero_grad()
        found = self._backward(batch)
        norm: Any = self.accelerator.clip_grad_norm_(self._parameters.values(), self.recipe.clip)
        self.optimiser.step()
        for average in self.averages.values():
            average.update(self.done)
        self.done += 1
        if self._levels is None:  # important levels wait for the losses
            self._next = self._batch()  # while a GPU still works on this one
        losses, stopped = self._gathered(found)
        value = float((losses * drawn.weights).mean())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {self.done}")
        if self._levels is not None:
            self._levels = recorded(self._levels, drawn.levels.time, losses)
        self.loss += max(0.01, 1 / self.done) * (value - self.loss)
        logsnr = np.asarray(drawn.levels.logsnr)
        return Step(self.done, value, losses, logsnr, float(norm), stopped)

    def _backward(self, batch: Batch) -> Tensor:
        """Adds the gradients of the batch's mean loss; returns the losses before their weights."""
        losses: list[Tensor] = []
        *_, last = parts = batch.parts(self.accumulate)
        for part in parts:
            with nullcontext() if part is last else self.accelerator.no_sync(self._model):
                losses.append(self._losses(part))
                self.accelerator.backward((losses[-1] * part.weights).sum() / self._each)
        return torch.cat(losses).detach()

    def _losses(self, batch: Batch) -> Tensor:
        with self._dropout_seeded(batch.start):
            return self._objective(self.predict, batch.x_0, batch.eps, batch.t, **batch.cond)

    def _gathered(self, losses: Tensor) -> tuple[np.ndarray, bool]:
        """The losses of the whole batch, and whether a process asked to stop."""
        told = torch.cat((losses, losses.new_full((1,), float(self.stop))))
        every: Any = self.accelerator.gather(told)
        rows = every.cpu().numpy().reshape(-1, len(told))
        return rows[:, :-1].ravel(), bool(rows[:, -1].any())

    @contextmanager
    def _dropout_seeded(self, place: int) -> Generator[None]:
        """Seeds dropout by step and place: it alone draws from torch's global generator."""
        if self.recipe.dropout == 0:
            yield
            return
        words = np.random.SeedSequence((self.recipe.seed, self.done, 2, place)).generate_state(1)
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(int(words[0]))
            yield

    def _batch(self) -> tuple[Batch, Drawn]:
        """What this process trains on at the next step, and what was drawn for all of them."""
        recipe = self.recipe
        per_epoch = len(self.images) // recipe.batch
        epoch, place = divmod(self.done, per_epoch)
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((recipe.seed, epoch)).permutation(len(self.images))
        # For the whole batch, which costs little; the rest is for this process's images alone.
        rng = np.random.default_rng((recipe.seed, self.done, 1))
        mirrored = rng.random(recipe.batch) < 0.5
        kept = rng.random(recipe.batch) >= recipe.drop_label
        drawn = self._draw(rng.random(recipe.batch))
        start: int = self.accelerator.process_index * self._each
        mine = slice(start, start + self._each)
        index = self._order[place * recipe.batch : (place + 1) * recipe.batch][mine]
        images = self.images[index]
        if recipe.flip:
            images = np.where(mirrored[mine, None, None, None], images[..., ::-1], images)
        places = np.arange(self._each) + start
        eps = self._noise(self.done, images.shape, ids=places)
        batch = placed(self.on, images, eps, places, drawn)
        if self.classes is not None:
            y = np.where(kept[mine], self.classes[index], -1)
            batch.cond["y"] = self.on.asarray(y, torch.int64)
        return batch, drawn

    def _draw(self, u: np.ndarray) -> Drawn:
        if self._levels is None:
            return Drawn(draw(self.schedule, u), np.ones(len(u)))
        times, weights = draw_important(self._levels, u)
        return Drawn(self.schedule(times), weights)

    def loss_on(self, images: Pixels, classes: np.ndarray | None) -> tuple[float, float]:
        """The loss of the averaged weights on up to 1024 other images, and its standard error.

        Levels are spread evenly, and noise and levels are those of every other call: values of
        one run compare. On each process, which all must call it.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        each = min(len(images), 1024) // processes
        count = each * processes
        if count < 2:
            raise ValueError(
                f"a loss and its error need two images, and one for each of {processes} "
                f"process{'es' if processes > 1 else ''}, but there are {len(images)}"
            )
        check_data(images, classes, self.net.config)
        some = np.linspace(0, len(images), count, endpoint=False, dtype=np.int64)  # spread out
        words = np.random.SeedSequence((self.recipe.seed, 4)).generate_state(1, np.uint64)
        noise, rng = self.on.portable_noise(int(words[0])), np.random.default_rng(4)
        levels = draw(self.schedule, (rng.permutation(count) + 0.5) / count)
        drawn = Drawn(levels, np.ones(count))
        losses: list[Tensor] = []
        with torch.no_grad(), next(iter(self.averages.values())).in_place(), _at_rest(self.net):
            for first in range(rank * each, (rank + 1) * each, size := self._each):
                index = np.arange(first, min(first + size, (rank + 1) * each))
                x = images[some[index]]
                part = placed(self.on, x, noise(0, x.shape, ids=index), index, drawn)
                if classes is not None:
                    part.cond["y"] = self.on.asarray(classes[some[index]], torch.int64)
                losses.append(self._losses(part))
        every: Any = self.accelerator.gather(torch.cat(losses))
        values = every.cpu().numpy().astype(np.float64)
        return float(values.mean()), float(values.std(ddof=1) / math.sqrt(count))

    def averaged(self, name: str | None = None) -> dict[str, np.ndarray]:
        """The averaged weights on the host; by default the first average's, to sample from.

        On each process, which all must call it, as they must call `save` and `resume`.
        """
        values = self.averages[name or next(iter(self.averages))].values
        return host(dict(zip(self._parameters, values, strict=True)))

    def save(self, path: str | Path) -> None:
        """Writes all that `resume` needs: whole, or not at all.

        FloatingPointError if training has diverged: if a number of the state, or the next batch's
        loss under the weights or an average, is not finite. The file then stays as it was.
        """
        self._check_usable()
        state = self._state()  # on each process, which may have a part of the weights
        self.first_does(lambda: states.write(path, state))

    def first_does(self, work: Callable[[], object]) -> None:
        """Lets the first process do some work, once all have come here; the others wait for it.

        So what a process looks at before is not yet changed, and what it looks at after is.

        An error of the work is raised there, and as OtherProcessError in the others.
        """
        self.accelerator.wait_for_everyone()
        error: BaseException | None = None
        if self.is_first:
            try:
                work()
            except BaseException as caught:
                error = caught
        failed: Any = self.accelerator.gather(
            torch.tensor([error is not None], dtype=torch.float32, device=self.device)
        )
        if error is not None:
            raise error
        if bool(failed.any()):
            raise OtherProcessError("the first process failed, and says why")

    def _check_usable(self) -> None:
        self._next = self._next or self._batch()
        parts = self._next[0].parts(self.accumulate)

        @torch.no_grad()
        def check(whose: str) -> None:
            losses, _ = self._gathered(torch.cat([self._losses(part) for part in parts]))
            if not np.isfinite(losses).all():
                value = float(losses.mean())
                raise FloatingPointError(f"the {whose} of step {self.done} give a loss of {value}")

        check("weights")
        for average in self.averages.values():
            with average.in_place():
                check("averaged weights")

    def _state(self) -> State:
        parameters = self._parameters
        tensors: dict[str, Tensor] = {f"net.{name}": p for name, p in parameters.items()}
        for average, each in self.averages.items():
            for name, value in zip(parameters, each.values, strict=True):
                tensors[f"{average}.{name}"] = value
        updates = 0
        for name, p in parameters.items():
            if moments := self.optimiser.state.get(p):
                updates = int(moments["step"])
                for part in _MOMENTS:
                    tensors[f"{part}.{name}"] = moments[part]
        arrays = host(tensors)
        if self._levels is not None:
            for name, value in self._levels._asdict().items():
                arrays[f"levels.{name}"] = value.astype(np.float64)
        scaler = self.accelerator.scaler
        scale: dict[str, Any] = {} if scaler is None else scaler.state_dict()
        return State(self.done, self.loss, updates, scale, self._run(), arrays)

    def resume(self, path: str | Path) -> None:
        """Goes on from a file of `save`, by any number of processes.

        `OtherRunError` if it is of other data, another schedule, network or recipe; only the
        recipe's lr may change. ValueError if it is damaged. Either leaves the trainer as it was.
        """
        state = states.read(path)
        if different := states.differences(state, self._run()):
            raise OtherRunError(path, different)
        # Adam has no moments before its first update.
        parts = ("net", *self.averages, *(_MOMENTS if state.updates else ()))
        shapes = {name: tuple(p.shape) for name, p in self._parameters.items()}
        expected = {f"{part}.{n}": shape for part in parts for n, shape in shapes.items()}
        if self._levels is not None:
            for name, value in self._levels._asdict().items():
                expected[f"levels.{name}"] = value.shape
        check_names(path, {n: t.shape for n, t in state.tensors.items()}, expected)
        self._restore(state)

    @torch.no_grad()
    def _restore(self, state: State) -> None:
        stored = state.tensors
        fused = self.device.type == "cuda"
        for place, (name, p) in enumerate(self._parameters.items()):
            _put(p, stored[f"net.{name}"])
            for average, each in self.averages.items():
                _put(each.values[place], stored[f"{average}.{name}"])
            self.optimiser.state.pop(p, None)
            if state.updates:
                count = torch.tensor(float(state.updates), device=self.device if fused else "cpu")
                moments = {part: torch.zeros_like(p) for part in _MOMENTS}
                for part, moment in moments.items():
                    _put(moment, stored[f"{part}.{name}"])
                self.optimiser.state[p] = {"step": count, **moments}
        if self._levels is not None:
            self._levels = Losses(stored["levels.values"], stored["levels.count"].astype(np.int64))
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.done, self.loss, self._next = state.done, state.loss, None

    def _run(self) -> dict[str, Any]:
        """What a state must agree with to be resumed, as JSON gives it back."""
        about = dataclasses.asdict(self.recipe) | dataclasses.asdict(self.net.config)
        del about["lr"]
        about["ema"] = self.recipe.emas
        about["learn_variance"] = about.pop("out_channels") != self.net.config.channels
        about["predicts"] = self.predicts
        about["schedule"] = f"T = {self.schedule.T}, {digest(repr(self.schedule.logsnr).encode())}"
        about["data"] = self.data
        return json.loads(json.dumps(about))

    @functools.cached_property
    def data(self) -> str:
        """What a state says of the images and classes."""
        return digest_of(self.images, self.classes)


def _each(batch: int, processes: int, accumulate: int) -> int:
    """The images of one process."""
    if accumulate < 1 or batch % (processes * accumulate):
        raise ValueError(
            f"batch must be a multiple of processes times accumulate, but is {batch}, of "
            f"{processes} process{'es' if processes > 1 else ''}, and accumulate is {accumulate}"
        )
    return batch // processes


@contextmanager
def _at_rest(net: UNet) -> Generator[None]:
    """Lets a network be without its dropout, within the context."""
    net.eval()
    try:
        yield
    finally:
        net.train()


@torch.no_grad()
def _put(target: Any, value: np.ndarray) -> None:
    """Writes an array into a tensor, of which this process may have a part."""
    source = torch.as_tensor(value.copy(), device=target.device)
    if hasattr(target, "device_mesh"):  # sharded
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(source, target.device_mesh, target.placements)
    target.copy_(source)
