"""The controller of a run: a graph of tasks for Dask, and what follows from their outcomes. Never starts MPI.

Every instance is a chain of tasks, each of which waits for the one before; instances run side by side as far
as the ranks allow; functions without MPI hang on the links and run on light workers. Chains are built a few
links ahead, because only a step's result tells whether there is anything left to do.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from distributed import Client, Future, KilledWorker

from lsr_hpc.errors import ExitCode, LsrError
from lsr_hpc.pipeline import light
from lsr_hpc.pipeline.advance import ACTIVE, Control, Outcome, State, advance
from lsr_hpc.pipeline.claim import JobStart, is_claimed
from lsr_hpc.pipeline.cluster import LAUNCHER, replace_lost_workers
from lsr_hpc.pipeline.lock import ControllerLock
from lsr_hpc.pipeline.progress import InstanceProgress
from lsr_hpc.pipeline.spec import StepResult

__all__ = ["Controller", "exit_code_of"]

log = logging.getLogger(__name__)

_LINKS_AHEAD = 2
_LOOK_EVERY_S = 0.5
_LOOK_AT_WORKERS_S = 10.0
# How often a light task is tried whose worker was killed.
_LIGHT_TRIES = 3


@dataclass
class _Chain:
    """The tasks of an instance.

    Attributes:
        instance: Its number.
        outcome: Where it stands.
        links: Futures of the links that are not yet done, in order; each depends on the one before.
        newest: Number of the newest link.
    """

    instance: int
    outcome: Outcome
    links: list[Future[Outcome]] = field(default_factory=list)
    newest: int = -1

    @classmethod
    def after(cls, progress: InstanceProgress) -> _Chain:
        """The chain of an instance that is so far."""
        state: State = "finished" if progress.is_finished else "going"
        return cls(progress.instance, Outcome(number=-1, state=state, result=progress.last))


@dataclass(frozen=True)
class _LightTask:
    """A call on a light worker, to be repeated if the worker is killed."""

    function: str
    instance: int | None
    arguments: tuple[Any, ...]
    tried: int = 1


class Controller:
    """Carries all instances of a run to their end, or to an orderly stop.

    Args:
        client: The cluster.
        control: What is shared with the tasks on the launcher.
        lock: Lock of the run directory, kept fresh.
    """

    def __init__(self, client: Client, control: Control, lock: ControllerLock) -> None:
        self._client = client
        self._control = control
        self._lock = lock
        self._start = JobStart.of()
        self._done: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._chains: dict[Future[Outcome], _Chain] = {}
        self._waiting: deque[_Chain] = deque()
        self._light: dict[Future[dict[str, Any]], _LightTask] = {}
        self._returned: dict[str, Any] = {}
        self._end_failure = ""

    def run(self, progress: list[InstanceProgress]) -> list[Outcome]:
        """Go on with all instances until nothing is left to do, or until a stop.

        Args:
            progress: How far they are.

        Returns:
            Where they stand, one per instance.
        """
        control = self._control
        chains = [_Chain.after(at) for at in progress]
        self._waiting.extend(chain for chain in chains if chain.outcome.state == "going")
        ACTIVE[control.record.run_id] = control
        try:
            self._begin_chains()
            self._wait()
        finally:
            del ACTIVE[control.record.run_id]
        return [chain.outcome for chain in chains]

    def end(self, results: list[StepResult | None]) -> dict[str, Any] | None:
        """Call the functions of ``run.at_end``.

        Args:
            results: Last result of every instance.

        Returns:
            The fields that they returned, together; None if a stop came before the end of one of them.

        Raises:
            LsrError: If one of them fails.
        """
        for function in self._control.settings.at_end:
            self._submit_light(_LightTask(function, None, (str(self._control.layout.root), results)))
        self._wait()
        if self._end_failure:
            raise LsrError(self._end_failure)
        return None if self._light else self._returned

    def _begin_chains(self) -> None:
        """Begin as many instances as there are ranks for: one to its end rather than all of them a little."""
        control = self._control
        active = {chain.instance for chain in self._chains.values()}
        while self._waiting and len(active) < control.settings.instances_at_once and not control.stop.is_set:
            chain = self._waiting.popleft()
            self._extend(chain)
            active.add(chain.instance)

    def _extend(self, chain: _Chain) -> None:
        """Put links on a chain, until it reaches far enough ahead."""
        control = self._control
        while chain.outcome.state == "going" and len(chain.links) < _LINKS_AHEAD:
            chain.newest += 1
            link = self._client.submit(
                advance,
                control.record.run_id,
                chain.instance,
                chain.newest,
                chain.links[-1] if chain.links else chain.outcome,
                key=f"{control.record.run_id}-instance-{chain.instance}-link-{chain.newest}",
                workers=[LAUNCHER],
                resources={"ranks": control.settings.ranks},
                pure=False,
                retries=0,
            )
            chain.links.append(link)
            self._chains[link] = chain
            link.add_done_callback(self._done.put)
            for function in control.settings.after_round:
                arguments = (str(control.layout.root), chain.instance, chain.newest, link)
                self._submit_light(_LightTask(function, chain.instance, arguments))

    def _submit_light(self, task: _LightTask) -> None:
        call = light.call_at_end if task.instance is None else light.call_after_round
        future = self._client.submit(
            call, task.function, *task.arguments, resources={"cpu": 1}, pure=False, retries=0
        )
        self._light[future] = task
        future.add_done_callback(self._done.put)

    def _wait(self) -> None:
        """Take outcomes as they come, until there are no more to come or patience ends."""
        stop = self._control.stop
        looked = time.monotonic()
        while self._chains or (self._light and not stop.is_over):
            self._lock.touch()
            if time.monotonic() - looked > _LOOK_AT_WORKERS_S:
                looked = time.monotonic()
                replace_lost_workers(self._client)
            if not stop.is_urgent and is_claimed(self._control.layout.claim, self._start):
                log.warning("SLURM has started the job again: this start of it leaves at once")
                stop.ask()
                stop.is_urgent = True
            if not stop.is_set and self._control.layout.stop.exists():
                log.info("%s is there: stopping", self._control.layout.stop)
                stop.ask()
            try:
                future = self._done.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                continue
            if future in self._chains:
                self._take_link(future)
            elif future in self._light:
                self._take_light(future)

    def _take_link(self, future: Future[Outcome]) -> None:
        chain = self._chains.pop(future)
        chain.links.remove(future)
        before, chain.outcome = chain.outcome, future.result()
        self._extend(chain)
        self._begin_chains()
        if chain.outcome != before:
            level = logging.ERROR if chain.outcome.state == "failed" else logging.INFO
            log.log(level, "%s", _in_words(chain.instance, chain.outcome))

    def _take_light(self, future: Future[dict[str, Any]]) -> None:
        task = self._light.pop(future)
        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker) and task.tried < _LIGHT_TRIES:
            log.warning("a light worker was killed during %s: called again", task.function)
            self._submit_light(_LightTask(task.function, task.instance, task.arguments, task.tried + 1))
        elif error is not None:
            cause = str(error) if isinstance(error, LsrError) else f"{type(error).__name__}: {error}"
            message = f"{task.function} failed: {cause}"
            log.error("%s", message)
            self._control.journal.write("function failed", function=task.function, message=message)
            if task.instance is None:
                self._end_failure = message
        elif returned := future.result():
            self._control.journal.write(
                "function", function=task.function, instance=task.instance, returned=returned
            )
            if task.instance is None:
                self._returned |= returned


def _in_words(instance: int, outcome: Outcome) -> str:
    result = outcome.result
    if outcome.state == "failed":
        return f"instance {instance} failed: {outcome.message}"
    if outcome.state == "stopped" or result is None:
        return f"instance {instance} stopped"
    named = {"start": "error_before", "network": "network_error", "predictor": "error"}
    errors = [f"{n} {v:.2e}" for n, key in named.items() if (v := result.metrics.get(key)) is not None]
    figures = ": error of " + ", ".join(errors) if errors else ""
    why = f"; finished: {result.why}" if result.is_finished else ""
    return f"instance {instance} round {result.round} {result.status}{figures}{why}"


def exit_code_of(outcomes: list[Outcome]) -> ExitCode:
    """The exit code of a run.

    Args:
        outcomes: Where its instances stand.

    Returns:
        76 if the environment broke; 75 if anything was stopped; the common code of the failures if all failed
        alike, 70 for any other failure; otherwise 0.
    """
    codes = {outcome.exit_code for outcome in outcomes if outcome.state == "failed"}
    if ExitCode.ENVIRONMENT in codes:
        return ExitCode.ENVIRONMENT
    if any(outcome.state in {"stopped", "going"} for outcome in outcomes):
        return ExitCode.RESUME
    if codes:
        is_alike = len(codes) == 1 and all(outcome.state == "failed" for outcome in outcomes)
        return ExitCode(codes.pop()) if is_alike else ExitCode.CRASH
    return ExitCode.DONE
