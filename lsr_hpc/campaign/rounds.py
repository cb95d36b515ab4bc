"""A member that is carried through rounds: the run directory of ``lsr-hpc run``, filled inside a step.

The rounds of an instance are one attempt of that directory, with its lease, its checkpoints and its result;
whoever comes later, this step or a controller of ``lsr-hpc resume``, goes on from the newest checkpoint.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lsr_hpc.comm import on_first
from lsr_hpc.errors import LsrError, StopRequested
from lsr_hpc.job import Job
from lsr_hpc.pipeline.advance import Outcome
from lsr_hpc.pipeline.attempt import EndedOutside
from lsr_hpc.pipeline.inherit import delete_half_written, reopened
from lsr_hpc.pipeline.journal import Journal
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.lease import Lease, revoke, take
from lsr_hpc.pipeline.light import call_at_end
from lsr_hpc.pipeline.lock import ControllerLock
from lsr_hpc.pipeline.progress import read_progress
from lsr_hpc.pipeline.record import RunRecord, check_same_job, read_record, write_record
from lsr_hpc.pipeline.run_result import run_result, write_run_result
from lsr_hpc.pipeline.sealing import break_seal, seal_run
from lsr_hpc.pipeline.spec import StepResult, StepSpec, write_result, write_spec
from lsr_hpc.pipeline.step import run_step

if TYPE_CHECKING:
    from mpi4py import MPI

    from lsr_hpc.pipeline.heartbeat import StopFlag
    from lsr_hpc.problem import ProblemFamily

__all__ = ["carry_through_rounds"]


def carry_through_rounds(
    comm: MPI.Comm,
    layout: RunLayout,
    job: Job,
    family: ProblemFamily,
    wanted: Lease | None,
    stop: StopFlag,
) -> dict[str, Any]:
    """Do all rounds of all instances of a member, and what is done at the end of a run.

    Args:
        comm: Communicator.
        layout: The member's run directory; one that is there is gone on with.
        job: Its job.
        family: Its instances.
        wanted: Lease of the member on the first rank; nothing is published without it.
        stop: Asked at every boundary.

    Returns:
        Errors before and after, for the events of the campaign.

    Raises:
        StopRequested: On every rank, once a checkpoint is written.
        LsrError: If a round fails.

    Collective: all ranks; the first one writes.
    """
    with ExitStack() as held:
        record = on_first(comm, lambda: _begin(held, layout, job, family))
        results = [_rounds(comm, layout, record, job, i, stop) for i in range(record.instances)]
        returned: dict[str, Any] = on_first(comm, lambda: _deliver(layout, record, job, results, wanted))
    error = returned.get("error") or {}
    return {"error_before": error.get("before"), "error": error.get("after")}


def _begin(held: ExitStack, layout: RunLayout, job: Job, family: ProblemFamily) -> RunRecord:
    """Lock the run directory, and give it an identity or read the one it has."""
    layout.root.mkdir(parents=True, mode=0o700, exist_ok=True)
    held.enter_context(ControllerLock(layout.lock))
    delete_half_written(layout)
    if not layout.run.exists():
        return write_record(layout, job, family.name, family.n_instances)
    record = read_record(layout)
    check_same_job(layout, record, job)
    break_seal(layout)
    return record


def _rounds(
    comm: MPI.Comm, layout: RunLayout, record: RunRecord, job: Job, instance: int, stop: StopFlag
) -> StepResult:
    """All rounds of an instance that are not yet done."""
    at = on_first(comm, lambda: reopened(layout, read_progress(layout, instance)))
    if at.is_finished and at.last is not None:
        return at.last
    begun = layout.attempts(instance)
    spec = StepSpec(
        run_id=record.run_id,
        instance=instance,
        round=at.next_round,
        rounds=job.rounds.rounds,
        attempt=1 + max((attempt for round_, attempt, _ in begun if round_ == at.next_round), default=0),
        sequence=1 + len(begun),
        world_size=comm.size,
        job_sha256=record.job_sha256,
        run_directory=str(layout.root),
        checkpoint=at.last.checkpoint if at.last else None,
        checkpoint_seconds=job.run.checkpoint_seconds,
        keep=job.run.keep,
        body="lsr_hpc.pipeline.step:run_step",
    )
    spec = comm.bcast(spec)
    files = layout.attempt(instance, spec.round, spec.attempt)

    def lease() -> None:
        for attempt in at.attempts:
            if isinstance(attempt.outcome, EndedOutside):
                revoke(attempt.files)
        files.root.mkdir(parents=True, mode=0o700)
        write_spec(files.spec, spec)
        if take(files) is None:
            raise StopRequested(f"{files.root} is in other hands")

    def answer(result: StepResult) -> None:
        write_result(files.result, result)
        journal = Journal(layout.metrics)
        event = {"instance": instance, "round": spec.round, "attempt": spec.attempt}
        seconds = round(time.perf_counter() - started, 3)
        journal.write("step", **event, wall_s=seconds, status=result.status, metrics=dict(result.metrics))
        journal.close()

    started = time.perf_counter()
    on_first(comm, lease)
    try:
        result = run_step(comm, spec, stop)
    except LsrError as error:
        failure = StepResult(
            status="failed", round=spec.round, message=str(error), exit_code=int(error.exit_code)
        )
        if error.on_every_rank:
            on_first(comm, lambda: answer(failure))
        raise
    on_first(comm, lambda: answer(result))
    if result.status == "yielded":
        raise StopRequested("the step was asked to stop", on_every_rank=True)
    return result


def _deliver(
    layout: RunLayout, record: RunRecord, job: Job, results: list[StepResult], wanted: Lease | None
) -> dict[str, Any]:
    """What a run does at its end, on the first rank alone."""
    if wanted is None or not wanted.is_valid():
        raise StopRequested(f"{layout.root} is in other hands now")
    outcomes = [Outcome(number=0, state="finished", result=result) for result in results]
    returned: dict[str, Any] = {}
    for function in job.run.at_end:
        returned |= call_at_end(function, str(layout.root), results)
    content = run_result(record, job.run.ranks, outcomes, layout.timelines) | returned
    write_run_result(layout.result, content)
    seal_run(layout)
    return returned
