"""What a controller finds of those that were killed before it: half-written files and open attempts."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lsr_hpc.checkpoint.manifest import examine
from lsr_hpc.pipeline.attempt import EndedOutside
from lsr_hpc.pipeline.layout import AttemptFiles, RunLayout
from lsr_hpc.pipeline.lease import revoke
from lsr_hpc.pipeline.progress import InstanceProgress

__all__ = ["delete_half_written", "end_abandoned", "marker", "reopened"]

log = logging.getLogger(__name__)

# Names under which publish_file and publish_directory write what the run directory holds.
_HALF_WRITTEN = re.compile(
    r"\.(controller\.claim|job\.toml|run\.json|result\.json|MANIFEST\.json|instance-\d+\.png|(predictor|network)\.running-).*"
)
# The ranks of a controller that was killed end by themselves within a few seconds.
_PATIENCE_S = 10.0
_LOOK_EVERY_S = 0.05


def marker(layout: RunLayout) -> str:
    """The file by which a run directory is known.

    Args:
        layout: The run directory, which need not be there.

    Returns:
        The name of its identity; of the lock, if the controller was killed before it had written one.
    """
    return layout.run.name if layout.run.exists() else layout.lock.name


def delete_half_written(layout: RunLayout) -> None:
    """Delete what killed processes were about to publish; for the holder of the lock.

    Args:
        layout: The run directory.
    """
    for directory in (layout.root, layout.figures):
        for path in directory.glob(".*"):
            if _HALF_WRITTEN.fullmatch(path.name):
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def end_abandoned(progress: Sequence[InstanceProgress]) -> None:
    """Give up the attempts that an earlier controller left open, and wait for their ranks on this machine.

    A rank that lives on would delete checkpoints which a new step is about to read.

    Args:
        progress: How far the instances are.
    """
    open_attempts = [
        attempt.files
        for at in progress
        for attempt in at.attempts
        if isinstance(attempt.outcome, EndedOutside)
    ]
    for files in open_attempts:
        revoke(files)
    until = time.monotonic() + _PATIENCE_S
    while pids := _processes_of(open_attempts):
        if time.monotonic() > until:
            log.warning("processes %s of an earlier controller do not end: killed", pids)
            for pid in pids:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            until = time.monotonic() + _PATIENCE_S
        time.sleep(_LOOK_EVERY_S)


def reopened(layout: RunLayout, at: InstanceProgress) -> InstanceProgress:
    """Have the last round of a finished instance done again if its checkpoint is lost.

    Args:
        layout: The run directory.
        at: How far the instance is.

    Returns:
        That, or the same without its end: the next step goes on from the newest intact checkpoint.

    Raises:
        JobError: If the checkpoint was written by another version of this package.
        EnvironmentProblem: If it may be intact but cannot be read.
    """
    last = at.last
    if last is None or not last.is_finished or last.checkpoint is None:
        return at
    faults = examine(layout.checkpoints(at.instance) / last.checkpoint.name)
    if not faults:
        return at
    log.warning(
        "instance %d: its last checkpoint is damaged (%s): going on from the one before",
        *(at.instance, faults[0]),
    )
    not_yet = replace(last, is_finished=False)
    attempts = (replace(a, outcome=not_yet) if a.outcome is last else a for a in at.attempts)
    return replace(at, attempts=tuple(attempts))


def _processes_of(attempts: Sequence[AttemptFiles]) -> list[int]:
    """Living processes whose command line ends in the specification of one of the attempts."""
    specs = {os.fsencode(files.spec) for files in attempts}
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline") if specs else []:
        with suppress(OSError):
            words = path.read_bytes().rstrip(b"\0").rpartition(b"\0")
            if words[2] in specs:
                found.append(int(path.parent.name))
    return found
