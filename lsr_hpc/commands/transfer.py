"""``lsr-hpc refine`` of a job with a section ``[transfer]``: modes of the source, then all conditions."""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.console import say
from lsr_hpc.errors import JobError
from lsr_hpc.job import Job
from lsr_hpc.traffic import traffic_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpi4py import MPI

    from lsr_hpc.phases import Phases
    from lsr_hpc.predictor import RefinedPredictor
    from lsr_hpc.prepare import PreparedProblem
    from lsr_hpc.problem import Problem, ProblemFamily
    from lsr_hpc.run_directory import RunDirectory
    from lsr_hpc.snapshot import SavedState
    from lsr_hpc.transfer import FailedTarget, SolvedTarget, TransferSpace

__all__ = ["check_conditions", "transfer_family"]


def check_conditions(job: Job, family: ProblemFamily) -> None:
    """Refuse a family without a condition to transfer to, or without the source.

    Args:
        job: A job with ``[transfer]``.
        family: Its instances.

    Raises:
        JobError: Naming the setting.
    """
    assert job.transfer is not None
    if family.n_instances < 2:
        raise JobError(
            f"[transfer] needs a family of several conditions, {family.name!r} has one: return a "
            "ProblemFamily with the source and its targets, or take the section out"
        )
    if job.transfer.source >= family.n_instances:
        raise JobError(
            f"transfer.source = {job.transfer.source}: {family.name!r} has instances 0 to "
            f"{family.n_instances - 1}, name one of those"
        )


def transfer_family(
    job: Job,
    family: ProblemFamily,
    comm: MPI.Comm,
    out: Path,
    threads: int,
    directory: RunDirectory | None,
    *,
    quiet: bool = False,
) -> None:
    """Compute or take over the response modes, solve every condition, and put the run directory in its place.

    Args:
        job: The job, with ``[transfer]``.
        family: Its conditions.
        comm: Communicator.
        out: Place of the run directory, where modes of an earlier run may be.
        threads: Threads of a rank.
        directory: The run directory, on the first rank; None on the others.
        quiet: Whether only the summary is printed.

    Raises:
        LsrError: If the source cannot be used, no condition can be solved, or a file not be written.

    Collective: all ranks; the first one writes and prints.
    """
    from lsr_hpc.comm import agree, on_first
    from lsr_hpc.events import listening
    from lsr_hpc.phase_record import PhaseRecorder, timeline_lines
    from lsr_hpc.phase_table import phase_costs
    from lsr_hpc.phases import Phases
    from lsr_hpc.plan import peak_rss_bytes
    from lsr_hpc.prepare import prepare
    from lsr_hpc.run_directory import theta0_digest
    from lsr_hpc.transfer import TransferSpace, target_groups
    from lsr_hpc.transfer.result import FinishedTransfer, result_json, summary_lines

    assert job.transfer is not None
    transfer = job.transfer
    if comm.rank == 0 and not quiet:
        say(f"{job.name}: transfer on {comm.size} MPI ranks x {threads} threads")
    phases, recorder = Phases(), PhaseRecorder(traffic_of(comm))
    with listening(recorder):
        source = agree(comm, lambda: family.instance(transfer.source))
        prepared = prepare(source, comm, job.refine_settings)
        saved, about = _modes(job, source, prepared, comm, out, directory, phases)
        with phases("load"):
            group, number, n_groups = target_groups(comm, transfer.ranks_per_target)
            # A group agrees on its errors inside; here all groups do.
            space = agree(comm, lambda: TransferSpace(group, prepared, saved))
        if comm.rank == 0 and not quiet:
            say(_headline(space, prepared, family, n_groups))
        with phases("targets"):
            targets = _solve(comm, space, number, n_groups, family, directory, quiet=quiet)
    ended = comm.gather(recorder.take(), root=0)
    peak = max(comm.allgather(peak_rss_bytes()))

    def finish() -> list[str]:
        if directory is None:
            return []
        directory.add_timeline(ended or [])
        lines = [line for rank, own in enumerate(ended or []) for line in timeline_lines(rank, own)]
        predictors = _predictors(source, targets)
        run = FinishedTransfer(
            job=job,
            name=family.name,
            targets=targets,
            modes=about,
            theta0_sha256=theta0_digest(predictors[0]),
            world_size=comm.size,
            threads=threads,
            seconds={**phases.seconds, "total": phases.total()},
            peak_rss_bytes=peak,
            phases=phase_costs(lines),
        )
        directory.publish(result_json(run), predictors)
        return summary_lines(run, out)

    for line in on_first(comm, finish):
        if comm.rank == 0:
            say(line)


