"""A model behind HTTP: images of any solvers, steps and classes, drawn together in one batch.

    pip install 'ddpm-core[cli]' starlette uvicorn
    python examples/serve.py --model fashion-mnist --port 8000
    curl localhost:8000/sample -o bag.png -d '{"class": "Bag", "sampler": "unipc_2", "steps": 10}'

POST /sample takes a JSON object with any of class (a name, a number or "none"), seed, id, sampler,
steps and guidance, and answers the image that `ddpm-core sample` draws of them, as a PNG; or 422
and one line if it does not understand, 503 if too many wait. GET /health says how many that are.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import threading
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from queue import Full
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import ddpm_core as ddpm
from ddpm_core.backends import Backend
from ddpm_core.checkpoints.fields import cut, parse
from ddpm_core.cli.pictures import flat, to_bytes
from ddpm_core.models import bundled
from ddpm_core.samplers import Row, State
from ddpm_core.samplers.registry import ENTRIES
from ddpm_core.typing import Array

SOLVERS = {name: each.solver for each in ENTRIES if each.from_noise for name in each.names}
#: Coefficients of a row, of the solver that remembers most.
WIDTH = max(solver(ddpm.linear(), 2).point.shape[1] for solver in SOLVERS.values())


@dataclass(eq=False)
class Job:
    """One image to draw. Its seed, id and class y are those of `ddpm-core sample`; -1 is none.

    guidance: the scale of classifier-free guidance; 1 is none
    row: which of the sampler's rows comes next
    image: (C, H, W), of NumPy, once it is drawn; who cancels it takes the job out of the batch
    """

    sampler: ddpm.Sampler
    seed: int = 0
    id: int = 0
    y: int = -1
    guidance: float = 1.0
    row: int = 0
    image: Future[Array] = field(default_factory=Future)

    def coefficients(self) -> tuple[Array, ...]:
        """Level, read, point and anchor of its row, with a 0 for what its sampler forgets."""
        s, i = self.sampler, self.row
        zeros = [0.0] * (WIDTH - s.point.shape[1])
        wide = (np.r_[table[i, :-1], zeros, table[i, -1]] for table in (s.point, s.anchor))
        return np.array(s.levels.take(i)), s.read[i], *wide


class Engine:
    """Draws jobs in one batch, each at its own row of its own sampler: continuous batching.

    A job joins at the next network call, and leaves after its last.

    batch: how many jobs are drawn at a time; one with guidance counts once, and costs two
    queue: how many may wait for a place among them
    """

    def __init__(
        self, model: ddpm.Checkpoint, on: Backend, batch: int = 16, queue: int = 256
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, but is {batch}")
        self.model, self.on, self.batch, self.queue = model, on, batch, queue
        self.noise = ddpm.portable_noise(0, on.xp, on.device, on.dtype)
        self.predict, self.denoise = model.predictor(on.network), ddpm.clip(self._guided)
        self.jobs: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.changed, self.closed = threading.Condition(), False
        self.thread = threading.Thread(target=self._run)
        nothing = self._eps([])
        self.state = State(nothing, nothing, (nothing,) * (WIDTH - 4))

    def submit(self, job: Job) -> Future[Array]:
        """The image to come; queue.Full if too many wait."""
        with self.changed:
            if self.closed or len(self.waiting) >= self.queue:
                raise Full(f"{len(self.waiting)} images wait to be drawn: try again later")
            self.waiting.append(job)
            self.changed.notify()
        return job.image

    def step(self) -> None:
        """One network call, for all who are there: some join before it, some are done after it."""
        self._exchange()
        if not self.jobs:
            return
        level, *tables = map(np.array, zip(*(job.coefficients() for job in self.jobs), strict=True))
        row = Row(ddpm.Level(*level.T), *(tuple(table.T) for table in tables))
        y, scale = np.array([(job.y, job.guidance) for job in self.jobs]).T
        x_0 = self.denoise(self.state.point, row.level, y=y, scale=scale)
        for job in self.jobs:
            job.row += 1
        z = self._eps(self.jobs) if np.any([row.point[-1], row.anchor[-1]]) else None
        self.state = ddpm.advance(row, self.state, x_0, z, lincomb=self.on.lincomb)
        for i, job in enumerate(self.jobs):
            if job.row == job.sampler.nfe and job.image.set_running_or_notify_cancel():
                job.image.set_result(self.on.to_numpy(self.state.point[i, ...]))

    def _exchange(self) -> None:
        """Whose image is done or cancelled leaves, and who waits joins: jobs, and their state."""
        stay = [i for i, job in enumerate(self.jobs) if not job.image.done()]
        new: list[Job] = []
        while self.waiting and len(stay) + len(new) < self.batch:
            job = self.waiting.popleft()
            new += [] if job.image.cancelled() else [job]
        self.jobs = [*(self.jobs[i] for i in stay), *new]
        x, concat = self._eps(new), self.on.xp.concat
        point, anchor = (concat([self._take(old, stay), x]) for old in self.state[:2])
        nothing = self.on.xp.zeros_like(x)
        memory = (concat([self._take(old, stay), nothing]) for old in self.state.memory)
        self.state = State(point, anchor, tuple(memory))

    def _guided(self, x: Array, t: ddpm.Level, y: Array, scale: Array) -> Array:
        """x_0, with guidance where the scale is not 1: one call, in which those are twice."""
        count, twice = len(y), np.flatnonzero(scale != 1)
        both, against = np.r_[:count, twice], np.arange(count)  # without guidance, against itself
        against[twice] = np.arange(count, len(both))
        y = self.on.asarray(np.r_[y, np.full(len(twice), -1)], self.on.xp.int64)
        cond = {"y": y} if self.model.config.classes else {}
        x_0 = self.predict(self._take(x, both), t.take(both), **cond)
        x_0, other = x_0[:count, ...], self._take(x_0, against)
        return self.on.lincomb((1.0, other), (scale, x_0 - other))

    def _eps(self, jobs: list[Job]) -> Array:
        """What `ddpm.portable_noise(seed)` has for each job's seed, id and row: all in one call."""
        words = np.array([job.seed for job in jobs], "<u8").view("<i4").reshape(-1, 2)
        key = tuple(self.on.asarray(word[:, None], self.on.xp.int32) for word in words.T)
        steps, ids = ([getattr(job, name) for job in jobs] for name in ("row", "id"))
        shape = (len(jobs), self.model.config.channels, *self.model.size)
        return replace(self.noise, seed=key)(steps, shape, ids)

    def _take(self, x: Array, index: Any) -> Array:
        return self.on.xp.take(x, self.on.asarray(index, self.on.xp.int64), axis=0)

    def __enter__(self) -> Engine:
        self.thread.start()
        return self

    def _run(self) -> None:
        while not self.closed:
            try:
                self.step()
            except Exception as error:  # such as too little memory: others may fare better
                for job in self.jobs:
                    if job.image.set_running_or_notify_cancel():
                        job.image.set_exception(error)
            with self.changed:
                self.changed.wait_for(lambda: self.closed or self.jobs or self.waiting)

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()
        for job in (*self.jobs, *self.waiting):
            job.image.cancel()


