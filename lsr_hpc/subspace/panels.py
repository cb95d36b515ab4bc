"""Panels of a growing space: directions over the parameters, a fresh block, and J between them.

Two kinds behind one interface. On CPU ranks the panels are SLEPc basis vectors, and J multiplies them as a
PETSc matrix (:mod:`lsr_hpc.subspace.slepc_panels`). On GPUs they are torch tensors that stay on the device;
with one process these need neither MPI nor PETSc. Either way the Gram-Schmidt products between a fresh block
and all directions run in torch on the memory of the panels: they read the whole space, and cost half as
much as in the BLAS that distributions build PETSc with.
"""

# Legend: P parameters, b columns of a block, m directions; _local = this rank's share.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.comm import all_sum, on_first
from lsr_hpc.errors import EnvironmentProblem
from lsr_hpc.jacobian.operator import DistributedJacobian

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Panels", "TorchPanels", "open_panels", "project_out"]

Array = NDArray[np.float64]


class Panels(Protocol):
    """Room for ``rank`` directions and one block of ``width``; blocks are one vector per row.

    Attributes:
        name: What they are made of, in words.
    """

    name: str

    def directions(self, columns: slice) -> AbstractContextManager[Tensor]:
        """Some directions, shape (c, P_local), rows contiguous; shares memory."""

    def fresh(self, n: int) -> AbstractContextManager[Tensor]:
        """The first n vectors of the block, shape (n, P_local), rows contiguous; shares memory."""

    def pull(self, source: Array) -> None:
        """Fill the block with ``J^T`` times rows of the residual's kind, shape (n, N_local); collective."""

    def factorise(self, n: int, *, is_well_conditioned: bool) -> Array:
        """Orthonormalise the first n vectors of the block among themselves.

        Args:
            n: Number of vectors, at most the global number of parameters.
            is_well_conditioned: Whether their condition is far below 1e7, so that the cheap way will do.

        Returns:
            R, shape (n, n), upper triangular, equal on all ranks: the block before is R^T times the block.
        """

    def push(self, columns: slice) -> Array:
        """``J`` times some directions, shape (c, N_local); collective."""


def open_panels(
    kind: str, jacobian: DistributedJacobian, rank: int, width: int, orthogonalization: str
) -> AbstractContextManager[Panels]:
    """Make room for a space.

    Args:
        kind: ``"slepc"`` or ``"torch"``; ``"auto"`` takes torch on a GPU and where there is no MPI.
        jacobian: J.
        rank: Most directions.
        width: Most columns of a block.
        orthogonalization: ``"auto"``, ``"tsqr"`` or ``"cholesky_qr2"``, of the block among itself.

    Returns:
        The panels; what they hold is given back at the end of the block.

    Raises:
        EnvironmentProblem: If SLEPc's are asked for on a GPU or without MPI.

    Collective: all ranks of ``jacobian.comm``.
    """
    has_mpi = hasattr(jacobian.comm, "Split")
    is_on_gpu = jacobian.device.type != "cpu"
    if kind == "slepc" and (is_on_gpu or not has_mpi):
        why = "J is on a GPU and PETSc takes host memory only" if is_on_gpu else "mpi4py is not installed"
        raise EnvironmentProblem(
            f'compute.panels = "slepc" is not possible: {why}; use "auto"', on_every_rank=True
        )
    if kind == "torch" or is_on_gpu or not has_mpi:
        return nullcontext(TorchPanels(jacobian, rank, width, orthogonalization))
    from lsr_hpc.subspace.slepc_panels import slepc_panels

    return slepc_panels(jacobian, rank, width, orthogonalization)


def project_out(comm: MPI.Comm, directions: Tensor, block: Tensor) -> Array:
    """Remove from a block what lies along orthonormal directions; one pass of block Gram-Schmidt.

    Args:
        comm: Communicator.
        directions: This rank's share, shape (m, P_local).
        block: This rank's share, shape (b, P_local); changed in place.

    Returns:
        The components removed, shape (b, m), equal on all ranks.

    Collective: one sum of b*m numbers.
    """
    along = all_sum(comm, (block @ directions.T).cpu().numpy())
    block.addmm_(torch.from_numpy(along).to(block), directions, alpha=-1.0)
    return along


class TorchPanels:
    """Panels as tensors on the device of J.

    Args:
        jacobian: J.
        rank: Most directions.
        width: Most columns of a block.
        orthogonalization: ``"auto"``, ``"tsqr"`` or ``"cholesky_qr2"``.
    """

    def __init__(self, jacobian: DistributedJacobian, rank: int, width: int, orthogonalization: str) -> None:
        self._jacobian = jacobian
        self._orthogonalization = orthogonalization
        lo, hi = jacobian.my_parameters
        self._directions = torch.zeros(rank, hi - lo, dtype=torch.float64, device=jacobian.device)
        self._fresh = self._directions.new_zeros(width, hi - lo)
        self.name = f"torch tensors on {jacobian.device}"

    @contextmanager
    def directions(self, columns: slice) -> Iterator[Tensor]:
        """See :class:`Panels`."""
        yield self._directions[columns]

    @contextmanager
    def fresh(self, n: int) -> Iterator[Tensor]:
        """See :class:`Panels`."""
        yield self._fresh[:n]

    def pull(self, source: Array) -> None:
        """See :class:`Panels`."""
        self._fresh[: len(source)] = self._jacobian.pull(torch.from_numpy(np.ascontiguousarray(source)))

    def push(self, columns: slice) -> Array:
        """See :class:`Panels`."""
        return self._jacobian.push(self._directions[columns]).cpu().numpy()

    def factorise(self, n: int, *, is_well_conditioned: bool) -> Array:
        """See :class:`Panels`: TSQR with Q, or a Cholesky QR."""
        comm, block = self._jacobian.comm, self._fresh[:n]
        way = self._orthogonalization
        if way == "cholesky_qr2" or (way == "auto" and is_well_conditioned):
            return _cholesky_qr(comm, block)
        return _tsqr_with_q(comm, block)


def _cholesky_qr(comm: MPI.Comm, block: Tensor) -> Array:
    """QR by the Cholesky factor of the Gram matrix, in place.

    Returns:
        R, shape (b, b), equal on all ranks.

    Collective: one sum of b*b numbers.
    """
    gram = all_sum(comm, (block @ block.T).cpu().numpy())
    r: Array = on_first(comm, lambda: np.linalg.cholesky(gram).T)
    block.copy_(torch.linalg.solve_triangular(torch.from_numpy(r).to(block).T, block, upper=False))
    return r


def _tsqr_with_q(comm: MPI.Comm, block: Tensor) -> Array:
    """QR by one local QR and one of the stacked factors, in place (Demmel et al. 2012, one level).

    Returns:
        R, shape (b, b), equal on all ranks.

    Collective: b*b numbers of every rank to the first, as many back, and R to all.
    """
    b = len(block)
    q, r_local = torch.linalg.qr(block.T)
    factors = comm.allgather(r_local.cpu().numpy())
    rows = [len(factor) for factor in factors]
    q_small, r = on_first(comm, lambda: np.linalg.qr(np.vstack(factors)))
    sign = np.where(np.diag(r) < 0, -1.0, 1.0)
    first = sum(rows[: comm.rank])
    turn = q_small[first : first + rows[comm.rank]] * sign
    block.copy_((q @ torch.from_numpy(turn).to(block)).T if rows[comm.rank] else block)
    return np.asarray(sign[:, np.newaxis] * r).reshape(b, b)
