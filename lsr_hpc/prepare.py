"""Everything between a user's problem and the algorithm: checks, row split, distribution, memory plan."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lsr_hpc.comm import agree
from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.matrix_free import MatrixFreeJacobian
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.jacobian.probe import BlockProbe, probe_block
from lsr_hpc.plan import MemoryPlan, make_plan, rss_bytes
from lsr_hpc.problem import Problem, ResidualBlock, check_outputs, check_problem
from lsr_hpc.rows import LocalRows, RowSet, local_rows, partition, split_rows
from lsr_hpc.settings import RefineSettings

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["PreparedProblem", "choose_device", "prepare"]

log = logging.getLogger("lsr_hpc")


@dataclass(frozen=True)
class PreparedProblem:
    """A problem cut over the ranks, ready for the algorithm.

    Attributes:
        problem: What the user handed in.
        settings: Settings, the rank lowered where nothing larger is possible.
        model: Float64 copy of the network.
        fit_rows: Global set of fitted rows.
        held_rows: Global set of held-out rows; may be empty.
        fit: This rank's fitted rows.
        held: This rank's held-out rows.
        jacobian: J of the fitted rows.
        held_jacobian: J of the held-out rows.
        plan: Memory plan.
    """

    problem: Problem
    settings: RefineSettings
    model: FunctionalModel
    fit_rows: RowSet
    held_rows: RowSet
    fit: LocalRows
    held: LocalRows
    jacobian: DistributedJacobian
    held_jacobian: DistributedJacobian
    plan: MemoryPlan

    @property
    def n_rows(self) -> int:
        """Rows of the loss: fitted ones, and held-out ones unless they are the user's own validation data."""
        return self.fit_rows.n_rows + (0 if self.problem.validation else self.held_rows.n_rows)

    @property
    def comm(self) -> MPI.Comm:
        """Communicator of the refinement."""
        return self.jacobian.comm


def prepare(problem: Problem, comm: MPI.Comm, settings: RefineSettings) -> PreparedProblem:
    """Check the problem, split its rows and plan the work.

    Args:
        problem: The user's problem, equal on all ranks.
        comm: Communicator.
        settings: Settings.

    Returns:
        The prepared problem.

    Raises:
        JobError: If the input is wrong, on every rank.

    Collective: agreement on errors, and the largest memory baseline.
    """
    device = choose_device(comm, settings.compute.device)

    def checked() -> tuple[FunctionalModel, RowSet, RowSet, RefineSettings]:
        check_problem(problem)
        model = FunctionalModel(problem.model, device)
        if problem.evaluation is not None:
            check_outputs(problem.evaluation, model.field(), device)
        blocks, probes = _probed(problem.blocks, model)
        _warn_untouched(model, [p.touched for p in probes], comm.rank)
        fraction = 0.0 if problem.validation else settings.held_out.fraction
        fit, held = split_rows(blocks, probes, fraction, settings.held_out.seed)
        if problem.validation:
            held, _ = split_rows(*_probed(problem.validation, model), 0.0, 0)
        return model, fit, held, _fitting_oversampling(settings, fit, model)

    model, fit_rows, held_rows, settings = agree(comm, checked)

    def rows_of_largest(rows: RowSet) -> int:
        return max(
            sum((hi - lo) * rows.probes[k].rows_per_point for k, lo, hi in part)
            for part in partition(rows, comm.size)
        )

    baseline_bytes = max(comm.allgather(rss_bytes()))
    plan = agree(
        comm,
        lambda: make_plan(
            settings,
            n_rows_local=rows_of_largest(fit_rows),
            n_held_local=rows_of_largest(held_rows),
            n_parameters=model.layout.size,
            mpi_size=comm.size,
            numbers_per_point=max(p.numbers_per_point for p in (*fit_rows.probes, *held_rows.probes)),
            baseline_bytes=baseline_bytes,
        ),
    )
    fit, held = agree(
        comm,
        lambda: (
            local_rows(fit_rows, comm.rank, comm.size, model),
            local_rows(held_rows, comm.rank, comm.size, model),
        ),
    )

    def distributed(rows: LocalRows) -> DistributedJacobian:
        local = MatrixFreeJacobian(
            model, rows, columns_per_tile=plan.columns_per_tile, tile_bytes=plan.tile_bytes
        )
        return DistributedJacobian(comm, local, plan.columns_per_chunk)

    return PreparedProblem(
        problem, settings, model, fit_rows, held_rows, fit, held, distributed(fit), distributed(held), plan
    )


