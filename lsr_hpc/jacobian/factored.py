"""Factored Jacobian: block products from the inputs and gradients of every linear layer; J is never formed.

:mod:`lsr_hpc.jacobian.recording` finds the factors, :mod:`lsr_hpc.jacobian.factors` multiplies with them.
Cost: k forward passes for k columns of J V or J^T U, half of what vectorised forward or reverse mode needs,
and in large matrix products; set-up about 1 + 2C forward passes. Memory: what :class:`BlockStructure` says.

Only residuals whose parameters act through linear layers have this form, up to a few numbers; whether a block
does is found out, and checked against automatic differentiation, by :func:`examine_block`.
"""

# Legend: b columns, n points of a tile, C residual components, P parameters.

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from lsr_hpc.autodiff import pull_back, push_forward
from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.factors import TileFactors
from lsr_hpc.jacobian.matrix_free import MatrixFreeJacobian
from lsr_hpc.jacobian.probe import BlockProbe, LiveNumbers
from lsr_hpc.jacobian.recording import Product, record, shared_outputs, survey
from lsr_hpc.problem import ResidualBlock
from lsr_hpc.rows import LocalRows, Segment, even_tiles

__all__ = ["BlockStructure", "FactoredJacobian", "NotFactored", "examine_block"]

_PROBE_POINTS = 3
# Factored products agree with automatic differentiation to rounding, or something was not recorded.
_PROBE_TOLERANCE = 1e-10
# Parameters outside linear layers whose columns of J are held as they are: so many, or one in a hundred.
_FEW_PARAMETERS = 64
# More points in one recording gain nothing.
_LARGEST_TILE = 4096


@dataclass(frozen=True)
class BlockStructure:
    """How a residual block uses the parameters, and what its factors cost.

    Attributes:
        explicit: Parameters used otherwise than as weight or bias of a linear layer.
        shared: Numbers of the linear layers that no point enters.
        shared_outputs: Those of them on which the residual depends directly, ascending.
        shared_parameters: Parameters on which these outputs depend.
        products: Products with weights on which the residual depends, in order.
        numbers_per_point: Numbers held per point once recorded.
        recording_numbers_per_point: Numbers alive per point while a tile is recorded.
        flops_per_point: Flops of a product, per point and column.
    """

    explicit: frozenset[str]
    shared: frozenset[int]
    shared_outputs: tuple[int, ...]
    shared_parameters: tuple[str, ...]
    products: tuple[Product, ...]
    numbers_per_point: int
    recording_numbers_per_point: int
    flops_per_point: int


@dataclass(frozen=True)
class NotFactored:
    """A residual block has no factored form.

    Attributes:
        reason: Why, in words.
    """

    reason: str


def examine_block(
    block: ResidualBlock, probe: BlockProbe, model: FunctionalModel
) -> BlockStructure | NotFactored:
    """Find a block's factored form, and check its products against automatic differentiation.

    Args:
        block: The block.
        probe: What :func:`lsr_hpc.jacobian.probe.probe_block` found.
        model: The network.

    Returns:
        The structure, or why there is none. The same on every rank; no communication takes place.
    """
    indices = np.linspace(0, block.n_points - 1, _PROBE_POINTS).astype(np.int64)
    tensors = tuple(t.to(model.device) for t in block.take(indices))
    rows = LocalRows(
        (Segment(block, probe, tensors, 1.0),), 0, _PROBE_POINTS * probe.rows_per_point, model.device
    )
    try:
        with warnings.catch_warnings():
            # Where vmap has no rule for an operation, it falls back to a loop and warns.
            warnings.filterwarnings("error", message="There is a performance drop")
            structure = _find_structure(block, model, tensors)
            if isinstance(structure, BlockStructure):
                difference = _difference(model, rows, structure)
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        return NotFactored(
            f"residual block {block.name!r} cannot be evaluated point by point under torch.func.vmap: "
            f"{type(error).__name__}: {first_line}"
        )
    if isinstance(structure, BlockStructure) and not difference <= _PROBE_TOLERANCE:
        return NotFactored(
            f"residual block {block.name!r}: the products recorded in linear layers do not make up its "
            f"Jacobian (relative difference {difference:.1e}); a parameter is used in a way that torch does "
            "not show"
        )
    return structure


