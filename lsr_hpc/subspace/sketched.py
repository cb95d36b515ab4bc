"""The published randomised range finder, and plain random directions as its control.

Source: arXiv:2601.13989, algorithm of one-shot LSR, steps 1 to 4. Cost: one J and one J^T block product of
k + p columns; the control costs none.
"""

# Legend: P parameters, N rows, b = k + p columns (wanted rank + oversampling).

from __future__ import annotations

import numpy as np

from lsr_hpc.comm import on_first
from lsr_hpc.dense_svd import dense_svd
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.sampling import gaussian_rows, uniform_rows
from lsr_hpc.subspace.basis import Basis, check_orthonormal
from lsr_hpc.subspace.orthonormal import orthonormalise

__all__ = ["random_basis", "range_finder_basis"]

_STREAM_OMEGA = 2


def range_finder_basis(
    jacobian: DistributedJacobian,
    *,
    rank: int,
    oversampling: int,
    test_matrix: str,
    orthogonalization: str,
    seed: int,
) -> Basis:
    """Right singular directions of the sketch Q^T J.

    Args:
        jacobian: J.
        rank: Wanted number of directions k.
        oversampling: Extra columns p, k + p <= min(N, P).
        test_matrix: ``"gaussian"`` or ``"uniform"`` ([0, 1), as most published scripts have it).
        orthogonalization: ``"auto"``, ``"tsqr"`` or ``"cholesky_qr2"``.
        seed: Seed of the test matrix.

    Returns:
        The basis with the sketch's singular values.

    Raises:
        AccuracyError: If orthogonality is lost.

    Collective: two block products and two distributed QRs.
    """
    comm = jacobian.comm
    lo, hi = jacobian.my_parameters
    draw = gaussian_rows if test_matrix == "gaussian" else uniform_rows
    omega = np.ascontiguousarray(draw(seed, _STREAM_OMEGA, lo, hi, rank + oversampling).T)
    # Step 1: Y = J Omega
    y_local = jacobian.jv(omega)
    del omega
    # Step 2: Q R = Y
    q_local, _ = orthonormalise(comm, y_local, orthogonalization)
    # Step 3: B = J^T Q
    b_local = jacobian.jtu(q_local)
    # Step 4: SVD of B^T. B = Q_B R_B first, so that only a b x b SVD is needed, equal on all ranks.
    qb_local, r_b = orthonormalise(comm, b_local, orthogonalization)
    left, sigma = on_first(comm, lambda: dense_svd(r_b)[:2])
    v_local = np.ascontiguousarray(left[:, :rank].T @ qb_local)
    return Basis(
        v_local,
        sigma[:rank].copy(),
        check_orthonormal(comm, v_local),
        f"randomised range finder, {test_matrix} test matrix, oversampling {oversampling}",
    )


def random_basis(
    jacobian: DistributedJacobian, *, rank: int, seed: int, orthogonalization: str = "auto"
) -> Basis:
    """Random orthonormal directions: what a basis made from J must beat.

    Args:
        jacobian: J; only its parameter layout is used.
        rank: Number of directions k <= P.
        seed: Seed of the draw.
        orthogonalization: ``"auto"``, ``"tsqr"`` or ``"cholesky_qr2"``.

    Returns:
        The basis, without singular values.

    Raises:
        AccuracyError: If orthogonality is lost.

    Collective: one distributed QR.
    """
    lo, hi = jacobian.my_parameters
    panel = np.ascontiguousarray(gaussian_rows(seed, _STREAM_OMEGA, lo, hi, rank).T)
    v_local, _ = orthonormalise(jacobian.comm, panel, orthogonalization)
    return Basis(v_local, None, check_orthonormal(jacobian.comm, v_local), "random orthonormal directions")
