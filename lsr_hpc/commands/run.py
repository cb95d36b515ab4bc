"""``lsr-hpc run`` and ``lsr-hpc resume``: rounds of refinement under a controller that starts MPI itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from lsr_hpc.console import log_level, say
from lsr_hpc.errors import ExitCode, JobError
from lsr_hpc.job import Job, load_job
from lsr_hpc.pipeline.launch import choose_launcher
from lsr_hpc.pipeline.layout import RunLayout

__all__ = ["resume", "run"]


def run(options: argparse.Namespace) -> int:
    """Begin a run, or go on with it where there is one of the same job.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If the job is wrong, or none of rounds.
    """
    from lsr_hpc.pipeline.start import start

    job = load_job(options.job, [*options.overrides, *_ranks(options)], options.preset)
    if job.transfer is not None:
        raise JobError(
            f"{options.job} has a section [transfer], which has no rounds: use `lsr-hpc refine`, or take the "
            "section out"
        )
    out: Path = options.out or Path("runs") / job.name
    if options.dry_run:
        return _print_plan(job, out)
    return start(job, out, resume=False, level=log_level(options))


def resume(options: argparse.Namespace) -> int:
    """Go on with a run, with the job it was begun with.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.
    """
    from lsr_hpc.pipeline.record import read_record, stored_job
    from lsr_hpc.pipeline.start import start

    if options.submit:
        from lsr_hpc.commands.submit import resubmit

        return resubmit(options)
    layout = RunLayout(options.run.absolute())
    job = stored_job(layout, read_record(layout), _ranks(options))
    return start(job, layout.root, resume=True, level=log_level(options))


def _ranks(options: argparse.Namespace) -> list[str]:
    return [] if options.ranks is None else [f"run.ranks={options.ranks}"]


def _print_plan(job: Job, out: Path) -> int:
    import shlex

    settings = job.run
    launcher = choose_launcher(
        settings.launcher, settings.ranks, settings.instances_at_once, srun_mpi=settings.srun_mpi
    )
    spec = RunLayout(out.absolute()).attempt(0, 0, 1).spec
    say("# resolved job\n" + job.as_toml())
    say("# plan")
    for name, value in {
        "run directory": out,
        "MPI ranks": f"{settings.ranks} for an instance, {settings.instances_at_once} instances at once",
        "light workers": settings.light_workers,
        "a step": shlex.join(launcher.command(settings.ranks, spec, "0-0-1")),
    }.items():
        say(f"{name:<16} {value}")
    return int(ExitCode.DONE)
