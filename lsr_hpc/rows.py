"""Rows of the stacked residual: which points are fitted or held out, and which rank owns them.

Everything is keyed by global point number. A :class:`RowSet` names the points of each block that belong
together (fit or held-out); :func:`partition` cuts it into contiguous pieces of equal cost, one per MPI
rank, possibly empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.probe import BlockProbe
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.sampling import held_out_mask

__all__ = [
    "FitAndHeld",
    "LocalRows",
    "RowSet",
    "Segment",
    "even_tiles",
    "local_rows",
    "partition",
    "points_at_once",
    "split_rows",
]

# A block smaller than this pins the solution down (a boundary value, one measurement): never held out.
SMALLEST_SPLIT_BLOCK = 20
_STREAM_HELD_OUT = 101


@dataclass(frozen=True)
class RowSet:
    """Global point numbers of each block that belong to one set (fit or held-out)."""

    blocks: tuple[ResidualBlock, ...]
    probes: tuple[BlockProbe, ...]
    indices: tuple[NDArray[np.int64], ...]

    @property
    def n_rows(self) -> int:
        """Global number of residual rows in the set."""
        return sum(len(i) * p.rows_per_point for i, p in zip(self.indices, self.probes, strict=True))

    @property
    def members(self) -> list[tuple[ResidualBlock, BlockProbe]]:
        """Blocks with their probes."""
        return list(zip(self.blocks, self.probes, strict=True))

    @property
    def weight_sum(self) -> float:
        """``sum_k weight_k * (share of block k in this set)``: turns a squared norm into a weighted mean."""
        return sum(b.weight * len(i) / b.n_points for b, i in zip(self.blocks, self.indices, strict=True))


@dataclass(frozen=True)
class Segment:
    """Consecutive points of one block that this rank owns, already scaled by the block's weight."""

    block: ResidualBlock
    probe: BlockProbe
    tensors: tuple[Tensor, ...]
    scale: float

    @property
    def n_points(self) -> int:
        """Number of points."""
        return int(self.tensors[0].shape[0])

    @property
    def n_rows(self) -> int:
        """Number of residual rows."""
        return self.n_points * self.probe.rows_per_point

    def residual(self, field: Field, tile: slice = slice(None)) -> Tensor:
        """Row-scaled residual of some of the points.

        Args:
            field: Network with bound parameters.
            tile: Which of the segment's points.

        Returns:
            Shape (n_rows of the tile,), float64, rows of one point adjacent.
        """
        values = self.block.residual(field, *(t[tile] for t in self.tensors))
        return self.scale * values.reshape(-1)


