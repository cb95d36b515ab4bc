"""How far a run is, from its files alone: where a controller begins, and what ``lsr-hpc status`` shows."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lsr_hpc.errors import JobError
from lsr_hpc.pipeline.attempt import EndedOutside, read_outcome
from lsr_hpc.pipeline.layout import AttemptFiles, RunLayout
from lsr_hpc.pipeline.spec import StepResult, StepSpec, read_spec

__all__ = ["Attempt", "InstanceProgress", "read_progress"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """An attempt that was begun.

    Attributes:
        spec: What it had to do.
        files: Its files.
        outcome: Its end; ``EndedOutside`` also while it is still at work.
    """

    spec: StepSpec
    files: AttemptFiles
    outcome: StepResult | EndedOutside


@dataclass(frozen=True)
class InstanceProgress:
    """How far an instance is.

    Attributes:
        instance: Its number.
        attempts: In the order in which they were begun.
    """

    instance: int
    attempts: tuple[Attempt, ...]

    @property
    def results(self) -> list[StepResult]:
        """Results of the steps that brought it forward, in order."""
        results = [a.outcome for a in self.attempts if isinstance(a.outcome, StepResult)]
        return [result for result in results if result.status != "failed"]

    @property
    def last(self) -> StepResult | None:
        """Result to go on from."""
        return self.results[-1] if self.results else None

    @property
    def next_round(self) -> int:
        """The round to do next."""
        return self.last.next_round if self.last else 0

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.last is not None and self.last.is_finished


def read_progress(layout: RunLayout, instance: int) -> InstanceProgress:
    """Read how far an instance is.

    Args:
        layout: The run directory.
        instance: Number of the instance.

    Returns:
        Its progress. Attempts whose files are damaged, and are hence not to be relied on, are logged and left
        out.
    """
    attempts = []
    for _, _, files in layout.attempts(instance):
        try:
            attempts.append(Attempt(read_spec(files.spec), files, read_outcome(files)))
        except JobError as error:
            log.warning("%s; this attempt is left out", error)
    return InstanceProgress(instance, tuple(sorted(attempts, key=lambda a: a.spec.sequence)))
