"""From a job and a place to a run carried to its end: the frame around the controller."""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.console import say
from lsr_hpc.errors import EnvironmentProblem, ExitCode, JobError, LsrError
from lsr_hpc.integrity import MANIFEST, seal_faults
from lsr_hpc.job import Job
from lsr_hpc.pipeline.attempt import StopRequest
from lsr_hpc.pipeline.claim import JobStart, claim
from lsr_hpc.pipeline.inherit import delete_half_written, end_abandoned, marker, reopened
from lsr_hpc.pipeline.journal import Journal
from lsr_hpc.pipeline.launch import Launcher, choose_launcher, step_environment
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.lock import SILENT_S, ControllerLock
from lsr_hpc.pipeline.progress import read_progress
from lsr_hpc.pipeline.record import RunRecord, check_same_job, read_record, write_record
from lsr_hpc.pipeline.run_log import logging_to
from lsr_hpc.pipeline.run_result import run_result, write_run_result
from lsr_hpc.pipeline.sealing import break_seal, seal_run
from lsr_hpc.publish import check_directory
from lsr_hpc.slurm import Node, other_nodes

if TYPE_CHECKING:
    from distributed import Client

    from lsr_hpc.pipeline.advance import Outcome
    from lsr_hpc.pipeline.controller import Controller

__all__ = ["describe_problem", "refuse_inside_mpi", "start"]

log = logging.getLogger("lsr_hpc.pipeline")

