"""The parts of a report on a campaign: how its members did, which did worst, and which failed and why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsr_hpc.campaign.figures import axis_figure, campaign_figure
from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.report import html
from lsr_hpc.report.campaign_data import CampaignData
from lsr_hpc.report.data import load_run
from lsr_hpc.report.sections import Pictures, run_sections

__all__ = ["campaign_in_one_sentence", "campaign_sections"]

Row = Mapping[str, Any]
# Members that are listed where the worst are meant, and for one cause of failure.
_WORST, _NAMED = 10, 8


def campaign_in_one_sentence(campaign: CampaignData) -> str:
    """How far a campaign is, and how well its members did.

    Args:
        campaign: The campaign.

    Returns:
        A sentence.
    """
    content = campaign.content
    failed, missing = len(content["failed"]), content["missing"]
    states = [f"{content['done']} of {content['members']} members are done"]
    states += [f"{failed} failed"] * (failed > 0) + [f"{missing} missing"] * (missing > 0)
    sentence = ", ".join(states)
    after, gain = content["error"]["after"], content["gain"]
    if after is None or gain is None:
        return f"{sentence}."
    before = content["error"]["before"]
    return (
        f"{sentence}: the median relative L2 error went from {before['median']:.2e} to "
        f"{after['median']:.2e}, the worst is {after['worst']:.2e}; the gain is {gain['median']:.3g} in the "
        f"median and {gain['worst']:.3g} at worst, and {content['improved']} improved."
    )


def campaign_sections(campaign: CampaignData, pictures: Pictures, place: Path) -> list[str]:
    """All parts of the report on a campaign.

    Args:
        campaign: The campaign.
        pictures: Receives the figures.
        place: Directory of the page, from where its links lead.

    Returns:
        HTML.
    """
    return [
        *_distribution(campaign, pictures),
        *_failures(campaign),
        *_worst(campaign, pictures, place),
        *_axes(campaign, pictures),
        *_members(campaign, place),
        html.heading(2, "Environment"),
        html.preformatted(campaign.job, "The job, fully resolved"),
    ]


def _distribution(campaign: CampaignData, pictures: Pictures) -> list[str]:
    pairs = _errors(campaign.of_state("done"))
    content = campaign.content
    quantities = {
        "relative L2 error, start": content["error"]["before"],
        "relative L2 error, refined": content["error"]["after"],
        "gain": content["gain"],
    }
    names = ["mean", "std", "worst", "median", "geometric_mean"]
    rows = [
        [quantity, *(found.get(name) for name in names)]
        for quantity, found in quantities.items()
        if found is not None
    ]
    if not rows:
        return []
    outcomes = ", ".join(f"{n} {outcome}" for outcome, n in content["outcomes"].items())
    drawn = [] if not pairs else [pictures.add("campaign", campaign_figure(pairs), _CAPTION)]
    return [
        html.heading(2, "Errors and gains"),
        *drawn,
        html.table(["", *(name.replace("_", " ") for name in names)], rows),
        html.paragraph(f"Outcomes: {outcomes or 'none'}. Together {content['seconds']:.4g} s of refinement."),
    ]


_CAPTION = (
    "Left: error of every member before and after, in the order of the refined errors. Right: how the gains "
    "are distributed. Errors are relative L2 on evaluation data that no fit has seen."
)


def _failures(campaign: CampaignData) -> list[str]:
    by_cause: dict[tuple[str, int], list[Row]] = {}
    for row in campaign.of_state("failed"):
        by_cause.setdefault((row["cause"], row["exit_code"]), []).append(row)
    missing = campaign.of_state("missing")
    if not by_cause and not missing:
        return []
    rows: list[list[object]] = [
        [cause, code, len(alike), _listed(alike)]
        for (cause, code), alike in sorted(by_cause.items(), key=lambda entry: -len(entry[1]))
    ]
    if missing:
        rows.append(["not carried out yet, stopped, or damaged", None, len(missing), _listed(missing)])
    return [
        html.heading(2, "What is not done"),
        html.table(["cause", "exit code", "members", "which"], rows),
        html.paragraph(
            "Once the cause is mended, the same command, or lsr-hpc resume on this directory, does these and "
            "no others. What a failed member printed is in steps/, its answers are in tries/."
        ),
    ]


def _listed(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return "; ".join(str(row["member"]) for row in rows[:_NAMED]) + more


def _worst(campaign: CampaignData, pictures: Pictures, place: Path) -> list[str]:
    known = [row for row in campaign.of_state("done") if row["error_after"] is not None]
    if not known:
        return []
    ordered = sorted(known, key=lambda row: -row["error_after"])
    parts = [
        html.heading(2, "Worst members"),
        html.table(*_table(campaign, ordered[:_WORST], place)),
    ]
    # The worst in full; beside the median one it tells what is special about it.
    shown = {"Worst member": ordered[0], "Median member": ordered[len(ordered) // 2]}
    for title, row in list(shown.items())[: min(2, len(ordered))]:
        run = load_run(campaign.member(row))
        name = f"{title.partition(' ')[0].lower()}-"
        parts += [html.heading(2, f"{title}: {row['member']}"), *run_sections(run, pictures, name)]
    return parts


def _axes(campaign: CampaignData, pictures: Pictures) -> list[str]:
    parts: list[str] = []
    done = campaign.of_state("done")
    for axis, groups in campaign.content["by"].items():
        if not any(group["gain"] for group in groups):
            continue
        parts.append(html.heading(3, axis))
        values = [group["value"] for group in groups]
        errors = [
            [
                row["error_after"]
                for row in done
                if row["member"].settings[axis] == value and row["error_after"]
            ]
            for value in values
        ]
        caption = f"Refined error of every member for each value of {axis}, and their median."
        parts.append(pictures.add(f"axis-{axis}", axis_figure(axis, values, errors), caption))
        rows = [
            [
                str(group["value"]),
                group["members"],
                *_figures_of(group["error"]["after"]),
                *_figures_of(group["gain"]),
            ]
            for group in groups
        ]
        head = ["value", "members", "error, median", "error, worst", "gain, median", "gain, worst"]
        parts.append(html.table(head, rows))
    return [html.heading(2, "By setting"), *parts] if parts else []


def _figures_of(found: Mapping[str, float] | None) -> list[float | None]:
    return [None, None] if found is None else [found["median"], found["worst"]]


def _members(campaign: CampaignData, place: Path) -> list[str]:
    rows = list(campaign.rows)
    return [
        html.heading(2, "All members"),
        html.table(*_table(campaign, rows, place), summary=f"{len(rows)} members"),
    ]


def _table(campaign: CampaignData, rows: Sequence[Row], place: Path) -> tuple[list[str], list[list[object]]]:
    """Head and rows of a table of members, each with a link to what it has."""
    # Names of settings are long: their heads may break behind a point.
    axes = [axis.replace(".", ".\u200b") for axis in campaign.axes]
    head = ["member", *axes, "state", "error before", "error after", "gain", "residual true", "rank"]
    body: list[list[object]] = []
    for row in rows:
        settings = row["member"].settings
        body.append([
            _link(campaign, row, place),
            *(str(settings[axis]) for axis in campaign.axes),
            row["outcome"] or row["state"],
            *(
                row[key]
                for key in ("error_before", "error_after", "gain", "residual_true", "rank", "seconds")
            ),
        ])
    return [*head, "seconds"], body


def _link(campaign: CampaignData, row: Row, place: Path) -> object:
    """The member's own page where it has one, otherwise its directory, or that of what was tried."""
    name = row["member"].name
    files = CampaignLayout(campaign.directory).member(name)
    page = files.directory / "report.html"
    if page.is_file():
        return html.Link(name, os.path.relpath(page, place))
    found = next((path for path in (files.directory, files.tries) if path.is_dir()), None)
    return name if found is None else html.Link(name, f"{os.path.relpath(found, place)}/")


def _errors(rows: Sequence[Row]) -> list[tuple[float, float]]:
    return [(r["error_before"], r["error_after"]) for r in rows if r["error_before"] and r["error_after"]]
