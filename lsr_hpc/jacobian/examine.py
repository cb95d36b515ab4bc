"""Whether a residual block has a factored Jacobian, found out on a few of its points before any work starts.

The factored products are checked against automatic differentiation there, so that a use of the parameters
that was not seen leads to a refusal in words, never to a wrong Jacobian.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.autodiff import pull_back
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.factored import BlockStructure, FactoredJacobian
from lsr_hpc.jacobian.factors import TileFactors
from lsr_hpc.jacobian.linear_calls import Product, SharedLayers, shared_outputs
from lsr_hpc.jacobian.matrix_free import MatrixFreeJacobian
from lsr_hpc.jacobian.probe import BlockProbe, OperationCounter
from lsr_hpc.jacobian.recording import record, survey
from lsr_hpc.problem import ResidualBlock
from lsr_hpc.rows import LocalRows, Segment

__all__ = ["NotFactored", "examine_block", "examine_blocks"]

_PROBE_POINTS = 6
# Factored products agree with automatic differentiation to rounding, or something was not recorded.
_PROBE_TOLERANCE = 1e-10
# Parameters outside linear layers whose columns of J are held as they are: so many, or one in a hundred.
_FEW_PARAMETERS = 64


@dataclass(frozen=True)
class NotFactored:
    """A residual block has no factored form.

    Attributes:
        reason: Why, in words.
    """

    reason: str


def examine_blocks(
    blocks: Sequence[ResidualBlock], probes: Sequence[BlockProbe], model: FunctionalModel
) -> dict[str, BlockStructure] | NotFactored:
    """Examine all blocks of a problem, up to the first that has no factored form.

    Args:
        blocks: Residual blocks.
        probes: What :func:`lsr_hpc.jacobian.probe.probe_block` found for each.
        model: The network.

    Returns:
        The structures by name of the block, or why there are none. The same on every rank; no communication.
    """
    structures = {}
    for block, probe in zip(blocks, probes, strict=True):
        structure = examine_block(block, probe, model)
        if isinstance(structure, NotFactored):
            return structure
        structures[block.name] = structure
    return structures


def examine_block(
    block: ResidualBlock, probe: BlockProbe, model: FunctionalModel
) -> BlockStructure | NotFactored:
    """Find a block's factored form, and check its products against automatic differentiation.

    Args:
        block: The block.
        probe: What :func:`lsr_hpc.jacobian.probe.probe_block` found.
        model: The network.

    Returns:
        The structure, or why there is none. The same on every rank; no communication.
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
    shared = _shared_layers(block, model, tensors, products, explicit)
    of_one, of_all = OperationCounter(), OperationCounter()
    with of_one:
        record(block, model, tuple(t[:1] for t in tensors), shared=shared, explicit=explicit)
    with of_all:
        recording = record(block, model, tensors, shared=shared, explicit=explicit)
    factors = TileFactors.of(recording, model.layout, 1.0, 0)
    return BlockStructure(
        explicit=explicit,
        shared=shared,
        shared_parameters=_parameters_of_shared(block, model, tensors, shared, explicit),
        products=recording.products,
        numbers_per_point=-(-factors.numbers // _PROBE_POINTS),
        recording_numbers_per_point=max(1, (of_all.peak - of_one.peak) // (_PROBE_POINTS - 1)),
        flops_per_point=-(-factors.flops_per_column // _PROBE_POINTS),
    )


def _shared_layers(
    block: ResidualBlock,
    model: FunctionalModel,
    tensors: tuple[Tensor, ...],
    products: list[Product],
    explicit: frozenset[str],
) -> SharedLayers:
    # A derivative that passes through a layer may differ from point to point even where its input does not.
    entered = {p.layer for p in products if p.per_point or not p.primal}
    every = tuple(sorted({p.layer for p in products} - entered))
    if not every:
        return SharedLayers((), ())
    recording = record(block, model, tensors, shared=SharedLayers(every, ()), explicit=explicit)
    outputs = {p.layer for p, a in zip(recording.products, recording.inputs, strict=True) if a is None}
    return SharedLayers(tuple(sorted(outputs)), tuple(n for n in every if n not in outputs))


def _parameters_of_shared(
    block: ResidualBlock,
    model: FunctionalModel,
    tensors: tuple[Tensor, ...],
    shared: SharedLayers,
    explicit: frozenset[str],
) -> tuple[str, ...]:
    if not shared.outputs:
        return ()
    point = tuple(t[:1] for t in tensors)
    outputs = shared_outputs(block, model, point, shared=shared, explicit=explicit)
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
    if name in model.layout.complex_names:
        use = "is complex, and only real ones have a factored form"
    else:
        use = f"is used by {other_uses[name]}, not as weight or bias of a linear layer"
    return (
        f"residual block {block.name!r}: parameter {name!r} ({layer}) {use}; {n_explicit} numbers are used "
        f"so, more than {limit}"
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
    if not all(bool(torch.isfinite(expected).all()) for _, expected in pairs):
        # The residual itself is refused later, with block and point.
        return 0.0
    # A NaN passes through ``max`` and is no agreement.
    return float(torch.stack([(a - e).norm() / e.norm().clamp_min(1e-300) for a, e in pairs]).max())
