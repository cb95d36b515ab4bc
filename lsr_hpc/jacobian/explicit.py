"""Explicit Jacobian: this rank's rows of J held as a matrix on the device, multiplied by gemm.

Worth its memory for few residual components and many columns: set-up costs 1 + 2C forward passes at the rate
of automatic differentiation, each column after that 2 P flops per row at the rate of a matrix product.
"""

# Legend: n points of a tile, C residual components per point, b columns.

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from lsr_hpc.functional import FunctionalModel
from lsr_hpc.rows import LocalRows, Segment, even_tiles

__all__ = ["ExplicitJacobian"]


class ExplicitJacobian:
    """This rank's rows of J as a dense matrix, made when it is first needed.

    Args:
        model: The network.
        rows: This rank's rows.
        tile_bytes: Upper bound for the temporaries of one tile of points while the matrix is made.
    """

    def __init__(self, model: FunctionalModel, rows: LocalRows, *, tile_bytes: int) -> None:
        self._model = model
        self._rows = rows
        self._tile_bytes = tile_bytes
        self._matrix: Tensor | None = None

    @property
    def n_rows(self) -> int:
        """Local number of rows."""
        return self._rows.n_rows

    @property
    def n_parameters(self) -> int:
        """Number of unknowns P."""
        return self._model.layout.size

    def jv(self, v: Tensor) -> Tensor:
        """``J V``.

        Args:
            v: Shape (b, P), float64.

        Returns:
            Shape (b, N_local).
        """
        return v.to(self._model.device) @ self.matrix.T

    def jtu(self, u: Tensor) -> Tensor:
        """``J^T U`` summed over the local rows.

        Args:
            u: Shape (b, N_local), float64.

        Returns:
            Shape (b, P).
        """
        return u.to(self._model.device) @ self.matrix

    @property
    def matrix(self) -> Tensor:
        """The local rows of J, shape (N_local, P), float64, on the device of the model."""
        if self._matrix is None:
            matrix = torch.empty(
                self.n_rows, self.n_parameters, dtype=torch.float64, device=self._model.device
            )
            row = 0
            for segment in self._rows.segments:
                # One reverse pass per component holds the temporaries of all of them.
                per_point = 8 * (segment.probe.numbers_per_point + self.n_parameters)
                size = max(1, self._tile_bytes // (per_point * segment.probe.rows_per_point))
                for points in even_tiles(segment.n_points, size):
                    block = self._rows_at(segment, points)
                    matrix[row : row + len(block)] = block
                    row += len(block)
            self._matrix = matrix
        return self._matrix

    def _rows_at(self, segment: Segment, points: slice) -> Tensor:
        """Rows of J at some points, shape (n * C, P): a reverse pass per point and component, vectorised."""

        def residual(tensors: dict[str, Tensor], point: tuple[Tensor, ...]) -> Tensor:
            field = self._model.field_of_tensors(tensors)
            values = segment.block.residual(field, *(t.unsqueeze(0) for t in point))
            return values.reshape(-1)

        tile = tuple(t[points] for t in segment.tensors)
        gradients = vmap(jacrev(residual), in_dims=(None, 0))(self._model.theta0_tensors, tile)
        return segment.scale * self._model.layout.flatten(gradients).flatten(0, 1)
