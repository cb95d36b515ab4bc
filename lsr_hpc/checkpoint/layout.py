"""Which file of a checkpoint holds which range of which array.

Arrays that are cut alike share files. Files are named by the global range that they hold and never by an MPI
rank: ``part-<cut>-<first>-<behind>.safetensors``, where <cut> counts the different ways of cutting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lsr_hpc.checkpoint.manifest import Part, StoredArray
from lsr_hpc.snapshot import Cut, Snapshot

__all__ = ["Layout", "Piece", "pieces_of", "plan_layout"]


@dataclass(frozen=True)
class Layout:
    """Files of a snapshot.

    Attributes:
        arrays: The array table of the manifest, equal on all ranks.
        own: Names of the cut arrays in each file that this rank writes.
    """

    arrays: Mapping[str, StoredArray]
    own: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Piece:
    """One rank's view of an array.

    Attributes:
        dtype: Name of its numpy dtype.
        shape: Whole shape.
        range: This rank's columns, (first, behind last); None for a plain array.
    """

    dtype: str
    shape: tuple[int, ...]
    range: tuple[int, int] | None


def pieces_of(snapshot: Snapshot) -> dict[str, Piece]:
    """What this rank tells the others of its arrays.

    Args:
        snapshot: Arrays of this rank.

    Returns:
        One piece per array.
    """
    pieces = {}
    for name, array in snapshot.arrays.items():
        if isinstance(array, Cut):
            shape = (*array.local.shape[:-1], array.n_global)
            pieces[name] = Piece(array.local.dtype.name, shape, (array.first, array.behind))
        else:
            pieces[name] = Piece(array.dtype.name, array.shape, None)
    return pieces


def plan_layout(by_rank: Sequence[Mapping[str, Piece]], mpi_rank: int) -> Layout:
    """Decide who writes what.

    Args:
        by_rank: Pieces of all ranks.
        mpi_rank: This rank.

    Returns:
        The layout.

    Raises:
        ValueError: If the ranks disagree on an array or their ranges do not tile it.
    """
    cuts: dict[tuple[tuple[int, int], ...], int] = {}
    arrays: dict[str, StoredArray] = {}
    own: dict[str, list[str]] = {}
    for name in sorted({name for pieces in by_rank for name in pieces}):
        ranges = _agreed_ranges(name, [pieces.get(name) for pieces in by_rank])
        piece = by_rank[0][name]
        if ranges is None:
            arrays[name] = StoredArray(piece.dtype, piece.shape, None)
            continue
        cut = cuts.setdefault(ranges, len(cuts))
        files = [f"part-{cut}-{first:012d}-{behind:012d}.safetensors" for first, behind in ranges]
        parts = [Part(f, lo, hi) for f, (lo, hi) in zip(files, ranges, strict=True) if hi > lo]
        arrays[name] = StoredArray(piece.dtype, piece.shape, tuple(parts))
        first, behind = ranges[mpi_rank]
        if behind > first:
            own.setdefault(files[mpi_rank], []).append(name)
    return Layout(arrays, {file: tuple(names) for file, names in own.items()})


def _agreed_ranges(name: str, pieces: list[Piece | None]) -> tuple[tuple[int, int], ...] | None:
    """Ranges of all ranks, or None for a plain array."""
    whole = pieces[0]
    ranges: list[tuple[int, int]] = []
    for mpi_rank, piece in enumerate(pieces):
        if piece is None or whole is None:
            raise ValueError(f"array {name!r} is on some MPI ranks only")
        if (piece.dtype, piece.shape, piece.range is None) != (whole.dtype, whole.shape, whole.range is None):
            raise ValueError(f"array {name!r} is {whole} on MPI rank 0 and {piece} on MPI rank {mpi_rank}")
        if piece.range is not None:
            edge = ranges[-1][1] if ranges else 0
            if piece.range[0] != edge:
                raise ValueError(
                    f"array {name!r}: MPI rank {mpi_rank} starts at {piece.range[0]} in place of {edge}"
                )
            ranges.append(piece.range)
    if whole is None or not ranges:
        return None
    if ranges[-1][1] != whole.shape[-1]:
        raise ValueError(f"array {name!r}: the ranges end at {ranges[-1][1]}, the array at {whole.shape[-1]}")
    return tuple(ranges)
