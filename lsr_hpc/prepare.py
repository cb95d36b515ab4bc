"""Everything between a user's problem and the algorithm: checks, row split, distribution, memory plan."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lsr_hpc.comm import agree, gather_panel
from lsr_hpc.device import choose_device
from lsr_hpc.errors import JobError
from lsr_hpc.exchange import Exchange, open_exchange
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.choice import Candidate, Structures, build, candidates, choose
from lsr_hpc.jacobian.examine import NotFactored, examine_blocks
from lsr_hpc.jacobian.explicit import why_not_explicit
from lsr_hpc.jacobian.operator import DistributedJacobian, JacobianOperator
from lsr_hpc.jacobian.probe import BlockProbe, probe_block
from lsr_hpc.jacobian.restricted import choose_parameters
from lsr_hpc.plan import MemoryPlan, make_plan, panel_bytes, rss_bytes, workload
from lsr_hpc.problem import Problem, ResidualBlock, check_outputs, check_problem
from lsr_hpc.rows import LocalRows, RowSet, local_rows, partition, split_rows
from lsr_hpc.settings import RefineSettings, parse_bytes

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["PreparedProblem", "prepare", "with_rank"]

log = logging.getLogger("lsr_hpc")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PreparedProblem:
    """A problem cut over the ranks, ready for the algorithm.

    Attributes:
        problem: What the user handed in.
        settings: Settings, oversampling (and rank, where asked for) lowered to what is possible.
        model: Float64 copy of the network.
        free: Coordinates of the free parameters, increasing; None for all.
        fit_rows: Global set of fitted rows.
        held_rows: Global set of held-out rows; may be empty.
        fit: This rank's fitted rows.
        held: This rank's held-out rows.
        jacobian: J of the fitted rows.
        held_jacobian: J of the held-out rows.
        representation: How J is represented.
        structures: Factored form of every block, or why there is none.
        candidates: All representations that were compared.
        plan: Memory plan.
    """

    problem: Problem
    settings: RefineSettings
    model: FunctionalModel
    free: torch.Tensor | None
    fit_rows: RowSet
    held_rows: RowSet
    fit: LocalRows
    held: LocalRows
    jacobian: DistributedJacobian
    held_jacobian: DistributedJacobian
    representation: Candidate
    structures: Structures
    candidates: list[Candidate]
    plan: MemoryPlan

    def at(self, theta: torch.Tensor) -> PreparedProblem:
        """The same rows, linearised at another state of the network; no communication.

        Args:
            theta: Parameters, shape (P,), equal on all ranks.

        Returns:
            The problem with that state, and J of it.
        """
        model = self.model.at(theta)

        def linearised(rows: LocalRows) -> JacobianOperator:
            return build(self.representation, model, rows, self.structures, self.plan, self.free)

        jacobian, held = _distributed(
            self.comm,
            self.jacobian.exchange,
            linearised(self.fit),
            linearised(self.held),
            self.plan,
            self.fit,
            self.held,
        )
        return replace(self, model=model, jacobian=jacobian, held_jacobian=held)

    @property
    def drawing_jacobian(self) -> DistributedJacobian:
        """J in the precision that draws directions."""
        dtype = {"float32": torch.float32, "float64": torch.float64}[self.settings.subspace.precision]
        return self.jacobian.in_precision(jv=dtype, jtu=dtype)

    @property
    def n_rows(self) -> int:
        """Rows of the loss: fitted ones, and held-out ones unless they are the user's own validation data."""
        return self.fit_rows.n_rows + (0 if self.problem.validation else self.held_rows.n_rows)

    def whole_step(self, free_step: Array) -> Array:
        """A step of all parameters from one of the free parameters, shape (P,)."""
        if self.free is None:
            return free_step
        step = np.zeros(self.model.layout.size)
        step[self.free.numpy()] = free_step
        return step

    def whole_correction(self, local: Array) -> Array:
        """A step of all parameters from this rank's slice of the free ones.

        Args:
            local: Shape (P_local,).

        Returns:
            Shape (P,), equal on all ranks.

        Collective: one gather of P numbers.
        """
        whole = gather_panel(self.comm, local[np.newaxis, :], self.jacobian.parameter_ranges)
        return self.whole_step(np.array(whole[0]))

    def free_step(self, whole_step: Array) -> Array:
        """The free parameters' part of a step of all parameters."""
        return whole_step if self.free is None else whole_step[self.free.numpy()]

    @property
    def comm(self) -> MPI.Comm:
        """Communicator of the refinement."""
        return self.jacobian.comm


