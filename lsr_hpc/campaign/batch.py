"""One step of a campaign from the controller's side: take members in hand, start the ranks, read what became.

It runs on the launcher, a Dask worker inside the controller's process, and finds what it shares with the
controller by the identity of the start.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lsr_hpc.campaign.layout import CampaignLayout, MemberFiles
from lsr_hpc.campaign.state import MemberState, read_state
from lsr_hpc.errors import ExitCode, JobError
from lsr_hpc.pipeline.attempt import EndedOutside, StopRequest, read_outcome, run_attempt
from lsr_hpc.pipeline.launch import Launcher
from lsr_hpc.pipeline.layout import AttemptFiles
from lsr_hpc.pipeline.lease import revoke
from lsr_hpc.pipeline.lock import ControllerLock
from lsr_hpc.pipeline.spec import StepResult, StepSpec, write_result
from lsr_hpc.publish import unfinished
from lsr_hpc.settings import RunSettings

__all__ = ["ACTIVE", "BatchEnd", "CampaignControl", "HeldLocks", "MemberEnd", "carry_out"]

_BODY = "lsr_hpc.campaign.step:run_step"
# Ranks of a controller that was killed end by themselves within a few seconds.
_PATIENCE_S = 10.0
_LOOK_EVERY_S = 0.05


class HeldLocks:
    """Locks of the members in hand, kept fresh by one thread while others take and release them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[str, ControllerLock] = {}

    def take(self, name: str, files: MemberFiles) -> bool:
        """Take a member in hand.

        Args:
            name: Its name.
            files: Its files.

        Returns:
            Whether it is; not if it is in the hands of another controller.
        """
        files.tries.mkdir(parents=True, mode=0o700, exist_ok=True)
        try:
            lock = ControllerLock(files.lock)
        except JobError:
            return False
        with self._guard:
            self._held[name] = lock
        return True

    def touch(self) -> None:
        """Show other machines that the members are in good hands."""
        with self._guard:
            for lock in self._held.values():
                lock.touch()

    def release(self, names: Iterable[str]) -> None:
        """Let members go.

        Args:
            names: Their names; those that are not held are passed over.
        """
        with self._guard:
            locks = [self._held.pop(name) for name in names if name in self._held]
        for lock in locks:
            lock.__exit__(None, None, None)


@dataclass(frozen=True, kw_only=True)
class CampaignControl:
    """What the controller and the tasks on its launcher share.

    Attributes:
        layout: The directory.
        start: Number of this start, and the directory of its steps.
        digest: Identity of the campaign.
        settings: Section ``[run]`` as it applies: ranks of a member, members at once.
        launcher: How ranks are started.
        environment: Their environment.
        stop: The wish to stop.
        tries: How often in a row a member is tried that is ended from outside.
        locks: Members in hand.
        interrupted: How often members were ended from outside.
    """

    layout: CampaignLayout
    start: tuple[int, Path]
    digest: str
    settings: RunSettings
    launcher: Launcher
    environment: Mapping[str, str]
    stop: StopRequest
    tries: int
    locks: HeldLocks = field(default_factory=HeldLocks)
    interrupted: dict[str, int] = field(default_factory=dict)


# Controls of this process, by directory of the start: a task cannot carry locks or a stop request.
ACTIVE: dict[str, CampaignControl] = {}

# elsewhere: in the hands of another controller; interrupted: ended from outside while it was at work;
# waiting: its turn did not come.
MemberEnd = Literal["done", "failed", "elsewhere", "interrupted", "waiting"]


@dataclass(frozen=True, kw_only=True)
class BatchEnd:
    """What became of a batch.

    Attributes:
        number: Its number.
        ends: What became of each member.
        states: State of those that are done or have failed.
        message: How the step ended, where not in good order.
        exit_code: Exit code of an error that would meet other members too, otherwise 0.
        is_yielded: Whether the step gave way to a stop.
    """

    number: int
    ends: Mapping[str, MemberEnd]
    states: Mapping[str, MemberState]
    message: str = ""
    exit_code: int = 0
    is_yielded: bool = False


