"""Which representation of J to use: predicted work and memory of each, and the cheapest that fits.

Work is counted in flops and divided by the share of the dgemm rate that each representation reaches, so that
the choice follows from counts alone and is the same in every run; only the seconds printed need a clock.
"""

# Legend: C residual components per point, P' free parameters; counts are of one MPI rank.

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.examine import NotFactored
from lsr_hpc.jacobian.explicit import ExplicitJacobian
from lsr_hpc.jacobian.factored import BlockStructure, FactoredJacobian
from lsr_hpc.jacobian.matrix_free import MatrixFreeJacobian
from lsr_hpc.jacobian.operator import JacobianOperator
from lsr_hpc.jacobian.probe import BlockProbe
from lsr_hpc.jacobian.restricted import RestrictedJacobian
from lsr_hpc.jacobian.retreat import RetreatingJacobian, Rung
from lsr_hpc.plan import MemoryPlan, Workload
from lsr_hpc.problem import ResidualBlock
from lsr_hpc.rows import LocalRows, RowSet, partition

__all__ = ["Candidate", "Structures", "build", "candidates", "choose", "dgemm_rate"]

Structures = Mapping[str, BlockStructure] | NotFactored

# Share of the dgemm rate for wide blocks, and the width that reaches half of it; measured on CPU ranks by
# `python -m benchmarks products`. A matrix is read once per block, so that narrow blocks wait for memory.
_AUTOMATIC = 0.12
_FACTORED, _FACTORED_HALF = 0.62, 3
_EXPLICIT, _EXPLICIT_HALF = 0.8, 32
# Part of the free memory that a representation may hold; the rest is for exchange and temporaries.
_LARGEST_SHARE = 0.6
# By how much tiles shrink where memory runs out all the same.
_SMALLER = 8


@dataclass(frozen=True)
class Candidate:
    """A representation and its predicted cost on one rank.

    Attributes:
        name: ``"matrix_free"``, ``"factored"`` or ``"explicit"``.
        work: Flops that a dgemm would do in the same time.
        held_bytes: Memory that it holds beside the panels.
        hold: Whether factors are kept between products.
        why_not: Why it cannot be used, or empty.
    """

    name: str
    work: float
    held_bytes: int
    hold: bool = True
    why_not: str = ""

    @property
    def in_words(self) -> str:
        """Name and whether its factors are kept."""
        return self.name if self.hold else f"{self.name}, recorded for every product"


def candidates(
    fit: RowSet,
    held: RowSet,
    structures: Structures,
    why_not_explicit: str,
    n_parameters: int,
    mpi_size: int,
    load: Workload,
) -> list[Candidate]:
    """Predict every representation.

    Args:
        fit: Fitted rows.
        held: Held-out rows.
        structures: Factored form of every block, or why there is none.
        why_not_explicit: Why J cannot be had as a matrix, or empty.
        n_parameters: P'.
        mpi_size: Number of ranks.
        load: What is to be multiplied.

    Returns:
        One candidate per representation, two where factors may be kept or not.
    """

    def sums(quantity: Callable[[ResidualBlock, BlockProbe], float]) -> tuple[float, float]:
        """Of fitted and of held-out rows, on the rank that has most; ranks balance flops, not rows."""
        fitted, held_out = (
            max(
                sum((hi - lo) * quantity(rows.blocks[k], rows.probes[k]) for k, lo, hi in part)
                for part in partition(rows, mpi_size)
            )
            for rows in (fit, held)
        )
        return fitted, held_out

    # In float32 a product takes half the time, and what is held has a copy of half the size.
    columns = load.columns - load.single_columns / 2
    copies = 1.5 if load.single_columns else 1.0

    def columns_of(flops: tuple[float, float]) -> float:
        return flops[0] * columns + flops[1] * load.held_columns

    width = load.columns / load.calls
    # The probe counts a product of one column with its primal pass: three forward passes.
    forward = sums(lambda block, probe: probe.flops_per_point / 3)
    passes = sums(lambda block, probe: (1 + 2 * probe.rows_per_point) * probe.flops_per_point / 3)
    n_rows = sums(lambda block, probe: probe.rows_per_point)
    set_up = sum(passes) / _AUTOMATIC
    found = [
        Candidate("matrix_free", 2 * columns_of(forward) / _AUTOMATIC, 0),
        Candidate(
            "explicit",
            set_up + 2 * n_parameters * columns_of(n_rows) * (1 + _EXPLICIT_HALF / width) / _EXPLICIT,
            int(8 * copies * n_parameters * sum(n_rows)),
            why_not=why_not_explicit,
        ),
    ]
    if isinstance(structures, NotFactored):
        return [*found, Candidate("factored", 0.0, 0, why_not=structures.reason)]
    products = columns_of(sums(lambda block, _: structures[block.name].flops_per_point))
    products *= (1 + _FACTORED_HALF / width) / _FACTORED
    numbers = sum(sums(lambda block, _: structures[block.name].numbers_per_point))
    return [
        *found,
        Candidate("factored", set_up + products, int(8 * copies * numbers)),
        Candidate("factored", load.calls * set_up + products, 0, hold=False),
    ]


