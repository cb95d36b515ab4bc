"""Factored Jacobian: block products from the inputs and gradients of every linear layer; J is never formed.

:mod:`lsr_hpc.jacobian.recording` finds the factors, :mod:`lsr_hpc.jacobian.factors` multiplies with them.
Cost: k forward passes for k columns of J V or J^T U, half of what vectorised forward or reverse mode needs,
and in large matrix products; set-up about 1 + 2C forward passes. Memory: what :class:`BlockStructure` says.

Only residuals whose parameters act through linear layers have this form, but for a few parameters;
:func:`lsr_hpc.jacobian.examine.examine_block` finds out whether a block does.
"""

# Legend: b columns, n points of a tile, C residual components, P parameters.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from lsr_hpc.autodiff import pull_back, push_forward
from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.factors import TileFactors
from lsr_hpc.jacobian.linear_calls import Product, SharedLayers, shared_outputs
from lsr_hpc.jacobian.recording import record
from lsr_hpc.rows import LocalRows, Segment, even_tiles

__all__ = ["BlockStructure", "FactoredJacobian"]

# More points in one recording gain nothing.
_LARGEST_TILE = 4096


@dataclass(frozen=True)
class BlockStructure:
    """How a residual block uses the parameters, and what its factors cost.

    Attributes:
        explicit: Parameters used otherwise than as weight or bias of a linear layer.
        shared: Layers that no point enters.
        shared_parameters: Parameters on which their outputs depend.
        products: Products with weights on which the residual depends, in order.
        numbers_per_point: Float64 numbers held per point once recorded.
        recording_numbers_per_point: Numbers alive per point while a tile is recorded.
        flops_per_point: Flops of a product, per point and column.
    """

    explicit: frozenset[str]
    shared: SharedLayers
    shared_parameters: tuple[str, ...]
    products: tuple[Product, ...]
    numbers_per_point: int
    recording_numbers_per_point: int
    flops_per_point: int


