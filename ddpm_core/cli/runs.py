"""The folder of a training run: what it holds, and how it is kept whole."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_core.backends import backend
from ddpm_core.checkpoints import Checkpoint, load, save
from ddpm_core.checkpoints.files import (
    TEMPORARY,
    open_regular,
    safetensors_module,
    write_whole,
)
from ddpm_core.cli import pictures, rate
from ddpm_core.cli.datasets import Images, part
from ddpm_core.cli.drawing import draw, parse_classes
from ddpm_core.cli.log import Log, Row
from ddpm_core.cli.progress import progress
from ddpm_core.cli.stops import signals
from ddpm_core.likelihood import Elbo, bits_per_dim
from ddpm_core.samplers import dpmpp_2m, levels_of
from ddpm_core.typing import Array

if TYPE_CHECKING:
    from ddpm_core_torch.training import Step, Trainer

OPTIONS = "run.toml"  #: of a run's folder, all that `train` was told


@dataclass(frozen=True)
class Plan:
    """When a run ends, and at which steps it writes its files."""

    steps: int
    save_every: int
    sample_every: int

    def draws(self, step: int) -> bool:
        """Whether samples are drawn at a step."""
        return step == self.steps or step % self.sample_every == 0

    def saves(self, step: int) -> bool:
        """Whether the state is saved at a step; samples are always of a saved one."""
        return self.draws(step) or step % self.save_every == 0


@dataclass(frozen=True)
class Run:
    """A trainer and its folder.

    The log's rows are written first, then the state. The models and the samples are made from it
    and tell their step, so that `refresh` finds what a kill left missing or old.

    unseen: images that are not trained on
    notes: what the models' files say of them, beside how long they were trained
    keep: the number of states, of which a damaged one is passed over
    """

    trainer: Trainer
    folder: Path
    unseen: Images
    labels: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    keep: int = 2

    @property
    def options(self) -> Path:
        return self.folder / OPTIONS

    @property
    def states(self) -> list[Path]:
        """The saved states that are there, the newest first."""
        return sorted(self.folder.glob("state-*.safetensors"), key=_step_of, reverse=True)

    @property
    def state(self) -> Path:
        """The state of the trainer's step."""
        return self.folder / f"state-{self.trainer.done:06}.safetensors"

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def models(self) -> dict[str, Path]:
        """The models by the names of their averages: the first one's, then the other EMAs'."""
        first, *others = (name for name in self.trainer.averages if name.startswith("ema."))
        named = {name: self.folder / f"model-{name}.safetensors" for name in others}
        return {first: self.model} | named

    @property
    def samples(self) -> Path:
        """The samples of the trainer's step; those of other steps stay beside them."""
        return self.folder / f"samples-{self.trainer.done:06}.png"

    @property
    def snapshot(self) -> Path:
        """The power-function averages of the trainer's step, for `average`."""
        return self.folder / "averages" / f"{self.trainer.done:06}.safetensors"

    @property
    def log(self) -> Path:
        return self.folder / "log.csv"

    @property
    def held_out(self) -> Path:
        """The loss and the bound on images that are not trained on, by step."""
        return self.folder / "held-out.csv"

    @property
    def described(self) -> str:
        """What is trained, on what: one line."""
        trainer = self.trainer
        count, channels, height, width = trainer.images.shape
        parameters = sum(math.prod(p.shape) for p in trainer.net.parameters())
        held = f" and {len(self.unseen.images):,} held out" if len(self.unseen.images) else ""
        processes = trainer.accelerator.num_processes
        return (
            f"{count:,} images{held} of {height} x {width} x {channels}, "
            f"{len(self.labels) or 'no'} classes; {parameters:,} parameters; "
            f"{f'{processes} x ' if processes > 1 else ''}{trainer.device.type}, "
            f"{trainer.recipe.precision}"
        )

    def go(self, plan: Plan, follow: Callable[[Row], object] = lambda row: None) -> int | None:
        """Trains up to plan.steps; returns the signal that ended it before, if one did.

        follow: what is called with each row of the log

        ValueError if training diverges; the files are then those of the last good save.
        """
        with signals(self._stop) as caught:
            try:
                self._train(plan, follow)
            except FloatingPointError as error:
                kept = f"{self.states[0]} stays" if self.states else "no state was saved yet"
                raise ValueError(
                    f"{error}: training has diverged. {kept}; a smaller --lr may help"
                ) from None
        return caught[0] if caught else None

    def _stop(self) -> None:
        self.trainer.stop = True

    def _train(self, plan: Plan, follow: Callable[[Row], object]) -> None:
        """Trains as planned, or until it is to stop; the last step is saved."""
        trainer, began = self.trainer, time.monotonic()
        first = saved = trainer.done
        log = Log(self.log, trainer, follow) if trainer.is_first else None
        quiet = not trainer.is_first
        with progress(plan.steps, "Training", done=first, quiet=quiet) as bar:

            def after(step: Step) -> None:
                nonlocal saved
                if log:
                    log.step(step)
                if plan.saves(step.number):
                    self.save(log)
                    saved = step.number
                if plan.draws(step.number) and not step.stopped:
                    self.draw()
                speed = (step.number - first) * trainer.recipe.batch / (time.monotonic() - began)
                bar.advance(
                    note=f"loss {trainer.loss:.4f}, gradient {step.gradient_norm:.2g}, "
                    f"{speed:.0f} images/s"
                )
                if log:
                    log.go_on()

            trainer.train(plan.steps, [after])
        if saved < trainer.done:
            self.save(log)

    def save(self, log: Log | None) -> None:
        """Writes the log's rows, the state, then the models; drops the oldest states."""
        trainer = self.trainer
        trainer.first_does(log.write if log else lambda: None)
        trainer.save(self.state)
        self._write_models()
        self._drop_states()

    def _drop_states(self) -> None:
        if self.trainer.is_first:
            for old in self.states[self.keep :]:
                old.unlink()

    def _write_models(self) -> None:
        for name, path in self.models.items():
            made = self._checkpoint(name)
            self.trainer.first_does(lambda made=made, path=path: save(path, made))

    def draw(self) -> None:
        """Writes a picture of 16 samples of the averaged weights, whose text "step" is theirs.

        The noise is that of every other step. The held-out images are measured, and power-function
        averages are written, before it.
        """
        trainer = self.trainer
        model = self._checkpoint()
        if len(self.unseen.images) >= max(2, trainer.accelerator.num_processes):
            images, classes = self.unseen.images, self.unseen.classes
            loss = trainer.loss_on(images, classes)
            trainer.first_does(lambda: self._write_held_out(loss, model))
        powers = {k: trainer.averaged(k) for k in trainer.averages if k.startswith("power.")}
        if powers:
            trainer.first_does(lambda: self._write_snapshot(powers))
        trainer.first_does(lambda: write_whole(self.samples, self._picture(model)))

    def _picture(self, model: Checkpoint) -> bytes:
        from PIL import Image, PngImagePlugin

        y = parse_classes(None, model, 16)
        solver = dpmpp_2m(model.schedule, min(20, self.trainer.schedule.T))
        on = backend("torch", device=str(self.trainer.device))
        images = draw(model, on, solver, 16, y, seed=0, batch=16, quiet=True)[-1]
        sheet = pictures.grid(images, 4).repeat(2, axis=0).repeat(2, axis=1)
        text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
        text.add_text("step", str(self.trainer.done))
        Image.fromarray(sheet).save(buffer, format="PNG", optimize=True, pnginfo=text)
        return buffer.getvalue()

    def _write_held_out(self, loss: tuple[float, float], model: Checkpoint) -> None:
        """Adds a row to the file: the loss, and the bound of some of the images, with errors."""
        bits = self._bits(model, self.unseen)
        rows = [_HELD_OUT]
        if self.held_out.exists():
            with open_regular(self.held_out) as file:
                rows += file.read().decode(errors="replace").splitlines()[1:]
        done = self.trainer.done
        rows = [_HELD_OUT] + [row for row in rows[1:] if _number(row.split(",")[0]) < done]
        rows.append(",".join([str(done), *(f"{value:.6g}" for value in (*loss, *bits))]))
        write_whole(self.held_out, "\n".join([*rows, ""]).encode())

    def _bits(self, model: Checkpoint, unseen: Images) -> tuple[float, float]:
        """Bits per dimension of up to 64 held-out images, ten terms each, and the error."""
        on = backend("torch", device=str(self.trainer.device))
        judge = rate.Run(model, on, labelled=not model.unconditional, seed=0, batch=32, quiet=True)
        levels = levels_of(self.trainer.schedule, self.trainer.schedule.T)
        some = part(unseen, np.arange(min(64, len(unseen.images))))
        trained = Images(self.trainer.images, self.trainer.classes, self.labels)
        kernel = judge.kernel(
            "learned" if judge.predict.variance else "optimal",
            levels,
            part(trained, np.arange(min(64, len(trained.images)))),
        )
        terms = min(10, self.trainer.schedule.T - 1)
        u = np.random.default_rng(0).random((len(some.images), terms))
        bound = Elbo(**judge.bound(kernel, levels, some, u).wait())
        found = bits_per_dim(bound.total, some.images[0].size)
        return found.mean, found.error

    def _write_snapshot(self, powers: Mapping[str, Mapping[str, Array]]) -> None:
        tensors = {
            f"{average.removeprefix('power.')}/{name}": value
            for average, values in powers.items()
            for name, value in values.items()
        }
        self.snapshot.parent.mkdir(exist_ok=True)
        write_whole(self.snapshot, safetensors_module("safetensors.numpy").save(tensors))

    def sweep(self) -> None:
        """Removes the temporary files of writes that a kill cut short."""
        for left in (*self.folder.glob(f"{TEMPORARY}*"), *self.folder.glob(f"*/{TEMPORARY}*")):
            if not left.is_dir():  # a folder is of `convert`, which may be at work
                left.unlink()

    def resume(self) -> list[str]:
        """Takes the trainer to the newest state that is whole; returns what is wrong with others.

        ValueError if none is whole, or one is of another run. A damaged one is renamed.
        """
        from ddpm_core_torch.training import OtherRunError

        wrong: list[tuple[Path, str]] = []
        for path in self.states:
            try:
                self.trainer.resume(path)
            except OtherRunError as error:
                raise ValueError(
                    f"{error}. Put {self.options.name} and the data back as they were, or start a "
                    f"run"
                ) from None
            except ValueError as error:
                wrong.append((path, str(error)))
                continue
            break
        else:
            raise ValueError(f"no state of {self.folder} can be read: {wrong[0][1]}")

        def put_aside() -> None:
            for path, _ in wrong:
                path.replace(path.with_suffix(".damaged"))

        self.trainer.first_does(put_aside)
        return [error for _, error in wrong]

    def refresh(self, plan: Plan) -> list[str]:
        """Writes what is missing or not of the state's step; returns the names of those files."""
        written: list[str] = []
        done = self.trainer.done
        self._drop_states()
        old = [path for path in self.models.values() if _step_of_model(path) != done]
        missing = self.trainer.recipe.power and not self.snapshot.exists()
        drawn = plan.draws(done) and (missing or _step_of_picture(self.samples) != done)
        if old:
            self._write_models()
            written += [path.name for path in old]
        if drawn:
            self.draw()
            written.append(self.samples.name)
        return written

    def _checkpoint(self, average: str | None = None) -> Checkpoint:
        trainer = self.trainer
        height, width = (int(n) for n in trainer.images.shape[2:])
        return Checkpoint(
            params=trainer.averaged(average),
            config=trainer.net.config,
            schedule=trainer.schedule,
            size=(height, width),
            predicts=trainer.predicts,
            labels=self.labels,
            notes={
                "trained": f"{trainer.done:,} steps of {trainer.recipe.batch}",
                "loss": round(trainer.loss, 5),
                "step": trainer.done,
                **self.notes,
            },
            unconditional=not trainer.net.config.classes or trainer.recipe.drop_label > 0,
        )


_HELD_OUT = "step,loss,loss_error,bits_per_dim,bits_error"


def _step_of(state: Path) -> int:
    return _number(state.stem.removeprefix("state-"))


def _number(digits: str) -> int:
    """The step that some digits are, or -1."""
    return int(digits) if digits.isdecimal() else -1


def _step_of_model(path: Path) -> int:
    """The step that a model is of, or -1 if no step can be read there."""
    try:
        return int(load(path).notes.get("step", -1))
    except (OSError, ValueError, TypeError, OverflowError):
        return -1


def _step_of_picture(path: Path) -> int:
    """The step that samples are of, or -1 if no step can be read there."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return int(picture.info.get("step", -1))
    except Exception:  # whatever Pillow meets
        return -1
