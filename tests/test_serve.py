"""The engine of `examples/serve.py` draws each image as if it were alone, and HTTP reaches it."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path
from queue import Full

import numpy as np
import pytest
from command import tiny
from PIL import Image

import ddpm_core as ddpm
from ddpm_core.cli.pictures import flat, to_bytes
from ddpm_core.guidance import classifier_free

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
sys.path.append(str(Path(__file__).parents[1] / "examples"))
import serve

ON = ddpm.backend("numpy")
MODEL = tiny()


def alone(name: str, steps: int, seed=0, i=0, y=-1, guidance=1.0, model=MODEL) -> np.ndarray:
    """What `ddpm.sample` draws of the same request, by itself: (C, H, W)."""
    noise = ON.portable_noise(seed)

    def eps(step, shape):
        return noise(step, shape, [i])

    denoise = ddpm.clip(classifier_free(model.predictor(ON.network), guidance, {"y": -1}))
    x = eps(0, (1, model.config.channels, *model.size))
    sampler = serve.SOLVERS[name](model.schedule, steps)
    return ddpm.sample(denoise, sampler, x, eps, y=np.array([y]))[0]


def job(name: str, steps: int, *rest) -> object:
    return serve.Job(serve.SOLVERS[name](MODEL.schedule, steps), *rest)


def finish(engine) -> None:
    while engine.jobs or engine.waiting:
        engine.step()


class Counted:
    """An engine, and how many samples its network had in each call."""

    def __init__(self, model=MODEL, **options) -> None:
        self.engine = serve.Engine(model, ON, **options)
        self.calls: list[int] = []
        predict = self.engine.predict

        def counting(x, t, **cond):
            self.calls.append(len(x))
            return predict(x, t, **cond)

        self.engine.predict = counting


def test_each_is_drawn_as_if_alone():
    """Every solver, with its own steps, seed, id, class and guidance, and its own time to come."""
    rng = np.random.default_rng(0)
    asked = [
        (name, int(rng.integers(2, 4)), int(rng.integers(2**64, dtype=np.uint64)), i,
         int(rng.integers(-1, 3)), float(rng.choice([0.0, 1.0, 3.0])))
        for i, name in enumerate(entry.name for entry in serve.ENTRIES if entry.from_noise)
    ]  # fmt: skip
    engine = serve.Engine(MODEL, ON, batch=8)
    jobs = [job(*one) for one in asked]
    for each in jobs:
        engine.submit(each)
        if each.id % 3:
            engine.step()
    finish(engine)
    for one, each in zip(asked, jobs, strict=True):
        # To the bit: NumPy's network does not mix the images of a batch, and adding 0 is exact.
        np.testing.assert_array_equal(each.image.result(), alone(*one), err_msg=one[0])


def test_a_model_without_classes():
    """It is asked for no class, and told of none."""
    model = tiny(config=ddpm.UNetConfig(1, 1, widths=(8, 8), blocks=1, groups=4), labels=())
    engine = serve.Engine(model, ON)
    image = engine.submit(serve.read(b'{"steps": 2, "id": 5}', model))
    finish(engine)
    noise = ON.portable_noise(0)
    x = noise(0, (1, 1, *model.size), [5])
    denoise = ddpm.clip(model.predictor(ON.network))
    expected = ddpm.sample(denoise, ddpm.dpmpp_2m(model.schedule, 2), x)[0]
    np.testing.assert_array_equal(image.result(), expected)


def test_calls_are_shared():
    """A call has all who are there, those with guidance twice; who comes joins the next one."""
    counted = Counted(batch=3)
    for each in (job("ddim", 2, 0, 0, 1, 3.0), job("ddim", 4), job("heun", 2), job("ddim", 1)):
        counted.engine.submit(each)
    finish(counted.engine)
    # Heun's method has three rows for two steps. The last job waits for a place among three.
    assert counted.calls == [4, 4, 3, 1]


def test_who_leaves_is_dropped():
    """A cancelled job costs no further call, drawn or waiting, and the others are as if alone."""
    counted = Counted(batch=2)
    engine, jobs = counted.engine, [job("dpmpp_2m", 4, 0, i) for i in range(4)]
    for each in jobs:
        engine.submit(each)
    engine.step()
    jobs[0].image.cancel()
    jobs[2].image.cancel()
    finish(engine)
    assert counted.calls == [2, 2, 2, 2, 1]
    for i in (1, 3):
        np.testing.assert_array_equal(jobs[i].image.result(), alone("dpmpp_2m", 4, 0, i))


def test_who_leaves_in_the_last_call():
    """Nobody is told, and nobody else is disturbed."""
    engine = serve.Engine(MODEL, ON)
    predict, last = engine.predict, job("ddim", 1)

    def leaving(x, t, **cond):
        last.image.cancel()
        return predict(x, t, **cond)

    engine.predict = leaving
    engine.submit(last)
    other = engine.submit(job("ddim", 1, 0, 7))
    finish(engine)
    np.testing.assert_array_equal(other.result(), alone("ddim", 1, 0, 7))


def test_a_bounded_queue():
    engine = serve.Engine(MODEL, ON, queue=1)
    engine.submit(job("ddim", 1))
    with pytest.raises(Full, match="1 images wait to be drawn: try again later"):
        engine.submit(job("ddim", 1))


def test_no_batch_is_refused():
    """None would ever be drawn."""
    with pytest.raises(ValueError, match="batch must be at least 1, but is 0"):
        serve.Engine(MODEL, ON, batch=0)


def test_the_thread_survives_an_error():
    """A call that fails is the answer to those in it alone."""
    engine = serve.Engine(MODEL, ON)
    predict = engine.predict

    def failing(x, t, **cond):
        engine.predict = predict
        raise MemoryError("no room")

    engine.predict = failing
    with engine:
        with pytest.raises(MemoryError, match="no room"):
            engine.submit(job("ddim", 2)).result(timeout=60)
        image = engine.submit(job("ddim", 2)).result(timeout=60)
    np.testing.assert_array_equal(image, alone("ddim", 2))
    assert not engine.thread.is_alive()
    with pytest.raises(Full):  # nobody would draw it
        engine.submit(job("ddim", 2))


def test_closing_cancels_what_is_not_drawn():
    counted = Counted()
    with counted.engine as engine:
        image = engine.submit(job("ddim", 100))
    assert image.cancelled() or len(counted.calls) == 100


@pytest.fixture
def client():
    from starlette.testclient import TestClient

    with TestClient(serve.application(serve.Engine(MODEL, ON))) as found:
        yield found


@pytest.mark.parametrize(
    ("asked", "as_alone"),
    [
        ({}, ("dpmpp_2m", 20, 0, 0, 0)),
        ({"id": 4, "steps": 2}, ("dpmpp_2m", 2, 0, 4, 1)),  # classes are dealt out
        ({"class": "dog", "sampler": "midpoint", "steps": 2}, ("dpm_solver_2", 2, 0, 0, 1)),
        ({"class": 1, "guidance": 3, "steps": 3}, ("dpmpp_2m", 3, 0, 0, 1, 3.0)),
        ({"class": "none", "sampler": "ancestral", "seed": 2**63}, ("ancestral", 20, 2**63)),
    ],
)
def test_http_answers_the_picture(client, asked, as_alone):
    answer = client.post("/sample", json=asked)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    with Image.open(io.BytesIO(answer.content)) as picture:
        drawn = np.asarray(picture)
    np.testing.assert_array_equal(drawn, flat(to_bytes(alone(*as_alone).transpose(1, 2, 0))))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "the request is not JSON"),
        (b"[]", "the request is not a JSON object"),
        (b"\xff", "the request is not JSON"),
        (b'{"step": 3}', "the request has step; there are sampler, steps, seed, id, class, guid"),
        (b'{"steps": 101}', "the request: steps must be an integer from 1 to 100, not 101"),
        (b'{"steps": true}', "the request: steps must be an integer from 1 to 100, not True"),
        (b'{"sampler": "dpm"}', 'the request: sampler must be one of "dpmpp_2m"'),
        (b'{"sampler": "ddim_inversion"}', "the request: sampler must be one of"),
        (b'{"class": "cow"}', "the request: no class cow; there are 0, 1, 2, none, cat, dog"),
        (b'{"class": null}', "the request: no class None"),
        (b'{"seed": -1}', "the request: seed must be an integer from 0 to"),
        (b'{"id": 2147483648}', "the request: id must be an integer from 0 to 2147483647"),
        (b'{"guidance": NaN}', "the request: guidance must be a finite number"),
    ],
)
def test_http_refuses(client, body, says):
    answer = client.post("/sample", content=body)
    assert answer.status_code == 422
    assert answer.text.startswith(says)
    assert "\n" not in answer.text


def test_http_refuses_much(client):
    """What no request needs is not even read."""
    assert client.post("/sample", content=b" " * 10_001).status_code == 413


def test_a_model_that_knows_classes_only():
    """It draws nothing without a class, and so has no guidance."""
    model = tiny(unconditional=False)
    assert serve.read(b'{"class": "cat"}', model).y == 0
    for body in (b'{"class": "none"}', b'{"guidance": 2}'):
        with pytest.raises(ValueError, match="this model was never trained without a class"):
            serve.read(body, model)


def test_http_when_too_many_wait():
    from starlette.testclient import TestClient

    with TestClient(serve.application(serve.Engine(MODEL, ON, queue=0))) as client:
        answer = client.post("/sample")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.text == "0 images wait to be drawn: try again later"


def test_health(client):
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"alive": True, "drawn": 0, "waiting": 0})


def test_health_without_the_thread():
    """A server that draws no more says so, for it to be started anew."""
    from starlette.testclient import TestClient

    client = TestClient(serve.application(serve.Engine(MODEL, ON)))  # not entered: not started
    assert client.get("/health").status_code == 503


def posts(engine, *messages) -> int:
    """The status of a POST of which the server receives these messages."""
    waiting, sent = iter(messages), []

    async def receive():
        return next(waiting)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/sample",
        "headers": [],
        "query_string": b"",
    }
    asyncio.run(serve.application(engine)(scope, receive, send))
    return sent[0]["status"]


def test_a_client_that_leaves_is_dropped():
    """Its image is cancelled when its connection ends."""
    engine = serve.Engine(MODEL, ON)  # nothing draws yet
    left = {"type": "http.disconnect"}
    assert posts(engine, {"type": "http.request", "body": b"{}"}, left) == 499
    assert engine.waiting.pop().image.cancelled()
    assert posts(engine, {"type": "http.request", "body": b"{", "more_body": True}, left) == 499
    assert not engine.waiting
