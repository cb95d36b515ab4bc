"""Iterative LSR: rounds of refinement and alignment (arXiv:2601.13989, first version), distributed.

    1. resample     new points of the residual, if the problem can
    2. refine       one-shot LSR at theta_i: predictor u* = u(theta_i) + [du/dtheta] delta_i
    3. targets      what the network is to become: the loss's own minimum, or the values of u*
    4. align        theta_i -> theta_{i+1} by supervised or residual descent, on the same ranks
    5. accept       theta_{i+1} if the alignment's loss fell; the best predictor and network are kept
    6. stop         after the last round, on time, on target, or when nothing improves any more
"""

# Legend: P parameters; theta_i network at the start of round i, delta_i its refined predictor's correction.

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lsr_hpc.certify import field_error, field_residual
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.iterative.align import Aligned, align
from lsr_hpc.iterative.objective import alignment_problem
from lsr_hpc.iterative.state import Best, IterateState, RoundRecord
from lsr_hpc.iterative.stopping import why_stop
from lsr_hpc.phases import Phases
from lsr_hpc.prepare import PreparedProblem, prepare, with_rank
from lsr_hpc.problem import Problem
from lsr_hpc.refine import refine_prepared
from lsr_hpc.result import RefineResult
from lsr_hpc.settings import IterateSettings, RefineSettings
from lsr_hpc.snapshot import Boundary, MemoryState, SavedState, Snapshot, no_boundary
from lsr_hpc.subspace.basis import Basis

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["iterate", "next_round", "with_parameters"]

Array = NDArray[np.float64]


def iterate(
    problem: Problem,
    comm: MPI.Comm | None = None,
    settings: RefineSettings | None = None,
    iterate_settings: IterateSettings | None = None,
) -> IterateState:
    """Run all rounds in this program, without checkpoints.

    Args:
        problem: Network, residual blocks and evaluation data, equal on all ranks.
        comm: Communicator whose ranks share the rows; None works in this process alone.
        settings: Settings of the refinements; None takes the defaults.
        iterate_settings: Settings of the rounds; None takes the defaults.

    Returns:
        The final state: records of the rounds, best predictor, best network.

    Raises:
        JobError: If the input is wrong.
        AccuracyError: If a promise that the method rests on was broken.

    Collective: all ranks of ``comm``.
    """
    from mpi4py import MPI

    comm = MPI.COMM_SELF if comm is None else comm
    options = iterate_settings or IterateSettings()
    state = IterateState.start(problem)
    while not state.finished:
        state = next_round(problem, comm, settings or RefineSettings(), options, state)
    return state


def next_round(
    problem: Problem,
    comm: MPI.Comm,
    settings: RefineSettings,
    options: IterateSettings,
    state: IterateState,
    *,
    boundary: Boundary = no_boundary,
    saved: SavedState | None = None,
) -> IterateState:
    """Do one round.

    Args:
        problem: The problem as it was handed in.
        comm: Communicator.
        settings: Settings of the refinement.
        options: Section ``[iterate]``.
        state: State after the round before.
        boundary: Called where the round may be interrupted.
        saved: State from a boundary of this very round, to go on from.

    Returns:
        The state after the round; ``finished`` says whether it was the last and why.

    Raises:
        JobError: If the input is wrong.
        AccuracyError: If a promise that the method rests on was broken.

    Collective: all ranks.
    """
    started = time.monotonic() - _seconds(saved)
    here = _round_problem(problem, options, state)

    def interrupted(own: Snapshot, phase: str) -> Snapshot:
        seconds = comm.bcast(time.monotonic() - started, root=0)
        return state.snapshot().merged(own).merged(Snapshot({}, {"phase": phase, "seconds": seconds}))

    if saved is None or saved.values["phase"] == "refine":
        rank = options.rank_of(state.round, settings.subspace.rank)
        result, basis = _refine(here, comm, with_rank(settings, rank), options, state, interrupted, boundary, saved)
        refined = _Refined.of(result)
        warm = _leading(basis, options, rank)
        saved = None
    else:
        refined = _Refined.from_saved(saved)
        warm = _saved_warm(saved)

    # Steps 3 and 4.
    model = FunctionalModel(here.model)
    aim = alignment_problem(here, model, refined.delta, options)
    aligned = align(
        aim,
        comm,
        settings,
        options,
        lambda snapshot: boundary(lambda: interrupted(snapshot().merged(refined.snapshot()), "align")),
        carried=state.carried,
        saved=saved,
    )
    return _finish_round(here, comm, settings, options, state, refined, aligned, time.monotonic() - started)
