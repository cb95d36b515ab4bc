"""The body of a step: what the MPI ranks of one attempt do together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.errors import AccuracyError, StopRequested
from lsr_hpc.phases import Phases
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.spec import CheckpointId, StepResult, StepSpec

if TYPE_CHECKING:
    from mpi4py import MPI

    from lsr_hpc.checkpoint.store import CheckpointStore
    from lsr_hpc.iterative.state import IterateState
    from lsr_hpc.pipeline.heartbeat import StopFlag
    from lsr_hpc.snapshot import Snapshot

__all__ = ["round_name", "run_step"]

log = logging.getLogger(__name__)

# Of a round's record, what is too long for a line of metrics, or told elsewhere.
_KEPT_IN_THE_STATE = {"round", "advice", "scan", "spectrum"}


def run_step(comm: MPI.Comm, spec: StepSpec, stop: StopFlag) -> StepResult:
    """Carry one instance forward by up to ``spec.rounds`` rounds.

    Args:
        comm: Communicator of ``spec.world_size`` ranks.
        spec: What to do.
        stop: Asked at every boundary inside the step: ``stop.is_set()`` is local to a rank, so the ranks have
            to agree on it. Once it is set, write a checkpoint and return ``yielded``.

    Returns:
        The result, equal on all ranks; the first rank's is published.

    Raises:
        AccuracyError: If the very first round breaks a promise; a later one ends as ``diverged``.
        LsrError: With ``on_every_rank`` set if all ranks raise it together; every other exception ends all
            ranks with one message.

    Collective: all ranks.
    """
    import torch

    from lsr_hpc.build import build_problem
    from lsr_hpc.checkpoint.store import CheckpointStore
    from lsr_hpc.comm import agree, on_first
    from lsr_hpc.iterative.rounds import next_round
    from lsr_hpc.iterative.state import IterateState
    from lsr_hpc.petsc import start
    from lsr_hpc.pipeline.record import read_record, stored_job
    from lsr_hpc.threads import local_threads

    torch.set_num_threads(local_threads(comm))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("lsr_hpc").setLevel(logging.ERROR if comm.rank else logging.INFO)
    phases = Phases()
    with phases("start"):
        agree(comm, lambda: start([]))
        layout = RunLayout(Path(spec.run_directory))
        job = agree(comm, lambda: stored_job(layout, read_record(layout), []))
        problem = agree(comm, lambda: build_problem(job).instance(spec.instance))
    with phases("restore"):
        store = CheckpointStore(layout.checkpoints(spec.instance), spec.job_sha256, spec.keep)
        on_first(comm, store.purge)
        found = store.load_newest(comm)
        newest, saved = found or (None, None)
        state = IterateState.start(problem) if saved is None else IterateState.restored(saved, comm)
    if comm.rank == 0:
        log.info("instance %d: from %s", spec.instance, newest.name if newest else "the trained network")
    keeper = _Keeper(comm, store, stop, spec.checkpoint_seconds, newest, phases)
    inside = saved if saved is not None and "phase" in saved.values else None
    try:
        while state.round < spec.round + spec.rounds and not state.finished:
            keeper.begin(state.round, 0 if inside is None else inside.values["part"])
            state = next_round(
                problem, comm, job.refine_settings, job.rounds, state, boundary=keeper, saved=inside
            )
            inside = None
            keeper.finish(state)
    except StopRequested:
        return _result(state, keeper.newest, phases, status="yielded", round=state.round)
    except AccuracyError as error:
        if state.predictor is None or not error.on_every_rank:
            raise
        return _result(
            state,
            keeper.newest,
            phases,
            status="diverged",
            round=state.round,
            is_finished=True,
            why=str(error),
        )
    return _result(
        state,
        keeper.newest,
        phases,
        status="done",
        round=state.round - 1,
        is_finished=bool(state.finished),
        why=state.finished,
    )


def round_name(round_: int) -> str:
    """Name of the checkpoint after a round.

    Args:
        round_: Number of the round, from 0.

    Returns:
        Such as ``"round-0007"``.
    """
    return f"round-{round_:04d}"


class _Keeper:
    """The boundary of a step: writes checkpoints when they are due, and ends the step when it is to stop."""

    def __init__(
        self,
        comm: MPI.Comm,
        store: CheckpointStore,
        stop: StopFlag,
        every_s: float,
        newest: CheckpointId | None,
        phases: Phases,
    ) -> None:
        self._comm = comm
        self._store = store
        self._stop = stop
        self._every_s = every_s
        self._phases = phases
        self._round = self._part = 0
        self._written = time.monotonic()
        self.newest = newest

    def begin(self, round_: int, part: int) -> None:
        """Tell which round it is, and how many states inside it have been kept so far."""
        self._round, self._part = round_, part

    def finish(self, state: IterateState) -> None:
        """Keep a finished round."""
        last = state.records[-1]
        self._keep(
            round_name(self._round),
            state.snapshot(),
            (state.round, 0),
            max(last.predictor_residual, last.held_out or 0.0),
        )

    def __call__(self, snapshot: Callable[[], Snapshot]) -> None:
        """Keep a state inside the round if it is time, or if the step is to stop.

        Raises:
            StopRequested: On every rank, once the state is kept.
        """
        from mpi4py import MPI

        from lsr_hpc.snapshot import Snapshot

        # The first rank's clock counts; signals reach ranks at different moments.
        is_due = self._comm.rank == 0 and time.monotonic() - self._written >= self._every_s
        must_stop, is_due = divmod(self._comm.allreduce(2 * self._stop.is_set() + is_due, op=MPI.BOR), 2)
        if not (must_stop or is_due):
            return
        self._part += 1
        kept = snapshot().merged(Snapshot({}, {"part": self._part}))
        self._keep(f"{round_name(self._round)}-part", kept, (self._round, self._part), None)
        if must_stop:
            raise StopRequested("the step was asked to stop", on_every_rank=True)

    def _keep(self, name: str, snapshot: Snapshot, progress: tuple[int, int], score: float | None) -> None:
        with self._phases("checkpoint"):
            self.newest = self._store.save(self._comm, name, snapshot, progress=progress, score=score)
        self._written = time.monotonic()


def _result(state: IterateState, newest: CheckpointId | None, phases: Phases, **outcome: Any) -> StepResult:
    seconds = {name: round(s, 3) for name, s in phases.seconds.items()}
    metrics: dict[str, Any] = {"step_seconds": seconds}
    if state.records:
        first, last = state.records[0], state.records[-1]
        metrics |= {k: v for k, v in asdict(last).items() if k not in _KEPT_IN_THE_STATE}
        metrics |= {
            "error_before": first.network_error_before,
            "error": last.predictor_error,
            "error_best": state.predictor.error if state.predictor else None,
            "residual_before": first.network_residual_before,
            "seconds": state.seconds,
        }
    return StepResult(metrics=metrics, checkpoint=newest, **outcome)
