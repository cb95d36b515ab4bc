"""J as a PETSc matrix whose products with dense blocks reach torch as one block call.

SLEPc multiplies a basis by the matrix through MatProduct; the three ``product...`` hooks answer it with one
call of :class:`~lsr_hpc.jacobian.operator.DistributedJacobian` per block instead of one per column.

SLEPc's TSQR hangs on a rank that owns no rows, so such a rank owns one row of zeros here: neither singular
values, nor right vectors, nor least-squares solutions notice it.
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

    def mult(self, _mat: Any, x: Any, y: Any) -> None:
        y.array[:] = 0.0
        y.array[: self._n_rows] = self._jacobian.jv(x.array_r[np.newaxis, :])[0]

    def multTranspose(self, _mat: Any, x: Any, y: Any) -> None:
        y.array[:] = self._jacobian.jtu(x.array_r[np.newaxis, : self._n_rows])[0]

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
        if kind == "AB":
            target.zero_()
            target[: self._n_rows] = torch.from_numpy(self._jacobian.jv(source)).T
        else:
            target.copy_(torch.from_numpy(self._jacobian.jtu(source[:, : self._n_rows])).T)
        result.assemble()
        result.stateIncrease()


def jacobian_matrix(jacobian: DistributedJacobian) -> Any:
    """Wrap a distributed Jacobian as ``PETSc.Mat``.

    Args:
        jacobian: Rows of this rank and the communicator.

    Returns:
        A MATPYTHON of global size (N + empty ranks, P). Destroy it collectively.

    Raises:
        JobError: If there are fewer parameters than MPI ranks.

    Collective: all ranks of ``jacobian.comm``.
    """
    PETSc, _ = libraries()
    lo, hi = jacobian.my_parameters
    n_parameters = jacobian.local.n_parameters
    if n_parameters < jacobian.comm.size:
        raise JobError(
            f"the model has {n_parameters} trainable parameters for {jacobian.comm.size} MPI ranks: "
            f"start at most {n_parameters} ranks"
        )
    mat = PETSc.Mat().createPython(
        ((padded_rows(jacobian.local.n_rows), None), (hi - lo, n_parameters)),
        _JacobianContext(jacobian),
        comm=jacobian.comm,
    )
    mat.setUp()
    return mat
