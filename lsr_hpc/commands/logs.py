"""``lsr-hpc logs``: what a run prints, from wherever it is written."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from lsr_hpc.commands.overview import controller_of, job_of
from lsr_hpc.console import say
from lsr_hpc.errors import ExitCode, JobError
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.slurm import Submission

__all__ = ["run"]

_LOOK_EVERY_S = 0.5
# The queue is asked seldom: it serves the whole cluster.
_ASK_EVERY_S = 10.0


def run(options: argparse.Namespace) -> int:
    """Print the log of a run, and go on as it grows.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If there is no log, and none to wait for.
    """
    layout = RunLayout(options.run.absolute())
    shown = _Growing(partial(_newest_output if options.ranks else _newest_log, layout))
    found = shown.say_news()
    if not options.follow:
        if not found:
            raise JobError(f"{layout.root} has no log yet: is it a run directory? `-f` waits for one")
        return int(ExitCode.DONE)
    is_going = _is_going(layout)
    if not (found or is_going):
        raise JobError(
            f"{layout.root} has no log, and no job or controller that would write one: give the run directory"
        )
    with suppress(KeyboardInterrupt):
        while is_going:
            asked = time.monotonic()
            is_going = _is_going(layout)
            while is_going and time.monotonic() < asked + _ASK_EVERY_S:
                shown.say_news()
                time.sleep(_LOOK_EVERY_S)
            shown.say_news()
    return int(ExitCode.DONE)


def _is_going(layout: RunLayout) -> bool:
    return controller_of(layout) is not None or job_of(layout) is not None


def _newest_log(layout: RunLayout) -> Path:
    """The log of the newest job that was submitted, otherwise that of the controllers."""
    submission = Submission(layout.root)
    number = submission.newest
    return layout.log if number is None else Path(str(submission.log).replace("%j", number))


def _newest_output(layout: RunLayout) -> Path:
    """What the ranks of the newest step have printed."""
    outputs = [path for path in layout.steps.glob("*/*/*/output.log") if path.is_file()]
    return max(outputs, key=lambda path: path.stat().st_ctime, default=layout.steps)


class _Growing:
    """A text that grows, in a file that may be another one the next time.

    Args:
        find: Finds the file.
    """

    def __init__(self, find: Callable[[], Path]) -> None:
        self._find = find
        self._path: Path | None = None
        self._said = 0

    def say_news(self) -> bool:
        """Print the lines that have been added; returns whether there is a file."""
        path = self._find()
        if path != self._path:
            self._path, self._said = path, 0
        try:
            with path.open("rb") as file:
                file.seek(self._said)
                news = file.read()
        except OSError:
            return False
        # A line that is being written comes the next time.
        whole = news[: news.rfind(b"\n") + 1]
        self._said += len(whole)
        if whole:
            say(whole.decode(errors="replace").removesuffix("\n"))
        return True
