"""What a refinement promised, measured: true residual, gradient, errors; with advice where it falls short."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from lsr_hpc.comm import agree, all_sum, even_ranges
from lsr_hpc.phases import Phases
from lsr_hpc.prepare import PreparedProblem
from lsr_hpc.result import Outcome, RefineResult
from lsr_hpc.rows import points_at_once
from lsr_hpc.solve import FitAndHeld, Solution, shares_objective
from lsr_hpc.subspace.basis import Basis, captured_energy

__all__ = ["certify", "check_basis"]

# Least-squares gradient in the subspace, relative to the start, above which the solve is reported as inexact.
_INEXACT_GRADIENT = 1e-8
# True over linear residual above which the linearisation, not the rank, limits the result.
_NONLINEAR_RATIO = 2.0


def check_basis(prepared: PreparedProblem, basis: Basis, av: FitAndHeld) -> dict[str, float]:
    """How much of J the subspace holds, and how orthonormal it is.

    Args:
        prepared: The prepared problem.
        basis: Directions V.
        av: Rows of J V.

    Returns:
        Checks by name.

    Collective: one block product of a few columns, three small sums.
    """
    energy = float(all_sum(prepared.comm, np.array([np.sum(av.fit**2)]))[0])
    seed = prepared.settings.subspace.seed
    return {
        "orthogonality": basis.orthogonality,
        "captured_energy": captured_energy(prepared.jacobian, basis.v_local, energy, seed),
    }


def certify(
    prepared: PreparedProblem,
    solution: Solution,
    r0: FitAndHeld,
    basis: Basis | None,
    checks: dict[str, float],
    phases: Phases,
) -> RefineResult:
    """Measure the solution and put the result together.

    Args:
        prepared: The prepared problem.
        solution: What was solved.
        r0: Residual at the start.
        basis: Directions, or None for the full space.
        checks: Checks made so far.
        phases: Clock of the refinement.

    Returns:
        The result, equal on all ranks.

    Collective: one J and one J^T product, the residual of the refined field, the errors.
    """
    checks = {**checks, **_gradients(prepared, solution, r0)}
    residual_true = _true_residual(prepared, solution)
    advice = [*solution.advice, *_advice(solution, residual_true)]
    errors = _relative_errors(prepared, solution)
    seconds = {
        **phases.seconds,
        "products": prepared.jacobian.counter.seconds + prepared.held_jacobian.counter.seconds,
        "total": phases.total(),
    }
    singular_values = None if basis is None else basis.singular_values
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
        scan=_scan_as_json(prepared, solution, errors),
        checks=checks,
        counts=_counts(prepared),
        seconds=seconds,
        detail={"basis": basis.detail if basis else "none: all of parameter space", "solve": solution.detail},
        singular_values=[] if singular_values is None else singular_values.tolist(),
    )


def _gradients(prepared: PreparedProblem, solution: Solution, r0: FitAndHeld) -> dict[str, float]:
    """Least-squares gradients: in the subspace, and in all of parameter space after over before."""
    lo, hi = prepared.jacobian.my_parameters
    linear = r0.fit + prepared.jacobian.jv(np.ascontiguousarray(solution.delta[np.newaxis, lo:hi]))[0]
    gradients = prepared.jacobian.jtu(np.stack([r0.fit, linear]))
    before, after = np.sqrt(all_sum(prepared.comm, np.sum(gradients**2, axis=1)))
    checks = {
        "gradient_ratio": float(after / before) if before > 0 else 0.0,
        "reduced_gradient": solution.gradient,
        "explained_share": solution.explained_share,
        "condition": solution.condition,
    }
    return {name: value for name, value in checks.items() if math.isfinite(value)}


def _true_residual(prepared: PreparedProblem, solution: Solution) -> float:
    """Norm of the residual of the refined field itself, over the rows of the final fit."""
    refined = prepared.model.refined_field(torch.from_numpy(solution.delta).to(prepared.model.device))
    sets = [prepared.fit]
    if prepared.settings.solver.space == "subspace" and shares_objective(prepared):
        sets.append(prepared.held)
    squares = agree(prepared.comm, lambda: sum(float(rows.residual(refined).square().sum()) for rows in sets))
    return math.sqrt(float(all_sum(prepared.comm, np.array([squares]))[0]))


def _advice(solution: Solution, residual_true: float) -> list[str]:
    advice = []
    if solution.outcome is Outcome.REFINED and solution.gradient > _INEXACT_GRADIENT:
        advice.append(
            f"the reduced problem keeps a relative gradient of {solution.gradient:.1e}: "
            "lower subspace.rank or solver.cut"
        )
    if solution.rank and residual_true > _NONLINEAR_RATIO * solution.residual_linear:
        advice.append(
            f"the true residual {residual_true:.1e} stays above the linear one "
            f"{solution.residual_linear:.1e}: the residual is nonlinear in u, and more rank will not help"
        )
    return advice


def _counts(prepared: PreparedProblem) -> dict[str, int]:
    counter, held_counter = prepared.jacobian.counter, prepared.held_jacobian.counter
    return {
        "rows": prepared.n_rows,
        "held_out_rows": prepared.held_rows.n_rows,
        "params": prepared.model.layout.size,
        "jv_calls": counter.jv_calls,
        "jv_columns": counter.jv_columns,
        "jtu_calls": counter.jtu_calls,
        "jtu_columns": counter.jtu_columns,
        "held_out_jv_columns": held_counter.jv_columns,
    }


def _relative_errors(prepared: PreparedProblem, solution: Solution) -> list[float | None]:
    """Relative L2 errors on the evaluation data: of every scanned rank, and last of the final predictor.

    Args:
        prepared: The prepared problem.
        solution: The solution with its scan.

    Returns:
        One figure per scan entry and one more; None without evaluation data.

    Collective: each rank evaluates its share of the points; one sum.
    """
    evaluation, model = prepared.problem.evaluation, prepared.model
    deltas = [*(solution.delta_of(entry) for entry in solution.scan), solution.delta]
    if evaluation is None:
        return [None] * len(deltas)
    lo, hi = even_ranges(evaluation.reference.shape[0], prepared.comm.size)[prepared.comm.rank]
    size = points_at_once(max(p.numbers_per_point for p in prepared.fit_rows.probes))
    squares = np.zeros(len(deltas) + 1)
    for first in range(lo, hi, size):
        piece = slice(first, min(first + size, hi))
        inputs = tuple(
            (t[piece].double() if t.is_floating_point() else t[piece]).to(model.device)
            for t in evaluation.inputs
        )
        reference = evaluation.reference[piece].double().to(model.device)
        squares[-1] += float(reference.square().sum())
        for i, delta in enumerate(deltas):
            with torch.no_grad():
                values = model.refined_field(torch.from_numpy(delta).to(model.device))(*inputs)
            squares[i] += float((values.reshape(reference.shape) - reference).square().sum())
    totals = all_sum(prepared.comm, squares)
    return [math.sqrt(s / totals[-1]) if totals[-1] > 0 else math.sqrt(s) for s in totals[:-1]]


def _scan_as_json(
    prepared: PreparedProblem, solution: Solution, errors: list[float | None]
) -> list[dict[str, Any]]:
    """Scan with residuals as root weighted mean squares, comparable between fitted and held-out rows."""
    fit_scale = 1 / math.sqrt(prepared.fit_rows.weight_sum)
    held_scale = 1 / math.sqrt(prepared.held_rows.weight_sum) if prepared.held_rows.n_rows else 0.0
    return [
        {
            "rank": entry.rank,
            "train": entry.train * fit_scale,
            "held_out": None if entry.held_out is None else entry.held_out * held_scale,
            "error": error,
            "cut": entry.cut,
        }
        for entry, error in zip(solution.scan, errors[:-1], strict=True)
    ]
