"""The phases of a rank with what was done and sent in each, for the timeline of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lsr_hpc.events import Event
from lsr_hpc.petsc_log import PetscCounts, PetscLog
from lsr_hpc.traffic import Traffic

__all__ = ["TIMELINE", "PhaseRecorder", "append_timeline", "read_timelines", "timeline_lines"]

# Phases of all MPI ranks, one line each.
TIMELINE = "timeline.jsonl"
_IN_TIMELINE = (
    "phase",
    "begin",
    "end",
    "peak_rss_bytes",
    "flops",
    "received_bytes",
    "messages",
    "reductions",
    "wait_s",
)


class PhaseRecorder:
    """A listener that keeps the phases which have ended, and what was counted in them.

    Args:
        traffic: Counts of the communicator that the phases use.
    """

    def __init__(self, traffic: Traffic | None = None) -> None:
        self._traffic = Traffic() if traffic is None else traffic
        self._petsc = PetscLog()
        self._flops = 0.0
        self._open: list[tuple[float, Traffic]] = []
        self._ended: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Take note of a phase's begin or end, or of flops."""
        kind = event["event"]
        if "flops" in event:
            self._flops += event["flops"]
            self._petsc.add_flops(event["flops"])
        if kind == "phase began":
            self._open.append((self._flops, self._traffic.copy()))
            self._petsc.begin(event["phase"])
        elif kind == "phase ended" and self._open:
            counted = self._petsc.end()
            flops_before, traffic_before = self._open.pop()
            petsc = counted or PetscCounts(flops=self._flops - flops_before)
            traffic = self._traffic.since(traffic_before)
            self._ended.append({
                **event,
                "flops": petsc.flops,
                "received_bytes": traffic.received_bytes + petsc.message_bytes,
                "messages": traffic.messages + petsc.messages,
                "reductions": petsc.reductions,
                "wait_s": traffic.wait_s,
            })

    def take(self) -> list[Event]:
        """What has ended since the last call, in order.

        Returns:
            Events with ``phase``, ``begin`` and ``end`` (seconds since the epoch), ``peak_rss_bytes``;
            ``flops`` of products with J, of QR factorisations, and of PETSc and SLEPc; ``received_bytes`` and
            ``messages`` from other ranks; ``reductions`` of PETSc; ``wait_s``, seconds inside of our own
            calls of MPI.
        """
        taken, self._ended = self._ended, []
        return taken


def timeline_lines(mpi_rank: int, phases: Sequence[Event]) -> list[dict[str, Any]]:
    """Phases of one rank as they are written.

    Args:
        mpi_rank: The rank.
        phases: What :meth:`PhaseRecorder.take` returned there.

    Returns:
        A line per phase.
    """
    return [{"mpi_rank": mpi_rank, **{name: event[name] for name in _IN_TIMELINE}} for event in phases]


def append_timeline(path: Path, phases_of_ranks: Sequence[Sequence[Event]]) -> None:
    """Append phases to a file, one line of JSON each.

    Args:
        path: The file.
        phases_of_ranks: What :meth:`PhaseRecorder.take` returned on every MPI rank, in rank order.

    Raises:
        OSError: If it cannot be written.
    """
    with path.open("a", encoding="utf-8") as file:
        for mpi_rank, phases in enumerate(phases_of_ranks):
            for line in timeline_lines(mpi_rank, phases):
                file.write(json.dumps(line, allow_nan=False) + "\n")


def read_timelines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Lines of some timelines, by their begin.

    Args:
        paths: The files; those that are not there are passed over.

    Returns:
        All lines.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If it holds something else.
    """
    texts = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    lines: list[dict[str, Any]] = [json.loads(line) for text in texts for line in text.splitlines()]
    return sorted(lines, key=lambda line: line["begin"])
