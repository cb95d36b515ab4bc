"""``lsr-hpc refine --dry-run``: the resolved job and what it will cost, without doing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lsr_hpc.console import say
from lsr_hpc.jacobian.choice import dgemm_rate
from lsr_hpc.job import Job
from lsr_hpc.plan import workload
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
    plan, load, device = prepared.plan, workload(job.refine_settings), prepared.model.device
    chunks = f"tiles of {plan.columns_per_tile} columns, {plan.columns_per_chunk} exchanged at once"
    size = prepared.model.layout.size
    free = "" if prepared.free is None else f", {len(prepared.free)} of them free"
    say("# resolved job\n" + job.as_toml())
    say("# plan")
    _say_table({
        "instances": family.n_instances,
        "MPI ranks": comm.size,
        "rows": f"{prepared.fit_rows.n_rows} fitted, {prepared.held_rows.n_rows} held out",
        "parameters": f"{size}{free}",
        "jacobian": f"{prepared.representation.in_words} on {device}, {chunks}",
        "products": f"about {load.columns} columns of J and J^T in {load.calls} products",
        "memory per rank": f"{_mib(plan.total_bytes)} planned of {_mib(plan.budget_bytes)}",
    })
    _say_table({name: f"{_mib(item):>10}" for name, item in plan.items.items()}, indent="  ")
    rate = dgemm_rate(device)
    say(f"representations of J, one instance, at the {rate / 1e9:.0f} GF/s of dgemm measured now")
    costs = {}
    for c in prepared.candidates:
        cost = c.why_not or f"about {c.work / rate:.3g} s of products, holds {_mib(c.held_bytes)}"
        costs[c.in_words] = cost + (" <- chosen" if c == prepared.representation else "")
    _say_table(costs, indent="  ")


def _say_table(lines: Mapping[str, object], indent: str = "") -> None:
    """Names in a column as wide as the longest, and what belongs to them."""
    width = max(map(len, lines))
    for name, value in lines.items():
        say(f"{indent}{name:<{width}}  {value}")


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
