"""The controller of a campaign: batches as tasks of Dask, and what follows from their ends. Never starts MPI.

A batch is a task that needs the ranks of a member; as many run side by side as there are ranks for. Batches
get smaller towards the end, so that the last ones end at about the same time.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from distributed import Future, KilledWorker

from lsr_hpc.campaign.batch import ACTIVE, BatchEnd, CampaignControl
from lsr_hpc.campaign.crew import Crew
from lsr_hpc.campaign.members import Member
from lsr_hpc.campaign.state import MemberState
from lsr_hpc.errors import ExitCode
from lsr_hpc.pipeline.journal import Journal

__all__ = ["CampaignController", "members_of_step"]

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
# How long to leave members alone that are in the hands of another controller.
_LEAVE_ALONE_S = 2.0
_MOST_OF_A_STEP = 32
_PAUSE_S = 5.0


def members_of_step(waiting: int, at_once: int, most: int | None) -> int:
    """How many members a step is given.

    Args:
        waiting: Members that wait.
        at_once: Steps side by side.
        most: What the job says, or None.

    Returns:
        At least 1: a share of what waits, half of it where there are other steps to share with.
    """
    share = math.ceil(waiting / (at_once if at_once == 1 else 2 * at_once))
    return max(1, min(share, most or _MOST_OF_A_STEP))


class CampaignController:
    """Carries members to their ends, or to an orderly stop.

    Args:
        crew: Who carries batches out.
        control: What is shared with the tasks on the launcher.
        journal: Where ends of members go.
        members: The members to carry out.
        most: Most members of a step, or None.
    """

    def __init__(
        self,
        crew: Crew,
        control: CampaignControl,
        journal: Journal,
        members: Sequence[Member],
        most: int | None,
    ) -> None:
        self._crew = crew
        self._control = control
        self._journal = journal
        self._members = {member.name: member for member in members}
        self._most = most
        self._waiting = deque(self._members)
        self._elsewhere: list[str] = []
        self._batches: dict[Future[BatchEnd], tuple[int, list[str]]] = {}
        self._done: queue.SimpleQueue[Future[BatchEnd]] = queue.SimpleQueue()
        self._begun = self._fruitless = 0
        self._not_before = 0.0
        self._has_waited = False
        self._states: dict[str, MemberState] = {}
        self.message = ""
        self.exit_code = 0

    def run(self) -> Mapping[str, MemberState]:
        """Go on until every member has an end, or until a stop.

        Returns:
            States of the members that have come to an end.

        Raises:
            OSError: If a step cannot be started or a file not be written.
        """
        control = self._control
        key = str(control.start[1])
        ACTIVE[key] = control
        looked = time.monotonic()
        try:
            while True:
                self._crew.look_after()
                if not control.stop.is_set and control.layout.stop.exists():
                    log.info("%s is there: stopping", control.layout.stop)
                    control.stop.ask()
                self._begin_batches()
                if not self._batches and time.monotonic() - looked > _LEAVE_ALONE_S:
                    looked = time.monotonic()
                    self._look_elsewhere()
                is_left = bool(self._waiting or self._elsewhere)
                if not self._batches and (control.stop.is_set or not is_left):
                    return self._states
                self._take_next()
        finally:
            del ACTIVE[key]

    def _begin_batches(self) -> None:
        at_once = self._control.settings.instances_at_once
        if time.monotonic() < self._not_before:
            return
        while self._waiting and len(self._batches) < at_once and not self._control.stop.is_set:
            size = members_of_step(len(self._waiting), at_once, self._most)
            self._submit([self._waiting.popleft() for _ in range(size)], after_others=False)

    def _look_elsewhere(self) -> None:
        """See what has become of members in other hands, and take over those that nobody holds any more."""
        if self._elsewhere and not self._control.stop.is_set:
            if not self._has_waited:
                self._has_waited = True
                log.info("waiting for %d members in the hands of other controllers", len(self._elsewhere))
            self._submit(self._elsewhere, after_others=True)
            self._elsewhere = []

    def _submit(self, names: list[str], *, after_others: bool) -> None:
        future = self._crew.submit(self._begun, names, after_others=after_others)
        self._batches[future] = self._begun, names
        self._begun += 1
        future.add_done_callback(self._done.put)

    def _take_next(self) -> None:
        try:
            future = self._done.get(timeout=_LOOK_EVERY_S)
        except queue.Empty:
            return
        number, names = self._batches.pop(future)
        try:
            end: BatchEnd = future.result()
        except KilledWorker:
            # Which of the members was in hand, their files will tell.
            end = BatchEnd(
                number=number,
                ends=dict.fromkeys(names, "waiting"),
                states={},
                message="the job that had it in hand has ended",
            )
        except BaseException:
            self._control.stop.ask()
            raise
        if end.is_yielded and self._crew.is_here:
            # Where nobody asked here, somebody told the ranks: they are to leave the machine.
            self._control.stop.ask()
        for name in names:
            kind = end.ends[name]
            if kind == "elsewhere":
                self._elsewhere.append(name)
            elif kind in {"interrupted", "waiting"}:
                self._waiting.append(name)
            else:
                self._record(name, end.states[name])
        self._judge(end)

    def _judge(self, end: BatchEnd) -> None:
        """Stop where the next step would fare no better."""
        has_gained = not {"done", "failed", "interrupted"}.isdisjoint(end.ends.values())
        if end.message and not any(end.message in state.message for state in end.states.values()):
            log.warning("step %d: %s", end.number, end.message)
        self._fruitless = 0 if has_gained or not end.message else self._fruitless + 1
        # What prevents ranks from beginning may pass: a node, the scheduler, a disk.
        self._not_before = time.monotonic() + _PAUSE_S * self._fruitless
        code = end.exit_code
        if self._fruitless >= self._control.tries:
            # Another start of the job may find other nodes.
            is_srun = self._control.launcher.name == "srun"
            code = int(ExitCode.RESUME if is_srun else ExitCode.CRASH)
        environment = [s for s in end.states.values() if s.exit_code == ExitCode.ENVIRONMENT]
        if code or environment:
            self.exit_code = code or int(ExitCode.ENVIRONMENT)
            self.message = end.message or environment[0].message
            self._control.stop.ask()

    def _record(self, name: str, state: MemberState) -> None:
        member = self._members[name]
        self._states[name] = state
        event: dict[str, Any] = {"name": name, "number": member.number, "settings": dict(member.settings)}
        self._journal.write(
            "member", **event, state=state.end, metrics=dict(state.metrics), message=state.message
        )
        before, after = (state.metrics.get(key) for key in ("error_before", "error"))
        figures = "" if before is None or after is None else f": error {before:.2e} -> {after:.2e}"
        cause = f": {state.message}" if state.message else ""
        level = logging.ERROR if state.end == "failed" else logging.INFO
        count = f"{len(self._states)} of {len(self._members)}"
        log.log(level, "%s %s%s%s (%s)", member.name, state.end, figures, cause, count)
