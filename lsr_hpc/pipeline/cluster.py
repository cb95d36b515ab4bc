"""The Dask cluster of a controller: scheduler and launcher in this process, light workers on every node.

Whoever reaches a Dask port can run code as its user, and loopback does not keep other users of the machine
out: everything talks TLS under a certificate made for this run alone, and listens at one address. Light
workers are processes that end with the controller. Dask itself never repeats a task: what is repeated, and
how often, is decided from the files of the run.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask.config
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker
from distributed.core import Status
from distributed.security import Security

from lsr_hpc.pipeline.launch import step_environment
from lsr_hpc.pipeline.node_worker import NodeWorker
from lsr_hpc.settings import RunSettings
from lsr_hpc.slurm import Node, address_towards

__all__ = ["LAUNCHER", "quiet_dask", "replace_lost_workers", "silence_dask", "start_cluster"]

log = logging.getLogger(__name__)

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


# Of a node that is only to be routed to.
_ANY_PORT = 9
# How often a worker on another node is started.
_NODE_TRIES = 3


@contextmanager
def start_cluster(settings: RunSettings, nodes: Sequence[Node] = ()) -> Iterator[Client]:
    """Start the cluster and connect to it.

    Args:
        settings: Ranks and instances at once (resource ``ranks`` of the launcher), light workers of a node
            (resource ``cpu``, 1 each) and the address.
        nodes: Other nodes that are to have light workers.

    Yields:
        A client. Light workers are still starting.
    """
    security = Security.temporary()
    host = settings.host
    if host == "auto":
        host = address_towards(nodes[0].address, _ANY_PORT) if nodes else "127.0.0.1"
    common: dict[str, Any] = {
        "protocol": "tls",
        "host": host,
        "security": security,
        "dashboard_address": f"{host}:0",
    }
    launcher = {
        "name": LAUNCHER,
        "nthreads": settings.instances_at_once,
        "resources": {"ranks": settings.ranks * settings.instances_at_once},
        "memory_limit": 0,
    }
    cpu = {"cpu": 1}
    here = common | {"nthreads": 1, "resources": cpu, "memory_limit": 0}
    there = {
        "environment": step_environment(1, 1)
        | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        "security": security,
        "resources": cpu,
    }
    numbers = range(settings.light_workers)
    light: dict[str, dict[str, Any]] = {f"light-{i}": {"cls": Nanny, "options": here} for i in numbers}
    for node in nodes:
        light |= {
            f"light-{node.name}-{i}": {"cls": NodeWorker, "options": there | {"node": node.name}}
            for i in numbers
        }
    with (
        quiet_dask(settings),
        _Cluster(
            scheduler={"cls": Scheduler, "options": common},
            workers={LAUNCHER: {"cls": Worker, "options": common | launcher}},
            security=security,
        ) as cluster,
        Client(cluster, security=security) as client,
    ):
        cluster.worker_spec |= light
        cluster.open_missing()
        try:
            yield client
        finally:
            silence_dask()


def silence_dask() -> None:
    """Before a cluster ends: Dask has much to say of workers that end slowly."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


@contextmanager
def quiet_dask(settings: RunSettings) -> Iterator[None]:
    """Have Dask repeat nothing, show no pages unless asked to, and say little.

    Args:
        settings: Section ``[run]``.

    Yields:
        Nothing.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with dask.config.set(_CONFIG | ({} if settings.dashboard else _NO_PAGES)):
        yield


def replace_lost_workers(client: Client) -> None:
    """Start light workers anew that were given up: killed while they were starting, or too often.

    Args:
        client: Client of :func:`start_cluster`.
    """
    cluster: Any = client.cluster
    cluster.replace_lost()


class _Cluster(SpecCluster):
    """A cluster whose workers are known by name, and which notices those that are gone."""

    def __init__(self, **options: Any) -> None:
        self._lost: Counter[str] = Counter()
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def open_missing(self) -> None:
        """Start the workers that are asked for and not there."""
        self._soon(self._correct_state)

    def replace_lost(self) -> None:
        """Start those anew that have ended."""
        # In the cluster's own thread, before it looks for what is missing.
        self._soon(self._forget_the_dead)
        self.open_missing()

    def _forget_the_dead(self) -> None:
        for name, worker in list(self.workers.items()):
            if worker.status not in {Status.failed, Status.closed}:
                continue
            del self.workers[name]
            self._lost[name] += 1
            if isinstance(worker, NodeWorker) and self._lost[name] >= _NODE_TRIES:
                log.warning("no more tries of %s: what needs no MPI goes on without it", name)
                del self.worker_spec[name]

    def _soon(self, what: Callable[[], object]) -> None:
        loop: Any = self.loop
        loop.add_callback(what)
