"""``lsr-hpc submit`` and ``lsr-hpc resume --submit``: rounds, or one shot, as a job of SLURM."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lsr_hpc.batch_script import render
from lsr_hpc.console import say
from lsr_hpc.errors import EnvironmentProblem, ExitCode, JobError
from lsr_hpc.job import load_job
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.record import check_same_job, read_record
from lsr_hpc.publish import RUN_MARKER, check_directory, publish_text
from lsr_hpc.sites import read_site
from lsr_hpc.slurm import Submission, refuse_queued, require_commands, submit_script

__all__ = ["resubmit", "submit"]


def submit(options: argparse.Namespace) -> int:
    """Write the batch script of a job and submit it.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If the place holds something else, or a job of the run is in the queue.
        EnvironmentProblem: If the files cannot be written, or SLURM refuses.
    """
    site = None if options.site is None else read_site(options.site)
    job = load_job(options.job, options.overrides, options.preset, site)
    out: Path = options.out or Path("runs") / job.name
    submission = Submission(out.absolute())
    script = render(job, submission)
    if options.dry_run:
        say(script.rstrip("\n"))
        return int(ExitCode.DONE)
    layout = RunLayout(out.absolute())
    # Of a path that cannot be, this says no.
    if job.iterate is None and os.path.exists(layout.run):
        raise JobError(
            f"--out {out} holds rounds, and the job has no section [iterate]: name another directory, or add "
            "that section (`--set iterate.rounds=10`)"
        )
    layout = RunLayout(check_directory(out, layout.run.name if job.iterate else RUN_MARKER, "--out"))
    if layout.run.exists():
        check_same_job(layout, read_record(layout), job)
    if layout.stop.exists():
        raise JobError(f"{layout.stop} asks for a stop: `lsr-hpc resume {layout.root} --submit` goes on")
    refuse_queued(submission)
    require_commands()
    try:
        submission.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, text in {submission.job: job.as_toml(), submission.script: script}.items():
            publish_text(path, text)
    except OSError as error:
        raise EnvironmentProblem(f"{submission.root} cannot be written: {error.strerror}") from error
    return _submit(submission)


def resubmit(options: argparse.Namespace) -> int:
    """Submit the script of a run once more, and forget an earlier wish to stop.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If the run was not submitted, or a job of it is in the queue.
        EnvironmentProblem: If SLURM refuses.
    """
    layout = RunLayout(options.run.absolute())
    submission = Submission(layout.root)
    if not submission.script.is_file():
        raise JobError(
            f"{submission.script} does not exist: the run was not begun by submit; go on without --submit"
        )
    if options.ranks is not None:
        raise JobError(
            "--ranks goes with the number of tasks of a job: change [slurm] and submit the job again"
        )
    refuse_queued(submission)
    layout.stop.unlink(missing_ok=True)
    return _submit(submission)


def _submit(submission: Submission) -> int:
    number = submit_script(submission)
    say(f"job {number}, run directory {submission.run}, log {str(submission.log).replace('%j', number)}")
    return int(ExitCode.DONE)