def prepare(
    problem: Problem, comm: MPI.Comm, settings: RefineSettings, *, may_lower_rank: bool = False
) -> PreparedProblem:
    """Check the problem, split its rows and plan the work.

    Args:
        problem: The user's problem, equal on all ranks.
        comm: Communicator.
        settings: Settings.
        may_lower_rank: Whether a rank above rows or parameters is lowered to them, not refused.

    Returns:
        The prepared problem.

    Raises:
        JobError: If the input is wrong, on every rank.

    Collective: agreement on errors, and the largest memory baseline.
    """
    device = choose_device(comm, settings.compute.device)
    checked = agree(comm, lambda: _check(problem, settings, device, comm.rank, may_lower_rank))
    baseline_bytes = max(comm.allgather(rss_bytes()))
    choice, found, plan = agree(comm, lambda: _plan(checked, comm.size, baseline_bytes))
    model = checked.model
    fit, held = agree(
        comm,
        lambda: (
            local_rows(checked.fit, comm.rank, comm.size, model),
            local_rows(checked.held, comm.rank, comm.size, model),
        ),
    )

    def operator(rows: LocalRows) -> JacobianOperator:
        return build(choice, model, rows, checked.structures, plan, checked.free)

    local, local_held = agree(comm, lambda: (operator(fit), operator(held)))
    exchange = open_exchange(comm, device, settings.compute.exchange)
    jacobian, held_jacobian = _distributed(comm, exchange, local, local_held, plan, fit, held)
    return PreparedProblem(
        problem=problem,
        settings=checked.settings,
        model=model,
        free=checked.free,
        fit_rows=checked.fit,
        held_rows=checked.held,
        fit=fit,
        held=held,
        jacobian=jacobian,
        held_jacobian=held_jacobian,
        representation=choice,
        structures=checked.structures,
        candidates=found,
        plan=plan,
    )


def _distributed(
    comm: MPI.Comm,
    exchange: Exchange | None,
    jacobian: JacobianOperator,
    held_jacobian: JacobianOperator,
    plan: MemoryPlan,
    fit: LocalRows,
    held: LocalRows,
) -> tuple[DistributedJacobian, DistributedJacobian]:
    """J of fitted and of held-out rows over the ranks."""
    make = partial(
        DistributedJacobian,
        comm,
        columns_per_chunk=plan.columns_per_chunk,
        exchange=exchange,
        device=fit.device,
    )
    return (
        make(jacobian, n_rows_global=fit.n_rows_global),
        make(held_jacobian, n_rows_global=held.n_rows_global, is_held_out=True),
    )


@dataclass(frozen=True)
class _Checked:
    """A problem that holds, equal on every rank."""

    settings: RefineSettings
    model: FunctionalModel
    free: torch.Tensor | None
    fit: RowSet
    held: RowSet
    structures: Structures
    why_not_explicit: str

    @property
    def n_free(self) -> int:
        return self.model.layout.size if self.free is None else len(self.free)


