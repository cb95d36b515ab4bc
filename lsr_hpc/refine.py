"""One-shot Linearized Subspace Refinement (arXiv:2601.13989), distributed.

    r(theta0 + delta) ~ r0 + J delta,   delta = V c,   min_c ||r0 + J V c||^2 + mu^2 ||c||^2
    u_refined(x) = u(x; theta0) + [du/dtheta](x) delta

Cost with SLEPc's randomised SVD, q iterations and b = k + p columns: 2 q block products of b columns for V,
one of k for J V, and one column or so for the checks; one TSQR of N x (k + 1) numbers.
"""

# Legend: N rows, P parameters, k directions; _local = this rank's rows or slice of the parameters.

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lsr_hpc.comm import agree, all_sum, gather_panel, on_first
from lsr_hpc.least_squares.ksp import IterativeSolution, solve_full, solve_reduced
from lsr_hpc.least_squares.reduced import ReducedProblem, reduce_rows
from lsr_hpc.least_squares.selection import ScanEntry, choose_rank, scan_grid, scan_ranks
from lsr_hpc.prepare import PreparedProblem, evaluation_range, prepare, with_rank
from lsr_hpc.problem import Problem
from lsr_hpc.result import Outcome, RefineResult
from lsr_hpc.settings import RefineSettings
from lsr_hpc.subspace.basis import Basis, captured_energy
from lsr_hpc.subspace.sketched import random_basis, range_finder_basis
from lsr_hpc.subspace.svd import svd_basis

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Solution", "refine"]

Array = NDArray[np.float64]
log = logging.getLogger("lsr_hpc")

# Least-squares gradient in the subspace, relative to the start, above which the solve is reported as inexact.
_INEXACT_GRADIENT = 1e-8
# Columns of J V below this many eps * ||J|| are rounding noise.
_ROUNDING = 100.0
# True over linear residual above which the linearisation, not the rank, limits the result.
_NONLINEAR_RATIO = 2.0


@dataclass(frozen=True)
class Solution:
    """Reduced solution and everything the report needs of it."""

    delta: Array
    rank: int
    residual_linear: float
    residual_before: float
    gradient: float
    condition: float
    scan: list[ScanEntry]
    outcome: Outcome
    advice: list[str]
    detail: str


