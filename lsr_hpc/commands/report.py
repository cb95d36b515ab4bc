"""``lsr-hpc report``: a page with figures of finished runs; needs neither MPI nor PETSc."""

from __future__ import annotations

import argparse
from pathlib import Path

from lsr_hpc.console import say
from lsr_hpc.errors import EnvironmentProblem, ExitCode, JobError

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Read runs, write their report.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If a directory is no finished run, or damaged; or the place of the report cannot be used.
        EnvironmentProblem: If the report cannot be written.
    """
    from lsr_hpc.commands.campaign import is_campaign
    from lsr_hpc.publish import check_directory
    from lsr_hpc.report.campaign_data import load_campaign
    from lsr_hpc.report.data import load_run
    from lsr_hpc.report.write import PAGE, write_campaign_report, write_report

    first: Path = options.runs[0].resolve()
    if options.out is None and len(options.runs) > 1:
        raise JobError("a report of several runs needs a place of its own: name it with --out DIR")
    out: Path = options.out or first
    if options.out is not None:
        check_directory(out, PAGE, "--out")
    campaigns = [directory for directory in options.runs if is_campaign(directory)]
    if campaigns and len(options.runs) > 1:
        raise JobError(f"{campaigns[0]} is a campaign, which has a report by itself: leave the others out")
    campaign = load_campaign(options.runs[0]) if campaigns else None
    runs = [] if campaign else [load_run(directory) for directory in options.runs]
    try:
        sentences = write_campaign_report(out, campaign) if campaign else write_report(out, runs)
    except OSError as error:
        raise EnvironmentProblem(
            f"{out} cannot be written ({error.strerror}): name another place with --out"
        ) from error
    for sentence in sentences:
        say(sentence)
    say(f"report in {out / PAGE}")
    return int(ExitCode.DONE)