def read(body: bytes, model: ddpm.Checkpoint) -> Job:
    """The job that a request asks for; ValueError, in one line, if that is not clear."""
    about, classes = parse(body or b"{}", "the request"), model.config.classes
    known = ["sampler", "steps", "seed", "id", *["class", "guidance"] * (classes > 0)]
    if unknown := sorted(about.about.keys() - known):
        raise ValueError(f"the request has {cut(unknown[0])}; there are {', '.join(known)}")
    solver = SOLVERS[about.one_of("sampler", SOLVERS, "dpmpp_2m")]
    steps = about.integer("steps", 1, int(getattr(model.schedule, "T", 1000)), 20)
    seed, id = about.integer("seed", 0, 2**64 - 1, 0), about.integer("id", 0, 2**31 - 1, 0)
    job = Job(solver(model.schedule, steps), seed, id)
    if classes:
        numbers = {str(i): i for i in range(classes)} | {"none": -1}
        numbers |= {name: i for i, name in enumerate(model.labels)}
        name = str(about.value("class", id % classes))
        if name not in numbers:
            raise ValueError(f"the request: no class {cut(name)}; there are {', '.join(numbers)}")
        job.y, job.guidance = numbers[name], about.number("guidance", 1.0)
        if not model.unconditional and (job.y == -1 or job.guidance != 1):
            raise ValueError("the request: this model was never trained without a class")
    return job


def application(engine: Engine) -> Starlette:
    """The engine behind HTTP; it draws while the application runs."""

    async def sample(request: Request) -> Response:
        try:
            drawn = asyncio.wrap_future(engine.submit(read(await request.body(), engine.model)))
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        except Full as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from None
        except ClientDisconnect:
            return Response(status_code=499)
        gone = asyncio.ensure_future(request.receive())  # its body is read: only its end can come
        try:
            await asyncio.wait({drawn, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not drawn.done():
                return Response(status_code=499)
            picture = Image.fromarray(flat(to_bytes((await drawn).transpose(1, 2, 0))))
        finally:
            drawn.cancel()
            gone.cancel()
        picture.save(file := io.BytesIO(), "PNG")
        return Response(file.getvalue(), media_type="image/png")

    async def health(request: Request) -> Response:
        alive = engine.thread.is_alive()
        about = {"alive": alive, "drawn": len(engine.jobs), "waiting": len(engine.waiting)}
        return JSONResponse(about, 200 if alive else 503)

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncGenerator[None]:
        with engine:
            yield

    routes = [Route("/sample", sample, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=running, max_body_size=10_000)


def main() -> None:
    """Serves until it is told to stop, and then draws what was asked before."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="fashion-mnist", help="a bundled model, or a file")
    options.add_argument("--backend", default="numpy")
    options.add_argument("--device")
    options.add_argument("--batch", type=int, default=16, help="images that are drawn at a time")
    options.add_argument("--queue", type=int, default=256, help="images that may wait for that")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8000)
    options = options.parse_args()
    model = ddpm.load(bundled().get(options.model, options.model))
    on = ddpm.backend(options.backend, device=options.device)
    app = application(Engine(model, on, options.batch, options.queue))
    uvicorn.run(app, host=options.host, port=options.port, timeout_graceful_shutdown=60)


if __name__ == "__main__":
    main()
