"""A communicator that counts what the product's own communication patterns move.

It is handed to the product in place of the real one. Counted are the calls that :mod:`lsr_hpc` makes itself,
not those inside PETSc and SLEPc. A rank's share is what it receives from other ranks, every piece directly
from its owner; an MPI library may forward pieces over other ranks, which changes the messages.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Traffic", "counting"]


@dataclass
class Traffic:
    """What one rank received, by phase.

    Attributes:
        phase: Phase that is counted now.
        received_bytes: Bytes by phase.
        messages: Messages by phase.
    """

    phase: str = ""
    received_bytes: dict[str, int] = field(default_factory=dict)
    messages: dict[str, int] = field(default_factory=dict)

    def add(self, n_bytes: int, messages: int) -> None:
        """Count messages of the present phase.

        Args:
            n_bytes: Bytes received.
            messages: Messages they came in.
        """
        self.received_bytes[self.phase] = self.received_bytes.get(self.phase, 0) + n_bytes
        self.messages[self.phase] = self.messages.get(self.phase, 0) + messages


def counting(comm: Any) -> tuple[Any, Traffic]:
    """Wrap a communicator.

    Args:
        comm: An mpi4py intracommunicator.

    Returns:
        A communicator over the same ranks, which mpi4py and petsc4py accept as one, and its counts.
    """
    from mpi4py import MPI

    traffic = Traffic()

    class CountingComm(MPI.Intracomm):
        # petsc4py knows a communicator by the module of its class.
        __module__ = "mpi4py.MPI"

        def Allgatherv(self, sendbuf: Any, recvbuf: Any) -> None:
            super().Allgatherv(sendbuf, recvbuf)
            traffic.add(recvbuf[0].nbytes - sendbuf.nbytes, self.size - 1)

        def Reduce_scatter(
            self, sendbuf: Any, recvbuf: Any, recvcounts: Any = None, op: Any = MPI.SUM
        ) -> None:
            super().Reduce_scatter(sendbuf, recvbuf, recvcounts, op)
            traffic.add(recvbuf.nbytes * (self.size - 1), self.size - 1)

        def Reduce(self, sendbuf: Any, recvbuf: Any, op: Any = MPI.SUM, root: int = 0) -> None:
            super().Reduce(sendbuf, recvbuf, op, root)
            if self.rank == root:
                traffic.add(sendbuf.nbytes * (self.size - 1), self.size - 1)

        def Bcast(self, buf: Any, root: int = 0) -> None:
            super().Bcast(buf, root=root)
            if self.rank != root:
                traffic.add(buf.nbytes, 1)

        def recv(self, *args: Any, **kwargs: Any) -> Any:
            value = super().recv(*args, **kwargs)
            traffic.add(len(pickle.dumps(value, -1)), 1)
            return value

        def bcast(self, obj: Any, root: int = 0) -> Any:
            value = super().bcast(obj, root=root)
            if self.rank != root:
                traffic.add(len(pickle.dumps(value, -1)), 1)
            return value

        def allgather(self, sendobj: Any) -> Any:
            values = super().allgather(sendobj)
            others = [v for i, v in enumerate(values) if i != self.rank]
            traffic.add(sum(len(pickle.dumps(v, -1)) for v in others), len(others))
            return values

    return CountingComm(comm), traffic
