"""One-shot Linearized Subspace Refinement (arXiv:2601.13989), distributed.

    r(theta0 + delta) ~ r0 + J delta,   delta = V c,   min_c ||r0 + J V c||^2 + mu^2 ||c||^2
    u_refined(x) = u(x; theta0) + [du/dtheta](x) delta

Cost with the Krylov basis, the default: k columns of J and k of J^T for V and J V together, in blocks of b
columns; five columns of J and two of J^T for the checks; one TSQR of the N x (k + 1) numbers of [J V | -r0].
"""

# Legend: N rows, P parameters, k directions, b columns of a Krylov block; _local = this rank's rows or slice
# of the parameters.

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lsr_hpc.certify import certify, check_basis
from lsr_hpc.comm import agree, all_sum
from lsr_hpc.errors import JobError
from lsr_hpc.events import emit
from lsr_hpc.phases import Phases
from lsr_hpc.plan import workload
from lsr_hpc.prepare import PreparedProblem, prepare, with_rank
from lsr_hpc.problem import Problem
from lsr_hpc.resolve import resolve
from lsr_hpc.result import RefineResult
from lsr_hpc.rows import FitAndHeld, LocalRows
from lsr_hpc.settings import RefineSettings
from lsr_hpc.snapshot import Boundary, Cut, SavedState, Snapshot, no_boundary
from lsr_hpc.solve import Solution, falls_no_more, solve_full_space, solve_in_subspace
from lsr_hpc.subspace.basis import Basis
from lsr_hpc.subspace.dual import dual_basis
from lsr_hpc.subspace.krylov import GrownSpace, krylov_basis
from lsr_hpc.subspace.sketched import random_basis, range_finder_basis
from lsr_hpc.subspace.svd import svd_basis
from lsr_hpc.world import this_process

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Refinement", "make_basis", "refine", "refine_prepared", "start_residual"]

Array = NDArray[np.float64]
# A Krylov basis is never judged to be large enough before it has this many directions.
_LEAST_JUDGED = 32


def refine(
    problem: Problem,
    comm: MPI.Comm | None = None,
    rank: int | None = None,
    settings: RefineSettings | None = None,
    boundary: Boundary = no_boundary,
) -> RefineResult:
    """Refine a trained network by one-shot LSR.

    Args:
        problem: Network, residual blocks and evaluation data, equal on all ranks.
        comm: Communicator whose ranks share the rows; None works in this process alone.
        rank: Largest number of directions, in place of ``settings.subspace.rank``.
        settings: Settings; None takes the defaults.
        boundary: Called where the work may be interrupted, between two blocks of a Krylov basis.

    Returns:
        The result, equal on all ranks; ``outcome`` says whether the refinement was accepted.

    Raises:
        JobError: If the input is wrong.
        AccuracyError: If a promise that the method rests on was broken.

    Collective: all ranks of ``comm``.

    Source: arXiv:2601.13989, one-shot LSR; the rank is chosen on held-out rows from one factorisation.
    """
    comm = this_process() if comm is None else comm
    phases = Phases()
    with phases("prepare"):
        prepared = prepare(problem, comm, with_rank(settings or RefineSettings(), rank))
    return refine_prepared(prepared, phases, boundary=boundary).result


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """A refinement with what it was made of.

    Attributes:
        result: What is told of it, equal on all ranks.
        basis: Directions V; None for the full space.
        solution: Coefficients and reduced factor, equal on all ranks.
    """

    result: RefineResult
    basis: Basis | None
    solution: Solution


