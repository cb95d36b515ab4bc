"""The body of a step of a campaign: the MPI ranks carry out a batch of members, one after another.

What members have in common is done once: the start of the ranks, their libraries, and the problem, which is
built anew only where its function or its arguments change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.campaign.layout import CampaignLayout, MemberFiles
from lsr_hpc.campaign.members import Member, command_of, member_job
from lsr_hpc.campaign.record import read_record, stored_job
from lsr_hpc.errors import EnvironmentProblem, StopRequested
from lsr_hpc.job import Job, ProblemSettings
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.lease import Lease, take
from lsr_hpc.pipeline.spec import StepResult, StepSpec, write_result
from lsr_hpc.pipeline.worker import in_words
from lsr_hpc.run_directory import FinishedRun, RunDirectory

if TYPE_CHECKING:
    from mpi4py import MPI

    from lsr_hpc.pipeline.heartbeat import StopFlag
    from lsr_hpc.problem import ProblemFamily
    from lsr_hpc.result import RefineResult
    from lsr_hpc.snapshot import Snapshot

__all__ = ["run_step"]

log = logging.getLogger(__name__)


def run_step(comm: MPI.Comm, spec: StepSpec, stop: StopFlag) -> StepResult:
    """Carry out the members of a batch.

    Args:
        comm: Communicator of ``spec.world_size`` ranks.
        spec: What to do.
        stop: Asked before every member and at every boundary inside one.

    Returns:
        The result, equal on all ranks; what became of each member is in its own files.

    Raises:
        EnvironmentProblem: With ``on_every_rank`` set, where the others would fail alike.
        Exception: An error on one rank alone, which ends all of them.

    Collective: all ranks.
    """
    import torch

    from lsr_hpc.comm import agree
    from lsr_hpc.petsc import start
    from lsr_hpc.threads import local_threads

    torch.set_num_threads(local_threads(comm))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("lsr_hpc").setLevel(logging.ERROR if comm.rank else logging.INFO)
    # A line per member tells enough.
    logging.getLogger("lsr_hpc.phases").setLevel(logging.WARNING)
    agree(comm, lambda: start([]))
    layout = CampaignLayout(Path(spec.run_directory))
    job, members = agree(comm, lambda: _read(layout, spec))
    batch = _Batch(comm, spec, job, stop)
    try:
        for member in members:
            batch.carry_out(member, layout.member(member.name))
    except StopRequested:
        return StepResult(status="yielded", round=spec.round)
    return StepResult(status="done", round=spec.round, is_finished=True)


def _read(layout: CampaignLayout, spec: StepSpec) -> tuple[Job, list[Member]]:
    by_name = {member.name: member for member in read_record(layout).members}
    return stored_job(layout), [by_name[name] for name in spec.tries]


class _Batch:
    """What is kept from one member to the next."""

    def __init__(self, comm: MPI.Comm, spec: StepSpec, job: Job, stop: StopFlag) -> None:
        self._comm = comm
        self._spec = spec
        self._job = job
        self._is_run = command_of(job) == "run"
        self._stop = stop
        self._problem: ProblemSettings | None = None
        self._family: ProblemFamily | None = None

    def carry_out(self, member: Member, files: MemberFiles) -> None:
        """Carry out one member and leave an answer; a failure that all ranks know of is one.

        Raises:
            StopRequested: On every rank, if the step is to stop before the end of the member.
            EnvironmentProblem: On every rank; it would meet the other members too.
        """
        from lsr_hpc.campaign.rounds import carry_through_rounds
        from lsr_hpc.comm import agree, on_first

        comm, attempt = self._comm, files.attempt(self._spec.tries[member.name])
        self._require_no_stop()
        lease: Lease | None = None
        if comm.rank == 0:
            attempt.root.mkdir(parents=True, mode=0o700, exist_ok=True)
            lease = take(attempt)
        if not comm.bcast(lease is not None):
            return
        started = time.perf_counter()
        if comm.rank == 0:
            log.info("%s", member)
        try:
            job = agree(comm, lambda: member_job(self._job, member.settings))
            family = agree(comm, lambda: self._family_of(job))
            if self._is_run:
                run = RunLayout(files.directory)
                metrics = carry_through_rounds(comm, run, job, family, lease, self._stop)
            else:
                metrics = self._refine(job, family, files.directory, lease)
        except (EnvironmentProblem, StopRequested):
            raise
        except Exception as error:
            if not getattr(error, "on_every_rank", False):
                raise
            code, cause = in_words(error)
            answer = StepResult(status="failed", round=0, message=cause, exit_code=int(code))
            if comm.rank == 0:
                log.error("%s failed: %s", member.name, cause)
        else:
            seconds = round(time.perf_counter() - started, 3)
            answer = StepResult(
                status="done", round=0, is_finished=True, metrics=metrics | {"wall_s": seconds}
            )
        on_first(comm, lambda: write_result(attempt.result, answer))

    def _refine(self, job: Job, family: ProblemFamily, out: Path, lease: Lease | None) -> dict[str, Any]:
        """What ``lsr-hpc refine`` does with a job."""
        from lsr_hpc.comm import agree
        from lsr_hpc.commands.refine import refine_family
        from lsr_hpc.threads import local_threads

        comm = self._comm
        directory = agree(comm, lambda: None if lease is None else _Leased(out, job, lease))
        try:
            results = refine_family(job, family, comm, out, local_threads(comm), directory, self._boundary)
        except BaseException:
            if directory is not None:
                directory.discard()
            raise
        return _metrics(results)

    def _family_of(self, job: Job) -> ProblemFamily:
        """The problem, built anew only where another one is asked for."""
        from lsr_hpc.build import build_problem, only_instance

        problem = replace(job.problem, instance=None)
        if self._family is None or problem != self._problem:
            self._family, self._problem = build_problem(replace(job, problem=problem)), problem
        instance = job.problem.instance
        return self._family if instance is None else only_instance(self._family, instance)

    def _boundary(self, snapshot: Callable[[], Snapshot]) -> None:
        """A refinement keeps no state: it is begun anew."""
        self._require_no_stop()

    def _require_no_stop(self) -> None:
        if self._comm.allreduce(int(self._stop.is_set())):
            raise StopRequested("the step was asked to stop", on_every_rank=True)


class _Leased(RunDirectory):
    """The directory of a member, which appears only while its try is still wanted."""

    def __init__(self, out: Path, job: Job, lease: Lease) -> None:
        super().__init__(out, job)
        self._lease = lease

    def finish(self, run: FinishedRun) -> None:
        """Put the directory in its place.

        Raises:
            StopRequested: If another controller has taken the member over.
        """
        if not self._lease.is_valid():
            raise StopRequested(f"{self._pending.final} is in other hands now")
        super().finish(run)

    def discard(self) -> None:
        """Remove what was written; a member is done again as a whole."""
        self._pending.discard()


def _metrics(results: list[RefineResult]) -> dict[str, Any]:
    from lsr_hpc.report_text import mean

    return {
        "error_before": mean([r.error_before for r in results]),
        "error": mean([r.error_after for r in results]),
    }
