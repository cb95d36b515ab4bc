"""The task of which the chain of an instance is made: go on from the step before, if anything is left to do.

It runs on the launcher, a Dask worker inside the controller's process, and finds what it shares with the
controller by the identity of the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from lsr_hpc.errors import ExitCode
from lsr_hpc.pipeline.attempt import StopRequest, run_attempt
from lsr_hpc.pipeline.journal import Journal
from lsr_hpc.pipeline.launch import Launcher
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.record import RunRecord
from lsr_hpc.pipeline.spec import CheckpointId, StepResult, StepSpec
from lsr_hpc.settings import RunSettings

__all__ = ["ACTIVE", "Control", "Outcome", "State", "advance"]

log = logging.getLogger(__name__)

_PAUSE_S = 10.0
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Control:
    """What the controller and the tasks on its launcher share.

    Attributes:
        layout: The run directory.
        record: Identity of the run.
        settings: Section ``[run]``.
        launcher: How ranks are started.
        environment: Their environment.
        journal: Where events go.
        stop: The wish to stop.
    """

    layout: RunLayout
    record: RunRecord
    settings: RunSettings
    launcher: Launcher
    environment: Mapping[str, str]
    journal: Journal
    stop: StopRequest = field(default_factory=StopRequest)


# Controls of this process, by identity of the run: a task cannot carry a stop request or a journal.
ACTIVE: dict[str, Control] = {}


# going: there is more to do; stopped: there is, another time.
State = Literal["going", "finished", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where an instance stands after a task of its chain.

    Attributes:
        number: Place in the chain of the task that did something last.
        state: See :data:`State`.
        result: The newest result to go on from.
        message: Cause of a failure.
        exit_code: Exit code that goes with it.
    """

    number: int
    state: State
    result: StepResult | None
    message: str = ""
    exit_code: int = 0


def advance(run_id: str, instance: int, number: int, previous: Outcome) -> Outcome:
    """Do the next step of an instance, unless it is finished, has failed, or the run is to stop.

    Args:
        run_id: Identity of the run.
        instance: Number of the instance.
        number: Place of this task in the instance's chain.
        previous: What came out at the place before.

    Returns:
        Where the instance stands now; ``previous`` if nothing was done.
    """
    if previous.state != "going":
        return previous
    control = ACTIVE[run_id]
    try:
        return _do_step(control, instance, number, previous)
    except OSError as error:
        return _failed(control, previous, f"no step can be started: {error}", int(ExitCode.ENVIRONMENT))
    except Exception as error:
        log.exception("instance %d: the step could not be started or waited for", instance)
        return _failed(control, previous, f"{type(error).__name__}: {error}", int(ExitCode.CRASH))


def _do_step(control: Control, instance: int, number: int, previous: Outcome) -> Outcome:
    round_ = previous.result.next_round if previous.result else 0
    has_begun = True
    for tried in range(control.settings.max_attempts):
        if not has_begun:
            _pause(control.stop, tried * _PAUSE_S)
        if control.stop.is_set:
            return replace(previous, state="stopped")
        spec = _specify(control, instance, round_, previous.result)
        files = control.layout.attempt(instance, round_, spec.attempt)
        started = time.monotonic()
        outcome = run_attempt(
            control.launcher,
            files,
            spec,
            control.environment,
            control.stop,
            control.settings.silence_seconds,
        )
        wall_s = round(time.monotonic() - started, 3)
        where = f"round {round_} attempt {spec.attempt}"
        event = {"instance": instance, "round": round_, "attempt": spec.attempt, "wall_s": wall_s}
        if isinstance(outcome, StepResult):
            control.journal.write(
                "step", **event, status=outcome.status, why=outcome.why, metrics=dict(outcome.metrics)
            )
            return _after(control, where, number, previous, outcome)
        control.journal.write("step", **event, status="ended from outside", message=outcome.message)
        log.warning("instance %d %s: %s", instance, where, outcome.message)
        has_begun = files.lease.exists()
    if control.launcher.name == "srun" and not has_begun:
        log.warning("srun brings no ranks to work: another start of the job may, on other nodes")
        control.stop.ask()
    if control.stop.is_set:
        return replace(previous, state="stopped")
    return _failed(
        control,
        previous,
        f"{where}, the last of {control.settings.max_attempts} in a row without a result: {outcome.message}",
        int(ExitCode.CRASH),
    )


def _pause(stop: StopRequest, seconds: float) -> None:
    """Where not even the ranks have begun, what prevents them may pass: a node, the scheduler, a disk."""
    until = time.monotonic() + seconds
    while not stop.is_set and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)


def _specify(control: Control, instance: int, round_: int, last: StepResult | None) -> StepSpec:
    begun = control.layout.attempts(instance)
    checkpoint: CheckpointId | None = last.checkpoint if last else None
    return StepSpec(
        run_id=control.record.run_id,
        instance=instance,
        round=round_,
        rounds=control.settings.rounds_per_step,
        attempt=1 + max((attempt for at, attempt, _ in begun if at == round_), default=0),
        sequence=1 + len(begun),
        world_size=control.settings.ranks,
        job_sha256=control.record.job_sha256,
        run_directory=str(control.layout.root),
        checkpoint=checkpoint,
        checkpoint_seconds=control.settings.checkpoint_seconds,
        keep=control.settings.keep,
        body=control.settings.body,
    )


def _after(control: Control, where: str, number: int, previous: Outcome, result: StepResult) -> Outcome:
    if result.status == "failed":
        return _failed(control, previous, f"{where}: {result.message}", result.exit_code)
    if result.status == "yielded":
        # Nobody asked here, so somebody told the ranks: they are to leave the machine, and so is the run.
        control.stop.ask()
        return Outcome(number=number, state="stopped", result=result)
    return Outcome(number=number, state="finished" if result.is_finished else "going", result=result)


def _failed(control: Control, previous: Outcome, message: str, exit_code: int) -> Outcome:
    if exit_code == ExitCode.ENVIRONMENT:
        # A full disk or a broken installation meets the other instances too.
        control.stop.ask()
    return replace(previous, state="failed", message=message, exit_code=exit_code)
