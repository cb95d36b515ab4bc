"""Right singular vectors of J from its Gram matrix J J^T: the way for few rows.

    J J^T = U S^2 U^T,   V = orth(J^T U_k S_k^-1)

With N rows a sweep over J costs 4 N P flops a column; J J^T from the factors of linear layers costs about
N^2 (in + out) of each layer once, whatever P. It knows singular values down to sqrt(eps) of the largest
only: what is below is left out here, and said. J V itself is multiplied out afterwards, in full precision.
"""

# Legend: N rows, P parameters, k wanted directions; _local = this rank's share.

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from lsr_hpc.comm import on_first
from lsr_hpc.errors import AccuracyError
from lsr_hpc.jacobian.gram import gram_rows
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.subspace.basis import Basis, check_orthonormal
from lsr_hpc.subspace.panels import Panels, open_panels

__all__ = ["dual_basis"]

Array = NDArray[np.float64]


def dual_basis(jacobian: DistributedJacobian, *, first_row: int, rank: int, panels: str = "auto") -> Basis:
    """The k dominant right singular vectors, as far as J J^T knows them.

    Args:
        jacobian: J.
        first_row: Global number of this rank's first row.
        rank: Wanted number of directions k <= min(N, P).
        panels: ``"auto"``, ``"slepc"`` or ``"torch"``: what orthonormalises them.

    Returns:
        The basis with singular values; fewer than k directions where J J^T holds no more.

    Raises:
        AccuracyError: If J J^T is not finite, or orthogonality is lost.

    Collective: J J^T to the first rank, N*k numbers back, one block product with J^T, one orthonormalisation.
    """
    comm = jacobian.comm
    rows, way = gram_rows(jacobian)
    gathered = comm.gather(rows.cpu().numpy(), root=0)
    n = rows.shape[1]

    def leading() -> tuple[Array, Array]:
        gram = np.vstack(gathered or [])
        if not np.isfinite(gram).all():
            raise AccuracyError("J J^T holds NaN or Inf: check the model's derivatives at the points")
        squares, vectors = scipy.linalg.eigh(0.5 * (gram + gram.T), subset_by_index=(n - rank, n - 1))
        squares, vectors = squares[::-1], vectors[:, ::-1]
        # Rounding of J J^T is eps * S_1^2 times a modest factor, in every eigenvalue.
        known = squares > n * np.finfo(float).eps * squares[0]
        return np.sqrt(squares[known]), np.ascontiguousarray(vectors[:, known])

    sigma, left = on_first(comm, leading)
    mine = left[first_row : first_row + jacobian.local.n_rows]
    with open_panels(panels, jacobian, 1, len(sigma), "tsqr") as room:
        room.pull((mine / sigma).T)
        room.factorise(len(sigma), is_well_conditioned=False)
        v_local, made_of = _copy(room, len(sigma)), room.name
    floor = np.sqrt(n * np.finfo(float).eps)
    detail = f"J J^T of {n} rows by {way}, {len(sigma)} of {rank} directions, in {made_of}"
    if len(sigma) < rank:
        detail += f"; singular values below {floor:.0e} of the largest are rounding in J J^T and left out"
    return Basis(v_local, sigma, check_orthonormal(comm, v_local), detail)


def _copy(room: Panels, n: int) -> Array:
    with room.fresh(n) as block:
        copied: Array = block.to("cpu", torch.float64, copy=True).numpy()
    return copied
