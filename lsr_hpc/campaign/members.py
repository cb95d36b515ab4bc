"""From the axes of a campaign to its members: the base job with some of its settings replaced.

A member is known by a digest of everything that it computes. Values that are added to an axis make new
members and leave the others what they are, with their names.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lsr_hpc.errors import JobError
from lsr_hpc.job import Job, changed_job
from lsr_hpc.pipeline.record import identity
from lsr_hpc.settings_campaign import CampaignSettings
from lsr_hpc.store import file_digest

__all__ = ["Member", "campaign_of", "command_of", "expand", "full_identity", "member_job", "refuse"]

_DIGITS = 12
_MOST_MISTAKES = 20
_WEIGHTS = "problem.weights sha256"


@dataclass(frozen=True)
class Member:
    """One member of a campaign.

    Attributes:
        number: Its number, which it keeps.
        digest: Of everything that it computes.
        settings: Its values by setting.
    """

    number: int
    digest: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"{self.number:04d}-{self.digest}"

    def __str__(self) -> str:
        """Its name and what is special about it."""
        shown = ", ".join(f"{key} = {json.dumps(value)}" for key, value in self.settings.items())
        return f"member {self.name} ({shown})"


def campaign_of(job: Job) -> CampaignSettings:
    """Section ``[campaign]`` of a job.

    Args:
        job: The job.

    Returns:
        The section.

    Raises:
        JobError: If the job has none.
    """
    if job.campaign is None:
        raise JobError(
            f"job {job.name!r} has no section [campaign]: name the settings in which its members differ, "
            "such as [campaign.axes] problem.instance = {range = [0, 299]}"
        )
    return job.campaign


def command_of(job: Job) -> str:
    """What is done with the members of a job.

    Args:
        job: The job of the campaign.

    Returns:
        ``"refine"`` or ``"run"``.
    """
    asked = campaign_of(job).command
    return asked if asked != "auto" else "refine" if job.iterate is None else "run"


def member_job(base: Job, settings: Mapping[str, Any]) -> Job:
    """The job of a member.

    Args:
        base: The job of the campaign.
        settings: The member's values by setting.

    Returns:
        A job without a campaign.

    Raises:
        JobError: Listing everything that is wrong.
    """
    mistakes: list[str] = []
    job = changed_job(replace(base, campaign=None), settings, mistakes)
    if job is None:
        raise JobError(*mistakes)
    return job


def full_identity(
    job: Job, command: str, digest_of: Callable[[Path], str | None] | None = None
) -> dict[str, Any]:
    """Everything that a member computes, the content of its weights included.

    Args:
        job: The job.
        command: What is done with it.
        digest_of: Digest of a file, None where there is none; absent reads the file.

    Returns:
        JSON values by dotted name.
    """
    found = identity(job) | {"campaign.command": command}
    if job.problem.weights is not None:
        found[_WEIGHTS] = (digest_of or _digest_of)(Path(job.problem.weights))
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def expand(base: Job) -> list[tuple[str, dict[str, Any]]]:
    """All members that a job asks for, checked.

    Args:
        base: The job of the campaign.

    Returns:
        Digest and settings of every member, in the order of the axes, the last axis running fastest.

    Raises:
        JobError: Listing what is wrong with which member, and members that are there twice.
    """
    campaign, command = campaign_of(base), command_of(base)
    digest_of = cache(_digest_of)
    plain = replace(base, campaign=None)
    members: dict[str, dict[str, Any]] = {}
    mistakes: dict[str, list[str]] = {}
    for i, settings in enumerate(_combinations(campaign)):
        where = f"member {i} ({', '.join(f'{k} = {json.dumps(v)}' for k, v in settings.items())})"
        found: list[str] = []
        job = changed_job(plain, settings, found)
        for mistake in found:
            mistakes.setdefault(mistake, []).append(where)
        if job is None:
            continue
        text = json.dumps(full_identity(job, command, digest_of), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
        if digest in members:
            mistakes.setdefault("it is there twice: leave one of the equal values out", []).append(where)
        members[digest] = settings
    refuse(mistakes)
    return list(members.items())


def refuse(mistakes: Mapping[str, Sequence[str]]) -> None:
    """Raise what is wrong with members, if anything is.

    Args:
        mistakes: Members by what is wrong with them.

    Raises:
        JobError: Listing all of it.
    """
    if mistakes:
        raise JobError("the members of the campaign cannot be:" + "".join(_listed(mistakes)))


def _listed(mistakes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for mistake, members in itertools.islice(mistakes.items(), _MOST_MISTAKES):
        n = len(members) - 1
        others = f" and {n} other{'s' if n > 1 else ''}" if n else ""
        yield f"\n  - {members[0]}{others}: {mistake}"
    if len(mistakes) > _MOST_MISTAKES:
        yield f"\n  - and {len(mistakes) - _MOST_MISTAKES} more"


def _combinations(campaign: CampaignSettings) -> Iterator[dict[str, Any]]:
    if campaign.combine == "zip":
        rows: Iterator[tuple[Any, ...]] = zip(*campaign.axes.values(), strict=True)
    else:
        rows = itertools.product(*campaign.axes.values())
    return (dict(zip(campaign.axes, row, strict=True)) for row in rows)


def _digest_of(path: Path) -> str | None:
    try:
        return file_digest(path)
    except OSError:
        # Reading the weights says in words what is wrong with them.
        return None
