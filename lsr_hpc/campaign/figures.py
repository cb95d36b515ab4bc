"""The pictures of a campaign, drawn without a display."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsr_hpc.publish import publish_file
from lsr_hpc.report.style import COLOURS, new_figure

__all__ = ["axis_figure", "campaign_figure", "draw_campaign"]

_DPI = 120


def draw_campaign(path: Path, errors: Sequence[tuple[float, float]]) -> None:
    """Write the figure of a campaign.

    Args:
        path: PNG to write; one that is there is replaced.
        errors: Error before and after of every member, positive.
    """
    figure = campaign_figure(errors)
    with publish_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)


def campaign_figure(errors: Sequence[tuple[float, float]]) -> Any:
    """Errors of all members, in the order of the refined ones, and the distribution of gains.

    Args:
        errors: Error before and after of every member, positive.

    Returns:
        The figure.
    """
    from matplotlib.ticker import MaxNLocator

    ordered = sorted(errors, key=lambda pair: pair[1])
    gains = [before / after for before, after in errors]
    figure, axes = new_figure(1, 2, width=9.0, height=3.8)
    left, right = axes[0]
    places = range(1, len(ordered) + 1)
    left.semilogy(places, [b for b, _ in ordered], "o", ms=4, color=COLOURS["start"], label="start")
    left.semilogy(places, [a for _, a in ordered], "s", ms=4, color=COLOURS["refined"], label="refined")
    left.set_xlabel("members, ordered by refined error")
    left.set_ylabel("relative L2 error")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(fontsize=8)
    lowest, highest = (math.log10(pick(gains)) for pick in (min, max))
    # At least a tenth of a decade, so that equal gains have a bar of some width.
    width = max(highest - lowest, 0.1)
    n_bins = max(1, min(40, math.ceil(math.sqrt(len(gains)))))
    edges = [10 ** (lowest + width * i / n_bins) for i in range(n_bins + 1)]
    # Rounding must not leave the outermost ones out.
    edges[0], edges[-1] = min(edges[0], min(gains)), max(edges[-1], max(gains))
    right.hist(gains, bins=edges, color=COLOURS["refined"], edgecolor="white")
    right.axvline(statistics.median(gains), color=COLOURS["start"], linestyle="--", label="median")
    right.set_xscale("log")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlabel("gain: error of the start / refined error")
    right.set_ylabel("members")
    right.legend(fontsize=8)
    for one in (left, right):
        one.set_axisbelow(True)
    return figure


def axis_figure(name: str, values: Sequence[Any], errors: Sequence[Sequence[float]]) -> Any:
    """Refined errors of the members for every value of a setting.

    Args:
        name: The setting.
        values: Its values, in their order.
        errors: Errors of the members with each value, positive; may be empty.

    Returns:
        The figure.
    """
    figure, axes = new_figure(height=3.2)
    one = axes[0, 0]
    places = range(len(values))
    for place, found in zip(places, errors, strict=True):
        one.semilogy([place] * len(found), found, "s", ms=4, alpha=0.5, color=COLOURS["refined"])
    known = [(place, statistics.median(found)) for place, found in zip(places, errors, strict=True) if found]
    one.semilogy(*zip(*known, strict=True), "D--", ms=6, color=COLOURS["network"], label="median")
    few = len(values) <= 12
    one.set_xticks(list(places) if few else [], [str(value) for value in values] if few else [])
    one.set_xlim(-0.5, len(values) - 0.5)
    one.set_xlabel(name)
    one.set_ylabel("relative L2 error, refined")
    one.legend(fontsize=8)
    return figure
