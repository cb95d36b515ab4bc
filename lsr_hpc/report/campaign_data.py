"""What a report on a campaign shows, read from its directory and from the directories of its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.campaign.record import read_record, stored_job
from lsr_hpc.campaign.table import content_of, read_rows
from lsr_hpc.errors import JobError
from lsr_hpc.integrity import MANIFEST, seal_faults

__all__ = ["CampaignData", "load_campaign"]


@dataclass(frozen=True, kw_only=True)
class CampaignData:
    """A campaign as it stands, finished or not.

    Attributes:
        directory: Its directory, absolute.
        name: Name of the job.
        axes: Settings in which the members differ.
        rows: A row per member, in the order of their numbers; see :func:`lsr_hpc.campaign.table.read_rows`.
        content: Statistics, as in ``result.json``.
        job: Text of the resolved job.
    """

    directory: Path
    name: str
    axes: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    content: Mapping[str, Any]
    job: str

    def of_state(self, state: str) -> list[Mapping[str, Any]]:
        """Rows of the members that are ``"done"``, ``"failed"`` or ``"missing"``."""
        return [row for row in self.rows if row["state"] == state]

    def member(self, row: Mapping[str, Any]) -> Path:
        """The run directory of a member."""
        return CampaignLayout(self.directory).member(row["member"].name).directory


def load_campaign(directory: Path) -> CampaignData:
    """Read a campaign, having compared every file of its own and of its members with their digests.

    Args:
        directory: Directory of ``lsr-hpc campaign``.

    Returns:
        What there is to show; a member whose files are damaged is missing.

    Raises:
        JobError: If it is no such directory, or damaged, or no member has come to an end.
    """
    layout = CampaignLayout(directory.absolute())
    record = read_record(layout)
    job = stored_job(layout)
    if (layout.root / MANIFEST).exists() and (faults := seal_faults(layout.root)):
        raise JobError(
            f"{directory}: {'; '.join(map(str, faults[:3]))}: see `lsr-hpc verify`; `lsr-hpc campaign` with "
            "the same job makes the table again"
        )
    rows = read_rows(layout, record, thoroughly=True)
    if all(row["state"] == "missing" for row in rows):
        raise JobError(f"{directory}: no member is done: go on with `lsr-hpc resume {directory}`")
    return CampaignData(
        directory=layout.root,
        name=job.name,
        axes=record.axes,
        rows=rows,
        content=content_of(record, rows),
        job=layout.job.read_text(encoding="utf-8"),
    )
