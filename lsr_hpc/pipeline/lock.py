"""One controller per run directory: a lock that dies with its process, and says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from lsr_hpc.errors import EnvironmentProblem, JobError

__all__ = ["SILENT_S", "ControllerLock", "Holder", "read_holder"]

# A controller on another machine that has not touched its lock for so long is taken for dead.
SILENT_S = 120.0
_TOUCH_EVERY_S = 10.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Holder:
    """A controller.

    Attributes:
        pid: Its process.
        host: Its machine.
        started: When the process was started, in clock ticks since the machine was: process numbers are used
            again.
        since: When it took the lock, in seconds since the epoch.
    """

    pid: int
    host: str
    started: int
    since: float

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, on this machine."""
        return self.host == socket.gethostname()

    def is_alive(self, path: Path) -> bool:
        """Whether it lives; on another machine, whether it has touched its lock lately.

        Args:
            path: The lock file.

        Returns:
            False also where a machine that could be asked gives no answer.
        """
        if self.is_here:
            return _start_of(self.pid) == self.started
        with suppress(OSError):
            return time.time() - path.stat().st_mtime < SILENT_S
        return False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


def read_holder(path: Path) -> Holder | None:
    """Who holds a lock, or held it last.

    Args:
        path: The lock file.

    Returns:
        The holder; None if it was given back, or there never was one.
    """
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _start_of(pid: int) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[19]) if fields[0] != "Z" else None
    return None


class ControllerLock:
    """The lock, held for as long as the process lives.

    Args:
        path: The lock file; its directory is there.
        patience_s: For how long to wait for another controller to end, or to be silent long enough.

    Raises:
        JobError: If another controller holds it.
        EnvironmentProblem: If the file system has no locks.
    """

    def __init__(self, path: Path, patience_s: float = 0.0) -> None:
        self._path = path
        self._touched = time.monotonic()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._wait_and_take(time.monotonic() + patience_s)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _wait_and_take(self, until: float) -> None:
        while True:
            try:
                return self._take()
            except JobError:
                if time.monotonic() > until:
                    raise
            time.sleep(_LOOK_EVERY_S)

    def _take(self) -> None:
        holder = read_holder(self._path)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._in_use(holder) from error
        except OSError as error:
            raise EnvironmentProblem(
                f"the file system of {self._path.parent} has no locks ({error.strerror}): mount it with them "
                "(Lustre: -o flock), or put the run on another one"
            ) from error
        # Not every file system passes the lock on between machines; what it says counts there.
        if holder is not None and not holder.is_here and holder.is_alive(self._path):
            raise self._in_use(holder)
        started = _start_of(os.getpid())
        assert started is not None
        mine = Holder(os.getpid(), socket.gethostname(), started, time.time())
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, (json.dumps(asdict(mine)) + "\n").encode(), 0)
        os.fsync(self._descriptor)

    def _in_use(self, holder: Holder | None) -> JobError:
        who = f" ({holder})" if holder else ""
        return JobError(
            f"another controller is at work in {self._path.parent}{who}: wait for it, or `lsr-hpc stop "
            f"{self._path.parent}`"
        )

    def touch(self) -> None:
        """Show other machines that the holder lives; cheap enough to be called all the time."""
        if time.monotonic() - self._touched > _TOUCH_EVERY_S:
            self._touched = time.monotonic()
            with suppress(OSError):
                os.utime(self._descriptor)

    def __enter__(self) -> ControllerLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
