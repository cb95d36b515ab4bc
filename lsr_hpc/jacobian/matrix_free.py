"""Matrix-free Jacobian: block products by vectorised forward and reverse mode, nothing stored.

``J V`` is ``vmap(jvp)``, ``J^T U`` is ``vmap(vjp)``; both share the primal pass over the columns of a tile.
Cost: (1 + 2b) forward passes per product and b columns. Memory: one tile of rows x columns, sized by the
probe's count of temporaries, beside the panels themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from lsr_hpc.autodiff import pull_back, push_forward
from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.rows import LocalRows, Segment, even_tiles

__all__ = ["MatrixFreeJacobian"]

ResidualOfParameters = Callable[[dict[str, Tensor]], Tensor]


class MatrixFreeJacobian:
    """This rank's rows of J, applied through ``torch.func``.

    Args:
        model: The network.
        rows: This rank's rows.
        columns_per_tile: Vectors differentiated at once.
        tile_bytes: Upper bound for the temporaries of one tile of rows x columns.
    """

    def __init__(
        self, model: FunctionalModel, rows: LocalRows, *, columns_per_tile: int, tile_bytes: int
    ) -> None:
        self._model = model
        self._rows = rows
        self._columns_per_tile = columns_per_tile
        self._tile_bytes = tile_bytes
        self._dtype = model.theta0.dtype
        self._single: MatrixFreeJacobian | None = None

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
            v: Shape (b, P), float64 or float32.

        Returns:
            Shape (b, N_local), in the precision of ``v``.

        Raises:
            JobError: If a residual cannot be evaluated in float32.
        """
        if v.dtype != self._dtype:
            return self._in_single(lambda single: single.jv(v))
        out = torch.empty(v.shape[0], self.n_rows, dtype=self._dtype, device=self._model.device)
        with torch.no_grad():
            for columns in even_tiles(v.shape[0], self._columns_per_tile):
                tangents = self._model.layout.unflatten(v[columns].to(self._model.device))
                row = 0
                for segment in self._rows.segments:
                    for points in even_tiles(segment.n_points, self._points_per_tile(segment, len(v))):
                        push = partial(self._push, self._residual_of_parameters(segment, points))
                        block = vmap(push)(tangents)
                        out[columns, row : row + block.shape[1]] = block
                        row += block.shape[1]
        return out

    def jtu(self, u: Tensor) -> Tensor:
        """``J^T U`` summed over the local rows.

        Args:
            u: Shape (b, N_local), float64 or float32.

        Returns:
            Shape (b, P), in the precision of ``u``.

        Raises:
            JobError: If a residual cannot be evaluated in float32.
        """
        if u.dtype != self._dtype:
            return self._in_single(lambda single: single.jtu(u))
        out = torch.zeros(u.shape[0], self.n_parameters, dtype=self._dtype, device=self._model.device)
        row = 0
        for segment in self._rows.segments:
            for points in even_tiles(segment.n_points, self._points_per_tile(segment, len(u))):
                value, pull = pull_back(
                    self._residual_of_parameters(segment, points), self._model.theta0_tensors
                )
                for columns in even_tiles(u.shape[0], self._columns_per_tile):
                    cotangents = u[columns, row : row + len(value)].to(self._model.device)
                    out[columns] += self._model.layout.flatten(vmap(pull)(cotangents))
                row += len(value)
        return out

    def _push(self, residual: ResidualOfParameters, tangent: dict[str, Tensor]) -> Tensor:
        return push_forward(residual, self._model.theta0_tensors, tangent)[1]

    def _residual_of_parameters(self, segment: Segment, points: slice) -> ResidualOfParameters:
        """The tile's residual as a function of the parameter tensors."""
        # Constants of the user's may have made it float64.
        return lambda tensors: segment.residual(self._model.field_of_tensors(tensors), points).to(self._dtype)

    def _in_single(self, product: Callable[[MatrixFreeJacobian], Tensor]) -> Tensor:
        """A product with the network and the data in float32, of which a copy is kept."""
        if self._single is None:
            self._single = MatrixFreeJacobian(
                self._model.in_precision(torch.float32),
                self._rows.in_precision(torch.float32),
                columns_per_tile=self._columns_per_tile,
                tile_bytes=self._tile_bytes,
            )
        try:
            return product(self._single)
        except RuntimeError as error:
            if "dtype" not in str(error):
                raise
            raise JobError(
                f"a residual cannot be evaluated in float32 ({str(error).splitlines()[0]}): set "
                'subspace.precision = "float64", or let its constants take the dtype of its points'
            ) from error

    def _points_per_tile(self, segment: Segment, columns: int) -> int:
        bytes_per_point = 8 * segment.probe.numbers_per_point * max(1, min(columns, self._columns_per_tile))
        return max(1, self._tile_bytes // bytes_per_point)
