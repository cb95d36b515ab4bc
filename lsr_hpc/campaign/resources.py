"""How many members run side by side, and on how many ranks and nodes each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lsr_hpc.campaign.members import campaign_of
from lsr_hpc.errors import JobError
from lsr_hpc.job import Job
from lsr_hpc.pipeline.launch import Launcher, SrunLauncher, choose_launcher
from lsr_hpc.settings import RunSettings

__all__ = ["Resources", "share_out"]


@dataclass(frozen=True)
class Resources:
    """What members are given.

    Attributes:
        settings: Section ``[run]`` with ranks of a member, and members at once in place of instances.
        launcher: How their ranks are started.
    """

    settings: RunSettings
    launcher: Launcher


def share_out(job: Job, environ: Mapping[str, str] = os.environ) -> Resources:
    """Share nodes and cores out to members.

    Args:
        job: The job of the campaign.
        environ: Environment variables; SLURM's tell of an allocation.

    Returns:
        What members are given.

    Raises:
        JobError: If a member asks for more nodes than there are.
        EnvironmentProblem: If a program that the launcher needs is not on PATH.
    """
    campaign = campaign_of(job)
    nodes = _number(environ, "SLURM_JOB_NUM_NODES", 1)
    tasks_per_node = _number(environ, "SLURM_NTASKS_PER_NODE", 1)
    is_in_allocation = "SLURM_JOB_ID" in environ
    tasks = _number(environ, "SLURM_NTASKS", nodes * tasks_per_node)
    per_member = campaign.nodes_per_member
    if is_in_allocation and per_member is not None and per_member > nodes:
        raise JobError(f"campaign.nodes_per_member = {per_member}, but the allocation has {nodes} nodes")
    ranks = campaign.ranks_per_member
    if ranks is None:
        is_by_node = is_in_allocation and per_member is not None
        ranks = (per_member or 1) * (tasks // nodes) if is_by_node else job.run.ranks
    slots = tasks if is_in_allocation else len(os.sched_getaffinity(0))
    at_once = campaign.at_once or max(1, nodes // per_member if per_member else slots // ranks)
    settings = replace(job.run, ranks=ranks, instances_at_once=at_once)
    launcher = choose_launcher(settings.launcher, ranks, at_once, environ, srun_mpi=settings.srun_mpi)
    if isinstance(launcher, SrunLauncher):
        # Few nodes, rather than one rank on each of many.
        needed = per_member or min(nodes, -(-ranks // max(1, tasks // nodes)))
        launcher = replace(launcher, nodes=needed)
    return Resources(settings, launcher)


def _number(environ: Mapping[str, str], name: str, otherwise: int) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdigit() and int(text) > 0 else otherwise
