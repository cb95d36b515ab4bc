"""From a subspace to a parameter correction: reduce, choose the rank, solve.

Also the iterative solve over all of parameter space, which shares the accept-or-refuse rule.
"""

# Legend: k directions, c coefficients; _local = this rank's rows or slice of the parameters.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.comm import all_sum, on_first
from lsr_hpc.least_squares.ksp import IterativeSolution, solve_full, solve_reduced
from lsr_hpc.least_squares.reduced import ReducedProblem, reduce_rows
from lsr_hpc.least_squares.selection import ScanEntry, choose_rank, scan_grid, scan_ranks
from lsr_hpc.prepare import PreparedProblem
from lsr_hpc.result import Outcome
from lsr_hpc.rows import SMALLEST_SPLIT_BLOCK, FitAndHeld
from lsr_hpc.settings import SolverSettings
from lsr_hpc.subspace.basis import Basis

__all__ = [
    "Solution",
    "falls_no_more",
    "shares_objective",
    "singular_cut",
    "solve_full_space",
    "solve_in_subspace",
]

Array = NDArray[np.float64]

# The columns of V have unit length, so each column of J V carries an error of a few eps * ||J||. A direction
# that J maps below that is noise: a coefficient of any size would fit it, and spoil the field.
_DEFAULT_CUT = 100 * float(np.finfo(float).eps)


@dataclass(frozen=True)
class Solution:
    """A parameter correction and everything the report needs of it.

    Attributes:
        delta: Parameter correction, shape (P,), equal on all ranks.
        rank: Directions used; iterations for the full space; 0 if refused.
        uses_held_out: Whether it was fitted to the held-out rows too, once they had chosen the rank.
        residual_linear: Norm of the linearised residual at the solution, over the rows it was fitted to.
        residual_before: Norm at the start, over the same rows.
        gradient: Least-squares gradient in the subspace at the solution over the same at the start; NaN for
            the full space, where ``detail`` tells how far KSP came.
        condition: Of J V in the directions used, on the fitted rows; NaN for the full space.
        directions_cut: Directions left out because their singular value is below the cut.
        singular_values: Of J V on the fitted rows, largest first, shape (k,); empty for the full space.
        components: Of the start residual along the left singular directions of J V on the fitted rows,
            ``|u_i^T r0| / ||r0||``, shape (l,), l as in ``rotation``; empty for the full space.
        explained_share: Share of the squared start residual that the directions not left out can remove; NaN
            if unknown.
        scan: The ranks looked at.
        delta_of: The correction of a scanned rank; collective.
        rotation: Singular directions of J V in terms of V, shape (k, l), l <= k; empty for the full space.
        c: Coefficients of the leading ones of them, shape (rank,); empty for the full space.
        fitted: Reduced problem of all rows that were fitted, in the singular directions, without damping;
            None for the full space.
        outcome: How it ended.
        advice: What to mind.
        detail: How it was solved, in words.
        resolve_steps: Gauss-Newton steps on the true residual; None if it was not solved again. If it was,
            delta, rank, c and scan are those of the true residual, ``residual_linear`` is what the linearised
            problem promised, and ``gradient`` is NaN.
    """

    delta: Array
    rank: int
    uses_held_out: bool
    residual_linear: float
    residual_before: float
    gradient: float
    condition: float
    directions_cut: int
    singular_values: Array
    components: Array
    explained_share: float
    scan: list[ScanEntry]
    delta_of: Callable[[ScanEntry], Array]
    rotation: Array
    c: Array
    fitted: ReducedProblem | None
    outcome: Outcome
    advice: list[str]
    detail: str
    resolve_steps: int | None = None

    def refused(self, advice: str) -> Solution:
        """The start is kept.

        Args:
            advice: Why, and what to do.

        Returns:
            The solution zero.
        """
        return replace(
            self,
            delta=np.zeros_like(self.delta),
            rank=0,
            c=np.zeros(0),
            residual_linear=self.residual_before,
            gradient=1.0,
            outcome=Outcome.REFUSED,
            advice=[*self.advice, advice],
        )


