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

import copy
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lsr_hpc.comm import agree, all_sum
from lsr_hpc.errors import AccuracyError, JobError
from lsr_hpc.evaluate import Evaluator
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.iterative.align import Aligned, align
from lsr_hpc.iterative.objective import alignment_problem
from lsr_hpc.iterative.state import (
    BestNetwork,
    BestPredictor,
    IterateState,
    RoundRecord,
    cut_snapshot,
    restored_cut,
)
from lsr_hpc.iterative.stopping import why_stop
from lsr_hpc.oneshot import refine_prepared
from lsr_hpc.params import ParameterLayout
from lsr_hpc.phases import Phases
from lsr_hpc.precision import module_in_precision
from lsr_hpc.prepare import prepare, with_rank
from lsr_hpc.problem import Problem
from lsr_hpc.result import RefineResult
from lsr_hpc.settings import HeldOutSettings, IterateSettings, RefineSettings, SubspaceSettings
from lsr_hpc.snapshot import Boundary, Cut, MemoryState, SavedState, Snapshot, no_boundary
from lsr_hpc.world import this_process

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["iterate", "next_round", "with_parameters"]

Array = NDArray[np.float64]
# Directions of which a record keeps singular value and share of the residual.
_SPECTRUM_POINTS = 150
# Relative difference of two residuals of one network that is rounding.
_ROUNDING = 1e-12


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
    comm = this_process() if comm is None else comm
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
    started = time.monotonic() - (0.0 if saved is None else saved.values["seconds"])
    here = agree(comm, lambda: _round_problem(problem, options, state))

    def inside(phase: str, own: Snapshot) -> Snapshot:
        # The first rank's clock is what is kept.
        values = {"phase": phase, "seconds": time.monotonic() - started}
        return state.snapshot().merged(own).merged(Snapshot({}, values))

    if saved is None or saved.values["phase"] == "refine":
        refined = _refine(
            here,
            comm,
            with_rank(settings, options.rank_of(state.round, settings.subspace.rank)),
            options,
            state,
            lambda part: boundary(lambda: inside("refine", part())),
            saved,
        )
        saved = None
    else:
        refined = _Refined.restored(saved, comm)
    phases = Phases()
    with phases("targets"):
        targets = alignment_problem(here, FunctionalModel(here.model), refined.delta, options)
    with phases("align"):
        aligned = align(
            targets,
            comm,
            settings,
            options,
            lambda part: boundary(lambda: inside("align", refined.snapshot().merged(part()))),
            carried=MemoryState(state.carried),
            saved=saved,
        )
    with phases("network"):
        residual, error = _network_figures(with_parameters(here, aligned.theta), comm, settings)
    seconds = comm.bcast(time.monotonic() - started, root=0)
    return _next_state(state, options, refined, aligned, residual, error, seconds)


@dataclass(frozen=True, kw_only=True)
class _Refined:
    """What a round keeps of its refinement; ``figures`` are fields of :class:`RoundRecord`."""

    delta: Array
    figures: dict[str, Any]
    warm: Cut | None

    def snapshot(self) -> Snapshot:
        own = Snapshot({"refined.delta": self.delta}, {"refined": self.figures})
        return own.merged(cut_snapshot("next_warm", self.warm))

    @classmethod
    def restored(cls, saved: SavedState, comm: MPI.Comm) -> _Refined:
        return cls(
            delta=saved.whole("refined.delta"),
            figures=dict(saved.values["refined"]),
            warm=restored_cut(saved, "next_warm", comm),
        )


