"""Light workers on the other nodes of an allocation: a step of srun each, known to Dask like the ones here.

What a worker needs to be let in goes to it through the standard input of srun, so that the certificate of the
run never lies on a disk or in an environment; and when that input ends, with the controller or its srun, the
worker ends as well.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import dask.config
from distributed import Worker
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface
from distributed.security import Security

from lsr_hpc.slurm import address_towards

__all__ = ["NodeWorker", "serve"]

log = logging.getLogger(__name__)

_ROLE = "worker"
# The scheduler may be busy: no reason to give up early.
_CONNECT_S = 60
# srun passes SIGTERM on; what has not ended by then is killed.
_GRACE_S = 5.0


class NodeWorker(ProcessInterface):
    """A light worker on another node, as the cluster sees it.

    Args:
        scheduler: Address of the scheduler.
        name: Name of the worker.
        node: Name of the node.
        environment: Environment of srun.
        security: Certificate of the run.
        resources: Resources of the worker.
    """

    def __init__(
        self,
        scheduler: str,
        *,
        name: str,
        node: str,
        environment: Mapping[str, str],
        security: Security,
        resources: dict[str, float],
    ) -> None:
        super().__init__(scheduler=scheduler, name=name)  # type: ignore[no-untyped-call]
        self._node = node
        self._environment = environment
        self._told = {
            "scheduler": scheduler,
            "name": name,
            "resources": resources,
            "tls": security.get_tls_config_for_role(_ROLE),
        }
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start srun; whether a worker comes of it, the scheduler will see."""
        self._process = await asyncio.create_subprocess_exec(
            *_command(self._node),
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps(self._told) + "\n").encode())
        self._watch = asyncio.create_task(self._see_the_end(self._process))
        await super().start()  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """End the worker and its srun."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _GRACE_S)
            except TimeoutError:
                self._process.kill()
        if self._watch is not None:
            await self._watch
        await super().close()  # type: ignore[no-untyped-call]

    async def _see_the_end(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        said = (await process.stderr.read()).decode(errors="replace").strip()
        await process.wait()
        if self.status == Status.running:
            log.warning("the light worker on node %s has ended: %s", self._node, said or process.returncode)
            self.status = Status.closed


def _command(node: str) -> list[str]:
    # All sizes explicit, for the defaults come from the allocation; cores and memory are those of the ranks.
    return [
        *("setpriv", "--pdeathsig", "TERM"),
        *("srun", "--overlap", "--mpi=none", "--nodes=1", "--ntasks=1", f"--nodelist={node}"),
        *("--cpus-per-task=1", "--mem=0", "--gres=none", "--job-name=lsr-light", "--unbuffered"),
        *(sys.executable, "-P", "-m", "lsr_hpc.pipeline.node_worker"),
    ]


def main() -> None:
    """Be a light worker until the scheduler or standard input ends."""
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    asyncio.run(_serve(told))


def _end_with_input() -> None:
    while sys.stdin.read(4096):
        pass
    os._exit(0)


async def _serve(told: Mapping[str, Any]) -> None:
    async with serve(told) as worker:
        await worker.finished()


def serve(told: Mapping[str, Any]) -> Worker:
    """A worker of one thread, at the one address by which it reaches the scheduler.

    Args:
        told: ``scheduler``, ``name``, ``resources``, and ``tls`` with ``ca_file``, ``cert`` and ``key``, each
            the name of a file or its content.

    Returns:
        The worker, not yet started: it is an asynchronous context.
    """
    address, port = told["scheduler"].removeprefix("tls://").rsplit(":", 1)
    host = address_towards(address, int(port))
    security = Security(
        require_encryption=True,
        tls_ca_file=told["tls"]["ca_file"],
        tls_worker_cert=told["tls"]["cert"],
        tls_worker_key=told["tls"]["key"],
    )
    # HTTP asks for no certificate: it tells nothing.
    dask.config.set({"distributed.worker.http.routes": []})
    return Worker(
        told["scheduler"],
        name=told["name"],
        host=host,
        security=security,
        resources=told["resources"],
        nthreads=1,
        memory_limit=0,
        death_timeout=_CONNECT_S,
        protocol="tls",
        dashboard_address=f"{host}:0",
    )


if __name__ == "__main__":
    main()
