"""Explicit Jacobian: this rank's rows of J held as a matrix on the device, multiplied by gemm.

Worth its memory for few residual components and many columns: set-up costs 1 + 2C forward passes at the rate
of automatic differentiation, each column after that 2 P flops per row at the rate of a matrix product.
"""

# Legend: n points of a tile, C residual components per point, b columns, P' <= P parameters held.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.matrix_free import MatrixFreeJacobian
from lsr_hpc.jacobian.probe import BlockProbe
from lsr_hpc.problem import ResidualBlock
from lsr_hpc.rows import LocalRows, Segment, even_tiles

__all__ = ["ExplicitJacobian", "why_not_explicit"]


class ExplicitJacobian:
    """This rank's rows of J as a dense matrix, made when it is first needed.

    Args:
        model: The network.
        rows: This rank's rows.
        tile_bytes: Upper bound for the temporaries of one tile of points while the matrix is made.
        free: Increasing coordinates of the parameters whose columns are held, shape (P',); None for all P.
    """

    def __init__(
        self, model: FunctionalModel, rows: LocalRows, *, tile_bytes: int, free: Tensor | None = None
    ) -> None:
        self._model = model
        self._rows = rows
        self._tile_bytes = tile_bytes
        self._n_parameters = model.layout.size if free is None else len(free)
        self._pieces = list(_pieces(model, free))
        self._matrix: Tensor | None = None
        self._single: Tensor | None = None

    @property
    def n_rows(self) -> int:
        """Local number of rows."""
        return self._rows.n_rows

    @property
    def n_parameters(self) -> int:
        """Number of unknowns P'."""
        return self._n_parameters

    def jv(self, v: Tensor) -> Tensor:
        """``J V``.

        Args:
            v: Shape (b, P'), float64 or float32.

        Returns:
            Shape (b, N_local), in the precision of ``v``.
        """
        return v.to(self._model.device) @ self._in_precision(v.dtype).T

    def jtu(self, u: Tensor) -> Tensor:
        """``J^T U`` summed over the local rows.

        Args:
            u: Shape (b, N_local), float64 or float32.

        Returns:
            Shape (b, P'), in the precision of ``u``.
        """
        return u.to(self._model.device) @ self._in_precision(u.dtype)

    def _in_precision(self, dtype: torch.dtype) -> Tensor:
        """The matrix, or a copy in float32 that is kept beside it."""
        if dtype == torch.float64:
            return self.matrix
        if self._single is None:
            self._single = self.matrix.to(dtype)
        return self._single

    @property
    def matrix(self) -> Tensor:
        """The local rows of J, shape (N_local, P'), float64, on the device of the model."""
        if self._matrix is None:
            matrix = torch.empty(
                self.n_rows, self.n_parameters, dtype=torch.float64, device=self._model.device
            )
            n_gradients = sum(self._model.theta0_tensors[piece.name].numel() for piece in self._pieces)
            row = 0
            for segment in self._rows.segments:
                # One reverse pass per component holds the temporaries of all of them.
                per_point = 8 * (segment.probe.numbers_per_point + n_gradients)
                size = max(1, self._tile_bytes // (per_point * segment.probe.rows_per_point))
                for points in even_tiles(segment.n_points, size):
                    n_rows = (points.stop - points.start) * segment.probe.rows_per_point
                    self._write_rows(segment, points, matrix[row : row + n_rows])
                    row += n_rows
            self._matrix = matrix
        return self._matrix

    def _write_rows(self, segment: Segment, points: slice, rows: Tensor) -> None:
        """Fill in the rows of J at some points: a reverse pass per point and component, vectorised."""

        def residual(tensors: dict[str, Tensor], point: tuple[Tensor, ...]) -> Tensor:
            # All by name: a layer with two names keeps what torch bound to it in an earlier call.
            field = self._model.field_of_tensors({**self._model.theta0_tensors, **tensors})
            values = segment.block.residual(field, *(t.unsqueeze(0) for t in point))
            return values.reshape(-1)

        tile = tuple(t[points] for t in segment.tensors)
        at = {piece.name: self._model.theta0_tensors[piece.name] for piece in self._pieces}
        gradients = vmap(jacrev(residual), in_dims=(None, 0))(at, tile)
        for piece in self._pieces:
            gradient = gradients[piece.name].reshape(len(rows), -1)
            torch.mul(gradient[:, piece.entries], segment.scale, out=rows[:, piece.columns])


@dataclass(frozen=True)
class _Piece:
    """Columns of the matrix that belong to one parameter tensor: some of its entries, in order."""

    name: str
    entries: slice | Tensor
    columns: slice


def _pieces(model: FunctionalModel, free: Tensor | None) -> Iterator[_Piece]:
    """Share the columns out among the parameter tensors; tensors without any are left out."""
    for name, where in model.layout.ranges.items():
        if free is None:
            yield _Piece(name, slice(None), where)
            continue
        first, last = (int(i) for i in torch.searchsorted(free, torch.tensor([where.start, where.stop])))
        if last > first:
            entries = (free[first:last] - where.start).to(model.device)
            yield _Piece(name, entries, slice(first, last))


def why_not_explicit(block: ResidualBlock, probe: BlockProbe, model: FunctionalModel) -> str:
    """Try a block's rows on a few points: ``vmap`` over points cannot take every residual.

    Args:
        block: The block.
        probe: What the probe found for it.
        model: The network.

    Returns:
        Why the block cannot be had as a matrix, or empty. The same on every rank; no communication.
    """
    indices = np.linspace(0, block.n_points - 1, min(2, block.n_points)).astype(np.int64)
    tensors = tuple(t.to(model.device) for t in block.take(indices))
    n_rows = len(indices) * probe.rows_per_point
    rows = LocalRows((Segment(block, probe, tensors, 1.0),), 0, n_rows, model.device)
    try:
        matrix = ExplicitJacobian(model, rows, tile_bytes=2**20).matrix
        product = MatrixFreeJacobian(model, rows, columns_per_tile=1, tile_bytes=2**20)
        direction = torch.linspace(1.0, 2.0, model.layout.size, dtype=torch.float64, device=model.device)
        expected = product.jv(direction[None])[0]
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        return (
            f"residual block {block.name!r} cannot be evaluated point by point under torch.func.vmap: "
            f"{type(error).__name__}: {first_line}"
        )
    difference = float((matrix @ direction - expected).norm())
    if difference > 1e-9 * float(expected.norm()):
        return f"residual block {block.name!r} gives other values when its points are taken one by one"
    return ""
