"""How many threads a rank may use. Imports no numerical library: those read the limit when they load."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["local_threads"]


def local_threads(comm: MPI.Comm) -> int:
    """Threads that this rank may use: its share of the cores of its node.

    Args:
        comm: Communicator.

    Returns:
        At least 1. ``OMP_NUM_THREADS`` wins where it is set; ranks bound to cores of their own use those.

    Collective: one split by node and one allgather on it.
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    if comm.size == 1:
        return len(os.sched_getaffinity(0))
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    affinities = node.allgather(sorted(os.sched_getaffinity(0)))
    mine = affinities[node.rank]
    sharers = sum(1 for a in affinities if set(a) & set(mine))
    node.Free()
    return max(1, len(mine) // sharers)