def _find_structure(
    block: ResidualBlock, model: FunctionalModel, tensors: tuple[Tensor, ...]
) -> BlockStructure | NotFactored:
    explicit: dict[str, str] = {}
    while True:
        # A weight that is also used otherwise is explicit as a whole, and then its layer's bias is, too.
        products, other_uses = survey(block, model, tensors, frozenset(explicit))
        if not other_uses:
            break
        explicit |= other_uses
    n_explicit = sum(model.theta0_tensors[name].numel() for name in explicit)
    limit = max(_FEW_PARAMETERS, model.layout.size // 100)
    if n_explicit > limit:
        return NotFactored(_reason(block, model, explicit, n_explicit, limit))
    return _measured(block, model, tensors, products, frozenset(explicit))


def _measured(
    block: ResidualBlock,
    model: FunctionalModel,
    tensors: tuple[Tensor, ...],
    products: list[Product],
    explicit: frozenset[str],
) -> BlockStructure:
    shared = _shared_layers(products)

    live = LiveNumbers()
    with live:
        record(block, model, tuple(t[:1] for t in tensors), shared=shared, explicit=explicit)
    of_one, live.peak = live.peak, live.live
    with live:
        recording = record(block, model, tensors, shared=shared, explicit=explicit)
    layers = tuple(p.layer for p, a in zip(recording.products, recording.inputs, strict=True) if a is None)
    factors = TileFactors.of(recording, model.layout, 1.0, 0)
    return BlockStructure(
        explicit=explicit,
        shared=shared,
        shared_outputs=layers,
        shared_parameters=_parameters_of_shared(block, model, tensors, layers, explicit),
        products=recording.products,
        numbers_per_point=-(-factors.numbers // _PROBE_POINTS),
        recording_numbers_per_point=max(1, (live.peak - of_one) // (_PROBE_POINTS - 1)),
        flops_per_point=-(-factors.flops_per_column // _PROBE_POINTS),
    )


def _shared_layers(products: list[Product]) -> frozenset[int]:
    """Layers that no point enters, unless a derivative passes through them: then a point does, in effect."""
    entered = {p.layer for p in products if p.per_point or not p.primal}
    return frozenset(p.layer for p in products) - entered


def _parameters_of_shared(
    block: ResidualBlock,
    model: FunctionalModel,
    tensors: tuple[Tensor, ...],
    layers: tuple[int, ...],
    explicit: frozenset[str],
) -> tuple[str, ...]:
    if not layers:
        return ()
    point = tuple(t[:1] for t in tensors)
    outputs = shared_outputs(block, model, point, layers=layers, explicit=explicit)
    value, pull = pull_back(outputs, model.theta0_tensors)
    # Different numbers, so that contributions do not cancel by symmetry.
    gradients = pull(torch.linspace(1.0, 1.7, len(value), dtype=torch.float64, device=value.device))
    return tuple(name for name, gradient in gradients.items() if bool(gradient.any()))


def _reason(
    block: ResidualBlock, model: FunctionalModel, other_uses: dict[str, str], n_explicit: int, limit: int
) -> str:
    """Name the largest parameter that no linear layer uses."""
    name = max(other_uses, key=lambda n: model.theta0_tensors[n].numel())
    layer = model.layer_of(name)
    return (
        f"residual block {block.name!r}: parameter {name!r} ({layer}) is used by {other_uses[name]}, not as "
        f"weight or bias of a linear layer; {n_explicit} numbers are used so, more than {limit}"
    )


def _difference(model: FunctionalModel, rows: LocalRows, structure: BlockStructure) -> float:
    """Relative difference of factored and automatic products, for two vectors each way."""
    (segment,) = rows.segments
    factored = FactoredJacobian(model, rows, {segment.block.name: structure}, tile_bytes=2**20, hold=True)
    reference = MatrixFreeJacobian(model, rows, columns_per_tile=2, tile_bytes=2**20)
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> Tensor:
        return torch.randn(2, n, dtype=torch.float64, generator=generator).to(model.device)

    v, u = draw(factored.n_parameters), draw(factored.n_rows)
    pairs = ((factored.jv(v), reference.jv(v)), (factored.jtu(u), reference.jtu(u)))
    # A NaN on either side passes through ``max`` and is no agreement.
    return float(torch.stack([(a - e).norm() / e.norm().clamp_min(1e-300) for a, e in pairs]).max())


class FactoredJacobian:
    """This rank's rows of J in factored form.

    Args:
        model: The network.
        rows: This rank's rows.
        structures: What :func:`examine_block` found, by name of the block.
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
        self._held: dict[tuple[int, int], TileFactors] = {}

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

        Raises:
            JobError: If a residual uses other layers than on the probed points.
        """
        v = v.to(self._model.device)
        out = torch.empty(v.shape[0], self.n_rows, dtype=torch.float64, device=self._model.device)
        if v.shape[0] == 0:
            return out
        with torch.no_grad():
            for number, segment in enumerate(self._rows.segments):
                shared = self._shared(segment)
                v_shared = None if shared is None else shared.push(v)
                for rows, factors in self._tiles(number):
                    out[:, rows] = factors.jv(v, v_shared)
        return out

    def jtu(self, u: Tensor) -> Tensor:
        """``J^T U`` summed over the local rows.

        Args:
            u: Shape (b, N_local), float64.

        Returns:
            Shape (b, P).

        Raises:
            JobError: If a residual uses other layers than on the probed points.
        """
        u = u.to(self._model.device)
        out = torch.zeros(u.shape[0], self.n_parameters, dtype=torch.float64, device=self._model.device)
        if u.shape[0] == 0:
            return out
        with torch.no_grad():
            for number, segment in enumerate(self._rows.segments):
                shared = self._shared(segment)
                u_shared = None if shared is None else u.new_zeros(u.shape[0], shared.width)
                for rows, factors in self._tiles(number):
                    factors.add_jtu(u[:, rows].contiguous(), out, u_shared)
                if shared is not None and u_shared is not None:
                    shared.add_pull(u_shared, out)
        return out

    def _tiles(self, number: int) -> Iterator[tuple[slice, TileFactors]]:
        """The tiles of a segment: local rows and factors."""
        segment = self._rows.segments[number]
        structure = self._structures[segment.block.name]
        row = sum(s.n_rows for s in self._rows.segments[:number])
        size = self._tile_bytes // (8 * structure.recording_numbers_per_point)
        for points in even_tiles(segment.n_points, max(1, min(_LARGEST_TILE, size))):
            factors = self._held.get((number, points.start)) or self._record(segment, structure, points)
            if self._hold:
                self._held[number, points.start] = factors
            yield slice(row, row + factors.n_rows), factors
            row += factors.n_rows

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

    def _shared(self, segment: Segment) -> _SharedLayers | None:
        structure = self._structures[segment.block.name]
        return _SharedLayers(self._model, segment, structure) if structure.shared_outputs else None


class _SharedLayers:
    """Derivative of what the shared layers of a segment put out, by automatic differentiation: one point."""

    def __init__(self, model: FunctionalModel, segment: Segment, structure: BlockStructure) -> None:
        outputs = shared_outputs(
            segment.block,
            model,
            tuple(t[:1] for t in segment.tensors),
            layers=structure.shared_outputs,
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
