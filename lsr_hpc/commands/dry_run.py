"""``lsr-hpc refine --dry-run``: the resolved job and what it will cost, without doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsr_hpc.job import Job
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
    s = job.subspace
    flops = sum(len(i) * p.flops_per_point for i, p in zip(prepared.fit_rows.indices, prepared.fit_rows.probes, strict=True))
    sweeps = {"svd": 2 * s.iterations * s.width if s.svd == "randomized" else 4 * s.rank, "randomized": 2 * s.width,
              "random": 0}[s.basis]
    columns = sweeps + s.rank if job.solver.space == "subspace" else 2 * job.solver.max_iterations
    plan = prepared.plan
    print("# resolved job\n" + job.as_toml())
    print("# plan")
    print(f"instances        {family.n_instances}")
    print(f"MPI ranks        {comm.size}")
    print(f"rows             {prepared.fit_rows.n_rows} fitted, {prepared.held_rows.n_rows} held out")
    print(f"parameters       {prepared.model.layout.size}")
    print(f"jacobian         {job.compute.jacobian} on {prepared.model.device}, tiles of {plan.columns_per_tile} columns, "
          f"{plan.columns_per_chunk} columns exchanged at once")
    print(f"products         about {columns} columns of J or J^T an instance, {columns * flops:.1e} flops by matrix-free jvp")
    print(f"memory per rank  {plan.total_bytes / 2**20:.0f} MiB planned of {plan.budget_bytes / 2**20:.0f} MiB")
    for name, size in plan.items.items():
        print(f"  {name:<22} {size / 2**20:9.1f} MiB")
