"""Re-solve on the true residual: the one-shot problem without its linearisation, in the same affine space.

    min over c of ||F(c)||^2 + mu^2 ||c||^2,     F(c) = r(u(theta0) + G V c)
    A_c = dF/dc,   min over s of ||F(c) + A_c s||^2 + mu^2 ||c + s||^2 + lambda^2 ||s||^2,   c <- c + s

Gauss-Newton steps; lambda (Levenberg 1944, Marquardt 1963) comes in only where a step would raise ||F||. The
ranks are solved in increasing order, each from the solution of the one before, so that ||F|| on the fitted
rows falls with the rank; held-out rows choose among them by the true residual. Source of the re-solve in the
space of one linearisation: the follow-up of arXiv:2601.13989 on transferable response spaces.
"""

# Legend: k directions V, l of them turned to singular directions of J V; c coefficients of j leading ones.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.comm import all_sum, on_first
from lsr_hpc.least_squares.reduced import ReducedProblem, reduce_rows
from lsr_hpc.least_squares.selection import ScanEntry, choose_rank
from lsr_hpc.prepare import PreparedProblem
from lsr_hpc.response import DifferentiatedResponse, Response, make_response
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
# Relative fall of ||F|| below which a step was the last; and the same distance from the linear prediction.
_SMALL_FALL = 1e-3
# Shares of the directions whose solutions the held-out rows judge, beside the rank of the one-shot solve.
_SHARES = (1 / 4, 1 / 2, 1)
# Share of the directions by which such a rank differs from that of the one-shot solve at least.
_APART = 0.1
# First lambda over the norm of A_c, its factor from trial to trial, and how many are tried.
_FIRST_DAMPING, _MORE, _MOST_TRIALS = 1e-6, 10.0, 12


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
    solver = _GaussNewton(prepared, response, r0)
    paths = solver.nested(_ranks(one_shot))
    n_held = prepared.held_rows.n_rows
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
    return bool(difference <= _LINEAR * start or norm_true <= (1 + _SMALL_FALL) * norm_linear)


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


@dataclass(frozen=True)
class _Path:
    """Where Gauss-Newton steps in the leading directions have led.

    Attributes:
        c: Coefficients, shape (j,).
        loss: ||F||^2 + mu^2 ||c||^2 over the rows that were fitted.
        held: ||F|| over the held-out rows, and the norm of the change of F there from the start.
        steps: Steps taken.
        has_converged: Whether they ended by themselves.
    """

    c: Array
    loss: float
    held: tuple[float, float]
    steps: int
    has_converged: bool


class _GaussNewton:
    """Damped Gauss-Newton on F; every method is collective."""

    def __init__(self, prepared: PreparedProblem, response: Response, r0: FitAndHeld) -> None:
        self._prepared = prepared
        self._response = response
        self._r0 = r0
        self._mu = prepared.settings.solver.mu

    def nested(self, ranks: Sequence[int]) -> list[_Path]:
        """Solutions of increasing ranks on the fitted rows, from the start on, which comes first."""
        nothing = np.zeros(0)
        paths = [_Path(nothing, *self._losses(nothing, self._r0, all_rows=False), 0, True)]
        for rank in ranks:
            before = paths[-1].c
            paths.append(self.descend(np.concatenate([before, np.zeros(rank - len(before))])))
        return paths

    def descend(self, c: Array, *, all_rows: bool = False) -> _Path:
        """Steps from c until the residual no longer falls; on all rows of the loss, or the fitted ones."""
        response = self._response
        f = response.residual(c)
        loss, held = self._losses(c, f, all_rows)
        damping = 0.0
        limit = self._prepared.settings.solver.resolve_steps
        for step in range(limit):
            reduced = self._reduced(c, f, all_rows)
            if reduced is None:
                return _Path(c, loss, held, step, True)
            trial, damping = self._trial(reduced, c, loss, damping, all_rows)
            if trial is None:
                return _Path(c, loss, held, step, True)
            fallen = 1 - np.sqrt(trial.loss / loss)
            missed = abs(np.sqrt(trial.loss) - trial.predicted)
            is_as_predicted = damping == 0.0 and missed <= _SMALL_FALL * trial.predicted
            c, f, loss, held = trial.c, trial.f, trial.loss, trial.held
            if fallen < _SMALL_FALL or is_as_predicted:
                return _Path(c, loss, held, step + 1, True)
            damping = damping / _MORE if damping > _FIRST_DAMPING * trial.scale else 0.0
        return _Path(c, loss, held, limit, False)

    def _reduced(self, c: Array, f: FitAndHeld, all_rows: bool) -> ReducedProblem | None:
        """Factor of [A_c | -F(c)] with the rows of mu; None where A_c is not finite."""
        prepared = self._prepared
        a = self._response.jacobian(c)
        with np.errstate(over="ignore", invalid="ignore"):
            total = all_sum(prepared.comm, np.array([np.sum(a.fit**2) + np.sum(a.held**2)]))[0]
        if not np.isfinite(total):
            return None
        reduced = reduce_rows(prepared.comm, a.fit, f.fit, prepared.fit_rows.n_rows)
        if all_rows:
            held = reduce_rows(prepared.comm, a.held, f.held, prepared.held_rows.n_rows)
            reduced = reduced.stacked_with(held)
        return reduced.damped(self._mu, c)

    def _trial(
        self, reduced: ReducedProblem, c: Array, loss: float, damping: float, all_rows: bool
    ) -> tuple[_Trial | None, float]:
        """The first step that lowers the loss, lambda growing from trial to trial; and that lambda."""
        scale = float(np.linalg.norm(reduced.r))
        for _ in range(_MOST_TRIALS):
            damped = reduced.damped(damping)
            step = on_first(self._prepared.comm, lambda: damped.solve(len(c)).c)  # noqa: B023
            f = self._response.residual(c + step)
            new_loss, held = self._losses(c + step, f, all_rows)
            if new_loss < loss:
                predicted = reduced.residual_norm(step)
                return _Trial(c + step, f, new_loss, held, predicted, scale), damping
            damping = max(_MORE * damping, _FIRST_DAMPING * scale)
        return None, damping

    def _losses(self, c: Array, f: FitAndHeld, all_rows: bool) -> tuple[float, tuple[float, float]]:
        """||F||^2 + mu^2 ||c||^2 over the rows to fit, and :class:`_Path`'s norms; Inf and NaN pass."""
        with np.errstate(over="ignore", invalid="ignore"):
            change = f.held - self._r0.held
            squares = np.array([f.fit @ f.fit, f.held @ f.held, change @ change])
            fit, held, changed = all_sum(self._prepared.comm, squares)
            loss = float(fit + (held if all_rows else 0.0) + self._mu**2 * (c @ c))
            return loss, (float(np.sqrt(held)), float(np.sqrt(changed)))


@dataclass(frozen=True)
class _Trial:
    """A step that lowers the loss: where it leads, what was predicted there, and the norm of A_c."""

    c: Array
    f: FitAndHeld
    loss: float
    held: tuple[float, float]
    predicted: float
    scale: float
