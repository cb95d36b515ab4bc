"""What is known of a run from outside: its controller, its job, how far it is, and what is left to do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from lsr_hpc.errors import JobError
from lsr_hpc.pipeline.attempt import EndedOutside
from lsr_hpc.pipeline.heartbeat import read_heartbeat
from lsr_hpc.pipeline.journal import read_events
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.lock import Holder, read_holder
from lsr_hpc.pipeline.progress import InstanceProgress
from lsr_hpc.pipeline.record import RunRecord, stored_job
from lsr_hpc.slurm import Queued, Submission, find_ended, find_queued

__all__ = ["controller_of", "gained", "job_of", "numbers_of", "overview"]


def controller_of(layout: RunLayout) -> Holder | None:
    """The controller at work, if there is one.

    Args:
        layout: The run directory.

    Returns:
        Who holds the lock.
    """
    holder = read_holder(layout.lock)
    return holder if holder is not None and holder.is_alive(layout.lock) else None


def numbers_of(layout: RunLayout) -> list[str]:
    """Numbers of the newest jobs of a run, whether ``submit`` or sbatch brought them into the queue.

    Args:
        layout: The run directory.

    Returns:
        At most two, the newest that was submitted first.
    """
    started = [
        event.get("slurm_job") for event in read_events(layout.metrics) if event.get("event") == "started"
    ]
    return [str(number) for number in (Submission(layout.root).newest, *started[-1:]) if number]


def job_of(layout: RunLayout) -> Queued | None:
    """The job of a run that is in the queue of SLURM.

    Args:
        layout: The run directory.

    Returns:
        The job, or None.
    """
    numbers = numbers_of(layout)
    return find_queued(numbers) if numbers else None


def gained(progress: Sequence[InstanceProgress]) -> int:
    """Number of results that brought a checkpoint other than the one before.

    Args:
        progress: How far the instances are.

    Returns:
        A number that only grows.
    """
    count = 0
    for at in progress:
        checkpoints = [None, *(result.checkpoint for result in at.results)]
        count += sum(1 for before, now in pairwise(checkpoints) if now not in {before, None})
    return count


def overview(layout: RunLayout, record: RunRecord, progress: Sequence[InstanceProgress]) -> dict[str, Any]:
    """Everything that ``status`` shows of a run of rounds.

    Args:
        layout: The run directory.
        record: Its identity.
        progress: How far its instances are.

    Returns:
        JSON values; ``eta_s``, seconds that the rounds which are left will take at most, is None where no
        round is finished yet.
    """
    holder, queued = controller_of(layout), job_of(layout)
    seconds = dict.fromkeys(range(record.instances), 0.0)
    for event in read_events(layout.metrics):
        if event.get("event") == "step":
            seconds[event["instance"]] += event["wall_s"]
    rounds, at_once = _plan(layout, record)
    entries = [_entry(at, seconds[at.instance], rounds, holder is not None) for at in progress]
    states = {entry["state"] for entry in entries}
    if holder is not None:
        state = "stopping" if layout.stop.exists() else "running"
    elif states <= {"done", "diverged"}:
        state = "done"
    elif queued is not None:
        # For its job to start, or to start again.
        state = "waiting"
    else:
        state = "failed" if states <= {"done", "diverged", "failed"} else "stopped"
    if queued is None and state == "stopped" and (numbers := numbers_of(layout)):
        queued = find_ended(numbers[0])
    return {
        "run_id": record.run_id,
        "problem": record.problem,
        "state": state,
        "slurm": queued and asdict(queued),
        "instances_done": sum(entry["state"] in {"done", "diverged"} for entry in entries),
        "rounds": rounds,
        "progress": gained(progress),
        "eta_s": _left_s(entries, at_once),
        "instances": entries,
    }


def _plan(layout: RunLayout, record: RunRecord) -> tuple[int | None, int]:
    """Rounds of an instance at most, and how many instances are worked at together."""
    with suppress(JobError):
        job = stored_job(layout, record, [])
        return job.rounds.rounds, job.run.instances_at_once
    return None, 1


def _left_s(entries: Sequence[dict[str, Any]], at_once: int) -> float | None:
    """Seconds that are left: instances without a round of their own take as long as the others' mean."""
    going = [e for e in entries if e["state"] not in {"done", "diverged", "failed"}]
    known = [e["seconds"] / e["round"] for e in entries if e["round"]]
    if not known or any(e["rounds"] is None for e in going):
        return None
    mean, left_s = statistics.fmean(known), 0.0
    for entry in going:
        of_a_round = entry["seconds"] / entry["round"] if entry["round"] else mean
        left_s += (entry["rounds"] - entry["round"]) * of_a_round
    return round(left_s / min(at_once, max(1, len(going))), 1)


def _entry(at: InstanceProgress, seconds: float, rounds: int | None, has_controller: bool) -> dict[str, Any]:
    newest = at.attempts[-1] if at.attempts else None
    beat = read_heartbeat(newest.files.heartbeat) if newest else None
    state, message = "waiting", ""
    if at.is_finished and at.last is not None:
        state = at.last.status
    elif newest is None:
        pass
    elif isinstance(newest.outcome, EndedOutside):
        at_work = has_controller and not newest.files.revoked.exists()
        state = "running" if at_work else "interrupted"
    elif newest.outcome.status == "failed":
        state, message = "failed", newest.outcome.message
    else:
        state = "waiting" if has_controller else "stopped"
    errors = [r.metrics["error"] for r in at.results if r.metrics.get("error") is not None]
    before = [r.metrics["error_before"] for r in at.results if r.metrics.get("error_before") is not None]
    return {
        "instance": at.instance,
        "round": at.next_round,
        "rounds": rounds,
        "state": state,
        "before": before[0] if before else None,
        "now": errors[-1] if errors else None,
        # Of the predictor that is kept, which the residual chooses: errors are for the reader alone.
        "best": at.results[-1].metrics.get("error_best") if at.results else None,
        "seconds": round(seconds, 1),
        "heartbeat": round(time.time() - beat["time"], 1) if beat and state == "running" else None,
        "message": message,
    }
