"""What a refinement will cost in memory, decided before it starts and equal on all ranks.

``memory_per_rank`` bounds the resident memory of each process, libraries included. The panels of the method
are fixed by rows, parameters and rank; what remains is shared between the replicated exchange buffers
(column chunk) and the temporaries of differentiation (tile).
"""

# Legend: N_local rows and P_local parameters of the largest rank, k rank, b block width.

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from dataclasses import dataclass

from lsr_hpc.errors import JobError
from lsr_hpc.settings import RefineSettings, SubspaceSettings, parse_bytes

__all__ = ["MemoryPlan", "Workload", "make_plan", "panel_bytes", "peak_rss_bytes", "rss_bytes", "workload"]

_MIB = 2**20
# Measured on CPU ranks: wider or larger tiles gain nothing, narrower ones lose up to a factor of two.
_LARGEST_TILE = 64 * _MIB
_COLUMNS_PER_TILE = 64
_COLUMNS_PER_CHUNK = 128
# Replicated (b, P) buffers alive at once in one product: partial sums, their packed copy, tile gradients.
_EXCHANGE_COPIES = 4
# (b, N_local) buffers: the product, and its copy beside the residual's components.
_ROW_COPIES = 2
# Copies of J V: itself and TSQR's stack; KSP adds its matrix, the scaled rows, and fitted over held-out rows.
_IMAGE_COPIES, _IMAGE_COPIES_KSP = 2, 5
_GRAM_COPIES = 4


