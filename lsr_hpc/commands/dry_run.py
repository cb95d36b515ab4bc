"""``lsr-hpc refine --dry-run``: the resolved job and what it will cost, without doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsr_hpc.console import say
from lsr_hpc.job import Job
from lsr_hpc.plan import columns_to_multiply
from lsr_hpc.prepare import prepare
from lsr_hpc.problem import ProblemFamily

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["print_plan"]


def print_plan(job: Job, family: ProblemFamily, comm: MPI.Comm) -> None:
    """Print job, rows, parameters, products of J and memory per rank.

    Args:
        job: The resolved job.
        family: Its instances.
        comm: Communicator.

    Collective: all ranks; the first one prints.
    """
    prepared = prepare(family.instance(0), comm, job.refine_settings)
    if comm.rank != 0:
        return
    s, plan = job.subspace, prepared.plan
    # The probe counts one product with its primal pass; in a block the primal is shared: 2/3 a column.
    points = zip(prepared.fit_rows.indices, prepared.fit_rows.probes, strict=True)
    flops_per_column = sum(len(indices) * probe.flops_per_point for indices, probe in points) * 2 / 3
    columns = columns_to_multiply(s) if job.solver.space == "subspace" else 2 * job.solver.max_iterations
    chunks = f"tiles of {plan.columns_per_tile} columns, {plan.columns_per_chunk} exchanged at once"
    say("# resolved job\n" + job.as_toml())
    say("# plan")
    for name, value in {
        "instances": family.n_instances,
        "MPI ranks": comm.size,
        "rows": f"{prepared.fit_rows.n_rows} fitted, {prepared.held_rows.n_rows} held out",
        "parameters": prepared.model.layout.size,
        "jacobian": f"{job.compute.jacobian} on {prepared.model.device}, {chunks}",
        "products": f"about {columns} columns of J or J^T each, {columns * flops_per_column:.1e} flops",
        "memory per rank": f"{_mib(plan.total_bytes)} planned of {_mib(plan.budget_bytes)}",
    }.items():
        say(f"{name:<16} {value}")
    for name, size in plan.items.items():
        say(f"  {name:<22} {_mib(size):>10}")


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
