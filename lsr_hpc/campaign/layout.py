"""Where things are in the directory of a campaign, which grows in place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lsr_hpc.pipeline.layout import AttemptFiles

__all__ = ["CampaignLayout", "MemberFiles"]

_TRY = re.compile(r"try-(\d+)")


@dataclass(frozen=True)
class MemberFiles:
    """Files of a member.

    Attributes:
        directory: What it comes to: a run directory, which appears whole.
        tries: What was tried: a lease and an answer each.
    """

    directory: Path
    tries: Path

    @property
    def lock(self) -> Path:
        """Held by the one controller that has the member in hand."""
        return self.tries / "lock"

    def attempt(self, number: int) -> AttemptFiles:
        """One try.

        Args:
            number: Its number, from 1.

        Returns:
            Its files, which need not be there.
        """
        return AttemptFiles(self.tries / f"try-{number}")

    def attempts(self) -> list[tuple[int, AttemptFiles]]:
        """All tries that were begun, in order."""
        found = ((_TRY.fullmatch(path.name), path) for path in self.tries.glob("try-*"))
        return sorted(((int(m[1]), AttemptFiles(path)) for m, path in found if m), key=lambda t: t[0])


@dataclass(frozen=True)
class CampaignLayout:
    """The directory of a campaign.

    Attributes:
        root: Absolute path.
    """

    root: Path

    @property
    def record(self) -> Path:
        """The members and what they have in common; a directory with it is one of ``lsr-hpc campaign``."""
        return self.root / "campaign.json"

    @property
    def job(self) -> Path:
        """The resolved job."""
        return self.root / "job.toml"

    @property
    def lock(self) -> Path:
        """Held while the record is written, or the table."""
        return self.root / "campaign.lock"

    @property
    def stop(self) -> Path:
        """Present while a stop is asked for."""
        return self.root / "STOP"

    @property
    def events(self) -> Path:
        """One line for every end of a member."""
        return self.root / "members.jsonl"

    @property
    def result(self) -> Path:
        """Statistics, and what has failed."""
        return self.root / "result.json"

    @property
    def table(self) -> Path:
        """One line per member."""
        return self.root / "campaign.csv"

    @property
    def figure(self) -> Path:
        """Distribution of errors and gains."""
        return self.root / "campaign.png"

    @property
    def members(self) -> Path:
        """A directory for every finished member."""
        return self.root / "members"

    def member(self, name: str) -> MemberFiles:
        """Files of a member.

        Args:
            name: Its name.

        Returns:
            The files.
        """
        return MemberFiles(self.members / name, self.root / "tries" / name)

    def new_start(self) -> tuple[int, Path]:
        """Make a directory for the steps of a controller, which no other one uses.

        Returns:
            Number of the start, and its directory.

        Raises:
            OSError: If it cannot be made.
        """
        steps = self.root / "steps"
        steps.mkdir(mode=0o700, exist_ok=True)
        number = 1 + max((int(p.name.rpartition("-")[2]) for p in steps.glob("start-*")), default=0)
        while True:
            try:
                (steps / f"start-{number:04d}").mkdir(mode=0o700)
            except FileExistsError:
                number += 1
            else:
                return number, steps / f"start-{number:04d}"
