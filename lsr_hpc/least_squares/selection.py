"""Choosing the rank on held-out rows, from one factorisation; rank 0, a refusal, may win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.least_squares.reduced import ReducedProblem

__all__ = ["ScanEntry", "choose_rank", "scan_grid", "scan_ranks"]

# Held-out norms closer to the best than this share of their own sampling error count as equal, and the
# smaller rank wins: beyond it the fit follows the sample, and the error of the field rises again.
_INSIGNIFICANT = 0.5
# Standard errors by which a refinement has to lower the held-out squares: 5 % of those without effect do.
_SIGNIFICANT = 1.64


@dataclass(frozen=True)
class ScanEntry:
    """One rank of the nested scan.

    Attributes:
        rank: Number of leading directions.
        c: Their coefficients, shape (rank,), fitted on the training rows.
        train: Norm of the linearised residual on the training rows, damping included.
        held_out: The same on the held-out rows, or None without any.
        held_change: Norm of the change of the held-out rows from rank 0, None where it is not known.
    """

    rank: int
    c: NDArray[np.float64]
    train: float
    held_out: float | None
    held_change: float | None = None


def scan_grid(rank_max: int, wanted: int | None = None, points: int = 32) -> list[int]:
    """Ranks to look at: 0, a geometric start, even steps, and the largest.

    Args:
        rank_max: Largest rank.
        wanted: Rank that was asked for, which sets the steps: how many directions a space turns out to have
            may depend on rounding, and the grid must not. None takes ``rank_max``.
        points: Number of even steps up to the wanted rank.

    Returns:
        Increasing ranks from 0 to rank_max.
    """
    step = max(1, -(-(wanted or rank_max) // points))
    geometric = [2**i for i in range(20) if 2**i < min(step, rank_max)]
    return sorted({*range(0, rank_max + 1, step), *geometric, rank_max})


def scan_ranks(
    train: ReducedProblem, held_out: ReducedProblem | None, ranks: Sequence[int]
) -> list[ScanEntry]:
    """Solve every rank of the grid.

    Args:
        train: Reduced problem of the training rows (damped or not).
        held_out: Reduced problem of the held-out rows, or None.
        ranks: Increasing ranks.

    Returns:
        One entry per rank; ``train`` does not increase with the rank, to rounding.
    """
    entries = []
    for rank in ranks:
        solution = train.solve(rank)
        held = change = None
        if held_out is not None:
            held = held_out.residual_norm(solution.c)
            change = float(np.linalg.norm(held_out.r[:, :rank] @ solution.c))
        entries.append(ScanEntry(rank, solution.c, solution.residual, held, change))
    return entries


def choose_rank(scan: Sequence[ScanEntry], n_held_out: int) -> int:
    """Smallest rank whose held-out residual is not significantly above the best; the largest without any.

    The norm of n independent residuals is known to a relative standard error of 1 / sqrt(2 n); half of that
    is the margin (a stricter form of the one-standard-error rule of Breiman et al. 1984). The refinement is
    refused where the fall of the held-out squares from rank 0, h_0^2 - h_k^2, can be chance: a change d of n
    held-out rows that has nothing to do with residuals of norm h_k moves their squares by
    2 h_k ||d|| / sqrt(n), one standard error.

    Args:
        scan: The nested scan.
        n_held_out: Number of held-out rows.

    Returns:
        The chosen rank; 0 refuses the refinement.
    """
    judged = [(e.held_out, e) for e in scan if e.held_out is not None]
    if not judged:
        return scan[-1].rank
    margin = 1 + _INSIGNIFICANT / np.sqrt(2 * n_held_out)
    best = min(held for held, _ in judged)
    before, first = judged[0]
    if first.rank == 0 and before == best:
        return 0
    held, chosen = next((held, e) for held, e in judged if e.rank > 0 and held <= margin * best)
    if first.rank == 0 and chosen.held_change is not None:
        standard_error = 2 * held * chosen.held_change / np.sqrt(n_held_out)
        if before**2 - held**2 <= _SIGNIFICANT * standard_error:
            return 0
    return chosen.rank