def carry_out(start: str, number: int, names: Sequence[str], *, after_others: bool) -> BatchEnd:
    """Carry out a batch of members by one step.

    Args:
        start: Directory of the start.
        number: Number of the batch in it.
        names: Names of the members.
        after_others: Whether they were in other hands, so that a failure is news and not to be mended.

    Returns:
        What became of them.

    Raises:
        OSError: If files cannot be written, or the launcher cannot be started.
    """
    control = ACTIVE[start]
    ends: dict[str, MemberEnd] = dict.fromkeys(names, "waiting")
    states: dict[str, MemberState] = {}
    taken: list[str] = []
    try:
        for name in names:
            if not control.locks.take(name, control.layout.member(name)):
                ends[name] = "elsewhere"
                continue
            taken.append(name)
            state = read_state(control.layout.member(name))
            if state.end == "done" or (after_others and state.end == "failed"):
                ends[name], states[name] = state.end, state
        tries = {name: _new_try(control.layout.member(name)) for name in taken if ends[name] == "waiting"}
        if not tries or control.stop.is_set:
            return BatchEnd(number=number, ends=ends, states=states)
        return _run(control, number, tries, ends, states)
    finally:
        control.locks.release(taken)


def _new_try(files: MemberFiles) -> int:
    """Clear away what a killed controller has left of a member, which is in our hands."""
    attempts = files.attempts()
    for _, attempt in attempts:
        if isinstance(read_outcome(attempt), EndedOutside):
            revoke(attempt)
            _outwait(attempt, files)
    for directory in unfinished(files.directory):
        shutil.rmtree(directory, ignore_errors=True)
    return 1 + max((k for k, _ in attempts), default=0)


def _outwait(attempt: AttemptFiles, files: MemberFiles) -> None:
    """Wait a little for the first rank of a try that was given up, if it lives on this machine.

    Should it live on, it publishes nothing, because it finds its lease revoked.
    """
    campaign = os.fsencode(files.tries.parent.parent)
    with suppress(OSError, ValueError, KeyError):
        lease = json.loads(attempt.lease.read_text(encoding="utf-8"))
        if lease["host"] != socket.gethostname():
            return
        command = Path(f"/proc/{lease['pid']}/cmdline")
        until = time.monotonic() + _PATIENCE_S
        while campaign in command.read_bytes() and time.monotonic() < until:
            time.sleep(_LOOK_EVERY_S)


def _run(
    control: CampaignControl,
    number: int,
    tries: Mapping[str, int],
    ends: dict[str, MemberEnd],
    states: dict[str, MemberState],
) -> BatchEnd:
    start, directory = control.start
    spec = StepSpec(
        run_id=control.digest,
        instance=start,
        round=number,
        rounds=1,
        attempt=1,
        sequence=number + 1,
        world_size=control.settings.ranks,
        job_sha256=control.digest,
        run_directory=str(control.layout.root),
        checkpoint=None,
        checkpoint_seconds=control.settings.checkpoint_seconds,
        keep=control.settings.keep,
        body=_BODY,
        kind="campaign",
        tries=tries,
    )
    files = AttemptFiles(directory / f"step-{number:04d}" / "attempt-1")
    outcome = run_attempt(
        control.launcher,
        files,
        spec,
        control.environment,
        control.stop,
        control.settings.silence_seconds,
    )
    status = outcome.status if isinstance(outcome, StepResult) else "ended from outside"
    was_at_work = False
    for name, k in tries.items():
        attempt = control.layout.member(name).attempt(k)
        if attempt.lease.exists() and not attempt.result.exists():
            was_at_work = True
            revoke(attempt)
            if status != "yielded":
                ends[name] = _answer_for(control, name, attempt, outcome)
        state = read_state(control.layout.member(name), thoroughly=False)
        if state.end != "missing":
            ends[name], states[name] = state.end, state
    code = 0
    if isinstance(outcome, StepResult) and (outcome.exit_code == ExitCode.ENVIRONMENT or not was_at_work):
        code = outcome.exit_code
    return BatchEnd(
        number=number,
        ends=ends,
        states=states,
        message=outcome.message,
        exit_code=code,
        is_yielded=status == "yielded",
    )


def _answer_for(
    control: CampaignControl, name: str, attempt: AttemptFiles, outcome: StepResult | EndedOutside
) -> MemberEnd:
    """Say for a member what it cannot say itself, since its ranks have ended in the middle of it."""
    if isinstance(outcome, StepResult):
        write_result(attempt.result, outcome)
        return "failed"
    control.interrupted[name] = count = control.interrupted.get(name, 0) + 1
    if count < control.tries:
        return "interrupted"
    message = f"ended from outside, {count} times in a row; the last time: {outcome.message}"
    write_result(
        attempt.result,
        StepResult(status="failed", round=0, message=message, exit_code=int(ExitCode.CRASH)),
    )
    return "failed"
