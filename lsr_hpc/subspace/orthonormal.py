"""Orthonormalisation of distributed panels through SLEPc basis vectors (BV).

TSQR is stable at any condition; Cholesky QR done twice costs a third and is as orthonormal up to a
condition of about 1e7 (Yamamoto et al. 2015). ``auto`` measures the condition from the Gram matrix, which a
Cholesky QR needs anyway, and takes the cheap one only well inside its range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.comm import all_sum, on_first
from lsr_hpc.jacobian.petsc_matrix import padded_rows
from lsr_hpc.petsc import destroying, libraries, local_panel, translated_errors

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["orthonormalise"]

Array = NDArray[np.float64]
# lambda_min / lambda_max of the Gram matrix above which CholeskyQR2 is used: condition of the panel < 1e6.
_SAFE_GRAM_RATIO = 1e-12


def orthonormalise(comm: MPI.Comm, panel_local: Array, method: str = "auto") -> tuple[Array, Array]:
    """QR factorisation of a tall panel whose rows are distributed.

    Args:
        comm: Communicator.
        panel_local: This rank's rows of the b vectors, stored one vector per row: shape (b, n_local), where
            n_local may be 0 and b is at most the global n.
        method: ``"tsqr"``, ``"cholesky_qr2"`` or ``"auto"``.

    Returns:
        Q in the layout of the panel, and R of shape (b, b), equal on all ranks, with panel^T = Q^T R.

    Collective: all ranks; TSQR exchanges about log2(p) messages of b*b numbers, CholeskyQR2 sums b*b twice.
    """
    PETSc, SLEPc = libraries()
    b, n_local = panel_local.shape
    if method == "auto":
        gram = all_sum(comm, panel_local @ panel_local.T)
        eigenvalues = on_first(comm, lambda: np.linalg.eigvalsh(gram))
        method = "cholesky_qr2" if eigenvalues[0] > _SAFE_GRAM_RATIO * eigenvalues[-1] else "tsqr"
    kinds = SLEPc.BV.OrthogBlockType
    rounds = [kinds.CHOL, kinds.CHOL] if method == "cholesky_qr2" else [kinds.TSQR]

    n_global = int(all_sum(comm, np.array([float(padded_rows(n_local))]))[0])
    basis = SLEPc.BV().create(comm=comm)
    factor = PETSc.Mat().createDense((b, b), comm=PETSc.COMM_SELF)
    factor.setUp()
    total = np.eye(b)
    with destroying(basis, factor), translated_errors("orthonormalisation"):
        basis.setSizes((padded_rows(n_local), n_global), b)
        basis.setOptionsPrefix("lsr_")
        basis.setFromOptions()
        view = basis.getMat()
        columns = local_panel(view).numpy()
        columns[:] = 0.0
        columns[:n_local] = panel_local.T
        del columns
        basis.restoreMat(view)
        for kind in rounds:
            basis.setOrthogonalization(block=kind)
            basis.orthogonalize(factor)
            total = np.triu(factor.getDenseArray()) @ total
        view = basis.getMat()
        # A copy: the view dies with the basis.
        q_local = local_panel(view).numpy()[:n_local].T.copy()
        basis.restoreMat(view)
    return q_local, total
