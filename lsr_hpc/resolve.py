"""Re-solve on the true residual: the one-shot problem without its linearisation, in the same affine space.

    min over c of ||F(c)||^2 + mu^2 ||c||^2,     F(c) = r(u(theta0) + G V c)

by Gauss-Newton steps (:mod:`lsr_hpc.gauss_newton`). The ranks are solved in increasing order, each from the
solution of the one before, so that ||F|| on the fitted rows falls with the rank; held-out rows choose among
them by the true residual. Source of the re-solve in the space of one linearisation: the follow-up of
arXiv:2601.13989 on transferable response spaces.
"""

# Legend: k directions V, l of them turned to singular directions of J V; c coefficients of j leading ones.

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.comm import all_sum
from lsr_hpc.gauss_newton import GaussNewton
from lsr_hpc.least_squares.selection import ScanEntry, choose_rank
from lsr_hpc.prepare import PreparedProblem
from lsr_hpc.response import DifferentiatedResponse, make_response
from lsr_hpc.result import Outcome
from lsr_hpc.rows import FitAndHeld
from lsr_hpc.solve import Solution
from lsr_hpc.subspace.basis import Basis

__all__ = ["resolve"]

Array = NDArray[np.float64]

# Difference of true and linear residual, over the start's, that is rounding or not worth a second solve.
_LINEAR = 1e-6
# Singular values of J V, over the largest, that count as well scaled.
_WELL_SCALED = 1e-4
# Share of the linear residual by which the true one may exceed it without a second solve.
_SMALL_EXCESS = 1e-3
# Shares of the directions whose solutions the held-out rows judge, beside the rank of the one-shot solve.
_SHARES = (1 / 4, 1 / 2, 1)
# Share of the directions by which such a rank differs from that of the one-shot solve at least.
_APART = 0.1


def resolve(
    prepared: PreparedProblem, basis: Basis, av: FitAndHeld, r0: FitAndHeld, one_shot: Solution
) -> Solution:
    """Solve again on the residual of the refined field, unless it is linear in u.

    Args:
        prepared: The prepared problem.
        basis: Directions V.
        av: Rows of J V, one direction per row.
        r0: Residual at the start.
        one_shot: Solution of the linearised problem.

    Returns:
        The better solution, equal on all ranks; ``one_shot`` itself where nothing is to be gained.

    Raises:
        LsrError: If the residual fails on a rank.

    Collective: all ranks. One evaluation of the residual to find out; then the response modes, and a TSQR per
    step.
    """
    wanted = prepared.settings.solver.resolve
    if wanted is False or one_shot.rank == 0:
        return one_shot
    if wanted == "auto" and _is_linear(prepared, basis, av, r0, one_shot):
        return one_shot
    response = make_response(prepared, basis.v_local, one_shot.rotation, _well_scaled(one_shot), av, r0)
    n_fit, n_held = prepared.fit_rows.n_rows, prepared.held_rows.n_rows
    solver = GaussNewton(prepared.comm, prepared.settings.solver, response, r0, n_fit, n_held)
    paths = solver.nested(_ranks(one_shot))
    scan = [
        ScanEntry(len(path.c), path.c, np.sqrt(path.loss), *(path.held if n_held else (None, None)))
        for path in paths
    ]
    rank = choose_rank(scan, n_held)
    steps = sum(path.steps for path in paths)
    best = next(path for path in paths if len(path.c) == rank)
    if rank and one_shot.uses_held_out:
        best = solver.descend(best.c, all_rows=True)
        steps += best.steps
    detail = f"{steps} Gauss-Newton steps on the true residual, {response.in_words}"
    resolved = replace(
        one_shot,
        delta=DifferentiatedResponse(prepared, basis.v_local, one_shot.rotation).correction(best.c),
        rank=rank,
        c=best.c,
        gradient=float("nan"),
        condition=float(one_shot.singular_values[0] / one_shot.singular_values[rank - 1]) if rank else 1.0,
        scan=scan,
        outcome=Outcome.REFINED,
        detail=f"{one_shot.detail}; {detail}",
        resolve_steps=steps,
    )
    if rank == 0:
        return resolved.refused(
            "no rank lowers the true residual on held-out rows by more than chance, so the start is kept: "
            "use more rows, another basis, or train further"
        )
    if not best.has_converged:
        resolved.advice.append(
            f"the re-solve ended after {prepared.settings.solver.resolve_steps} steps with the residual "
            "still falling: raise solver.resolve_steps"
        )
    return resolved


def _is_linear(
    prepared: PreparedProblem, basis: Basis, av: FitAndHeld, r0: FitAndHeld, one_shot: Solution
) -> bool:
    """Whether the residual of the one-shot field is what the linearisation said, or as small."""
    field = DifferentiatedResponse(prepared, basis.v_local, one_shot.rotation)
    true = field.residual(one_shot.c)
    along = one_shot.rotation[:, : len(one_shot.c)] @ one_shot.c
    squares = np.zeros(4)
    with np.errstate(over="ignore", invalid="ignore"):
        for f, a, r in ((true.fit, av.fit, r0.fit), (true.held, av.held, r0.held)):
            linear = r + along @ a
            squares += [f @ f, linear @ linear, (f - linear) @ (f - linear), r @ r]
        norm_true, norm_linear, difference, start = np.sqrt(all_sum(prepared.comm, squares))
    # A NaN is neither.
    return bool(difference <= _LINEAR * start or norm_true <= (1 + _SMALL_EXCESS) * norm_linear)


def _well_scaled(one_shot: Solution) -> Array:
    """Coefficients at which two ways to the same residual differ by little rounding."""
    # Along directions of small singular values c is so large that the modes of the field cancel, and with
    # them digits of the residual, whichever way it is computed.
    sigma = one_shot.singular_values[: len(one_shot.c)]
    return one_shot.c[: max(1, int(np.sum(sigma >= _WELL_SCALED * sigma[0])))]


def _ranks(one_shot: Solution) -> list[int]:
    """Ranks to judge: of those that the one-shot solve has looked at, the next ones below the shares."""
    looked_at = [entry.rank for entry in one_shot.scan if entry.rank > 0]
    largest = looked_at[-1]
    found = {max((r for r in looked_at if r <= share * largest), default=looked_at[0]) for share in _SHARES}
    return sorted({one_shot.rank, *(r for r in found if abs(r - one_shot.rank) > _APART * largest)})
