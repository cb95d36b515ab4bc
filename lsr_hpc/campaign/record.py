"""Identity of a campaign, ``campaign.json``: what its members have in common, and who they are."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.campaign.members import Member, campaign_of, command_of, expand, full_identity
from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.job import Job, load_job
from lsr_hpc.pipeline.lock import ControllerLock
from lsr_hpc.pipeline.record import differences
from lsr_hpc.publish import publish_file, publish_text
from lsr_hpc.store import read_manifest, write_manifest

__all__ = ["CampaignRecord", "plan_members", "read_record", "register", "stored_job"]

_KIND = "lsr_hpc campaign"
_SCHEMA = 1
# Writing takes a moment; another machine that has died with the lock is waited for.
_PATIENCE_S = 150.0


@dataclass(frozen=True, kw_only=True)
class CampaignRecord:
    """A campaign.

    Attributes:
        campaign_id: Its identity.
        base: What the job computes, apart from the campaign.
        axes: Settings in which the members differ.
        members: All members there have been, by number.
        wanted: Numbers of those that the job asks for now.
    """

    campaign_id: str
    base: Mapping[str, Any]
    axes: Sequence[str]
    members: Sequence[Member]
    wanted: Sequence[int]

    @property
    def wanted_members(self) -> list[Member]:
        """Members that the job asks for now, by number."""
        return [self.members[number] for number in sorted(self.wanted)]


def plan_members(layout: CampaignLayout, job: Job) -> CampaignRecord:
    """The record as it is to be for a job: members there have been keep their numbers.

    Args:
        layout: The directory, which need not be there.
        job: The resolved job.

    Returns:
        The record.

    Raises:
        JobError: If a member cannot be, or the directory holds a campaign with another base.
    """
    base = full_identity(job, command_of(job))
    axes = list(campaign_of(job).axes)
    before = read_record(layout) if layout.record.exists() else None
    if before is not None:
        free = {*axes, *before.axes}
        if differing := differences(_without(before.base, free), _without(base, free)):
            raise JobError(
                f"{layout.root} holds a campaign with another base: name another --out. Different are"
                + "".join(f"\n  - {line}" for line in differing)
            )
    members = list(before.members) if before else []
    numbers = {member.digest: member.number for member in members}
    wanted = []
    for digest, settings in expand(job):
        number = numbers.setdefault(digest, len(members))
        # Axes may have come or gone that leave the member what it is.
        members[number : number + 1] = [Member(number, digest, settings)]
        wanted.append(number)
    return CampaignRecord(
        campaign_id=before.campaign_id if before else secrets.token_hex(8),
        base=base,
        axes=axes,
        members=members,
        wanted=wanted,
    )


def _without(base: Mapping[str, Any], axes: set[str]) -> dict[str, Any]:
    """The base without what members differ in; weights that are an axis bring their own digests."""

    def is_free(key: str) -> bool:
        return any(key == axis or key.startswith((axis + ".", axis + " ")) for axis in axes)

    return {key: value for key, value in base.items() if not is_free(key)}


def register(layout: CampaignLayout, job: Job) -> CampaignRecord:
    """Write down the members of a campaign; new ones join those that are there.

    Args:
        layout: The directory, which is there.
        job: The resolved job.

    Returns:
        The record.

    Raises:
        JobError: If a member cannot be, or the directory holds a campaign with another base.
        EnvironmentProblem: If writing fails.
    """
    try:
        with ControllerLock(layout.lock, patience_s=_PATIENCE_S):
            record = plan_members(layout, job)
            text = job.as_toml()
            if not layout.job.is_file() or layout.job.read_text(encoding="utf-8") != text:
                publish_text(layout.job, text)
            if not layout.record.exists() or read_record(layout) != record:
                with publish_file(layout.record) as temporary:
                    write_manifest(temporary, {"kind": _KIND, "schema": _SCHEMA, **_as_json(record)})
    except OSError as error:
        raise EnvironmentProblem(f"{layout.root} cannot be written: {error.strerror}") from error
    return record


def _as_json(record: CampaignRecord) -> dict[str, Any]:
    return asdict(record) | {"members": [asdict(member) for member in record.members]}


def read_record(layout: CampaignLayout) -> CampaignRecord:
    """Read the identity of a campaign.

    Args:
        layout: The directory.

    Returns:
        The record.

    Raises:
        JobError: If the directory holds no campaign, or its identity is damaged.
    """
    if not layout.record.is_file():
        raise JobError(
            f"{layout.root} is no directory of `lsr-hpc campaign` (there is no {layout.record.name} in it): "
            "give what was its --out"
        )
    content = read_manifest(layout.record)
    if (content.pop("kind", None), content.pop("schema", None)) != (_KIND, _SCHEMA):
        raise JobError(f"{layout.record} is of another kind or version: use the lsr_hpc that wrote it")
    members = [Member(**member) for member in content.pop("members")]
    return CampaignRecord(members=members, **content)


def stored_job(layout: CampaignLayout) -> Job:
    """The job that a campaign was started with last.

    Args:
        layout: The directory.

    Returns:
        The job.

    Raises:
        JobError: If it cannot be read.
    """
    return load_job(layout.job)