def rss_bytes() -> int:
    """Resident memory of this process now, in bytes, once freed memory has gone back to the system."""
    with suppress(AttributeError, OSError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _work_columns(s: SubspaceSettings) -> tuple[int, int]:
    """Columns over the parameters and over the rows that live beside V while it is made."""
    sketch = s.rank + s.oversampling
    return {
        # A block and its predecessor.
        "svd": (2 * sketch, sketch),
        "randomized": (2 * sketch, sketch),
        "random": (s.rank, 0),
        "dual": (s.rank, s.rank),
        # The space as SLEPc holds it, of which V is a copy; and the directions that it starts from.
        "krylov": (s.rank, s.block_width),
        "svd+krylov": (s.rank + sketch, sketch),
    }[s.basis]


@dataclass(frozen=True)
class Workload:
    """Columns that J is to be applied to; an estimate for solvers that iterate until they converge.

    Attributes:
        columns: With the fitted rows, J and J^T together.
        held_columns: With the held-out rows.
        calls: In how many products.
        single_columns: Those of ``columns`` that are multiplied in float32.
    """

    columns: int
    held_columns: int
    calls: int
    single_columns: int = 0


def workload(settings: RefineSettings) -> Workload:
    """What basis and reduced matrix J V, or an iterative solver, will ask for.

    Args:
        settings: The job's settings.

    Returns:
        The workload; a basis that grows adaptively may need less.
    """
    s = settings.subspace
    if settings.solver.space == "full":
        iterations = settings.solver.max_iterations
        return Workload(2 * iterations, 1, 2 * iterations)

    def singular_vectors(rank: int) -> int:
        return 2 * s.iterations * (rank + s.oversampling) if s.svd == "randomized" else 4 * rank

    second_half = s.rank - s.rank // 2

    def drawn() -> int:
        """Columns that only draw directions."""
        return {
            "svd": singular_vectors(s.rank),
            "randomized": 2 * (s.rank + s.oversampling),
            "random": 0,
            "dual": 0,
            "krylov": s.rank,
            "svd+krylov": singular_vectors(s.rank // 2) + second_half,
        }[s.basis]

    columns = {
        "svd": singular_vectors(s.rank) + s.rank,
        "randomized": 2 * (s.rank + s.oversampling) + s.rank,
        "random": s.rank,
        # Besides J J^T, which the factored form has without products.
        "dual": 2 * s.rank,
        # J V is what the space grows from.
        "krylov": 2 * s.rank,
        "svd+krylov": singular_vectors(s.rank // 2) + s.rank // 2 + 2 * second_half,
    }[s.basis]
    width = s.block_width if "krylov" in s.basis else _COLUMNS_PER_CHUNK
    return Workload(columns, s.rank, -(-columns // width), drawn() if s.precision == "float32" else 0)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per rank by use, and the chunk sizes that keep to them.

    Attributes:
        budget_bytes: ``memory_per_rank``.
        items: Planned bytes by use; their sum is at most the budget.
        columns_per_chunk: Vectors exchanged between ranks at once.
        columns_per_tile: Vectors differentiated at once.
        tile_bytes: Upper bound for the temporaries of one tile.
    """

    budget_bytes: int
    items: dict[str, int]
    columns_per_chunk: int
    columns_per_tile: int
    tile_bytes: int

    @property
    def total_bytes(self) -> int:
        """Planned peak."""
        return sum(self.items.values())


def panel_bytes(
    settings: RefineSettings,
    *,
    n_rows_local: int,
    n_held_local: int,
    n_parameters: int,
    n_rows: int,
    mpi_size: int,
    baseline_bytes: int,
) -> dict[str, int]:
    """What the method holds whatever J's representation.

    Args:
        settings: The job's settings.
        n_rows_local: Largest number of fitted rows on a rank.
        n_held_local: Largest number of held-out rows on a rank.
        n_parameters: Number of free parameters.
        n_rows: Number of fitted rows over all ranks.
        mpi_size: Number of ranks.
        baseline_bytes: Largest resident memory of a rank before anything is allocated.

    Returns:
        Bytes per rank by use.
    """
    k = settings.subspace.rank
    p_local = -(-n_parameters // mpi_size)
    # Baselines differ by a few pages from run to run; rounding keeps the chunk sizes the same.
    items = {"libraries and data": -(-baseline_bytes // (64 * _MIB)) * 64 * _MIB}
    if settings.solver.space == "subspace":
        items["basis V"] = 8 * p_local * k
        parameter_columns, row_columns = _work_columns(settings.subspace)
        items["basis work space"] = 8 * (p_local * parameter_columns + n_rows_local * row_columns)
        copies = _IMAGE_COPIES if settings.solver.type == "tsqr" else _IMAGE_COPIES_KSP
        # The re-solve holds the derivative of the true residual beside J V.
        copies += settings.solver.resolve is not False
        if settings.subspace.basis == "dual":
            # On the first rank: gathered, symmetrised, and LAPACK's own.
            items["J J^T"] = 8 * _GRAM_COPIES * n_rows**2
        items["J V"] = 8 * copies * (n_rows_local + n_held_local) * k
        items["reduced factor"] = 8 * 8 * (k + 1) ** 2
    return items


def make_plan(
    settings: RefineSettings,
    items: dict[str, int],
    *,
    n_rows_local: int,
    n_parameters: int,
    numbers_per_point: int,
) -> MemoryPlan:
    """Share out what the panels leave.

    Args:
        settings: The job's settings.
        items: Bytes that are spoken for, by use.
        n_rows_local: Largest number of fitted rows on a rank.
        n_parameters: P.
        numbers_per_point: Largest count of temporaries of one point and one column.

    Returns:
        The plan.

    Raises:
        JobError: If nothing is left, with what would fit.
    """
    budget = parse_bytes(settings.compute.memory_per_rank)
    free = budget - sum(items.values())
    exchange_per_column = 8 * (_EXCHANGE_COPIES * n_parameters + _ROW_COPIES * n_rows_local)
    tile_per_column = 8 * numbers_per_point
    if free < exchange_per_column + tile_per_column:
        needed = sum(items.values()) + exchange_per_column + tile_per_column
        listed = ", ".join(f"{name} {size / _MIB:.0f} MiB" for name, size in items.items())
        raise JobError(
            f"compute.memory_per_rank = {settings.compute.memory_per_rank!r} is too small: at least "
            f"{needed / _MIB:.0f} MiB are needed ({listed}); raise it, start more ranks, or lower "
            f"subspace.rank = {settings.subspace.rank}"
        )
    # Where the budget is ample the sizes are fixed numbers, so that results do not depend on it.
    columns_per_chunk = min(_COLUMNS_PER_CHUNK, max(1, free // 2 // exchange_per_column))
    columns_per_tile = min(_COLUMNS_PER_TILE, columns_per_chunk, max(1, free // 4 // tile_per_column))
    tile_bytes = int(min(_LARGEST_TILE, max(free // 4, columns_per_tile * tile_per_column)))
    items = {
        **items,
        "exchange buffers": columns_per_chunk * exchange_per_column,
        "differentiation tile": tile_bytes,
    }
    return MemoryPlan(budget, items, columns_per_chunk, columns_per_tile, tile_bytes)