# Set for ranks of MPI programs and tasks of srun, and not in the shell of a batch job.
_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_STEP_NUM_TASKS")
# Looking at a problem may mean loading torch from a slow file system, and reading large data.
_DESCRIBE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What is to be run, where and how."""

    layout: RunLayout
    job: Job
    launcher: Launcher
    stop: StopRequest
    level: int


def start(job: Job, out: Path, *, resume: bool, level: int = logging.INFO) -> int:
    """Begin a run, or go on with the one that is there.

    Args:
        job: The resolved job.
        out: The run directory.
        resume: Whether an earlier wish to stop is forgotten.
        level: Level of what is printed; the log file gets at least what is at INFO.

    Returns:
        The exit code.

    Raises:
        JobError: If the place holds something else, a run of another job, or another controller.
        EnvironmentProblem: If a launcher is missing or the disk cannot be written.
    """
    refuse_inside_mpi("run")
    launcher = choose_launcher(
        job.run.launcher, job.run.ranks, job.run.instances_at_once, srun_mpi=job.run.srun_mpi
    )
    layout = RunLayout(check_directory(out, marker(RunLayout(out)), "--out"))
    stop = StopRequest(patience_s=job.run.stop_seconds)
    order = _Order(layout=layout, job=job, launcher=launcher, stop=stop, level=level)
    try:
        with stop.listening():
            return _go_on(order, resume) if layout.run.exists() else _begin(order)
    except OSError as error:
        raise EnvironmentProblem(
            f"the controller cannot go on: {error}; once that is mended, `lsr-hpc resume {layout.root}` does"
        ) from error


def refuse_inside_mpi(command: str) -> None:
    """Refuse to be a rank of an MPI program, or a task of srun.

    Args:
        command: The command, for the message.

    Raises:
        JobError: If this process is one.
    """
    if inside := [name for name in _RANK_VARIABLES if name in os.environ]:
        raise JobError(
            f"lsr-hpc {command} starts MPI itself and must not be started by mpiexec or srun ({inside[0]} is "
            "set): leave that out; in a batch job start it from the script"
        )


def _begin(order: _Order) -> int:
    from lsr_hpc.pipeline.cluster import start_cluster

    layout, job = order.layout, order.job
    # The problem is looked at before anything is written.
    with start_cluster(job.run, _other_nodes(order.launcher)) as client:
        described = describe_problem(client, job, order.stop)
        if described is None:
            say("stopped before anything was written")
            return int(ExitCode.RESUME)
        layout.root.mkdir(parents=True, exist_ok=True)
        layout.root.chmod(0o700)
        with _lock(layout) as lock:
            delete_half_written(layout)
            if layout.run.exists():
                record = read_record(layout)
                check_same_job(layout, record, job)
            else:
                record = _write_record(layout, job, *described)
            return _carry_out(client, order, record, lock)


def _other_nodes(launcher: Launcher) -> list[Node]:
    """Nodes besides this one that can have light workers."""
    if launcher.name != "srun":
        return []
    try:
        return other_nodes()
    except EnvironmentProblem as error:
        say(f"no light workers but on this node: {error}")
        return []


def _lock(layout: RunLayout) -> ControllerLock:
    # A job that SLURM has started again on other nodes finds the lock of its last start, which died with its
    # node and cannot be asked, or lives on unknown to SLURM.
    start = JobStart.of()
    if start is None or start.restarts == 0:
        return ControllerLock(layout.lock)
    claim(layout.claim, start)
    return ControllerLock(layout.lock, patience_s=1.2 * SILENT_S)


def _write_record(layout: RunLayout, job: Job, problem: str, instances: int) -> RunRecord:
    try:
        return write_record(layout, job, problem, instances)
    except EnvironmentProblem:
        # What is left would not be known for a run of ours at the next try.
        with suppress(OSError):
            layout.job.unlink(missing_ok=True)
            layout.lock.unlink()
            layout.root.rmdir()
        raise


def describe_problem(client: Client, job: Job, stop: StopRequest) -> tuple[str, int] | None:
    """Have a light worker build a job's problem.

    Args:
        client: The cluster.
        job: The job.
        stop: Looked at while waiting.

    Returns:
        Name of the problem or family, and number of instances; None if a stop came first.

    Raises:
        LsrError: If the problem cannot be built.
        EnvironmentProblem: If that takes too long.
    """
    from distributed import KilledWorker

    from lsr_hpc.pipeline.light import describe

    future = client.submit(describe, job, resources={"cpu": 1}, pure=False, retries=0)
    limit = time.monotonic() + _DESCRIBE_S
    while not future.done():
        if stop.is_set:
            return None
        if time.monotonic() > limit:
            raise EnvironmentProblem(
                f"no light worker has built the problem within {_DESCRIBE_S:g} s: try `lsr-hpc refine JOB "
                "--dry-run`"
            )
        time.sleep(0.02)
    try:
        described: tuple[str, int] = future.result()
    except KilledWorker as error:
        raise LsrError(
            "the process that built the problem has died: out of memory, or a crash inside a library; "
            "try `lsr-hpc refine JOB --dry-run`"
        ) from error
    return described


def _go_on(order: _Order, resume: bool) -> int:
    layout, job = order.layout, order.job
    record = read_record(layout)
    check_same_job(layout, record, job)
    with _lock(layout) as lock:
        if resume:
            layout.stop.unlink(missing_ok=True)
        elif layout.stop.exists():
            say(f"{layout.stop} asks for a stop: `lsr-hpc resume {layout.root}` goes on")
            return int(ExitCode.RESUME)
        if _is_done(layout):
            say(f"{layout.root} is finished already: nothing to do")
            return int(ExitCode.DONE)
        delete_half_written(layout)
        from lsr_hpc.pipeline.cluster import start_cluster

        with start_cluster(job.run, _other_nodes(order.launcher)) as client:
            return _carry_out(client, order, record, lock)


def _is_done(layout: RunLayout) -> bool:
    try:
        is_done = json.loads(layout.result.read_text(encoding="utf-8"))["status"] == "done"
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return is_done and not seal_faults(layout.root)


def _carry_out(client: Client, order: _Order, record: RunRecord, lock: ControllerLock) -> int:
    from lsr_hpc.pipeline.advance import Control
    from lsr_hpc.pipeline.controller import Controller, exit_code_of

    started = time.perf_counter()
    layout, settings = order.layout, order.job.run
    with logging_to(layout.log, order.level):
        is_sealed = (layout.root / MANIFEST).exists()
        damaged = [fault.file for fault in seal_faults(layout.root)] if is_sealed else []
        break_seal(layout)
        journal = Journal(layout.metrics)
        control = Control(
            layout=layout,
            record=record,
            settings=settings,
            launcher=order.launcher,
            environment=step_environment(settings.ranks, settings.instances_at_once),
            journal=journal,
            stop=order.stop,
        )
        if damaged:
            log.warning("damaged: %s; made again, but for events that are lost", ", ".join(damaged))
            journal.write("damaged", files=damaged)
        progress = [reopened(layout, read_progress(layout, i)) for i in range(record.instances)]
        end_abandoned(progress)
        rounds = sum(at.next_round for at in progress)
        log.info(
            "%s: %d instance(s) of %r on %d MPI ranks each, %d at once, by %s",
            *(order.job.name, record.instances, record.problem, settings.ranks, settings.instances_at_once),
            order.launcher.name,
        )
        log.info("run directory %s, %d rounds done before", layout.root, rounds)
        pages = (
            f"its pages at {client.dashboard_link}" if settings.dashboard else "run.dashboard shows its pages"
        )
        log.info("Dask at %s, %s", client.scheduler_info()["address"], pages)
        journal.write(
            "started",
            pid=os.getpid(),
            slurm_job=os.environ.get("SLURM_JOB_ID"),
            rounds_before=rounds,
            ranks=settings.ranks,
        )
        controller = Controller(client, control, lock)
        outcomes = controller.run(progress)
        code = exit_code_of(outcomes)
        is_at_end = all(outcome.state in {"finished", "failed"} for outcome in outcomes)
        if is_at_end:
            content = run_result(record, settings.ranks, outcomes, layout.timelines)
            code = _finish(controller, layout.result, content, outcomes)
        seconds = time.perf_counter() - started
        journal.write("ended", exit_code=int(code), wall_s=round(seconds, 3))
        journal.close()
        if is_at_end and code != ExitCode.RESUME:
            seal_run(layout)
        log.info("exit %d after %.1f s: %s", code, seconds, _MEANINGS[code].format(root=layout.root))
    return int(code)


_MEANINGS = {
    ExitCode.DONE: "done, see {root}/result.json",
    ExitCode.BAD_INPUT: "the input is wrong, see above",
    ExitCode.CRASH: "something failed, see above; `lsr-hpc resume {root}` tries it again",
    ExitCode.RESUME: "stopped in good order, `lsr-hpc resume {root}` goes on",
    ExitCode.ENVIRONMENT: "broken environment or full disk, see above; then `lsr-hpc resume {root}`",
}


def _finish(controller: Controller, path: Path, content: dict[str, Any], outcomes: list[Outcome]) -> ExitCode:
    """Call what is to be called at the end, and write the result of the run."""
    from lsr_hpc.pipeline.controller import exit_code_of

    code = exit_code_of(outcomes)
    content["status"] = "failed" if code else "done"
    try:
        returned = controller.end([outcome.result for outcome in outcomes])
        if returned is None:
            return ExitCode.RESUME
        content |= returned
        if "recommendation" in returned:
            log.info("%s", returned["recommendation"])
    except LsrError as error:
        content |= {"status": "failed", "message": str(error)}
        code = code or error.exit_code
    write_run_result(path, content)
    return code
