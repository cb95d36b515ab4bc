"""Dominant right singular vectors of J by SLEPc's SVD solvers.

``randomized`` (Halko, Martinsson, Tropp 2011) multiplies whole blocks: one J and one J^T block product per
iteration. ``trlanczos`` and ``cross`` work column by column and converge to the exact vectors; they are the
oracle. PETSc options with the prefix ``lsr_`` reach the solver and win (``-lsr_svd_type trlanczos``).
"""

# Legend: N rows, P parameters, k wanted rank, b = k + oversampling.

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.errors import AccuracyError
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.jacobian.petsc_matrix import jacobian_matrix
from lsr_hpc.petsc import destroying, libraries, set_initial_space, translated_errors
from lsr_hpc.sampling import gaussian_rows
from lsr_hpc.subspace.basis import Basis, check_orthonormal

__all__ = ["svd_basis"]

Array = NDArray[np.float64]
_STREAM_START = 1


def svd_basis(
    jacobian: DistributedJacobian,
    *,
    first_row: int,
    n_rows: int,
    rank: int,
    oversampling: int,
    solver: str,
    iterations: int,
    orthogonalization: str,
    seed: int,
) -> Basis:
    """Compute k dominant right singular vectors.

    Args:
        jacobian: J.
        first_row: Global number of this rank's first row.
        n_rows: Global number of rows N.
        rank: Wanted number of directions k, k + oversampling <= min(N, P).
        oversampling: Extra columns of the randomised block.
        solver: ``"randomized"``, ``"trlanczos"`` or ``"cross"``.
        iterations: Block iterations of ``randomized``; restarts allowed to the others.
        orthogonalization: ``"auto"`` or ``"tsqr"`` (both TSQR here: the block has the full spread of J's
            spectrum), or ``"cholesky_qr2"``.
        seed: Seed of the start vectors.

    Returns:
        The basis; fewer than k directions if the solver converged to fewer.

    Raises:
        AccuracyError: If no direction converged or orthogonality is lost.

    Collective: all ranks of ``jacobian.comm``.
    """
    _, SLEPc = libraries()
    lo, hi = jacobian.my_parameters
    mat = jacobian_matrix(jacobian)
    svd = SLEPc.SVD().create(jacobian.comm)
    with destroying(svd, mat), translated_errors(f"SLEPc SVD ({solver})"):
        svd.setOptionsPrefix("lsr_")
        svd.setOperator(mat)
        svd.setType(solver)
        # The options may name another solver, which then needs limits of its own kind.
        svd.setFromOptions()
        chosen = svd.getType()
        svd.setImplicitTranspose(True)
        width = rank + oversampling
        if chosen == "randomized":
            svd.setDimensions(rank, width)
            svd.setConvergenceTest(SLEPc.SVD.Conv.MAXIT)
            svd.setTolerances(1e-8, iterations)
        else:
            svd.setDimensions(rank, min(max(2 * rank, rank + 16), n_rows, jacobian.local.n_parameters))
            svd.setTolerances(1e-10, iterations)
            width = 1
        svd.setFromOptions()
        kinds = SLEPc.BV.OrthogBlockType
        kind = kinds.CHOL if orthogonalization == "cholesky_qr2" else kinds.TSQR
        for bv in svd.getBV():
            bv.setOrthogonalization(block=kind)
            # Our handle must not outlive the solver: see lsr_hpc.petsc.
            bv.destroy()
        start = _start_vectors(jacobian, mat, first_row, n_rows, width, seed)
        with destroying(*start[0], *start[1]):
            set_initial_space(svd, *start)
            svd.setUp()
        _solve(svd)
        found = min(svd.getConverged(), rank)
        if found == 0:
            raise AccuracyError(
                f"SLEPc's {chosen} solver converged to no singular vector in {iterations} iterations: "
                'raise subspace.iterations or use subspace.svd = "randomized"'
            )
        v_local, sigma = _collect(svd, mat, found, hi - lo)
        done = svd.getIterationNumber()
    return Basis(
        v_local,
        sigma,
        check_orthonormal(jacobian.comm, v_local),
        f"SLEPc SVD {chosen}, {done} iterations, {found} of {rank} directions",
    )


def _solve(svd: Any) -> None:
    PETSc, _ = libraries()
    try:
        svd.solve()
    except (PETSc.Error, SystemError) as error:
        if svd.getType() == "cross" and "Negative eigenvalue" in str(error.__cause__ or error):
            raise AccuracyError(
                "SLEPc's cross solver met a singular value below the rounding of J^T J, 1e-8 of the largest: "
                'use subspace.svd = "randomized" or "trlanczos", or lower subspace.rank',
                on_every_rank=True,
            ) from error
        raise


def _start_vectors(
    jacobian: DistributedJacobian, mat: Any, first_row: int, n_rows: int, width: int, seed: int
) -> tuple[list[Any], list[Any]]:
    """Gaussian start vectors that depend on (seed, global index) only.

    For fewer rows than parameters SLEPc works on the transpose and starts from the left space.

    Returns:
        Right and left start vectors; one of the lists is empty.
    """
    from_left = mat.getSize()[0] < mat.getSize()[1]
    lo, hi = (first_row, first_row + jacobian.local.n_rows) if from_left else jacobian.my_parameters
    draws = gaussian_rows(seed, _STREAM_START, lo, hi, width)
    vectors = []
    for j in range(width):
        vector = mat.createVecLeft() if from_left else mat.createVecRight()
        vector.array[: hi - lo] = draws[:, j]
        vectors.append(vector)
    return ([], vectors) if from_left else (vectors, [])


def _collect(svd: Any, mat: Any, found: int, n_parameters: int) -> tuple[Array, Array]:
    """Copy the right vectors and singular values out of the solver, largest first."""
    right = mat.createVecRight()
    v_local = np.empty((found, n_parameters))
    sigma = np.empty(found)
    with destroying(right):
        for i in range(found):
            sigma[i] = svd.getSingularTriplet(i, None, right)
            v_local[i] = right.array_r[:n_parameters]
    return v_local, sigma
