"""Figures of what a run cost: phases by MPI rank, memory, and several runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsr_hpc.report.data import Phase
from lsr_hpc.report.style import COLOURS, new_figure

__all__ = ["cost", "memory", "timeline"]

# Okabe and Ito again, with hatches for grey print and for those that are alike; checkpoints, which fall into
# other phases, are drawn last.
_PHASES = {
    "start": ("#DDDDDD", "..."),
    "restore": ("#DDDDDD", "\\\\\\"),
    "prepare": ("#999999", ""),
    "basis": ("#0072B2", ""),
    "jacobian": ("#56B4E9", "//"),
    "solve": ("#009E73", ""),
    "resolve": ("#D55E00", ""),
    "check": ("#F0E442", ""),
    "targets": ("#CC79A7", "//"),
    "align": ("#CC79A7", ""),
    "network": ("#E69F00", ""),
    "checkpoint": ("#000000", ""),
}
_OTHER = ("#FFFFFF", "xx")
_MOST_RANKS = 64


def timeline(phases: Sequence[Phase]) -> Any:
    """What every MPI rank did when.

    Args:
        phases: All phases, at least one.

    Returns:
        The figure; of more than 64 ranks some, evenly chosen.
    """
    from matplotlib.patches import Patch

    ranks = sorted({phase.mpi_rank for phase in phases})
    shown = ranks[:: -(-len(ranks) // _MOST_RANKS)]
    place = {rank: i for i, rank in enumerate(shown)}
    start = min(phase.begin for phase in phases)
    figure, axes = new_figure(height=min(0.3 * len(shown) + 1.4, 7.5))
    one = axes[0, 0]
    names = [name for name in [*_PHASES, *_others(phases)] if any(p.name == name for p in phases)]
    for name in names:
        colour, hatch = _PHASES.get(name, _OTHER)
        for rank in shown:
            spans = [
                (p.begin - start, p.end - p.begin) for p in phases if p.mpi_rank == rank and p.name == name
            ]
            one.broken_barh(
                spans,
                (place[rank] - 0.4, 0.8),
                facecolors=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.2,
            )
    one.set_yticks(range(len(shown)), [str(rank) for rank in shown])
    one.invert_yaxis()
    one.set_ylabel("MPI rank")
    one.set_xlabel("seconds since the first phase began")
    patches = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="grey", label=name)
        for name in names
        for colour, hatch in [_PHASES.get(name, _OTHER)]
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 8), fontsize=8)
    return figure


def memory(phases: Sequence[Phase], limit_bytes: int | None) -> Any:
    """Largest resident memory of every MPI rank as the run went on.

    Args:
        phases: All phases, at least one.
        limit_bytes: ``compute.memory_per_rank``, or None.

    Returns:
        The figure; of more than 64 ranks the smallest and the largest value at each time.
    """
    start = min(phase.begin for phase in phases)
    figure, axes = new_figure(height=2.6)
    one = axes[0, 0]
    ranks = sorted({phase.mpi_rank for phase in phases})
    lines = ["-", "--", "-.", ":"]
    for i, rank in enumerate(ranks[:: -(-len(ranks) // _MOST_RANKS)]):
        own = [phase for phase in phases if phase.mpi_rank == rank]
        one.step(
            [phase.end - start for phase in own],
            [phase.peak_rss_bytes / 2**20 for phase in own],
            lines[i % len(lines)],
            where="post",
            color="#0072B2" if i % 2 == 0 else "#D55E00",
            linewidth=1.3,
            marker="o",
            markersize=2.5,
            label=f"MPI rank {rank}" if len(ranks) <= 8 else None,
        )
    if limit_bytes is not None:
        one.axhline(limit_bytes / 2**20, color="#999999", linestyle=":", label="memory_per_rank")
    one.set_ylim(bottom=0)
    one.set_xlabel("seconds since the first phase began")
    one.set_title("largest resident memory so far, MiB", fontsize=9)
    one.legend(fontsize=8)
    return figure


def cost(names: Sequence[str], seconds: Sequence[float], errors: Sequence[float | None]) -> Any:
    """Error of several runs against the time that they took.

    Args:
        names: Names of the runs.
        seconds: Their wall times.
        errors: Their errors after refinement; runs without are left out.

    Returns:
        The figure.
    """
    figure, axes = new_figure(height=3.2)
    one = axes[0, 0]
    colours = list(COLOURS.values())
    for i, (name, time_s, error) in enumerate(zip(names, seconds, errors, strict=True)):
        if error is not None:
            colour = colours[i % len(colours)]
            one.semilogy(
                time_s, max(error, 1e-17), "os^DvP*X"[i % 8], color=colour, label=name, markeredgecolor="k"
            )
    one.set_xlim(left=0)
    one.set_xlabel("seconds")
    one.set_title("relative L2 error after refinement", fontsize=9)
    one.legend(fontsize=8)
    return figure


def _others(phases: Sequence[Phase]) -> list[str]:
    return [str(name) for name in np.unique([p.name for p in phases if p.name not in _PHASES])]
