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


@dataclass(frozen=True)
class ScanEntry:
    """One rank of the nested scan.

    Attributes:
        rank: Number of leading directions.
        c: Their coefficients, shape (rank,), fitted on the training rows.
        train: Norm of the linearised residual on the training rows, damping included.
        held_out: The same on the held-out rows, or None without any.
    """

    rank: int
    c: NDArray[np.float64]
    train: float
    held_out: float | None


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
        held = None if held_out is None else held_out.residual_norm(solution.c)
        entries.append(ScanEntry(rank, solution.c, solution.residual, held))
    return entries


def choose_rank(scan: Sequence[ScanEntry], n_held_out: int) -> int:
    """Smallest rank whose held-out residual is not significantly above the best; the largest without any.

    The norm of n independent residuals is known to a relative standard error of 1 / sqrt(2 n); half of that
    is the margin (a stricter form of the one-standard-error rule of Breiman et al. 1984).

    Args:
        scan: The nested scan.
        n_held_out: Number of held-out rows.

    Returns:
        The chosen rank; 0 refuses the refinement.
    """
    judged = [(e.rank, e.held_out) for e in scan if e.held_out is not None]
    if not judged:
        return scan[-1].rank
    margin = 1 + _INSIGNIFICANT / np.sqrt(2 * n_held_out)
    best = min(held for _, held in judged)
    # Rank 0 claims no improvement, so it has to be the best outright.
    if judged[0] == (0, best):
        return 0
    return min(rank for rank, held in judged if rank > 0 and held <= margin * best)