class FactoredJacobian:
    """This rank's rows of J in factored form.

    Args:
        model: The network.
        rows: This rank's rows.
        structures: What :func:`lsr_hpc.jacobian.examine.examine_block` found, by name of the block.
        tile_bytes: Upper bound for the temporaries of one recording.
        hold: Whether to keep the factors of all rows after their first use; else they are recorded again for
            every product.
    """

    def __init__(
        self,
        model: FunctionalModel,
        rows: LocalRows,
        structures: Mapping[str, BlockStructure],
        *,
        tile_bytes: int,
        hold: bool,
    ) -> None:
        self._model = model
        self._rows = rows
        self._structures = structures
        self._tile_bytes = tile_bytes
        self._hold = hold
        self._shared = [
            _SharedOutputs(model, segment, structures[segment.block.name])
            if structures[segment.block.name].shared.outputs
            else None
            for segment in rows.segments
        ]
        self._held: dict[tuple[int, int, torch.dtype], TileFactors] = {}

    @property
    def n_rows(self) -> int:
        """Local number of rows."""
        return self._rows.n_rows

    @property
    def n_parameters(self) -> int:
        """Number of unknowns P."""
        return self._model.layout.size

    @property
    def flops_per_column(self) -> float:
        """Flops of one column."""
        return float(
            sum(s.n_points * self._structures[s.block.name].flops_per_point for s in self._rows.segments)
        )

    def jv(self, v: Tensor) -> Tensor:
        """``J V``.

        Args:
            v: Shape (b, P), float64 or float32.

        Returns:
            Shape (b, N_local), in the precision of ``v``.

        Raises:
            JobError: If a residual uses other layers than on the probed points.
        """
        v = v.to(self._model.device).contiguous()
        out = v.new_empty(v.shape[0], self.n_rows)
        if v.shape[0] == 0:
            return out
        with torch.no_grad():
            for number in range(len(self._rows.segments)):
                shared = self._shared[number]
                v_shared = None if shared is None else shared.push(v.double()).to(v.dtype)
                for rows, factors in self._tiles(number, v.dtype):
                    out[:, rows] = factors.jv(v, v_shared)
        return out

    def jtu(self, u: Tensor) -> Tensor:
        """``J^T U`` summed over the local rows.

        Args:
            u: Shape (b, N_local), float64 or float32.

        Returns:
            Shape (b, P), in the precision of ``u``.

        Raises:
            JobError: If a residual uses other layers than on the probed points.
        """
        u = u.to(self._model.device)
        out = u.new_zeros(u.shape[0], self.n_parameters)
        if u.shape[0] == 0:
            return out
        with torch.no_grad():
            for number in range(len(self._rows.segments)):
                shared = self._shared[number]
                u_shared = None if shared is None else u.new_zeros(u.shape[0], shared.width)
                for rows, factors in self._tiles(number, u.dtype):
                    factors.add_jtu(u[:, rows].contiguous(), out, u_shared)
                if shared is not None and u_shared is not None:
                    shared.add_pull(u_shared.double(), out)
        return out

    def tiles(self) -> Iterator[tuple[TileFactors, Tensor | None]]:
        """The rows tile by tile, in order.

        Yields:
            Factors in float64, and the derivative of the shared layers' outputs by the parameters,
            (width, P), where the tile has any.
        """
        for number, shared in enumerate(self._shared):
            by_parameters = None
            if shared is not None:
                by_parameters = torch.zeros(
                    shared.width, self.n_parameters, dtype=torch.float64, device=self._model.device
                )
                shared.add_pull(torch.eye(shared.width).to(by_parameters), by_parameters)
            for _, factors in self._tiles(number, torch.float64):
                yield factors, by_parameters

    def _tiles(self, number: int, dtype: torch.dtype) -> Iterator[tuple[slice, TileFactors]]:
        """The tiles of a segment: local rows and factors."""
        segment = self._rows.segments[number]
        structure = self._structures[segment.block.name]
        row = sum(s.n_rows for s in self._rows.segments[:number])
        size = self._tile_bytes // (8 * structure.recording_numbers_per_point)
        for points in even_tiles(segment.n_points, max(1, min(_LARGEST_TILE, size))):
            held = self._held.get((number, points.start, dtype))
            factors = held or self._recorded(number, points).to(dtype=dtype)
            if self._hold:
                self._held[number, points.start, dtype] = factors
            yield slice(row, row + factors.n_rows), factors
            row += factors.n_rows

    def _recorded(self, number: int, points: slice) -> TileFactors:
        """The factors of a tile in float64, held already or recorded now."""
        segment = self._rows.segments[number]
        held = self._held.get((number, points.start, torch.float64))
        return held or self._record(segment, self._structures[segment.block.name], points)

    def _record(self, segment: Segment, structure: BlockStructure, points: slice) -> TileFactors:
        tensors = tuple(t[points] for t in segment.tensors)
        recording = record(
            segment.block, self._model, tensors, shared=structure.shared, explicit=structure.explicit
        )
        if recording.products != structure.products:
            raise JobError(
                f"residual block {segment.block.name!r} passes through other layers at points "
                f"{points.start} to {points.stop - 1} than at those probed: use the matrix-free Jacobian"
            )
        n_rows = len(tensors[0]) * segment.probe.rows_per_point
        return TileFactors.of(recording, self._model.layout, segment.scale, n_rows)


class _SharedOutputs:
    """Derivative of what the shared layers of a segment put out, by automatic differentiation: one point."""

    def __init__(self, model: FunctionalModel, segment: Segment, structure: BlockStructure) -> None:
        outputs = shared_outputs(
            segment.block,
            model,
            tuple(t[:1] for t in segment.tensors),
            shared=structure.shared,
            explicit=structure.explicit,
        )
        self._ranges = model.layout.ranges
        self._shapes = dict(zip(model.layout.names, model.layout.shapes, strict=True))
        self._at = {name: model.theta0_tensors[name] for name in structure.shared_parameters}
        self._outputs: Callable[[dict[str, Tensor]], Tensor] = lambda some: outputs({
            **model.theta0_tensors,
            **some,
        })
        self.width = len(self._outputs({}))

    def push(self, v: Tensor) -> Tensor:
        """Tangents (b, width) for parameter vectors (b, P)."""
        tangents = {n: v[:, self._ranges[n]].reshape(-1, *self._shapes[n]) for n in self._at}
        return vmap(lambda tangent: push_forward(self._outputs, self._at, tangent)[1])(tangents)

    def add_pull(self, cotangents: Tensor, out: Tensor) -> None:
        """Add the gradients for cotangents (b, width) to ``out`` (b, P)."""
        for name, gradient in vmap(pull_back(self._outputs, self._at)[1])(cotangents).items():
            out[:, self._ranges[name]] += gradient.flatten(1)
