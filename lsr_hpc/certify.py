"""What a refinement promised, measured: true residual, gradient, errors; with advice where it falls short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lsr_hpc.comm import agree, all_sum
from lsr_hpc.evaluate import Evaluator
from lsr_hpc.jacobian.retreat import RetreatingJacobian
from lsr_hpc.phases import Phases
from lsr_hpc.prepare import PreparedProblem
from lsr_hpc.problem import Field
from lsr_hpc.result import Outcome, RefineResult
from lsr_hpc.rows import FitAndHeld
from lsr_hpc.solve import Solution
from lsr_hpc.subspace.basis import Basis, captured_energy

__all__ = ["certify", "check_basis"]

Array = NDArray[np.float64]

# Least-squares gradient in the subspace, relative to the start, above which the solve is reported as inexact.
_INEXACT_GRADIENT = 1e-8
# True over linear residual above which the linearisation, not the rank, limits the result.
_NONLINEAR_RATIO = 2.0
# Share of the start residual below which both are rounding.
_ROUNDING = 1e-10
# ||U^T r0|| / ||r0|| below which the subspace is called weak, U spanning its image J V.
_WEAK_SPACE = 0.3


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
    scan_errors: bool = True,
) -> RefineResult:
    """Measure the solution and put the result together.

    Args:
        prepared: The prepared problem.
        solution: What was solved.
        r0: Residual at the start.
        basis: Directions, or None for the full space.
        checks: Checks made so far.
        phases: Clock of the refinement.
        scan_errors: Whether to evaluate every scanned rank on the evaluation data.

    Returns:
        The result, equal on all ranks.

    Collective: one J and one J^T product, the residual of the refined field, the errors.
    """
    residual_true = _true_residual(prepared, solution)
    if solution.rank and not residual_true <= solution.residual_before:
        solution = solution.refused(_why_worse(solution, residual_true))
        residual_true = solution.residual_before
    checks = {
        **checks,
        **_gradients(prepared, solution, r0),
        **_accuracies(prepared, solution),
    }
    advice = [*solution.advice, *_advice(solution, residual_true), *_retreats(prepared)]
    to_loss = _to_loss(prepared, solution)
    errors = _errors(prepared, solution, scan_errors)
    checks |= _worst(errors)
    seconds = {
        **phases.seconds,
        "products": prepared.jacobian.counter.seconds + prepared.held_jacobian.counter.seconds,
        "total": phases.total(),
    }
    return RefineResult(
        problem=prepared.problem.name,
        outcome=solution.outcome,
        advice=advice,
        delta=solution.delta,
        rank=solution.rank,
        rank_max=basis.rank if basis else solution.scan[-1].rank,
        error_before=_mean(errors[0]),
        error_after=_mean(errors[-1]),
        residual_before=solution.residual_before * to_loss,
        residual_linear=solution.residual_linear * to_loss,
        residual_true=residual_true * to_loss,
        scan=_scan_as_json(prepared, solution, [_mean(e) for e in errors], residual_true),
        checks=checks,
        counts=_counts(prepared),
        seconds=seconds,
        jacobian=prepared.representation.name,
        detail={"basis": basis.detail if basis else "none: all of parameter space", "solve": solution.detail},
        singular_values=solution.singular_values.tolist(),
        residual_components=solution.components.tolist(),
    )


def _gradients(prepared: PreparedProblem, solution: Solution, r0: FitAndHeld) -> dict[str, float]:
    """Least-squares gradients: in the subspace, and in all of parameter space after over before."""
    lo, hi = prepared.jacobian.my_parameters
    step = prepared.free_step(solution.delta)[np.newaxis, lo:hi]
    linear = r0.fit + prepared.jacobian.jv(np.ascontiguousarray(step))[0]
    gradients = prepared.jacobian.jtu(np.stack([r0.fit, linear]))
    before, after = np.sqrt(all_sum(prepared.comm, np.sum(gradients**2, axis=1)))
    is_resolved = solution.resolve_steps is not None
    checks = {
        # J is that of the start: it tells nothing where the solution is not that of the linearised problem.
        "gradient_ratio": float("nan") if is_resolved else float(after / before) if before > 0 else 0.0,
        "reduced_gradient": solution.gradient,
        "explained_share": solution.explained_share,
        "condition": solution.condition,
        "directions_cut": solution.directions_cut,
        "resolve_steps": solution.resolve_steps or 0,
    }
    return {name: value for name, value in checks.items() if math.isfinite(value)}


def _true_residual(prepared: PreparedProblem, solution: Solution) -> float:
    """Norm of the residual of the refined field itself, over the rows of the fit; NaN where it has none."""
    refined = _refined(prepared, solution.delta)
    sets = [prepared.fit, prepared.held] if solution.uses_held_out else [prepared.fit]
    squares = agree(prepared.comm, lambda: sum(float(rows.residual(refined).square().sum()) for rows in sets))
    return math.sqrt(float(all_sum(prepared.comm, np.array([squares]))[0]))


def _why_worse(solution: Solution, residual_true: float) -> str:
    became = f"grows to {residual_true:.1e}" if math.isfinite(residual_true) else "is NaN or Inf"
    return (
        f"the residual is nonlinear in u: the linearised one falls from {solution.residual_before:.1e} to "
        f"{solution.residual_linear:.1e}, but that of the refined field {became}, so the start is kept; "
        "lower subspace.rank, set solver.mu, or train further"
    )


def _retreats(prepared: PreparedProblem) -> list[str]:
    """Where ranks ran out of memory, and what they went over to."""
    operators = (prepared.jacobian.local, prepared.held_jacobian.local)
    mine = [words for o in operators if isinstance(o, RetreatingJacobian) for words in o.retreats]
    found = prepared.comm.allgather(mine[-1] if mine else "")
    ranks = [rank for rank, words in enumerate(found) if words]
    if not ranks:
        return []
    return [
        f"memory ran out on {len(ranks)} of {len(found)} MPI ranks, and J went on {found[ranks[0]]}: lower "
        "compute.memory_per_rank, so that the plan keeps to what there is"
    ]


def _to_loss(prepared: PreparedProblem, solution: Solution) -> float:
    """Factor from the norm over the fitted rows to the square root of the whole loss."""
    return math.sqrt(sum(b.weight for b in prepared.fit_rows.blocks) / _fitted_weight(prepared, solution))


def _fitted_weight(prepared: PreparedProblem, solution: Solution) -> float:
    """What turns the squared norm over the fitted rows into a weighted mean."""
    held = prepared.held_rows.weight_sum if solution.uses_held_out else 0.0
    return prepared.fit_rows.weight_sum + held


def _advice(solution: Solution, residual_true: float) -> list[str]:
    advice = []
    if solution.outcome is Outcome.REFINED and solution.gradient > _INEXACT_GRADIENT:
        advice.append(
            f"the reduced problem keeps a relative gradient of {solution.gradient:.1e}: "
            "lower subspace.rank or raise solver.cut"
        )
    if solution.residual_before > 0 and solution.explained_share < _WEAK_SPACE**2:
        reach = math.sqrt(max(0.0, solution.explained_share))
        advice.append(
            f"the subspace reaches only {reach:.2g} of the residual's norm, and no coefficients in it can "
            'help much: use subspace.basis = "krylov", a smaller subspace.width or a larger subspace.rank'
        )
    floor = max(_NONLINEAR_RATIO * solution.residual_linear, _ROUNDING * solution.residual_before)
    if solution.rank and solution.resolve_steps is None and residual_true > floor:
        advice.append(
            f"the true residual {residual_true:.1e} stays above the linear one "
            f"{solution.residual_linear:.1e}: the residual is nonlinear in u, and more rank will not help; "
            "set solver.resolve = true"
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


def _errors(prepared: PreparedProblem, solution: Solution, scan_errors: bool) -> list[Array | None]:
    """Relative L2 errors on the evaluation data: of every scanned rank, and last of the final predictor.

    Args:
        prepared: The prepared problem.
        solution: The solution with its scan.
        scan_errors: Whether to evaluate every scanned rank, not the start alone.

    Returns:
        One array (groups,) per scan entry and one more; None without evaluation data.

    Collective: each rank evaluates its share of the points; one gather of the correction and one sum each.
    """
    evaluation = prepared.problem.evaluation
    if evaluation is None:
        return [None] * (len(solution.scan) + 1)
    evaluator = Evaluator(prepared.comm, evaluation, prepared)
    # One correction at a time: a network's worth of numbers each.
    errors = [
        evaluator.errors(_refined(prepared, solution.delta_of(entry)))
        if scan_errors or entry.rank == 0
        else None
        for entry in solution.scan
    ]
    return [*errors, evaluator.errors(_refined(prepared, solution.delta))]


def _mean(errors: Array | None) -> float | None:
    return None if errors is None else float(errors.mean())


def _worst(errors: Sequence[Array | None]) -> dict[str, float]:
    """Largest errors among groups of evaluation points before and after, where there are several groups."""
    before, after = errors[0], errors[-1]
    if before is None or after is None or len(after) == 1:
        return {}
    return {"worst_error_before": float(before.max()), "worst_error": float(after.max())}


def _accuracies(prepared: PreparedProblem, solution: Solution) -> dict[str, float]:
    """Shares of the evaluation points put in the right class, where they have classes."""
    evaluation = prepared.problem.evaluation
    if evaluation is None or not evaluation.one_hot:
        return {}
    evaluator = Evaluator(prepared.comm, evaluation, prepared)
    return {
        "accuracy_before": evaluator.accuracy(prepared.model.field()),
        "accuracy_after": evaluator.accuracy(_refined(prepared, solution.delta)),
    }


def _refined(prepared: PreparedProblem, delta: Array) -> Field:
    return prepared.model.refined_field(torch.from_numpy(delta).to(prepared.model.device))


def _scan_as_json(
    prepared: PreparedProblem, solution: Solution, errors: list[float | None], residual_true: float
) -> list[dict[str, Any]]:
    """Scan with residuals as root weighted mean squares, comparable between fitted and held-out rows."""
    fit_scale = 1 / math.sqrt(prepared.fit_rows.weight_sum)
    fitted_scale = 1 / math.sqrt(_fitted_weight(prepared, solution))
    held_scale = 1 / math.sqrt(prepared.held_rows.weight_sum) if prepared.held_rows.n_rows else 0.0
    return [
        {
            "rank": entry.rank,
            "train": entry.train * fit_scale,
            "held_out": None if entry.held_out is None else entry.held_out * held_scale,
            "error": error,
            "true": residual_true * fitted_scale if entry.rank == solution.rank else None,
        }
        for entry, error in zip(solution.scan, errors[:-1], strict=True)
    ]