def refine_prepared(
    prepared: PreparedProblem,
    phases: Phases,
    *,
    given: Array | None = None,
    boundary: Boundary = no_boundary,
    saved: SavedState | None = None,
    scan_errors: bool = True,
) -> Refinement:
    """Refine a prepared problem, in a way that can be interrupted between two blocks of a Krylov basis.

    Args:
        prepared: The problem, prepared on all ranks.
        phases: Clock of the refinement.
        given: Directions for a Krylov basis to start from, (g, P_local) with g < rank, nearly orthonormal.
        boundary: Called where the work may be interrupted.
        saved: State from a boundary of an interrupted call with the same arguments, to go on from.
        scan_errors: Whether every scanned rank is evaluated on the evaluation data, not the chosen one alone.

    Returns:
        The result, with basis and solution.

    Raises:
        JobError: If residual or Jacobian cannot be used.
        AccuracyError: If a promise that the method rests on was broken.

    Collective: all ranks.
    """
    with phases("prepare"):
        r0 = agree(prepared.comm, lambda: start_residual(prepared))
        start = _finite_norm(prepared.comm, r0)
        _require_usable_jacobian(prepared)
        _tell_work(prepared)
        emit("residual", value=start)
    if prepared.settings.solver.space == "full":
        with phases("solve"):
            basis = None
            solution = solve_full_space(prepared, r0)
    else:
        # Steps 1 to 4: directions of parameter space from the Jacobian.
        with phases("basis"):
            basis = make_basis(prepared, r0, given, boundary, saved)
        # Step 5: the reduced matrix J V, and the same on the held-out rows.
        with phases("jacobian"):
            av = basis.image or FitAndHeld(
                prepared.jacobian.jv(basis.v_local), prepared.held_jacobian.jv(basis.v_local)
            )
        # Step 6: the reduced least-squares problem, every rank from one factorisation.
        with phases("solve"):
            solution = solve_in_subspace(prepared, basis, av, r0)
            emit("residual", value=start * solution.residual_linear / (solution.residual_before or 1.0))
        # The same without the linearisation, where that is what limits the result.
        with phases("resolve"):
            solution = resolve(prepared, basis, av, r0, solution)
    # Step 7: the refined predictor is theta0 with delta; measure what it keeps of its promises.
    with phases("check"):
        checks = check_basis(prepared, basis, av) if basis is not None else {}
        result = certify(prepared, solution, r0, basis, checks, phases, scan_errors)
    return Refinement(result=result, basis=basis, solution=solution)


def start_residual(prepared: PreparedProblem) -> FitAndHeld:
    """Residual at the start, checked.

    Args:
        prepared: The prepared problem.

    Returns:
        This rank's fitted and held-out rows.

    Raises:
        JobError: If a value is NaN or Inf, naming block and point; on this rank alone.
    """

    def residual(rows: LocalRows) -> Array:
        values = rows.residual(prepared.model.field())
        rows.require_finite(values, "is")
        return np.asarray(values.cpu().numpy())

    return FitAndHeld(residual(prepared.fit), residual(prepared.held))


def _tell_work(prepared: PreparedProblem) -> None:
    load = workload(prepared.settings)
    rows = load.columns * prepared.fit_rows.n_rows + load.held_columns * prepared.held_rows.n_rows
    emit("work", sweeps=load.calls, rows=rows)


def _finite_norm(comm: MPI.Comm, r0: FitAndHeld) -> float:
    """||r0|| over all rows: the square root of the loss, unless validation data are held out."""
    with np.errstate(over="ignore"):
        squares = all_sum(comm, np.array([np.sum(r0.fit**2) + np.sum(r0.held**2)]))
    if not np.isfinite(squares[0]):
        raise JobError(
            "the square of the residual overflows float64: scale residual and data, or lower the "
            "weights of the residual blocks",
            on_every_rank=True,
        )
    return float(np.sqrt(squares[0]))


def _require_usable_jacobian(prepared: PreparedProblem) -> None:
    """Push one direction with no zero entry through every row: a NaN in J shows in its row, J = 0 in all.

    Raises:
        JobError: On every rank, naming the row's block and point, or that J vanishes.
    """
    direction = torch.linspace(1.0, 2.0, prepared.jacobian.local.n_parameters, dtype=torch.float64)[None]

    def largest_image() -> float:
        image = prepared.jacobian.local.jv(direction)[0]
        prepared.fit.require_finite(image, "has the parameter derivative")
        held_image = prepared.held_jacobian.local.jv(direction)[0]
        prepared.held.require_finite(held_image, "has the parameter derivative")
        return float(image.abs().max()) if len(image) else 0.0

    if max(prepared.comm.allgather(agree(prepared.comm, largest_image))) == 0.0:
        raise JobError(
            f"no residual of problem {prepared.problem.name!r} changes with any parameter: a dead "
            "network, or residuals that do not use their first argument",
            on_every_rank=True,
        )