def _modes(
    job: Job,
    source: Problem,
    prepared: PreparedProblem,
    comm: MPI.Comm,
    out: Path,
    directory: RunDirectory | None,
    phases: Phases,
) -> tuple[SavedState, dict[str, Any]]:
    """The modes, readable by any rank, and what ``result.json`` says of them."""
    from lsr_hpc.comm import on_first
    from lsr_hpc.transfer import compute_modes, digest_of_modes
    from lsr_hpc.transfer.stored_modes import find_modes, store_modes

    started = time.perf_counter()
    target = None if directory is None else directory.path
    digest = on_first(comm, lambda: digest_of_modes(source, job.refine_settings))
    found = find_modes(comm, out, digest, target)
    if found is None:
        made = compute_modes(prepared, phases)
        with phases("store"):
            saved = store_modes(comm, target, digest, made)
    else:
        saved = found
    seconds = time.perf_counter() - started
    if comm.rank == 0:
        logging.getLogger("lsr_hpc").info("response modes %s", "computed" if found is None else "taken over")
    about = {
        "digest": digest,
        "is_reused": found is not None,
        "rank": len(saved.values["singular_values"]),
        "channels": dict(saved.values["widths"]),
        "seconds": seconds,
    }
    return saved, about


def _solve(
    comm: MPI.Comm,
    space: TransferSpace,
    number: int,
    n_groups: int,
    family: ProblemFamily,
    directory: RunDirectory | None,
    *,
    quiet: bool,
) -> list[SolvedTarget | FailedTarget]:
    """Every condition, written and printed as it ends; the list is that of the first rank."""
    from lsr_hpc.comm import on_first
    from lsr_hpc.events import emit
    from lsr_hpc.report_text import instance_line
    from lsr_hpc.transfer import FailedTarget, SolvedTarget, solve_targets

    targets: list[SolvedTarget | FailedTarget] = []
    for wave in solve_targets(comm, space, number, n_groups, family):
        on_first(comm, partial(_record, directory, wave))
        targets += wave
        emit("instance", number=len(targets), of=family.n_instances)
        for target in wave if not quiet else []:
            if isinstance(target, FailedTarget):
                say(f"{target.instance:>4}  failed: {target.cause}")
            else:
                say(instance_line(target.instance, target.result))

    def require_one() -> None:
        failed = [t for t in targets if isinstance(t, FailedTarget)]
        if not any(isinstance(t, SolvedTarget) for t in targets):
            raise JobError(f"none of {len(failed)} conditions could be solved; the first: {failed[0].cause}")

    on_first(comm, require_one)
    return targets


def _record(directory: RunDirectory | None, wave: Sequence[SolvedTarget | FailedTarget]) -> None:
    from lsr_hpc.transfer import SolvedTarget

    for target in wave if directory is not None else []:
        assert directory is not None
        if isinstance(target, SolvedTarget):
            directory.add(target.instance, target.result)
        else:
            directory.add_failure(target.instance, target.cause)


def _headline(space: TransferSpace, prepared: PreparedProblem, family: ProblemFamily, n_groups: int) -> str:
    rows, params = prepared.n_rows, prepared.model.layout.size
    return (
        f"{family.n_instances} conditions by {n_groups} groups of ranks, each {rows} rows "
        f"({prepared.held_rows.n_rows} held out), {params} parameters; {space.in_words}\n"
        f"{'':>4}  {'rank':>9}   {'error':>8} -> {'refined':<8}  {'gain':>9}   "
        f"{'residual':>8} -> {'modes':<8} {'true':<8} {'seconds':>7}"
    )


def _predictors(source: Problem, targets: Sequence[SolvedTarget | FailedTarget]) -> list[RefinedPredictor]:
    """One predictor per condition; that of a failed one is NaN, so that nobody takes it for a solution."""
    import torch

    from lsr_hpc.params import ParameterLayout
    from lsr_hpc.predictor import RefinedPredictor
    from lsr_hpc.transfer import SolvedTarget

    nothing = torch.full((ParameterLayout.of(source.model).size,), float("nan"), dtype=torch.float64)
    return [
        RefinedPredictor(
            source.model,
            torch.from_numpy(t.result.delta) if isinstance(t, SolvedTarget) else nothing,
            source.model_spec,
        )
        for t in targets
    ]