def _check(
    problem: Problem, settings: RefineSettings, device: torch.device, mpi_rank: int, may_lower_rank: bool
) -> _Checked:
    check_problem(problem)
    model = FunctionalModel(problem.model, device)
    if problem.evaluation is not None:
        check_outputs(problem.evaluation, model.field(), device)
    blocks, probes = _probed(problem.blocks, model)
    _warn_untouched(model, [p.touched for p in probes], mpi_rank)
    fraction = 0.0 if problem.validation else settings.held_out.fraction
    fit, held = split_rows(blocks, probes, fraction, settings.held_out.seed)
    if problem.validation:
        held, _ = split_rows(*_probed(problem.validation, model), 0.0, 0)
    s = settings.subspace
    is_restricted = bool(s.parameters) or s.parameter_fraction < 1.0
    free = (
        choose_parameters(model.layout, s.parameters, s.parameter_fraction, s.seed) if is_restricted else None
    )
    both = {block.name: (block, probe) for rows in (fit, held) for block, probe in rows.members}
    why_not = ""
    if settings.compute.jacobian in {"auto", "explicit"}:
        why_not = next((w for b, p in both.values() if (w := why_not_explicit(b, p, model))), "")
    structures: Structures = NotFactored("not asked for")
    if settings.compute.jacobian in {"auto", "factored"}:
        structures = examine_blocks([b for b, _ in both.values()], [p for _, p in both.values()], model)
        if isinstance(structures, NotFactored) and mpi_rank == 0:
            log.warning("J is not factored: %s", structures.reason)
    n_free = model.layout.size if free is None else len(free)
    fitting = _fitting_sizes(settings, fit, n_free, may_lower_rank)
    return _Checked(fitting, model, free, fit, held, structures, why_not)


def _plan(
    checked: _Checked, mpi_size: int, baseline_bytes: int
) -> tuple[Candidate, list[Candidate], MemoryPlan]:
    """Choose J's representation and share the memory out."""
    settings = checked.settings

    def rows_of_largest(rows: RowSet) -> int:
        return max(
            sum((hi - lo) * rows.probes[k].rows_per_point for k, lo, hi in part)
            for part in partition(rows, mpi_size)
        )

    items = panel_bytes(
        settings,
        n_rows_local=rows_of_largest(checked.fit),
        n_held_local=rows_of_largest(checked.held),
        n_parameters=checked.n_free,
        n_rows=checked.fit.n_rows,
        mpi_size=mpi_size,
        baseline_bytes=baseline_bytes,
    )
    free_bytes = parse_bytes(settings.compute.memory_per_rank) - sum(items.values())
    found = candidates(
        checked.fit,
        checked.held,
        checked.structures,
        checked.why_not_explicit,
        checked.n_free,
        mpi_size,
        workload(settings),
    )
    choice = choose(found, settings.compute.jacobian, free_bytes)
    if choice.held_bytes:
        items[f"{choice.name} J"] = choice.held_bytes
    numbers_per_point = max(p.numbers_per_point for rows in (checked.fit, checked.held) for p in rows.probes)
    plan = make_plan(
        settings,
        items,
        n_rows_local=rows_of_largest(checked.fit),
        n_parameters=checked.model.layout.size,
        numbers_per_point=numbers_per_point,
    )
    return choice, found, plan


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


def _fitting_sizes(
    settings: RefineSettings, fit: RowSet, n_parameters: int, may_lower_rank: bool
) -> RefineSettings:
    """Refuse or lower a rank that cannot be, and lower the oversampling to what rows and parameters leave.

    Args:
        settings: The job's settings.
        fit: Fitted rows.
        n_parameters: Number of free parameters.
        may_lower_rank: Whether to lower it.

    Returns:
        The settings to use.

    Raises:
        JobError: If the rank exceeds rows or parameters and may not be lowered.
    """
    subspace = settings.subspace
    limit = min(fit.n_rows, n_parameters)
    if may_lower_rank:
        subspace = replace(subspace, rank=min(subspace.rank, limit))
    if settings.solver.space == "subspace" and subspace.rank > limit:
        raise JobError(
            f"subspace.rank = {subspace.rank}, but the problem has {fit.n_rows} fitted rows and "
            f"{n_parameters} parameters that may change: use at most {limit}, better a tenth of the rows"
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
