"""The folder of a training run: who may write there, what it holds, and how a run is stopped."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ddpm_core.backends import backend
from ddpm_core.checkpoints import Checkpoint, load, save
from ddpm_core.checkpoints.files import TEMPORARY, write_whole
from ddpm_core.cli import pictures
from ddpm_core.cli.drawing import draw, parse_classes
from ddpm_core.cli.log import Log
from ddpm_core.cli.progress import progress
from ddpm_core.samplers import dpmpp_2m

if TYPE_CHECKING:
    from ddpm_core_torch.training import Trainer

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 2**20, os.SEEK_SET)  # beyond the pid, which others read
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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

    The log's rows are written first, then the state. The model and the samples are made from it
    and tell their step, so that `refresh` finds what a kill left missing or old.
    """

    trainer: Trainer
    folder: Path
    labels: tuple[str, ...] = ()

    @property
    def options(self) -> Path:
        return self.folder / OPTIONS

    @property
    def state(self) -> Path:
        return self.folder / "training.safetensors"

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def samples(self) -> Path:
        """The samples of the trainer's step; those of other steps stay beside them."""
        return self.folder / f"samples-{self.trainer.done:06}.png"

    @property
    def log(self) -> Path:
        return self.folder / "log.csv"

    def go(self, plan: Plan) -> int | None:
        """Trains up to plan.steps; returns the signal that ended it before, if one did.

        ValueError if training diverges; the files are then those of the last good save.
        """
        with _signals() as caught:
            try:
                self._train(plan, caught)
            except FloatingPointError as error:
                kept = "stays as it is" if self.state.exists() else "was not written yet"
                raise ValueError(
                    f"{error}: training has diverged. {self.state} {kept}; a smaller --lr may help"
                ) from None
        return caught[0] if caught else None

    def _train(self, plan: Plan, stop: list[int]) -> None:
        """Trains as planned, or until `stop` has an element; the last step is saved."""
        trainer, began = self.trainer, time.monotonic()
        first = saved = trainer.done
        log = Log(self.log, trainer)
        with progress(plan.steps, "Training", done=first) as bar:
            while trainer.done < plan.steps and not stop:
                log.step()
                if plan.saves(trainer.done):
                    self.save(log)
                    saved = trainer.done
                if plan.draws(trainer.done) and not stop:
                    self.draw()
                speed = (trainer.done - first) * trainer.recipe.batch / (time.monotonic() - began)
                bar.advance(note=f"loss {trainer.loss:.4f}, {speed:.0f} images/s")
        if saved < trainer.done:
            self.save(log)

    def save(self, log: Log) -> None:
        """Writes the log's rows, the state, then the model."""
        log.write()
        self.trainer.save(self.state)
        save(self.model, self._checkpoint())

    def draw(self) -> None:
        """Writes a picture of 16 samples of the averaged weights, whose text "step" is theirs.

        The noise is that of every other step.
        """
        from PIL import Image, PngImagePlugin

        model = self._checkpoint()
        y = parse_classes(None, model, 16)
        solver = dpmpp_2m(model.schedule, min(20, self.trainer.schedule.T))
        on = backend("torch", device=str(self.trainer.device))
        images = draw(model, on, solver, 16, y, seed=0, batch=16, quiet=True)[-1]
        sheet = pictures.grid(images, 4).repeat(2, axis=0).repeat(2, axis=1)
        text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
        text.add_text("step", str(self.trainer.done))
        Image.fromarray(sheet).save(buffer, format="PNG", optimize=True, pnginfo=text)
        write_whole(self.samples, buffer.getvalue())

    def sweep(self) -> None:
        """Removes the temporary files of writes that a kill cut short."""
        for left in self.folder.glob(f"{TEMPORARY}*"):
            if not left.is_dir():  # a folder is of `convert`, which may be at work
                left.unlink()

    def refresh(self, plan: Plan) -> list[str]:
        """Writes what is missing or not of the state's step; returns the names of those files."""
        written: list[str] = []
        done = self.trainer.done
        if _step_of_model(self.model) != done:
            save(self.model, self._checkpoint())
            written.append(self.model.name)
        if plan.draws(done) and _step_of_picture(self.samples) != done:
            self.draw()
            written.append(self.samples.name)
        return written

    def _checkpoint(self) -> Checkpoint:
        trainer = self.trainer
        height, width = (int(n) for n in trainer.images.shape[2:])
        return Checkpoint(
            params=trainer.averaged(),
            config=trainer.net.config,
            schedule=trainer.schedule,
            size=(height, width),
            predicts=trainer.predict.predicts.__name__,
            labels=self.labels,
            notes={
                "trained": f"{trainer.done:,} steps of {trainer.recipe.batch}",
                "loss": round(trainer.loss, 5),
                "step": trainer.done,
            },
            unconditional=not trainer.net.config.classes or trainer.recipe.drop_label > 0,
        )


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


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keeps a folder for this process; ValueError that names the one which has it.

    The system holds the lock while the file is open: it ends with the process, however that ends.
    """
    path = folder / ".lock"
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
        except OSError as error:
            pid = os.read(file, 20).decode(errors="replace").strip()
            os.close(file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                why = f"cannot be locked on this file system ({error.strerror}); pass another --out"
                raise OSError(error.errno, why, str(path)) from None
            raise ValueError(
                f"{folder} is in use by process {pid or 'another'}: wait for it, or pass another "
                f"--out"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)  # of a process that ended between our two calls, and took its file away
    try:
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
        os.close(file)


@contextmanager
def _signals() -> Generator[list[int]]:
    """Collects the first SIGINT, SIGTERM or SIGHUP; a second one acts as if this were not here.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    caught: list[int] = []
    before: dict[int, object] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()
