"""Iterative least squares by PETSc's KSP: LSQR or CGLS, on the reduced matrix J V or on the full J.

PETSc's own LSQR stopping rule changed in 3.21 and depends on the scale of the matrix, so the operator is
divided by an estimate of its largest singular value and convergence is judged by our own, scale-invariant
test ||A^T r|| <= tol ||A|| ||r||, evaluated from the iterate itself every few iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.errors import AccuracyError
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.jacobian.petsc_matrix import jacobian_matrix, padded_rows
from lsr_hpc.petsc import destroying, libraries, local_panel, translated_errors

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["IterativeSolution", "solve_full", "solve_reduced"]

Array = NDArray[np.float64]
_TEST_EVERY = 10


@dataclass(frozen=True)
class IterativeSolution:
    """What KSP found.

    Attributes:
        x_local: This rank's part of the solution in PETSc's even layout.
        residual: ||b - A x||.
        gradient: ||A^T r|| / (||A|| ||r||), the quantity under test.
        iterations: Iterations done.
        is_converged: Whether the test was met.
        reason: PETSc's converged reason in words, with advice where it is not converged.
    """

    x_local: Array
    residual: float
    gradient: float
    iterations: int
    is_converged: bool
    reason: str


def solve_reduced(comm: MPI.Comm, av_local: Array, r0_local: Array, *, method: str, tolerance: float,
                  max_iterations: int) -> IterativeSolution:
    """Minimise ||r0 + (J V) c|| with unit columns.

    Args:
        comm: Communicator.
        av_local: This rank's rows of J V, one direction per row: shape (m, N_local).
        r0_local: This rank's residual, shape (N_local,).
        method: ``"lsqr"`` or ``"cgls"``.
        tolerance: Scale-invariant gradient tolerance.
        max_iterations: Limit.

    Returns:
        The solution; ``x_local`` holds this rank's coefficients c.

    Raises:
        AccuracyError: If KSP diverged or met NaN.

    Collective: all ranks of ``comm``.
    """
    from lsr_hpc.comm import all_sum

    PETSc, _ = libraries()
    norms = np.sqrt(all_sum(comm, np.sum(av_local**2, axis=1)))
    norms[norms == 0] = 1.0
    n_local = av_local.shape[1]
    mat = PETSc.Mat().createDense(((padded_rows(n_local), None), (None, av_local.shape[0])), comm=comm)
    mat.setUp()
    rows = local_panel(mat).numpy()
    rows[:] = 0.0
    rows[:n_local] = (av_local / norms[:, np.newaxis]).T
    mat.assemble()
    mat.stateIncrease()
    with destroying(mat):
        solution = _solve(mat, r0_local, method, tolerance, max_iterations)
        lo, hi = mat.getOwnershipRangeColumn()
    return _rescaled(solution, 1.0 / norms[lo:hi])


def solve_full(jacobian: DistributedJacobian, r0_local: Array, *, method: str, tolerance: float,
               max_iterations: int) -> IterativeSolution:
    """Minimise ||r0 + J delta|| over all of parameter space, one J and one J^T column per iteration.

    Args:
        jacobian: J.
        r0_local: This rank's residual, shape (N_local,).
        method: ``"lsqr"`` or ``"cgls"``.
        tolerance: Scale-invariant gradient tolerance.
        max_iterations: Limit; reaching it is reported, not an error.

    Returns:
        The solution; ``x_local`` holds this rank's parameters of delta.

    Raises:
        AccuracyError: If KSP diverged or met NaN.

    Collective: all ranks of ``jacobian.comm``.
    """
    mat = jacobian_matrix(jacobian)
    with destroying(mat):
        return _solve(mat, r0_local, method, tolerance, max_iterations)


def _rescaled(solution: IterativeSolution, factor: Array) -> IterativeSolution:
    return IterativeSolution(solution.x_local * factor, solution.residual, solution.gradient, solution.iterations,
                             solution.is_converged, solution.reason)


def _largest_singular_value(mat: Any, b: Any) -> float:
    """Two power steps on A^T A, started from A^T b."""
    g, y = mat.createVecRight(), mat.createVecLeft()
    with destroying(g, y):
        mat.multTranspose(b, g)
        sigma = 0.0
        for _ in range(2):
            if g.norm() == 0.0:
                break
            g.normalize()
            mat.mult(g, y)
            sigma = y.norm()
            mat.multTranspose(y, g)
    return sigma


def _solve(mat: Any, r0_local: Array, method: str, tolerance: float, max_iterations: int) -> IterativeSolution:
    PETSc, _ = libraries()
    b, x, r = mat.createVecLeft(), mat.createVecRight(), mat.createVecLeft()
    g = mat.createVecRight()
    b.array[:] = 0.0
    b.array[: len(r0_local)] = -r0_local
    reasons = PETSc.KSP.ConvergedReason
    with destroying(b, x, r, g), translated_errors(f"KSP {method}"):
        sigma = _largest_singular_value(mat, b)
        b_norm = b.norm()
        if sigma == 0.0 or b_norm == 0.0:
            # A^T b = 0: zero is the least-squares solution.
            return IterativeSolution(x.array_r.copy(), b_norm, 0.0, 0, True, "the gradient at zero vanishes")
        scaled = _scaled_operator(mat, 1.0 / sigma)
        ksp = PETSc.KSP().create(mat.getComm())
        gradients = [float("inf")]

        def measure(solution: Any) -> tuple[float, float]:
            scaled.mult(solution, r)
            r.aypx(-1.0, b)
            scaled.multTranspose(r, g)
            residual = r.norm()
            return residual, g.norm() / residual if residual > 0 else 0.0

        def test(solver: Any, iteration: int, norm: float) -> Any:
            if not np.isfinite(norm):
                return reasons.DIVERGED_NANORINF
            if iteration == 0 or iteration % _TEST_EVERY:
                return reasons.DIVERGED_MAX_IT if iteration >= max_iterations else reasons.ITERATING
            residual, gradients[0] = measure(solver.buildSolution())
            if gradients[0] <= tolerance:
                return reasons.CONVERGED_ATOL_NORMAL if hasattr(reasons, "CONVERGED_ATOL_NORMAL") else 2
            if residual <= np.finfo(float).eps * b_norm:
                return reasons.CONVERGED_ATOL
            return reasons.DIVERGED_MAX_IT if iteration >= max_iterations else reasons.ITERATING

        with destroying(ksp, scaled):
            ksp.setOptionsPrefix("lsr_")
            ksp.setOperators(scaled)
            ksp.setType(method)
            ksp.getPC().setType("none")
            ksp.setTolerances(rtol=0.0, atol=0.0, max_it=max_iterations)
            ksp.setConvergenceTest(test)
            ksp.setFromOptions()
            ksp.solve(b, x)
            reason = ksp.getConvergedReason()
            iterations = ksp.getIterationNumber()
            residual, gradient = measure(x)
        if reason < 0 and reason != reasons.DIVERGED_MAX_IT:
            raise AccuracyError(f"KSP {method} broke down (reason {reason}) after {iterations} iterations: use "
                                "solver.type = \"tsqr\", or check the residual for extreme scales")
        # The scaled operator is A / sigma, so its solution is sigma times too large.
        return IterativeSolution(x.array_r / sigma, residual, gradient, iterations, reason > 0,
                                 _in_words(reason > 0, gradient, tolerance, iterations))


def _in_words(is_converged: bool, gradient: float, tolerance: float, iterations: int) -> str:
    if is_converged:
        return f"converged: relative gradient {gradient:.1e} after {iterations} iterations"
    return (f"not converged: relative gradient {gradient:.1e} > {tolerance:.1e} after {iterations} iterations; raise "
            "solver.max_iterations or solver.tolerance, or use solver.type = \"tsqr\"")


class _ScaledContext:
    def __init__(self, mat: Any, factor: float) -> None:
        self._mat, self._factor = mat, factor

    def mult(self, _mat: Any, x: Any, y: Any) -> None:
        self._mat.mult(x, y)
        y.scale(self._factor)

    def multTranspose(self, _mat: Any, x: Any, y: Any) -> None:  # noqa: N802 (the name PETSc looks up)
        self._mat.multTranspose(x, y)
        y.scale(self._factor)


def _scaled_operator(mat: Any, factor: float) -> Any:
    PETSc, _ = libraries()
    scaled = PETSc.Mat().createPython(mat.getSizes(), _ScaledContext(mat, factor), comm=mat.getComm())
    scaled.setUp()
    return scaled
