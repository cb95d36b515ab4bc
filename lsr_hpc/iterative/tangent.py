"""Alignment by damped Gauss-Newton steps in the tangent space, each in a Krylov space of its own.

    v = momentum * last step                                          where the network is heading already
    d = v + V c,   min_c ||f + J v + J V c||^2 + mu ||c||^2           damped step, V grown from J^T (f + J v)
    f'' = (2 / h) ((f(theta + h d) - f) / h - J d)                    curvature along the step, h = 1/10
    a = V c',      min_c' ||f''/2 + J V c'||^2 + mu ||c'||^2          geodesic acceleration
    theta <- theta + d + a                                            if ||f|| falls, else mu grows

The singular values of J V answer every mu and both right-hand sides, so that a step costs one Krylov space
and a few evaluations of f. Sources: Levenberg 1944, Marquardt 1963; geodesic acceleration, Transtrum and
Sethna 2012 (arXiv:1201.5885); momentum kept in the null space of the damped step, Goldshlager et al. 2024
(SPRING).
"""

# Legend: N rows, P parameters, k directions; theta parameters, f residual of the alignment, J its Jacobian;
# _local = this rank's rows or slice of the free parameters.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lsr_hpc.comm import agree, all_sum, gather_panel, on_first
from lsr_hpc.dense_svd import dense_svd
from lsr_hpc.errors import AccuracyError
from lsr_hpc.least_squares.tsqr import tsqr
from lsr_hpc.prepare import PreparedProblem
from lsr_hpc.rows import FitAndHeld
from lsr_hpc.settings import IterateSettings
from lsr_hpc.snapshot import SavedState, Snapshot
from lsr_hpc.subspace.krylov import krylov_basis

__all__ = ["TangentAlignment"]

Array = NDArray[np.float64]

# Damping at the very beginning, relative to the largest squared singular value of J.
_FIRST_DAMPING = 1e-4
_LESS, _MORE, _REJECTED = 1 / 3, 2.0, 3.0
# Ratio of achieved to predicted fall of ||f||^2 above and below which the damping changes.
_GOOD, _POOR = 0.6, 0.2
# Length of the acceleration relative to half the step's beyond which the step bends too much to be trusted.
_LARGEST_BEND = 0.75
_STENCIL = 0.1
_MOST_TRIALS = 12
# Damping hides directions with s^2 << mu: the next space gets so many times those with s^2 > mu / 10, and at
# least _LEAST_RANK.
_SPARE = 1.25
_LEAST_RANK = 64
# Blocks of the Krylov space; deeper is better per direction, wider faster.
_WIDTH = 16


