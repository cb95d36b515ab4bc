"""How the ranks of a step learn that they are to stop, and how others learn that they are alive."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

__all__ = ["STOP_SIGNALS", "Heartbeat", "StopFlag", "read_heartbeat"]

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
_EVERY_S = 1.0


class StopFlag:
    """Set once the step is to yield. Local to a rank: signals reach ranks at different moments.

    Attributes:
        boundary: When a boundary was last reached, that is, when the flag was last asked for; seconds since
            the epoch.
    """

    def __init__(self) -> None:
        # An attribute and no lock: a handler may interrupt whoever holds one.
        self._is_set = False
        self.boundary = time.time()

    def set(self) -> None:
        """Ask the step to yield."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether the step is to yield; to be asked at every boundary inside the step."""
        self.boundary = time.time()
        return self._is_set

    def listen(self) -> None:
        """Let signals set the flag; the launcher has them blocked until here, so none comes too early."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._is_set = True


class Heartbeat:
    """A thread of the first rank that renews a file and looks for files that ask for a stop.

    Args:
        path: File to renew.
        flag: Flag to set.
        stop_files: Files whose presence asks for a stop.
    """

    def __init__(self, path: Path, flag: StopFlag, stop_files: Sequence[Path]) -> None:
        self._path = path
        self._flag = flag
        self._stop_files = stop_files
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._end.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        # A file system that fails for a moment must not end the step.
        with suppress(OSError):
            if any(file.exists() for file in self._stop_files):
                self._flag.set()
            temporary = self._path.with_name(f".{self._path.name}")
            beat = {"time": time.time(), "boundary": self._flag.boundary, "pid": os.getpid()}
            temporary.write_text(json.dumps(beat) + "\n", encoding="utf-8")
            temporary.replace(self._path)


def read_heartbeat(path: Path) -> dict[str, Any] | None:
    """Read a heartbeat.

    Args:
        path: File.

    Returns:
        ``time`` of the last beat and of the last ``boundary``, in seconds since the epoch, and ``pid``; None
        if there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"time", "boundary"} <= set(content) else None
