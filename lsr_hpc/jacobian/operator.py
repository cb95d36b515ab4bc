"""The protocol every representation of the Jacobian follows, and its distribution over MPI ranks.

Blocks of b vectors are stored one vector per row: V has shape (b, P), U has shape (b, N_local).
"""

# Legend: N rows, P parameters, b block width; _local = this rank's rows or its slice of the parameters.

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.comm import even_ranges, gather_panel, reduce_panel
from lsr_hpc.events import emit

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["DistributedJacobian", "JacobianOperator", "ProductCounter"]

Array = NDArray[np.float64]


class JacobianOperator(Protocol):
    """Block products with this rank's rows of J. No method communicates."""

    @property
    def n_rows(self) -> int:
        """Local number of rows, may be 0."""

    @property
    def n_parameters(self) -> int:
        """Number of unknowns P."""

    @property
    def flops_per_column(self) -> float:
        """Flops of one column in a wide block of columns, matrix products alone."""

    def jv(self, v: Tensor) -> Tensor:
        """``J V`` for V of shape (b, P); returns (b, N_local), float64."""

    def jtu(self, u: Tensor) -> Tensor:
        """``J^T U`` over the local rows for U of shape (b, N_local); returns (b, P), float64."""


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
    """

    comm: MPI.Comm
    local: JacobianOperator
    columns_per_chunk: int
    counter: ProductCounter = field(default_factory=ProductCounter)
    n_rows_global: int = 0
    is_held_out: bool = False

    def __post_init__(self) -> None:
        """Fix the slices of parameter space."""
        self.parameter_ranges = even_ranges(self.local.n_parameters, self.comm.size)

    @property
    def my_parameters(self) -> tuple[int, int]:
        """This rank's slice of the P parameters."""
        return self.parameter_ranges[self.comm.rank]

    def jv(self, v_local: Array) -> Array:
        """``J V`` for a distributed block.

        Args:
            v_local: This rank's parameters of every vector, shape (b, P_local).

        Returns:
            This rank's rows, shape (b, N_local).

        Collective: one allgatherv of columns_per_chunk * P * 8 bytes per chunk.
        """
        started = time.perf_counter()
        out = np.empty((v_local.shape[0], self.local.n_rows))
        for lo in range(0, v_local.shape[0], self.columns_per_chunk):
            chunk = slice(lo, lo + self.columns_per_chunk)
            whole = gather_panel(self.comm, v_local[chunk], self.parameter_ranges)
            out[chunk] = self.local.jv(_as_torch(whole)).cpu().numpy()
        self._count("jv", v_local.shape[0], started)
        return out

    def jtu(self, u_local: Array) -> Array:
        """``J^T U`` for a distributed block.

        Args:
            u_local: This rank's rows of every vector, shape (b, N_local).

        Returns:
            This rank's parameters of every result, shape (b, P_local).

        Collective: one reduce_scatter of columns_per_chunk * P * 8 bytes per chunk.
        """
        started = time.perf_counter()
        lo_p, hi_p = self.my_parameters
        out = np.empty((u_local.shape[0], hi_p - lo_p))
        for lo in range(0, u_local.shape[0], self.columns_per_chunk):
            chunk = slice(lo, lo + self.columns_per_chunk)
            partial = self.local.jtu(_as_torch(u_local[chunk])).cpu().numpy()
            out[chunk] = reduce_panel(self.comm, partial, self.parameter_ranges)
        self._count("jtu", u_local.shape[0], started)
        return out

    def _count(self, product: str, columns: int, started: float) -> None:
        counter = self.counter
        setattr(counter, f"{product}_calls", getattr(counter, f"{product}_calls") + 1)
        setattr(counter, f"{product}_columns", getattr(counter, f"{product}_columns") + columns)
        counter.seconds += time.perf_counter() - started
        emit(
            "product",
            columns=columns,
            rows=self.n_rows_global,
            is_held_out=self.is_held_out,
            flops=columns * self.local.flops_per_column,
        )


def _as_torch(panel: Array) -> Tensor:
    """Share memory with torch, which needs it contiguous and writable (PETSc lends read-only views)."""
    return torch.from_numpy(np.require(panel, requirements=["C", "W"]))
