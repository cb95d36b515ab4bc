"""Figures of a refinement: each function takes numbers and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.report.style import COLOURS, new_figure

__all__ = ["errors_of_instances", "rounds", "scan", "spectrum"]

Array = NDArray[np.float64]


def errors_of_instances(before: Sequence[float], after: Sequence[float], names: Sequence[str]) -> Any:
    """Error before and after of every instance or run, largest start first.

    Args:
        before: Errors of the starts.
        after: Errors of the refined predictors.
        names: Shown at the axis if there are few.

    Returns:
        The figure.
    """
    order = np.argsort(before)[::-1]
    start, refined = _drawable(before)[order], _drawable(after)[order]
    place = np.arange(len(order))
    figure, axes = new_figure(height=min(0.3 * len(order) + 1.4, 7.0))
    one = axes[0, 0]
    one.hlines(place, refined, start, color=COLOURS["chosen"], linewidth=1)
    one.plot(start, place, "o", color=COLOURS["start"], label="start")
    one.plot(refined, place, "s", color=COLOURS["refined"], label="refined predictor")
    one.set_xscale("log")
    one.set_ylim(len(order) - 0.4, -0.6)
    if len(order) <= 40:
        one.set_yticks(place, [names[i] for i in order])
    else:
        one.set_yticks([])
        one.set_ylabel(f"{len(order)} instances")
    one.set_xlabel("relative L2 error")
    one.legend(
        fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.25 if len(order) < 8 else -0.1), ncols=2
    )
    return figure


def spectrum(table: Array, rank: int) -> Any:
    """Singular values of J V, and how much of the start residual lies along each left singular vector.

    Args:
        table: Number from 1, singular value, share ``|u_i^T r0| / ||r0||``; shape (l, 3), NaN for no share.
        rank: The chosen rank.

    Returns:
        The figure.
    """
    figure, axes = new_figure(1, 2, height=3.0)
    number = table[:, 0]
    panels = [
        ("singular value of J V", table[:, 1], "network", "o"),
        (r"share of the start residual, $|u_i^T r_0|\,/\,\|r_0\|$", table[:, 2], "held_out", "s"),
    ]
    for one, (label, values, colour, marker) in zip(axes[0], panels, strict=True):
        shown = np.isfinite(values) & (values > 0)
        one.semilogy(number[shown], values[shown], marker, color=COLOURS[colour], markersize=2.5)
        _mark_rank(one, rank)
        one.set_xlabel("direction i")
        one.set_title(label, fontsize=9)
    return figure


def scan(entries: Sequence[Mapping[str, Any]], rank: int) -> Any:
    """Train, held-out and true residual, and the error, against the rank.

    Args:
        entries: The ranks looked at: rank, train, held_out, error, true; None for what is not known.
        rank: The chosen rank.

    Returns:
        The figure.
    """
    # Rounds know the error of the start alone.
    has_errors = len(_known(entries, "error")[0]) > 1
    figure, axes = new_figure(1, 2 if has_errors else 1, height=3.2)
    residuals = axes[0, 0]
    for key, label, colour, line in (
        ("train", "fitted rows", "network", "o-"),
        ("held_out", "held-out rows", "held_out", "s--"),
    ):
        x, y = _known(entries, key)
        residuals.semilogy(x, y, line, color=COLOURS[colour], markersize=3, label=label)
    x, y = _known(entries, "true")
    residuals.semilogy(x, y, "*", color=COLOURS["refined"], markersize=11, label="true, refined field")
    residuals.set_title("residual, root weighted mean square", fontsize=9)
    if has_errors:
        x, y = _known(entries, "error")
        axes[0, 1].semilogy(x, y, "D-", color=COLOURS["refined"], markersize=3, label="error")
        axes[0, 1].set_title("relative L2 error on evaluation data", fontsize=9)
    for one in axes[0]:
        _mark_rank(one, rank)
        one.set_xlabel("rank of the subspace")
    return figure


def rounds(records: Sequence[Mapping[str, Any]]) -> Any:
    """Errors and residuals of network and predictor against the seconds spent.

    Args:
        records: Rounds in order: fields of :class:`lsr_hpc.iterative.state.RoundRecord`.

    Returns:
        The figure.
    """
    ends = list(np.cumsum([r["seconds"] for r in records]))
    starts = [0.0, *ends[:-1]]
    refined = [start + r["refine_seconds"] for start, r in zip(starts, records, strict=True)]
    panels = [
        (
            "relative L2 error",
            [records[0]["network_error_before"], *(r["network_error"] for r in records)],
            [r["predictor_error"] for r in records],
        ),
        (
            "residual (square root of the loss)",
            [records[0]["network_residual_before"], *(r["network_residual"] for r in records)],
            [r["predictor_residual"] for r in records],
        ),
    ]
    shown = [panel for panel in panels if None not in (*panel[1], *panel[2])]
    figure, axes = new_figure(1, len(shown), height=3.2)
    for one, (label, network, predictor) in zip(axes[0], shown, strict=True):
        one.semilogy([0.0, *ends], network, "o-", color=COLOURS["network"], label="network")
        one.semilogy(refined, predictor, "s--", color=COLOURS["refined"], label="refined predictor")
        one.set_xlabel("seconds")
        one.set_title(label, fontsize=9)
        one.legend(fontsize=8)
    return figure


def _mark_rank(one: Any, rank: int) -> None:
    one.axvline(rank, color=COLOURS["chosen"], linestyle=":", linewidth=1.4, label=f"chosen: rank {rank}")
    one.legend(fontsize=8)


def _known(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    known = [(e["rank"], e[key]) for e in entries if e.get(key)]
    return [rank for rank, _ in known], [value for _, value in known]


def _drawable(values: Sequence[float]) -> Array:
    """Zero has no place on a logarithmic axis: it is drawn at the smallest number that means something."""
    return np.maximum(np.asarray(values, dtype=float), 1e-17)
