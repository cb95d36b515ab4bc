"""The small problem behind TSQR: solutions of every rank from one factorisation.

With ``[J V | -r0] = Q [R11 z; 0 rho]`` the best coefficients of the leading j directions solve
``R11[:j, :j] c = z[:j]`` and leave ``||r0 + J V_j c||^2 = rho^2 + sum_{i >= j} z_i^2``. The small factor is
solved by an SVD with column scaling, never through a Gram matrix. In singular directions of J V the leading
ranks are truncated singular value solutions; a cut leaves out what is rounding there.
"""

# Legend: m columns of J V, j <= m leading ones, S singular values of the column-scaled factor.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from lsr_hpc.dense_svd import dense_svd
from lsr_hpc.errors import AccuracyError
from lsr_hpc.least_squares.tsqr import combine_r, tsqr

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["ReducedProblem", "ReducedSolution", "reduce_rows"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ReducedSolution:
    """Coefficients of the leading directions.

    Attributes:
        c: Coefficients, shape (j,).
        residual: ||r0 + J V_j c||.
        cut: Directions dropped because they depend numerically on the others.
    """

    c: Array
    residual: float
    cut: int


@dataclass(frozen=True)
class ReducedProblem:
    """R factor of ``[J V | -r0]``.

    Attributes:
        r: R11, shape (m, m), upper triangular.
        z: Right-hand side, shape (m,).
        rho: Norm of what no coefficient can remove.
        n_rows: Global number of rows behind the factor.
    """

    r: Array
    z: Array
    rho: float
    n_rows: int
    _scaled_svd: list[tuple[Array, Array, Array]] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def from_factor(cls, factor: Array, n_rows: int) -> ReducedProblem:
        """Split the (m+1, m+1) factor of ``[J V | -r0]``.

        Args:
            factor: Upper triangular, shape (m+1, m+1).
            n_rows: Global number of rows behind it.

        Returns:
            The reduced problem.

        Raises:
            AccuracyError: If the factor holds NaN or Inf.
        """
        if not np.isfinite(factor).all():
            # The factor is equal on all ranks.
            raise AccuracyError(
                "J V or the residual holds NaN or Inf: check the model's derivatives at the points",
                on_every_rank=True,
            )
        return cls(factor[:-1, :-1], factor[:-1, -1], float(abs(factor[-1, -1])), n_rows)

    @property
    def factor(self) -> Array:
        """The (m+1, m+1) factor this problem was made from."""
        m = len(self.z)
        out = np.zeros((m + 1, m + 1))
        out[:m, :m], out[:m, m], out[m, m] = self.r, self.z, self.rho
        return out

    def stacked_with(self, other: ReducedProblem) -> ReducedProblem:
        """The problem over the rows of both, without touching the rows again.

        Args:
            other: Same directions, disjoint rows.

        Returns:
            The combined problem.
        """
        return self.from_factor(combine_r(self.factor, other.factor), self.n_rows + other.n_rows)

    def singular_directions(self, cut: float) -> tuple[Array, Array]:
        """Directions in which the leading ranks are truncated singular value solutions.

        Args:
            cut: Directions whose singular values are at most ``cut`` times the largest are left out.

        Returns:
            Right singular vectors of J V, largest first, as columns of shape (m, l), l <= m; and all m
            singular values.
        """
        if len(self.z) == 0:
            return np.zeros((0, 0)), np.zeros(0)
        _, s, right = dense_svd(self.r)
        return right[s > cut * s[0]].T, s

    def rotated(self, rotation: Array) -> ReducedProblem:
        """The problem in other directions of the space, or in some of them.

        Args:
            rotation: Orthonormal columns, shape (m, l); column i holds the new direction i in terms of the
                old ones.

        Returns:
            The problem of l directions whose coefficients ``c`` stand for ``rotation[:, :len(c)] @ c`` of the
            old ones.
        """
        m = len(self.z)
        turned = np.column_stack([self.factor[:, :m] @ rotation, self.factor[:, m]])
        return self.from_factor(combine_r(turned, turned[:0]), self.n_rows)

    def damped(self, mu: float, origin: Array | None = None) -> ReducedProblem:
        """The problem with ``mu^2 ||origin + c||^2`` added to the objective.

        The damping rows ``[mu I | -mu origin]`` are appended to the factor, so every leading rank stays
        nested.

        Args:
            mu: Tikhonov parameter, in units of residual per parameter (V is orthonormal); 0 changes nothing.
            origin: What ``c`` is a step from, shape (m,); None for zero.

        Returns:
            The damped problem; its residual norms include the damping term.
        """
        if mu == 0.0:
            return self
        m = len(self.z)
        damping = np.zeros((m + 1, m + 1))
        damping[:m, :m] = mu * np.eye(m)
        if origin is not None:
            damping[:m, m] = -mu * origin
        return self.from_factor(combine_r(self.factor, damping), self.n_rows)

    def residual_norm(self, c: Array) -> float:
        """``||r0 + J V_j c||`` for any coefficients.

        Args:
            c: Shape (j,), j <= m.

        Returns:
            The norm over the rows behind this factor.
        """
        return float(np.hypot(self.rho, np.linalg.norm(self.r[:, : len(c)] @ c - self.z)))

    def solve(self, rank: int) -> ReducedSolution:
        """Best coefficients of the leading directions.

        Args:
            rank: Number of leading directions j, 0 <= j <= m.

        Returns:
            The solution. Singular values of the column-scaled factor below ``eps * max(N, j) * S_1`` are
            dropped.
        """
        if rank == 0:
            return ReducedSolution(np.zeros(0), self.residual_norm(np.zeros(0)), 0)
        cut = float(np.finfo(float).eps) * max(self.n_rows, rank)
        # Interlacing: no leading block is worse conditioned than the whole factor. If nothing is to be cut
        # from that, back substitution gives the SVD's answer for every rank.
        _, s, _ = self._whole_svd()
        if rank < len(self.z) and s[-1] > cut * s[0]:
            c = solve_triangular(self.r[:rank, :rank], self.z[:rank])
            return ReducedSolution(c, self.residual_norm(c), 0)
        scale = _column_norms(self.r[:rank, :rank])
        u, s, wt = self._whole_svd() if rank == len(self.z) else dense_svd(self.r[:rank, :rank] / scale)
        keep = (s > cut * s[0]) & (s > 0)
        c = (wt[keep].T @ ((u[:, keep].T @ self.z[:rank]) / s[keep])) / scale
        return ReducedSolution(c, self.residual_norm(c), int(rank - keep.sum()))

    def _whole_svd(self) -> tuple[Array, Array, Array]:
        if not self._scaled_svd:
            self._scaled_svd.append(dense_svd(self.r / _column_norms(self.r)))
        return self._scaled_svd[0]


def _column_norms(r: Array) -> Array:
    norms = np.linalg.norm(r, axis=0)
    return np.where(norms > 0, norms, 1.0)


def reduce_rows(comm: MPI.Comm, av_local: Array, r0_local: Array, n_rows: int) -> ReducedProblem:
    """Factor ``[J V | -r0]`` over the ranks.

    Args:
        comm: Communicator.
        av_local: This rank's rows of J V, one direction per row: shape (m, N_local).
        r0_local: This rank's residual, shape (N_local,).
        n_rows: Global number of rows.

    Returns:
        The reduced problem, equal on all ranks.

    Raises:
        AccuracyError: If a value is not finite; raised on every rank.

    Collective: one TSQR.
    """
    return ReducedProblem.from_factor(tsqr(comm, np.vstack([av_local, -r0_local]).T), n_rows)