def solve_in_subspace(prepared: PreparedProblem, basis: Basis, av: FitAndHeld, r0: FitAndHeld) -> Solution:
    """Reduce over the ranks, choose the rank on held-out rows, solve, and refit on all rows of the loss.

    Args:
        prepared: The prepared problem.
        basis: Directions V.
        av: Rows of J V, one direction per row: (k, N_local) and (k, N_held_local).
        r0: Residual at the start.

    Returns:
        The solution, equal on all ranks.

    Collective: two TSQRs, one gather of delta; KSP's products where it is asked for.
    """
    comm, options = prepared.comm, prepared.settings.solver
    n_held = prepared.held_rows.n_rows
    train = reduce_rows(comm, av.fit, r0.fit, prepared.fit_rows.n_rows)
    held = reduce_rows(comm, av.held, r0.held, n_held) if n_held else None

    # Singular directions of J V, largest first: leading ranks are then truncated singular value solutions.
    cut = singular_cut(options)
    rotation, singular_values = on_first(comm, lambda: train.singular_directions(cut))
    train, held = train.rotated(rotation), held.rotated(rotation) if held is not None else None
    n_cut = basis.rank - rotation.shape[1]
    grid = scan_grid(rotation.shape[1], prepared.settings.subspace.rank)
    scan = on_first(comm, lambda: scan_ranks(train.damped(options.mu), held, grid))
    rank = choose_rank(scan, n_held)

    is_refit = held is not None and shares_objective(prepared)
    final = train.stacked_with(held) if is_refit and held is not None else train
    damped = final.damped(options.mu)
    solved = on_first(comm, lambda: damped.solve(rank))
    c, outcome, method = solved.c, Outcome.REFINED, "TSQR"
    advice: list[str] = []
    if solved.cut:
        advice.append(f"{solved.cut} of {rank} directions depend numerically on the others and were dropped")
    if rank and options.type != "tsqr":
        iterated = solve_reduced(
            comm,
            rotation[:, :rank].T @ (np.hstack([av.fit, av.held]) if is_refit else av.fit),
            np.concatenate([r0.fit, r0.held]) if is_refit else r0.fit,
            method=options.type,
            tolerance=options.tolerance,
            max_iterations=options.max_iterations,
        )
        c, method = np.concatenate(comm.allgather(iterated.x_local)), iterated.reason
        outcome = _outcome_of(iterated, advice)

    start = train.residual_norm(np.zeros(0))
    solution = Solution(
        delta=prepared.whole_correction(rotation[:, : len(c)] @ c @ basis.v_local),
        rank=rank,
        uses_held_out=is_refit,
        residual_linear=final.residual_norm(c),
        residual_before=final.residual_norm(np.zeros(0)),
        gradient=_reduced_gradient(damped, c),
        condition=float(singular_values[0] / singular_values[rank - 1]) if rank else 1.0,
        directions_cut=n_cut,
        singular_values=singular_values,
        components=np.abs(train.z) / start if start > 0 else np.zeros_like(train.z),
        explained_share=1.0 - (train.rho / start) ** 2 if start > 0 else 0.0,
        scan=scan,
        delta_of=lambda e: prepared.whole_correction(rotation[:, : len(e.c)] @ e.c @ basis.v_local),
        rotation=rotation,
        c=c,
        fitted=final,
        outcome=outcome,
        advice=advice,
        detail=f"{method}, {n_cut} of {basis.rank} directions left out, singular values below {cut:.1e} "
        "times the largest",
    )
    return _judged(
        solution,
        n_held,
        "no rank lowers the held-out residual by more than chance, so the start is kept: use more rows, "
        "another basis, or a residual that the network can still reduce",
    )


def singular_cut(settings: SolverSettings) -> float:
    """Share of the largest singular value of J V at and below which directions are left out."""
    return _DEFAULT_CUT if settings.cut is None else settings.cut


