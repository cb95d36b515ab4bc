"""How blocks of parameter vectors travel between MPI ranks: through host memory, CUDA-aware MPI, or NCCL.

A block is (b, n), cut along n. Ranks on CPUs share memory with MPI and have nothing to choose. Between GPUs
``"nccl"`` needs one GPU per rank, ``"mpi"`` a CUDA-aware MPI; both keep the block on the device. ``"host"``
always works. ``"auto"`` takes the first of NCCL, MPI and host that gives the right answer in a trial.
"""

# Legend: b vectors, n their length, p ranks.

from __future__ import annotations

import atexit
import ctypes
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.comm import agree, gather_panel, reduce_panel
from lsr_hpc.errors import EnvironmentProblem, LsrError

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Exchange", "HostExchange", "MpiDeviceExchange", "TorchExchange", "open_exchange"]

log = logging.getLogger(__name__)

Ranges = list[tuple[int, int]]
_TRIAL_LENGTH = 257
_PATIENCE = timedelta(minutes=10)


class Exchange(Protocol):
    """Blocks given to all ranks, and sums of blocks cut over the ranks."""

    name: str

    def gather(self, part: Tensor, ranges: Ranges) -> Tensor:
        """The whole block (b, n) on every rank, from this rank's columns; collective."""

    def reduce(self, partial: Tensor, ranges: Ranges) -> Tensor:
        """This rank's columns of the sum of all ranks' blocks (b, n); collective."""


class HostExchange:
    """Blocks go through the memory of the host, where CPU ranks have them anyway.

    Args:
        comm: Communicator.
    """

    name = "host"

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm

    def gather(self, part: Tensor, ranges: Ranges) -> Tensor:
        """See :class:`Exchange`; one allgatherv of b*n*8 bytes."""
        if self._comm.size == 1:
            return part
        return _as_torch(gather_panel(self._comm, part.cpu().numpy(), ranges)).to(part.device)

    def reduce(self, partial: Tensor, ranges: Ranges) -> Tensor:
        """See :class:`Exchange`; one reduce_scatter of b*n*8 bytes."""
        if self._comm.size == 1:
            return partial
        return _as_torch(reduce_panel(self._comm, partial.cpu().numpy(), ranges)).to(partial.device)


class MpiDeviceExchange:
    """MPI reads and writes the memory of the GPUs.

    Args:
        comm: Communicator of a CUDA-aware MPI.
    """

    name = "mpi"

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm

    def gather(self, part: Tensor, ranges: Ranges) -> Tensor:
        """See :class:`Exchange`; one allgatherv of b*n*8 bytes."""
        b, n = len(part), ranges[-1][1]
        received = part.new_empty(b * n)
        # Of its own, since mpi4py takes no strides of more than 1, not even along one number.
        sent = part.new_empty(part.numel())
        sent.view(part.shape).copy_(part)
        # MPI knows nothing of CUDA's streams.
        _synchronise(part)
        self._comm.Allgatherv(sent, [received, [b * (hi - lo) for lo, hi in ranges]])
        return torch.cat([received[b * lo : b * hi].view(b, hi - lo) for lo, hi in ranges], dim=1)

    def reduce(self, partial: Tensor, ranges: Ranges) -> Tensor:
        """See :class:`Exchange`; one reduce_scatter of b*n*8 bytes."""
        b = len(partial)
        sent = torch.cat([partial[:, lo:hi].reshape(-1) for lo, hi in ranges])
        lo, hi = ranges[self._comm.rank]
        received = partial.new_empty(b * (hi - lo))
        _synchronise(partial)
        self._comm.Reduce_scatter(sent, received, [b * (h - a) for a, h in ranges])
        return received.view(b, hi - lo)


class TorchExchange:
    """Collectives of torch.distributed: NCCL between GPUs, Gloo between CPUs.

    Args:
        comm: Communicator whose ranks meet.
        backend: ``"nccl"`` or ``"gloo"``.

    Raises:
        EnvironmentProblem: If torch.distributed is in use for something else in this process.

    Collective: all ranks of ``comm``.
    """

    def __init__(self, comm: MPI.Comm, backend: str) -> None:
        from torch import distributed

        self.name = backend
        self._comm = comm
        self._distributed: Any = distributed
        if distributed.is_initialized():
            raise EnvironmentProblem(
                'torch.distributed is in use already: set compute.exchange = "host"', on_every_rank=True
            )
        # The first rank listens at a port of the system's choice; the others are told by MPI.
        meet = partial(self._distributed.TCPStore, world_size=comm.size, timeout=_PATIENCE)
        store = None
        if comm.rank == 0:
            store = meet(socket.gethostname(), 0, is_master=True, wait_for_workers=False)
        host, port = comm.bcast((socket.gethostname(), store.port) if store is not None else None)
        distributed.init_process_group(
            backend,
            store=store or meet(host, port, is_master=False),
            rank=comm.rank,
            world_size=comm.size,
            timeout=_PATIENCE,
        )
        # Its threads let go of tensors; once the interpreter is coming down that ends the process.
        atexit.register(self._leave)

    def _leave(self) -> None:
        if self._distributed.is_initialized():
            self._distributed.destroy_process_group()

    def gather(self, part: Tensor, ranges: Ranges) -> Tensor:
        """See :class:`Exchange`; one all-gather, the parts padded to the longest."""
        longest = max(hi - lo for lo, hi in ranges)
        padded = part.new_zeros(len(part), longest)
        padded[:, : part.shape[1]] = part
        parts = [torch.empty_like(padded) for _ in ranges]
        self._distributed.all_gather(parts, padded)
        return torch.cat([p[:, : hi - lo] for p, (lo, hi) in zip(parts, ranges, strict=True)], dim=1)

    def reduce(self, partial: Tensor, ranges: Ranges) -> Tensor:
        """See :class:`Exchange`; one reduce-scatter (Gloo: one all-reduce), the parts padded."""
        lo, hi = ranges[self._comm.rank]
        if self.name == "gloo":
            total = partial.clone()
            self._distributed.all_reduce(total)
            return total[:, lo:hi].contiguous()
        longest = max(h - a for a, h in ranges)
        padded = partial.new_zeros(len(ranges), len(partial), longest)
        for target, (a, h) in zip(padded, ranges, strict=True):
            target[:, : h - a] = partial[:, a:h]
        received = torch.empty_like(padded[0])
        self._distributed.reduce_scatter_tensor(received, padded)
        return received[:, : hi - lo].contiguous()


