"""Bodies of steps for tests: they compute nothing worth having, and fail in every way that a real one can."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from lsr_hpc.checkpoint.store import CheckpointStore
from lsr_hpc.comm import OneProcess
from lsr_hpc.errors import AccuracyError, EnvironmentProblem
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.spec import CheckpointId, StepResult, StepSpec
from lsr_hpc.snapshot import Snapshot

ROUNDS = 3


class Alone(OneProcess):
    """One rank that writes a checkpoint by itself."""

    def gather(self, value):
        return [value]


def _store(spec: StepSpec) -> CheckpointStore:
    root = RunLayout(Path(spec.run_directory)).checkpoints(spec.instance)
    return CheckpointStore(root, spec.job_sha256)


def _checkpoint(spec: StepSpec, name: str, content: dict) -> CheckpointId:
    return _store(spec).save(Alone(), name, Snapshot({}, content), progress=(spec.round, 0), score=None)


def _state(spec: StepSpec) -> dict:
    if spec.checkpoint is None:
        return {"total": 0, "rounds": []}
    return dict(_store(spec).load(Alone(), spec.checkpoint).values)


def summing(comm, spec, stop, seconds=0.0):
    """Adds up the numbers of the ranks, ROUNDS times; a state inside the round is kept when asked to stop."""
    state = _state(spec)
    until = time.monotonic() + seconds
    while True:
        if comm.allreduce(stop.is_set()):
            state = comm.bcast(state)
            checkpoint = _checkpoint(spec, f"round-{spec.round:04d}-part", state) if comm.rank == 0 else None
            return StepResult(status="yielded", round=spec.round, checkpoint=comm.bcast(checkpoint))
        if comm.allreduce(time.monotonic() >= until):
            break
        time.sleep(0.02)
    state["total"] += comm.allreduce(comm.rank + 1)
    state["rounds"].append(spec.round)
    checkpoint = _checkpoint(spec, f"round-{spec.round:04d}", state) if comm.rank == 0 else None
    is_finished = spec.round + 1 == ROUNDS
    return StepResult(
        status="done",
        round=spec.round,
        is_finished=is_finished,
        why="all rounds done" if is_finished else "",
        metrics={"total": state["total"], "error_before": 1.0, "error": 1.0 / state["total"]},
        checkpoint=comm.bcast(checkpoint),
    )


def slow(comm, spec, stop):
    return summing(comm, spec, stop, seconds=1.5)


def endless(comm, spec, stop):
    return summing(comm, spec, stop, seconds=600.0)


def deaf(comm, spec, stop):
    """Hangs and asks for no stop."""
    time.sleep(600)


def raising(comm, spec, stop):
    """The last rank raises while the others wait for it."""
    if spec.instance == 1 and comm.rank == comm.size - 1:
        error = ZeroDivisionError("deliberate")
        error.lsr_phase = "basis"
        raise error
    return summing(comm, spec, stop)


def not_a_number(comm, spec, stop):
    if comm.rank == comm.size - 1:
        raise AccuracyError("the residual of block 'equation' is NaN at point 7")
    return summing(comm, spec, stop)


def exiting(comm, spec, stop):
    if comm.rank == comm.size - 1:
        sys.exit(1)
    return summing(comm, spec, stop)


def vanishing(comm, spec, stop):
    """The last rank leaves without a result."""
    if comm.rank == comm.size - 1:
        print("last words", flush=True)
        os._exit(1)
    return summing(comm, spec, stop)


def agreed(comm, spec, stop):
    """All ranks raise together."""
    raise EnvironmentProblem("the disk is full", on_every_rank=True)


def diverging(comm, spec, stop):
    return StepResult(status="diverged", round=spec.round, is_finished=True, why="the error grew twice")


def unpublishable(comm, spec, stop):
    return StepResult(status="done", round=spec.round, metrics={"error": float("nan")})


def held_up(comm, spec, stop):
    """Takes for ever at the first attempt at the first instance, unless it is asked to stop."""
    is_first = spec.sequence == 1 and spec.instance == 0
    return summing(comm, spec, stop, seconds=600.0 if is_first else 0.0)


def deaf_once(comm, spec, stop):
    if spec.sequence == 1:
        time.sleep(600)
    return summing(comm, spec, stop)


def fruitless(comm, spec, stop):
    """Yields by itself, with nothing gained."""
    return StepResult(status="yielded", round=spec.round)
