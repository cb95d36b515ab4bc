"""Conditions shared out over groups of MPI ranks, each solved apart from the others.

In a wave every group solves one condition; the first rank of the world hears of all of them before the next.
A condition that fails is told with its cause, and does not touch the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lsr_hpc.comm import agree
from lsr_hpc.problem import ProblemFamily
from lsr_hpc.result import RefineResult
from lsr_hpc.transfer.space import TransferSpace

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["FailedTarget", "SolvedTarget", "solve_targets", "target_groups"]


@dataclass(frozen=True, kw_only=True)
class SolvedTarget:
    """A condition that was solved.

    Attributes:
        instance: Its number.
        result: What was found.
    """

    instance: int
    result: RefineResult


@dataclass(frozen=True, kw_only=True)
class FailedTarget:
    """A condition that could not be solved.

    Attributes:
        instance: Its number.
        cause: Why.
        seconds: Spent on it.
    """

    instance: int
    cause: str
    seconds: float


def target_groups(comm: MPI.Comm, ranks_per_target: int) -> tuple[MPI.Comm, int, int]:
    """Cut the world into groups of neighbouring ranks, each of the wanted size or a little more.

    Args:
        comm: Communicator.
        ranks_per_target: Ranks in a group; more than there are make one group.

    Returns:
        Communicator of this rank's group, its number, and how many groups there are.

    Collective: one split of the communicator, where there are several groups.
    """
    n_groups = max(1, comm.size // ranks_per_target)
    if n_groups == 1:
        return comm, 0, 1
    number = comm.rank * n_groups // comm.size
    return comm.Split(number, comm.rank), number, n_groups


def solve_targets(
    comm: MPI.Comm, space: TransferSpace, group: int, n_groups: int, family: ProblemFamily
) -> Iterator[list[SolvedTarget | FailedTarget]]:
    """Solve every instance of a family.

    Args:
        comm: Communicator of all groups.
        space: The modes, on the communicator of this rank's group.
        group: Number of the group.
        n_groups: How many there are.
        family: The conditions.

    Yields:
        After each wave, what became of its conditions, in order; empty but on the first rank.

    Raises:
        Exception: What one rank of a group of several has raised alone.

    Collective: all ranks; one gather for a wave.
    """
    for first in range(0, family.n_instances, n_groups):
        instance = first + group
        own = _solved(space, family, instance) if instance < family.n_instances else None
        gathered = comm.gather(own if space.comm.rank == 0 else None, root=0)
        yield [target for target in gathered or [] if target is not None]


def _solved(space: TransferSpace, family: ProblemFamily, instance: int) -> SolvedTarget | FailedTarget:
    started = time.perf_counter()
    try:
        problem = agree(space.comm, partial(family.instance, instance))
        return SolvedTarget(instance=instance, result=space.solve(problem))
    except Exception as error:
        # The other ranks of the group may be waiting.
        if space.comm.size > 1 and not getattr(error, "on_every_rank", False):
            raise
        cause = " ".join(str(error).split()) or type(error).__name__
        return FailedTarget(instance=instance, cause=cause, seconds=time.perf_counter() - started)