@dataclass(frozen=True)
class LocalRows:
    """The rows of one set that this rank owns.

    Attributes:
        segments: Pieces of blocks, in global order.
        first_row: Global number (within the set) of the first local row.
        n_rows_global: Rows of the set over all ranks.
        device: Where the data lives.
    """

    segments: tuple[Segment, ...]
    first_row: int
    n_rows_global: int
    device: torch.device

    @property
    def n_rows(self) -> int:
        """Local number of rows, may be 0."""
        return sum(s.n_rows for s in self.segments)

    def residual(self, field: Field) -> Tensor:
        """Evaluate the local, row-scaled residual, tile by tile.

        Args:
            field: Network with bound parameters.

        Returns:
            Shape (n_rows,), float64, on the device of the data; NaN and Inf pass.
        """
        pieces = [torch.zeros(0, dtype=torch.float64, device=self.device)]
        for segment in self.segments:
            size = points_at_once(segment.probe.numbers_per_point)
            for lo in range(0, segment.n_points, size):
                with torch.no_grad():
                    pieces.append(segment.residual(field, slice(lo, lo + size)))
        return torch.cat(pieces)

    def in_precision(self, dtype: torch.dtype) -> LocalRows:
        """The same rows with floating data in another precision.

        Args:
            dtype: ``torch.float32`` or ``torch.float64``.

        Returns:
            These rows for float64, a converted copy otherwise.
        """
        if dtype == torch.float64:
            return self
        segments = tuple(
            replace(s, tensors=tuple(t.to(dtype) if t.is_floating_point() else t for t in s.tensors))
            for s in self.segments
        )
        return replace(self, segments=segments)

    def require_finite(self, values: Tensor, what: str) -> None:
        """Refuse NaN and Inf in one number per local row.

        Args:
            values: Shape (n_rows,).
            what: Words between the block's name and the value, for the message.

        Raises:
            JobError: Naming block, value and point of the first one.
        """
        bad = torch.nonzero(~torch.isfinite(values)).flatten()
        if len(bad) == 0:
            return
        row = int(bad[0])
        value = values[row].item()
        for segment in self.segments:
            if row < segment.n_rows:
                where = segment.tensors[0][row // segment.probe.rows_per_point].tolist()
                raise JobError(
                    f"residual block {segment.block.name!r} {what} {value} at point {where}: "
                    "check points and data there for NaN, Inf or a division by zero"
                )
            row -= segment.n_rows


@dataclass(frozen=True)
class FitAndHeld:
    """Something that every residual row has, on this rank's fitted and held-out rows.

    Attributes:
        fit: Last axis over the fitted rows.
        held: Last axis over the held-out rows; may be empty.
    """

    fit: NDArray[np.float64]
    held: NDArray[np.float64]

    def first(self, n: int) -> FitAndHeld:
        """Views of the first n along the first axis."""
        return FitAndHeld(self.fit[:n], self.held[:n])


def points_at_once(numbers_per_point: int) -> int:
    """Points to evaluate in one pass so that the temporaries stay near 32 MiB.

    Args:
        numbers_per_point: Numbers alive per point, as the probe counted them.

    Returns:
        Between 1 and 4096.
    """
    return max(1, min(4096, 2**22 // numbers_per_point))


def even_tiles(n: int, size: int) -> list[slice]:
    """Nearly equal slices of [0, n).

    Args:
        n: Length, may be 0.
        size: Longest slice allowed, at least 1.

    Returns:
        The slices in order; none of them is empty.
    """
    pieces = -(-n // size) if n else 0
    return [slice(i * n // pieces, (i + 1) * n // pieces) for i in range(pieces)]


def split_rows(
    blocks: Sequence[ResidualBlock], probes: Sequence[BlockProbe], fraction: float, seed: int
) -> tuple[RowSet, RowSet]:
    """Split the points of every block into fit and held-out.

    Args:
        blocks: Residual blocks.
        probes: What :func:`lsr_hpc.jacobian.probe.probe_block` found for each.
        fraction: Share of points to hold out, 0 <= fraction < 1.
        seed: Seed of the choice.

    Returns:
        The fit set and the held-out set; the latter may be empty.
    """
    fit, held = [], []
    for number, block in enumerate(blocks):
        may_split = block.hold_out and block.n_points >= SMALLEST_SPLIT_BLOCK
        mask = held_out_mask(seed, _STREAM_HELD_OUT + number, block.n_points, fraction if may_split else 0.0)
        everything = np.arange(block.n_points)
        fit.append(everything[~mask])
        held.append(everything[mask])
    return (
        RowSet(tuple(blocks), tuple(probes), tuple(fit)),
        RowSet(tuple(blocks), tuple(probes), tuple(held)),
    )


def partition(rows: RowSet, n_parts: int) -> list[list[tuple[int, int, int]]]:
    """Cut a row set into contiguous parts of nearly equal cost.

    Args:
        rows: The set.
        n_parts: Number of MPI ranks; may exceed the number of points.

    Returns:
        For each part its pieces ``(block number, first, behind last)`` in positions of ``rows.indices``.
    """
    counts = [len(i) for i in rows.indices]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    block_cost = np.array(
        [c * p.flops_per_point for c, p in zip(counts, rows.probes, strict=True)], dtype=float
    )
    cost_before = np.concatenate([[0.0], np.cumsum(block_cost)])
    cuts = [0]
    for part in range(1, n_parts):
        target = cost_before[-1] * part / n_parts
        k = min(int(np.searchsorted(cost_before, target, side="right")) - 1, len(counts) - 1)
        within = round((target - cost_before[k]) / rows.probes[k].flops_per_point)
        cuts.append(int(offsets[k]) + min(within, counts[k]))
    cuts.append(int(offsets[-1]))
    parts = []
    for lo, hi in pairwise(cuts):
        pieces = []
        for k in range(len(counts)):
            a, b = max(lo, offsets[k]) - offsets[k], min(hi, offsets[k + 1]) - offsets[k]
            if a < b:
                pieces.append((k, int(a), int(b)))
        parts.append(pieces)
    return parts


def local_rows(rows: RowSet, mpi_rank: int, mpi_size: int, model: FunctionalModel) -> LocalRows:
    """Load this rank's part of a row set.

    Args:
        rows: The set, equal on all ranks.
        mpi_rank: This rank.
        mpi_size: Number of ranks.
        model: Its device receives the data.

    Returns:
        The local rows; no communication takes place.
    """
    parts = partition(rows, mpi_size)

    def rows_in(pieces: Sequence[tuple[int, int, int]]) -> int:
        return sum((hi - lo) * rows.probes[k].rows_per_point for k, lo, hi in pieces)

    segments = []
    for k, lo, hi in parts[mpi_rank]:
        block, probe = rows.blocks[k], rows.probes[k]
        tensors: tuple[Any, ...] = tuple(t.to(model.device) for t in block.take(rows.indices[k][lo:hi]))
        scale = float(np.sqrt(block.weight / (block.n_points * probe.rows_per_point)))
        segments.append(Segment(block, probe, tensors, scale))
    return LocalRows(tuple(segments), sum(rows_in(p) for p in parts[:mpi_rank]), rows.n_rows, model.device)
