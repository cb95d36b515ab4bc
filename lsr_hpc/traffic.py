"""A communicator that counts what passes through it: bytes, messages, and seconds spent waiting for others.

It is handed on in place of the real one, and changes nothing of what is computed. Counted are the calls that
lsr_hpc makes itself; PETSc and SLEPc work on communicators of their own (:mod:`lsr_hpc.petsc_log`). A rank's
share is what it receives from other ranks, every piece directly from its owner: an MPI library may forward
pieces over other ranks, which changes the messages. Importing this module does not start MPI.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Traffic", "counted", "traffic_of"]


@dataclass
class Traffic:
    """What this rank has received so far.

    Attributes:
        received_bytes: Bytes of arrays, and of other objects as they are pickled.
        messages: Messages they came in.
        wait_s: Seconds inside of MPI, most of them waiting for slower ranks.
    """

    received_bytes: int = 0
    messages: int = 0
    wait_s: float = 0.0

    def since(self, before: Traffic) -> Traffic:
        """What has been added since then."""
        return Traffic(
            self.received_bytes - before.received_bytes,
            self.messages - before.messages,
            self.wait_s - before.wait_s,
        )

    def copy(self) -> Traffic:
        """The counts as they are now."""
        return replace(self)

    def add(self, received_bytes: int, messages: int) -> None:
        """Count messages."""
        self.received_bytes += received_bytes
        self.messages += messages

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the seconds of the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wait_s += time.perf_counter() - started


def traffic_of(comm: Any) -> Traffic:
    """The counts of a communicator.

    Args:
        comm: One that :func:`counted` made, or any other.

    Returns:
        Its counts; of another one, counts that stay at zero.
    """
    found = getattr(comm, "traffic", None)
    return found if isinstance(found, Traffic) else Traffic()


def counted(comm: MPI.Comm) -> MPI.Comm:
    """Wrap a communicator.

    Args:
        comm: An mpi4py intracommunicator, or a process alone.

    Returns:
        A communicator over the same ranks, which mpi4py and petsc4py accept as one; :func:`traffic_of` tells
        its counts. Not collective: it is the same communicator to MPI. A process alone receives nothing, and
        is returned as it is.
    """
    # Here, because it brings numpy, which login nodes are spared.
    from lsr_hpc.comm import OneProcess

    if isinstance(comm, OneProcess):
        return comm
    from mpi4py import MPI

    traffic = Traffic()

    class CountedComm(MPI.Intracomm):
        # petsc4py knows a communicator by the module of its class.
        __module__ = "mpi4py.MPI"
        traffic: Traffic

        def Allgatherv(self, sendbuf: Any, recvbuf: Any) -> None:
            with traffic.waiting():
                super().Allgatherv(sendbuf, recvbuf)
            traffic.add(recvbuf[0].nbytes - sendbuf.nbytes, self.size - 1)

        def Reduce_scatter(
            self, sendbuf: Any, recvbuf: Any, recvcounts: Any = None, op: Any = MPI.SUM
        ) -> None:
            with traffic.waiting():
                super().Reduce_scatter(sendbuf, recvbuf, recvcounts, op)
            traffic.add(recvbuf.nbytes * (self.size - 1), self.size - 1)

        def Reduce(self, sendbuf: Any, recvbuf: Any, op: Any = MPI.SUM, root: int = 0) -> None:
            with traffic.waiting():
                super().Reduce(sendbuf, recvbuf, op, root)
            if self.rank == root:
                traffic.add(sendbuf.nbytes * (self.size - 1), self.size - 1)

        def Bcast(self, buf: Any, root: int = 0) -> None:
            with traffic.waiting():
                super().Bcast(buf, root=root)
            if self.rank != root:
                traffic.add(buf.nbytes, 1)

        def Barrier(self) -> None:
            with traffic.waiting():
                super().Barrier()
            traffic.add(0, self.size - 1)

        def recv(self, *args: Any, **kwargs: Any) -> Any:
            with traffic.waiting():
                value = super().recv(*args, **kwargs)
            traffic.add(_payload_bytes(value), 1)
            return value

        def bcast(self, obj: Any, root: int = 0) -> Any:
            with traffic.waiting():
                value = super().bcast(obj, root=root)
            if self.rank != root:
                traffic.add(_payload_bytes(value), 1)
            return value

        def gather(self, sendobj: Any, root: int = 0) -> Any:
            with traffic.waiting():
                values = super().gather(sendobj, root=root)
            if values is not None:
                self._add_others(values)
            return values

        def allgather(self, sendobj: Any) -> Any:
            with traffic.waiting():
                values = super().allgather(sendobj)
            self._add_others(values)
            return values

        def allreduce(self, sendobj: Any, op: Any = MPI.SUM) -> Any:
            with traffic.waiting():
                value = super().allreduce(sendobj, op=op)
            traffic.add(_payload_bytes(value) * (self.size - 1), self.size - 1)
            return value

        def _add_others(self, values: list[Any]) -> None:
            others = [value for rank, value in enumerate(values) if rank != self.rank]
            traffic.add(sum(map(_payload_bytes, others)), len(others))

    wrapped = CountedComm(comm)
    wrapped.traffic = traffic
    return wrapped


def _payload_bytes(value: Any) -> int:
    """Bytes that an object takes on its way; large arrays are not pickled once more to know it."""
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(value, tuple | list):
        return sum(map(_payload_bytes, value))
    return len(pickle.dumps(value, -1))
