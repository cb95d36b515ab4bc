"""``lsr-hpc status``: how far a run is, from its files, and what SLURM says of its job."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lsr_hpc.commands.overview import controller_of, gained, job_of, numbers_of, overview
from lsr_hpc.console import say
from lsr_hpc.errors import ExitCode
from lsr_hpc.pipeline.journal import read_events
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.progress import read_progress
from lsr_hpc.pipeline.record import read_record
from lsr_hpc.publish import RUN_MARKER, unfinished
from lsr_hpc.slurm import Submission, find_ended

__all__ = ["run"]

_HEAD = ("", "SLURM", "round", "state", "before", "now", "best", "seconds", "ETA", "heartbeat")


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
    if not layout.run.exists() and Submission(layout.root).newest and not options.progress:
        report = _not_begun(layout)
    else:
        record = read_record(layout)
        progress = [read_progress(layout, i) for i in range(record.instances)]
        if options.progress:
            say(str(gained(progress)))
            return int(ExitCode.DONE)
        report = overview(layout, record, progress)
    if options.json:
        say(json.dumps(report, indent=1, allow_nan=False))
        return int(ExitCode.DONE)
    holder = controller_of(layout)
    what = f"{report['problem']}, " if report["problem"] else ""
    say(f"{layout.root}: {what}{report['state']}" + (f" ({holder})" if holder else ""))
    _say_table([_HEAD, _whole(report), *(_row(entry) for entry in report["instances"])])
    for entry in report["instances"]:
        if entry["message"]:
            say(f"instance {entry['instance']}: {entry['message']}")
    return int(ExitCode.DONE)


def _not_begun(layout: RunLayout) -> dict[str, Any]:
    """A job that was submitted: rounds that have no directory yet, or one shot, which has it at the end."""
    submission = Submission(layout.root)
    queued = job_of(layout) or find_ended(numbers_of(layout)[0])
    events: list[dict[str, Any]] = []
    for directory in (layout.root, *unfinished(layout.root)):
        events = events or read_events(directory / "metrics.jsonl")
    done = [event for event in events if event.get("event") == "refined"]
    if submission.has_rounds:
        state = "not begun"
    elif (layout.root / RUN_MARKER).is_file():
        state = "one shot, done"
    else:
        state = "one shot, not done"
    errors = {
        name: [e["error"][key] for e in done if e["error"][key] is not None]
        for name, key in (("before", "before"), ("now", "after"))
    }
    return {
        "problem": done[0]["problem"] if len(done) == 1 else "",
        "state": state,
        "slurm": queued and asdict(queued),
        "instances_done": len(done),
        "seconds": sum(e["seconds"].get("total", 0.0) for e in done),
        "eta_s": None,
        "instances": [],
        **{name: statistics.fmean(values) if values else None for name, values in errors.items()},
    }


def _whole(report: dict[str, Any]) -> tuple[str, ...]:
    """The row of the run: sums, and means over the instances."""
    entries = report["instances"]
    means = {
        key: statistics.fmean(values) if (values := [e[key] for e in entries if e[key] is not None]) else None
        for key in ("before", "now", "best")
    }
    slurm = report["slurm"]
    of = f" of {len(entries)}" if entries else ""
    return (
        "run",
        f"{slurm['number']} {slurm['state']} {slurm['reason']}" if slurm else "-",
        _rounds(sum(e["round"] for e in entries), [e["rounds"] for e in entries]),
        f"{report['instances_done']}{of} done",
        *(_text(means[key] if entries else report.get(key)) for key in means),
        _text(sum(e["seconds"] for e in entries) if entries else report.get("seconds")),
        _duration(report["eta_s"]),
        "",
    )


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(entry["instance"]),
        "",
        _rounds(entry["round"], [entry["rounds"]]),
        *(_text(entry[key]) for key in ("state", "before", "now", "best", "seconds")),
        "",
        _text(entry["heartbeat"]),
    )


def _rounds(done: int, of: Sequence[int | None]) -> str:
    """Rounds done and rounds at most."""
    known = [number for number in of if number is not None]
    return f"{done} of {sum(known)}" if known else "-"


def _say_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _duration(seconds: float | None) -> str:
    """An upper bound, for stop rules may end rounds earlier."""
    if not seconds:
        return "-"
    minutes = round(seconds / 60)
    return f"<= {minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"<= {max(1, minutes)} min"


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
