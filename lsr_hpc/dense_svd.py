"""Singular value decomposition of small dense matrices that does not give up."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

__all__ = ["dense_svd"]

Array = NDArray[np.float64]


def dense_svd(a: Array) -> tuple[Array, Array, Array]:
    """Full decomposition ``a = u diag(s) wt``.

    Divide and conquer (LAPACK's gesdd) fails on some well-conditioned matrices whose singular values lie
    close together, as those of a factor that has been turned and scaled; QR iterations (gesvd), some times
    slower, take over there.

    Args:
        a: Shape (m, n), finite.

    Returns:
        u of shape (m, m), s largest first, wt of shape (n, n).
    """
    try:
        u, s, wt = np.linalg.svd(a)
    except np.linalg.LinAlgError:
        u, s, wt = scipy.linalg.svd(a, lapack_driver="gesvd")
    return u, s, wt
