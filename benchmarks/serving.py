"""The latency and throughput of `examples/serve.py` under load: all requests in one batch, or one
at a time.

    pip install 'ddpm-core[cli]' starlette uvicorn
    python benchmarks/serving.py [--clients N] [--batch N] [--requests N] [--rounds N]

Two servers of the bundled model differ in --batch alone, which is 1 for the other. Each client
sends its next request when the last one is answered, of a random solver, class, number of steps and
guidance. Within a round both servers get the same requests, one server after the other, in turns; a
ratio is taken within each round. Medians over the rounds are printed, with their quartiles.

On NumPy a batch is split over the processors, and so one image at a time has one of them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import ddpm_core as ddpm
from ddpm_core.testing.backends import environment

SERVER = Path(__file__).parents[1] / "examples" / "serve.py"
SOLVERS = ("dpmpp_2m", "unipc_2", "ddim", "heun", "ancestral", "sde_dpmpp_2m")
MEASURES = ("median latency, s", "95 % latency, s", "images a second")


@contextmanager
def server(batch, backend):
    """Runs a server; gives its address."""
    words = [sys.executable, SERVER, "--port", "0", "--batch", str(batch), "--backend", backend]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if found := re.search(r"http://(\S+)", line):
                yield found[1]
                break
        else:
            raise RuntimeError(f"{SERVER.name} does not start: run it to see why")
    finally:
        process.terminate()
        process.communicate()


def request(rng):
    """What a client asks for: every third time with guidance."""
    return {
        "class": int(rng.integers(10)),
        "seed": int(rng.integers(2**31)),
        "sampler": str(rng.choice(SOLVERS)),
        "steps": int(rng.integers(5, 21)),
        "guidance": float(rng.choice([1.0, 1.0, 2.0])),
    }


def answered(address, requests):
    """A client's requests, one after the other: how long each took."""
    connection, seconds = http.client.HTTPConnection(address), []
    for asked in requests:
        start = time.perf_counter()
        connection.request("POST", "/sample", json.dumps(asked))
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {said.decode()}")
        seconds.append(time.perf_counter() - start)
    connection.close()
    return seconds


def load(address, clients):
    """`MEASURES` of a server that these clients ask at the same time."""
    start = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as threads:
        latencies = np.concatenate([*threads.map(lambda asked: answered(address, asked), clients)])
    spent = time.perf_counter() - start
    return *np.quantile(latencies, [0.5, 0.95]), len(latencies) / spent


def shown(values):
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--clients", type=int, default=16)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--requests", type=int, default=8, help="of each client in a round")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--backend", default="numpy")
    options = options.parse_args()

    print(environment(ddpm.backend(options.backend)))
    rng, measured = np.random.default_rng(0), {"together": [], "one by one": []}
    with (
        server(options.batch, options.backend) as together,
        server(1, options.backend) as one_by_one,
    ):
        sides = [("together", together), ("one by one", one_by_one)]
        for address in (together, one_by_one):  # what a first call alone does
            answered(address, [request(rng)])
        for i in range(options.rounds):
            clients = [
                [request(rng) for _ in range(options.requests)] for _ in range(options.clients)
            ]
            for name, address in sides[:: 1 if i % 2 else -1]:
                measured[name].append(load(address, clients))
    print(
        f"{options.clients} clients, {options.requests} requests of each in {options.rounds} rounds"
    )
    print("| | together | one by one | ratio |\n|---|---|---|---|")
    for what, *both in zip(MEASURES, *(np.transpose(m) for m in measured.values()), strict=True):
        print(f"| {what} | {shown(both[0])} | {shown(both[1])} | {shown(both[0] / both[1])} |")


if __name__ == "__main__":
    main()
