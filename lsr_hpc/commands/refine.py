"""``lsr-hpc refine``: one-shot LSR of a job inside the MPI world it is started in.

Ranks agree on errors wherever they can; an error on one rank alone ends all ranks with one message that
names rank, phase and cause. The first rank prints, writes each finished instance to the hidden run directory,
and renames that at the end.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.build import build_problem
from lsr_hpc.commands.transfer import check_conditions, transfer_family
from lsr_hpc.console import log_level, say
from lsr_hpc.errors import EnvironmentProblem, ExitCode, JobError, LsrError
from lsr_hpc.job import Job, load_job
from lsr_hpc.threads import local_threads
from lsr_hpc.traffic import counted, traffic_of
from lsr_hpc.world import has_mpi, needs_petsc, this_process, whole_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpi4py import MPI
    from torch import Tensor

    from lsr_hpc.events import Event
    from lsr_hpc.predictor import RefinedPredictor
    from lsr_hpc.problem import Problem, ProblemFamily
    from lsr_hpc.result import RefineResult
    from lsr_hpc.run_directory import FinishedRun, RunDirectory
    from lsr_hpc.snapshot import Boundary

__all__ = ["refine_family", "run"]

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID", "MPI_LOCALRANKID")


def run(options: argparse.Namespace) -> int:
    """Refine the job's problem, or print its plan.

    Args:
        options: Parsed command line.

    Returns:
        Exit code, equal on all ranks.

    Collective: all ranks of COMM_WORLD.
    """
    comm = this_process()
    try:
        comm = counted(whole_world())
        return _run(options, comm)
    except (Exception, SystemExit) as error:
        return _end_all_ranks(comm, error, options.debug)


def _end_all_ranks(comm: MPI.Comm, error: BaseException, debug: bool) -> int:
    """Print one message and leave: together if all ranks know, by abort if the others may be waiting."""
    code = error.exit_code if isinstance(error, LsrError) else ExitCode.CRASH
    phase = getattr(error, "lsr_phase", None)
    cause = str(error) if isinstance(error, LsrError) else f"{type(error).__name__}: {error}"
    is_environment = isinstance(error, EnvironmentProblem) and comm.size == 1
    together = comm.size == 1 or getattr(error, "on_every_rank", False)
    if debug:
        traceback.print_exception(error)
    if together:
        first = (
            next((os.environ[v] for v in _RANK_VARIABLES if v in os.environ), "0") == "0"
            if is_environment
            else comm.rank == 0
        )
        if first:
            print(f"lsr-hpc: {cause}", file=sys.stderr, flush=True)
        return int(code)
    where = f"MPI rank {comm.rank} failed" + (f" in phase '{phase}'" if phase else "")
    print(f"lsr-hpc: {where}: {cause}; all ranks are ended", file=sys.stderr, flush=True)
    # A moment for the message to travel before the launcher tears the pipes down.
    time.sleep(0.2)
    comm.Abort(int(ExitCode.CRASH))
    return int(ExitCode.CRASH)


def _run(options: argparse.Namespace, comm: MPI.Comm) -> int:
    # Thread counts must be known before the numerical libraries load.
    threads = local_threads(comm)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))
    from lsr_hpc.comm import agree, on_first

    job = agree(comm, lambda: load_job(options.job, options.overrides, options.preset))
    out: Path = options.out or Path("runs") / job.name
    on_first(comm, lambda: _check_before_work(options, out))

    import torch

    torch.set_num_threads(threads)
    if not has_mpi():
        say("mpi4py is not installed: one process, directions in torch tensors")
    if options.petsc_options or needs_petsc(job.refine_settings, comm):
        agree(comm, lambda: _start_petsc(options.petsc_options))
    logger = logging.getLogger("lsr_hpc")
    logger.setLevel(logging.ERROR if comm.rank else log_level(options))
    logger.addFilter(_FirstTime())
    family = agree(comm, lambda: build_problem(job))
    if job.transfer is not None:
        agree(comm, lambda: check_conditions(job, family))
    if options.dry_run:
        from lsr_hpc.commands.dry_run import print_plan

        print_plan(job, family, comm)
        return int(ExitCode.DONE)
    from lsr_hpc.events import listening
    from lsr_hpc.progress import LiveProgress
    from lsr_hpc.run_directory import RunDirectory

    directory = agree(comm, lambda: RunDirectory(out, job) if comm.rank == 0 else None)
    try:
        with listening(LiveProgress()) if comm.rank == 0 and not options.quiet else nullcontext():
            if job.transfer is not None:
                transfer_family(job, family, comm, out, threads, directory, quiet=options.quiet)
            else:
                refine_family(
                    job,
                    family,
                    comm,
                    out,
                    threads,
                    directory,
                    quiet=options.quiet,
                    verbose=options.verbose,
                )
    except BaseException as error:
        if directory is not None:
            directory.abandon(error)
        raise
    if options.petsc_options:
        _warn_unused(options.petsc_options, comm)
    return int(ExitCode.DONE)


class _FirstTime(logging.Filter):
    """Lets a warning pass once, however many instances give cause for it."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        is_new = record.getMessage() not in self._seen
        self._seen.add(record.getMessage())
        return is_new


