"""One attempt at a step: write what is to be done, start the ranks, wait, and tell from files how it ended.

Exit codes of launchers say too little: that of a crash and that of a signal from outside may be the same. So
(1) the result file decides; (2) without it a crash file: the step failed, and would fail again; (3) without
both it was ended from outside, and is worth another attempt.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lsr_hpc.errors import ExitCode, JobError
from lsr_hpc.pipeline.heartbeat import read_heartbeat
from lsr_hpc.pipeline.launch import Launcher
from lsr_hpc.pipeline.layout import AttemptFiles
from lsr_hpc.pipeline.lease import revoke
from lsr_hpc.pipeline.spec import StepResult, StepSpec, read_result, write_spec
from lsr_hpc.store import read_manifest

__all__ = ["EndedOutside", "StopRequest", "read_outcome", "run_attempt"]

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_BEAT_EVERY_S = 1.0
_TERM_PATIENCE_S = 6.0
_TAIL_BYTES = 4000


@dataclass(frozen=True)
class EndedOutside:
    """A step that ended without a word: killed, out of memory, its node lost.

    Attributes:
        message: What can be said about it.
    """

    message: str


@dataclass
class StopRequest:
    """The wish to stop, from signal handlers and the controller to the threads that wait for steps.

    Plain attributes and no locks, because a handler may interrupt whoever holds one; all who care look often.

    Attributes:
        patience_s: Seconds that a step may take to yield.
        asked_at: When the wish came, on the clock of ``time.monotonic``, or None.
        is_urgent: Whether not to wait for steps to yield.
    """

    patience_s: float = 120.0
    asked_at: float | None = None
    is_urgent: bool = False

    def ask(self) -> None:
        """Ask for a stop; again and again if you like."""
        if self.asked_at is None:
            self.asked_at = time.monotonic()

    @property
    def is_set(self) -> bool:
        """Whether to stop."""
        return self.asked_at is not None

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        asked_at = self.asked_at
        return self.is_urgent or (asked_at is not None and time.monotonic() > asked_at + self.patience_s)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGUSR1, SIGTERM and SIGINT for the wish to stop; SIGTERM and SIGINT again for an urgent one.

        Yields:
            Nothing.
        """
        seen: list[int] = []

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.ask()
            # USR1 comes in company, of the file STOP or of a batch script, and is never meant to be rude.
            if number != signal.SIGUSR1:
                seen.append(number)
                self.is_urgent = len(seen) > 1

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        before = [(number, signal.signal(number, on_signal)) for number in numbers]
        # A batch script blocks them until here, so that none comes too early.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)


def run_attempt(
    launcher: Launcher,
    files: AttemptFiles,
    spec: StepSpec,
    environment: Mapping[str, str],
    stop: StopRequest,
    silence_s: float,
) -> StepResult | EndedOutside:
    """Start the ranks of a step and wait for their end.

    Starting and waiting are one function, because the launcher is ended when the thread that started it ends.

    Args:
        launcher: How to start them.
        files: The attempt; its directory is made.
        spec: What to do.
        environment: Environment of the ranks.
        stop: Looked at while waiting.
        silence_s: Seconds without a boundary after which the step is taken to hang, and ended.

    Returns:
        How it ended.

    Raises:
        OSError: If the attempt's files cannot be written or the launcher cannot be started.
    """
    files.root.mkdir(parents=True, mode=0o700)
    write_spec(files.spec, spec)
    label = f"{spec.instance}-{spec.round}-{spec.attempt}"
    command = launcher.command(spec.world_size, files.spec, label)
    files.command.write_text(shlex.join(command) + "\n", encoding="utf-8")
    with files.output.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        remark = _wait(process, files, stop, silence_s)
    except BaseException:
        _end(process)
        raise
    outcome = read_outcome(files)
    if isinstance(outcome, EndedOutside):
        revoke(files)
        how = remark or _how(process.returncode)
        return EndedOutside(f"{how}{_tail(files.output)}")
    return outcome


def _wait(process: subprocess.Popen[bytes], files: AttemptFiles, stop: StopRequest, silence_s: float) -> str:
    """Wait for the launcher's end, passing on a wish to stop; returns why it was ended, if it was."""
    is_told = is_signalled = False
    boundaries = _Boundaries(files.heartbeat)
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_EVERY_S)
            # Whatever the launcher may have left behind.
            _kill_session(process.pid)
            return ""
        if stop.is_set:
            if not is_told:
                files.stop.touch()
                is_told = True
            # Before the lease is taken a signal could meet a launcher that does not know it yet.
            if not is_signalled and files.lease.exists():
                process.send_signal(signal.SIGUSR1)
                is_signalled = True
            if stop.is_over:
                _end(process)
                return "ended, because it did not yield in time"
        elif boundaries.silence_s() > silence_s:
            _end(process)
            return f"ended, because it reached no boundary for {silence_s:g} s"


class _Boundaries:
    """For how long a step has reached no boundary, by our own clock: that of its node may differ."""

    def __init__(self, heartbeat: Path) -> None:
        self._heartbeat = heartbeat
        self._newest: float | None = None
        self._since = self._looked = time.monotonic()

    def silence_s(self) -> float:
        """Seconds since a boundary was last seen to be a new one."""
        now = time.monotonic()
        if now - self._looked > _BEAT_EVERY_S:
            self._looked = now
            beat = read_heartbeat(self._heartbeat)
            if beat is not None and beat["boundary"] != self._newest:
                self._newest, self._since = beat["boundary"], now
        return now - self._since


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a launcher and its ranks: politely, then not."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_TERM_PATIENCE_S)
    _kill_session(process.pid)
    process.wait()


def _kill_session(session: int) -> None:
    """Kill every process of a session: mpiexec gives its ranks process groups of their own."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything; state, parent, group and session follow it.
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                os.kill(int(stat.parent.name), signal.SIGKILL)


def read_outcome(files: AttemptFiles) -> StepResult | EndedOutside:
    """Tell from the files of an attempt whose program has ended how it ended.

    Args:
        files: The attempt.

    Returns:
        Its result; a result ``failed`` with the cause, if a rank crashed; or that it ended without a word.
    """
    if files.result.exists():
        try:
            return read_result(files.result)
        except JobError as error:
            log.warning("%s", error)
            return EndedOutside(str(error))
    crashes = [_read_crash(path) for path in files.crashes()]
    if crashes:
        # The first is the cause, later ones may be its consequences.
        first = min(crashes, key=lambda crash: crash["time"])
        return StepResult(
            status="failed",
            round=_round_of(files),
            message=first["message"],
            exit_code=first["exit_code"],
        )
    return EndedOutside("ended from outside")


def _read_crash(path: Path) -> dict[str, Any]:
    crash = {"time": 0.0, "message": f"a rank crashed, see {path}", "exit_code": int(ExitCode.CRASH)}
    with suppress(JobError):
        crash |= read_manifest(path)
    return crash


def _round_of(files: AttemptFiles) -> int:
    return int(files.root.parent.name.rpartition("-")[2])


def _how(code: int) -> str:
    ended = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
    is_killed = code in {-signal.SIGKILL, 128 + signal.SIGKILL}
    return f"ended from outside, {ended}" + (" (out of memory?)" if is_killed else "")


def _tail(path: Path) -> str:
    """The last lines of the output, for the message."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip(" -*")]
        if lines:
            return f"; {path} ends with:" + "".join(f"\n    | {line[:200]}" for line in lines[-5:])
    return ""
