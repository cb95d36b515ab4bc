"""R factor of a row-distributed tall matrix by a reduction tree of small QRs; Q is never formed.

Source: Demmel, Grigori, Hoemmen, Langou 2012 (TSQR). Works with any number of rows per rank, including none.
"""

# Legend: N_local rows of this rank, m columns.

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.comm import sum_over_tree
from lsr_hpc.events import emit

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["combine_r", "tsqr"]

Array = NDArray[np.float64]


def _r_factor(rows: Array) -> Array:
    """Upper triangular factor of any small matrix, padded to square, with non-negative diagonal."""
    m = rows.shape[1]
    r = np.zeros((m, m))
    long, short = max(rows.shape), min(rows.shape)
    # Of Householder's reflections, without Q.
    emit("flops", flops=2.0 * short**2 * (long - short / 3))
    if rows.shape[0]:
        factor: Array = np.linalg.qr(rows, mode="r")  # type: ignore[assignment]
        r[: factor.shape[0]] = factor
    return np.where(np.diag(r) < 0, -1.0, 1.0)[:, np.newaxis] * r


def combine_r(upper: Array, lower: Array) -> Array:
    """R factor of two stacked matrices from their R factors.

    Args:
        upper: R factor of the first rows, shape (m, m).
        lower: R factor of the rows below, shape (m, m).

    Returns:
        R factor of all rows, shape (m, m), with non-negative diagonal.
    """
    return _r_factor(np.vstack([upper, lower]))


def tsqr(comm: MPI.Comm, a_local: Array, rows_per_chunk: int = 16384) -> Array:
    """R factor of a tall matrix.

    Args:
        comm: Communicator whose ranks hold disjoint row blocks in rank order.
        a_local: This rank's rows, shape (N_local, m), float64; N_local may be 0.
        rows_per_chunk: Rows factored at once; bounds the work space to (rows_per_chunk + m) * m numbers.

    Returns:
        R, shape (m, m), upper triangular with non-negative diagonal, equal on all ranks bit for bit.

    Collective: all ranks; ceil(log2 p) messages of m*m*8 bytes up the tree, one broadcast down.
    """
    r = _r_factor(a_local[:rows_per_chunk])
    for lo in range(rows_per_chunk, a_local.shape[0], rows_per_chunk):
        r = _r_factor(np.vstack([r, a_local[lo : lo + rows_per_chunk]]))
    return sum_over_tree(comm, r, combine_r)