def _check_before_work(options: argparse.Namespace, out: Path) -> None:
    """Refuse what needs no library to be seen, and tell of earlier runs that did not end."""
    from lsr_hpc.petsc_options import check_option_words
    from lsr_hpc.publish import RUN_MARKER, check_directory, unfinished

    check_option_words(options.petsc_options)
    if options.dry_run:
        return
    check_directory(out, RUN_MARKER, "--out")
    for path in unfinished(out):
        say(f"note: {path} is of a run that was killed, or is still going on; remove it if it was killed")


def _start_petsc(words: list[str]) -> None:
    from lsr_hpc.petsc import start
    from lsr_hpc.petsc_options import check_options

    try:
        start(words)
    except LsrError:
        raise
    except Exception as error:
        raise JobError(
            f"PETSc does not start with the options {' '.join(words) or 'in PETSC_OPTIONS'}: {error}; "
            "correct them, or see `lsr-hpc doctor`"
        ) from error
    # PETSc would end the run when the reader of its output goes away.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    check_options(words)


def _warn_unused(words: list[str], comm: MPI.Comm) -> None:
    from lsr_hpc.petsc_options import unused_options

    unused = unused_options(words)
    if unused and comm.rank == 0:
        print(
            f"warning: no solver of this run has asked for {', '.join(unused)}: misspelt, or an option of "
            "another solver",
            file=sys.stderr,
            flush=True,
        )


