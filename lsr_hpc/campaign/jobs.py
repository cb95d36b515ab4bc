"""A campaign by jobs of SLURM: dask-jobqueue submits them, each is one worker on all its nodes.

The jobs are what section ``[slurm]`` of the job file says. A job that ends, at its time limit, preempted or
with a node, is replaced; a job that waits in the queue is waited for.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Client, Future
from distributed.security import Security

from lsr_hpc.batch_script import slurm_options
from lsr_hpc.campaign.batch import BatchEnd, CampaignControl
from lsr_hpc.campaign.job_worker import STOP, JobOrder, carry_out_in_job
from lsr_hpc.campaign.members import campaign_of
from lsr_hpc.campaign.resources import Resources
from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.job import Job
from lsr_hpc.pipeline.cluster import quiet_dask, silence_dask
from lsr_hpc.pipeline.launch import SrunLauncher
from lsr_hpc.settings_slurm import seconds_of
from lsr_hpc.slurm import Node, address_towards, all_nodes, queued_numbers

__all__ = ["JobCrew", "job_resources", "open_jobs"]

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_ANY_PORT = 9
# Scripts of dask-jobqueue do not quote paths.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+=,-]+")
# Lines that dask-jobqueue writes by itself; whole directives, because any line that contains one is dropped.
_NOT_THEIRS = ("-n 1", "--cpus-per-task=", "--mem=", "-t ", "-p ", "-A ")


def job_resources(job: Job, jobs: int, directory: Path) -> Resources:
    """What the members of a campaign by jobs are given.

    Args:
        job: The job of the campaign.
        jobs: Jobs side by side.
        directory: Directory of the campaign, absolute.

    Returns:
        Ranks of a member: what the job says, otherwise all tasks of a job of SLURM.

    Raises:
        JobError: If a job of SLURM has too few tasks for a member, or the directory cannot be in a script.
        EnvironmentProblem: If sbatch or srun is not on PATH.
    """
    tasks = job.slurm.nodes * job.slurm.tasks_per_node
    ranks = campaign_of(job).ranks_per_member or tasks
    if ranks > tasks:
        raise JobError(
            f"campaign.ranks_per_member = {ranks}, but a job has slurm.nodes = {job.slurm.nodes} times "
            f"slurm.tasks_per_node = {job.slurm.tasks_per_node} tasks: give it more, or --ranks {tasks}"
        )
    if not _PLAIN_PATH.fullmatch(str(directory)):
        raise JobError(
            f"--out {str(directory)!r}: with --jobs the path stands in scripts unquoted: use letters, "
            "digits and _./+=,- only"
        )
    if missing := [program for program in ("sbatch", "srun") if shutil.which(program) is None]:
        raise EnvironmentProblem(f"{' and '.join(missing)} not on PATH: is this a node of a SLURM cluster?")
    settings = replace(job.run, ranks=ranks, instances_at_once=jobs)
    return Resources(settings, SrunLauncher(nodes=job.slurm.nodes, mpi=settings.srun_mpi))


@contextmanager
def open_jobs(job: Job, control: CampaignControl) -> Iterator[JobCrew]:
    """Submit jobs, and cancel what is left of them at the end.

    Args:
        job: The job of the campaign.
        control: What the controller knows; its settings say how many jobs.

    Yields:
        Those who carry out batches.

    Raises:
        EnvironmentProblem: If the nodes of the cluster cannot be asked for.
    """
    from dask_jobqueue.slurm import SLURMCluster

    settings, directory = control.settings, control.start[1]
    host = settings.host if settings.host != "auto" else _address_towards_nodes(all_nodes())
    security = Security.temporary()
    secrets = directory / "tls"
    secrets.mkdir(mode=0o700)
    lasts_s = seconds_of(job.slurm.time) - job.slurm.signal_seconds
    options = slurm_options(f"lsr-{job.name}", job.slurm)
    try:
        with (
            quiet_dask(settings),
            SLURMCluster(
                name="job",
                cores=1,
                processes=1,
                memory="1GiB",
                worker_command="lsr_hpc.campaign.job_worker",
                worker_extra_args=[f"--ranks {settings.ranks}", f"--lasts {lasts_s}"],
                python=f"{shlex.quote(sys.executable)} -P",
                shared_temp_directory=str(secrets),
                log_directory=str(directory),
                job_name=options.pop("job-name"),
                job_directives_skip=[f"#SBATCH {directive}" for directive in _NOT_THEIRS],
                job_extra_directives=[
                    *(f"--{name}={value}" for name, value in options.items()),
                    "--no-requeue",
                ],
                job_script_prologue=_prologue(job),
                security=security,
                scheduler_options={
                    "host": host,
                    "protocol": "tls",
                    "security": security,
                    "dashboard_address": f"{host}:0",
                },
            ) as cluster,
            Client(cluster, security=security) as client,
        ):
            cluster.scale(settings.instances_at_once)
            crew = JobCrew(client, cluster, control)
            try:
                yield crew
            finally:
                crew.tell_to_stop()
                silence_dask()
    finally:
        shutil.rmtree(secrets, ignore_errors=True)


def _prologue(job: Job) -> list[str]:
    lines = [shlex.join(line.split(" ")) for line in job.slurm.prologue]
    # Places and bindings of other MPI ranks, where the controller was started inside another job.
    lines.append("unset ${!OMPI_COMM_WORLD_*} ${!PMI_*} ${!PMIX_*} ${!SLURM_CPU_BIND*} ${!SLURM_STEP_*}")
    return [*lines, f"export OMP_NUM_THREADS={job.slurm.cpus_per_task}"]


def _address_towards_nodes(nodes: Sequence[Node]) -> str:
    if not nodes:
        raise EnvironmentProblem("the cluster shows no nodes: set run.host to this machine's address")
    return address_towards(nodes[0].address, _ANY_PORT)


class JobCrew:
    """Jobs of SLURM that carry out batches.

    Args:
        client: Client of the cluster.
        cluster: The jobs.
        control: What the controller knows.
    """

    is_here = False

    def __init__(self, client: Client, cluster: Any, control: CampaignControl) -> None:
        self._client = client
        self._cluster = cluster
        self._control = control
        self._order = JobOrder(
            root=control.layout.root,
            start=control.start,
            digest=control.digest,
            settings=control.settings,
            tries=control.tries,
        )
        self._looked = time.monotonic()
        self._in_vain = 0
        self._came: set[str] = set()

    def submit(self, number: int, names: Sequence[str], *, after_others: bool) -> Future[BatchEnd]:
        """See :class:`~lsr_hpc.campaign.crew.Crew`."""
        return self._client.submit(
            carry_out_in_job,
            self._order,
            number,
            names,
            after_others=after_others,
            key=f"{self._control.start[1]}-{number}",
            resources={"ranks": self._control.settings.ranks},
            pure=False,
            retries=0,
        )

    def tell_to_stop(self) -> None:
        """Have the jobs give up what they have in hand, and leave."""
        (self._control.start[1] / STOP).touch(mode=0o600)

    def look_after(self) -> None:
        """Pass a wish to stop on, and replace jobs that have ended.

        Raises:
            EnvironmentProblem: If jobs end time and again before they have begun to work.
        """
        if self._control.stop.is_set:
            self.tell_to_stop()
            return
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        connected = {str(worker.name) for worker in list(self._cluster.scheduler.workers.values())}
        self._came |= connected
        if connected:
            self._in_vain = 0
        queued = queued_numbers()
        if queued is None:
            return
        jobs = {str(name): worker.job_id for name, worker in dict(self._cluster.workers).items()}
        ended = {name: job for name, job in jobs.items() if job not in queued and name not in connected}
        if not ended:
            return
        log.info("jobs that have ended: %s; others take their place", ", ".join(map(str, ended.values())))
        self._in_vain += sum(1 for name in ended if name not in self._came)
        if self._in_vain >= self._control.tries:
            raise EnvironmentProblem(
                f"{self._in_vain} jobs have ended before they came to work: see *.err and *.out in "
                f"{self._control.start[1]}"
            )
        cluster = self._cluster

        def forget() -> None:
            for name in ended:
                cluster.workers.pop(name, None)
                cluster.worker_spec.pop(name, None)

        cluster.loop.add_callback(forget)
        cluster.loop.add_callback(cluster.scale, self._control.settings.instances_at_once)
