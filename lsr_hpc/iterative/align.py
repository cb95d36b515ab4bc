"""Alignment of the network: minimise ||f(theta)||^2 of an alignment problem from where the network is.

Data-parallel over the ranks of the refinement, in float64 unless asked otherwise, and the same in every run
on the same number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.events import emit
from lsr_hpc.iterative.gradient import GradientAlignment
from lsr_hpc.iterative.tangent import TangentAlignment
from lsr_hpc.prepare import prepare
from lsr_hpc.problem import Problem
from lsr_hpc.settings import HeldOutSettings, IterateSettings, RefineSettings, SolverSettings
from lsr_hpc.snapshot import Boundary, SavedState, Snapshot

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Aligned", "align"]

Array = NDArray[np.float64]


class Alignment(Protocol):
    """An optimiser between two boundaries; everything is equal on all ranks."""

    theta: Array
    loss: float
    steps: int

    def step(self) -> bool:
        """Go on to the next boundary; False once nothing is gained any more. Collective."""

    def snapshot(self) -> Snapshot:
        """What an interrupted alignment goes on from."""

    def carried(self) -> Snapshot:
        """What the alignment of the next round may take over."""


@dataclass(frozen=True)
class Aligned:
    """What an alignment came to.

    Attributes:
        theta: Parameters of the aligned network, shape (P,), float64.
        loss_before: ||f||^2 of the network it began with.
        loss: ||f||^2 at the end; never larger.
        steps: Optimiser steps.
        carried: What the next alignment may take over: trust region and momentum.
    """

    theta: Array
    loss_before: float
    loss: float
    steps: int
    carried: Snapshot


def align(
    problem: Problem,
    comm: MPI.Comm,
    refine_settings: RefineSettings,
    settings: IterateSettings,
    boundary: Boundary,
    *,
    carried: SavedState | None = None,
    saved: SavedState | None = None,
) -> Aligned:
    """Align a network.

    Args:
        problem: The alignment problem, at the network to begin with; see
            :func:`lsr_hpc.iterative.objective.alignment_problem`.
        comm: Communicator.
        refine_settings: Settings of the refinement; resources and free parameters are taken from them.
        settings: Section ``[iterate]``.
        boundary: Called between two steps.
        carried: :attr:`Aligned.carried` of the round before.
        saved: State from a boundary of an interrupted call with the same arguments, to go on from.

    Returns:
        The aligned network; that of the start if nothing lowers the loss.

    Raises:
        JobError: If the alignment problem is wrong.
        AccuracyError: If the loss becomes NaN or Inf.

    Collective: all ranks.
    """
    # No row is held out, and the rank is a tangent step's own affair.
    at_once = replace(
        refine_settings,
        held_out=HeldOutSettings(fraction=0.0),
        solver=SolverSettings(),
        subspace=replace(
            refine_settings.subspace,
            basis="krylov",
            # Memory is planned for the Krylov spaces of tangent steps; first-order optimisers have none.
            rank=settings.tangent_rank if settings.optimizer == "tangent" else 1,
            width=None,
            adaptive=False,
        ),
    )
    prepared = prepare(problem, comm, at_once, may_lower_rank=True)
    theta0 = prepared.model.theta0.cpu().numpy()
    kind = TangentAlignment if settings.optimizer == "tangent" else GradientAlignment
    alignment: Alignment = (
        kind(prepared, settings, carried, theta0) if saved is None else kind(prepared, settings, saved)
    )
    loss_before = alignment.loss if saved is None else float(saved.values["align"]["loss_before"])

    def snapshot() -> Snapshot:
        own = alignment.snapshot()
        return Snapshot(own.arrays, {**own.values, "align": {"loss_before": loss_before}})

    while alignment.steps < settings.steps and alignment.step():
        emit("step", done=alignment.steps, of=settings.steps, residual=math.sqrt(alignment.loss))
        boundary(snapshot)
    is_better = alignment.loss < loss_before
    return Aligned(
        theta=alignment.theta if is_better else theta0,
        loss_before=loss_before,
        loss=alignment.loss if is_better else loss_before,
        steps=alignment.steps,
        carried=alignment.carried(),
    )