class TangentAlignment:
    """Network and trust region between two steps; equal on all ranks.

    Args:
        prepared: The alignment's rows, none of them held out; its rank is the largest of a Krylov space.
        settings: Section ``[iterate]``.
        saved: State of an interrupted alignment with the same arguments, or one of an earlier round, whose
            trust region and momentum are taken over.
        theta: Where to start, shape (P,); the saved network if absent.

    Attributes:
        theta: Parameters of the network, shape (P,), float64.
        loss: ||f||^2 there.
        steps: Steps taken.

    Raises:
        AccuracyError: If the residual is not finite at the start.

    Collective: construction, and every step.
    """

    def __init__(
        self,
        prepared: PreparedProblem,
        settings: IterateSettings,
        saved: SavedState | None = None,
        theta: Array | None = None,
    ) -> None:
        self._prepared = prepared
        self._settings = settings
        kept = saved.values.get("tangent") if saved is not None else None
        size = prepared.model.layout.size
        self._damping: float | None = None
        self._rank = settings.tangent_rank
        self._last_step = np.zeros(size)
        self.steps = 0
        if saved is not None and kept is not None:
            self._damping, self._rank = kept["damping"], kept["rank"]
            self._last_step = saved.whole("tangent.last_step")
        if theta is None:
            assert saved is not None
            theta, self.steps = saved.whole("tangent.theta"), saved.values["tangent.steps"]
        self.theta: Array = theta
        self._residual, self.loss = self._evaluate(theta)
        if not np.isfinite(self.loss):
            raise AccuracyError(
                "the residual of the alignment is NaN or Inf at its start", on_every_rank=True
            )

    def snapshot(self) -> Snapshot:
        """What an interrupted alignment goes on from."""
        own = Snapshot({"tangent.theta": self.theta}, {"tangent.steps": self.steps})
        return own.merged(self.carried())

    def carried(self) -> Snapshot:
        """What the alignment of the next round may take over."""
        return Snapshot(
            {"tangent.last_step": self._last_step},
            {"tangent": {"damping": self._damping, "rank": self._rank}},
        )

    def step(self) -> bool:
        """Take one step.

        Returns:
            Whether it moved; False once no damping helps any more.

        Raises:
            AccuracyError: If the Krylov space loses its orthogonality.

        Collective: one Krylov space, and per trial two evaluations of f and two gathered vectors.
        """
        if self.loss == 0.0:
            return False
        moved = self._try_step(self._settings.momentum)
        if not moved and self._settings.momentum > 0.0 and self._last_step.any():
            # The old direction may be what spoils the step.
            self._last_step = np.zeros_like(self._last_step)
            moved = self._try_step(0.0)
        self.steps += moved
        return moved

    def _try_step(self, momentum: float) -> bool:
        """One Krylov space, and as many dampings as it takes."""
        tangent = self._tangent_space(momentum * self._last_step)
        first = self._damping is None
        damping = _FIRST_DAMPING * tangent.largest**2 if self._damping is None else self._damping
        for _ in range(_MOST_TRIALS):
            trial = self._trial(tangent, damping)
            if trial is not None and trial.loss < self.loss:
                # Momentum may have the linearisation rise, and at rounding it neither rises nor falls.
                predicted = self.loss - trial.predicted
                fallen = (self.loss - trial.loss) / predicted if predicted > 0.0 else 0.0
                if fallen > _GOOD:
                    damping *= _LESS
                elif fallen < _POOR:
                    damping *= _MORE
                self._damping = damping
                felt = int(np.sum(tangent.singular**2 > damping / 10))
                self._rank = max(_LEAST_RANK, math.ceil(_SPARE * felt))
                self._last_step = trial.theta - self.theta
                self.theta, self.loss, self._residual = trial.theta, trial.loss, trial.residual
                return True
            # Far from any trust region the first guess may be wrong by orders of magnitude.
            damping *= _REJECTED**2 if first else _REJECTED
        # The next attempt begins with the damping that this one began with.
        return False

    def _tangent_space(self, start: Array) -> _TangentSpace:
        """V from the residual shifted by the momentum, and the singular values of J V."""
        prepared, comm = self._prepared, self._prepared.comm
        here = prepared.at(torch.from_numpy(self.theta))
        jacobian = here.jacobian
        lo, hi = jacobian.my_parameters
        along_start = jacobian.jv(np.ascontiguousarray(prepared.free_step(start)[np.newaxis, lo:hi]))[0]
        shifted = self._residual + along_start
        rank = min(self._rank, prepared.settings.subspace.rank)
        basis = krylov_basis(
            here.drawing_jacobian.in_precision(jv=torch.float64),
            here.held_jacobian,
            FitAndHeld(shifted, np.zeros(here.held.n_rows)),
            first_row=prepared.fit.first_row,
            rank=rank,
            width=max(1, min(_WIDTH, rank // 4)),
            orthogonalization="auto",
            panels=prepared.settings.compute.panels,
        )
        assert basis.image is not None
        image = basis.image.fit
        r = tsqr(comm, image.T)
        singular, right = on_first(comm, lambda: dense_svd(r)[1:])
        return _TangentSpace(start, along_start, shifted, basis.v_local, image, singular, right)

    def _trial(self, tangent: _TangentSpace, damping: float) -> _Trial | None:
        """The step with this damping; None if it bends too much."""
        c = self._damped(tangent, tangent.shifted, damping)
        step = tangent.start + self._in_parameters(tangent, c)
        along_step = tangent.along_start + c @ tangent.image
        predicted = self._sum_of_squares(self._residual + along_step)
        if self._settings.acceleration:
            nearby, _ = self._evaluate(self.theta + _STENCIL * step)
            curvature = (2 / _STENCIL) * ((nearby - self._residual) / _STENCIL - along_step)
            if not np.isfinite(self._sum_of_squares(curvature)):
                return None
            bend = self._in_parameters(tangent, self._damped(tangent, 0.5 * curvature, damping))
            if 2 * float(np.linalg.norm(bend)) > _LARGEST_BEND * float(np.linalg.norm(step)):
                return None
            step = step + bend
        theta = self.theta + step
        residual, loss = self._evaluate(theta)
        return _Trial(theta, residual, loss, predicted)

    def _damped(self, tangent: _TangentSpace, rhs: Array, damping: float) -> Array:
        """``argmin ||rhs + J V c||^2 + mu ||c||^2`` from the singular values and vectors of J V."""
        gradient = all_sum(self._prepared.comm, tangent.image @ rhs)
        return on_first(
            self._prepared.comm,
            lambda: -tangent.right.T @ ((tangent.right @ gradient) / (tangent.singular**2 + damping)),
        )

    def _in_parameters(self, tangent: _TangentSpace, c: Array) -> Array:
        """V c as a step of all parameters, shape (P,)."""
        jacobian = self._prepared.jacobian
        whole = gather_panel(
            self._prepared.comm, (c @ tangent.v_local)[np.newaxis], jacobian.parameter_ranges
        )
        return self._prepared.whole_step(np.array(whole[0]))

    def _evaluate(self, theta: Array) -> tuple[Array, float]:
        """This rank's rows of f, and ||f||^2 over all ranks; Inf or NaN where f is."""
        prepared = self._prepared
        field = prepared.model.field(torch.from_numpy(theta).to(prepared.model.device))
        residual = agree(prepared.comm, lambda: prepared.fit.residual(field).cpu().numpy())
        return residual, self._sum_of_squares(residual)

    def _sum_of_squares(self, rows: Array) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(all_sum(self._prepared.comm, np.array([rows @ rows]))[0])


@dataclass(frozen=True)
class _TangentSpace:
    """J around the network, as far as a step needs it.

    Attributes:
        start: The momentum v, shape (P,).
        along_start: J v.
        shifted: f + J v.
        v_local: V, shape (k, P_local).
        image: J V, shape (k, N_local).
        singular: Singular values of J V.
        right: Right singular vectors of J V as rows.
    """

    start: Array
    along_start: Array
    shifted: Array
    v_local: Array
    image: Array
    singular: Array
    right: Array

    @property
    def largest(self) -> float:
        return float(self.singular[0])


@dataclass(frozen=True)
class _Trial:
    """A network that may come next: its residual rows, ||f||^2, and what the linearisation predicted."""

    theta: Array
    residual: Array
    loss: float
    predicted: float
