"""Damped Gauss-Newton on the residual of the refined field, in the coefficients of a fixed subspace.

    min over c of ||F(c)||^2 + mu^2 ||c||^2,     A_c = dF/dc
    min over s of ||F(c) + A_c s||^2 + mu^2 ||c + s||^2 + lambda^2 ||s||^2,   c <- c + s

Lambda (Levenberg 1944, Marquardt 1963) comes in only where a step would raise ||F||.
"""

# Legend: c coefficients of j directions.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.comm import all_sum, on_first
from lsr_hpc.least_squares.reduced import ReducedProblem, reduce_rows
from lsr_hpc.response import Response
from lsr_hpc.rows import FitAndHeld
from lsr_hpc.settings import SolverSettings

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["GaussNewton", "Path"]

Array = NDArray[np.float64]

# Relative fall of ||F|| below which a step was the last; and the same distance from the linear prediction.
_SMALL_FALL = 1e-3
# First lambda over the norm of A_c, its factor from trial to trial, and how many are tried.
_FIRST_DAMPING, _MORE, _MOST_TRIALS = 1e-6, 10.0, 12


@dataclass(frozen=True)
class Path:
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


class GaussNewton:
    """Damped Gauss-Newton on F; every method is collective.

    Args:
        comm: Communicator over whose ranks the rows are cut.
        settings: With ``mu`` and the most steps of one descent.
        response: F and A_c.
        r0: Residual at the start, F(0).
        n_fit: Global number of fitted rows.
        n_held: Global number of held-out rows.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        settings: SolverSettings,
        response: Response,
        r0: FitAndHeld,
        n_fit: int,
        n_held: int,
    ) -> None:
        self._comm = comm
        self._response = response
        self._r0 = r0
        self._n_fit, self._n_held = n_fit, n_held
        self._mu = settings.mu
        self._limit = settings.resolve_steps

    def nested(self, ranks: Sequence[int]) -> list[Path]:
        """Solutions of increasing ranks on the fitted rows, from the start on, which comes first.

        Args:
            ranks: Increasing ranks.

        Returns:
            A path for rank 0, and one for each of the ranks.
        """
        nothing = np.zeros(0)
        paths = [Path(nothing, *self._losses(nothing, self._r0, all_rows=False), 0, True)]
        for rank in ranks:
            before = paths[-1].c
            paths.append(self.descend(np.concatenate([before, np.zeros(rank - len(before))])))
        return paths

    def descend(self, c: Array, *, all_rows: bool = False) -> Path:
        """Steps from c until the residual no longer falls.

        Args:
            c: Start, shape (j,).
            all_rows: Whether on all rows of the loss, not the fitted ones alone.

        Returns:
            Where they have led.
        """
        response = self._response
        f = response.residual(c)
        loss, held = self._losses(c, f, all_rows)
        damping = 0.0
        for step in range(self._limit):
            reduced = self._reduced(c, f, all_rows)
            if reduced is None:
                return Path(c, loss, held, step, True)
            trial, damping = self._trial(reduced, c, loss, damping, all_rows)
            if trial is None:
                return Path(c, loss, held, step, True)
            fallen = 1 - np.sqrt(trial.loss / loss)
            missed = abs(np.sqrt(trial.loss) - trial.predicted)
            is_as_predicted = damping == 0.0 and missed <= _SMALL_FALL * trial.predicted
            c, f, loss, held = trial.c, trial.f, trial.loss, trial.held
            if fallen < _SMALL_FALL or is_as_predicted:
                return Path(c, loss, held, step + 1, True)
            damping = damping / _MORE if damping > _FIRST_DAMPING * trial.scale else 0.0
        return Path(c, loss, held, self._limit, False)

    def _reduced(self, c: Array, f: FitAndHeld, all_rows: bool) -> ReducedProblem | None:
        """Factor of [A_c | -F(c)] with the rows of mu; None where A_c is not finite."""
        a = self._response.jacobian(c)
        with np.errstate(over="ignore", invalid="ignore"):
            total = all_sum(self._comm, np.array([np.sum(a.fit**2) + np.sum(a.held**2)]))[0]
        if not np.isfinite(total):
            return None
        reduced = reduce_rows(self._comm, a.fit, f.fit, self._n_fit)
        if all_rows:
            held = reduce_rows(self._comm, a.held, f.held, self._n_held)
            reduced = reduced.stacked_with(held)
        return reduced.damped(self._mu, c)

    def _trial(
        self, reduced: ReducedProblem, c: Array, loss: float, damping: float, all_rows: bool
    ) -> tuple[_Trial | None, float]:
        """The first step that lowers the loss, lambda growing from trial to trial; and that lambda."""
        scale = float(np.linalg.norm(reduced.r))
        for _ in range(_MOST_TRIALS):
            damped = reduced.damped(damping)
            step = on_first(self._comm, lambda: damped.solve(len(c)).c)  # noqa: B023
            f = self._response.residual(c + step)
            new_loss, held = self._losses(c + step, f, all_rows)
            if new_loss < loss:
                predicted = reduced.residual_norm(step)
                return _Trial(c + step, f, new_loss, held, predicted, scale), damping
            damping = max(_MORE * damping, _FIRST_DAMPING * scale)
        return None, damping

    def _losses(self, c: Array, f: FitAndHeld, all_rows: bool) -> tuple[float, tuple[float, float]]:
        """||F||^2 + mu^2 ||c||^2 over the rows to fit, and :class:`Path`'s norms; Inf and NaN pass."""
        with np.errstate(over="ignore", invalid="ignore"):
            change = f.held - self._r0.held
            squares = np.array([f.fit @ f.fit, f.held @ f.held, change @ change])
            fit, held, changed = all_sum(self._comm, squares)
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
