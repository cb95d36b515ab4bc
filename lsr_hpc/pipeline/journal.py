"""``metrics.jsonl``: what happened in a run, one line per event, appended and never changed."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["Journal", "read_events"]


class Journal:
    """The events of a run, open for appending from any thread.

    Args:
        path: The file. A line that a killed process left unfinished is ended.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = path.open("a+b")
        if self._file.tell() > 0:
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append an event and flush it to disk.

        Args:
            event: Its kind.
            **fields: JSON without NaN.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, allow_nan=False)
        with self._lock:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read what is there; lines that were cut off are left out.

    Args:
        path: The file, which need not be there.

    Returns:
        Events in order.
    """
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