def choose(found: Sequence[Candidate], wanted: str, free_bytes: int) -> Candidate:
    """The cheapest representation that can be used and fits.

    Args:
        found: The candidates.
        wanted: One of their names, or ``"auto"``.
        free_bytes: Memory left beside the panels.

    Returns:
        The choice; ``"matrix_free"`` where the one wanted has no factored form.

    Raises:
        JobError: If an explicit Jacobian is wanted and does not fit.
    """
    room = max(0.0, _LARGEST_SHARE * free_bytes)
    usable = [c for c in found if not c.why_not and c.held_bytes <= room]
    asked = [c for c in usable if wanted in {"auto", c.name}]
    if asked:
        return min(asked, key=lambda c: c.work)
    if wanted == "explicit":
        explicit = next(c for c in found if c.name == wanted)
        if explicit.why_not:
            raise JobError(f'compute.jacobian = "explicit" is not possible: {explicit.why_not}; use "auto"')
        needed = explicit.held_bytes
        raise JobError(
            f'compute.jacobian = "explicit" holds {needed / 2**20:.0f} MiB per rank, and '
            f"compute.memory_per_rank leaves {room / 2**20:.0f} MiB for it: raise it, start more "
            'ranks, or use "auto"'
        )
    return next(c for c in found if c.name == "matrix_free")


def build(
    choice: Candidate,
    model: FunctionalModel,
    rows: LocalRows,
    structures: Structures,
    plan: MemoryPlan,
    free: Tensor | None,
) -> RetreatingJacobian:
    """Make the representation for this rank's rows, with those that hold less behind it.

    Args:
        choice: What was chosen.
        model: The network.
        rows: This rank's rows.
        structures: Factored form of every block, or why there is none.
        plan: Sizes of tiles.
        free: Increasing coordinates of the free parameters; None for all.

    Returns:
        The operator, its columns those of the free parameters.
    """
    small = max(1, plan.tile_bytes // _SMALLER)

    def restricted(operator: JacobianOperator) -> JacobianOperator:
        return operator if free is None else RestrictedJacobian(operator, free)

    def explicit(tile_bytes: int) -> JacobianOperator:
        return ExplicitJacobian(model, rows, tile_bytes=tile_bytes, free=free)

    def factored(tile_bytes: int, *, hold: bool) -> JacobianOperator:
        assert not isinstance(structures, NotFactored)
        return restricted(FactoredJacobian(model, rows, structures, tile_bytes=tile_bytes, hold=hold))

    def matrix_free(tile_bytes: int, columns: int) -> JacobianOperator:
        return restricted(MatrixFreeJacobian(model, rows, columns_per_tile=columns, tile_bytes=tile_bytes))

    rungs: list[Rung] = []
    if choice.name == "explicit":
        rungs += [
            Rung("explicit", partial(explicit, plan.tile_bytes)),
            Rung("explicit, made in smaller tiles", partial(explicit, small)),
        ]
    if choice.name != "matrix_free" and not isinstance(structures, NotFactored):
        if choice.hold:
            rungs.append(Rung("factored", partial(factored, plan.tile_bytes, hold=True)))
        rungs += [
            Rung("factored, recorded for every product", partial(factored, plan.tile_bytes, hold=False)),
            Rung("factored, in smaller tiles", partial(factored, small, hold=False)),
        ]
    rungs += [
        Rung("matrix_free", partial(matrix_free, plan.tile_bytes, plan.columns_per_tile)),
        Rung("matrix_free, in smaller tiles", partial(matrix_free, small, plan.columns_per_tile)),
        Rung("matrix_free, column by column", partial(matrix_free, small, 1)),
    ]
    return RetreatingJacobian(rungs)


def dgemm_rate(device: torch.device) -> float:
    """Float64 matrix-product rate of this process, by the clock.

    Args:
        device: Where to multiply.

    Returns:
        Flops per second.
    """
    n = 1024 if device.type == "cpu" else 8192
    a = torch.ones(n, n, dtype=torch.float64, device=device)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        # Reading one number waits for the device.
        float((a @ a)[0, 0])
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)