# One process group per process, whatever is refined in it.
_OPENED: dict[str, TorchExchange] = {}


def open_exchange(comm: MPI.Comm, device: torch.device, wanted: str) -> Exchange:
    """Choose how blocks travel.

    Args:
        comm: Communicator.
        device: This rank's device; of the same kind on all ranks.
        wanted: ``"auto"``, ``"host"``, ``"mpi"`` or ``"nccl"``.

    Returns:
        The exchange, of the same kind on all ranks.

    Raises:
        EnvironmentProblem: If the one asked for gives no answer, or a wrong one; on every rank.

    Collective: one trial of each that is considered.
    """
    host = HostExchange(comm)
    if wanted == "host" or comm.size == 1 or device.type == "cpu":
        return host
    makers: dict[str, Callable[[], Exchange]] = {
        "nccl": lambda: _nccl(comm, device),
        "mpi": lambda: _device_mpi(comm),
    }
    for name, make in makers.items():
        if wanted not in {"auto", name}:
            continue
        try:
            exchange = make()
            agree(comm, lambda exchange=exchange: _try_out(exchange, comm, device))  # type: ignore[misc]
        except LsrError as error:
            if wanted == name:
                raise EnvironmentProblem(
                    f'compute.exchange = "{name}" does not work here: {error}; use "auto"', on_every_rank=True
                ) from error
            if comm.rank == 0:
                log.info("blocks do not travel by %s: %s", name, error)
        else:
            return exchange
    return host


def _nccl(comm: MPI.Comm, device: torch.device) -> Exchange:
    from torch import distributed

    node = agree(comm, socket.gethostname)
    places = comm.allgather((node, device.index))
    if len(set(places)) < comm.size:
        raise EnvironmentProblem("ranks share a GPU, which NCCL does not allow", on_every_rank=True)
    if not all(comm.allgather(distributed.is_available() and distributed.is_nccl_available())):
        raise EnvironmentProblem("this build of torch has no NCCL", on_every_rank=True)
    if "nccl" not in _OPENED:
        _OPENED["nccl"] = TorchExchange(comm, "nccl")
    return _OPENED["nccl"]


def _device_mpi(comm: MPI.Comm) -> Exchange:
    # An MPI that is not CUDA-aware dies of a segmentation fault when it is given such memory: ask first.
    if not all(comm.allgather(_is_cuda_aware())):
        raise EnvironmentProblem("MPI does not say that it is CUDA-aware", on_every_rank=True)
    return MpiDeviceExchange(comm)


def _is_cuda_aware() -> bool:
    """What Open MPI answers, or MPICH's users have to say by MPICH_GPU_SUPPORT_ENABLED."""
    import os

    with suppress(AttributeError, OSError):
        return bool(ctypes.CDLL(None).MPIX_Query_cuda_support())
    return os.environ.get("MPICH_GPU_SUPPORT_ENABLED") == "1"


def _try_out(exchange: Exchange, comm: MPI.Comm, device: torch.device) -> None:
    """Exchange numbers that are known."""
    n, rank, size = _TRIAL_LENGTH, comm.rank, comm.size
    edges = np.linspace(0, n, size + 1).astype(int).tolist()
    ranges = list(pairwise(edges))
    whole = torch.arange(2.0 * n, dtype=torch.float64, device=device).view(2, n)
    lo, hi = ranges[rank]
    gathered = exchange.gather(whole[:, lo:hi].contiguous(), ranges)
    summed = exchange.reduce(whole * (rank + 1), ranges)
    right = torch.equal(gathered, whole) and torch.equal(summed, whole[:, lo:hi] * (size * (size + 1) / 2))
    if not right:
        raise EnvironmentProblem("a trial gave wrong numbers")


def _synchronise(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _as_torch(panel: np.ndarray[Any, np.dtype[np.float64]]) -> Tensor:
    return torch.from_numpy(np.require(panel, requirements=["C", "W"]))
