"""Where things are in the directory of a run, ``RUN``, which grows in place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lsr_hpc.phase_record import TIMELINE

__all__ = ["AttemptFiles", "RunLayout"]

_NUMBERED = re.compile(r"(?:instance|round|attempt)-(\d+)")


@dataclass(frozen=True)
class AttemptFiles:
    """One attempt at a step.

    Attributes:
        root: ``RUN/steps/instance-0000/round-0003/attempt-1``.
    """

    root: Path

    @property
    def spec(self) -> Path:
        """What to do."""
        return self.root / "spec.json"

    @property
    def lease(self) -> Path:
        """Made by the one program that may do it."""
        return self.root / "lease"

    @property
    def revoked(self) -> Path:
        """Made by a controller that has given the attempt up: its result is no longer wanted."""
        return self.root / "revoked"

    @property
    def stop(self) -> Path:
        """Made by the controller when the step is to yield."""
        return self.root / "stop"

    @property
    def result(self) -> Path:
        """What it came to."""
        return self.root / "result.json"

    @property
    def heartbeat(self) -> Path:
        """Renewed by the first rank while it lives."""
        return self.root / "heartbeat.json"

    @property
    def output(self) -> Path:
        """What the launcher and the ranks print."""
        return self.root / "output.log"

    @property
    def timeline(self) -> Path:
        """Phases of its MPI ranks."""
        return self.root / TIMELINE

    @property
    def command(self) -> Path:
        """The command that started it, to be read by people."""
        return self.root / "command.txt"

    def crash(self, mpi_rank: int) -> Path:
        """Cause of the end of all ranks, written by the rank that failed.

        Args:
            mpi_rank: The rank.

        Returns:
            Path.
        """
        return self.root / f"crash.rank-{mpi_rank}.json"

    def crashes(self) -> list[Path]:
        """All crash files."""
        return sorted(self.root.glob("crash.rank-*.json"))


@dataclass(frozen=True)
class RunLayout:
    """The run directory.

    Attributes:
        root: ``RUN``, absolute.
    """

    root: Path

    @property
    def run(self) -> Path:
        """Identity of the run; a directory with it is one of ``lsr-hpc run``."""
        return self.root / "run.json"

    @property
    def job(self) -> Path:
        """The resolved job."""
        return self.root / "job.toml"

    @property
    def lock(self) -> Path:
        """Held by the controller."""
        return self.root / "controller.lock"

    @property
    def claim(self) -> Path:
        """Written by the newest start of a job that found the lock in the hands of an earlier one."""
        return self.root / "controller.claim"

    @property
    def stop(self) -> Path:
        """Present while a stop is asked for."""
        return self.root / "STOP"

    @property
    def metrics(self) -> Path:
        """One line per event."""
        return self.root / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """Result of the whole run."""
        return self.root / "result.json"

    @property
    def log(self) -> Path:
        """Log of the controllers of this run."""
        return self.root / "logs" / "controller.log"

    @property
    def predictor(self) -> Path:
        """Best refined predictors, written at the end."""
        return self.root / "predictor"

    @property
    def network(self) -> Path:
        """Best networks, written at the end."""
        return self.root / "network"

    @property
    def fields(self) -> Path:
        """Errors at some evaluation points, written at the end."""
        return self.root / "fields"

    @property
    def figures(self) -> Path:
        """Pictures of the rounds, redrawn after each."""
        return self.root / "figures"

    def checkpoints(self, instance: int) -> Path:
        """Checkpoints of an instance.

        Args:
            instance: Number of the instance.

        Returns:
            The root of its store.
        """
        return self.root / "checkpoints" / f"instance-{instance:04d}"

    @property
    def steps(self) -> Path:
        """Steps of all instances."""
        return self.root / "steps"

    @property
    def timelines(self) -> list[Path]:
        """Phases of the attempts that there are."""
        return sorted(self.steps.glob(f"*/*/*/{TIMELINE}"))

    def attempt(self, instance: int, round_: int, attempt: int) -> AttemptFiles:
        """Files of an attempt.

        Args:
            instance: Number of the instance.
            round_: Round that the step begins with.
            attempt: Number of the attempt, from 1.

        Returns:
            Its files, which need not be there.
        """
        return AttemptFiles(
            self.steps / f"instance-{instance:04d}" / f"round-{round_:04d}" / f"attempt-{attempt}"
        )

    def attempts(self, instance: int) -> list[tuple[int, int, AttemptFiles]]:
        """All attempts at the rounds of an instance.

        Args:
            instance: Number of the instance.

        Returns:
            Round, attempt and files, in this order.
        """
        found = [
            (_number(directory.parent), _number(directory), AttemptFiles(directory))
            for directory in (self.steps / f"instance-{instance:04d}").glob("round-*/attempt-*")
        ]
        return sorted(found, key=lambda item: item[:2])


def _number(directory: Path) -> int:
    match = _NUMBERED.fullmatch(directory.name)
    return int(match[1]) if match else -1
