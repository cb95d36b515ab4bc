"""What the phases of a run have cost over all MPI ranks, and how evenly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["PhaseCost", "phase_costs", "phases_as_json", "phases_as_text"]

_NUMBERS = ("seconds", "busy_s", "flops", "received_bytes", "messages", "reductions")


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """A phase over all ranks; of several times that it took place, the sums.

    Balances are the mean of the ranks over the largest: 1 is even, 1 / ranks is one rank alone.

    Attributes:
        phase: Its name.
        seconds: Of the rank that took longest.
        wait_s: Mean seconds that a rank spent inside of our own calls of MPI, mostly waiting for others.
        balance: Of the seconds outside of those calls; None where there were none.
        flops: Of all ranks: products with J, QR factorisations, PETSc and SLEPc.
        flops_balance: Of the flops; None where there were none.
        received_bytes: Of all ranks, from other ranks.
        messages: Of all ranks.
        reductions: Collective calls of PETSc, of the rank that made most.
    """

    phase: str
    seconds: float
    wait_s: float
    balance: float | None
    flops: float
    flops_balance: float | None
    received_bytes: float
    messages: float
    reductions: float


def phase_costs(lines: Iterable[Mapping[str, Any]]) -> list[PhaseCost]:
    """Sum up the lines of a timeline.

    Args:
        lines: ``mpi_rank``, ``phase``, ``begin``, ``end``, ``flops``, ``received_bytes``, ``messages``,
            ``reductions`` and ``wait_s`` of every phase of every rank; counts that are absent are zero.

    Returns:
        A cost per phase, in the order of their first begin.
    """
    ordered = sorted(lines, key=lambda line: line["begin"])
    costs = []
    for phase in dict.fromkeys(line["phase"] for line in ordered):
        by_rank: dict[int, list[dict[str, float]]] = {}
        for line in ordered:
            if line["phase"] == phase:
                by_rank.setdefault(line["mpi_rank"], []).append(_numbers(line))
        costs.append(_cost(phase, list(by_rank.values())))
    return costs


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    seconds = line["end"] - line["begin"]
    counts = {name: float(line.get(name, 0.0)) for name in _NUMBERS[2:]}
    return {"seconds": seconds, "busy_s": max(0.0, seconds - line.get("wait_s", 0.0)), **counts}


def _cost(phase: str, ranks: Sequence[Sequence[Mapping[str, float]]]) -> PhaseCost:
    of_rank = {name: [math.fsum(entry[name] for entry in rank) for rank in ranks] for name in _NUMBERS}
    waits = [s - busy for s, busy in zip(of_rank["seconds"], of_rank["busy_s"], strict=True)]
    return PhaseCost(
        phase=phase,
        seconds=max(of_rank["seconds"]),
        wait_s=math.fsum(waits) / len(waits),
        balance=_balance(of_rank["busy_s"]),
        flops=math.fsum(of_rank["flops"]),
        flops_balance=_balance(of_rank["flops"]),
        received_bytes=math.fsum(of_rank["received_bytes"]),
        messages=math.fsum(of_rank["messages"]),
        reductions=max(of_rank["reductions"]),
    )


def _balance(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) / max(values) if max(values) > 0 else None


def phases_as_json(costs: Sequence[PhaseCost]) -> list[dict[str, Any]]:
    """The costs for ``result.json``.

    Args:
        costs: The costs.

    Returns:
        JSON types.
    """
    return [asdict(cost) for cost in costs]


_COLUMNS: dict[str, Callable[[PhaseCost], str]] = {
    "phase": lambda c: c.phase,
    "seconds": lambda c: f"{c.seconds:.3f}",
    "in MPI": lambda c: f"{c.wait_s:.3f}",
    "balance": lambda c: _share(c.balance),
    "GF": lambda c: f"{c.flops / 1e9:.3f}",
    "GF/s": lambda c: f"{c.flops / 1e9 / c.seconds:.2f}" if c.seconds > 0 else "-",
    "balance ": lambda c: _share(c.flops_balance),
    "MiB": lambda c: f"{c.received_bytes / 2**20:.2f}",
    "messages": lambda c: f"{c.messages:.0f}",
    "reductions": lambda c: f"{c.reductions:.0f}",
}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def phases_as_text(costs: Sequence[PhaseCost]) -> list[str]:
    """The costs as a table of text.

    Args:
        costs: The costs.

    Returns:
        Lines.
    """
    rows = [list(_COLUMNS), *([column(cost) for column in _COLUMNS.values()] for cost in costs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
