"""A job of SLURM that carries out batches: a Dask worker in the shell of a batch script, on all its nodes.

``python -m lsr_hpc.campaign.job_worker`` is what a script of dask-jobqueue starts. It leaves in good order
before the time limit, on SIGTERM, when the campaign is stopped, and when the controller is gone: the member
in hand is given up, and another job does it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed.core import Status

from lsr_hpc.campaign.batch import ACTIVE, BatchEnd, CampaignControl, carry_out
from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.pipeline.attempt import StopRequest
from lsr_hpc.pipeline.launch import choose_launcher, step_environment
from lsr_hpc.pipeline.node_worker import serve
from lsr_hpc.settings import RunSettings

__all__ = ["STOP", "JobOrder", "carry_out_in_job", "main"]

# In the directory of a start: its controller wants to stop.
STOP = "STOP"
_LOOK_EVERY_S = 0.5
_LEAVING = StopRequest()


@dataclass(frozen=True, kw_only=True)
class JobOrder:
    """What a job has to know of the campaign.

    Attributes:
        root: Directory of the campaign.
        start: Number of the start, and the directory of its steps.
        digest: Identity of the campaign.
        settings: Section ``[run]`` as it applies.
        tries: How often in a row a member is tried that is ended from outside.
    """

    root: Path
    start: tuple[int, Path]
    digest: str
    settings: RunSettings
    tries: int


def carry_out_in_job(order: JobOrder, number: int, names: Sequence[str], *, after_others: bool) -> BatchEnd:
    """Carry out a batch by ranks on the nodes of this job.

    Args:
        order: The campaign.
        number: Number of the batch.
        names: Members.
        after_others: See :func:`~lsr_hpc.campaign.batch.carry_out`.

    Returns:
        What became of them.

    Raises:
        OSError: If files cannot be written, or the launcher cannot be started.
        EnvironmentProblem: If a program that the launcher needs is not on PATH.
    """
    key = str(order.start[1])
    if key not in ACTIVE:
        settings = order.settings
        _LEAVING.patience_s = settings.stop_seconds
        ACTIVE[key] = CampaignControl(
            layout=CampaignLayout(order.root),
            start=order.start,
            digest=order.digest,
            settings=settings,
            launcher=choose_launcher(settings.launcher, settings.ranks, 1, srun_mpi=settings.srun_mpi),
            environment=step_environment(settings.ranks, 1),
            stop=_LEAVING,
            tries=order.tries,
        )
    return carry_out(key, number, names, after_others=after_others)


def main() -> None:
    """Be a worker until there is nothing more to do, or no more time."""
    parser = argparse.ArgumentParser(prog="python -m lsr_hpc.campaign.job_worker")
    parser.add_argument("scheduler")
    parser.add_argument("--name")
    parser.add_argument("--ranks", type=int, help="MPI ranks of a batch")
    parser.add_argument("--lasts", type=float, help="seconds after which to leave")
    for what in ("ca-file", "cert", "key"):
        parser.add_argument(f"--tls-{what}", type=Path)
    # Others that dask-jobqueue gives to workers of Dask's own command line.
    options, _ = parser.parse_known_args()
    asyncio.run(_work(options))
    # Threads that wait for ranks are not waited for: their srun ends with them.
    os._exit(0)


async def _work(options: argparse.Namespace) -> None:
    until = time.monotonic() + options.lasts
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _LEAVING.ask)
    told = {
        "scheduler": options.scheduler,
        "name": options.name,
        "resources": {"ranks": options.ranks},
        "tls": {
            "ca_file": str(options.tls_ca_file),
            "cert": str(options.tls_cert),
            "key": str(options.tls_key),
        },
    }
    async with serve(told) as worker:

        def leave() -> None:
            """Begin nothing more: batches go to others, for here each would come back at once."""
            _LEAVING.ask()
            if worker.status == Status.running:
                worker.status = Status.paused

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave)
        ended = asyncio.create_task(worker.finished())
        while not ended.done():
            await asyncio.wait([ended], timeout=_LOOK_EVERY_S)
            for control in ACTIVE.values():
                control.locks.touch()
                if control.layout.stop.exists() or (control.start[1] / STOP).exists():
                    leave()
            # Without a scheduler it is about to close, and waits for the member in hand to be given up.
            is_alone = worker.status not in {Status.running, Status.paused}
            if time.monotonic() > until or is_alone or _LEAVING.is_set:
                leave()
            if worker.status == Status.paused and worker.state.executing_count == 0:
                await worker.close_gracefully()


if __name__ == "__main__":
    # As the module that tasks import, which finds what this process is about to do in it.
    from lsr_hpc.campaign import job_worker

    job_worker.main()