def falls_no_more(prepared: PreparedProblem, av: FitAndHeld, r0: FitAndHeld) -> bool:
    """Whether the held-out residual has fallen, but not any more in the later half of the directions.

    Args:
        prepared: The prepared problem.
        av: Rows of J V of the directions so far, in the order in which they were made.
        r0: Residual at the start.

    Returns:
        True if the held-out residual is below half of its start and half of the directions do as well; False
        where no row is held out.

    Collective: two TSQRs.
    """
    n_held, options = prepared.held_rows.n_rows, prepared.settings.solver
    if n_held == 0:
        return False
    train = reduce_rows(prepared.comm, av.fit, r0.fit, prepared.fit_rows.n_rows)
    held = reduce_rows(prepared.comm, av.held, r0.held, n_held)

    def has_ended() -> bool:
        scan = scan_ranks(train.damped(options.mu), held, scan_grid(len(train.z)))
        chosen = next(e for e in scan if e.rank == choose_rank(scan, n_held))
        # The first directions of a trained state often change little: that is no end.
        has_fallen = held.residual_norm(chosen.c) < 0.5 * held.residual_norm(np.zeros(0))
        return has_fallen and chosen.rank <= len(av.fit) // 2

    return on_first(prepared.comm, has_ended)


def _judged(solution: Solution, n_held: int, refusal: str) -> Solution:
    """The solution, refused where its rank is 0, with a word where no held-out row has judged it."""
    if solution.residual_before == 0.0:
        return solution.refused("the residual is zero on every row already: nothing is left to refine")
    if solution.rank == 0:
        return solution.refused(refusal)
    if n_held == 0:
        solution.advice.append(
            f"no row was held out, so rank {solution.rank} is taken unjudged and may follow noise: set "
            f"held_out.fraction, give validation data, or blocks of {SMALLEST_SPLIT_BLOCK} points or more"
        )
    return solution


def solve_full_space(prepared: PreparedProblem, r0: FitAndHeld) -> Solution:
    """LSQR or CGLS over all parameters; the held-out rows accept or refuse the whole step.

    Args:
        prepared: The prepared problem.
        r0: Residual at the start.

    Returns:
        The solution, equal on all ranks; its rank counts iterations.

    Collective: KSP's products and one gather of delta.
    """
    comm, options = prepared.comm, prepared.settings.solver
    n_held = prepared.held_rows.n_rows
    solved = solve_full(
        prepared.jacobian,
        r0.fit,
        method=options.type,
        tolerance=options.tolerance,
        max_iterations=options.max_iterations,
    )
    change = prepared.held_jacobian.jv(solved.x_local[np.newaxis])[0]
    squares = [np.sum(rows**2) for rows in (r0.fit, r0.held, r0.held + change, change)]
    before, held_before, held, changed = (float(norm) for norm in np.sqrt(all_sum(comm, np.array(squares))))
    nothing = np.zeros(0)
    scan = [
        ScanEntry(0, nothing, before, held_before if n_held else None),
        ScanEntry(
            solved.iterations, nothing, solved.residual, *((held, changed) if n_held else (None, None))
        ),
    ]
    step = prepared.whole_correction(solved.x_local)
    advice: list[str] = []
    solution = Solution(
        delta=step,
        rank=choose_rank(scan, n_held),
        uses_held_out=False,
        residual_linear=solved.residual,
        residual_before=before,
        gradient=float("nan"),
        condition=float("nan"),
        directions_cut=0,
        singular_values=np.zeros(0),
        components=np.zeros(0),
        explained_share=float("nan"),
        scan=scan,
        delta_of=lambda entry: step if entry.rank else np.zeros_like(step),
        rotation=np.zeros((0, 0)),
        c=nothing,
        fitted=None,
        outcome=_outcome_of(solved, advice),
        advice=advice,
        detail=solved.reason,
    )
    return _judged(
        solution,
        n_held,
        "the full step does not lower the held-out residual by more than chance, so the start is kept: use "
        "fewer iterations or a subspace",
    )


def _outcome_of(solved: IterativeSolution, advice: list[str]) -> Outcome:
    if solved.is_converged:
        return Outcome.REFINED
    advice.append(solved.reason)
    return Outcome.NOT_CONVERGED


def shares_objective(prepared: PreparedProblem) -> bool:
    """Whether held-out rows are part of the loss (a fraction of its points) and a refit is wanted."""
    return prepared.settings.solver.refit and not prepared.problem.validation


def _reduced_gradient(problem: ReducedProblem, c: Array) -> float:
    """||(J V)^T r|| at the solution over the same at the start, from the factor."""
    r = problem.r[:, : len(c)]
    start = float(np.linalg.norm(r.T @ problem.z))
    return float(np.linalg.norm(r.T @ (r @ c - problem.z))) / start if start > 0 else 0.0
