"""``lsr-hpc status`` and ``lsr-hpc stop``: looking at a run, and asking it to stop, through its files."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from lsr_hpc.console import say
from lsr_hpc.errors import EnvironmentProblem, ExitCode
from lsr_hpc.pipeline.attempt import EndedOutside
from lsr_hpc.pipeline.heartbeat import read_heartbeat
from lsr_hpc.pipeline.journal import read_events
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.lock import Holder, read_holder
from lsr_hpc.pipeline.progress import InstanceProgress, read_progress
from lsr_hpc.pipeline.record import RunRecord, read_record
from lsr_hpc.slurm import Queued, Submission, ask_to_stop, find_queued

__all__ = ["run", "stop"]

_COLUMNS = ("instance", "round", "state", "before", "now", "best", "seconds", "heartbeat")


def stop(options: argparse.Namespace) -> int:
    """Ask a run to stop.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If there is no run.
        EnvironmentProblem: If the wish cannot be written down.
    """
    layout = RunLayout(options.run.absolute())
    queued = _queued(layout)
    if queued is not None and not layout.run.exists():
        ask_to_stop(queued)
        say(f"the run has not begun: asked job {queued.number} to leave")
        return int(ExitCode.DONE)
    read_record(layout)
    try:
        layout.stop.touch(mode=0o600)
    except OSError as error:
        raise EnvironmentProblem(f"{layout.stop} cannot be written: {error.strerror}") from error
    if queued is not None:
        ask_to_stop(queued)
        say(f"left {layout.stop}, and asked job {queued.number} to stop")
        return int(ExitCode.DONE)
    holder = _controller(layout)
    if holder is None:
        say(f"no controller is at work in {layout.root}; none will begin before `lsr-hpc resume`")
    elif holder.is_here:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(holder.pid, signal.SIGUSR1)
        say(f"asked the controller to stop ({holder})")
    else:
        say(f"left {layout.stop} for the controller ({holder}), which looks for it")
    return int(ExitCode.DONE)


def run(options: argparse.Namespace) -> int:
    """Print how far a run is.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If there is no run.
    """
    layout = RunLayout(options.run.absolute())
    queued = None if options.progress else _queued(layout)
    if queued is not None and not layout.run.exists():
        begun = {"state": "submitted", "slurm": asdict(queued)}
        say(json.dumps(begun, indent=1) if options.json else f"{layout.root}: not begun, {_job(queued)}")
        return int(ExitCode.DONE)
    record = read_record(layout)
    progress = [read_progress(layout, i) for i in range(record.instances)]
    if options.progress:
        say(str(_gained(progress)))
        return int(ExitCode.DONE)
    report = _report(layout, record, progress) | {"slurm": queued and asdict(queued)}
    if options.json:
        say(json.dumps(report, indent=1, allow_nan=False))
        return int(ExitCode.DONE)
    holder = _controller(layout)
    say(f"{layout.root}: {report['problem']}, {report['state']}" + (f" ({holder})" if holder else ""))
    if queued is not None:
        say(_job(queued))
    rows = [_COLUMNS, *(tuple(map(_text, (row[c] for c in _COLUMNS))) for row in report["instances"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for entry in report["instances"]:
        if entry["message"]:
            say(f"instance {entry['instance']}: {entry['message']}")
    return int(ExitCode.DONE)


def _controller(layout: RunLayout) -> Holder | None:
    """The controller at work, if there is one."""
    holder = read_holder(layout.lock)
    return holder if holder is not None and holder.is_alive(layout.lock) else None


def _queued(layout: RunLayout) -> Queued | None:
    """The job of the run that is in the queue of SLURM, whether `submit` or sbatch brought it there."""
    started = [
        event.get("slurm_job") for event in read_events(layout.metrics) if event.get("event") == "started"
    ]
    numbers = [str(number) for number in (Submission(layout.root).newest, *started[-1:]) if number]
    return find_queued(numbers) if numbers else None


def _job(queued: Queued) -> str:
    return f"job {queued.number}: {queued.state} {queued.reason}"


def _gained(progress: list[InstanceProgress]) -> int:
    """Number of results that brought a checkpoint other than the one before."""
    gained = 0
    for at in progress:
        checkpoints = [None, *(result.checkpoint for result in at.results)]
        gained += sum(1 for before, now in pairwise(checkpoints) if now not in {before, None})
    return gained


def _report(layout: RunLayout, record: RunRecord, progress: list[InstanceProgress]) -> dict[str, Any]:
    holder = _controller(layout)
    events = [event for event in read_events(layout.metrics) if event.get("event") == "step"]
    seconds = dict.fromkeys(range(record.instances), 0.0)
    for event in events:
        seconds[event["instance"]] += event["wall_s"]
    entries = [_entry(at, seconds[at.instance], holder is not None) for at in progress]
    states = {entry["state"] for entry in entries}
    if holder is not None:
        state = "stopping" if layout.stop.exists() else "running"
    elif states <= {"done", "diverged"}:
        state = "done"
    else:
        state = "failed" if states <= {"done", "diverged", "failed"} else "stopped"
    return {
        "run_id": record.run_id,
        "problem": record.problem,
        "state": state,
        "progress": _gained(progress),
        "instances": entries,
    }


def _entry(at: InstanceProgress, seconds: float, has_controller: bool) -> dict[str, Any]:
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
        "state": state,
        "before": before[0] if before else None,
        "now": errors[-1] if errors else None,
        "best": min([*errors, *before], default=None),
        "seconds": round(seconds, 1),
        "heartbeat": round(time.time() - beat["time"], 1) if beat and state == "running" else None,
        "message": message,
    }


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
