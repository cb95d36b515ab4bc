"""Iterative least squares by PETSc's KSP: LSQR or CGLS, on the reduced matrix J V or on the full J.

PETSc's own LSQR stopping rule changed in 3.21 and depends on the scale of the matrix, so the operator is
divided by an estimate of its largest singular value and convergence is judged by our own, scale-invariant
test ||A^T r|| <= tol ||A|| ||r||, evaluated from the iterate itself every few iterations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.comm import all_sum
from lsr_hpc.errors import AccuracyError
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.jacobian.petsc_matrix import jacobian_matrix, padded_rows
from lsr_hpc.petsc import destroying, libraries, local_panel, translated_errors

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["IterativeSolution", "solve_full", "solve_reduced"]

Array = NDArray[np.float64]
_TEST_EVERY = 10
_ROUNDING = 10 * np.finfo(float).eps
# Tests in a row without progress after which the iteration ends; ||A^T r|| itself oscillates.
_PATIENCE = 5


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


def solve_reduced(
    comm: MPI.Comm, av_local: Array, r0_local: Array, *, method: str, tolerance: float, max_iterations: int
) -> IterativeSolution:
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
    PETSc, _ = libraries()
    norms = np.sqrt(all_sum(comm, np.sum(av_local**2, axis=1)))
    norms[norms == 0] = 1.0
    n_local = av_local.shape[1]
    mat = PETSc.Mat().createDense(((padded_rows(n_local), None), (None, av_local.shape[0])), comm=comm)
    mat.setUp()
    rows = local_panel(mat).numpy()
    rows[:] = 0.0
    rows[:n_local] = (av_local / norms[:, np.newaxis]).T
    del rows
    mat.assemble()
    mat.stateIncrease()
    with destroying(mat):
        solution = _solve(mat, r0_local, method, tolerance, max_iterations)
        lo, hi = mat.getOwnershipRangeColumn()
    return replace(solution, x_local=solution.x_local / norms[lo:hi])


def solve_full(
    jacobian: DistributedJacobian, r0_local: Array, *, method: str, tolerance: float, max_iterations: int
) -> IterativeSolution:
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
    lo, hi = jacobian.my_parameters
    mat = jacobian_matrix(jacobian)
    with destroying(mat):
        solution = _solve(mat, r0_local, method, tolerance, max_iterations)
    return replace(solution, x_local=solution.x_local[: hi - lo])


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


class _Progress:
    """Our own stopping test, evaluated from the iterate itself, and the best iterate so far.

    In exact arithmetic both methods lower ||r|| monotonically; long before the gradient has met its tolerance
    ||r|| stands still to the last bit, and of iterates with equal ||r|| the one with the smaller ||A^T r|| is
    better. Once rounding has taken over, LSQR stands still and CGLS can blow up, so the iteration ends when
    several tests in a row see no progress, and the best iterate is the answer.
    """

    def __init__(self, scaled: Any, b: Any, tolerance: float, max_iterations: int) -> None:
        PETSc, _ = libraries()
        self._reasons = PETSc.KSP.ConvergedReason
        self._scaled, self._b = scaled, b
        self._tolerance, self._max_iterations = tolerance, max_iterations
        self._r, self._g = scaled.createVecLeft(), scaled.createVecRight()
        self._last, self.best = scaled.createVecRight(), scaled.createVecRight()
        self._tests_without_progress = 0
        self._smallest = np.inf
        # The iterate zero, where A^T b may vanish but for rounding.
        scaled.multTranspose(b, self._g)
        self.residual = self._b_norm = b.norm()
        self.gradient = self._g.norm() / self._b_norm
        self.status = "converged" if self._is_solved() else "running"

    def destroy(self) -> None:
        for vector in (self._r, self._g, self._last, self.best):
            vector.destroy()

    def _is_solved(self) -> bool:
        # ||A^T r|| below the rounding of A^T b cannot be told from zero, however small r is.
        rounding = _ROUNDING * self._b_norm
        return bool(self.gradient <= self._tolerance or self.gradient * self.residual <= rounding)

    def _look_at_last(self) -> None:
        """Measure the last iterate and keep it if it is the best so far."""
        self._scaled.mult(self._last, self._r)
        self._r.aypx(-1.0, self._b)
        self._scaled.multTranspose(self._r, self._g)
        residual, normal = self._r.norm(), self._g.norm()
        is_equal = abs(residual - self.residual) <= _ROUNDING * self.residual
        if normal < self.gradient * self.residual if is_equal else residual < self.residual:
            self.residual, self.gradient = residual, normal / residual if residual > 0 else 0.0
            self._last.copy(self.best)
            self._tests_without_progress = 0
        else:
            self._tests_without_progress += 1

    def __call__(self, ksp: Any, iteration: int, norm: float) -> Any:
        if not np.isfinite(norm):
            return self._reasons.DIVERGED_NANORINF
        if iteration == 0:
            return self._reasons.ITERATING
        # A copy: when the gradient is zero to the last bit, CGLS divides by it in its next step.
        ksp.buildSolution(self._last)
        is_last = iteration >= self._max_iterations
        # Few directions are exhausted between two tests, and CGLS diverges from a gradient of mere rounding:
        # look where the method itself says that it is done.
        seems_solved = norm <= max(self._tolerance * self.residual, _ROUNDING * self._b_norm)
        if seems_solved and norm <= 0.5 * self._smallest:
            self._smallest = norm
        elif iteration % _TEST_EVERY and not is_last:
            return self._reasons.ITERATING
        self._look_at_last()
        if self._is_solved():
            self.status = "converged"
            return self._reasons.CONVERGED_ATOL
        if self._tests_without_progress >= _PATIENCE:
            self.status = "stagnated"
            return self._reasons.CONVERGED_ITS
        if is_last:
            self.status = "stopped at the limit"
            return self._reasons.DIVERGED_MAX_IT
        return self._reasons.ITERATING

    def conclude(self) -> None:
        """Judge the last finite iterate where KSP ended by itself."""
        if self.status == "running":
            self._look_at_last()
            self.status = "converged" if self._is_solved() else "broke down"


def _solve(
    mat: Any, r0_local: Array, method: str, tolerance: float, max_iterations: int
) -> IterativeSolution:
    PETSc, _ = libraries()
    b, x = mat.createVecLeft(), mat.createVecRight()
    b.array[:] = 0.0
    b.array[: len(r0_local)] = -r0_local
    with destroying(b, x), translated_errors(f"KSP {method}"):
        sigma, b_norm = _largest_singular_value(mat, b), b.norm()
        if not np.isfinite(sigma + b_norm):
            raise AccuracyError(
                f"KSP {method}: J or the residual holds NaN or Inf: check the model's derivatives at "
                "the points",
                on_every_rank=True,
            )
        if sigma == 0.0 or b_norm == 0.0:
            # A^T b = 0: zero is the least-squares solution.
            return IterativeSolution(x.array_r.copy(), b_norm, 0.0, 0, True, "the gradient at zero vanishes")
        scaled = _scaled_operator(mat, 1.0 / sigma)
        progress = _Progress(scaled, b, tolerance, max_iterations)
        ksp = PETSc.KSP().create(mat.getComm())
        with destroying(ksp, progress, scaled):
            iterations = 0
            if progress.status == "running":
                ksp.setOptionsPrefix("lsr_")
                ksp.setOperators(scaled)
                ksp.setType(method)
                ksp.getPC().setType("none")
                ksp.setTolerances(rtol=0.0, atol=0.0, max_it=max_iterations)
                ksp.setFromOptions()
                # Last: where the options name another method, PETSc forgets the test.
                ksp.setConvergenceTest(progress)
                ksp.solve(b, x)
                iterations = ksp.getIterationNumber()
                progress.conclude()
            if progress.status == "broke down" and progress.residual == b_norm:
                raise AccuracyError(
                    f"KSP {method} broke down (reason {ksp.getConvergedReason()}) after {iterations} "
                    'iterations: use solver.type = "tsqr", or check the residual for extreme scales',
                    on_every_rank=True,
                )
            # The scaled operator is A / sigma, so its solution is sigma times too large.
            return IterativeSolution(
                progress.best.array_r / sigma,
                progress.residual,
                progress.gradient,
                iterations,
                progress.status == "converged",
                _in_words(progress, tolerance, iterations),
            )


def _in_words(progress: _Progress, tolerance: float, iterations: int) -> str:
    measured = f"{progress.status}: relative gradient {progress.gradient:.1e} after {iterations} iterations"
    if progress.status == "converged":
        is_rounding = progress.gradient > tolerance
        return f"converged to rounding after {iterations} iterations" if is_rounding else measured
    return (
        f"{measured}, wanted {tolerance:.1e}; raise solver.max_iterations or solver.tolerance, or use "
        'solver.type = "tsqr"'
    )


class _ScaledContext:
    def __init__(self, mat: Any, factor: float) -> None:
        self._mat, self._factor = mat, factor

    def mult(self, _mat: Any, x: Any, y: Any) -> None:
        self._mat.mult(x, y)
        y.scale(self._factor)

    def multTranspose(self, _mat: Any, x: Any, y: Any) -> None:
        self._mat.multTranspose(x, y)
        y.scale(self._factor)


def _scaled_operator(mat: Any, factor: float) -> Any:
    PETSc, _ = libraries()
    scaled = PETSc.Mat().createPython(mat.getSizes(), _ScaledContext(mat, factor), comm=mat.getComm())
    scaled.setUp()
    return scaled
