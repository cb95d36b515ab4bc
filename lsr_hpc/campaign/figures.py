"""The picture of a campaign, drawn without a display."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from lsr_hpc.publish import publish_file

__all__ = ["draw_campaign"]

# Blue and orange of Okabe and Ito: told apart by every kind of colour vision, and by their markers in print.
_BEFORE, _AFTER = "#0072B2", "#D55E00"


def draw_campaign(path: Path, errors: Sequence[tuple[float, float]]) -> None:
    """Errors of all members, in the order of the refined ones, and the distribution of gains.

    Args:
        path: PNG to write; one that is there is replaced.
        errors: Error before and after of every member, positive.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ordered = sorted(errors, key=lambda pair: pair[1])
    gains = [before / after for before, after in errors]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    places = range(1, len(ordered) + 1)
    left.semilogy(places, [before for before, _ in ordered], "o", ms=4, color=_BEFORE, label="start")
    left.semilogy(places, [after for _, after in ordered], "s", ms=4, color=_AFTER, label="refined")
    left.set_xlabel("members, ordered by refined error")
    left.set_ylabel("relative L2 error")
    left.legend()
    lowest, highest = (math.log10(pick(gains)) for pick in (min, max))
    # At least a tenth of a decade, so that equal gains have a bar of some width.
    width = max(highest - lowest, 0.1)
    n_bins = max(1, min(40, math.ceil(math.sqrt(len(gains)))))
    edges = [10 ** (lowest + width * i / n_bins) for i in range(n_bins + 1)]
    # Rounding must not leave the outermost ones out.
    edges[0], edges[-1] = min(edges[0], min(gains)), max(edges[-1], max(gains))
    right.hist(gains, bins=edges, color=_AFTER, edgecolor="white")
    right.axvline(statistics.median(gains), color="black", linestyle="--", label="median")
    right.set_xscale("log")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlabel("gain: error of the start / refined error")
    right.set_ylabel("members")
    right.legend()
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
        axes.set_axisbelow(True)
    with publish_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
