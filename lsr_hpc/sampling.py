"""Random draws that depend on (seed, stream, global index) alone, never on the MPI rank.

A rank that owns global indices [lo, hi) gets exactly the numbers that any other distribution of the
indices would give to them, so results agree on any number of ranks. Counter-based generator: Philox
4x64 (Salmon et al. 2011). Cost of a draw: the numbers asked for, plus at most two blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["gaussian_rows", "held_out_mask", "stream_of_round", "uniform_rows"]

# Rows drawn from one counter state. Fixed for ever: it is part of what a seed means.
_BLOCK = 4096


def _draw_rows(kind: str, seed: int, stream: int, lo: int, hi: int, columns: int) -> NDArray[np.float64]:
    """Rows [lo, hi) of an endless random matrix with ``columns`` columns, stored column by column."""
    out = np.empty((hi - lo, columns), order="F")
    for block in range(lo // _BLOCK, -(-hi // _BLOCK)):
        first = block * _BLOCK
        a, b = max(lo, first), min(hi, first + _BLOCK)
        for column in range(columns):
            # As unsigned integers: a list with a seed from 2**63 on would pass through float64.
            key = np.array([seed, stream], dtype=np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, block, column]))
            draw = generator.standard_normal if kind == "gaussian" else generator.random
            out[a - lo : b - lo, column] = draw(b - first)[a - first :]
    return out


def gaussian_rows(seed: int, stream: int, lo: int, hi: int, columns: int) -> NDArray[np.float64]:
    """Rows [lo, hi) of a standard Gaussian test matrix.

    Args:
        seed: Seed of the job, 0 <= seed < 2**64.
        stream: Number that separates the uses of one seed.
        lo: First global row.
        hi: Global row behind the last one.
        columns: Number of columns.

    Returns:
        Array of shape (hi - lo, columns), float64.
    """
    return _draw_rows("gaussian", seed, stream, lo, hi, columns)


def uniform_rows(seed: int, stream: int, lo: int, hi: int, columns: int) -> NDArray[np.float64]:
    """Rows [lo, hi) of a matrix of uniform numbers on [0, 1).

    Args:
        seed: Seed of the job, 0 <= seed < 2**64.
        stream: Number that separates the uses of one seed.
        lo: First global row.
        hi: Global row behind the last one.
        columns: Number of columns.

    Returns:
        Array of shape (hi - lo, columns), float64.
    """
    return _draw_rows("uniform", seed, stream, lo, hi, columns)


def stream_of_round(stream: int, round_: int) -> int:
    """The stream of one use of a seed in one round.

    Args:
        stream: Number of the use, below 2**32.
        round_: Number of the round, 0 <= round < 2**32.

    Returns:
        A number that no other use and no other round has; in round 0 the stream itself.
    """
    return stream + (round_ << 32)


def held_out_mask(seed: int, stream: int, n_points: int, fraction: float) -> NDArray[np.bool_]:
    """Choose held-out points evenly: one at random out of every 1/fraction consecutive points.

    Stratifying over the global index keeps grids and sorted samples evenly covered, which a plain
    coin per point does not.

    Args:
        seed: Seed of the job, 0 <= seed < 2**64.
        stream: Number that separates the uses of one seed.
        n_points: Number of points of the block.
        fraction: Share to hold out, 0 <= fraction < 1.

    Returns:
        Boolean mask of shape (n_points,), True where a point is held out.
    """
    mask = np.zeros(n_points, dtype=bool)
    n_groups = int(np.floor(n_points * fraction))
    if n_groups == 0:
        return mask
    edges = np.ceil(np.arange(n_groups + 1) / fraction).astype(np.int64)
    edges[-1] = min(edges[-1], n_points)
    u = uniform_rows(seed, stream, 0, n_groups, 1)[:, 0]
    mask[edges[:-1] + np.floor(u * np.diff(edges)).astype(np.int64)] = True
    return mask
