"""Puts a report together: a page for one run or several, and its figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lsr_hpc.publish import publish_file, publish_text
from lsr_hpc.report import figures, html, run_figures
from lsr_hpc.report.campaign_data import CampaignData
from lsr_hpc.report.campaign_sections import campaign_in_one_sentence, campaign_sections
from lsr_hpc.report.data import RunData
from lsr_hpc.report.sections import Pictures, in_one_sentence, mean_errors, run_sections

__all__ = ["PAGE", "write_campaign_report", "write_report"]

PAGE = "report.html"


def write_report(place: Path, runs: Sequence[RunData]) -> list[str]:
    """Write ``report.html``, and a PNG of every figure in ``figures/``, over those of an earlier report.

    Args:
        place: Directory for both.
        runs: Runs to show, at least one.

    Returns:
        What was refined and how well, a sentence per run.

    Raises:
        OSError: If a file cannot be written.
    """
    pictures = Pictures()
    sentences = [in_one_sentence(run) for run in runs]
    names = _names(runs)
    if len(runs) == 1:
        parts = [
            html.heading(1, f"Refinement of {runs[0].problem}"),
            html.paragraph(sentences[0], is_lead=True),
        ]
        parts += run_sections(runs[0], pictures)
    else:
        parts = [html.heading(1, f"{len(runs)} runs compared"), *_comparison(runs, names, pictures)]
        for run, name, sentence in zip(runs, names, sentences, strict=True):
            parts += [html.heading(2, name), html.paragraph(sentence, is_lead=True)]
            parts += run_sections(run, pictures, f"{name}-")
    _publish(place, pictures, html.page(f"lsr_hpc: {', '.join(names)}", parts))
    return sentences


def write_campaign_report(place: Path, campaign: CampaignData) -> list[str]:
    """Write the report on a campaign, over an earlier one.

    Args:
        place: Directory for page and figures.
        campaign: The campaign.

    Returns:
        How far it is and how well its members did, a sentence.

    Raises:
        OSError: If a file cannot be written.
    """
    pictures = Pictures()
    sentence = campaign_in_one_sentence(campaign)
    parts = [
        html.heading(1, f"Campaign {campaign.name}"),
        html.paragraph(sentence, is_lead=True),
        *campaign_sections(campaign, pictures, place.resolve()),
    ]
    _publish(place, pictures, html.page(f"lsr_hpc: campaign {campaign.name}", parts))
    return [sentence]


def _publish(place: Path, pictures: Pictures, page: str) -> None:
    (place / "figures").mkdir(parents=True, exist_ok=True)
    for name, png in pictures.files.items():
        with publish_file(place / "figures" / name) as temporary:
            temporary.write_bytes(png)
    publish_text(place / PAGE, page)


def _names(runs: Sequence[RunData]) -> list[str]:
    """Names of the directories, numbered where two are alike."""
    names = [run.name for run in runs]
    return [f"{n}-{i}" if names.count(n) > 1 else n for i, n in enumerate(names, 1)]


def _comparison(runs: Sequence[RunData], names: Sequence[str], pictures: Pictures) -> list[str]:
    errors = [mean_errors(run) for run in runs]
    seconds = [float(run.result["seconds"]["total"]) for run in runs]
    rows = [
        [
            name,
            run.problem,
            len(run.instances),
            run.instances[0].rank,
            None if error is None else error[0],
            None if error is None else error[1],
            None if error is None or error[1] == 0 else error[0] / error[1],
            time_s,
            run.result["world_size"],
        ]
        for name, run, error, time_s in zip(names, runs, errors, seconds, strict=True)
    ]
    head = [
        "run",
        "problem",
        "instances",
        "rank",
        "error before",
        "error after",
        "gain",
        "seconds",
        "MPI ranks",
    ]
    known = [(*error, name) for error, name in zip(errors, names, strict=True) if error is not None]
    parts = [html.table(head, rows)]
    if known:
        drawn = figures.errors_of_instances(*zip(*known, strict=True))
        parts.append(pictures.add("comparison-errors", drawn, "Mean relative L2 error before and after."))
        drawn = run_figures.cost(names, seconds, [None if e is None else e[1] for e in errors])
        parts.append(pictures.add("comparison-cost", drawn, "Error after refinement against the time taken."))
    return parts
