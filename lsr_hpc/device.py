"""Which device an MPI rank computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lsr_hpc.errors import EnvironmentProblem

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["choose_device"]


def choose_device(comm: MPI.Comm, wanted: str) -> torch.device:
    """Map this rank to a local GPU, or to the CPU.

    Args:
        comm: Communicator.
        wanted: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Returns:
        ``cuda:i`` with i = local rank modulo local GPUs, or ``cpu``.

    Raises:
        EnvironmentProblem: If ``"cuda"`` is asked for and a rank sees no GPU; on every rank.

    Collective: one split by node where a GPU may be used.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and min(comm.allgather(count)) == 0:
        raise EnvironmentProblem(
            'compute.device = "cuda", but torch sees no GPU on at least one rank: run `lsr-hpc doctor`',
            on_every_rank=True,
        )
    if wanted == "auto" and min(comm.allgather(count)) == 0:
        return torch.device("cpu")
    device = torch.device("cuda", _local_rank(comm) % count)
    torch.cuda.set_device(device)
    return device


def _local_rank(comm: MPI.Comm) -> int:
    if comm.size == 1:
        return 0
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    local_rank = int(node.rank)
    node.Free()
    return local_rank
