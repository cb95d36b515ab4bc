"""The protocol every representation of the Jacobian follows, and its distribution over MPI ranks.

Blocks of b vectors are stored one vector per row: V has shape (b, P), U has shape (b, N_local).
"""

# Legend: N rows, P parameters, b block width; _local = this rank's rows or its slice of the parameters.

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.comm import even_ranges
from lsr_hpc.events import emit
from lsr_hpc.exchange import Exchange, HostExchange

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["DistributedJacobian", "JacobianOperator", "ProductCounter"]

Array = NDArray[np.float64]


class JacobianOperator(Protocol):
    """Block products with this rank's rows of J, in the precision of the block. No method communicates."""

    @property
    def n_rows(self) -> int:
        """Local number of rows, may be 0."""

    @property
    def n_parameters(self) -> int:
        """Number of unknowns P."""

    def jv(self, v: Tensor) -> Tensor:
        """``J V`` for V of shape (b, P); returns (b, N_local) in V's dtype, float64 or float32."""

    def jtu(self, u: Tensor) -> Tensor:
        """``J^T U`` over the local rows for U of shape (b, N_local); returns (b, P) in U's dtype."""


@dataclass
class ProductCounter:
    """How often J was applied: block calls, columns, and seconds inside them."""

    jv_calls: int = 0
    jv_columns: int = 0
    jtu_calls: int = 0
    jtu_columns: int = 0
    seconds: float = 0.0


@dataclass
class DistributedJacobian:
    """J with rows over the ranks, and parameter-space vectors cut evenly over the ranks.

    Attributes:
        comm: Communicator; every product is collective over it.
        local: This rank's rows.
        columns_per_chunk: Vectors gathered and multiplied at once; bounds the replicated memory. Equal on
            all ranks.
        counter: Products done so far.
        n_rows_global: Rows over all ranks, for progress alone; 0 if nobody asks.
        is_held_out: Whether they are held-out rows.
        exchange: How blocks travel; None goes through the host.
        jv_dtype: Precision of products with J; blocks and results are float64 all the same.
        jtu_dtype: Precision of products with J^T on each rank; the sum over the ranks is in float64.
        device: Where the rows live.
    """

    comm: MPI.Comm
    local: JacobianOperator
    columns_per_chunk: int
    counter: ProductCounter = field(default_factory=ProductCounter)
    n_rows_global: int = 0
    is_held_out: bool = False
    exchange: Exchange | None = None
    jv_dtype: torch.dtype = torch.float64
    jtu_dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)

    def __post_init__(self) -> None:
        """Fix the slices of parameter space."""
        self.parameter_ranges = even_ranges(self.local.n_parameters, self.comm.size)
        self._exchange = self.exchange or HostExchange(self.comm)

    @property
    def my_parameters(self) -> tuple[int, int]:
        """This rank's slice of the P parameters."""
        return self.parameter_ranges[self.comm.rank]

    def in_precision(
        self, *, jv: torch.dtype | None = None, jtu: torch.dtype | None = None
    ) -> DistributedJacobian:
        """The same rows and the same counter, multiplied in other precisions.

        Args:
            jv: Of products with J; None leaves it.
            jtu: Of products with J^T; None leaves it.

        Returns:
            The Jacobian.
        """
        return replace(self, jv_dtype=jv or self.jv_dtype, jtu_dtype=jtu or self.jtu_dtype)

    def push(self, v_local: Tensor) -> Tensor:
        """``J V`` for a distributed block.

        Args:
            v_local: This rank's parameters of every vector, shape (b, P_local), float64.

        Returns:
            This rank's rows, shape (b, N_local), on the device of the rows.

        Collective: one exchange of columns_per_chunk * P * 8 bytes per chunk.
        """
        started = time.perf_counter()
        v_local = v_local.to(self.device)
        out = v_local.new_empty(len(v_local), self.local.n_rows)
        for lo in range(0, len(v_local), self.columns_per_chunk):
            chunk = slice(lo, lo + self.columns_per_chunk)
            whole = self._exchange.gather(v_local[chunk], self.parameter_ranges)
            out[chunk] = self.local.jv(whole.to(self.jv_dtype))
        self._count("jv", len(v_local), started)
        return out

    def pull(self, u_local: Tensor) -> Tensor:
        """``J^T U`` for a distributed block.

        Args:
            u_local: This rank's rows of every vector, shape (b, N_local), float64.

        Returns:
            This rank's parameters of every result, shape (b, P_local), on the device of the rows.

        Collective: one exchange of columns_per_chunk * P * 8 bytes per chunk.
        """
        started = time.perf_counter()
        u_local = u_local.to(self.device)
        lo_p, hi_p = self.my_parameters
        out = u_local.new_empty(len(u_local), hi_p - lo_p)
        for lo in range(0, len(u_local), self.columns_per_chunk):
            chunk = slice(lo, lo + self.columns_per_chunk)
            partial = self.local.jtu(u_local[chunk].to(self.jtu_dtype))
            out[chunk] = self._exchange.reduce(partial.to(torch.float64), self.parameter_ranges)
        self._count("jtu", len(u_local), started)
        return out

    def jv(self, v_local: Array) -> Array:
        """:meth:`push` for arrays in host memory."""
        return self.push(_as_torch(v_local)).cpu().numpy()

    def jtu(self, u_local: Array) -> Array:
        """:meth:`pull` for arrays in host memory."""
        return self.pull(_as_torch(u_local)).cpu().numpy()

    def _count(self, product: str, columns: int, started: float) -> None:
        counter = self.counter
        setattr(counter, f"{product}_calls", getattr(counter, f"{product}_calls") + 1)
        setattr(counter, f"{product}_columns", getattr(counter, f"{product}_columns") + columns)
        counter.seconds += time.perf_counter() - started
        emit("product", columns=columns, rows=self.n_rows_global, is_held_out=self.is_held_out)


def _as_torch(panel: Array) -> Tensor:
    """Share memory with torch, which needs it contiguous and writable (PETSc lends read-only views)."""
    return torch.from_numpy(np.require(panel, requirements=["C", "W"]))
