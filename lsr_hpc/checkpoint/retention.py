"""Which checkpoints are no longer needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lsr_hpc.checkpoint.manifest import CheckpointId, Manifest, number

__all__ = ["Stored", "superfluous"]


@dataclass(frozen=True)
class Stored:
    """A checkpoint with a readable manifest.

    Attributes:
        identifier: Name and digest.
        progress: (round, step within the round).
        is_finished: Whether the round is.
        score: Validation measure, lower is better; None if there is none.
    """

    identifier: CheckpointId
    progress: tuple[int, int]
    is_finished: bool
    score: float | None

    @classmethod
    def of(cls, identifier: CheckpointId, manifest: Manifest) -> Stored:
        """What the manifest says.

        Args:
            identifier: Name and digest.
            manifest: Content.

        Returns:
            The entry.
        """
        return cls(identifier, manifest.progress, manifest.is_finished, manifest.score)

    @property
    def age(self) -> tuple[tuple[int, int], bool, int]:
        """Sorts checkpoints from the oldest to the newest; of two of one name the later one is newer."""
        return self.progress, self.is_finished, number(self.identifier.name)


def superfluous(stored: Sequence[Stored], keep: int, just_written: CheckpointId) -> list[Stored]:
    """Choose what to delete.

    Args:
        stored: Checkpoints in any order.
        keep: How many of the last finished rounds stay.
        just_written: Stays in any case.

    Returns:
        All but: the last finished rounds, the best of the finished rounds, and a state inside a round if
        nothing is newer.
    """
    in_order = sorted(stored, key=lambda s: s.age)
    finished = [s for s in in_order if s.is_finished]
    # Of a round that was done twice, the later checkpoint counts.
    last_of_round = {s.progress[0]: s for s in finished}
    kept = list(last_of_round.values())[-keep:] + in_order[-1:]
    scored = [(s.score, s.progress, s) for s in last_of_round.values() if s.score is not None]
    if scored:
        kept.append(min(scored, key=lambda entry: entry[:2])[2])
    return [s for s in in_order if s not in kept and s.identifier != just_written]
