"""Pictures of a run, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lsr_hpc.publish import publish_file

if TYPE_CHECKING:
    from lsr_hpc.iterative.state import RoundRecord

__all__ = ["draw_rounds"]

# Blue and orange of Okabe and Ito: told apart by every kind of colour vision, and by their markers in print.
_NETWORK, _PREDICTOR = "#0072B2", "#D55E00"


def draw_rounds(path: Path, records: Sequence[RoundRecord]) -> None:
    """Errors and residuals of network and predictor against the seconds spent.

    Args:
        path: PNG to write; one that is there is replaced.
        records: The rounds.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ends = [sum(r.seconds for r in records[: i + 1]) for i in range(len(records))]
    starts = [0.0, *ends[:-1]]
    refined = [start + r.refine_seconds for start, r in zip(starts, records, strict=True)]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[tuple[str, list[float | None], list[float | None]]] = [
        (
            "relative L2 error",
            [records[0].network_error_before, *(r.network_error for r in records)],
            [r.predictor_error for r in records],
        ),
        (
            "residual (square root of the loss)",
            [records[0].network_residual_before, *(r.network_residual for r in records)],
            [r.predictor_residual for r in records],
        ),
    ]
    shown = [panel for panel in panels if None not in (*panel[1], *panel[2])]
    for axes, (label, network, predictor) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
    ):
        axes.semilogy([0.0, *ends], network, "o-", color=_NETWORK, label="network")
        axes.semilogy(refined, predictor, "s--", color=_PREDICTOR, label="refined predictor")
        axes.set_xlabel("seconds")
        axes.set_ylabel(label)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with publish_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
