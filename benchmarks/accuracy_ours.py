"""Arms of ``accuracy`` that are ours: one shot, one shot with a re-solve, and rounds, on MPI ranks.

The clock runs from the problem in memory on: checks, choice of a representation, and compilation are on it.
Evaluation data are taken away from the product, so that it spends no time on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.accuracy_arms import all_rows
from benchmarks.arms import Measurement
from benchmarks.cases import Case, load
from benchmarks.track import Track, identity
from lsr_hpc.errors import StopRequested
from lsr_hpc.events import Event, listening
from lsr_hpc.plan import peak_rss_bytes

__all__ = ["iterative", "one_shot"]

_STEPS, _TANGENT_RANK, _ROUND_RANK = 10, 400, 400


def one_shot(case: Case, budget_s: float, resolve: bool) -> Measurement:
    """Arm: the product's refinement.

    Args:
        case: The case.
        budget_s: Seconds that count.
        resolve: Whether to solve again on the true residual, where it is nonlinear in u.

    Returns:
        The measurement.

    Collective: all ranks of COMM_WORLD.
    """
    from mpi4py import MPI

    from lsr_hpc.oneshot import refine_prepared
    from lsr_hpc.petsc import start
    from lsr_hpc.phases import Phases
    from lsr_hpc.prepare import prepare

    start([])
    comm = MPI.COMM_WORLD
    problem, settings = load(case)
    settings = replace(settings, solver=replace(settings.solver, resolve="auto" if resolve else False))
    # As in the other arms: the first differentiation in a process loads libraries, which is nobody's method.
    linear = all_rows(case)
    comm.Barrier()
    track = Track(budget_s)
    phases = Phases()
    with phases("prepare"):
        prepared = prepare(replace(problem, evaluation=None), comm, settings)
    result = refine_prepared(prepared, phases, scan_errors=False).result
    comm.Barrier()
    track.tell(prepared.model.theta0, torch.from_numpy(result.delta), rank=result.rank)
    peak = comm.allreduce(peak_rss_bytes())
    if comm.rank:
        return {}
    counts = {
        "j_columns": result.counts["jv_columns"] + result.counts["held_out_jv_columns"],
        "jt_columns": result.counts["jtu_columns"],
    }
    found = track.judged(linear, **counts, **identity(problem))
    return {**found, "peak_rss_bytes": peak, "outcome": result.outcome.value, "phases": result.seconds}


@dataclass
class _Watch:
    """Looks at the rounds between two steps, and ends them when the time is over.

    Attributes:
        comm: Communicator.
        network: Clock of the network's weights.
        predictor: Clock of the best predictor.
        began: When the round in hand began.
        columns: Columns of J and J^T so far.
    """

    comm: Any
    network: Track
    predictor: Track
    began: float = 0.0
    columns: int = 0
    _is_aligning: bool = False
    _round: int = -1
    _best: float = math.inf

    def hear(self, event: Event) -> None:
        """Count products, and note what the round is at."""
        if event["event"] == "product":
            self.columns += event["columns"]
        elif event["event"] == "phase began":
            self._is_aligning = event["phase"] == "align"

    def __call__(self, snapshot: Callable[[], Any]) -> None:
        """Tell of network and predictor; StopRequested on all ranks together once the time is over."""
        if self._is_aligning:
            taken = snapshot()
            self.network.tell(torch.from_numpy(taken.arrays["tangent.theta"]))
            if taken.values["round"] != self._round:
                self._round = taken.values["round"]
                self._refined(taken)
        if self.comm.bcast(self.network.is_over, root=0):
            raise StopRequested("the time is over")

    def _refined(self, taken: Any) -> None:
        """Tell of a round's predictor, from its refinement on, if it is the best by the product's rule."""
        figures = taken.values["refined"]
        score = max(figures["predictor_residual"], figures["held_out"] or 0.0)
        if score < self._best:
            self._best = score
            self.predictor.tell(
                torch.from_numpy(taken.arrays["theta"]),
                torch.from_numpy(taken.arrays["refined.delta"]),
                seconds=self.began + figures["refine_seconds"],
            )


def iterative(case: Case, budget_s: float, objective: str) -> list[Measurement]:
    """Arm: rounds of refinement and alignment.

    The predictor counts from the end of its refinement on, the network from each tangent step on.

    Args:
        case: The case.
        budget_s: Seconds.
        objective: ``"residual"`` or ``"targets"``.

    Returns:
        Two measurements: of the best predictor so far, by the product's own rule, and of the network.

    Collective: all ranks of COMM_WORLD.
    """
    from mpi4py import MPI

    from lsr_hpc.iterative.rounds import next_round
    from lsr_hpc.iterative.state import IterateState
    from lsr_hpc.petsc import start
    from lsr_hpc.settings import IterateSettings

    start([])
    comm = MPI.COMM_WORLD
    problem, settings = load(case)
    rank = min(settings.subspace.rank, _ROUND_RANK)
    settings = replace(settings, subspace=replace(settings.subspace, rank=rank))
    options = IterateSettings(
        rounds=10**6, patience=10**6, objective=objective, steps=_STEPS, tangent_rank=_TANGENT_RANK
    )
    blind = replace(problem, evaluation=None)
    state = IterateState.start(blind)
    linear = all_rows(case)
    comm.Barrier()
    network = Track(budget_s)
    watch = _Watch(comm, network, Track(budget_s, started=network.started))
    network.tell(torch.from_numpy(state.theta), seconds=0.0)
    with listening(watch.hear):
        while not state.finished and not comm.bcast(network.is_over, root=0):
            watch.began = network.seconds
            try:
                state = next_round(blind, comm, settings, options, state, boundary=watch)
            except StopRequested:
                break
    peak = comm.allreduce(peak_rss_bytes())
    if comm.rank:
        return []
    more = {"rounds": state.round, "columns": watch.columns, **identity(problem)}
    found = []
    for part, track in (("predictor", watch.predictor), ("network", network)):
        if track.kept:
            found.append({**track.judged(linear, **more), "peak_rss_bytes": peak, "part": part})
        else:
            found.append({"skipped": f"no refinement ended within {budget_s:g} s", "part": part})
    return found
