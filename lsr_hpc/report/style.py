"""How figures look: colours for every kind of colour vision, and marks for grey print."""

from __future__ import annotations

from typing import Any

__all__ = ["COLOURS", "MAP", "new_figure"]

# Okabe and Ito.
COLOURS = {
    "start": "#000000",
    "refined": "#D55E00",
    "network": "#0072B2",
    "held_out": "#009E73",
    "true": "#CC79A7",
    "chosen": "#999999",
    "reference": "#56B4E9",
}
# Runs from dark to light without a turn: it reads in grey as well.
MAP = "viridis"


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 3.4
) -> tuple[Any, Any]:
    """A figure that needs no display.

    Args:
        rows: Rows of axes.
        columns: Columns of axes.
        width: Inches.
        height: Inches.

    Returns:
        Figure, and its axes as an array of shape (rows, columns).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(visible=True, alpha=0.25, linewidth=0.6)
        one.tick_params(which="both", labelsize=8)
        one.xaxis.label.set_size(9)
        one.yaxis.label.set_size(9)
    return figure, axes
