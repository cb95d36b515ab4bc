"""J as a PETSc matrix whose products with dense blocks reach torch as one block call.

SLEPc multiplies a basis by the matrix through MatProduct; the three ``product...`` hooks answer it with one
call of :class:`~lsr_hpc.jacobian.operator.DistributedJacobian` per block instead of one per column.

SLEPc's TSQR hangs on a rank that owns no rows, so such a rank owns one row of zeros here: neither singular
values, nor right vectors, nor least-squares solutions notice it.

SLEPc works on the transpose if the matrix is wider than tall. Rows of zeros must not turn a wide J into a
tall matrix, or the start vectors, and with them the result, would change with the number of ranks; where
they would, columns of zeros on the last rank keep it wide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lsr_hpc.errors import JobError
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.petsc import libraries, local_panel

__all__ = ["jacobian_matrix", "padded_rows"]


def padded_rows(n_local: int) -> int:
    """Rows that a rank owns in PETSc: its residual rows, or one row of zeros.

    Args:
        n_local: The rank's residual rows.

    Returns:
        ``max(n_local, 1)``.
    """
    return max(n_local, 1)


class _JacobianContext:
    """MATPYTHON context: single-column and block products."""

    def __init__(self, jacobian: DistributedJacobian) -> None:
        self._jacobian = jacobian
        self._n_rows = jacobian.local.n_rows
        lo, hi = jacobian.my_parameters
        self._n_parameters = hi - lo

    def mult(self, _mat: Any, x: Any, y: Any) -> None:
        y.array[:] = 0.0
        y.array[: self._n_rows] = self._jacobian.jv(x.array_r[np.newaxis, : self._n_parameters])[0]

    def multTranspose(self, _mat: Any, x: Any, y: Any) -> None:
        y.array[:] = 0.0
        y.array[: self._n_parameters] = self._jacobian.jtu(x.array_r[np.newaxis, : self._n_rows])[0]

    def productSetFromOptions(self, _mat: Any, kind: str, *_: Any) -> bool:
        return kind in {"AB", "AtB"}

    def productSymbolic(self, product: Any, result: Any, kind: str, mat: Any, panel: Any, _: Any) -> None:
        # Called for every product of a basis; the result then has its type already and nothing is to do.
        if not (result.getType() or "").endswith("dense"):
            sizes = mat.getSizes()
            result.setSizes((sizes[0] if kind == "AB" else sizes[1], panel.getSizes()[1]))
            result.setType(panel.getType())
            result.setUp()
            result.assemble()

    def productNumeric(self, product: Any, result: Any, kind: str, mat: Any, panel: Any, _: Any) -> None:
        source, target = local_panel(panel).numpy().T, local_panel(result)
        target.zero_()
        if kind == "AB":
            product = self._jacobian.jv(source[:, : self._n_parameters])
        else:
            product = self._jacobian.jtu(source[:, : self._n_rows])
        target[: product.shape[1]] = torch.from_numpy(product).T
        result.assemble()
        result.stateIncrease()


def jacobian_matrix(jacobian: DistributedJacobian) -> Any:
    """Wrap a distributed Jacobian as ``PETSc.Mat``.

    Args:
        jacobian: Rows of this rank and the communicator.

    Returns:
        A MATPYTHON of global size (N + empty ranks, P), or a little wider. The first ``n_parameters`` local
        entries of a right vector are parameters. Destroy it collectively.

    Raises:
        JobError: If there are fewer parameters than MPI ranks.

    Collective: all ranks of ``jacobian.comm``.
    """
    PETSc, _ = libraries()
    comm, n_parameters = jacobian.comm, jacobian.local.n_parameters
    if n_parameters < comm.size:
        raise JobError(
            f"{n_parameters} parameters may change, too few for {comm.size} MPI ranks: "
            f"start at most {n_parameters} ranks",
            on_every_rank=True,
        )
    n_rows, n_padded = np.sum(
        comm.allgather((jacobian.local.n_rows, padded_rows(jacobian.local.n_rows))), axis=0, dtype=int
    )
    columns_of_zeros = max(0, n_padded + 1 - n_parameters) if n_rows < n_parameters else 0
    lo, hi = jacobian.my_parameters
    n_local = hi - lo + (columns_of_zeros if comm.rank == comm.size - 1 else 0)
    mat = PETSc.Mat().createPython(
        ((padded_rows(jacobian.local.n_rows), None), (n_local, None)), _JacobianContext(jacobian), comm=comm
    )
    mat.setUp()
    return mat