def _refine(
    problem: Problem,
    comm: MPI.Comm,
    settings: RefineSettings,
    options: IterateSettings,
    state: IterateState,
    boundary: Boundary,
    saved: SavedState | None,
) -> _Refined:
    """Step 2."""
    phases = Phases()
    with phases("prepare"):
        prepared = prepare(problem, comm, settings)
    given = None if state.warm is None else state.warm.local[: settings.subspace.rank // 2]
    refinement = refine_prepared(
        prepared, phases, given=given, boundary=boundary, saved=saved, scan_errors=False
    )
    result, basis = refinement.result, refinement.basis
    warm = None
    if basis is not None and options.warm_share > 0:
        lo, _ = prepared.jacobian.my_parameters
        leading = basis.v_local[: round(options.warm_share * basis.rank)]
        warm = Cut(leading, lo, prepared.jacobian.local.n_parameters)
    used = next(entry for entry in result.scan if entry["rank"] == result.rank) if result.rank else None
    return _Refined(
        delta=result.delta,
        figures={
            "rank": result.rank,
            "network_error_before": result.error_before,
            "network_residual_before": result.residual_before,
            "predictor_error": result.error_after,
            "predictor_residual": result.residual_true,
            "held_out": None if used is None else used["held_out"],
            "refine_seconds": result.seconds["total"],
            "advice": list(result.advice),
            "scan": [{key: _finite(value) for key, value in entry.items()} for entry in result.scan],
            "spectrum": _thinned_spectrum(result),
        },
        warm=warm,
    )


def _thinned_spectrum(result: RefineResult) -> list[list[float]]:
    """Up to a fixed number of directions, denser among the leading ones: a record stays a few kilobytes."""
    n = len(result.residual_components)
    wanted = np.unique(np.geomspace(1, max(n, 1), _SPECTRUM_POINTS).astype(int)) - 1
    return [[int(i), result.singular_values[i], result.residual_components[i]] for i in wanted if i < n]


def _finite(value: float | None) -> float | None:
    """What JSON can hold of a figure: nothing in place of NaN and Inf."""
    return value if value is not None and math.isfinite(value) else None


def _network_figures(
    problem: Problem, comm: MPI.Comm, settings: RefineSettings
) -> tuple[float, float | None]:
    """Square root of the loss over all rows, and error, of the problem's network."""
    plain = replace(
        settings,
        held_out=HeldOutSettings(fraction=0.0),
        subspace=SubspaceSettings(rank=1),
        compute=replace(settings.compute, jacobian="matrix_free"),
    )
    prepared = prepare(problem, comm, plain)
    own = agree(comm, lambda: float(prepared.fit.residual(prepared.model.field()).square().sum()))
    residual = math.sqrt(float(all_sum(comm, np.array([own]))[0]))
    if not math.isfinite(residual):
        raise AccuracyError(
            f"the residual of problem {problem.name!r} is {residual} at the aligned network: the alignment "
            'left where it is defined; try iterate.objective = "residual", or fewer iterate.steps',
            on_every_rank=True,
        )
    if problem.evaluation is None:
        return residual, None
    return residual, Evaluator(prepared.comm, problem.evaluation, prepared).error(prepared.model.field())


def _next_state(
    state: IterateState,
    options: IterateSettings,
    refined: _Refined,
    aligned: Aligned,
    residual: float,
    error: float | None,
    seconds: float,
) -> IterateState:
    """Steps 5 and 6."""
    record = RoundRecord(
        round=state.round,
        **refined.figures,
        alignment_before=math.sqrt(aligned.loss_before),
        alignment_after=math.sqrt(aligned.loss),
        steps=aligned.steps,
        is_accepted=aligned.loss < aligned.loss_before,
        network_error=error,
        network_residual=residual,
        seconds=seconds,
    )
    predictor = state.predictor
    score = max(record.predictor_residual, record.held_out or 0.0)
    if predictor is None or score < predictor.score:
        predictor = BestPredictor(
            theta=state.theta,
            delta=refined.delta,
            round=state.round,
            score=score,
            error=record.predictor_error,
            residual=record.predictor_residual,
        )
    network = state.network or BestNetwork(
        theta=state.theta,
        round=-1,
        residual=record.network_residual_before,
        error=record.network_error_before,
    )
    if residual < (1 - _ROUNDING) * network.residual:
        network = BestNetwork(theta=aligned.theta, round=state.round, residual=residual, error=error)
    after = IterateState(
        round=state.round + 1,
        theta=aligned.theta,
        predictor=predictor,
        network=network,
        records=(*state.records, record),
        carried=aligned.carried,
        warm=refined.warm,
    )
    return replace(after, finished=why_stop(after, options))


def _round_problem(problem: Problem, options: IterateSettings, state: IterateState) -> Problem:
    """Step 1, and the network as it is now."""
    if options.resample:
        if problem.resample is None:
            raise JobError(
                f"problem {problem.name!r} has fixed points: set iterate.resample = false, or give "
                "Problem.resample",
                on_every_rank=True,
            )
        if state.round > 0:
            problem = replace(problem, blocks=problem.resample(state.round))
    return with_parameters(problem, state.theta)


def with_parameters(problem: Problem, theta: Array) -> Problem:
    """The problem with another state of its network.

    Args:
        problem: The problem.
        theta: Parameters, shape (P,).

    Returns:
        The problem with a float64 copy of the network in that state.
    """
    model = module_in_precision(copy.deepcopy(problem.model), torch.float64)
    ParameterLayout.of(model).write(model, torch.from_numpy(theta))
    return replace(problem, model=model)