def choose_device(comm: MPI.Comm, wanted: str) -> torch.device:
    """Map this rank to a local GPU, or to the CPU.

    Args:
        comm: Communicator.
        wanted: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Returns:
        ``cuda:i`` with i = local rank modulo local GPUs, or ``cpu``.

    Raises:
        EnvironmentProblem: If ``"cuda"`` is asked for and a rank sees no GPU; on every rank.

    Collective: one split by node where a GPU may be used.
    """
    from mpi4py import MPI

    if wanted == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and min(comm.allgather(count)) == 0:
        raise EnvironmentProblem(
            'compute.device = "cuda", but torch sees no GPU on at least one rank: run `lsr-hpc doctor`',
            on_every_rank=True,
        )
    if wanted == "auto" and min(comm.allgather(count)) == 0:
        return torch.device("cpu")
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    local_rank = node.rank
    node.Free()
    device = torch.device("cuda", local_rank % count)
    torch.cuda.set_device(device)
    return device


def _probed(
    blocks: Sequence[ResidualBlock], model: FunctionalModel
) -> tuple[list[ResidualBlock], list[BlockProbe]]:
    """The blocks that count, probed; one of weight 0 is checked and left out."""
    probes = [probe_block(block, model) for block in blocks]
    kept = [(b, p) for b, p in zip(blocks, probes, strict=True) if b.weight > 0]
    return [b for b, _ in kept], [p for _, p in kept]


def _warn_untouched(model: FunctionalModel, touched: list[torch.Tensor], mpi_rank: int) -> None:
    """Name parameters that no probed residual depends on: usually a forgotten block or a dead layer."""
    pieces = model.layout.unflatten(torch.stack(touched).any(dim=0))
    idle = [name for name, mask in pieces.items() if not bool(mask.any())]
    if idle and mpi_rank == 0:
        shown = ", ".join(idle[:5]) + (f" and {len(idle) - 5} more" if len(idle) > 5 else "")
        log.warning("no residual depends on parameter %s; the refinement leaves it unchanged", shown)


def _fitting_oversampling(settings: RefineSettings, fit: RowSet, model: FunctionalModel) -> RefineSettings:
    """Refuse a rank that cannot be, and lower the oversampling to what rows and parameters leave.

    Args:
        settings: The job's settings.
        fit: Fitted rows.
        model: The network.

    Returns:
        The settings to use.

    Raises:
        JobError: If the rank exceeds rows or parameters.
    """
    subspace = settings.subspace
    limit = min(fit.n_rows, model.layout.size)
    if settings.solver.space == "subspace" and subspace.rank > limit:
        raise JobError(
            f"subspace.rank = {subspace.rank}, but the problem has {fit.n_rows} fitted rows and "
            f"{model.layout.size} parameters: use at most {limit}, better a tenth of the rows"
        )
    oversampling = max(0, min(subspace.oversampling, limit - subspace.rank))
    return replace(settings, subspace=replace(subspace, oversampling=oversampling))


def with_rank(settings: RefineSettings, rank: int | None) -> RefineSettings:
    """Settings with another largest rank.

    Args:
        settings: Settings.
        rank: New ``subspace.rank``, or None to keep it.

    Returns:
        The settings.
    """
    return settings if rank is None else replace(settings, subspace=replace(settings.subspace, rank=rank))
