"""What happens inside a computation, told to whoever listens.

Numerical code knows neither files nor terminals: it tells, others write and print. Events are few and small:
phases that begin and end, products of J, residuals on the way. Without a listener telling costs one look at
an empty list.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["TIMELINE", "Event", "Listener", "PhaseRecorder", "append_timeline", "emit", "listening"]

# Phases of all MPI ranks, one line each.
TIMELINE = "timeline.jsonl"

Event = Mapping[str, Any]
"""JSON types: ``event`` (its kind), ``time`` (seconds since the epoch), and what belongs to the kind."""

Listener = Callable[[Event], None]

_listeners: list[Listener] = []


def emit(kind: str, **fields: Any) -> None:
    """Tell all listeners of this process; no communication.

    Args:
        kind: Kind of the event.
        **fields: JSON types.
    """
    if _listeners:
        event = {"event": kind, "time": time.time(), **fields}
        for listener in _listeners:
            listener(event)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have a listener told while the block lasts.

    Args:
        listener: Called with every event; must not raise.

    Yields:
        Nothing.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class PhaseRecorder:
    """Keeps the phases that have ended, for the timeline of a run."""

    def __init__(self) -> None:
        self._ended: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Keep the event if it ends a phase."""
        if event["event"] == "phase ended":
            self._ended.append(event)

    def take(self) -> list[Event]:
        """What has ended since the last call, in order.

        Returns:
            Events with ``phase``, ``begin`` and ``end`` (seconds since the epoch) and ``peak_rss_bytes``.
        """
        taken, self._ended = self._ended, []
        return taken


def append_timeline(path: Path, phases_of_ranks: Sequence[Sequence[Event]]) -> None:
    """Append phases to a file, one line of JSON each.

    Args:
        path: The file.
        phases_of_ranks: What :meth:`PhaseRecorder.take` returned on every MPI rank, in rank order.

    Raises:
        OSError: If it cannot be written.
    """
    names = ("phase", "begin", "end", "peak_rss_bytes")
    with path.open("a", encoding="utf-8") as file:
        for mpi_rank, phases in enumerate(phases_of_ranks):
            for event in phases:
                line = {"mpi_rank": mpi_rank, **{name: event[name] for name in names}}
                file.write(json.dumps(line, allow_nan=False) + "\n")