def refine_family(
    job: Job,
    family: ProblemFamily,
    comm: MPI.Comm,
    out: Path,
    threads: int,
    directory: RunDirectory | None,
    boundary: Boundary | None = None,
    *,
    quiet: bool = False,
    verbose: bool = False,
) -> list[RefineResult]:
    """Refine one instance after the other, and put the run directory in its place.

    Args:
        job: The job.
        family: Its instances.
        comm: Communicator.
        out: Place of the run directory, for messages.
        threads: Threads of a rank.
        directory: The run directory, on the first rank; None on the others.
        boundary: Called where the work may be interrupted; None for nowhere.
        quiet: Whether nothing is printed.
        verbose: Whether phases are logged for every one of several instances.

    Returns:
        A result per instance, equal on all ranks.

    Raises:
        LsrError: If an instance cannot be refined or a file not be written.

    Collective: all ranks; the first one writes and prints.
    """
    import torch

    from lsr_hpc.comm import agree, on_first
    from lsr_hpc.events import emit, listening
    from lsr_hpc.oneshot import refine
    from lsr_hpc.phase_record import PhaseRecorder, timeline_lines
    from lsr_hpc.phase_table import phase_costs, phases_as_text
    from lsr_hpc.plan import peak_rss_bytes
    from lsr_hpc.predictor import RefinedPredictor
    from lsr_hpc.report_text import headline, instance_line, summary_lines
    from lsr_hpc.run_directory import FinishedRun
    from lsr_hpc.snapshot import no_boundary

    started = time.perf_counter()
    is_printing = comm.rank == 0 and not quiet
    if is_printing:
        say(f"{job.name}: refining on {comm.size} MPI ranks x {threads} threads")
    if family.n_instances > 1 and not verbose:
        # A line per instance tells enough.
        logging.getLogger("lsr_hpc.phases").setLevel(logging.WARNING)
    results: list[RefineResult] = []
    predictors: list[RefinedPredictor] = []
    timeline: list[dict[str, Any]] = []
    for i in range(family.n_instances):
        emit("instance", number=i + 1, of=family.n_instances)
        problem = agree(comm, partial(family.instance, i))
        on_first(comm, partial(_check_alike, problem, predictors))
        recorder = PhaseRecorder(traffic_of(comm))
        with listening(recorder):
            result = refine(problem, comm, settings=job.refine_settings, boundary=boundary or no_boundary)
        results.append(result)
        phases = comm.gather(recorder.take(), root=0)
        for mpi_rank, ended in enumerate(phases or []):
            timeline += timeline_lines(mpi_rank, ended)
        on_first(comm, partial(_record, directory, i, result, phases))
        if is_printing:
            if i == 0:
                say(headline(job, result, family.n_instances))
            say(instance_line(i, result))
        if comm.rank == 0:
            predictors.append(
                RefinedPredictor(problem.model, torch.from_numpy(result.delta), problem.model_spec)
            )
        on_first(comm, partial(_record_fields, directory, i, problem, predictors, family.n_instances))
    costs = phase_costs(timeline)
    run = FinishedRun(
        job=job,
        name=family.name,
        results=results,
        predictors=predictors,
        world_size=comm.size,
        threads=threads,
        wall_s=time.perf_counter() - started,
        peak_rss_bytes=max(comm.allgather(peak_rss_bytes())),
        phases=costs,
    )
    on_first(comm, partial(_finish, directory, run))
    if is_printing and verbose:
        for line in phases_as_text(costs):
            say(line)
    if comm.rank == 0:
        for line in summary_lines(results, out, run.wall_s, run.peak_rss_bytes):
            say(line)
    return results


def _record(
    directory: RunDirectory | None, i: int, result: RefineResult, phases: list[list[Event]] | None
) -> None:
    if directory is not None:
        directory.add(i, result)
        directory.add_timeline(phases or [])


def _record_fields(
    directory: RunDirectory | None,
    i: int,
    problem: Problem,
    predictors: list[RefinedPredictor],
    n_instances: int,
) -> None:
    from lsr_hpc.field_sample import sample_fields

    if directory is not None and problem.evaluation is not None:
        predictor = predictors[-1]
        fields: dict[str, Callable[..., Tensor]] = {
            "start": predictor.network,
            "refined": predictor.predict,
        }
        directory.add_fields(i, sample_fields(problem.evaluation, fields, n_instances))


def _finish(directory: RunDirectory | None, run: FinishedRun) -> None:
    if directory is not None:
        directory.finish(run)


def _check_alike(problem: Problem, predictors: list[RefinedPredictor]) -> None:
    """Refuse an instance that cannot be stored with those before it; on the rank that holds predictors."""
    from lsr_hpc.params import ParameterLayout

    if not predictors:
        return
    first = predictors[0]
    if ParameterLayout.of(problem.model) != first.layout or problem.model_spec != first.spec:
        raise JobError(
            f"{problem.name!r}: its network differs from that of instance 0 in parameters or model_spec; a "
            "family shares one architecture: make two jobs"
        )
