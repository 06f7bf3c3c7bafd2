"""A dask scheduler and two worker processes, for the tests of `sample --scheduler`.

It prints the address and the workers' process ids, and for each line that it then gets how many
tasks the scheduler knows and how many run. It ends when its input does.
"""

from __future__ import annotations

import sys

from distributed import Client, LocalCluster


def running(dask_worker) -> int:
    return len(dask_worker.active_threads)


if __name__ == "__main__":
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        pids = [nanny.pid for nanny in cluster.workers.values()]
        print(cluster.scheduler_address, *pids, flush=True)
        for _ in sys.stdin:
            run = sum(client.run(running, on_error="ignore").values())
            print(len(cluster.scheduler.tasks), run, flush=True)
