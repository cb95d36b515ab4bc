"""From a job with members to a campaign carried to its end: the frame around its controller."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lsr_hpc.campaign.batch import CampaignControl
from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.campaign.members import Member, campaign_of, member_job, refuse
from lsr_hpc.campaign.record import plan_members, register
from lsr_hpc.campaign.resources import Resources, share_out
from lsr_hpc.campaign.state import MemberState, is_intact, read_state
from lsr_hpc.campaign.table import collect
from lsr_hpc.console import say
from lsr_hpc.errors import EnvironmentProblem, ExitCode, JobError
from lsr_hpc.integrity import MANIFEST
from lsr_hpc.job import Job, ProblemSettings, check_instance
from lsr_hpc.pipeline.attempt import StopRequest
from lsr_hpc.pipeline.journal import Journal
from lsr_hpc.pipeline.launch import step_environment
from lsr_hpc.pipeline.run_log import logging_to
from lsr_hpc.pipeline.start import describe_problem, refuse_inside_mpi
from lsr_hpc.publish import check_directory

if TYPE_CHECKING:
    from distributed import Client

    from lsr_hpc.campaign.crew import Crew

__all__ = ["Order", "start"]

log = logging.getLogger("lsr_hpc.campaign")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be carried out.

    Attributes:
        job: The resolved job.
        out: Directory of the campaign.
        jobs: Jobs of SLURM that carry the members out; None starts their ranks from here.
        part: ``(i, n)`` for members whose number leaves the remainder i when divided by n; None for all.
        resume: Whether an earlier wish to stop is forgotten.
    """

    job: Job
    out: Path
    jobs: int | None = None
    part: tuple[int, int] | None = None
    resume: bool = False

    def mine(self, members: Sequence[Member]) -> list[Member]:
        """Those of some members that are this order's."""
        if self.part is None:
            return list(members)
        i, n = self.part
        return [member for member in members if member.number % n == i]

    def resources(self) -> Resources:
        """What members are given, here or by a job.

        Returns:
            Ranks, members at once, launcher.

        Raises:
            JobError: If a member asks for more than there is.
            EnvironmentProblem: If a program that is needed is not on PATH.
        """
        if self.jobs is None:
            return share_out(self.job)
        from lsr_hpc.campaign.jobs import job_resources

        return job_resources(self.job, self.jobs, self.out.absolute())


def start(order: Order) -> int:
    """Begin a campaign, or go on with the one that is there: what is missing or has failed.

    Args:
        order: What is to be carried out.

    Returns:
        The exit code.

    Raises:
        JobError: If a member cannot be, or the directory holds something else.
        EnvironmentProblem: If a launcher is missing or the disk cannot be written.
    """
    refuse_inside_mpi("campaign")
    job = order.job
    resources = order.resources()
    layout = CampaignLayout(order.out.absolute())
    marker = layout.record.name if layout.record.exists() else layout.lock.name
    layout = CampaignLayout(check_directory(order.out, marker, "--out"))
    record = plan_members(layout, job)
    if order.resume:
        layout.stop.unlink(missing_ok=True)
    elif layout.stop.exists():
        say(f"{layout.stop} asks for a stop: `lsr-hpc resume {layout.root}` goes on")
        return int(ExitCode.RESUME)
    todo = [m for m in order.mine(record.wanted_members) if read_state(layout.member(m.name)).end != "done"]
    stop = StopRequest(patience_s=resources.settings.stop_seconds)
    try:
        with stop.listening():
            return _carry_out(order, layout, resources, todo, stop) if todo else _nothing_to_do(order, layout)
    except OSError as error:
        raise EnvironmentProblem(
            f"the controller cannot go on: {error}; once that is mended, the same command does"
        ) from error


@contextmanager
def _crew(order: Order, client: Client, control: CampaignControl) -> Iterator[Crew]:
    """Who carries the members out."""
    from lsr_hpc.campaign.crew import LocalCrew

    if order.jobs is None:
        yield LocalCrew(client, control)
        return
    from lsr_hpc.campaign.jobs import open_jobs

    with open_jobs(order.job, control) as crew:
        yield crew


def _nothing_to_do(order: Order, layout: CampaignLayout) -> int:
    record = register(layout, order.job)
    part = "" if order.part is None else " of this part"
    say(f"{layout.root}: all {len(order.mine(record.wanted_members))} members{part} are done")
    if not is_intact(layout.root):
        collect(layout, record)
    return int(ExitCode.DONE)