@dataclass
class Phases:
    """Seconds by phase; names the phase in whatever escapes from it."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a phase."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            if not hasattr(error, "lsr_phase"):
                error.lsr_phase = name  # type: ignore[attr-defined]
            raise
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def refine(
    problem: Problem,
    comm: MPI.Comm | None = None,
    rank: int | None = None,
    settings: RefineSettings | None = None,
) -> RefineResult:
    """Refine a trained network by one-shot LSR.

    Args:
        problem: Network, residual blocks and evaluation data, equal on all ranks.
        comm: Communicator whose ranks share the rows; None works in this process alone.
        rank: Largest number of directions, in place of ``settings.subspace.rank``.
        settings: Settings; None takes the defaults.

    Returns:
        The result, equal on all ranks; ``outcome`` says whether the refinement was accepted.

    Raises:
        JobError: If the input is wrong.
        AccuracyError: If a promise that the method rests on was broken.

    Collective: all ranks of ``comm``.

    Source: arXiv:2601.13989, one-shot LSR; the rank is chosen on held-out rows from one factorisation.
    """
    from mpi4py import MPI

    comm = MPI.COMM_SELF if comm is None else comm
    phases = Phases()
    started = time.perf_counter()
    with phases("prepare"):
        prepared = prepare(problem, comm, with_rank(settings or RefineSettings(), rank))
        r0_local = agree(comm, lambda: prepared.fit.residual(prepared.model.field())).cpu().numpy()
        h0_local = agree(comm, lambda: prepared.held.residual(prepared.model.field())).cpu().numpy()
    checks: dict[str, float] = {}
    if prepared.settings.solver.space == "full":
        with phases("solve"):
            basis = None
            solution = _solve_full_space(prepared, r0_local, h0_local)
    else:
        # Steps 1 to 4: directions of parameter space from the Jacobian.
        with phases("basis"):
            basis = make_basis(prepared)
        # Step 5: the reduced matrix J V, and the same on the held-out rows.
        with phases("jacobian"):
            av_local = prepared.jacobian.jv(basis.v_local)
            held_av_local = prepared.held_jacobian.jv(basis.v_local)
            energy = float(all_sum(comm, np.array([np.sum(av_local**2)]))[0])
            checks["captured_energy"] = captured_energy(
                prepared.jacobian, basis.v_local, energy, prepared.settings.subspace.seed
            )
            checks["orthogonality"] = basis.orthogonality
        # Step 6: the reduced least-squares problem, every rank from one factorisation.
        with phases("solve"):
            solution = _solve_in_subspace(
                prepared, basis, av_local, held_av_local, r0_local, h0_local, checks
            )
    # Step 7: the refined predictor is theta0 with delta; measure it.
    with phases("check"):
        return _certify(prepared, basis, solution, r0_local, checks, phases, started)


def make_basis(prepared: PreparedProblem) -> Basis:
    """Build the subspace that the settings ask for.

    Args:
        prepared: The prepared problem.

    Returns:
        Orthonormal directions, distributed over the ranks.

    Collective: all ranks.
    """
    s = prepared.settings.subspace
    if s.basis == "svd":
        return svd_basis(
            prepared.jacobian,
            first_row=prepared.fit.first_row,
            n_rows=prepared.fit.n_rows_global,
            rank=s.rank,
            oversampling=s.oversampling,
            solver=s.svd,
            iterations=s.iterations,
            orthogonalization=s.orthogonalization,
            seed=s.seed,
        )
    if s.basis == "randomized":
        return range_finder_basis(
            prepared.jacobian,
            rank=s.rank,
            oversampling=s.oversampling,
            test_matrix=s.test_matrix,
            orthogonalization=s.orthogonalization,
            seed=s.seed,
        )
    return random_basis(prepared.jacobian, rank=s.rank, seed=s.seed, orthogonalization=s.orthogonalization)


def _solve_in_subspace(
    prepared: PreparedProblem,
    basis: Basis,
    av_local: Array,
    held_av_local: Array,
    r0_local: Array,
    h0_local: Array,
    checks: dict[str, float],
) -> Solution:
    comm, options = prepared.comm, prepared.settings.solver
    train = reduce_rows(comm, av_local, r0_local, prepared.fit_rows.n_rows)
    held = (
        reduce_rows(comm, held_av_local, h0_local, prepared.held_rows.n_rows)
        if prepared.held_rows.n_rows
        else None
    )
    usable = _above_rounding(train)
    scan = on_first(comm, lambda: scan_ranks(train.damped(options.mu), held, scan_grid(usable), options.cut))
    rank = choose_rank(scan, prepared.held_rows.n_rows)
    start = train.residual_norm(np.zeros(0))
    checks["explained_share"] = 1.0 - (train.rho / start) ** 2 if start > 0 else 0.0

    final = train.stacked_with(held) if held is not None and _shares_objective(prepared) else train
    advice: list[str] = []
    if usable < basis.rank:
        log.info(
            "%d of %d directions carry rounding noise only and are left out", basis.rank - usable, basis.rank
        )
    if options.type == "tsqr" or rank == 0:
        solved = on_first(comm, lambda: final.damped(options.mu).solve(rank, options.cut))
        c, condition, detail, outcome = (
            solved.c,
            solved.condition,
            "TSQR, SVD of the column-scaled factor",
            Outcome.REFINED,
        )
        if solved.cut:
            advice.append(f"{solved.cut} of {rank} directions depend numerically on the others and were cut")
    else:
        rows, residual = av_local[:rank], r0_local
        if final is not train:
            rows, residual = np.hstack([rows, held_av_local[:rank]]), np.concatenate([r0_local, h0_local])
        iterated = solve_reduced(
            comm,
            rows,
            residual,
            method=options.type,
            tolerance=options.tolerance,
            max_iterations=options.max_iterations,
        )
        c = np.concatenate(comm.allgather(iterated.x_local))
        condition, detail = final.solve(rank, options.cut).condition, iterated.reason
        outcome = _outcome_of(iterated, advice)
    if rank == 0:
        outcome = Outcome.REFUSED
        advice.append(
            "no rank lowers the held-out residual, so the start is kept: use more rows, another basis, or a "
            "residual that the network can still reduce"
        )
    delta = _whole(prepared, c @ basis.v_local[:rank])
    return Solution(
        delta=delta,
        rank=rank,
        residual_linear=final.residual_norm(c),
        residual_before=final.residual_norm(np.zeros(0)),
        gradient=_reduced_gradient(final, c),
        condition=condition,
        scan=scan,
        outcome=outcome,
        advice=advice,
        detail=detail,
    )


def _above_rounding(problem: ReducedProblem) -> int:
    """Leading directions whose image J v stands out of the rounding of J V.

    The columns of V have unit length, so each column of J V carries an error of a few eps * ||J||. A
    direction that J maps below that is noise: a coefficient of any size would fit it, and spoil the field.

    Args:
        problem: The reduced problem of the fitted rows.

    Returns:
        Number of leading directions to use.
    """
    images = np.linalg.norm(problem.r, axis=0)
    noise = np.flatnonzero(images <= _ROUNDING * np.finfo(float).eps * images.max(initial=0.0))
    return int(noise[0]) if len(noise) else len(images)


def _solve_full_space(prepared: PreparedProblem, r0_local: Array, h0_local: Array) -> Solution:
    """LSQR or CGLS over all parameters; the held-out rows accept or refuse the whole step."""
    comm, options = prepared.comm, prepared.settings.solver
    solved = solve_full(
        prepared.jacobian,
        r0_local,
        method=options.type,
        tolerance=options.tolerance,
        max_iterations=options.max_iterations,
    )
    held_after = h0_local + prepared.held_jacobian.jv(solved.x_local[np.newaxis])[0]
    before, held, held_refined = np.sqrt(
        all_sum(comm, np.array([np.sum(r0_local**2), np.sum(h0_local**2), np.sum(held_after**2)]))
    )
    judged = prepared.held_rows.n_rows > 0
    scan = [
        ScanEntry(0, np.zeros(0), float(before), float(held) if judged else None, 0),
        ScanEntry(
            solved.iterations, np.zeros(0), solved.residual, float(held_refined) if judged else None, 0
        ),
    ]
    rank = choose_rank(scan, prepared.held_rows.n_rows)
    advice: list[str] = []
    outcome = _outcome_of(solved, advice)
    if rank == 0:
        outcome = Outcome.REFUSED
        advice.append(
            "the full step does not lower the held-out residual, so the start is kept: use fewer iterations "
            "or a subspace"
        )
    delta = _whole(prepared, solved.x_local if rank else np.zeros_like(solved.x_local))
    return Solution(
        delta=delta,
        rank=rank,
        residual_linear=solved.residual if rank else float(before),
        residual_before=float(before),
        gradient=solved.gradient,
        condition=float("nan"),
        scan=scan,
        outcome=outcome,
        advice=advice,
        detail=solved.reason,
    )


def _outcome_of(solved: IterativeSolution, advice: list[str]) -> Outcome:
    if solved.is_converged:
        return Outcome.REFINED
    advice.append(solved.reason)
    return Outcome.NOT_CONVERGED


def _shares_objective(prepared: PreparedProblem) -> bool:
    """Whether held-out rows are part of the loss (a fraction of its points) and a refit is wanted."""
    return prepared.settings.solver.refit and not prepared.problem.validation


def _whole(prepared: PreparedProblem, local: Array) -> Array:
    whole = gather_panel(prepared.comm, local[np.newaxis, :], prepared.jacobian.parameter_ranges)
    return np.array(whole[0])


def _reduced_gradient(problem: ReducedProblem, c: Array) -> float:
    """||(J V)^T r|| at the solution over the same at the start, from the factor."""
    r = problem.r[:, : len(c)]
    start = float(np.linalg.norm(r.T @ problem.z))
    return float(np.linalg.norm(r.T @ (r @ c - problem.z))) / start if start > 0 else 0.0


def _certify(
    prepared: PreparedProblem,
    basis: Basis | None,
    solution: Solution,
    r0_local: Array,
    checks: dict[str, float],
    phases: Phases,
    started: float,
) -> RefineResult:
    """Measure what the solution promised: true residual, gradient, error; and advise where it falls short."""
    comm, settings = prepared.comm, prepared.settings
    advice = list(solution.advice)
    refined = prepared.model.refined_field(torch.from_numpy(solution.delta).to(prepared.model.device))
    is_refit = settings.solver.space == "subspace" and _shares_objective(prepared)
    true_fit = agree(comm, lambda: prepared.fit.residual(refined)).cpu().numpy()
    true_held = (
        agree(comm, lambda: prepared.held.residual(refined)).cpu().numpy() if is_refit else np.zeros(0)
    )
    residual_true = math.sqrt(float(all_sum(comm, np.array([np.sum(true_fit**2) + np.sum(true_held**2)]))[0]))

    # Least-squares gradient in all of parameter space, before and after: what this subspace leaves undone.
    linear_local = r0_local + prepared.jacobian.jv(_slice(prepared, solution.delta))[0]
    gradients = prepared.jacobian.jtu(np.stack([r0_local, linear_local]))
    norms = np.sqrt(all_sum(comm, np.sum(gradients**2, axis=1)))
    checks["gradient_ratio"] = float(norms[1] / norms[0]) if norms[0] > 0 else 0.0
    checks["reduced_gradient"] = solution.gradient
    if math.isfinite(solution.condition):
        checks["condition"] = solution.condition
    if solution.outcome is Outcome.REFINED and solution.gradient > _INEXACT_GRADIENT:
        advice.append(
            f"the reduced problem keeps a relative gradient of {solution.gradient:.1e}: "
            "lower subspace.rank or solver.cut"
        )
    if residual_true > _NONLINEAR_RATIO * solution.residual_linear and solution.rank:
        advice.append(
            f"the true residual {residual_true:.1e} stays above the linear one "
            f"{solution.residual_linear:.1e}: the residual is nonlinear in u, and more rank will not help"
        )

    errors = _errors(prepared, basis, solution)
    seconds = {
        **phases.seconds,
        "products": prepared.jacobian.counter.seconds + prepared.held_jacobian.counter.seconds,
        "total": time.perf_counter() - started,
    }
    counter, held_counter = prepared.jacobian.counter, prepared.held_jacobian.counter
    return RefineResult(
        problem=prepared.problem.name,
        outcome=solution.outcome,
        advice=advice,
        delta=solution.delta,
        rank=solution.rank,
        rank_max=basis.rank if basis else solution.scan[-1].rank,
        error_before=errors[0],
        error_after=errors[-1],
        residual_before=solution.residual_before,
        residual_linear=solution.residual_linear,
        residual_true=residual_true,
        scan=_scan_as_json(prepared, solution.scan, errors),
        checks=checks,
        counts={
            "rows": prepared.n_rows,
            "held_out_rows": prepared.held_rows.n_rows,
            "params": prepared.model.layout.size,
            "jv_calls": counter.jv_calls,
            "jv_columns": counter.jv_columns,
            "jtu_calls": counter.jtu_calls,
            "jtu_columns": counter.jtu_columns,
            "held_out_jv_columns": held_counter.jv_columns,
        },
        seconds=seconds,
        detail={"basis": basis.detail if basis else "none: all of parameter space", "solve": solution.detail},
        singular_values=[]
        if basis is None or basis.singular_values is None
        else basis.singular_values.tolist(),
    )


def _slice(prepared: PreparedProblem, delta: Array) -> Array:
    lo, hi = prepared.jacobian.my_parameters
    return np.ascontiguousarray(delta[np.newaxis, lo:hi])


def _errors(prepared: PreparedProblem, basis: Basis | None, solution: Solution) -> list[float | None]:
    """Relative L2 errors: of every scanned rank's predictor, and last of the final one."""
    comm, evaluation, model = prepared.comm, prepared.problem.evaluation, prepared.model
    entries = solution.scan if basis is not None else solution.scan[:1]
    if evaluation is None:
        return [None] * (len(entries) + 1)
    mine = evaluation_range(prepared.problem, comm)
    inputs = tuple(
        (t[mine].double() if t.is_floating_point() else t[mine]).to(model.device) for t in evaluation.inputs
    )
    reference = evaluation.reference[mine].double().to(model.device)
    squares = []
    for entry in [*entries, None]:
        delta = (
            solution.delta
            if entry is None
            else (
                np.zeros_like(solution.delta)
                if entry.rank == 0 or basis is None
                else _whole(prepared, entry.c @ basis.v_local[: entry.rank])
            )
        )
        with torch.no_grad():
            values = model.refined_field(torch.from_numpy(delta).to(model.device))(*inputs).reshape(
                reference.shape
            )
        squares.append(float((values - reference).square().sum()))
    totals = all_sum(comm, np.array([*squares, float(reference.square().sum())]))
    return [math.sqrt(s / totals[-1]) if totals[-1] > 0 else math.sqrt(s) for s in totals[:-1]]


def _scan_as_json(
    prepared: PreparedProblem, scan: list[ScanEntry], errors: list[float | None]
) -> list[dict[str, float | int | None]]:
    """Scan with residuals as root weighted mean squares, comparable between fitted and held-out rows."""
    fit_scale = 1 / math.sqrt(prepared.fit_rows.weight_sum)
    held_scale = 1 / math.sqrt(prepared.held_rows.weight_sum) if prepared.held_rows.n_rows else 0.0
    per_entry = errors[:-1] if len(errors) > len(scan) else [*errors[:-1], errors[-1]]
    return [
        {
            "rank": e.rank,
            "train": e.train * fit_scale,
            "held_out": None if e.held_out is None else e.held_out * held_scale,
            "error": error,
            "cut": e.cut,
        }
        for e, error in zip(scan, per_entry, strict=True)
    ]