def make_basis(
    prepared: PreparedProblem,
    r0: FitAndHeld,
    given: Array | None = None,
    boundary: Boundary = no_boundary,
    saved: SavedState | None = None,
) -> Basis:
    """Build the subspace that the settings ask for.

    Args:
        prepared: The prepared problem.
        r0: Residual at the start.
        given: Directions for a Krylov basis to start from; others ignore them.
        boundary: Called after every Krylov block.
        saved: State from such a boundary, to go on from.

    Returns:
        Orthonormal directions, distributed over the ranks.

    Collective: all ranks.
    """
    s = prepared.settings.subspace
    if s.basis == "svd":
        return _singular_vectors(prepared, s.rank)
    if s.basis == "randomized":
        return range_finder_basis(
            prepared.drawing_jacobian,
            rank=s.rank,
            oversampling=s.oversampling,
            test_matrix=s.test_matrix,
            orthogonalization=s.orthogonalization,
            seed=s.seed,
        )
    if s.basis == "dual":
        return dual_basis(
            prepared.jacobian,
            first_row=prepared.fit.first_row,
            rank=s.rank,
            panels=prepared.settings.compute.panels,
        )
    if s.basis == "random":
        return random_basis(
            prepared.jacobian, rank=s.rank, seed=s.seed, orthogonalization=s.orthogonalization
        )
    grown = _grown(prepared, saved)
    if s.basis == "svd+krylov" and grown is None:
        given = _singular_vectors(prepared, s.rank // 2).v_local
    return krylov_basis(
        prepared.drawing_jacobian.in_precision(jv=torch.float64),
        prepared.held_jacobian,
        r0,
        first_row=prepared.fit.first_row,
        rank=s.rank,
        width=s.block_width,
        orthogonalization=s.orthogonalization,
        panels=prepared.settings.compute.panels,
        given=given,
        is_enough=_growth_test(prepared, r0) if s.adaptive else lambda image: False,
        grown=grown,
        on_block=lambda space: boundary(lambda: _as_snapshot(prepared, space())),
    )


def _as_snapshot(prepared: PreparedProblem, space: GrownSpace) -> Snapshot:
    lo, _ = prepared.jacobian.my_parameters
    fit, held = prepared.fit, prepared.held
    return Snapshot(
        {
            "krylov.v": Cut(space.v_local, lo, prepared.jacobian.local.n_parameters),
            "krylov.fit": Cut(space.image.fit, fit.first_row, fit.n_rows_global),
            "krylov.held": Cut(space.image.held, held.first_row, held.n_rows_global),
        },
        {"krylov": {"depth": space.depth, "last": space.last}},
    )


def _grown(prepared: PreparedProblem, saved: SavedState | None) -> GrownSpace | None:
    if saved is None or "krylov" not in saved.values:
        return None

    def rows_of(name: str, rows: LocalRows) -> Array:
        return saved.part(name, rows.first_row, rows.first_row + rows.n_rows)

    return GrownSpace(
        saved.part("krylov.v", *prepared.jacobian.my_parameters),
        FitAndHeld(rows_of("krylov.fit", prepared.fit), rows_of("krylov.held", prepared.held)),
        **saved.values["krylov"],
    )


def _singular_vectors(prepared: PreparedProblem, rank: int) -> Basis:
    s = prepared.settings.subspace
    return svd_basis(
        prepared.drawing_jacobian,
        first_row=prepared.fit.first_row,
        n_rows=prepared.fit.n_rows_global,
        rank=rank,
        oversampling=s.oversampling,
        solver=s.svd,
        iterations=s.iterations,
        orthogonalization=s.orthogonalization,
        seed=s.seed,
    )


def _growth_test(prepared: PreparedProblem, r0: FitAndHeld) -> Callable[[FitAndHeld], bool]:
    """Look at the held-out residual each time the basis has grown by a quarter; each look is two TSQRs.

    Whether to look depends on the size alone, so that an interrupted growth goes on as if it had not been.

    Returns:
        What tells whether the basis is large enough.
    """
    width = prepared.settings.subspace.block_width

    def quarters(size: int) -> int:
        return math.floor(math.log(size / _LEAST_JUDGED, 1.25)) if size >= _LEAST_JUDGED else -1

    def is_enough(image: FitAndHeld) -> bool:
        size = len(image.fit)
        if quarters(size) == quarters(max(size - width, 0)):
            return False
        return falls_no_more(prepared, image, r0)

    return is_enough