def _carry_out(
    order: Order, layout: CampaignLayout, resources: Resources, todo: list[Member], stop: StopRequest
) -> int:
    from lsr_hpc.campaign.controller import CampaignController
    from lsr_hpc.pipeline.cluster import start_cluster

    job, settings = order.job, resources.settings
    campaign = campaign_of(job)
    started = time.perf_counter()
    with start_cluster(settings) as client:
        # Every problem is built once before anything is written.
        problems = _problems(job, todo)
        if not _check_problems(client, job, problems, stop):
            say("stopped before anything was written")
            return int(ExitCode.RESUME)
        layout.root.mkdir(parents=True, exist_ok=True)
        layout.root.chmod(0o700)
        record = register(layout, job)
        # Members of one problem one after another, so that steps build it once. Numbers count as registered.
        registered = {member.digest: member for member in record.wanted_members}
        todo = [registered[member.digest] for alike in problems.values() for member, _ in alike]
        (layout.root / MANIFEST).unlink(missing_ok=True)
        layout.members.mkdir(exist_ok=True)
        number, steps = layout.new_start()
        with logging_to(layout.root / "logs" / f"start-{number:04d}.log"):
            control = CampaignControl(
                layout=layout,
                start=(number, steps),
                digest=record.campaign_id,
                settings=settings,
                launcher=resources.launcher,
                environment=step_environment(settings.ranks, settings.instances_at_once),
                stop=stop,
                tries=campaign.tries,
            )
            log.info(
                "%s: %d of %d members to do on %d MPI ranks each, %d at once, by %s",
                *(job.name, len(todo), len(record.wanted), settings.ranks, settings.instances_at_once),
                resources.launcher.name if order.jobs is None else "jobs of SLURM",
            )
            log.info("directory %s", layout.root)
            journal = Journal(layout.events)
            journal.write(
                "started",
                start=number,
                pid=os.getpid(),
                slurm_job=os.environ.get("SLURM_JOB_ID"),
                part=order.part,
                members=len(todo),
            )
            with _crew(order, client, control) as crew:
                controller = CampaignController(crew, control, journal, todo, campaign.members_per_step)
                states = controller.run()
            code = _exit_code(todo, states, controller.exit_code)
            seconds = time.perf_counter() - started
            journal.write("ended", start=number, exit_code=int(code), wall_s=round(seconds, 3))
            journal.close()
            if controller.message and controller.exit_code:
                log.error("%s", controller.message)
            for line in collect(layout, record):
                log.info("%s", line)
            log.info("exit %d after %.1f s: %s", code, seconds, _MEANINGS[code].format(root=layout.root))
    return int(code)


_MEANINGS = {
    ExitCode.DONE: "done, see {root}/result.json",
    ExitCode.BAD_INPUT: "the input of members is wrong, see {root}/result.json; the others are done",
    ExitCode.CRASH: "members have failed, see {root}/result.json; the same command tries them again",
    ExitCode.RESUME: "stopped in good order, `lsr-hpc resume {root}` goes on",
    ExitCode.ENVIRONMENT: "broken environment or full disk, see above; then `lsr-hpc resume {root}`",
}


def _exit_code(todo: Sequence[Member], states: Mapping[str, MemberState], general: int) -> ExitCode:
    """The exit code: what would meet all members, a stop, the common code of failures, or 0."""
    codes = {state.exit_code for state in states.values() if state.end == "failed"}
    if general:
        return ExitCode(general)
    if len(states) < len(todo):
        return ExitCode.RESUME
    if not codes:
        return ExitCode.DONE
    is_alike = len(codes) == 1 and all(state.end == "failed" for state in states.values())
    return ExitCode(codes.pop()) if is_alike else ExitCode.CRASH


def _problems(job: Job, members: Sequence[Member]) -> dict[str, list[tuple[Member, ProblemSettings]]]:
    """Members by what their problem is built from, whatever the instance."""
    found: dict[str, list[tuple[Member, ProblemSettings]]] = {}
    for member in members:
        problem = member_job(job, member.settings).problem
        found.setdefault(repr(replace(problem, instance=None)), []).append((member, problem))
    return found


def _check_problems(
    client: Client,
    job: Job,
    problems: Mapping[str, Sequence[tuple[Member, ProblemSettings]]],
    stop: StopRequest,
) -> bool:
    """Build every problem once, on light workers; all that is wrong is said at once.

    Returns:
        Whether all were built; not if a stop came first.

    Raises:
        JobError: If one cannot be built, or has no such instance.
    """
    mistakes: dict[str, list[str]] = {}
    for alike in problems.values():
        problem = replace(alike[0][1], instance=None)
        try:
            built = describe_problem(client, replace(job, campaign=None, problem=problem), stop)
        except JobError as error:
            mistakes.setdefault(str(error), []).extend(str(member) for member, _ in alike)
            continue
        if built is None:
            return False
        for member, problem in alike:
            try:
                check_instance(problem.instance or 0, *built)
            except JobError as error:
                mistakes.setdefault(str(error), []).append(str(member))
    refuse(mistakes)
    return True
