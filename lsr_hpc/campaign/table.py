"""The result of a campaign: statistics over its members, a table with a line per member, and a figure."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lsr_hpc import __version__
from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.campaign.members import Member
from lsr_hpc.campaign.record import CampaignRecord
from lsr_hpc.campaign.state import read_member_result, read_state
from lsr_hpc.integrity import seal
from lsr_hpc.pipeline.lock import ControllerLock
from lsr_hpc.publish import publish_text

__all__ = ["collect", "content_of", "read_rows", "statistics_of"]

_PATIENCE_S = 150.0
# An axis with more values than that is no grouping.
_MOST_GROUPS = 50
_FIGURES = (
    "error_before",
    "error_after",
    "gain",
    "residual_before",
    "residual_true",
    "rank",
    "instances",
    "outcome",
    "seconds",
)


def collect(layout: CampaignLayout, record: CampaignRecord) -> list[str]:
    """Write ``result.json``, ``campaign.csv`` and ``campaign.png`` from the directories of the members.

    Args:
        layout: The directory of the campaign.
        record: Its members.

    Returns:
        The result in a few lines.

    Raises:
        JobError: If another controller holds the lock for long.
        OSError: If a file cannot be written.
    """
    from lsr_hpc.campaign.figures import draw_campaign

    with ControllerLock(layout.lock, patience_s=_PATIENCE_S):
        rows = read_rows(layout, record, thoroughly=False)
        content = content_of(record, rows)
        publish_text(layout.table, _csv(record, rows))
        publish_text(layout.result, json.dumps(content, indent=1, allow_nan=False) + "\n")
        pairs = [
            (r["error_before"], r["error_after"]) for r in rows if r["error_before"] and r["error_after"]
        ]
        if pairs:
            draw_campaign(layout.figure, pairs)
        if not content["missing"]:
            files = (layout.record, layout.job, layout.result, layout.table, layout.figure)
            seal(layout.root, [path for path in files if path.exists()])
    return _lines(content)


def read_rows(layout: CampaignLayout, record: CampaignRecord, *, thoroughly: bool) -> list[dict[str, Any]]:
    """How every member that is asked for did, from its directory.

    Args:
        layout: The directory of the campaign.
        record: Its members.
        thoroughly: Whether every byte of a finished one is compared with its digest; one that is damaged is
            missing.

    Returns:
        ``member``, ``state`` (done, failed, missing), the figures of ``campaign.csv``, ``cause`` and
        ``exit_code`` of a failure.
    """
    return [_row(layout, member, thoroughly) for member in record.wanted_members]


def _row(layout: CampaignLayout, member: Member, thoroughly: bool) -> dict[str, Any]:
    files = layout.member(member.name)
    state = read_state(files, thoroughly=thoroughly)
    result = (read_member_result(files.directory) or {}) if state.end == "done" else {}
    error, residual = result.get("error") or {}, result.get("residual") or {}
    before, after = error.get("before"), error.get("after")
    instances = result.get("instances") or [result]
    outcomes = sorted({i["outcome"] for i in instances if "outcome" in i})
    return {
        "member": member,
        "state": state.end,
        "error_before": before,
        "error_after": after,
        "gain": before / after if before is not None and after else None,
        "residual_before": residual.get("before"),
        "residual_true": residual.get("true"),
        "rank": result.get("rank"),
        "instances": len(instances) if result else None,
        "outcome": " and ".join(outcomes) or None,
        "seconds": (result.get("seconds") or {}).get("total"),
        "cause": state.message,
        "exit_code": state.exit_code,
    }


def content_of(record: CampaignRecord, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics over the members: the content of ``result.json``.

    Args:
        record: The members.
        rows: How they did.

    Returns:
        JSON types.
    """
    by_state: dict[str, list[Mapping[str, Any]]] = {"done": [], "failed": [], "missing": []}
    for row in rows:
        by_state[row["state"]].append(row)
    status = "partial" if by_state["missing"] else "failed" if by_state["failed"] else "done"
    return {
        "schema": 1,
        "kind": "campaign",
        "status": status,
        "campaign_id": record.campaign_id,
        "members": len(rows),
        "done": len(by_state["done"]),
        "missing": len(by_state["missing"]),
        "failed": [
            {
                "name": row["member"].name,
                "settings": row["member"].settings,
                "cause": row["cause"],
                "exit_code": row["exit_code"],
            }
            for row in by_state["failed"]
        ],
        "no_longer_asked_for": len(record.members) - len(rows),
        **_summary(by_state["done"]),
        "by": _groups(record, by_state["done"]),
        "seconds": math.fsum(row["seconds"] or 0.0 for row in by_state["done"]),
        "axes": list(record.axes),
        "versions": {"lsr_hpc": __version__},
    }


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of errors and gains; outcomes counted."""
    outcomes = [row["outcome"] for row in rows if row["outcome"]]
    return {
        "error": {
            "before": statistics_of([row["error_before"] for row in rows], worst=max),
            "after": statistics_of([row["error_after"] for row in rows], worst=max),
        },
        "gain": statistics_of([row["gain"] for row in rows], worst=min),
        "improved": sum(1 for row in rows if row["gain"] is not None and row["gain"] > 1),
        "outcomes": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
    }


def statistics_of(
    values: Sequence[float | None], worst: Callable[[list[float]], float]
) -> dict[str, float] | None:
    """Statistics of what is known.

    Args:
        values: Numbers, or None.
        worst: Picks the worst of them.

    Returns:
        Mean, standard deviation (of the members, not an estimate for others), worst and median, and where all
        are positive the geometric mean; None where nothing is known.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    found = {
        "mean": math.fsum(known) / len(known),
        "std": statistics.pstdev(known),
        "worst": worst(known),
        "median": statistics.median(known),
    }
    if all(value > 0 for value in known):
        found["geometric_mean"] = math.exp(math.fsum(map(math.log, known)) / len(known))
    return found


def _groups(record: CampaignRecord, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The same statistics for every value of an axis, for axes that put several members under one value."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for axis in record.axes:
        by_value: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            by_value.setdefault(json.dumps(row["member"].settings[axis]), []).append(row)
        if 1 < len(by_value) <= _MOST_GROUPS and len(by_value) < len(rows):
            groups[axis] = [
                {"value": json.loads(value), "members": len(alike), **_summary(alike)}
                for value, alike in by_value.items()
            ]
    return groups


def _csv(record: CampaignRecord, rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["number", "name", "state", *record.axes, *_FIGURES, "cause"])
    for row in rows:
        member: Member = row["member"]
        values = [member.settings[axis] for axis in record.axes]
        shown = [value if isinstance(value, str | int | float) else json.dumps(value) for value in values]
        figures = [row[name] for name in _FIGURES]
        writer.writerow([member.number, member.name, row["state"], *shown, *figures, row["cause"]])
    return text.getvalue()


def _lines(content: Mapping[str, Any]) -> list[str]:
    failed, missing = len(content["failed"]), content["missing"]
    rest = (f", {failed} failed" if failed else "") + (f", {missing} not yet done" if missing else "")
    lines = [f"{content['done']} of {content['members']} members done{rest}"]
    figures = {
        "relative L2 error before": content["error"]["before"],
        "relative L2 error after": content["error"]["after"],
        "gain": content["gain"],
    }
    for label, found in figures.items():
        if found is not None:
            listed = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in found.items())
            lines.append(f"{label}: {listed}")
    return lines
