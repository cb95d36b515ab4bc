"""``lsr-hpc stop``: asking a run to stop, through its files, its job and its controller."""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import suppress

from lsr_hpc.commands.overview import controller_of, job_of
from lsr_hpc.console import say
from lsr_hpc.errors import EnvironmentProblem, ExitCode
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.record import read_record
from lsr_hpc.slurm import Submission, ask_to_stop, cancel

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Ask a run to stop.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If there is no run.
        EnvironmentProblem: If the wish cannot be written down.
    """
    layout = RunLayout(options.run.absolute())
    queued = job_of(layout)
    if queued is not None and not layout.run.exists():
        if Submission(layout.root).has_rounds:
            ask_to_stop(queued)
            say(f"the run has not begun: asked job {queued.number} to leave")
        else:
            cancel(queued)
            say(f"cancelled job {queued.number}: one shot keeps nothing to go on from")
        return int(ExitCode.DONE)
    read_record(layout)
    try:
        layout.stop.touch(mode=0o600)
    except OSError as error:
        raise EnvironmentProblem(f"{layout.stop} cannot be written: {error.strerror}") from error
    if queued is not None:
        ask_to_stop(queued)
        say(f"left {layout.stop}, and asked job {queued.number} to stop")
        return int(ExitCode.DONE)
    holder = controller_of(layout)
    if holder is None:
        say(f"no controller is at work in {layout.root}; none will begin before `lsr-hpc resume`")
    elif holder.is_here:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(holder.pid, signal.SIGUSR1)
        say(f"asked the controller to stop ({holder})")
    else:
        say(f"left {layout.stop} for the controller ({holder}), which looks for it")
    return int(ExitCode.DONE)
