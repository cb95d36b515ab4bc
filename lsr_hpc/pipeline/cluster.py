"""The Dask cluster of a controller: a scheduler and a launcher in this process, light workers beside it.

Whoever reaches a Dask port can run code as its user, and loopback does not keep other users of the machine
out: everything talks TLS under a certificate made for this run alone, and listens at one address. Light
workers are processes that end with the controller. Dask itself never repeats a task: what is repeated, and
how often, is decided from the files of the run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask.config
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker
from distributed.core import Status
from distributed.security import Security

from lsr_hpc.settings import RunSettings

__all__ = ["LAUNCHER", "replace_lost_workers", "start_cluster"]

LAUNCHER = "launcher"
_CONFIG = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.work-stealing": False,
    # A worker that is silent is not dead: it may hold Python's lock for long, or sleep with the machine.
    "distributed.scheduler.worker-ttl": None,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.timeouts.tcp": "120s",
    # Complaints of a worker that ends together with the controller help nobody.
    "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
}
# HTTP asks for no certificate: without pages it tells nothing to other users of the machine.
_NO_PAGES: dict[str, Any] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}


@contextmanager
def start_cluster(settings: RunSettings) -> Iterator[Client]:
    """Start the cluster and connect to it.

    Args:
        settings: Ranks and instances at once (resource ``ranks`` of the launcher), light workers (resource
            ``cpu``, 1 each) and the address.

    Yields:
        A client. Light workers are still starting.
    """
    security = Security.temporary()
    common: dict[str, Any] = {
        "protocol": "tls",
        "host": settings.host,
        "security": security,
        "dashboard_address": f"{settings.host}:0",
    }
    launcher = {
        "name": LAUNCHER,
        "nthreads": settings.instances_at_once,
        "resources": {"ranks": settings.ranks * settings.instances_at_once},
        "memory_limit": 0,
    }
    light = {
        "nthreads": 1,
        "resources": {"cpu": 1},
        "memory_limit": 0,
    }
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with (
        dask.config.set(_CONFIG | ({} if settings.dashboard else _NO_PAGES)),
        SpecCluster(
            scheduler={"cls": Scheduler, "options": common},
            workers={LAUNCHER: {"cls": Worker, "options": common | launcher}},
            worker={"cls": Nanny, "options": common | light},
            security=security,
        ) as cluster,
        Client(cluster, security=security) as client,
    ):
        cluster.scale(1 + settings.light_workers)
        try:
            yield client
        finally:
            # Dask has much to say of workers that end slowly.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)


def replace_lost_workers(client: Client, settings: RunSettings) -> None:
    """Start light workers anew that Dask has given up: killed while they were starting, or too often.

    Args:
        client: Client of :func:`start_cluster`.
        settings: The settings that it was given.
    """
    cluster: Any = client.cluster

    def forget_the_dead() -> None:
        for name, worker in list(cluster.workers.items()):
            if worker.status in {Status.failed, Status.closed}:
                del cluster.workers[name]

    # In the cluster's own thread, before it looks for what is missing.
    cluster.loop.add_callback(forget_the_dead)
    cluster.scale(1 + settings.light_workers)
